"""Write the Grafana board; run: python deploy/grafana/make_board.py.

A row per question, a panel per answer; each expression is a query of Prometheus. ``$run_id``
chooses runs; several are compared.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboards" / "worldloom.json"
RUN = '{run_id=~"$run_id"}'
WIDTH = 24
HEIGHT = 7
MAX_COLUMNS = 4

Panel = tuple[str, str, str, list[tuple[str, str]]]
"""Title, unit, description, (expression, legend) pairs."""


def rate(metric: str, by: str = "", more: str = "") -> str:
    """Sum over roles and instances of a counter's rate, by run and ``by``."""
    labels = f"run_id, {by}" if by else "run_id"
    return (
        f'sum by ({labels}) (rate(worldloom_{metric}{{run_id=~"$run_id"{more}}}[$__rate_interval]))'
    )


def gauge(metric: str, by: str = "", more: str = "") -> str:
    """A gauge, whatever role reports it."""
    labels = f"run_id, {by}" if by else "run_id"
    return f'max by ({labels}) (worldloom_{metric}{{run_id=~"$run_id"{more}}})'


def some(metric: str, by: str = "", more: str = "") -> str:
    """A gauge that only some runs have; 0 where there is none."""
    return f"{gauge(metric, by, more)} or on () vector(0)"


def quantile(share: float, metric: str, by: str = "") -> str:
    """A quantile of a histogram over the last minutes."""
    return f"histogram_quantile({share}, {rate(metric + '_bucket', f'{by}, le' if by else 'le')})"


def age(metric: str) -> str:
    """Seconds since a time stamp."""
    return f"time() - {gauge(metric)}"


def share(metric: str, by: str) -> str:
    """A counter of seconds as shares that sum to 1."""
    return f"{rate(metric, by)} / on (run_id) group_left () {rate(metric)}"


