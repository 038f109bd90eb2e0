"""``--init-from``: a new run that begins with what another one learned.

It takes networks, optimizer and normalizers, and none of the other run's rows, counters or random
state. A run that has a checkpoint of its own goes on from that.
"""

from __future__ import annotations

import logging

from worldloom.algorithms.registry import architecture_changes, make_agent_config, outside_module
from worldloom.core.exceptions import CheckpointError, ConfigurationError, WorldLoomError
from worldloom.core.protocol import Agent
from worldloom.hub.fetching import located
from worldloom.training.saved_agents import SavedAgent
from worldloom_dist.run.plan import Plan

__all__ = ["begin_with", "check_initial"]

logger = logging.getLogger(__name__)
RANDOM_STATE = "rng"


def check_initial(plan: Plan) -> None:
    """Refuse an agent that this run cannot begin with, before anything is written.

    Raises:
        ConfigurationError: If it is not there, is another agent, or knows other spaces.
        HubError: If it is on a hub that cannot be reached.
    """
    if plan.config.init_from is not None:
        _read(plan)


def begin_with(plan: Plan, agent: Agent) -> None:
    """Give an untrained agent the state of ``--init-from``; nothing without the flag.

    Raises:
        ConfigurationError, HubError: As :func:`check_initial`.
        CheckpointError: If the state is damaged.
    """
    if plan.config.init_from is None:
        return
    saved = _read(plan)
    state = dict(saved.state)
    own = agent.state_dict()
    if RANDOM_STATE in own:  # runs of several seeds that begin alike must not draw alike
        state[RANDOM_STATE] = own[RANDOM_STATE]
    agent.load_state_dict(state)
    logger.info("the agent begins with %s", saved.path)


def _read(plan: Plan) -> SavedAgent:
    place = str(plan.config.init_from)
    try:
        saved = SavedAgent.read(located(place, "init_from"))
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
    changes = architecture_changes(theirs, plan.agent)
    for group, known, wanted in (
        ("observations", saved.env.obs, plan.env_spec.obs),
        ("actions", saved.env.action, plan.env_spec.action),
    ):
        if dict(known) != dict(wanted):
            changes.append(f"{group}: it knows {dict(known)}, and the env has {dict(wanted)}")
    if changes:
        raise ConfigurationError(
            f"init_from: {place} is another agent than this run trains ({changes[0]}); use its "
            f"settings (--agent {theirs.name}), or leave --init-from out"
        )
    return saved
