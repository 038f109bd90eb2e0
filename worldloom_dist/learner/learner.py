"""The learner: windows in, weights and checkpoints out. One plain object; who feeds it and who listens is the runtime's business.

Nothing here waits for the device: metrics stay where they are until :meth:`Learner.drain_metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldloom.core.metrics import Histogram, Last, Metric, MetricMap, Sum, merge_into
from worldloom.core.protocol import Agent
from worldloom.core.sequence import PolicyVersion, SequenceBatch
from worldloom.core.weights import WeightsSnapshot
from worldloom_dist.learner.guard import NonfiniteGuard
from worldloom_dist.metric_names import AGE_BUCKETS_S, BUCKETS_S
from worldloom_dist.ports import SampledWindows, WeightSink

__all__ = ["Learner"]

GROUPS = {"loss": "loss", "grad_norm": "grad_norm"}


class Learner:
    """Trains one agent.

    Args:
        agent: What is trained, on its own device.
        weights: Where new versions go.
        device: The agent's device.
        incarnation: Of this learner in the run's life: 1, 2, ...; the higher part of every version it publishes.
        bad_batches: Folder for the batches of skipped updates.

    Attributes:
        train_steps: Updates made over the run's life, those before a resume included.
        replayed_steps: Trained positions, likewise.
        write_back: Called with (windows, refreshed extras) when the agent refreshed some; None drops them.
    """

    def __init__(
        self,
        agent: Agent,
        weights: WeightSink,
        *,
        device: str = "cpu",
        incarnation: int = 1,
        bad_batches: Path | None = None,
    ) -> None:
        self.agent = agent
        self.train_steps = 0
        self.replayed_steps = 0
        self.incarnation = incarnation
        self._weights = weights
        self._device = torch.device(device)
        self.write_back: Callable[[SampledWindows, Mapping[str, np.ndarray]], None] | None = None
        self._guard = NonfiniteGuard(bad_batches)
        self._skipped_reported = 0
        self._scalars: Mapping[str, Any] = {}
        self._metrics: MetricMap = {}

    @property
    def version(self) -> PolicyVersion:
        """The version that :meth:`publish` would give now."""
        return PolicyVersion(self.incarnation, self.train_steps)

    def train(self, windows: SampledWindows) -> None:
        """One update from one batch of windows.

        Raises:
            TrainingError: After ten skipped updates in a row.
        """
        started = time.monotonic()
        batch = SequenceBatch.from_columns(windows.columns, windows.row_ids).map(self._to_device)
        copied = time.monotonic()
        output = self.agent.train_step(batch)
        self.train_steps += 1
        self.replayed_steps += self.agent.spec.sampling.trained_positions
        self._guard.watch(self.train_steps, output.nonfinite, windows)
        if output.refreshed is not None and self.write_back is not None:
            self.write_back(windows, {name: np.asarray(value.cpu()) for name, value in output.refreshed.items()})
        self._scalars = output.metrics
        self._note("to_device", copied - started)
        self._note("forward_backward", time.monotonic() - copied)
        self._note_freshness(windows)

    def publish(self) -> WeightsSnapshot:
        """Hand the policy's weights to the store under the next version."""
        started = time.monotonic()
        snapshot = self.agent.policy_weights().with_version(self.version)
        self._weights.publish(snapshot)
        seconds = time.monotonic() - started
        self._note("publish", seconds)
        update: MetricMap = {
            "weights_publish_seconds": Histogram.of(BUCKETS_S, seconds),
            "weights_published_total": Sum(1),
            "weights_bytes": Last(float(snapshot.nbytes)),
            "policy_version{which=newest}": Last(float(self.train_steps)),
        }
        merge_into(self._metrics, update)
        return snapshot

    def note_wait(self, seconds: float) -> None:
        """Book time that the learner waited for data."""
        self._note("wait_data", seconds)

    def drain_metrics(self) -> MetricMap:
        """What happened since the last call; the only place where scalars leave the device."""
        metrics, self._metrics = self._metrics, {}
        metrics["learner_skipped_updates_total"] = Sum(float(self._guard.skipped - self._skipped_reported))
        self._skipped_reported = self._guard.skipped
        for name, value in self._scalars.items():
            group, _, rest = name.partition("/")
            key = f"{GROUPS[group]}{{name={rest}}}" if group in GROUPS and rest else f"model_stat{{name={name}}}"
            metrics[key] = Last(float(value))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: the agent and the counters."""
        self._guard.flush()
        return {
            "agent": self.agent.state_dict(),
            "train_steps": self.train_steps,
            "replayed_steps": self.replayed_steps,
            "incarnation": self.incarnation,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; the incarnation stays this learner's own.

        Raises:
            CheckpointError: If the agent's architecture differs.
        """
        self.agent.load_state_dict(state["agent"])
        self.train_steps, self.replayed_steps = int(state["train_steps"]), int(state["replayed_steps"])

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        """Copy once, here: arrays from the object store are read-only, and an accelerator wants pinned memory."""
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor

    def _note(self, phase: str, seconds: float) -> None:
        merge_into(self._metrics, {f"learner_update_seconds{{phase={phase}}}": Histogram.of(BUCKETS_S, seconds)})

    def _note_freshness(self, windows: SampledWindows) -> None:
        ages = np.maximum(time.time() - windows.inserted_s, 0.0)
        update: dict[str, Metric] = {
            "learner_updates_total": Sum(1),
            "learner_replayed_steps_total": Sum(self.agent.spec.sampling.trained_positions),
            "sample_age_seconds": Histogram.of(AGE_BUCKETS_S, float(ages.mean())),
        }
        merge_into(self._metrics, update)
