"""Roles that act for others: inference servers, which decide for many workers at once, and the
evaluator.

    workers --act--> pending requests --(full, or all clients wait, or max_wait)-->
            one policy call in a thread --> replies

Requests come over sockets of our own (``worldloom_dist.rpc``), or over Ray from a worker that
cannot reach them. The batch loop of an inference server *is* its run_forever: if it fails, the
supervisor sees why and starts another server.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from worldloom.core.devices import resolve_device, usable_device
from worldloom.core.error_text import last_line
from worldloom.core.memory import tree_of
from worldloom.envs.memory import MemoryWatch
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.actors.batching import Batcher
from worldloom_dist.actors.evaluation import Evaluator
from worldloom_dist.actors.inference import InferenceServer
from worldloom_dist.actors.task_evaluation import TaskEvaluator
from worldloom_dist.actors.videos import save_videos
from worldloom_dist.interfaces import Coordinator, coordinator_client
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.rpc.connection import Endpoint, RpcServer
from worldloom_dist.run.builders import (
    build_evaluator,
    build_policy,
    capture_on_gpu,
    measure_act_costs,
)
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.intervals import Interval
from worldloom_dist.run.model_check import check_checkpoint
from worldloom_dist.run.plan import ActCosts, Plan
from worldloom_dist.runtime.allocator import freeze_objects, keep_freed_memory
from worldloom_dist.runtime.cluster import CPUS_PER_ROLE
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.log_forwarder import LogForwarder
from worldloom_dist.runtime.reporting import FLUSH_EVERY_S, Reporter, with_planner
from worldloom_dist.runtime.weight_roles import RemoteWeights

__all__ = ["EvaluatorRole", "InferenceRole", "batch_sizes", "begin_measuring", "end_measuring"]

logger = logging.getLogger(__name__)

GPU_SHARE = 0.01


class InferenceRole:
    """Batches the requests of its workers.

    Args:
        plan: Of the run.
        index: Which server; it serves the workers whose slot has this remainder.
        incarnation: Its incarnation, so that a successor does not repeat its random draws.
    """

    def __init__(self, plan: Plan, index: int, incarnation: int) -> None:
        keep_freed_memory()
        self._plan = plan
        self._index = index
        self._incarnation = incarnation
        actors = plan.config.actors
        self.batcher = Batcher(actors.max_batch, actors.max_wait_ms / 1000)
        self._log_forwarder = LogForwarder().listen()
        self._server = RpcServer(self.batcher.ask, is_private=plan.config.address is None)

    async def act(self, request: ActRequest) -> ActReply:
        """Decide for the rows of one worker. A request that comes again, because its sender lost
        patience, replaces the first.
        """
        return await self.batcher.ask(request)

    async def address(self) -> Endpoint:
        """Where workers ask without Ray."""
        return await self._server.address()

    async def ping(self) -> dict[str, Any]:
        """Alive; ``stuck`` says that a batch is past its deadline, ``said`` what was logged as a
        warning.
        """
        busy = self.batcher.busy_s
        is_stuck = busy > self._plan.config.actors.act_timeout_s
        stuck = f"its policy did not return from a batch for {busy:.0f} s" if is_stuck else ""
        return {
            "pid": os.getpid(),
            "version": tuple(self.batcher.version),
            "stuck": stuck,
            "said": self._log_forwarder.drain(),
        }

    async def run_forever(self) -> None:
        """The batch loop."""
        flush = Interval(FLUSH_EVERY_S)
        reporter = Reporter("inference", self._index)

        def report(server: InferenceServer) -> None:
            """Send metrics, when it is time."""
            if flush.is_due():
                own = with_planner(server.drain_metrics(), self._plan.spec.acting)
                reporter.emit({**own, **self.batcher.drain_metrics()})

        await self.batcher.run_forever(self._build, self._plan.pull_interval_s, report)

    def _build(self) -> InferenceServer:
        import torch

        torch.set_num_threads(1)
        device = resolve_device(self._plan.config.learner.device)
        policy = build_policy(self._plan, self._index, self._incarnation, device=device)
        sizes = batch_sizes(self._plan.config.actors.max_batch) if device != "cpu" else ()
        capture_on_gpu(self._plan, policy, device, sizes)
        server = InferenceServer(policy, RemoteWeights(), batch_sizes=sizes)
        freeze_objects()
        return server


class EvaluatorRole:
    """Plays evaluation episodes when asked; builds its policy when it is first needed.

    Args:
        plan: Of the run.
        folder: Of the run: where videos of its episodes go, and checkpoints are.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self.evaluator: Evaluator | TaskEvaluator | None = None
        self._memory = MemoryWatch(None, 1)
        self._log_forwarder = LogForwarder().listen()
        self._gone = threading.Event()

    def evaluate(self, env_steps: int, is_last: bool = False) -> dict[str, Any]:
        """Evaluate the newest weights; the result is as in ``summary.json``, with the version
        beside it.

        Args:
            env_steps: Of the run when it asked.
            is_last: No newer weights will come: these are of ``env_steps``. Otherwise those that
                act when they are fetched, be it a minute later, are of the env steps that the run
                has then, and the result and the videos say so.
        """
        if self.evaluator is None:
            import torch

            torch.set_num_threads(1)
            device = usable_device(self._plan.config.learner.device)
            self.evaluator = build_evaluator(self._plan, device=device)
        self.evaluator.load_weights(RemoteWeights(timeout_s=DEADLINES.weights_evaluation_s).fetch())
        env_steps = env_steps if is_last else max(env_steps, self._env_steps_now())
        result = self.evaluator.evaluate()
        found = {"env_steps": env_steps, **result.to_dict(), "version": tuple(result.version)}
        if not self._plan.config.eval_videos:
            return found
        label = f"eval-{env_steps:09d}"
        saved = save_videos(
            self.evaluator.videos,
            RunFolder(self._folder).videos,
            label,
            self.evaluator.video_problems,
            self.evaluator.video_names,
        )
        return {**found, **saved.to_dict()}

    def check_model(self) -> dict[str, Any]:
        """See :func:`worldloom_dist.run.model_check.check_checkpoint`; a call of its own, so that
        it can cost no evaluation.
        """
        probes = None if self.evaluator is None else self.evaluator.probes
        return check_checkpoint(self._plan, self._folder, probes)

    def _env_steps_now(self) -> int:
        """Env steps of the run; 0 when the coordinator does not say."""
        coordinator = coordinator_client().within(
            timeout_s=DEADLINES.counts_s, patience_s=DEADLINES.counts_s
        )
        try:
            steps = int(coordinator.call(Coordinator.counts)["agent_steps"])
        except RoleGoneError as error:
            logger.warning(
                "an evaluation is labelled with the env steps at which it was asked for: %s", error
            )
            return 0
        return steps * self._plan.env_spec.action_repeat

    def ping(self) -> dict[str, Any]:
        """Alive; ``stuck`` says that its envs hold too much memory."""
        stuck = self._memory.complaint(lambda: tree_of(os.getpid()))
        return {"pid": os.getpid(), "stuck": stuck, "said": self._log_forwarder.drain()}

    def run_forever(self) -> None:
        """Lasts as long as the process."""
        reporter = Reporter("evaluator")
        while not self._gone.wait(FLUSH_EVERY_S):
            reporter.emit()


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Sizes that batches are padded to on a GPU, where few shapes are cheaper than many; on a CPU
    every padded row costs time.
    """
    return (*(2**power for power in range(largest.bit_length()) if 2**power < largest), largest)


def begin_measuring(plan: Plan) -> Any:
    """Measure in a process of the cluster what decisions cost; :func:`end_measuring` waits
    for it.
    """
    has_gpu = plan.config.learner.device != "cpu" and ray.cluster_resources().get("GPU", 0.0) > 0  # type: ignore[no-untyped-call]
    task = ray.remote(_measure).options(
        num_cpus=CPUS_PER_ROLE, num_gpus=GPU_SHARE if has_gpu else 0, max_retries=0
    )
    return task.remote(plan)


def end_measuring(reference: Any) -> ActCosts | None:
    """The costs, or None when they could not be measured in time."""
    try:
        costs: ActCosts = ray.get(reference, timeout=DEADLINES.measure_s)
    except RayError as error:
        logger.warning("what decisions cost could not be measured: %s", last_line(error))
        ray.cancel(reference, force=True)
        return None
    return costs


def _measure(plan: Plan) -> ActCosts:
    return measure_act_costs(plan, resolve_device(plan.config.learner.device))
