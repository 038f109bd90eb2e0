"""What the page of a run shows, as one JSON object made from the files of the run folder."""

from __future__ import annotations

import dataclasses
import shlex
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from worldloom.core.json_text import parse_json, read_object
from worldloom.core.plain_files import lies_in, plain_lines, read_plain, read_tail
from worldloom_dist.metrics.names import key_of, loss_of, split_key
from worldloom_dist.page.videos import videos_of
from worldloom_dist.run.curves import AXES, EVALUATION, TRAINING, History
from worldloom_dist.run.view import View, read_view

__all__ = ["RunState"]

MOST_ROWS = 300
"""Points of a curve at least, once a run has that many; neighbours are averaged from twice that."""
MOST_VIDEOS = 8
DIGITS = 5
LOG_BYTES = 6_000
USE_WINDOW_S = 120.0
"""Where time goes is told of so long a stretch."""
SPENT = {"learner": "learner_seconds_total", "workers": "actor_seconds_total"}
FAULTS = {
    "env_errors_total{reason=raised}": "envs raised an error",
    "env_errors_total{reason=hung}": "envs hung and were ended",
    "env_errors_total{reason=died}": "processes of envs died",
    "env_errors_total{reason=memory}": "envs held too much memory and were ended",
    "learner_skipped_updates_total{reason=nonfinite}": "updates skipped: they were not finite",
    "checkpoint_failures_total": "checkpoints could not be written",
    "rpc_errors_total{reason=gone}": "calls failed, because the other role was gone",
    "rpc_errors_total{reason=timeout}": "calls between roles were late",
    "weights_pull_failures_total": "fetches of weights failed",
}
COUNTED = {
    "updates_lost": "updates died with their learners and were owed again",
    "evaluations_failed": "evaluations failed; console.log says why",
}
NAMED = {
    "quarantined": "{} is not started again: {}",
    "imports_left_out": "{} could not be imported: {}",
    "sinks_given_up": "{} gets no numbers any more: {}",
}
LOST = {
    "lost_acked": "acknowledged rows are lost",
    "lost_open": "rows that no acknowledgement had covered are lost",
}
SETTINGS = ("preset", "agent", "seed", "runtime", "workers", "envs_per_worker", "train_ratio")


