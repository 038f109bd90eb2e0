"""What a finished run has to show, read from its folder: its training episodes, from the rows in
its journals, its evaluations, and where it was made.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from worldloom.algorithms.registry import agent_spec
from worldloom.core.cpu import cpu_name
from worldloom.core.exceptions import CheckpointError
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import decode_rows
from worldloom_dist.replay.history import shard_folders
from worldloom_dist.replay.journal import JournalDamage, read_journal
from worldloom_dist.replay.records import CHUNK, StoredChunk
from worldloom_dist.run.cli import read_config
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.machine import learner_has_gpu
from worldloom_dist.run.view import read_records

__all__ = ["run_records", "training_episodes"]


def run_records(folder: Path) -> list[dict[str, Any]]:
    """One record of the run itself (``kind`` is ``run``), then one per training episode and one
    per evaluation, each in the order of env steps.

    Args:
        folder: Of a run.

    Raises:
        CheckpointError: If its rows are not all there any more.
        ConfigurationError: If the folder holds no run.
    """
    config = read_config(folder)
    whole = RunFolder(folder)
    env = whole.env_spec()
    assert env is not None  # a run writes it with its config
    columns = env.columns(agent_spec(config.agent_config(), env).extras)
    found = [_head(whole, config, env.name)]
    for episode in training_episodes(folder, columns, env.action_repeat):
        found.append({"kind": "episode", **episode})
    for record in read_records(folder / "metrics.jsonl", "eval"):
        found.append({"kind": "eval", **{k: record[k] for k in ("env_steps", "returns")}})
    return found


def _head(whole: RunFolder, config: RunConfig, env: str) -> dict[str, Any]:
    summary = whole.read_json("summary.json")
    commands = (whole.path / "command.txt").read_text("utf-8", "replace").strip().splitlines()
    return {
        "kind": "run",
        "agent": config.agent,
        "env": env,
        "seed": config.seed,
        "precision": _precision(config),
        "status": summary.get("status", "starting"),
        "env_steps": summary.get("env_steps", 0),
        "hours": round(summary.get("wall_time_s", 0.0) / 3600, 3),
        "sittings": len(commands),
        "command": commands[0].split("  ", 1)[1].partition(" --run-dir")[0],
        "machine": {"cpu": cpu_name(), "platform": platform.platform()},
        "versions": (whole.path / "versions.txt").read_text("utf-8").split("\n"),
    }


def _precision(config: RunConfig) -> str:
    """In which the learner makes its products."""
    said: str = getattr(config.agent_config(), "precision", "float32")
    if said not in ("default", "auto"):
        return said
    has_gpu = learner_has_gpu(config.learner.device, is_local=config.runtime == "local")
    return "bfloat16" if has_gpu else "float32"


def training_episodes(
    folder: Path, columns: dict[str, ArraySpec], action_repeat: int
) -> Iterator[dict[str, Any]]:
    """One record per training episode: env steps of the run when it ended, return, length, the
    updates of the policy that acted last, and how it ended.

    ``cut`` episodes were abandoned when a checkpoint reset the envs (``--runtime local``) or their
    env failed.

    Args:
        folder: Of the run.
        columns: What every row has.
        action_repeat: Env steps per decision.

    Raises:
        CheckpointError: If rows were evicted, so that episodes would be missing.
    """
    open_episodes: dict[Any, list[float]] = {}
    agent_steps = 0
    for stored in _stored_chunks(folder):
        rows = decode_rows(stored.chunk.payload, columns)
        agent_steps += stored.chunk.num_agent_steps
        for first, reward, last in zip(
            rows["is_first"], rows["reward"], rows["terminated"] | rows["truncated"], strict=True
        ):
            rewards = open_episodes.setdefault(stored.chunk.stream, [])
            if not first:
                rewards.append(float(reward))
            if rewards and (first or last):
                yield {
                    "env_steps": agent_steps * action_repeat,
                    "return": sum(rewards),
                    "length": len(rewards),
                    "updates_of_policy": stored.chunk.version.update,
                    "ended": "last" if last else "cut",
                }
                rewards.clear()


def _stored_chunks(folder: Path) -> list[StoredChunk]:
    """Every chunk of a run in the order of insertion (by wall time over shards)."""
    found: list[tuple[float, StoredChunk]] = []
    for directory in shard_folders(folder / "replay"):
        chunks = [
            StoredChunk.unpack(record.payload)
            for record in read_journal(directory, JournalDamage())
            if record.kind == CHUNK
        ]
        if chunks and min(chunk.first_row for chunk in chunks) > 0:
            raise CheckpointError(
                f"{directory}: its first rows were evicted, so the curve would lack episodes; "
                "train with --replay.capacity-steps of at least the rows of the run"
            )
        # a clock that is set back does not change the order within a shard
        times = itertools.accumulate((chunk.inserted_s for chunk in chunks), max)
        found += zip(times, chunks, strict=True)
    return [chunk for _, chunk in sorted(found, key=itemgetter(0))]
