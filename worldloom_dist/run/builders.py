"""From a :class:`~worldloom_dist.run.plan.Plan` to the parts of a run.

Both runtimes build their roles here, so they cannot differ in anything else. Builders that need
torch import it inside.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldloom.algorithms.registry import make_agent, make_policy
from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError, ConfigurationError, TrainingError
from worldloom.core.protocol import Agent, Policy
from worldloom.data.files_apart import FilesApart
from worldloom.data.selector_spec import parse_selector
from worldloom.data.selectors import Selector
from worldloom.envs.config import NEUTRAL, EnvConfig, EnvLimits
from worldloom.envs.factory import make_env
from worldloom.envs.memory import MemoryWatch
from worldloom.envs.vector import VectorEnv
from worldloom_dist.actors.acting import ActClient
from worldloom_dist.actors.evaluation import Evaluator
from worldloom_dist.actors.groups import GroupedWorker
from worldloom_dist.actors.rollout_worker import RolloutWorker
from worldloom_dist.actors.step_budget import StepBudget
from worldloom_dist.actors.task_evaluation import TaskEvaluator
from worldloom_dist.ports import ReplayWriter, WeightSink
from worldloom_dist.replay.recovery import RecoveryProgress
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.held_out import build_held_out
from worldloom_dist.run.plan import (
    TORCH_WORKER_BYTES,
    WORKER_BYTES,
    ActCosts,
    Plan,
    group_sizes,
    role_seed,
)
from worldloom_dist.run.tasks import env_cycles, has_same_tasks, task_problem

if TYPE_CHECKING:
    from worldloom.training.checkpoints import CheckpointStore
    from worldloom_dist.learner.learner import Learner

__all__ = [
    "build_evaluator",
    "build_grouped_worker",
    "build_learner",
    "build_policy",
    "build_shard",
    "build_store",
    "build_worker",
    "capture_on_gpu",
    "check_checkpoints",
    "check_live",
    "check_new_store",
    "check_none",
    "check_trained_env",
    "measure_act_costs",
    "restore_agent",
    "trained_facts",
]

logger = logging.getLogger(__name__)

MEASURE_S = 1.0
OWN_FACTOR = 1.5
"""A worker may hold this multiple of what it usually takes beside its envs."""


def build_envs(plan: Plan, slot: int, incarnation: int, first_env: int, num_envs: int) -> VectorEnv:
    """Envs of one worker. Several envs are supervised in processes of their own, and so is one that
    needs a main thread; any other single one is the worker's process.

    In lock-step they wait for each other, or which rows there are would depend on time.
    """
    config = plan.config
    actors = config.actors
    limits = EnvLimits(
        step_timeout_s=actors.step_timeout_s,
        reset_timeout_s=actors.reset_timeout_s,
        max_failures=actors.max_env_failures,
        failure_window_s=actors.env_failure_window_s,
        memory_gb=actors.env_memory_gb,
        envs_here=config.num_envs,
        **({"grace_s": float("inf")} if plan.is_lockstep else {}),
    )
    # Ray's registry is known to Ray's processes only
    supervised = actors.supervise and plan.env.suite != "rllib"
    processes = bool(plan.needs_main_thread) or (
        config.runtime == "ray" and config.envs_per_worker > 1 and supervised
    )
    seed = role_seed(plan, "worker", slot, incarnation, *([first_env] if first_env else []))
    return make_env(
        plan.env,
        num_envs=num_envs,
        seed=seed,
        limits=limits,
        processes=processes,
        cycles=env_cycles(plan, slot, first_env, num_envs),
    )


def worker_memory(plan: Plan) -> MemoryWatch:
    """Over a worker's own process, with the envs and perhaps the policy that are in it."""
    config = plan.config
    gb = config.actors.env_memory_gb
    own_bytes = WORKER_BYTES if plan.inference == "central" else TORCH_WORKER_BYTES
    limit_bytes = None if gb is None else 1e9 * gb * config.envs_per_worker + OWN_FACTOR * own_bytes
    return MemoryWatch(limit_bytes, config.workers)


def build_worker(
    plan: Plan,
    slot: int,
    incarnation: int,
    acting: ActClient,
    writer: ReplayWriter,
    *,
    first_env: int = 0,
    num_envs: int | None = None,
    budget: StepBudget | None = None,
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
        budget=budget,
    )


def build_grouped_worker(
    plan: Plan,
    slot: int,
    incarnation: int,
    acting: Callable[[int, int], ActClient],
    writer: ReplayWriter,
    budget: StepBudget | None = None,
) -> RolloutWorker | GroupedWorker:
    """An env worker whose envs are in as many groups as pays; ``acting`` gets the first env and the
    size of a group, and all groups share the budget.
    """
    groups = []
    first_env = 0
    for size in group_sizes(plan):
        client = acting(first_env, size)
        groups.append(
            build_worker(
                plan,
                slot,
                incarnation,
                client,
                writer,
                first_env=first_env,
                num_envs=size,
                budget=budget,
            )
        )
        first_env += size
    return groups[0] if len(groups) == 1 else GroupedWorker(groups)