class RunState:
    """Reads a run folder again and again, each time only what is new of its records. Thread-safe.

    Args:
        folder: Of the run.
        is_live: True where the run itself asks, which knows that it runs.
        most_videos: How many are told of; None for all.
    """

    def __init__(
        self, folder: Path, *, is_live: bool = False, most_videos: int | None = MOST_VIDEOS
    ) -> None:
        self._most_videos = most_videos
        self._folder = folder
        self._is_live = is_live
        self._lock = threading.Lock()
        self._begin_again()

    def read(self) -> dict[str, Any]:
        """Everything, JSON-ready.

        Raises:
            FileNotFoundError: If the folder holds no run.
            ValueError: If its files are damaged.
        """
        with self._lock:
            config = read_object(self._folder / "config.json")
            for record in self._fresh_records():
                self._take(record)
            view = read_view(self._folder, is_live=self._is_live)
            videos = videos_of(self._folder / "videos", is_live=self._is_live)
            return {
                "time": time.time(),
                "is_live": self._is_live,
                "view": dataclasses.asdict(view)
                | {name: getattr(view, name) for name in ("progress", "is_offline")},
                **self._curves(view),
                "run": self._run(config),
                "summary": self._summary,
                "spent": self._spent_lately(),
                "workers": self._workers(),
                "faults": self._faults(),
                "videos": videos[: self._most_videos],
                "videos_left_out": len(videos) - len(videos[: self._most_videos]),
                "log": self._log(),
            }

    def version(self) -> str:
        """Changes when :meth:`read` would tell something new."""
        paths = [self._folder / name for name in ("metrics.jsonl", "summary.json", "console.log")]
        stats = [path.stat() for path in [*paths, self._folder / "videos"] if path.exists()]
        return "-".join(f"{stat.st_mtime_ns:x}.{stat.st_size:x}" for stat in stats)

    def _begin_again(self) -> None:
        self._offset = 0
        self._history: History | None = None
        self._spent: deque[tuple[float, Mapping[str, Any]]] = deque()

    def _fresh_records(self) -> Iterator[dict[str, Any]]:
        """Whole lines that came since the last call."""
        path = self._folder / "metrics.jsonl"
        if not path.exists():
            return
        if path.stat().st_size < self._offset:
            self._begin_again()
        for line in plain_lines(path, self._offset):
            if not line.endswith(b"\n"):
                break
            self._offset += len(line)
            try:
                record = parse_json(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record

    def _take(self, record: Mapping[str, Any]) -> None:
        if self._history is None:
            self._history = self._new_history()
        self._history.add(record)
        stamp = record.get("time")
        if record.get("kind") == "train" and isinstance(stamp, int | float):
            self._spent.append((stamp, record))
            while len(self._spent) > 2 and stamp - self._spent[1][0] >= USE_WINDOW_S:
                self._spent.popleft()

    def _new_history(self) -> History:
        env = read_object(self._folder / "config.json")["run"]["env"]["env"]
        return History(is_offline=env == "none", most=MOST_ROWS)

    @property
    def _summary(self) -> dict[str, Any]:
        path = self._folder / "summary.json"
        return read_object(path) if path.exists() else {}

    def _curves(self, view: View) -> dict[str, Any]:
        """Columns: where the rows are on every axis (null where the run did it again), then a value
        per row and curve.
        """
        history = self._history or self._new_history()
        rows = history.rows
        names = [name for name in history.names if name != EVALUATION]
        groups = {TRAINING: "return"}
        curves = []
        for name in names:
            loss = loss_of(name)
            curve: dict[str, Any] = {
                "name": name if loss is None else loss,
                "group": groups.get(name, "rate") if loss is None else "loss",
                "values": [_short(row.values.get(name)) for row in rows],
            }
            if any(row.count > 1 for row in rows):
                for side in ("low", "high"):
                    bounds = [getattr(row, side).get(name, row.values.get(name)) for row in rows]
                    curve[side] = [_short(bound) for bound in bounds]
            curves.append(curve)
        evaluations = [
            {
                **{
                    axis.field: history.place(record["env_steps"], name)
                    for name, axis in AXES.items()
                },
                **{key: record.get(key) for key in ("return_mean", "return_std", "episodes")},
                "model": record.get("model"),
                **({"score": record["score"]} if "score" in record else {}),
            }
            for record in history.evaluations
        ]
        return {
            "axis": "updates" if view.is_offline else "env_steps",
            "axes": {
                axis.field: [_short(place, 8) for place in history.places(name)]
                for name, axis in AXES.items()
            },
            "curves": curves,
            "evaluations": evaluations,
        }

    def _run(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What was asked for."""
        run = config["run"]
        return {
            "name": self._folder.name,
            "typed": shlex.quote(str(self._folder)),
            "env": run["env"]["env"],
            "eval_every": run.get("eval_every", 0),
            "eval_episodes": run.get("eval_episodes", 0),
            "eval_videos": run.get("eval_videos", 0),
            "settings": {name: run[name] for name in SETTINGS if run.get(name) is not None},
            "changed": dict(run.get("agent_overrides", {})),
            "command": self._lines("command.txt")[-1:],
            "versions": self._lines("versions.txt"),
            "tasks": self._tasks(config),
        }

    def _tasks(self, config: Mapping[str, Any]) -> list[dict[str, Any]]:
        """How each of several tasks stands; empty for one."""
        tasks = (config.get("env") or {}).get("tasks") or ()
        last = self._history.last if self._history else {}
        evaluated = (self._summary.get("eval") or {}).get("tasks") or {}
        windows = {
            task["name"]: last.get(key_of("sampled_windows_total", task=task["name"])) or 0
            for task in tasks
        }
        total = sum(windows.values())
        return [
            {
                "name": name,
                "env": task["env"],
                "joined": task.get("joined", 0),
                "train": last.get(key_of("task_return_mean", split="train", task=name)),
                "episodes": last.get(key_of("task_episodes_total", task=name)),
                "eval": evaluated.get(name, {}).get("return_mean"),
                "score": evaluated.get(name, {}).get("score"),
                "share": windows[name] / total if total else None,
            }
            for task in tasks
            for name in (task["name"],)
        ]

    def _spent_lately(self) -> dict[str, dict[str, float]]:
        """Seconds by what learner and workers did, over the last minutes."""
        if not self._spent:
            return {}
        first, last = (self._spent[place][1] for place in (0, -1))
        before = first if len(self._spent) > 1 else {}
        found = {}
        for side, name in SPENT.items():
            seconds = {
                " ".join(split_key(key)[1].values()): _difference(value, before.get(key))
                for key, value in last.items()
                if key.startswith(f"{name}{{")
            }
            if sum(seconds.values()) > 0:
                found[side] = seconds
        return found

    def _workers(self) -> dict[str, int]:
        last = self._history.last if self._history else {}
        states = ("alive", "starting", "dead")
        found = {state: last.get(f"workers{{state={state}}}") for state in states}
        known = {state: int(count) for state, count in found.items() if count is not None}
        return known | ({"wanted": int(last["workers_wanted"])} if "workers_wanted" in last else {})

    def _faults(self) -> list[dict[str, Any]]:
        """What went wrong, each with how often; empty where nothing did."""
        summary = self._summary
        last = self._history.last if self._history else {}
        found: list[dict[str, Any]] = []
        has_counted_envs = any(last.get(key) for key in FAULTS if key.startswith("env_errors"))
        for kind, count in summary.get("restarts", {}).items():
            if count and not (kind == "env" and has_counted_envs):  # else each is told of twice
                found.append({"count": count, "what": f"restarts of {kind}s"})
        for key, what in FAULTS.items():
            if last.get(key):
                found.append({"count": int(last[key]), "what": what})
        for key, what in COUNTED.items():
            if summary.get(key):
                found.append({"count": summary[key], "what": what})
        for key, sentence in NAMED.items():
            for who, why in summary.get(key, {}).items():
                found.append({"count": 1, "what": sentence.format(who, why)})
        found += _faults_of_evaluation(summary.get("eval") or {})
        if summary.get("eager"):
            found.append({"count": 1, "what": f"updates are made eagerly: {summary['eager']}"})
        rows = summary.get("rows", {})
        for name, what in LOST.items():
            if rows.get(name):
                found.append({"count": rows[name], "what": what})
        return found

    def _lines(self, name: str) -> list[str]:
        """Of a text file; none where there is none."""
        path = self._folder / name
        if not lies_in(self._folder, path):
            return []
        return read_plain(path).decode(errors="replace").strip().splitlines()

    def _log(self) -> list[str]:
        """The last lines of ``console.log``."""
        path = self._folder / "console.log"
        if not lies_in(self._folder, path):
            return []
        lines = read_tail(path, LOG_BYTES).decode(errors="replace").splitlines()
        return lines[1:] if path.stat().st_size > LOG_BYTES else lines


def _faults_of_evaluation(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What makes the last evaluation less than it seems."""
    for env, why in result.get("lost_envs", {}).items():
        yield {"count": 1, "what": f"env {env} of the last evaluation failed too often: {why}"}
    if cut := result.get("cut_episodes"):
        yield {"count": cut, "what": "episodes of the last evaluation had no end and were cut"}
    for problem in result.get("video_problems", ()):
        yield {"count": 1, "what": problem}


def _difference(now: Any, before: Any) -> float:
    is_both = isinstance(now, int | float) and isinstance(before, int | float)
    return max(0.0, now - before) if is_both else float(now or 0.0)


def _short(value: float | None, digits: int = DIGITS) -> float | None:
    """A number as exact as a picture can show."""
    return None if value is None else float(f"{value:.{digits}g}")
