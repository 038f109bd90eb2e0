"""Every metric the system knows: one name, one meaning, in console, JSONL, TensorBoard, W&B and
Prometheus alike.

A key is a Prometheus series without the common prefix and labels: ``learner_updates_total`` or
``loss{name=total}``; a label that would read as more than one is quoted: ``loss{name="obs/x,y"}``
(:func:`key_of`). The hub adds ``worldloom_``, ``run_id`` and ``role``. No label grows with
time. ``docs/metrics.md`` is generated from this table.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "AGE_BUCKETS_S",
    "BATCH_BUCKETS",
    "BUCKETS_S",
    "LAG_BUCKETS",
    "METRICS",
    "ZEROS",
    "MetricInfo",
    "key_of",
    "loss_of",
    "path_of",
    "scalar_keys",
    "split_key",
    "to_markdown",
]

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
"""Bucket bounds of durations, seconds."""
AGE_BUCKETS_S = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
"""Bucket bounds of the age of rows, seconds."""
LAG_BUCKETS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)
"""Bucket bounds of policy lag, updates."""
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)
"""Bucket bounds of batch sizes, rows."""

PLAIN = re.compile(r'[^,{}"\\\x00-\x1f]+')
"""Labels that need no quotes."""
LABEL = re.compile(r'(\w+)=([^,{}"]+|"(?:[^"\\]|\\.)*")(?:,|$)')
"""One label of a key."""

Across = Literal["last", "sum", "min", "mean"]


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One row of the table.

    Attributes:
        kind: What Prometheus calls it.
        help: What it says.
        normal: What to expect of a healthy run.
        bad: What a bad value means.
        across: What a gauge of several instances of a role, and of several roles, shows; counters
            and histograms are always added up.
        is_rising: True for a gauge that never falls within a run: it stays where it is while what
            it tells of goes back (a process that has just started, updates that are made again).
    """

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    normal: str = ""
    bad: str = ""
    across: Across = "last"
    is_rising: bool = False


def _counter(text: str, normal: str = "", bad: str = "") -> MetricInfo:
    return MetricInfo("counter", text, normal, bad)


def _gauge(text: str, normal: str = "", bad: str = "", across: Across = "last") -> MetricInfo:
    return MetricInfo("gauge", text, normal, bad, across)


def _histogram(text: str, normal: str = "", bad: str = "") -> MetricInfo:
    return MetricInfo("histogram", text, normal, bad)


SOURCES = ("policy", "human", "safety", "script")
"""Who chooses the actions of a gateway's clients."""
LEARNER_PHASES = (
    "wait_data",
    "to_device",
    "forward_backward",
    "publish",
    "checkpoint",
    "standby",
)
"""What a training thread does."""

