"""From a checked ``RunConfig`` to the parts of a run. Both runtimes build their roles here, so they cannot differ in anything else.

``resolve`` looks at the env once and settles everything that follows from it; the resulting ``Plan`` is small, picklable and needs
no torch. Role builders that need torch import it inside.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldloom.agents.registry import AgentConfig, agent_spec, env_defaults, make_agent, make_policy
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.protocol import Agent, AgentSpec, Policy
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.rate_limiter import RateLimits
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import env_spec, make_env
from worldloom.envs.vector import VectorEnv
from worldloom_dist.actors.acting import ActClient
from worldloom_dist.actors.evaluation import Evaluator
from worldloom_dist.actors.rollout_worker import RolloutWorker
from worldloom_dist.config import RunConfig
from worldloom_dist.ports import ReplayWriter, WeightSink
from worldloom_dist.replay.shard import ReplayShard

if TYPE_CHECKING:
    from worldloom_dist.learner.learner import Learner

__all__ = [
    "Plan",
    "build_evaluator",
    "build_learner",
    "build_policy",
    "build_shard",
    "build_worker",
    "choose_inference",
    "resolve",
    "restore_agent",
    "role_seed",
]

IMAGE_SETTINGS = ("image_size", "grayscale", "frame_stack")
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
    """

    config: RunConfig
    env: EnvConfig
    env_spec: EnvSpec
    agent: AgentConfig
    spec: AgentSpec
    columns: Mapping[str, ArraySpec]
    limits: RateLimits
    run_id: str = ""

    @property
    def is_lockstep(self) -> bool:
        """True when the version that acts is a function of the row count."""
        return self.config.runtime == "local" or self.config.barrier

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
        return -(-self.config.env_steps // self.env_spec.action_repeat)

    def env_steps_at(self, positions: int) -> int:
        """Env steps at which so many trained positions are due: where the run stands, as the learner knows it."""
        owed = max(0, positions - self.limits.burst_positions)
        return int(self.limits.prefill_agent_steps + owed / self.limits.train_ratio) * self.env_spec.action_repeat

    @property
    def inference(self) -> str:
        """``local`` or ``central``: where the policy runs."""
        return choose_inference(self.config, self.spec)[0]


def resolve(config: RunConfig) -> Plan:
    """Settle everything that follows from the config and the env.

    Raises:
        ConfigurationError, MissingDependencyError, ModelNotFoundError: If the run cannot work; nothing has been started.
    """
    agent = config.agent_config()
    env = settle_env(config.env, env_defaults(agent))
    observed = env_spec(env)
    spec = agent_spec(agent, observed)
    if config.train_ratio is not None:
        spec = dataclasses.replace(spec, train_ratio=config.train_ratio)
    window = spec.sampling.window_rows
    if config.replay.capacity_steps < config.replay.shards * window:
        raise ConfigurationError(
            f"replay.capacity_steps must hold one window of {window} rows in each of {config.replay.shards} shards, "
            f"got {config.replay.capacity_steps}"
        )
    columns = observed.columns(spec.extras)
    _check_memory(config, columns)
    in_lockstep = config.runtime == "local" or config.barrier
    limits = RateLimits(
        train_ratio=spec.train_ratio,
        prefill_agent_steps=spec.prefill_agent_steps,
        batch_positions=spec.sampling.trained_positions,
        pretrain_updates=spec.pretrain_updates,
        max_insert_steps=config.actors.chunk_rows,
        band_agent_steps=config.replay.band_steps,
        lead_share=0.0 if in_lockstep else 0.5,
    )
    return Plan(config, env, observed, agent, spec, columns, limits)


def _check_memory(config: RunConfig, columns: Mapping[str, ArraySpec]) -> None:
    """Refuse a replay whose uncompressed columns (all but images) cannot fit into this machine's memory."""
    row = sum(column.nbytes for column in columns.values() if not column.is_image)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = config.replay.capacity_steps
    if config.address is None and row * rows > memory:
        raise ConfigurationError(
            f"replay.capacity_steps: {rows:,} rows of {row} bytes need {row * rows / 1e9:,.0f} GB, and this machine has "
            f"{memory / 1e9:,.0f} GB; ask for at most {memory // 2 // row:,}"
        )


def settle_env(own: EnvConfig, published: Mapping[str, Mapping[str, Any]]) -> EnvConfig:
    """Every setting of the env: the user's, else what the agent was published with for the suite, else the suite's own.

    The agent's settings for images concern only envs that observe some.
    """
    defaults = dict(published.get(own.suite, {}))
    if not any(spec.is_image for spec in env_spec(own.resolved()).obs.values()):
        defaults = {name: value for name, value in defaults.items() if name not in IMAGE_SETTINGS}
    return own.with_defaults({own.suite: defaults}).resolved()


def choose_inference(config: RunConfig, spec: AgentSpec) -> tuple[str, str]:
    """Where the policy runs, and why."""
    if config.inference != "auto":
        return config.inference, "asked for"
    if config.runtime == "local" or config.barrier:
        return "local", "lock-step keeps the policy with its envs"
    if config.workers > 4:
        return "central", f"{config.workers} workers share one copy of the policy and need no torch"
    if spec.acting == "planner" and config.num_envs > 1:
        return "central", "one batched search for all envs is cheaper than one search in each worker"
    return "local", "few workers, and one action is cheap"


def role_seed(plan: Plan, role: str, *index: int) -> int:
    """Seed of one instance of a role, spawned from the run's root seed."""
    sequence = np.random.SeedSequence(plan.config.seed, spawn_key=(ROLES.index(role), *index))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def build_envs(plan: Plan, slot: int, incarnation: int) -> VectorEnv:
    """The envs of one worker. Several envs are supervised in processes of their own; a single one is the worker's process."""
    config = plan.config
    limits = EnvLimits(step_timeout_s=config.actors.step_timeout_s, reset_timeout_s=config.actors.reset_timeout_s)
    processes = config.runtime == "ray" and config.envs_per_worker > 1 and config.actors.supervise
    seed = role_seed(plan, "worker", slot, incarnation)
    return make_env(plan.env, num_envs=config.envs_per_worker, seed=seed, limits=limits, processes=processes)


def build_worker(plan: Plan, slot: int, incarnation: int, acting: ActClient, writer: ReplayWriter) -> RolloutWorker:
    """An env worker."""
    return RolloutWorker(
        slot,
        incarnation,
        env=lambda: build_envs(plan, slot, incarnation),
        acting=acting,
        writer=writer,
        columns=plan.columns,
        seed=role_seed(plan, "prefill", slot, incarnation),
        chunk_rows=plan.config.actors.chunk_rows,
        max_chunk_age_s=plan.chunk_age_s,
        random_prefill=plan.spec.random_prefill,
    )


def build_policy(plan: Plan, *index: int, num_envs: int | None = None, device: str = "cpu") -> Policy:
    """A policy for acting; it acts with weights equal to the untrained agent's until it loads some."""
    return make_policy(plan.agent, plan.env_spec, device=device, seed=role_seed(plan, "policy", *index), num_envs=num_envs)


def build_learner(plan: Plan, weights: WeightSink, *, device: str, incarnation: int, folder: Path, **hooks: Any) -> Learner:
    """The learner with an untrained agent."""
    from worldloom_dist.learner.learner import Learner

    agent = make_agent(plan.agent, plan.env_spec, device=device, seed=role_seed(plan, "agent"))
    return Learner(agent, weights, device=device, incarnation=incarnation, bad_batches=folder / "nonfinite", **hooks)


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
    )


def build_evaluator(plan: Plan, *, device: str = "cpu") -> Evaluator:
    """The evaluator: own envs, own seeds, ``explore=False``; the same one in training and afterwards."""
    episodes = plan.config.eval_episodes
    seed = role_seed(plan, "evaluation")
    policy = make_policy(plan.agent, plan.env_spec, device=device, seed=role_seed(plan, "evaluation_policy"))
    return Evaluator(lambda: make_env(plan.env, num_envs=episodes, seed=seed), policy)
