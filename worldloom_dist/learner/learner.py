"""The learner: windows in, weights and checkpoints out. One plain object; who feeds it and
who listens is the runtime's business.

Nothing here waits for the update that was just launched: metrics stay on the device until
:meth:`Learner.drain_metrics`, refreshed latents are sent when they have arrived on the host, and
the host runs at most two updates ahead of a GPU.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from worldloom.core.damage import reading
from worldloom.core.metrics import Histogram, HistogramBuilder, Last, MetricMap, Sum, merge_into
from worldloom.core.protocol import Agent, SharesWeights
from worldloom.core.sequence import PolicyVersion, SequenceBatch
from worldloom.core.specs import OBS, TASK, column_name
from worldloom.data.windows import SampledWindows
from worldloom.nn.cuda_streams import recorded_event
from worldloom.nn.snapshot import to_bfloat16
from worldloom_dist.learner.guard import NonfiniteGuard
from worldloom_dist.learner.held_out import HeldOutLosses
from worldloom_dist.learner.prediction_videos import PredictionVideos
from worldloom_dist.learner.publishing import CudaDownload, Published, Publisher
from worldloom_dist.learner.staging import Stager
from worldloom_dist.learner.step import CompileMode, make_step
from worldloom_dist.metrics.names import (
    AGE_BUCKETS_S,
    BUCKETS_S,
    LAG_BUCKETS,
    LEARNER_PHASES,
    key_of,
    scalar_keys,
)
from worldloom_dist.ports import WeightSink

__all__ = ["Learner"]

UPDATES_AHEAD = 2
"""How far the host may run ahead of a GPU: enough to keep it busy, little enough that measured time
is the device's.
"""
SMALLEST_PRIORITY = 1e-6
"""A priority of 0 would never be drawn again; a value that is not finite counts as this one."""


class Learner:
    """Trains one agent.

    Args:
        agent: What is trained, on its own device.
        weights: Where new versions go.
        device: The agent's device.
        incarnation: Of this learner in the run: 1, 2, ...; the higher part of every version
            it publishes.
        bad_batches: Folder for the batches of skipped updates.
        compile: How an update runs; see :mod:`worldloom_dist.learner.step`.
        ranks: Learner ranks that train together.
        weights_dtype: What floating-point weights become when they are published.
        tasks: Names of several tasks, whose windows are counted.

    Attributes:
        train_steps: Updates made over the whole run, those before a resume included.
        replayed_steps: Trained positions, likewise.
        stager: Puts windows on the agent's device; a prefetcher may do so ahead of time.
        update_priorities: Called with (windows, priorities ``[n]``) when the agent gave some; None
            drops them.
        held_out: Measures losses on data that is never trained on; None measures none.
        write_back: Called with (windows, refreshed extras) when the agent refreshed some; None
            drops them.
    """

    def __init__(
        self,
        agent: Agent,
        weights: WeightSink,
        *,
        device: str = "cpu",
        incarnation: int = 1,
        bad_batches: Path | None = None,
        compile: CompileMode = "auto",
        ranks: int = 1,
        weights_dtype: Literal["float32", "bfloat16"] = "float32",
        tasks: Sequence[str] = (),
    ) -> None:
        self.agent = agent
        self.train_steps = 0
        self.replayed_steps = 0
        self.incarnation = incarnation
        self._weights = weights
        self._halves = weights_dtype == "bfloat16"
        self.stager = Stager(device)
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"
        self.step = make_step(agent, device, compile, ranks=ranks)
        self.publisher = self._make_publisher(device)
        self.launched: deque[Any] = deque()
        self.refreshed: deque[tuple[SampledWindows, dict[str, torch.Tensor], Any]] = deque()
        self.write_back: Callable[[SampledWindows, Mapping[str, np.ndarray]], None] | None = None
        self.update_priorities: Callable[[SampledWindows, np.ndarray], None] | None = None
        self.held_out: HeldOutLosses | None = None
        self._held_out_losses: dict[str, float] = {}
        self._priorities_sent = 0
        self._guard = NonfiniteGuard(bad_batches)
        self._skipped_reported = 0
        self._batch: SequenceBatch | None = None
        self._scalars: Mapping[str, Any] = {}
        self._metrics: MetricMap = {}
        self._phases = {phase: HistogramBuilder(BUCKETS_S) for phase in LEARNER_PHASES}
        self._ages = HistogramBuilder(AGE_BUCKETS_S)
        self._stagings = HistogramBuilder(BUCKETS_S)
        self._lags = HistogramBuilder(LAG_BUCKETS)
        self._fresh_steps = 0
        self._tasks = tasks
        self._windows_of = np.zeros(len(tasks), np.int64)

    @property
    def version(self) -> PolicyVersion:
        """The version that :meth:`publish` would give now."""
        return PolicyVersion(self.incarnation, self.train_steps)

    def train(self, drawn: SampledWindows | SequenceBatch) -> None:
        """One update from one batch of windows, staged already (by :attr:`stager`) or not.

        Raises:
            TrainingError: After ten skipped updates in a row.
        """
        started = time.monotonic()
        staged = drawn if isinstance(drawn, SequenceBatch) else self.stager.stage(drawn)
        windows: SampledWindows = staged.windows
        batch = self._batch = self.stager.take(staged)
        copied = time.monotonic()
        output = self.step(batch)
        self.train_steps += 1
        self.replayed_steps += self.agent.spec.sampling.trained_positions
        self._guard.watch(self.train_steps, output.nonfinite, windows)
        if output.refreshed is not None and self.write_back is not None:
            self.keep_refreshed(windows, output.refreshed)
        if output.priorities is not None and self.update_priorities is not None:
            self._send_priorities(windows, output.priorities)
        self._scalars = output.metrics
        self.limit_lead()
        self._phases["to_device"].add(copied - started)
        self._phases["forward_backward"].add(time.monotonic() - copied)
        self._ages.add(max(0.0, time.time() - float(windows.inserted_s.mean())))
        self._lags.add(max(0.0, self.train_steps - float(windows.versions.mean())))
        self._fresh_steps += 1
        if self._tasks:
            numbers = windows.columns[column_name(OBS, TASK)][:, 0]
            self._windows_of += np.bincount(numbers, minlength=len(self._tasks))
        if self.held_out is not None and self.held_out.is_due(self.train_steps):
            self._held_out_losses = self.held_out.measure(self.agent)

    def _send_priorities(self, windows: SampledWindows, priorities: torch.Tensor) -> None:
        """Hand over how surprising the windows were; this waits for the device, so it is done for
        prioritised replay only.
        """
        assert self.update_priorities is not None  # the caller asked
        values = np.nan_to_num(np.asarray(priorities.cpu(), np.float64), nan=0.0, posinf=0.0)
        self.update_priorities(windows, np.maximum(values, SMALLEST_PRIORITY))
        self._priorities_sent += len(values)

    def publish(self, *, waits: bool = False) -> PolicyVersion:
        """Hand the policy's weights to the store under the next version.

        Args:
            waits: Return when the store has them, as lock-step needs it; otherwise those of a GPU
                arrive there a little later.
        """
        started = time.monotonic()
        version = self.version
        if self.publisher is not None:
            assert isinstance(self.agent, SharesWeights)  # or there would be no publisher
            self.publisher.publish(self.agent.policy_tensors(), version)
            if waits:
                self.publisher.wait()
        else:
            snapshot = self.agent.policy_weights().with_version(version)
            if self._halves:
                snapshot = to_bfloat16(snapshot)
            self._weights.publish(snapshot)
            self._note_published(Published(time.monotonic() - started, snapshot.nbytes))
        self._phases["publish"].add(time.monotonic() - started)
        merge_into(self._metrics, {"policy_version{which=newest}": Last(float(self.train_steps))})
        return version

    def _make_publisher(self, device: str) -> Publisher | None:
        """On CUDA, and for agents that can name the tensors that acting needs, a thread of its own
        sends them.
        """
        if not self.is_cuda or not isinstance(self.agent, SharesWeights):
            return None
        return Publisher(
            self._weights, CudaDownload(device), torch.bfloat16 if self._halves else torch.float32
        )

    def _note_published(self, one: Published) -> None:
        update: MetricMap = {
            "weights_publish_seconds": Histogram.of(BUCKETS_S, one.seconds),
            "weights_published_total": Sum(1),
            "weights_bytes": Last(float(one.nbytes)),
        }
        merge_into(self._metrics, update)

    def report(
        self, prediction_videos: PredictionVideos, env_steps: int, *, wait_s: float = 0.0
    ) -> None:
        """Have the agent's predictions on the newest batch drawn; never raises, and nothing that
        training reads changes.
        """
        if self._batch is not None:
            prediction_videos.report(
                self.agent, self._batch, env_steps, self.train_steps, wait_s=wait_s
            )

    def note(self, phase: Literal["wait_data", "checkpoint", "standby"], seconds: float) -> None:
        """Book time of the training thread that :meth:`train` and :meth:`publish` do not see."""
        self._phases[phase].add(seconds)

    def drain_metrics(self) -> MetricMap:
        """What happened since the last call; the only place where scalars leave the device."""
        for one in self.publisher.finished() if self.publisher is not None else ():
            self._note_published(one)
        metrics = self._metrics
        self._metrics = {}
        if self._fresh_steps:
            positions = self._fresh_steps * self.agent.spec.sampling.trained_positions
            metrics |= {
                "learner_updates_total": Sum(self._fresh_steps),
                "learner_replayed_steps_total": Sum(positions),
            }
            self._fresh_steps = 0
        for index, name in enumerate(self._tasks):
            count = int(self._windows_of[index])
            metrics[key_of("sampled_windows_total", task=name)] = Sum(count)
        self._windows_of[:] = 0
        taken_phases = {phase: tally.take() for phase, tally in self._phases.items()}
        metrics |= {
            f"learner_seconds_total{{phase={phase}}}": Sum(taken.total)
            for phase, taken in taken_phases.items()
        }
        metrics |= {
            f"learner_update_seconds{{phase={phase}}}": taken
            for phase, taken in taken_phases.items()
            if taken.count
        }
        for seconds in self.stager.drain_seconds():
            self._stagings.add(seconds)
        tallies = {
            "sample_age_seconds": self._ages,
            "sample_lag_updates": self._lags,
            "learner_staging_seconds": self._stagings,
        }
        metrics |= {key: taken for key, tally in tallies.items() if (taken := tally.take()).count}
        metrics["learner_skipped_updates_total{reason=nonfinite}"] = Sum(
            float(self._guard.skipped - self._skipped_reported)
        )
        self._skipped_reported = self._guard.skipped
        if self._priorities_sent:
            metrics["replay_priority_updates_total{outcome=sent}"] = Sum(self._priorities_sent)
            self._priorities_sent = 0
        for name, value in self._scalars.items():
            number = float(value)
            keys = scalar_keys(name, self.agent.spec.metric_keys)
            metrics |= {key: Last(number) for key in keys}
        metrics |= {key: Last(loss) for key, loss in self._held_out_losses.items()}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: the agent and the counters."""
        self._guard.flush()
        self.send_refreshed(wait=True)
        return {
            "agent": self.agent.state_dict(),
            "train_steps": self.train_steps,
            "replayed_steps": self.replayed_steps,
            "incarnation": self.incarnation,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; the incarnation stays this learner's own.

        Raises:
            CheckpointError: If the agent's architecture differs, or it is no such state.
        """
        with reading("state of the learner", "a part is missing or of another kind"):
            counts = [state[name] for name in ("train_steps", "replayed_steps")]
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError(f"its counts are {counts}")
            self.agent.load_state_dict(state["agent"])
            self.train_steps, self.replayed_steps = counts

    def keep_refreshed(self, windows: SampledWindows, refreshed: Mapping[str, Any]) -> None:
        """Start bringing refreshed extras to the host; send those that are there."""
        if not self.is_cuda:
            self.refreshed.append((windows, dict(refreshed), None))
        else:
            host = {
                name: torch.empty(v.shape, dtype=v.dtype, pin_memory=True)
                for name, v in refreshed.items()
            }
            for name, value in refreshed.items():
                host[name].copy_(value, non_blocking=True)
            self.refreshed.append((windows, host, recorded_event(self.device)))
        self.send_refreshed(wait=False)

    def send_refreshed(self, *, wait: bool) -> None:
        """Write back the latents that have arrived on the host; with ``wait``, all of them."""
        while self.refreshed and self.write_back is not None:
            windows, host, arrived = self.refreshed[0]
            if arrived is not None and not arrived.query():
                if not wait:
                    return
                arrived.synchronize()
            self.refreshed.popleft()
            self.write_back(windows, {name: value.numpy() for name, value in host.items()})

    def limit_lead(self) -> None:
        """Wait until the device is at most a few updates behind."""
        if self.is_cuda:
            self.launched.append(recorded_event(self.device))
            if len(self.launched) > UPDATES_AHEAD:
                self.launched.popleft().synchronize()
