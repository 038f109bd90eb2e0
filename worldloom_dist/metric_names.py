"""Every metric the system knows: one name, one meaning, in console, JSONL, TensorBoard and Prometheus alike.

A key is a Prometheus series without the common prefix and labels: ``learner_updates_total`` or ``loss{name=total}``. The hub adds
``worldloom_``, ``run_id`` and ``role``. No label grows with time. ``docs/metrics.md`` is generated from this table.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

__all__ = ["AGE_BUCKETS_S", "BUCKETS_S", "LAG_BUCKETS", "METRICS", "MetricInfo", "split_key", "to_markdown"]

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
"""Bucket bounds of durations, seconds."""
AGE_BUCKETS_S = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
"""Bucket bounds of the age of rows, seconds."""
LAG_BUCKETS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)
"""Bucket bounds of policy lag, updates."""


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One row of the table.

    Attributes:
        kind: What Prometheus calls it.
        help: What it says.
        normal: What to expect of a healthy run.
        bad: What a bad value means.
    """

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    normal: str = ""
    bad: str = ""


def _counter(text: str, normal: str = "", bad: str = "") -> MetricInfo:
    return MetricInfo("counter", text, normal, bad)


def _gauge(text: str, normal: str = "", bad: str = "") -> MetricInfo:
    return MetricInfo("gauge", text, normal, bad)


def _histogram(text: str, normal: str = "", bad: str = "") -> MetricInfo:
    return MetricInfo("histogram", text, normal, bad)


METRICS: dict[str, MetricInfo] = {
    "build_info": _gauge("Constant 1; labels say version, torch and ray."),
    "run_info": _gauge("Constant 1; labels say env, agent, preset and seed."),
    "agent_steps_total": _counter("Decisions of the policy whose result was stored.", "grows", "flat: workers wait or died"),
    "env_steps_total": _counter("Simulator steps: agent steps times action repeat.", "grows", "flat: see agent_steps_total"),
    "episodes_total": _counter("Episodes ended, by reason.", "error stays 0", "error grows: the env fails"),
    "episode_return_mean": _gauge("Mean return of recent episodes, by split.", "rises", "flat for long: it does not learn"),
    "episode_length_steps_mean": _gauge("Mean length of recent episodes in agent steps, by split."),
    "eval_return_mean": _gauge("Mean return of the last evaluation.", "rises"),
    "eval_last_timestamp_seconds": _gauge("When the last evaluation ended, unix time."),
    "learner_updates_total": _counter("Updates made.", "grows", "flat: see where the learner waits"),
    "learner_replayed_steps_total": _counter("Trained positions."),
    "learner_update_seconds": _histogram("Time of one update, by phase.", "", "wait_data leads: the learner starves"),
    "learner_skipped_updates_total": _counter("Updates skipped: a loss or gradient was not finite.", "0", "grows: divergence"),
    "loss": _gauge("Losses of the algorithm, by name."),
    "grad_norm": _gauge("Gradient norms before clipping, by name."),
    "model_stat": _gauge("Other scalars of the algorithm, by name."),
    "policy_version": _gauge("Update number of the weights: newest (learner) or last used (actor).", "grows"),
    "policy_lag_updates": _histogram("Updates between the newest weights and those that acted, at insert.", "", "grows: see pulls"),
    "sample_age_seconds": _histogram("Age of a sampled row: insert to use in an update."),
    "weights_publish_seconds": _histogram("Device to host to store, per publish."),
    "weights_bytes": _gauge("Size of the policy's weights."),
    "weights_published_total": _counter("Versions published."),
    "weights_pulled_total": _counter("Versions fetched by acting roles."),
    "weights_pull_failures_total": _counter("Fetches that failed; the old version kept acting.", "0"),
    "replay_steps": _gauge("Rows stored."),
    "replay_capacity_steps": _gauge("Rows that fit."),
    "replay_bytes": _gauge("Memory that stored rows take."),
    "replay_inserted_steps_total": _counter("Rows acknowledged."),
    "replay_evicted_steps_total": _counter("Rows that made room."),
    "replay_duplicate_steps_total": _counter("Rows that came again and were ignored."),
    "replay_ratio_target": _gauge("Trained positions per agent step that were asked for."),
    "replay_ratio_actual": _gauge("Trained positions per agent step so far, without prefill and burst.", "= target"),
    "rate_limiter_blocked_seconds_total": _counter("Time a side waited for the other, by side.", "", "both grow: nothing moves"),
    "actor_seconds_total": _counter("Where env workers spend their time, by state."),
    "carry_resets_total": _counter("Carries that an inference server had lost and began anew in mid-episode.", "0"),
    "inference_batch_items": _gauge("Rows in one batch of an inference server."),
    "inference_seconds": _histogram("Model time of one batch of an inference server."),
    "worker_restarts_total": _counter("Roles restarted, by role.", "0", "grows: read the log"),
    "env_errors_total": _counter("Envs that raised, hung or died, by reason.", "0"),
    "workers": _gauge("Env workers by state.", "alive = wanted"),
    "workers_wanted": _gauge("Env workers asked for."),
    "heartbeat_timestamp_seconds": _gauge("When a role was last heard of, unix time.", "", "old: the role hangs"),
    "checkpoint_last_success_timestamp_seconds": _gauge("When the last checkpoint was complete, unix time."),
    "checkpoint_seconds": _histogram("Time that a checkpoint takes."),
    "process_resident_memory_bytes": _gauge("Resident memory of a role's processes."),
}


def split_key(key: str) -> tuple[str, dict[str, str]]:
    """``loss{name=total}`` -> (``loss``, {name: total})."""
    name, brace, rest = key.partition("{")
    if not brace:
        return name, {}
    return name, dict(pair.split("=", 1) for pair in rest.rstrip("}").split(","))


def to_markdown() -> str:
    """The page ``docs/metrics.md``; ``python -m worldloom_dist.metric_names`` prints it."""
    head = (
        "# Metrics\n\nGenerated from `worldloom_dist/metric_names.py`. Prometheus adds the prefix `worldloom_` and the labels\n"
        "`run_id` and `role`; `metrics.jsonl` has the same names without them. Durations are seconds, sizes bytes.\n\n"
        "| Name | Type | Meaning | Normal | A bad value |\n|---|---|---|---|---|\n"
    )
    rows = (f"| `{name}` | {info.kind} | {info.help} | {info.normal} | {info.bad} |\n" for name, info in METRICS.items())
    return head + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
