"""Run folders as runs leave them, written without running: for what reads a run's files."""

import json
import math

import numpy as np

SUMMARY = {
    "run_id": "demo-1a2b3c",
    "status": "running",
    "error": None,
    "env_steps": 0,
    "train_steps": 0,
    "train_return_mean": None,
    "eval": None,
    "wall_time_s": 0.0,
    "train_ratio_actual": 0.0,
    "rows": {"inserted": 0, "stored": 0, "evicted": 0, "lost_acked": 0, "duplicate": 0},
    "restarts": {"env": 0, "worker": 0, "inference": 0, "shard": 0, "learner": 0},
    "quarantined": {},
    "staleness": {"mean": None, "p99": None},
    "bottleneck": "balanced",
    "binding": {"resource": "unknown", "share": 0.0, "advice": "not measured yet"},
    "throughput": {"env_steps_per_s": 0.0, "updates_per_s": 0.0},
}
CONFIG = {
    "agent": "tdmpc2:ci",
    "env": {"env": "gym:Pendulum-v1"},
    "seed": 1,
    "preset": "quick",
    "env_steps": 5000,
    "train_steps": 10_000,
    "eval_every": 1000,
    "eval_episodes": 10,
    "eval_videos": 0,
    "workers": 2,
    "runtime": "ray",
    "replay": {"capacity_steps": 100_000, "load": None},
    "agent_overrides": {},
}


def write_run(
    folder,
    *,
    records=50,
    share=1.0,
    evaluations=True,
    losses=("total", "consistency", "reward", "value", "pi"),
    config=None,
    summary=None,
    last=None,
    seed=0,
    level=-150.0,
    start=-1400.0,
    rates=(180.0, 90.0),
):
    """A run of which ``share`` is done, its curves rising from ``start`` to ``level``.

    Args:
        folder: Made.
        records: Lines of its metrics log; 0 writes none.
        evaluations: Whether there are some.
        losses: Their names.
        config, summary: What is otherwise than in CONFIG and SUMMARY.
        last: Keys of every record besides.
    """
    folder.mkdir(parents=True)
    run = {**CONFIG, **(config or {})}
    (folder / "config.json").write_text(json.dumps({"run_id": "demo-1a2b3c", "run": run}))
    (folder / "command.txt").write_text("2026-01-02 03:04:05  python -m worldloom_dist.launch\n")
    (folder / "versions.txt").write_text("python 3.11.2\ntorch 2.6.0\n")
    draw = np.random.default_rng(seed)
    is_offline = run["env"]["env"] == "none"
    target = run["train_steps"] if is_offline else run["env_steps"]
    lines = []
    evaluation = None
    next_at = run["eval_every"]
    for index in range(records):
        done = share * (index + 1) / records
        steps = round(target * done)
        env_steps = 0 if is_offline else steps
        train_steps = steps if is_offline else max(0, steps - target // 10)
        learned = 1 / (1 + math.exp(-10 * (done - 0.35)))
        record = {
            "kind": "train",
            "time": 1.7e9 + 10.0 * index,
            "wall_time_s": 10.0 * (index + 1),
            "env_steps": env_steps,
            "train_steps": train_steps,
            "env_steps_per_s": 0.0 if is_offline else rates[0] * draw.uniform(0.85, 1.1),
            "updates_per_s": rates[1] * draw.uniform(0.9, 1.1) if train_steps else 0.0,
            "replay_ratio_target": 768.0,
            "workers_wanted": run["workers"],
            "learner_seconds_total{phase=forward_backward}": 8.4 * index,
            "learner_seconds_total{phase=wait_data}": 1.2 * index,
            "learner_seconds_total{phase=publish}": 0.3 * index,
            "learner_seconds_total{phase=to_device}": 0.05 * index,
            "actor_seconds_total{state=env}": 3.0 * index,
            "actor_seconds_total{state=inference}": 9.0 * index,
            "actor_seconds_total{state=blocked}": 6.0 * index,
            "actor_seconds_total{state=encode}": 0.4 * index,
            **(last or {}),
        }
        if not is_offline and done > 0.02:
            record["episode_return_mean{split=train}"] = (
                start + (level - start) * learned + draw.normal() * abs(level - start) / 25
            )
        if train_steps:
            for place, name in enumerate(losses):
                scale = 10.0 ** (1 - place)
                record[f"loss{{name={name}}}"] = scale * (
                    math.exp(-6 * done) + 0.05 + 0.01 * draw.random()
                )
        lines.append(json.dumps(record))
        if evaluations and not is_offline and run["eval_every"] and steps >= next_at:
            next_at += run["eval_every"]
            evaluation = {
                "env_steps": steps,
                "return_mean": start + (level - start) * learned * 1.03,
                "return_std": abs(level - start) / 12,
                "episodes": run["eval_episodes"],
                "version": [1, train_steps],
            }
            lines.append(json.dumps({"kind": "eval", "time": record["time"], **evaluation}))
    if records:
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        known = {
            "env_steps": record["env_steps"],
            "train_steps": record["train_steps"],
            "eval": evaluation,
            "train_return_mean": record.get("episode_return_mean{split=train}"),
            "wall_time_s": record["wall_time_s"],
            "train_ratio_actual": 0.0 if is_offline else 767.8,
            "rows": {**SUMMARY["rows"], "stored": max(100, record["env_steps"])},
            "throughput": {
                "env_steps_per_s": 0.0 if is_offline else rates[0],
                "updates_per_s": rates[1],
            },
            "binding": {
                "resource": "learner",
                "share": 0.96,
                "advice": "a smaller --agent, a lower --train-ratio or a GPU makes it faster",
            },
        }
    else:
        known = {}
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, **known, **(summary or {})}))
    return folder
