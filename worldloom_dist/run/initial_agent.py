"""``--init-from``: a new run that begins with what another one learned.

From a run of the same spaces and tasks it takes networks, optimizer and normalizers, and none of
the other run's rows, counters or random state. Of a run of other tasks, or of a file that another
program wrote, it takes what the algorithm can fit to its own env. A run that has a checkpoint of
its own goes on from that.
"""

from __future__ import annotations

import logging

from worldloom.algorithms.registry import (
    AgentConfig,
    architecture_changes,
    begins_with_others,
    fit_state,
    make_agent,
    make_agent_config,
    outside_module,
    read_foreign,
)
from worldloom.core.exceptions import CheckpointError, ConfigurationError, WorldLoomError
from worldloom.core.initial_state import InitialState, TrainedState
from worldloom.core.protocol import Agent
from worldloom.core.specs import EnvSpec
from worldloom.hub.fetching import located
from worldloom.training.saved_agents import SavedAgent
from worldloom_dist.run.plan import Plan

__all__ = ["begin_with", "check_initial"]

logger = logging.getLogger(__name__)
RANDOM_STATE = "rng"


def check_initial(plan: Plan) -> tuple[str, ...]:
    """Refuse an agent that this run cannot begin with, before anything is written.

    Returns:
        What is taken from it and what is not, for people; nothing where all of it is.

    Raises:
        ConfigurationError: If it is not there, is another agent, or knows other spaces.
        HubError: If it is on a hub that cannot be reached.
    """
    if plan.config.init_from is None:
        return ()
    found = _read(plan)
    if isinstance(found, SavedAgent):
        return ()
    agent = make_agent(plan.agent, plan.env_spec)
    initial = _fitted(plan, found, agent)
    return initial.lines(str(plan.config.init_from))


def begin_with(plan: Plan, agent: Agent) -> None:
    """Give an untrained agent the state of ``--init-from``; nothing without the flag.

    Raises:
        ConfigurationError, HubError: As :func:`check_initial`.
        CheckpointError: If the state is damaged.
    """
    if plan.config.init_from is None:
        return
    found = _read(plan)
    if isinstance(found, TrainedState):
        _fitted(plan, found, agent)
        logger.info("the agent begins with %s", plan.config.init_from)
        return
    state = dict(found.state)
    own = agent.state_dict()
    if RANDOM_STATE in own:  # runs of several seeds that begin alike must not draw alike
        state[RANDOM_STATE] = own[RANDOM_STATE]
    agent.load_state_dict(state)
    logger.info("the agent begins with %s", found.path)


def _fitted(plan: Plan, trained: TrainedState, agent: Agent) -> InitialState:
    """Load what fits of other tasks or another program."""
    try:
        found = fit_state(plan.agent, trained, agent)
        agent.load_state_dict(found.state)
    except (CheckpointError, ConfigurationError) as error:
        raise ConfigurationError(f"init_from: {plan.config.init_from}: {error}") from error
    return found


def _read(plan: Plan) -> SavedAgent | TrainedState:
    """A whole state for this run; or one of other tasks, or of another program."""
    place = str(plan.config.init_from)
    path = located(place, "init_from")
    try:
        if path.is_file():
            return read_foreign(plan.agent, path, plan.env_spec)
        saved = SavedAgent.read(path)
    except (CheckpointError, ConfigurationError) as error:
        raise ConfigurationError(f"init_from: {error}") from error
    outside = saved.agent_module
    if outside is not None and outside != outside_module(plan.agent.name):
        # not imported: who typed --agent has not named it
        raise ConfigurationError(
            f"init_from: {place} is another agent than this run trains, {saved.agent['name']}; use "
            f"it (--agent {saved.agent['name']}), or leave --init-from out"
        )
    settings = dict(saved.agent)
    try:
        theirs = make_agent_config(settings.pop("name"), settings)
    except WorldLoomError as error:
        raise ConfigurationError(f"init_from: {place}: {error}") from error
    if _has_other_tasks(saved.env, plan.env_spec) and _may_fit(theirs, plan.agent):
        return TrainedState(state=saved.state, env=saved.env, config=theirs)
    _check_same(place, saved.env, theirs, plan)
    return saved


def _has_other_tasks(theirs: EnvSpec, ours: EnvSpec) -> bool:
    """True where several tasks are on one side, and not the same ones on the other."""
    told = [
        [(task.name, task.env, task.obs, task.action) for task in env.tasks]
        for env in (theirs, ours)
    ]
    return told[0] != told[1]


def _may_fit(theirs: AgentConfig, ours: AgentConfig) -> bool:
    """True where both are of one algorithm, which can fit what it learned to other tasks."""
    algorithms = [config.name.partition(":")[0] for config in (theirs, ours)]
    return algorithms[0] == algorithms[1] and begins_with_others(ours)


def _check_same(place: str, env: EnvSpec, theirs: AgentConfig, plan: Plan) -> None:
    """Refuse an agent of other sizes or spaces."""
    changes = architecture_changes(theirs, plan.agent)
    for group, known, wanted in (
        ("observations", env.obs, plan.env_spec.obs),
        ("actions", env.action, plan.env_spec.action),
    ):
        if dict(known) != dict(wanted):
            changes.append(f"{group}: it knows {dict(known)}, and the env has {dict(wanted)}")
    if changes:
        raise ConfigurationError(
            f"init_from: {place} is another agent than this run trains ({changes[0]}); use its "
            f"settings (--agent {theirs.name}), or leave --init-from out"
        )