METRICS: dict[str, MetricInfo] = {
    "build_info": _gauge(
        "Constant 1; labels say the versions of worldloom, python, torch and ray.", "1"
    ),
    "run_info": _gauge("Constant 1; labels say env, agent, preset and seed.", "1"),
    "agent_steps_total": _counter(
        "Decisions, as workers report them; one that dies takes its last report along.",
        "grows",
        "flat: workers wait or died",
    ),
    "env_steps_total": _counter(
        "Simulator steps: agent steps times action repeat.", "grows", "flat: see agent_steps_total"
    ),
    "episodes_total": _counter(
        "Episodes ended, by reason.", "error stays 0", "error grows: the env fails"
    ),
    "episode_return_mean": _gauge(
        "Mean return of recent episodes, by split.", "rises", "flat for long: it does not learn"
    ),
    "episode_return_min": _gauge(
        "Lowest return of recent episodes, by split.",
        "rises",
        "falls while the mean rises: unstable",
    ),
    "episode_return_max": _gauge("Highest return of recent episodes, by split.", "rises"),
    "episode_length_steps_mean": _gauge(
        "Mean length of recent episodes in agent steps, by split.", "of the task"
    ),
    "eval_return_mean": _gauge(
        "Mean return of the last evaluation.", "rises", "far below training: exploration carries it"
    ),
    "eval_return_std": _gauge(
        "Standard deviation of the last evaluation's returns over its episodes.", "falls"
    ),
    "eval_success_ratio": _gauge(
        "Share of the last evaluation's episodes that ended in success, where the env says so.",
        "0 to 1",
    ),
    "eval_score": _gauge(
        "Mean over the tasks of the last evaluation's normalised scores (0 to 100), of a run of "
        "several tasks.",
        "rises",
    ),
    "task_return_mean": _gauge(
        "Mean return of one of several tasks, by split: over its last 20 training episodes, or of "
        "the last evaluation.",
        "rises",
        "flat while others rise: the task is not learnt",
    ),
    "task_score": _gauge(
        "The last evaluation's normalised score (0 to 100) of one of several tasks.", "rises"
    ),
    "task_episodes_total": _counter(
        "Episodes ended, by task; of a run of several tasks only.", "grows for every task"
    ),
    "task_agent_steps_total": _counter(
        "Decisions, by task; of a run of several tasks only.",
        "in proportion to the length of their episodes",
        "flat for one: its envs fail, or none plays it",
    ),
    "eval_last_timestamp_seconds": _gauge(
        "When the last evaluation ended, unix time.", "recent", "old: the evaluator hangs"
    ),
    "learner_updates_total": _counter(
        "Updates made.", "grows", "flat: see where the learner waits"
    ),
    "learner_updates_lost_total": _counter(
        "Updates that died with a learner after its last checkpoint, and are made again.",
        "0",
        "grows: the learner dies; checkpoint more often",
    ),
    "learner_replayed_steps_total": _counter("Trained positions.", "grows"),
    "learner_update_seconds": _histogram(
        "Time of the training thread, by phase: wait_data, to_device, "
        "forward_backward, publish, checkpoint, standby.",
        "forward_backward leads",
        "wait_data leads: the learner starves",
    ),
    "learner_seconds_total": _counter(
        "Where the training threads spend their time, by phase.", "forward_backward", "wait_data"
    ),
    "learner_staging_seconds": _histogram(
        "Time to bring a batch to the device, off the training thread.", "below one update"
    ),
    "learner_skipped_updates_total": _counter(
        "Updates skipped, by reason.", "0", "nonfinite grows: divergence"
    ),
    "loss": _gauge(
        "Losses of the algorithm, by name.",
        "see the algorithm's page",
        "NaN or exploding: divergence",
        across="mean",
    ),
    "grad_norm": _gauge(
        "Gradient norms before clipping, by name.",
        "steady",
        "jumps by orders of magnitude: unstable",
        across="mean",
    ),
    "learning_rate": _gauge(
        "Learning rate, by name, where the algorithm changes it.", "of the preset", across="mean"
    ),
    "model_stat": _gauge(
        "Other scalars of the algorithm, by name.", "see the algorithm's page", across="mean"
    ),
    "model_kl_nats": _gauge(
        "KL from posterior to prior, at least the free nats.",
        "1 to 10",
        "tens and rising: it learns nothing",
        across="mean",
    ),
    "policy_entropy_nats": _gauge(
        "Entropy of the policy, by action key; may be negative for continuous actions.",
        "falls slowly",
        across="mean",
    ),
    "value_mean": _gauge(
        "Mean value of imagined states, in reward units.",
        "near the return",
        "far above any return: runs away",
        across="mean",
    ),
    "return_scale": _gauge(
        "What values are divided by in the policy's loss.",
        "steady",
        "explodes: values run away",
        across="mean",
    ),
    "policy_version": MetricInfo(
        "gauge",
        "Update of the weights: newest (learner), oldest in use (others, and in records); it never "
        "falls, and waits while updates that were lost are made again.",
        "grows",
        across="min",
        is_rising=True,
    ),
    "policy_lag_updates": _histogram(
        "Updates between the newest weights and those that acted, at insert.",
        "a few publish intervals",
        "grows: see pulls",
    ),
    "sampled_windows_total": _counter(
        "Windows trained, by task; of a run of several tasks only.",
        "alike for all tasks",
        "one stays behind: its episodes are shorter than a window, or it is not played",
    ),
    "sample_age_seconds": _histogram(
        "Age of a sampled row: insert to use in an update.", "grows up to the replay's span"
    ),
    "sample_lag_updates": _histogram(
        "Updates since the policy that made a sampled window, at its use.", "grows with replay"
    ),
    "weights_publish_seconds": _histogram(
        "Device to host to store, per publish.", "below 0.1", "long: the store is slow"
    ),
    "weights_pull_seconds": _histogram(
        "Fetch and load, per pull of an acting role.", "below 0.1", "long: network or object store"
    ),
    "weights_bytes": _gauge("Size of the policy's weights.", "constant"),
    "weights_published_total": _counter("Versions published.", "grows"),
    "weights_pulled_total": _counter(
        "Versions fetched by acting roles.", "grows", "flat while published grows: actors are stale"
    ),
    "weights_pull_failures_total": _counter(
        "Fetches that failed; the old version kept acting.", "0", "grows: the store is away"
    ),
    "replay_steps": _gauge("Rows stored.", "grows to the capacity"),
    "replay_capacity_steps": _gauge("Rows that fit.", "constant"),
    "replay_bytes": _gauge(
        "What stored rows take, by storage: ram, disk.",
        "grows to a plateau",
        "near the machine's",
        "sum",
    ),
    "replay_inserted_steps_total": _counter("Rows acknowledged.", "grows"),
    "replay_sampled_steps_total": _counter(
        "Positions handed out in windows, those that were sampled again included.", "grows"
    ),
    "replay_evicted_steps_total": _counter("Rows that made room.", "0 until the replay is full"),
    "replay_duplicate_steps_total": _counter(
        "Rows that came again and were ignored.", "0", "grows: acknowledgements get lost"
    ),
    "replay_refreshed_steps_total": _counter(
        "Rows whose latents training wrote again, by outcome: applied, or rejected "
        "(evicted meanwhile).",
        "applied grows",
        "rejected grows as fast: replay is too small",
    ),
    "replay_priority_updates_total": _counter(
        "Priorities of windows, by outcome: sent by the learner, applied by a shard, "
        "or evicted meanwhile.",
        "applied = sent",
        "applied stays behind: sampling is uniform in effect",
    ),
    "replay_ratio_target": _gauge(
        "Trained positions per agent step that were asked for.", "constant"
    ),
    "replay_ratio_actual": _gauge(
        "Trained positions per agent step so far, without prefill and pretraining.", "= target"
    ),
    "replay_op_seconds": _histogram(
        "Time of one operation of a shard, by op: insert, sample (all batches of one "
        "question), update_latents.",
        "below 0.05",
    ),
    "rate_limiter_blocked_seconds_total": _counter(
        "Time a side waited for the other, by side.", "one grows", "both grow"
    ),
    "queue_items": _gauge(
        "Waiting now, by queue: batches (learner), inference, trajectories (shards).",
        "batches full",
        "batches 0",
        "sum",
    ),
    "queue_capacity_items": _gauge(
        "Room in a queue that has a limit, by queue.", "constant", across="sum"
    ),
    "actor_seconds_total": _counter(
        "Where env workers spend their time, by state.",
        "env and inference",
        "blocked: learner-bound",
    ),
    "env_step_seconds": _histogram(
        "One step of a worker's envs, a reset included.",
        "of the env",
        "p99 rises: envs hang or swap",
    ),
    "inference_queue_seconds": _histogram(
        "Wait of a request at an inference server until its batch.",
        "below 0.005",
        "servers are busy",
    ),
    "inference_seconds": _histogram(
        "One decision for a batch of envs.", "below 0.05", "rises: too many envs for one policy"
    ),
    "inference_batch_items": _histogram(
        "Envs in one decision.", "near the workers of a server", "1: batches never fill"
    ),
    "planner_seconds": _histogram(
        "One decision of an agent that plans, for a batch of envs.", "below 0.1"
    ),
    "carry_resets_total": _counter(
        "Carries that an inference server had lost and started over in mid-episode.",
        "0",
        "servers die",
    ),
    "worker_restarts_total": _counter("Roles restarted, by kind.", "0", "grows: read console.log"),
    "workers_drained_total": _counter(
        "Workers that left a machine which was about to go: a node that drains, or SIGTERM.",
        "0",
        "grows: spot machines go",
    ),
    "workers_drained_rows_total": _counter(
        "Open rows that such workers sent before they left.", "grows with workers_drained_total"
    ),
    "env_errors_total": _counter(
        "Envs that failed, by reason: raised, hung, died, memory (held too much).",
        "0",
        "grows: read console.log",
    ),
    "rpc_errors_total": _counter(
        "Calls between roles that failed or were late, by reason.", "0", "grows: a role hangs"
    ),
    "envs_quarantined": _gauge(
        "Envs that failed too often and are not built again.", "0", "grows: summary.json names them"
    ),
    "workers": _gauge(
        "Env workers by state: alive, starting, dead (given up).", "alive = wanted", "dead above 0"
    ),
    "workers_wanted": _gauge("Env workers asked for.", "constant"),
    "heartbeat_timestamp_seconds": _gauge(
        "When a role was last heard of (its oldest instance).", "recent", "old: the role hangs"
    ),
    "checkpoint_last_success_timestamp_seconds": _gauge(
        "When the last checkpoint was complete, unix time.", "recent", "old"
    ),
    "checkpoint_interval_seconds": _gauge(
        "Time between checkpoints that was asked for.", "constant"
    ),
    "checkpoint_seconds": _histogram(
        "Time that a checkpoint takes, off the training thread.",
        "below 5",
        "long: the disk is slow",
    ),
    "checkpoint_bytes": _gauge("Size of the last checkpoint.", "constant"),
    "checkpoint_failures_total": _counter(
        "Checkpoints that could not be written.", "0", "grows: the disk is full or away"
    ),
    "gpu_utilization_ratio": _gauge(
        "Share of the last second in which the GPU ran, by gpu.", "near 1", "low: the learner waits"
    ),
    "gpu_memory_used_bytes": _gauge("GPU memory in use, by gpu.", "steady", "near the card's size"),
    "process_resident_memory_bytes": _gauge(
        "Memory of a role's processes and their children.", "flat", "a slope: leak", "sum"
    ),
    "process_cpu_seconds_total": _counter(
        "CPU time of a role's processes and their children.", "grows"
    ),
    "process_open_fds": _gauge("Open files of a role's processes.", "flat", "a slope: leak", "sum"),
    "node_cpu_busy_ratio": _gauge(
        "Share of the driver's machine that computes.", "below 1", "1: roles fight for cores"
    ),
    "node_memory_available_bytes": _gauge(
        "Memory left on the driver's machine.", "steady", "near 0: the kernel will kill a role"
    ),
    "object_store_used_bytes": _gauge(
        "Ray's object store in use, over all nodes.", "a few weights", "grows: references leak"
    ),
    "disk_free_bytes": _gauge(
        "Space left where the run folder lies.",
        "> 10 % of the disk",
        "near 0: journals stop the run",
    ),
    "disk_size_bytes": _gauge("Size of the disk where the run folder lies.", "constant"),
    "gateway_sessions": _gauge(
        "Sessions of clients that are open.", "one for each client", "0: no client is there", "sum"
    ),
    "gateway_sessions_opened_total": _counter(
        "Sessions opened, by kind: new, resumed.",
        "resumed stays",
        "resumed grows: connections break",
    ),
    "gateway_sessions_ended_total": _counter(
        "Sessions ended, by reason: closed, lease (its client was silent), fenced (it goes on at "
        "another gateway).",
        "closed",
        "lease grows: clients die or cannot reach the gateway",
    ),
    "gateway_questions_total": _counter("Questions of clients answered.", "grows"),
    "gateway_question_seconds": _histogram(
        "Time from a client's question to its answer, in the gateway.",
        "below the client's period",
        "long: the policy is too slow, or cores are short",
    ),
    "gateway_held_total": _counter(
        "Answers that asked the client to wait, because the train ratio wants no rows.",
        "some",
        "most: training is slower than the clients",
    ),
    "gateway_refused_total": _counter(
        "Calls refused, by code as gRPC names it.", "0", "grows: a client does something wrong"
    ),
    "gateway_rows_total": _counter(
        "Rows of clients stored, by source of the action: policy, human, safety, script.", "grows"
    ),
    "gateway_skipped_rows_total": _counter(
        "Rows that clients left out of replay, while it wanted none.",
        "few",
        "grows: training is slower than the clients",
    ),
    "transfer_bytes_total": _counter(
        "Bytes between roles, by path: actor_replay, replay_learner, weights.", "grows"
    ),
}

