"""What the roles of one run agree on: ``resolve`` makes a :class:`Plan` from a checked
``RunConfig``.

It looks at the env once and resolves everything that follows from it; the resulting plan is small,
picklable and needs no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloom.algorithms.registry import AgentConfig, agent_spec, env_defaults
from worldloom.core.devices import has_gpu_driver
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.memory import memory_total
from worldloom.core.protocol import AgentSpec
from worldloom.core.seeds import seed_of
from worldloom.core.specs import ACTION, OBS, ArraySpec, EnvSpec
from worldloom.data.offline_share import OfflineShare, parse_share
from worldloom.data.rate_limiter import RateLimits
from worldloom.envs.config import TASKS_SUITE, EnvConfig
from worldloom.envs.factory import probe_env, probed
from worldloom.envs.tasks import has_sizes, joined_spec, with_tasks
from worldloom_dist.replay.budget import ReplayBudget
from worldloom_dist.replay.imports import split_sources
from worldloom_dist.replay.planning import (
    absolute_files,
    check_files,
    check_first_windows,
    recorded_env,
    replay_budget,
    resolve_windows,
)
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.counts import Counts
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.standby import keep_standby

__all__ = [
    "ActCosts",
    "Plan",
    "agent_settings",
    "group_sizes",
    "inference_question",
    "known_inference",
    "may_use_gpu",
    "needs_measuring",
    "place_inference",
    "resolve",
    "resolve_again",
    "role_seed",
]

LONGEST_EVALUATION_STEPS = 10_000
"""Decisions of an evaluation episode in an env that is not known to allow longer ones."""
BURN_IN = "burn_in"
"""Setting of an agent that stores latents beside its rows."""
IMAGE_SETTINGS = ("image_size", "grayscale", "frame_stack")
WORKER_BYTES = 70e6
"""Memory of an env worker without torch, besides what processes share."""
TORCH_WORKER_BYTES = 300e6
"""Memory of an env worker that imports torch, besides what processes share."""
TORCH_ROLES = 3
"""Other processes of a run that import torch: learner, evaluator, inference server."""
REQUEST_CPU_S = 0.001
"""CPU time of a request to an inference server, both sides together (a Ray call with arguments)."""
ROLES = (
    "agent",
    "worker",
    "prefill",
    "policy",
    "sampling",
    "evaluation",
    "evaluation_policy",
    "gateway",
)


@dataclass(frozen=True)
class Plan:
    """Everything that the roles of one run agree on.

    Attributes:
        config: What was asked for.
        env: The env with every setting filled in; evaluation uses the same.
        env_spec, agent, spec: What the env gives and takes; the agent's settings; what the system
            must know of the agent.
        columns: Columns of a stored row.
        limits: Of the train ratio.
        run_id: Name of the run in metrics.
        splits_envs: True when the envs of a worker may be built one by one; False for a vector env
            of fixed size.
        budget: What replay takes of memory and disk.
        measured_inference: Where the policy runs and why, once it has been measured.
        standby: Whether a second learner follows the first, and why.
        needs_main_thread: Why the env cannot live in a thread of a role (then it has a process of
            its own); empty when it can.
        precision_line: What was measured of the precision, for people; empty where nothing was.
        initial_lines: What the agent begins with of another one, for people.
    """

    config: RunConfig
    env: EnvConfig
    env_spec: EnvSpec
    agent: AgentConfig
    spec: AgentSpec
    columns: Mapping[str, ArraySpec]
    limits: RateLimits
    run_id: str = ""
    splits_envs: bool = True
    budget: ReplayBudget | None = None
    measured_inference: tuple[str, str] | None = None
    standby: tuple[bool, str] = (False, "")
    needs_main_thread: str = ""
    precision_line: str = ""
    initial_lines: tuple[str, ...] = ()

    @property
    def is_lockstep(self) -> bool:
        """True when the version that acts is a function of the row count."""
        return self.config.runtime == "local" or self.config.barrier

    @property
    def is_offline(self) -> bool:
        """True when there is no env: rows come from files only, and the run ends after
        ``config.train_steps`` updates.
        """
        return self.config.env.is_none

    @property
    def num_workers(self) -> int:
        """Env workers; none without an env."""
        return 0 if self.is_offline else self.config.workers

    @property
    def chunk_age_s(self) -> float:
        """Age at which an open chunk is sent; never by age in lock-step, because time is no
        function of the row count.
        """
        return float("inf") if self.is_lockstep else self.config.actors.max_chunk_age_s

    @property
    def pull_interval_s(self) -> float:
        """How often acting roles look for newer weights."""
        return 0.0 if self.is_lockstep else self.config.actors.pull_interval_s

    @property
    def offline_share(self) -> OfflineShare | None:
        """Which part of every batch begins at rows from files, where that was asked for."""
        text = self.config.replay.offline_share
        return None if text is None else parse_share(text, self.env_spec.action_repeat)

    def is_pretrained(self, train_steps: int) -> bool:
        """True when enough updates are made for weights that may act: those before the first step,
        else the pretraining's, or one.
        """
        return train_steps >= max(1, self.config.offline_steps or self.spec.pretrain_updates)

    @property
    def labels(self) -> dict[str, str]:
        """Of the metric ``run_info``."""
        config = self.config
        return {
            "env": self.env.env,
            "agent": self.agent.name,
            "preset": config.preset,
            "seed": str(config.seed),
        }

    @property
    def target_agent_steps(self) -> int:
        """Agent steps after which the run is complete."""
        return 0 if self.is_offline else -(-self.config.env_steps // self.env_spec.action_repeat)

    def has_all_steps(self, counts: Counts) -> bool:
        """True when everything that the run collects is there; without an env, when every update
        is made. What the steps owe to training may be missing.
        """
        if self.is_offline:
            return counts.train_steps >= self.config.train_steps
        return counts.counters.agent_steps >= self.target_agent_steps

    @property
    def eval_max_steps(self) -> int:
        """Decisions after which an evaluation episode is cut; never before the env's own limit
        unless that was asked for.
        """
        known = [one.episode_limit or 0 for one in self.env_spec.tasks or (self.env_spec,)]
        return self.config.eval_max_steps or max(LONGEST_EVALUATION_STEPS, *known)

    @property
    def eval_timeout_s(self) -> float:
        """Seconds that one evaluation of all tasks may take."""
        return self.config.eval_timeout_s * max(1, len(self.env_spec.tasks))

    def env_steps_at(self, positions: int) -> int:
        """Env steps at which this many trained positions are due: where the run stands, as the
        learner knows it.
        """
        owed = max(0, positions - self.limits.unowed_positions)
        return (
            int(self.limits.prefill_agent_steps + owed / self.limits.train_ratio)
            * self.env_spec.action_repeat
        )

    @property
    def inference(self) -> str:
        """``local`` or ``central``: where the policy runs."""
        return (self.measured_inference or place_inference(self))[0]


def agent_settings(config: RunConfig) -> AgentConfig:
    """The agent's settings; one that stores latents beside its rows makes those that rows from
    files have not, unless it was told otherwise.
    """
    agent: Any = config.agent_config()
    is_asked = config.replay.load and BURN_IN not in config.agent_overrides
    if is_asked and BURN_IN in {f.name for f in dataclasses.fields(agent)}:
        agent = dataclasses.replace(agent, **{BURN_IN: True})
    found: AgentConfig = agent
    return found


def resolve(
    config: RunConfig, *, recorded: EnvSpec | None = None, stored: Collection[str] = ()
) -> Plan:
    """Resolve everything that follows from the config and the env.

    Args:
        config: What was asked for.
        recorded: What the env gives and takes, where that is known and no env is played: none is
            built then.
        stored: Files of ``replay.load`` that a run has stored before: they need not be there any
            more.

    Raises:
        ConfigurationError, MissingDependencyError, ModelNotFoundError: If the run cannot work;
        nothing has been started.
    """
    config, agent = absolute_files(config), agent_settings(config)
    if config.env.is_none:
        config = dataclasses.replace(config, eval_every=0, eval_episodes=0, inference="local")
        env = config.env
        observed = recorded or recorded_env(config)
        size = None
    elif recorded is not None:
        env = config.env
        observed = recorded
        size = None
    else:
        if config.env.suite == TASKS_SUITE and not config.env.tasks:
            config = dataclasses.replace(config, env=with_tasks(config.env))
        env, observed, size = resolve_env(config.env, env_defaults(agent))
        if env.tasks:
            own = dataclasses.replace(config.env, tasks=env.tasks)
            config = dataclasses.replace(config, env=own)
    spec = resolve_windows(config, agent_spec(agent, observed), observed)
    if observed.tasks and config.env.is_none:
        raise ConfigurationError(
            f"replay.load: the rows are of {len(observed.tasks)} tasks ({observed.name}), and a "
            "run without an env learns one; train with --env, or load the rows of one task"
        )
    if observed.tasks and not spec.knows_tasks:
        raise ConfigurationError(
            f"agent {spec.name} learns one task, and --env names {len(observed.tasks)}; use an "
            "agent that learns several (tdmpc2), or name one env"
        )
    # nothing is inserted, so nothing is owed: all updates are pretraining after a prefill of
    # nothing
    if config.env.is_none:
        spec = dataclasses.replace(spec, prefill_agent_steps=0, pretrain_updates=0)
    if config.train_ratio is not None:
        spec = dataclasses.replace(spec, train_ratio=config.train_ratio)
    least = spec.sampling.least_rows
    if config.replay.capacity_steps < config.replay.shards * least:
        raise ConfigurationError(
            f"replay.capacity_steps must hold one window, so {least} rows, in each of "
            f"{config.replay.shards} shards, "
            f"got {config.replay.capacity_steps}"
        )
    if spec.sampling.batch_size % config.learners:
        raise ConfigurationError(
            f"learners must divide the agent's batch size {spec.sampling.batch_size}, "
            "because each rank trains on an equal "
            f"share of it, got {config.learners}; choose a divisor, or another --agent.batch-size"
        )
    columns = observed.columns(spec.extras)
    budget = replay_budget(config, columns, memory_total())
    if size is not None and size != config.envs_per_worker:
        raise ConfigurationError(
            f"env {env.env!r} is a vector env of {size} envs, and envs_per_worker is "
            f"{config.envs_per_worker}; "
            f"say --envs-per-worker {size}, or give its callable a parameter num_envs"
        )
    check_files(config, columns, observed, stored)
    if config.offline_steps:
        check_first_windows(config, spec.sampling, stored)
    in_lockstep = config.runtime == "local" or config.barrier or config.env.is_none
    limits = RateLimits(
        train_ratio=spec.train_ratio,
        prefill_agent_steps=spec.prefill_agent_steps,
        batch_positions=spec.sampling.trained_positions,
        pretrain_updates=config.train_steps if config.env.is_none else spec.pretrain_updates,
        max_insert_steps=config.actors.chunk_rows,
        band_agent_steps=config.replay.band_steps,
        lead_share=0.0 if in_lockstep else 0.5,
        offline_updates=config.offline_steps,
    )
    each = WORKER_BYTES if config.inference == "central" else TORCH_WORKER_BYTES
    others_bytes = budget.most_bytes + each * config.workers + TORCH_ROLES * TORCH_WORKER_BYTES
    return Plan(
        config,
        env,
        observed,
        agent,
        spec,
        columns,
        limits,
        splits_envs=size is None,
        budget=budget,
        standby=keep_standby(config, others_bytes),
    )


def resolve_again(config: RunConfig, folder: RunFolder) -> Plan:
    """:func:`resolve` for a run that was begun before: files that it has stored need not be there
    any more.

    Raises:
        ConfigurationError, MissingDependencyError, ModelNotFoundError: As :func:`resolve`.
    """
    found = folder.read_json("config.json")
    stored = split_sources(found.get("run", {}).get("replay", {}).get("load"))
    known = folder.env_spec()
    if config.env.tasks and not has_sizes(config.env):
        # 0 is for tasks of the beginning, which prefill and pretraining are counted by
        joined = max(1, int(folder.read_json("summary.json").get("env_steps") or 0))
        tasks = {
            name: entry if OBS in entry else {**entry, "joined": joined}
            for name, entry in config.env.tasks.items()
        }
        config = dataclasses.replace(config, env=dataclasses.replace(config.env, tasks=tasks))
    plan = resolve(config, recorded=known if config.env.is_none else None, stored=stored)
    if known is not None and known.tasks and plan.env_spec.tasks:
        _check_rows_fit(plan.env_spec, known)
    return plan


def _check_rows_fit(now: EnvSpec, then: EnvSpec) -> None:
    """Refuse tasks that are larger than the rows of the run, or that repeat actions otherwise.

    Raises:
        ConfigurationError: Names the task.
    """
    most = {OBS: then.obs[OBS].size, ACTION: then.action[ACTION].size}
    for task in now.tasks[len(then.tasks) :]:
        for what, size in ((OBS, task.obs_size), (ACTION, task.action_size)):
            if size > most[what]:
                raise ConfigurationError(
                    f"env.tasks: {task.name!r} has {size} numbers in {what}, and the run's rows "
                    f"have {most[what]}; leave it out, or start a new run with --run-dir"
                )


def resolve_env(
    own: EnvConfig, published: Mapping[str, Mapping[str, Any]]
) -> tuple[EnvConfig, EnvSpec, int | None]:
    """Every setting of the env: the user's, else what the agent was published with for the suite,
    else the suite's own.

    The agent's settings for images concern only envs that observe some. The env is built once, and
    once more if the agent's settings change it; of several tasks each one alone.

    Returns:
        The settings, and what :func:`~worldloom.envs.factory.probe_env` says about the env with
        them.
    """
    own = probed(own, lambda part: resolve_env(part, published))
    if own.tasks:
        return own, joined_spec(own), None
    alone = own.resolved()
    defaults = dict(published.get(own.family, {}))
    spec, size = probe_env(alone)
    if not any(array.is_image for array in spec.obs.values()):
        defaults = {name: value for name, value in defaults.items() if name not in IMAGE_SETTINGS}
    resolved = own.with_defaults({own.family: defaults}).resolved()
    return (resolved, spec, size) if resolved == alone else (resolved, *probe_env(resolved))


@dataclass(frozen=True, slots=True)
class ActCosts:
    """What decisions cost on one thread, measured.

    Attributes:
        local_s: One call of the policy for the envs of one worker, seconds of CPU (on a GPU of wall
            time).
        central_s: One call for ``central_rows`` envs of all workers.
        central_rows: Rows of the largest batch that can come together.
    """

    local_s: float
    central_s: float
    central_rows: int


def place_inference(plan: Plan, costs: ActCosts | None = None) -> tuple[str, str]:
    """Where the policy runs, and why in one line; without costs the answer to ``auto`` is
    a guess.
    """
    config = plan.config
    if config.inference != "auto":
        return config.inference, "asked for"
    if plan.is_lockstep:
        return "local", "lock-step keeps the policy with its envs"
    if config.workers == 0 and config.gateways == 1:
        return "local", "the gateway decides for its clients itself"
    if config.workers == 0:
        return "central", "several gateways share their decisions"
    if config.num_envs == 1 and not may_use_gpu(config):
        return "local", "one env: there is nothing to batch, and no GPU to decide on"
    room = int(memory_total() / 2 / TORCH_WORKER_BYTES)
    if config.address is None and config.workers > room:
        return (
            "central",
            f"{config.workers} workers with torch in each do not fit into this machine's memory",
        )
    if costs is None:
        is_central = config.workers > 4 or plan.spec.acting == "planner"
        return (
            ("central", "not measured; guessed for many workers or planning")
            if is_central
            else ("local", "not measured")
        )
    local_ms = 1e3 * costs.local_s / config.envs_per_worker
    central_ms = 1e3 * (
        costs.central_s / costs.central_rows + REQUEST_CPU_S / config.envs_per_worker
    )
    where = "central" if central_ms < local_ms else "local"
    return where, (
        f"measured: a decision costs {local_ms:.2f} ms in its worker, and "
        f"{central_ms:.2f} ms in batches of {costs.central_rows} "
        "with their requests"
    )


def may_use_gpu(config: RunConfig) -> bool:
    """True when a policy that is not with its envs may run on a GPU."""
    device = config.learner.device
    is_likely = config.address is not None or has_gpu_driver()
    return device.startswith("cuda") or (device == "auto" and is_likely)


def needs_measuring(plan: Plan) -> bool:
    """True when :func:`place_inference` would guess."""
    return place_inference(plan)[1].startswith("not measured")


PLACES = ("local", "central")


def inference_question(plan: Plan) -> str:
    """All that :func:`place_inference` depends on, this machine included: the same question has the
    same answer.
    """
    config = plan.config
    facts = (
        config.inference,
        *(config.workers, config.envs_per_worker, config.inference_servers),
        *(config.actors.max_batch, config.actors.groups, config.learner.device, config.address),
        dataclasses.asdict(plan.agent),  # type: ignore[call-overload]
        plan.env_spec.to_dict(),
        *(platform.node(), platform.machine(), os.cpu_count(), has_gpu_driver()),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def known_inference(plan: Plan, earlier: object) -> tuple[str, str] | None:
    """What was measured before a resume, if it was asked the same.

    Args:
        plan: Of the run that goes on.
        earlier: ``inference`` of the summary that it left.
    """
    if not isinstance(earlier, Mapping) or earlier.get("question") != inference_question(plan):
        return None
    where, why = (str(earlier.get(name)) for name in ("where", "why"))
    return (where, why) if where in PLACES and why.startswith("measured") else None


def role_seed(plan: Plan, role: str, *index: int) -> int:
    """Seed of one instance of a role, spawned from the run's root seed."""
    sequence = np.random.SeedSequence(plan.config.seed, spawn_key=(ROLES.index(role), *index))
    return seed_of(sequence)


def group_sizes(plan: Plan) -> list[int]:
    """Envs in each group of a worker. Two groups take turns where actions come from afar, so that
    one steps meanwhile.
    """
    envs = plan.config.envs_per_worker
    groups = (
        min(plan.config.actors.groups, envs)
        if plan.inference == "central" and plan.splits_envs
        else 1
    )
    return [envs // groups + (index < envs % groups) for index in range(groups)]
