"""From a checked ``RunConfig`` to the parts of a run. Both runtimes build their roles here, so they cannot differ in anything else.

``resolve`` looks at the env once and settles everything that follows from it; the resulting ``Plan`` is small, picklable and needs
no torch. Role builders that need torch import it inside.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldloom.agents.registry import AgentConfig, agent_spec, env_defaults, make_agent, make_policy
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.protocol import Agent, AgentSpec, Policy
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.rate_limiter import RateLimits
from worldloom.data.selector_spec import parse_selector
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import env_spec, fixed_size, make_env
from worldloom.envs.vector import VectorEnv
from worldloom_dist.actors.acting import ActClient
from worldloom_dist.actors.evaluation import Evaluator
from worldloom_dist.actors.groups import GroupedWorker
from worldloom_dist.actors.rollout_worker import RolloutWorker
from worldloom_dist.config import RunConfig
from worldloom_dist.ports import ReplayWriter, WeightSink
from worldloom_dist.replay.budget import ReplayBudget
from worldloom_dist.replay.planning import absolute_files, check_files, recorded_env, replay_budget, settle_selector
from worldloom_dist.replay.shard import ReplayShard

if TYPE_CHECKING:
    from worldloom.training.checkpoints import CheckpointStore
    from worldloom_dist.learner.learner import Learner

__all__ = [
    "ActCosts",
    "Plan",
    "build_evaluator",
    "build_grouped_worker",
    "build_learner",
    "build_policy",
    "build_shard",
    "build_store",
    "build_worker",
    "group_sizes",
    "measure_act_costs",
    "needs_measuring",
    "place_inference",
    "resolve",
    "restore_agent",
    "role_seed",
]

IMAGE_SETTINGS = ("image_size", "grayscale", "frame_stack")
TORCH_WORKER_BYTES = 300e6
"""Memory of an env worker that imports torch, besides what processes share."""
REQUEST_CPU_S = 0.001
"""CPU time of a request to an inference server, both sides together (a Ray call with arguments)."""
MEASURE_S = 1.0
ROLES = ("agent", "worker", "prefill", "policy", "sampling", "evaluation", "evaluation_policy")


@dataclass(frozen=True)
class Plan:
    """Everything that the roles of one run agree on.

    Attributes:
        config: What was asked for.
        env: The env with every setting filled in; evaluation uses the same.
        env_spec, agent, spec: What the env gives and takes; the agent's settings; what the system must know of the agent.
        columns: Columns of a stored row.
        limits: Of the train ratio.
        run_id: Name of the run in metrics.
        splits_envs: True when the envs of a worker may be built one by one; False for a vector env of fixed size.
        budget: What replay takes of memory and disk.
        settled_inference: Where the policy runs and why, once it has been measured.
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
    settled_inference: tuple[str, str] | None = None

    @property
    def is_lockstep(self) -> bool:
        """True when the version that acts is a function of the row count."""
        return self.config.runtime == "local" or self.config.barrier

    @property
    def is_offline(self) -> bool:
        """True when there is no env: rows come from files only, and the run ends after ``config.train_steps`` updates."""
        return self.config.env.is_none

    @property
    def num_workers(self) -> int:
        """Env workers; none without an env."""
        return 0 if self.is_offline else self.config.workers

    @property
    def chunk_age_s(self) -> float:
        """Age at which an open chunk is sent; never by age in lock-step, because time is no function of the row count."""
        return float("inf") if self.is_lockstep else self.config.actors.max_chunk_age_s

    @property
    def pull_interval_s(self) -> float:
        """How often acting roles look for newer weights."""
        return 0.0 if self.is_lockstep else self.config.actors.pull_interval_s

    @property
    def target_agent_steps(self) -> int:
        """Agent steps after which the run is complete."""
        return 0 if self.is_offline else -(-self.config.env_steps // self.env_spec.action_repeat)

    def env_steps_at(self, positions: int) -> int:
        """Env steps at which so many trained positions are due: where the run stands, as the learner knows it."""
        owed = max(0, positions - self.limits.burst_positions)
        return int(self.limits.prefill_agent_steps + owed / self.limits.train_ratio) * self.env_spec.action_repeat

    @property
    def inference(self) -> str:
        """``local`` or ``central``: where the policy runs."""
        return (self.settled_inference or place_inference(self))[0]


def resolve(config: RunConfig) -> Plan:
    """Settle everything that follows from the config and the env.

    Raises:
        ConfigurationError, MissingDependencyError, ModelNotFoundError: If the run cannot work; nothing has been started.
    """
    config, agent = absolute_files(config), config.agent_config()
    if config.env.is_none:
        config = dataclasses.replace(config, eval_every=0, eval_episodes=0, inference="local")
        env, observed = config.env, recorded_env(config)
    else:
        env = settle_env(config.env, env_defaults(agent))
        observed = env_spec(env)
    spec = settle_selector(config, agent_spec(agent, observed))
    if config.env.is_none:  # nothing is inserted, so nothing is owed: all updates are one burst behind a prefill of nothing
        spec = dataclasses.replace(spec, prefill_agent_steps=0, pretrain_updates=0)
    if config.train_ratio is not None:
        spec = dataclasses.replace(spec, train_ratio=config.train_ratio)
    window = spec.sampling.window_rows
    if config.replay.capacity_steps < config.replay.shards * window:
        raise ConfigurationError(
            f"replay.capacity_steps must hold one window of {window} rows in each of {config.replay.shards} shards, "
            f"got {config.replay.capacity_steps}"
        )
    if spec.sampling.batch_size % config.learners:
        raise ConfigurationError(
            f"learners must divide the agent's batch size {spec.sampling.batch_size}, because each rank trains on an equal "
            f"share of it, got {config.learners}; choose a divisor, or another --agent.batch-size"
        )
    columns = observed.columns(spec.extras)
    budget = replay_budget(config, columns, _memory_bytes())
    size = None if config.env.is_none else fixed_size(env)
    if size is not None and size != config.envs_per_worker:
        raise ConfigurationError(
            f"env {env.env!r} is a vector env of {size} envs, and envs_per_worker is {config.envs_per_worker}; "
            f"say --envs-per-worker {size}, or give its callable a parameter num_envs"
        )
    check_files(config, columns)
    in_lockstep = config.runtime == "local" or config.barrier or config.env.is_none
    limits = RateLimits(
        train_ratio=spec.train_ratio,
        prefill_agent_steps=spec.prefill_agent_steps,
        batch_positions=spec.sampling.trained_positions,
        pretrain_updates=config.train_steps if config.env.is_none else spec.pretrain_updates,
        max_insert_steps=config.actors.chunk_rows,
        band_agent_steps=config.replay.band_steps,
        lead_share=0.0 if in_lockstep else 0.5,
    )
    return Plan(config, env, observed, agent, spec, columns, limits, splits_envs=size is None, budget=budget)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def settle_env(own: EnvConfig, published: Mapping[str, Mapping[str, Any]]) -> EnvConfig:
    """Every setting of the env: the user's, else what the agent was published with for the suite, else the suite's own.

    The agent's settings for images concern only envs that observe some.
    """
    defaults = dict(published.get(own.suite, {}))
    if not any(spec.is_image for spec in env_spec(own.resolved()).obs.values()):
        defaults = {name: value for name, value in defaults.items() if name not in IMAGE_SETTINGS}
    return own.with_defaults({own.suite: defaults}).resolved()


@dataclass(frozen=True, slots=True)
class ActCosts:
    """What decisions cost on one thread, measured.

    Attributes:
        local_s: One call of the policy for the envs of one worker, seconds of CPU (on a GPU of wall time).
        central_s: One call for ``central_rows`` envs of all workers.
        central_rows: Rows of the largest batch that can come together.
    """

    local_s: float
    central_s: float
    central_rows: int


def place_inference(plan: Plan, costs: ActCosts | None = None) -> tuple[str, str]:
    """Where the policy runs, and why in one line; without costs the answer to ``auto`` is a guess."""
    config = plan.config
    if config.inference != "auto":
        return config.inference, "asked for"
    if plan.is_lockstep:
        return "local", "lock-step keeps the policy with its envs"
    if config.num_envs == 1:
        return "local", "one env: there is nothing to batch"
    room = int(_memory_bytes() / 2 / TORCH_WORKER_BYTES)
    if config.address is None and config.workers > room:
        return "central", f"{config.workers} workers with torch in each do not fit into this machine's memory"
    if costs is None:
        is_central = config.workers > 4 or plan.spec.acting == "planner"
        return ("central", "not measured; guessed for many workers or planning") if is_central else ("local", "not measured")
    local_ms = 1e3 * costs.local_s / config.envs_per_worker
    central_ms = 1e3 * (costs.central_s / costs.central_rows + REQUEST_CPU_S / config.envs_per_worker)
    where = "central" if central_ms < local_ms else "local"
    return where, (
        f"measured: a decision costs {local_ms:.2f} ms in its worker, and {central_ms:.2f} ms in batches of {costs.central_rows} "
        "with their requests"
    )


def needs_measuring(plan: Plan) -> bool:
    """True when :func:`place_inference` would guess."""
    return place_inference(plan)[1].startswith("not measured")


def measure_act_costs(plan: Plan, device: str) -> ActCosts:
    """Time the policy as workers would call it here, and as an inference server would on ``device``. Imports torch."""
    import torch

    torch.set_num_threads(1)
    rows = min(plan.config.num_envs, plan.config.actors.max_batch)
    return ActCosts(_act_seconds(plan, plan.config.envs_per_worker, "cpu"), _act_seconds(plan, rows, device), rows)


def _act_seconds(plan: Plan, rows: int, device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    policy = build_policy(plan, num_envs=rows, device=device)
    carry, is_first = policy.initial_carry(rows), np.ones(rows, bool)
    obs = {key: spec.zeros(rows) for key, spec in plan.env_spec.obs.items()}
    times: list[float] = []
    give_up = time.monotonic() + MEASURE_S
    while len(times) < 3 or (len(times) < 12 and time.monotonic() < give_up):
        began = clock()
        carry = policy.act(obs, carry, is_first, explore=True).carry
        times.append(clock() - began)
        is_first = np.zeros(rows, bool)
    return min(times[1:])


def role_seed(plan: Plan, role: str, *index: int) -> int:
    """Seed of one instance of a role, spawned from the run's root seed."""
    sequence = np.random.SeedSequence(plan.config.seed, spawn_key=(ROLES.index(role), *index))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def group_sizes(plan: Plan) -> list[int]:
    """Envs in each group of a worker. Two groups take turns where actions come from afar, so that one steps meanwhile."""
    envs = plan.config.envs_per_worker
    groups = min(plan.config.actors.groups, envs) if plan.inference == "central" and plan.splits_envs else 1
    return [envs // groups + (index < envs % groups) for index in range(groups)]


def build_envs(plan: Plan, slot: int, incarnation: int, first_env: int, num_envs: int) -> VectorEnv:
    """Envs of one worker. Several envs are supervised in processes of their own; a single one is the worker's process."""
    config = plan.config
    actors = config.actors
    limits = EnvLimits(
        step_timeout_s=actors.step_timeout_s,
        reset_timeout_s=actors.reset_timeout_s,
        max_failures=actors.max_env_failures,
        failure_window_s=actors.env_failure_window_s,
    )
    supervised = actors.supervise and plan.env.suite != "rllib"  # Ray's registry is known to Ray's processes only
    processes = config.runtime == "ray" and config.envs_per_worker > 1 and supervised
    seed = role_seed(plan, "worker", slot, incarnation, *([first_env] if first_env else []))
    return make_env(plan.env, num_envs=num_envs, seed=seed, limits=limits, processes=processes)


def build_worker(
    plan: Plan,
    slot: int,
    incarnation: int,
    acting: ActClient,
    writer: ReplayWriter,
    *,
    first_env: int = 0,
    num_envs: int | None = None,
) -> RolloutWorker:
    """An env worker, or one group (``num_envs`` envs from ``first_env`` on) of its envs."""
    count = plan.config.envs_per_worker if num_envs is None else num_envs
    return RolloutWorker(
        slot,
        incarnation,
        env=lambda: build_envs(plan, slot, incarnation, first_env, count),
        acting=acting,
        writer=writer,
        columns=plan.columns,
        seed=role_seed(plan, "prefill", slot, incarnation, *([first_env] if first_env else [])),
        chunk_rows=plan.config.actors.chunk_rows,
        max_chunk_age_s=plan.chunk_age_s,
        random_prefill=plan.spec.random_prefill,
        first_env=first_env,
    )


def build_grouped_worker(
    plan: Plan, slot: int, incarnation: int, acting: Callable[[int, int], ActClient], writer: ReplayWriter
) -> RolloutWorker | GroupedWorker:
    """An env worker whose envs are in as many groups as pays; ``acting`` gets the first env and the size of a group."""
    groups, first_env = [], 0
    for size in group_sizes(plan):
        client = acting(first_env, size)
        groups.append(build_worker(plan, slot, incarnation, client, writer, first_env=first_env, num_envs=size))
        first_env += size
    return groups[0] if len(groups) == 1 else GroupedWorker(groups)


def build_policy(plan: Plan, *index: int, num_envs: int | None = None, device: str = "cpu") -> Policy:
    """A policy for acting; it acts with weights equal to the untrained agent's until it loads some."""
    return make_policy(plan.agent, plan.env_spec, device=device, seed=role_seed(plan, "policy", *index), num_envs=num_envs)


def build_learner(plan: Plan, weights: WeightSink, *, device: str, incarnation: int, folder: Path, **hooks: Any) -> Learner:
    """The learner with an untrained agent."""
    from worldloom_dist.learner.learner import Learner

    agent = make_agent(plan.agent, plan.env_spec, device=device, seed=role_seed(plan, "agent"))
    own = plan.config.learner
    how: dict[str, Any] = {"compile": own.compile, "ranks": plan.config.learners, "weights_dtype": own.weights_dtype}
    return Learner(agent, weights, device=device, incarnation=incarnation, bad_batches=folder / "nonfinite", **how, **hooks)


def build_store(plan: Plan, folder: Path) -> CheckpointStore:
    """The run's checkpoints: in its folder, or where the config says.

    Raises:
        CheckpointError: If the place cannot be opened.
    """
    from worldloom.training.remote_checkpoints import open_store

    learner = plan.config.learner
    return open_store(learner.checkpoints or folder / "checkpoints", keep=learner.keep_checkpoints)


def restore_agent(plan: Plan, checkpoint: Path, *, device: str = "cpu") -> tuple[Agent, int]:
    """The agent of a checkpoint, and its number of updates.

    Raises:
        CheckpointError: If the checkpoint is damaged or of another architecture.
    """
    from worldloom.training.checkpoints import load_tree

    saved = load_tree(checkpoint)["learner"]
    agent = make_agent(plan.agent, plan.env_spec, device=device, seed=role_seed(plan, "agent"))
    agent.load_state_dict(saved["agent"])
    return agent, int(saved["train_steps"])


def build_shard(plan: Plan, index: int, folder: Path) -> ReplayShard:
    """Replay shard ``index``; finds what an earlier process journalled."""
    replay = plan.config.replay
    return ReplayShard(
        index,
        plan.columns,
        plan.spec.sampling,
        capacity_steps=replay.capacity_steps // replay.shards,
        directory=None if replay.durability == "none" else folder / f"shard-{index}",
        durability=replay.durability,
        kept_marks=plan.config.learner.keep_checkpoints,
        capacity_bytes=int(replay.capacity_gb * 1e9 / replay.shards) if replay.capacity_gb else _most_in_memory(plan),
        ram_bytes=plan.budget.hot_bytes // replay.shards if plan.budget and plan.budget.hot_bytes is not None else None,
        is_mapped=plan.budget is not None and plan.budget.is_mapped,
        make_selector=parse_selector(replay.selector).build,
    )


def _most_in_memory(plan: Plan) -> int | None:
    """Without a journal nothing can be read back, so memory itself is the capacity of a shard."""
    if plan.config.replay.durability != "none" or plan.budget is None or plan.budget.ram_limit_bytes is None:
        return None
    return plan.budget.ram_limit_bytes // plan.config.replay.shards


def build_evaluator(plan: Plan, *, device: str = "cpu") -> Evaluator:
    """The evaluator: own envs, own seeds, ``explore=False``; the same one in training and afterwards."""
    episodes = plan.config.eval_episodes
    seed = role_seed(plan, "evaluation")
    policy = make_policy(plan.agent, plan.env_spec, device=device, seed=role_seed(plan, "evaluation_policy"))
    films = plan.config.eval_videos

    def env() -> VectorEnv:
        return make_env(plan.env, num_envs=episodes, seed=seed, is_exact=False, renders=films > 0)

    return Evaluator(env, policy, episodes, films=films)