ZEROS: dict[str, tuple[str, ...]] = {
    "actor": (
        "agent_steps_total",
        "env_steps_total",
        *(f"episodes_total{{reason={reason}}}" for reason in ("terminated", "truncated", "error")),
        *(
            f"env_errors_total{{reason={reason}}}"
            for reason in ("raised", "hung", "died", "memory")
        ),
        *(
            f"actor_seconds_total{{state={state}}}"
            for state in ("env", "inference", "encode", "blocked", "pull_weights")
        ),
        "weights_pulled_total",
        "weights_pull_failures_total",
        "carry_resets_total",
        "rpc_errors_total{reason=gone}",
        "rpc_errors_total{reason=timeout}",
    ),
    "learner": (
        "learner_updates_total",
        *(f"learner_seconds_total{{phase={phase}}}" for phase in LEARNER_PHASES),
        "learner_replayed_steps_total",
        "learner_skipped_updates_total{reason=nonfinite}",
        "weights_published_total",
        "checkpoint_failures_total",
    ),
    "gateway": (
        "gateway_questions_total",
        "gateway_held_total",
        "gateway_skipped_rows_total",
        *(f"gateway_rows_total{{source={source}}}" for source in SOURCES),
        *(f"gateway_sessions_opened_total{{kind={kind}}}" for kind in ("new", "resumed")),
        *(
            f"gateway_sessions_ended_total{{reason={reason}}}"
            for reason in ("closed", "lease", "fenced")
        ),
        *(
            f"gateway_refused_total{{code={code}}}"
            for code in ("INVALID_ARGUMENT", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "INTERNAL")
        ),
    ),
    "replay": (
        "replay_sampled_steps_total",
        *(f"transfer_bytes_total{{path={path}}}" for path in ("actor_replay", "replay_learner")),
    ),
    "driver": (
        "learner_updates_lost_total",
        "workers_drained_total",
        "workers_drained_rows_total",
        *(f"replay_{what}_steps_total" for what in ("inserted", "evicted", "duplicate")),
        *(f"rate_limiter_blocked_seconds_total{{side={side}}}" for side in ("insert", "sample")),
        *(
            f"worker_restarts_total{{kind={kind}}}"
            for kind in ("env", "worker", "inference", "shard", "learner")
        ),
    ),
}
"""Counters that exist from the start, by role: ``rate()`` cannot see the first increment of a
series that was not there.
"""


