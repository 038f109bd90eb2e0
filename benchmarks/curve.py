"""The learning curve of a finished run, from the rows in its journals: one line per training
episode, the evaluations, and a plot.

    python benchmarks/curve.py RUN_DIR NAME [--title "..."]  # writes benchmarks/results/NAME.jsonl
    and NAME.png

The first line of the file says where it comes from: agent, env, seed, command line and versions of
the run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

from worldloom.algorithms.registry import agent_spec
from worldloom.core.specs import EnvSpec
from worldloom.data.codec import decode_rows
from worldloom_dist.replay.journal import Journal
from worldloom_dist.replay.records import CHUNK, StoredChunk
from worldloom_dist.run.config import RunConfig

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).resolve().parent / "results"


def stored_chunks(folder: Path) -> list[StoredChunk]:
    """Every chunk of a run in the order of insertion (by wall time over shards)."""
    found = []
    for directory in sorted((folder / "replay").glob("shard-*")):
        journal = Journal(directory)
        found += [
            StoredChunk.unpack(record.payload) for record in journal.read() if record.kind == CHUNK
        ]
        journal.close()
    return sorted(found, key=lambda stored: stored.inserted_s)


def episodes(folder: Path, config: RunConfig, env: EnvSpec) -> Iterator[dict[str, Any]]:
    """One record per training episode: env steps of the run when it ended, return, length, what
    acted, and how it ended.

    ``cut`` episodes were abandoned when a checkpoint reset the envs (``--runtime local``) or their
    env failed.
    """
    open_episodes: dict[Any, list[float]] = {}
    agent_steps = 0
    columns = env.columns(agent_spec(config.agent_config(), env).extras)
    for stored in stored_chunks(folder):
        rows = decode_rows(stored.chunk.payload, columns)
        agent_steps += stored.chunk.num_agent_steps
        for first, reward, last in zip(
            rows["is_first"], rows["reward"], rows["terminated"] | rows["truncated"], strict=True
        ):
            rewards = open_episodes.setdefault(stored.chunk.stream, [])
            if not first:
                rewards.append(float(reward))
            if rewards and (first or last):
                record = {
                    "return": sum(rewards),
                    "length": len(rewards),
                    "updates_of_policy": stored.chunk.version.update,
                }
                yield {
                    "env_steps": agent_steps * env.action_repeat,
                    **record,
                    "ended": "last" if last else "cut",
                }
                rewards.clear()


def main() -> None:
    """Read, write, plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("name")
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    config = json.loads((options.run_dir / "config.json").read_text())
    run = RunConfig.from_dict(config["run"])
    env = EnvSpec.from_dict(config["env"])
    lines = [
        json.loads(line) for line in (options.run_dir / "metrics.jsonl").read_text().splitlines()
    ]
    evaluations = [
        {"kind": "eval", **{k: e[k] for k in ("env_steps", "returns")}}
        for e in lines
        if e["kind"] == "eval"
    ]
    trained = [{"kind": "episode", **episode} for episode in episodes(options.run_dir, run, env)]
    command = (
        (options.run_dir / "command.txt").read_text().strip().splitlines()[0].split("  ", 1)[1]
    )
    head = {"kind": "run", "agent": run.agent, "env": env.name, "seed": run.seed}
    head |= {
        "command": command.partition(" --run-dir")[0],
        "versions": (options.run_dir / "versions.txt").read_text().split("\n"),
    }
    with (RESULTS / f"{options.name}.jsonl").open("w") as file:
        for record in (head, *trained, *evaluations):
            file.write(json.dumps(record) + "\n")
    figure, axes = plt.subplots(figsize=(7, 4))
    acted = [e for e in trained if e["updates_of_policy"]]
    axes.plot(
        [e["env_steps"] for e in trained],
        [e["return"] for e in trained],
        ".",
        color="0.7",
        label="random episodes",
    )
    axes.plot(
        [e["env_steps"] for e in acted],
        [e["return"] for e in acted],
        ".-",
        color="C0",
        label="training episodes",
    )
    for e in evaluations:
        axes.plot([e["env_steps"]] * len(e["returns"]), e["returns"], "x", color="C3")
    axes.plot([], [], "x", color="C3", label="evaluation episodes")
    axes.set(xlabel="env steps", ylabel="return")
    axes.set_title(
        options.title or f"{head['agent']} on {env.name}, seed {head['seed']}", fontsize=10
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / f"{options.name}.png", dpi=110)
    print(
        f"{len(trained)} training episodes, {len(evaluations)} evaluations -> "
        f"{RESULTS / options.name}.jsonl, .png"
    )


if __name__ == "__main__":
    main()