def check_live(
    plan: Plan, left: int, wanted: int, quarantined: Mapping[str, str], *, missing: int = 0
) -> None:
    """Refuse to go on with too few env workers.

    Args:
        plan: Of the run.
        left: Workers that are not given up.
        wanted: How many there should be.
        quarantined: Workers and envs that are not started again, with the reason.
        missing: Workers that are not started yet.

    Raises:
        TrainingError: If fewer than ``actors.min_live`` are left, or none.
    """
    least = plan.config.actors.min_live
    if left + missing < max(1, least):
        of_reason: dict[str, list[str]] = {}
        for name, why in quarantined.items():
            of_reason.setdefault(why, []).append(name)
        reasons = "; ".join(f"{', '.join(names)}: {why}" for why, names in of_reason.items())
        raise TrainingError(
            f"only {left} of {wanted} env workers are left, and actors.min_live is "
            f"{least} ({reasons})"
        )


def build_policy(
    plan: Plan, *index: int, num_envs: int | None = None, device: str = "cpu"
) -> Policy:
    """A policy for acting on ``device``; it acts with weights equal to the untrained agent's until
    it loads some.
    """
    return make_policy(
        plan.agent,
        plan.env_spec,
        device=device,
        seed=role_seed(plan, "policy", *index),
        num_envs=num_envs,
    )


def capture_on_gpu(plan: Plan, policy: Policy, device: str, sizes: Sequence[int]) -> None:
    """Prepare the calling thread and a policy that decides on a GPU for batches of ``sizes``; does
    nothing for a CPU.
    """
    if device == "cpu":
        return
    from worldloom.nn.cuda_streams import use_device
    from worldloom_dist.actors.act_graphs import capture_decisions

    use_device(device)
    capture_decisions(policy, device, sizes, wanted=plan.config.actors.cuda_graphs)


def build_learner(
    plan: Plan, weights: WeightSink, *, device: str, incarnation: int, folder: Path, **hooks: Any
) -> Learner:
    """The learner with an untrained agent."""
    from worldloom_dist.learner.learner import Learner

    agent = make_agent(plan.agent, plan.env_spec, device=device, seed=role_seed(plan, "agent"))
    own = plan.config.learner
    reason = RunFolder(folder).eager_reason
    if reason:
        logger.warning("learner.compile is off, because a learner of the run failed: %s", reason)
    how: dict[str, Any] = {
        "compile": "off" if reason else own.compile,
        "ranks": plan.config.learners,
        "weights_dtype": own.weights_dtype,
        "tasks": [task.name for task in plan.env_spec.tasks],
    }
    learner = Learner(
        agent,
        weights,
        device=device,
        incarnation=incarnation,
        bad_batches=folder / "nonfinite",
        **how,
        **hooks,
    )
    if plan.config.replay.held_out:
        learner.held_out = build_held_out(plan, device)
    return learner


def build_store(plan: Plan, folder: Path) -> CheckpointStore:
    """The run's checkpoints: in its folder, or where the config says.

    Raises:
        CheckpointError: If the place cannot be opened.
    """
    from worldloom.training.remote_checkpoints import open_store

    learner = plan.config.learner
    store = open_store(learner.checkpoints or folder / "checkpoints", keep=learner.keep_checkpoints)
    if plan.env_spec.tasks:
        store.compares = partial(has_same_tasks, plan)
    return store


def check_none(store: CheckpointStore) -> None:
    """Refuse to start over beside checkpoints that cannot be read: the rows that belong to them
    would be lost.

    Args:
        store: Whose newest checkpoint could not be read.

    Raises:
        CheckpointError: If it has any.
    """
    if folders := store.folders():
        raise CheckpointError(
            f"none of the {len(folders)} checkpoints in {store.root} can be read (see "
            "above), and the run is left as it is; "
            "repair one of them, or train in a new run folder"
        )


def trained_facts(plan: Plan) -> dict[str, Any]:
    """What the manifest of a checkpoint says of the agent, and of the env that it was trained in,
    every setting included: all that ``worldloom.load_agent`` needs besides the weights.

    Without an env it is ``recorded_env``, which the rows came from; that binds no one who plays
    with the checkpoint.
    """
    spec = plan.env_spec.to_dict()
    env = (
        {"recorded_env": spec}
        if plan.is_offline
        else {"env": {**spec, "name": plan.env.env, "settings": plan.env.settings()}}
    )
    return {"agent": dataclasses.asdict(plan.agent), **env}  # type: ignore[call-overload]