def scalar_keys(name: str, own: Mapping[str, str]) -> tuple[str, ...]:
    """Keys of an agent's scalar: ``loss/rew`` and ``reward_loss`` are losses, ``grad_norm/all`` and
    ``pi_grad_norm`` gradient norms, ``lr/NAME`` a learning rate, ``ent/KEY`` an entropy of the
    policy; the rest is ``model_stat``.

    Args:
        name: Of the scalar.
        own: ``AgentSpec.metric_keys``; a key from there stands beside that of a family, and in
            place of ``model_stat``.
    """
    key = _family_key(name)
    if name not in own:
        return (key or key_of("model_stat", name=name),)
    return (own[name],) if key is None else (key, own[name])


def _family_key(name: str) -> str | None:
    """The key that the form of the name gives; None when it has no such form."""
    group, _, rest = name.partition("/")
    if group == "loss" and rest:
        return key_of("loss", name=rest)
    if group in ("grad_norm", "lr", "ent"):
        family = {"lr": "learning_rate", "ent": "policy_entropy_nats"}.get(group, group)
        return key_of(family, name=rest or "all")
    for ending, family in (("_loss", "loss"), ("_grad_norm", "grad_norm")):
        if name.endswith(ending):
            return key_of(family, name=name.removesuffix(ending))
    return None


