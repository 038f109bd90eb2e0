"""What a run says of itself: the console line, ``metrics.jsonl`` and ``summary.json``, from one set
of numbers.

Both runtimes fill a ``Counts`` and hand it over with the hub's snapshot; nothing is computed twice
or named twice.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import checked
from worldloom.core.metrics import Last, MetricMap
from worldloom_dist.metrics.evaluation import eval_metrics, eval_warnings
from worldloom_dist.metrics.media import MediaWatch, Medium
from worldloom_dist.metrics.sinks import open_sinks
from worldloom_dist.metrics.totals import RunTotals
from worldloom_dist.ports import RowCounters
from worldloom_dist.run.binding_watch import BindingWatch
from worldloom_dist.run.counts import Counts, Rates, increments
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.line import progress_line
from worldloom_dist.run.pace import Pace
from worldloom_dist.run.plan import Plan
from worldloom_dist.run.tasks import TaskWatch
from worldloom_dist.run.view import View, last_record, shown_losses, title_of

__all__ = ["Report"]

logger = logging.getLogger(__name__)

RESTART_KINDS = ("env", "worker", "inference", "shard", "learner")


EARLIER: Mapping[str, Any] = {
    **dict.fromkeys(("episodes", "agent_steps", "replayed_steps", "train_steps"), int),
    **dict.fromkeys(("restarts", "rows", "drained"), Mapping[str, int]),
    "updates_lost": int,
    "wall_time_s": float,
    "policy_version": str,
    "eval": Mapping[str, Any] | None,
    "train_ratio": Mapping[str, Any] | None,
    "throughput": Mapping[str, float],
    "evaluations_failed": int,
}
"""What a resume goes on from in a summary."""


def _ratio_settings(plan: Plan) -> dict[str, float]:
    """What the debts of a run follow from."""
    limits = plan.limits
    return {
        "asked": limits.train_ratio,
        "prefill_agent_steps": limits.prefill_agent_steps,
        "pretrain_positions": limits.pretrain_positions,
    }


def _forgiven(plan: Plan, earlier: Mapping[str, Any]) -> str | None:
    """What the run was forgiven before a resume; None where its settings were others, or are not
    known.
    """
    known = dict(earlier.get("train_ratio") or {})
    forgiven = known.pop("forgiven", None)
    if not earlier.get("agent_steps"):
        return "0"
    return str(forgiven) if forgiven is not None and known == _ratio_settings(plan) else None


def _check_earlier(path: Path, earlier: Mapping[str, Any]) -> None:
    """Refuse a summary in which a value that a resume goes on from is of another kind.

    Raises:
        ConfigurationError: Names it.
    """
    for name, kind in EARLIER.items():
        if name in earlier:
            try:
                checked(name, earlier[name], kind)
            except ConfigurationError as error:
                raise ConfigurationError(f"{path}: {error}; restore it from a copy") from error


class Report:
    """Keeps the numbers of one run and writes them.

    Args:
        plan: Of the run.
        folder: Where it writes.
        earlier: The summary of the run before a resume, ``{}`` for a new run.

    Attributes:
        quarantined: Envs and workers that are not started again, and tasks that an env leaves out,
            with the reason.
        inference: ``where`` the policy runs, and ``why``.
        gateway: What gateways have counted; empty without any.
        left_out: Files that could not be imported, with the reason.
        evaluations_failed: Evaluations of the whole run that gave no result.
        reading: How far shards have come with reading their journals; empty when they have.
    """

    def __init__(self, plan: Plan, folder: RunFolder, earlier: Mapping[str, Any]) -> None:
        _check_earlier(folder.summary_path, earlier)
        self._plan = plan
        self._folder = folder
        self._started = time.monotonic()
        self._wall_before = float(earlier.get("wall_time_s", 0.0))
        self._episodes_before = int(earlier.get("episodes", 0))
        self._totals = RunTotals(last_record(folder.path / "metrics.jsonl"))
        self._restarts_before = dict(earlier.get("restarts", {}))
        self._lost_before = int(earlier.get("rows", {}).get("lost_open", 0))
        self._drained_before = {"workers": 0, "rows": 0, **earlier.get("drained", {})}
        evaluation = earlier.get("eval")
        has_mean = evaluation is not None and evaluation.get("return_mean") is not None
        self.evaluation: dict[str, Any] | None = evaluation if has_mean else None
        self._watch = BindingWatch(plan, self._started)
        self._pace = Pace(plan)
        rows = earlier.get("rows", {})
        counters = RowCounters(
            **{
                name: int(rows.get(name, 0))
                for name in ("inserted", "stored", "evicted", "lost_acked", "duplicate")
            }
        )
        self.counts = Counts(
            counters=replace(counters, agent_steps=int(earlier.get("agent_steps", 0))),
            positions=int(earlier.get("replayed_steps", 0)),
            train_steps=int(earlier.get("train_steps", 0)),
            policy_version=str(earlier.get("policy_version", "0.0")),
            forgiven=_forgiven(plan, earlier),
            updates_lost=int(earlier.get("updates_lost", 0)),
        )
        measured_s = float(earlier.get("throughput", {}).get("seconds", self._wall_before))
        self._rates = Rates(plan.env_spec.action_repeat, self.counts, measured_s)
        self.snapshot: Mapping[str, float] = {}
        self._nonfinite = set[str]()
        self.sinks = open_sinks(folder.path, plan.run_id, plan.config.to_dict())
        self._media = MediaWatch(folder.videos)
        self.quarantined: Mapping[str, str] = {}
        self._tasks = TaskWatch(plan)
        self.inference: Mapping[str, str] = {}
        self.gateway: Mapping[str, int] = {}
        self.left_out: Mapping[str, str] = {}
        self.evaluations_failed = int(earlier.get("evaluations_failed", 0))
        self.reading = ""

    def update(self, counts: Counts, snapshot: Mapping[str, float]) -> None:
        """Take the newest numbers."""
        now = time.monotonic()
        self._rates.update(now, counts)
        if snapshot is not self.snapshot:
            self._totals.update(snapshot)
        env_restarts = self.grown("env_errors_total")
        self.counts = replace(counts, restarts={**counts.restarts, "env": env_restarts})
        self.snapshot = snapshot
        self._tasks.look(self.quarantined)
        self._watch.update(now, snapshot, counts.blocked_s.get("sample", 0.0))
        if said := self._pace.look(now, counts):
            logger.info("%s", said)

    def grown(self, name: str, **labels: str) -> int:
        """What the roles have counted since the run was started, over a hub that began again."""
        return int(self._totals.grown(name, **labels))

    @property
    def env_steps(self) -> int:
        """Env steps of the whole run."""
        return self._env_steps(self.counts)

    @property
    def progress(self) -> int:
        """What checkpoints and records of a lock-step run are counted in: env steps, or updates
        where there is no env.
        """
        return self.counts.train_steps if self._plan.is_offline else self.env_steps

    def note_evaluation(self, result: Mapping[str, Any]) -> None:
        """Take the result of an evaluation that began at ``result["env_steps"]``."""
        for warning in eval_warnings(result, self._plan.eval_max_steps):
            logger.warning("eval at env_steps %d: %s", result["env_steps"], warning)
        self.evaluation = {"time": time.time(), **result}
        self._folder.append_metrics({"kind": "eval", **self.evaluation})
        values = {key: float(metric.value) for key, metric in eval_metrics(self.evaluation).items()}
        self.sinks.write(int(result["env_steps"]), values)

    def gauges(self) -> MetricMap:
        """What only the driver knows, for the hub."""
        counters = self.counts.counters
        limits = self._plan.limits
        values: MetricMap = {
            "replay_steps": Last(counters.stored),
            "replay_capacity_steps": Last(self._plan.config.replay.capacity_steps),
            "replay_ratio_target": Last(limits.train_ratio),
            "replay_ratio_actual": Last(self.train_ratio_actual),
            "workers_wanted": Last(self._plan.num_workers),
            "checkpoint_interval_seconds": Last(self._plan.config.learner.checkpoint_every_s),
            "envs_quarantined": Last(len(self.quarantined)),
        }
        if self.evaluation is not None:
            values |= eval_metrics(self.evaluation)
        return values

    def increments(self, before: Counts) -> MetricMap:
        """Counters of replay and coordinator as increments since ``before``, for the hub."""
        return increments(before, self.counts)

    @property
    def train_ratio_actual(self) -> float:
        """Trained positions per agent step, over the run, without what is not owed: the prefill,
        its pretraining and offline updates.
        """
        limits = self._plan.limits
        steps = self.counts.counters.agent_steps - limits.prefill_agent_steps
        return (
            max(0.0, (self.counts.positions - limits.unowed_positions) / steps)
            if steps > 0
            else 0.0
        )

    def line(self) -> str:
        """One line for people."""
        return progress_line(self.view(), self._plan.limits.batch_positions)

    def phase(self) -> str:
        """What the run is at, or what binds it, in a few words."""
        limits = self._plan.limits
        counts = self.counts
        if self.reading:
            return f"reading journals ({self.reading})"
        if self._plan.is_offline:
            return "training"
        if counts.train_steps < limits.offline_updates:
            return f"offline {counts.train_steps:,}/{limits.offline_updates:,} updates"
        if counts.counters.agent_steps < limits.prefill_agent_steps:
            return f"prefill {counts.counters.agent_steps}/{limits.prefill_agent_steps}"
        online = counts.train_steps - limits.offline_updates
        if online < limits.pretrain_updates:
            return f"pretraining {online}/{limits.pretrain_updates}"
        return self.bottleneck()

    def bottleneck(self) -> str:
        """Which side waits for the other: by how long inserts and samples waited for permits."""
        waited = self.counts.blocked_s
        inserts = waited.get("insert", 0.0) / max(1, self._plan.config.num_envs)
        samples = waited.get("sample", 0.0)
        if inserts + samples < 0.05 * (time.monotonic() - self._started):
            return "balanced"
        return "learner-bound" if inserts > samples else "env-bound"

    def record(self) -> None:
        """Append one line to ``metrics.jsonl``."""
        base = {
            "kind": "train",
            "time": time.time(),
            "env_steps": self.env_steps,
            "train_steps": self.counts.train_steps,
            "wall_time_s": self._wall_before + time.monotonic() - self._started,
        }
        known = {**self.snapshot, **self._totals.values, **self._exact()}
        self._name_nonfinite(known)
        values = {
            **self._rates.now,
            **{key: value for key, value in sorted(known.items()) if math.isfinite(value)},
        }
        self._folder.append_metrics({**base, **values})
        self.sinks.write(self.progress, {**values, "train_steps": self.counts.train_steps})
        self._show(self._media.fresh())

    def _name_nonfinite(self, values: Mapping[str, float]) -> None:
        """Say, once for each, what records leave out because it is no number."""
        bad = {key for key, value in values.items() if not math.isfinite(value)} - self._nonfinite
        if bad:
            self._nonfinite |= bad
            shown = ", ".join(f"{key} is {values[key]}" for key in sorted(bad))
            logger.warning(
                "not finite at env_steps %d, and left out of the records: %s", self.env_steps, shown
            )

    def _exact(self) -> dict[str, float]:
        """What this process knows better than the hub, which hears of it a little later: the whole
        run's counts, and gauges.
        """
        counts = self.counts
        counters = self.counts.counters
        return {
            **{key: float(metric.value) for key, metric in self.gauges().items()},
            "agent_steps_total": counters.agent_steps,
            "env_steps_total": self.env_steps,
            "learner_updates_total": counts.train_steps,
            "learner_replayed_steps_total": counts.positions,
            "replay_inserted_steps_total": counters.inserted,
            "replay_evicted_steps_total": counters.evicted,
            "replay_duplicate_steps_total": counters.duplicate,
        }

    def _show(self, media: list[Medium]) -> None:
        for medium in media:
            known = None if self._plan.is_offline else medium.env_steps
            steps = self.progress if known is None else known
            self.sinks.show(steps, f"videos/{medium.name}", medium.path)

    def close(self, status: str = "completed") -> None:
        """Let the sinks write what they have, the pictures of the last seconds included, and how
        the run ended; waits for them a short time.
        """
        self._show(self._media.fresh(unchanged_s=0.0))
        self.sinks.close(status)

    def view(self) -> View:
        """What a person wants to see now."""
        plan = self._plan
        counts = self.counts
        value = self.snapshot
        config = plan.config
        return View(
            run_id=plan.run_id,
            folder=str(self._folder.path),
            title=title_of(plan.agent.name, plan.env.env, config.replay.load, config.seed),
            env_steps=self.env_steps,
            target=config.env_steps,
            train_steps=counts.train_steps,
            target_updates=config.train_steps if plan.is_offline else 0,
            losses=shown_losses(value),
            env_steps_per_s=self._rates.now["env_steps_per_s"],
            updates_per_s=self._rates.now["updates_per_s"],
            train_return=value.get("episode_return_mean{split=train}"),
            evaluation=self.evaluation,
            train_ratio=self.train_ratio_actual,
            target_ratio=plan.limits.train_ratio,
            lag=value.get("policy_lag_updates"),
            lag_p99=value.get("policy_lag_updates:p99"),
            stored=counts.counters.stored,
            capacity=config.replay.capacity_steps,
            restarts=self._restarts(),
            phase=self.phase(),
            wall_time_s=self._wall_before + time.monotonic() - self._started,
            eta_s=self._pace.left_s(counts),
        )

    def summary(self, status: str, error: str | None = None) -> dict[str, Any]:
        """The content of ``summary.json``."""
        counts = self.counts
        value = self.snapshot
        counters = counts.counters
        seconds = time.monotonic() - self._started
        rows = {
            name: getattr(counters, name)
            for name in ("inserted", "stored", "evicted", "lost_acked", "duplicate")
        }
        return {
            "run_id": self._plan.run_id,
            "status": status,
            "error": error,
            "env_steps": self.env_steps,
            "agent_steps": counters.agent_steps,
            "train_steps": counts.train_steps,
            "updates_lost": counts.updates_lost,
            "replayed_steps": counts.positions,
            "train_ratio_actual": self.train_ratio_actual,
            "train_ratio": {**_ratio_settings(self._plan), "forgiven": counts.forgiven},
            "episodes": self._episodes_before + self.grown("episodes_total"),
            "train_return_mean": value.get("episode_return_mean{split=train}"),
            "eval": self.evaluation,
            "wall_time_s": self._wall_before + seconds,
            "rows": {**rows, "lost_open": self._lost_before + counts.lost_open},
            "restarts": self._restarts(),
            **({"eager": reason} if (reason := self._folder.eager_reason) else {}),
            "drained": {
                "workers": self._drained_before["workers"] + counts.drained_workers,
                "rows": self._drained_before["rows"] + counts.drained_rows,
            },
            "quarantined": dict(self.quarantined),
            **({"imports_left_out": dict(self.left_out)} if self.left_out else {}),
            **({"evaluations_failed": failed} if (failed := self.evaluations_failed) else {}),
            **({"sinks_given_up": dict(gone)} if (gone := self.sinks.given_up) else {}),
            "inference": dict(self.inference),
            **({"gateway": dict(self.gateway)} if self.gateway else {}),
            "policy_version": counts.policy_version,
            "staleness": {
                "mean": value.get("policy_lag_updates"),
                "p99": value.get("policy_lag_updates:p99"),
            },
            "bottleneck": self.bottleneck(),
            "phase": self.phase(),
            "binding": asdict(self._watch.binding),
            "throughput": self._rates.mean,
            "eta_s": self._pace.left_s(self.counts),
        }

    def _restarts(self) -> dict[str, int]:
        kinds = [*RESTART_KINDS, *sorted(set(self.counts.restarts) - set(RESTART_KINDS))]
        return {
            kind: self._restarts_before.get(kind, 0) + self.counts.restarts.get(kind, 0)
            for kind in kinds
        }

    def _env_steps(self, counts: Counts) -> int:
        return counts.counters.agent_steps * self._plan.env_spec.action_repeat