ROWS: dict[str, list[Panel]] = {
    "Is it learning": [
        ("Return", "none", "Mean over the last 50 training episodes, and of the last evaluation.", [
            (gauge("episode_return_mean", more=', split="train"'), "{{run_id}} training"),
            (gauge("eval_return_mean"), "{{run_id}} evaluation")]),
        ("Return: spread", "none", "Highest and lowest of the last 50 training episodes.", [
            (gauge("episode_return_max", more=', split="train"'), "{{run_id}} max"),
            (gauge("episode_return_min", more=', split="train"'), "{{run_id}} min")]),
        ("Episode length", "none", "Decisions per episode.", [
            (gauge("episode_length_steps_mean", "split"), "{{run_id}} {{split}}")]),
        ("Env steps", "short", "Simulator steps of the run so far.", [(gauge("env_steps_total"), "{{run_id}}")]),
    ],
    "Which task": [
        ("Training return", "none", "Mean over the last 20 episodes of each of several tasks.", [
            (some("task_return_mean", "task", ', split="train"'), "{{run_id}} {{task}}")]),
        ("Evaluation return", "none", "Of each of several tasks, in the last evaluation.", [
            (some("task_return_mean", "task", ', split="eval"'), "{{run_id}} {{task}}")]),
        ("Score", "none", "Normalised, 0 to 100: of each task, and their mean.", [
            (some("task_score", "task"), "{{run_id}} {{task}}"), (some("eval_score"), "{{run_id}} mean")]),
        ("Samples", "percentunit", "Share of each task in what is trained.", [
            (f"({share('sampled_windows_total', 'task')}) or on () vector(0)", "{{run_id}} {{task}}")]),
    ],
    "Throughput": [
        ("Env steps/s", "none", "Simulator steps per second.", [(rate("env_steps_total"), "{{run_id}}")]),
        ("Updates/s", "none", "Updates of the learner per second.", [(rate("learner_updates_total"), "{{run_id}}")]),
        ("Train ratio", "none", "Trained positions per agent step: so far, and as asked for.", [
            (gauge("replay_ratio_actual"), "{{run_id}} actual"), (gauge("replay_ratio_target"), "{{run_id}} target")]),
        ("Transfer", "Bps", "Bytes per second between roles.", [(rate("transfer_bytes_total", "path"), "{{run_id}} {{path}}")]),
    ],
    "Where does it wait": [
        ("Env workers: share of time", "percentunit", "blocked = waiting for replay, which waits for the learner.", [
            (share("actor_seconds_total", "state"), "{{run_id}} {{state}}")]),
        ("Learner: seconds per second", "percentunit", "wait_data leads: the learner starves.", [
            (rate("learner_update_seconds_sum", "phase"), "{{run_id}} {{phase}}")]),
        ("Rate limiter blocks", "percentunit", "Share of time in which a side waits for the other. Both high: nothing moves.", [
            (rate("rate_limiter_blocked_seconds_total", "side"), "{{run_id}} {{side}}")]),
        ("Queues", "none", "Waiting now: batches before the learner, requests before inference, chunks "
            "before the shards.", [
            (f'sum by (run_id, queue) (worldloom_queue_items{RUN})', "{{run_id}} {{queue}}")]),
        ("Decisions", "s", "One decision for a batch of envs, p50 and p99.", [
            (quantile(0.5, "inference_seconds"), "{{run_id}} p50"), (quantile(0.99, "inference_seconds"), "{{run_id}} p99")]),
        ("Env step", "s", "One step of a worker's envs, p50 and p99.", [
            (quantile(0.5, "env_step_seconds"), "{{run_id}} p50"), (quantile(0.99, "env_step_seconds"), "{{run_id}} p99")]),
    ],
    "Freshness": [
        ("Policy lag", "none", "Updates between the newest weights and those that acted.", [
            (quantile(0.5, "policy_lag_updates"), "{{run_id}} p50"), (quantile(0.99, "policy_lag_updates"), "{{run_id}} p99")]),
        ("Policy version", "none", "Newest (learner), and oldest in use (others).", [
            (gauge("policy_version", "role"), "{{run_id}} {{role}}")]),
        ("Publish and pull", "s", "p99 of device to store, and of fetch and load.", [
            (quantile(0.99, "weights_publish_seconds"), "{{run_id}} publish"),
            (quantile(0.99, "weights_pull_seconds"), "{{run_id}} pull")]),
        ("Sample age", "s", "Age of trained rows, p50 and p99.", [
            (quantile(0.5, "sample_age_seconds"), "{{run_id}} p50"), (quantile(0.99, "sample_age_seconds"), "{{run_id}} p99")]),
    ],
    "Replay": [
        ("Fill", "percentunit", "Rows stored of those that fit.", [
            (f"{gauge('replay_steps')} / {gauge('replay_capacity_steps')}", "{{run_id}}")]),
        ("Size", "bytes", "In memory and on disk, over all shards.", [
            (f'sum by (run_id, storage) (worldloom_replay_bytes{RUN})', "{{run_id}} {{storage}}")]),
        ("Rows/s", "none", "Inserted, sampled and evicted.", [
            (rate("replay_inserted_steps_total"), "{{run_id}} inserted"),
            (rate("replay_sampled_steps_total"), "{{run_id}} sampled"),
            (rate("replay_evicted_steps_total"), "{{run_id}} evicted"),
            (rate("replay_duplicate_steps_total"), "{{run_id}} again")]),
        ("Operations", "s", "p99 of one operation of a shard.", [
            (quantile(0.99, "replay_op_seconds", "op"), "{{run_id}} {{op}}")]),
    ],
    "Model health": [
        ("Losses", "none", "By name.", [(gauge("loss", "name"), "{{run_id}} {{name}}")]),
        ("Gradient norm", "none", "Before clipping.", [(gauge("grad_norm", "name"), "{{run_id}} {{name}}")]),
        ("Policy entropy", "none", "In nats; below 0 is possible for continuous actions.", [
            (gauge("policy_entropy_nats", "name"), "{{run_id}} {{name}}")]),
        ("Other scalars", "none", "Of the algorithm; its page says what to expect.", [
            (gauge("model_stat", "name"), "{{run_id}} {{name}}")]),
        ("Updates skipped", "none", "Because a loss or gradient was not finite, in the last ten minutes.", [
            ("sum by (run_id, reason) "
                f"(increase(worldloom_learner_skipped_updates_total{RUN}[10m]))", "{{run_id}} {{reason}}")]),
    ],
    "Resources": [
        ("CPU", "none", "Cores that each role uses.", [(rate("process_cpu_seconds_total", "role"), "{{run_id}} {{role}}")]),
        ("Memory", "bytes", "Resident memory of each role's processes.", [
            (gauge("process_resident_memory_bytes", "role"), "{{run_id}} {{role}}")]),
        ("Machine", "percentunit", "Of the driver's machine: cores busy, and disk in use.", [
            (gauge("node_cpu_busy_ratio"), "{{run_id}} CPU"),
            (f"1 - {gauge('disk_free_bytes')} / {gauge('disk_size_bytes')}", "{{run_id}} disk")]),
        ("GPU", "percentunit", "Utilization; 0 where there is no GPU.", [
            (f"{gauge('gpu_utilization_ratio', 'gpu')} or on () vector(0)", "{{run_id}} GPU {{gpu}}")]),
        ("GPU memory", "bytes", "In use; 0 where there is no GPU.", [
            (f"{gauge('gpu_memory_used_bytes', 'gpu')} or on () vector(0)", "{{run_id}} GPU {{gpu}}")]),
        ("Memory left, object store", "bytes", "Left on the driver's machine; in use in Ray's object store.", [
            (gauge("node_memory_available_bytes"), "{{run_id}} left"), (gauge("object_store_used_bytes"), "{{run_id}} store")]),
        ("Open files", "none", "Of each role; a slope is a leak.", [(gauge("process_open_fds", "role"), "{{run_id}} {{role}}")]),
    ],
    "Clients from outside": [
        ("Sessions", "none", "Of clients, over all gateways.", [(gauge("gateway_sessions"), "{{run_id}}")]),
        ("Questions/s", "none", "Of clients: answered, and answered with a plea to wait.", [
            (rate("gateway_questions_total"), "{{run_id}} answered"), (rate("gateway_held_total"), "{{run_id}} held")]),
        ("Answer", "s", "Question to answer in the gateway, p50 and p99.", [
            (quantile(0.5, "gateway_question_seconds"), "{{run_id}} p50"),
            (quantile(0.99, "gateway_question_seconds"), "{{run_id}} p99")]),
        ("Rows/s", "none", "Stored, by who chose the action; and left out.", [
            (rate("gateway_rows_total", "source"), "{{run_id}} {{source}}"),
            (rate("gateway_skipped_rows_total"), "{{run_id}} left out")]),
        ("Refused, lost", "none", "Calls refused and sessions lost, in the last ten minutes.", [
            (f"sum by (run_id, code) (increase(worldloom_gateway_refused_total{RUN}[10m]))", "{{run_id}} {{code}}"),
            (f"sum by (run_id, reason) (increase(worldloom_gateway_sessions_ended_total{RUN}[10m]))", "{{run_id}} {{reason}}")]),
    ],
    "Faults": [
        ("Workers", "none", "By state, and as asked for.", [
            (gauge("workers", "state"), "{{run_id}} {{state}}"), (gauge("workers_wanted"), "{{run_id}} wanted")]),
        ("Restarts", "none", "Of roles, in the last ten minutes.", [
            ("sum by (run_id, kind) "
                f"(increase(worldloom_worker_restarts_total{RUN}[10m]))", "{{run_id}} {{kind}}")]),
        ("Env errors, failed calls", "none", "In the last ten minutes.", [
            (f"sum by (run_id, reason) (increase(worldloom_env_errors_total{RUN}[10m]))", "{{run_id}} env {{reason}}"),
            (f"sum by (run_id, reason) (increase(worldloom_rpc_errors_total{RUN}[10m]))", "{{run_id}} call {{reason}}")]),
        ("Checkpoint: age", "s", "Since the last one was complete; alerts look at three intervals.", [
            (age("checkpoint_last_success_timestamp_seconds"), "{{run_id}}"),
            (gauge("checkpoint_interval_seconds"), "{{run_id}} interval")]),
        ("Checkpoint: time", "s", "Training waits so long; p99.", [(quantile(0.99, "checkpoint_seconds"), "{{run_id}}")]),
        ("Silence", "s", "Since each role was last heard of.", [
            ("time() - min by (run_id, role) "
                f"(worldloom_heartbeat_timestamp_seconds{RUN})", "{{run_id}} {{role}}")]),
    ],
}  # fmt: skip