def check_trained_env(plan: Plan, checkpoint: str, facts: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that was trained in another env, or with other settings of it.

    Args:
        plan: Of the run that loads it.
        checkpoint: Its name, for the error.
        facts: Of its manifest; a checkpoint of an earlier version says nothing of its env and is
            let through.

    Raises:
        CheckpointError: Names the first difference.
    """
    trained = facts.get("env")
    if trained is None or plan.is_offline:
        return
    before = {"env": _spelled_out(trained["name"]), **NEUTRAL, **trained["settings"]}
    now = {"env": _spelled_out(plan.env.env), **NEUTRAL, **plan.env.settings()}
    if before.get("tasks") and now.get("tasks"):  # how their list is called does not matter
        problem = task_problem(before.pop("tasks"), now.pop("tasks"))
        if problem:
            raise CheckpointError(
                f"{checkpoint} was trained with {problem}; set it back, or train in a new run "
                "folder"
            )
        now["env"] = before["env"]
    for name in [*before, *now]:
        if before.get(name) != now.get(name):
            raise CheckpointError(
                f"{checkpoint} was trained with "
                f"{'env' if name == 'env' else f'env.{name}'} {before.get(name)!r}, "
                f"and this run has {now.get(name)!r}; set it back, or train in a new run folder"
            )


def check_new_store(plan: Plan, folder: Path) -> None:
    """Refuse to begin a run beside checkpoints of another one: it would go on with their weights,
    and delete them.

    Raises:
        ConfigurationError: If ``learner.checkpoints`` holds some.
        CheckpointError: If the place cannot be opened.
    """
    if plan.config.learner.checkpoints is None:
        return
    store = build_store(plan, folder)
    if store.folders():
        raise ConfigurationError(
            f"learner.checkpoints: {plan.config.learner.checkpoints} holds checkpoints of another "
            "run already; name an empty place for this one, go on with the other run by --resume, "
            "or begin with its agent by --init-from"
        )


def check_checkpoints(plan: Plan, folder: Path) -> None:
    """Refuse to go on with a run whose checkpoints are not where it looks for them, whose newest
    one was trained in another env, or that was to begin with another agent; reads manifests only.

    Raises:
        CheckpointError: As :func:`check_trained_env`, or if there is none and there was one.
        ConfigurationError: If ``init_from`` came too late.
    """
    store = build_store(plan, folder)
    folders = store.folders()
    elsewhere = plan.config.learner.checkpoints
    # a shard marks its rows for every checkpoint
    if elsewhere and not folders and any(RunFolder(folder).replay.glob("*/marks.json")):
        raise CheckpointError(
            f"learner.checkpoints: {elsewhere} holds no checkpoint, and the run in {folder} has "
            "written some, so it would begin again without its rows; put them back there, or go "
            "on in the folder in which it was started"
        )
    earlier = RunFolder(folder).read_json("config.json").get("run", {}).get("init_from")
    if folders and plan.config.init_from != earlier:
        raise ConfigurationError(
            f"init_from: the run in {folder} has checkpoints and goes on from them, so it cannot "
            f"begin with {plan.config.init_from}; leave the flag out, or start a new run with "
            "--run-dir"
        )
    for checkpoint in folders:
        try:
            facts = store.facts(checkpoint)
        except CheckpointError:  # a damaged one is passed over, as it is when the run is restored
            continue
        check_trained_env(plan, checkpoint.name, facts)
        return


def _spelled_out(env: str) -> str:
    config = EnvConfig(env=env)
    return f"{config.suite}:{config.name}"


def restore_agent(plan: Plan, checkpoint: Path, *, device: str = "cpu") -> tuple[Agent, int]:
    """The agent of a checkpoint, and its number of updates.

    Raises:
        CheckpointError: If the checkpoint is damaged, of another architecture, or trained in
            another env.
    """
    from worldloom.training.manifests import read_manifest
    from worldloom.training.tree_files import load_tree

    check_trained_env(plan, checkpoint.name, read_manifest(checkpoint)["facts"])
    agent = make_agent(plan.agent, plan.env_spec, device=device, seed=role_seed(plan, "agent"))
    with reading(checkpoint, "holds no learner of this run"):
        saved = load_tree(checkpoint)["learner"]
        agent.load_state_dict(saved["agent"])
        return agent, int(saved["train_steps"])


def build_shard(
    plan: Plan, index: int, folder: Path, progress: RecoveryProgress | None = None
) -> ReplayShard:
    """Replay shard ``index``; finds what an earlier process journalled, and says how far it is."""
    replay = plan.config.replay
    return ReplayShard(
        index,
        plan.columns,
        plan.spec.sampling,
        capacity_rows=replay.capacity_steps // replay.shards,
        directory=None if replay.durability == "none" else folder / f"shard-{index}",
        durability=replay.durability,
        kept_snapshots=plan.config.learner.keep_checkpoints + 1,  # the next one is not saved yet
        capacity_bytes=int(replay.capacity_gb * 1e9 / replay.shards)
        if replay.capacity_gb
        else _most_in_memory(plan),
        ram_bytes=plan.budget.hot_bytes // replay.shards
        if plan.budget and plan.budget.hot_bytes is not None
        else None,
        is_mapped=plan.budget is not None and plan.budget.is_mapped,
        make_selector=_selector_maker(plan),
        task_column=plan.env_spec.task_column,
        progress=progress,
    )


def _selector_maker(plan: Plan) -> Callable[[int], Selector]:
    """Makes a shard's selector; with a share of loaded rows it keeps these apart."""
    tasks = len(plan.env_spec.tasks)
    selector = parse_selector(plan.config.replay.selector, has_tasks=bool(tasks))
    build = partial(selector.build, tasks=tasks)
    if plan.config.replay.offline_share is None:
        return build
    return lambda size: FilesApart(size, build(size))


def _most_in_memory(plan: Plan) -> int | None:
    """Without a journal nothing can be read back, so memory itself is the capacity of a shard."""
    if (
        plan.config.replay.durability != "none"
        or plan.budget is None
        or plan.budget.ram_limit_bytes is None
    ):
        return None
    return plan.budget.ram_limit_bytes // plan.config.replay.shards


def build_evaluator(
    plan: Plan,
    *,
    device: str = "cpu",
    tasks: Collection[str] = (),
    timeout_s: float | None = None,
) -> Evaluator | TaskEvaluator:
    """The evaluator: own envs, own seeds, ``explore=False``; the same one in training and
    afterwards. Its policy decides on ``device`` for all episodes at once.

    Args:
        plan: Of the run.
        device: Where the policy decides.
        tasks: Of several, those that are played; all by default. What one comes to does not depend
            on the others.
        timeout_s: Seconds that all of them may take together; by default as the run says.
    """
    chosen = [task for task in plan.env_spec.tasks if not tasks or task.name in tasks]
    episodes = plan.config.eval_episodes
    policy = make_policy(
        plan.agent, plan.env_spec, device=device, seed=role_seed(plan, "evaluation_policy")
    )
    capture_on_gpu(plan, policy, device, (episodes,))
    videos = plan.config.eval_videos

    def env(*task: int) -> VectorEnv:
        """Envs with the evaluation's own seed, of one task where there are several."""
        return make_env(
            plan.env,
            num_envs=episodes,
            seed=role_seed(plan, "evaluation", *task),
            limits=EnvLimits(memory_gb=plan.config.actors.env_memory_gb),
            processes=bool(plan.needs_main_thread),
            is_exact=False,
            renders=videos > 0,
            cycles=[task] * episodes if task else None,
        )

    def evaluator(*task: int) -> Evaluator:
        """Of the env, or of one task."""
        return Evaluator(
            partial(env, *task),
            policy,
            episodes,
            videos=videos,
            max_steps=plan.eval_max_steps,
            timeout_s=timeout_s or plan.config.eval_timeout_s * max(1, len(chosen)),
        )

    if not plan.env_spec.tasks:
        return evaluator()
    return TaskEvaluator([(task, evaluator(plan.env_spec.tasks.index(task))) for task in chosen])


def measure_act_costs(plan: Plan, device: str) -> ActCosts:
    """Time the policy as workers would call it here, and as an inference server would on
    ``device``. Imports torch.
    """
    import torch

    torch.set_num_threads(1)
    rows = max(1, min(plan.config.num_envs, plan.config.actors.max_batch))
    return ActCosts(
        _act_seconds(plan, plan.config.envs_per_worker, "cpu"),
        _act_seconds(plan, rows, device),
        rows,
    )


def _act_seconds(plan: Plan, rows: int, device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    policy = build_policy(plan, num_envs=rows, device=device)
    capture_on_gpu(plan, policy, device, (rows,))
    carry = policy.initial_carry(rows)
    is_first = np.ones(rows, bool)
    obs = {key: spec.zeros(rows) for key, spec in plan.env_spec.obs.items()}
    times: list[float] = []
    give_up = time.monotonic() + MEASURE_S
    while len(times) < 3 or (len(times) < 12 and time.monotonic() < give_up):
        began = clock()
        carry = policy.act(obs, carry, is_first, explore=True).carry
        times.append(clock() - began)
        is_first = np.zeros(rows, bool)
    return min(times[1:])