def key_of(name: str, /, **labels: str) -> str:
    """The key of a series: ``loss``, name ``total`` -> ``loss{name=total}``.

    Labels may hold any text (an agent's scalar is named after the env's observations); what would
    read as more than one label is quoted as JSON quotes it.
    """
    if not labels:
        return name
    pairs = (
        f"{label}={value if PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)}"
        for label, value in labels.items()
    )
    return f"{name}{{{','.join(pairs)}}}"


def split_key(key: str) -> tuple[str, dict[str, str]]:
    """``loss{name=total}`` -> (``loss``, {name: total}).

    Raises:
        ValueError: For labels that :func:`key_of` does not write.
    """
    name, labels, _ = _parts(key)
    return name, labels


def loss_of(key: str) -> str | None:
    """The loss that a key is of: ``loss{name=total}`` -> ``total``; None for other keys."""
    if not key.startswith("loss{"):
        return None
    try:
        return split_key(key)[1].get("name")
    except ValueError:  # a record that another program wrote
        return None


def path_of(key: str) -> str:
    """The key as TensorBoard and W&B show it: ``loss{name=total}`` -> ``loss/total``, ``NAME:p99``
    -> ``NAME/p99``.

    Raises:
        ValueError: As :func:`split_key`.
    """
    name, labels, quantile = _parts(key)
    return "/".join([name, *labels.values(), *([quantile] if quantile else [])])