def panel(number: int, x: int, y: int, width: int, spec: Panel) -> dict[str, Any]:
    """One graph over time."""
    title, unit, description, targets = spec
    source = {"type": "prometheus", "uid": "${datasource}"}
    drawn = {"lineWidth": 1, "fillOpacity": 5, "spanNulls": 60000}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    common = {"datasource": source, "editorMode": "code", "range": True}
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": width, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "custom": drawn}, "overrides": []},
        "options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + index), **common, "expr": expr, "legendFormat": text}
            for index, (expr, text) in enumerate(targets)
        ],
    }


def board() -> dict[str, Any]:
    """The board as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, specs in ROWS.items():
        row = {
            "id": len(panels) + 1,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
        }
        panels.append({**row, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        y += 1
        columns = math.ceil(len(specs) / math.ceil(len(specs) / MAX_COLUMNS))
        for start in range(0, len(specs), columns):
            line = specs[start : start + columns]
            width = WIDTH // len(line)
            for place, spec in enumerate(line):
                panels.append(panel(len(panels) + 1, place * width, y, width, spec))
            y += HEIGHT
    run_id = {
        "name": "run_id",
        "label": "run",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": "label_values(worldloom_run_info, run_id)", "refId": "run_id"},
        "refresh": 2,
        "sort": 2,
        "multi": True,
        "includeAll": True,
    }
    return {
        "uid": "worldloom",
        "title": "WorldLoom",
        "description": "Written by deploy/grafana/make_board.py; change that file.",
        "tags": ["worldloom"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}, run_id]
        },
        "annotations": {"list": []},
        "panels": panels,
    }


def main() -> None:
    """Write the file."""
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(board(), indent=1) + "\n")


if __name__ == "__main__":
    main()