def _parts(key: str) -> tuple[str, dict[str, str], str]:
    """Name, labels, and what stands behind the last colon outside of labels."""
    name, brace, rest = key.partition("{")
    if not brace:
        name, _, quantile = key.partition(":")
        return name, {}, quantile
    text, end, quantile = rest.rpartition("}")
    if not end or (quantile and not quantile.startswith(":")):
        raise ValueError(f"metric key {key!r} must end with }} or }}:QUANTILE behind its labels")
    labels: dict[str, str] = {}
    place = 0
    while place < len(text):
        found = LABEL.match(text, place)
        if found is None:
            raise ValueError(f"metric key {key!r} must have labels like NAME=VALUE, or quoted")
        label, value = found.groups()
        labels[label] = json.loads(value) if value.startswith('"') else value
        place = found.end()
    return name, labels, quantile[1:]


def to_markdown() -> str:
    """The page ``docs/metrics.md``; ``python -m worldloom_dist.metrics.names`` prints it."""
    head = (
        "# Metrics\n\nGenerated from `worldloom_dist/metrics/names.py`. Prometheus "
        "adds the prefix `worldloom_` and the labels\n"
        "`run_id` and `role`; `metrics.jsonl` has the same names without them, and "
        "of a histogram the mean and, as `NAME:p99`,\n"
        "the 99th percentile (the upper bound of its bucket). TensorBoard and W&B "
        "show `loss{name=total}` as `loss/total`.\n"
        "A gauge that several roles have is one number in `metrics.jsonl`: memory and files are "
        "added up, versions the oldest. A label with\n"
        "a comma, a brace, a quote or a backslash is quoted as in JSON: "
        '`loss{name="obs/x,y"}`.\n'
        "Durations are seconds, sizes bytes, ratios 0 to 1. How to look at them: "
        "[Operations](operations.md).\n\n"
        "| Name | Type | Meaning | Normal | A bad value |\n|---|---|---|---|---|\n"
    )
    rows = (
        f"| `{name}` | {info.kind} | {info.help} | {info.normal} | {info.bad} |\n"
        for name, info in METRICS.items()
    )
    return head + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
