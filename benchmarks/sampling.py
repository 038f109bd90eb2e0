"""Rows per second of a whole run with random actions, and of Sample Factory's sampler, in turns on
the same machine.

    python benchmarks/sampling.py --sample-factory DIR/bin/python  # about six minutes; writes
    benchmarks/results/sampling.json

Ours is the run that a user starts: two env workers with eight envs each on Ray, every row in a
chunk, encoded, acknowledged by a replay shard that journals it. One thing is changed: the agent
begins with a prefill of random actions that never ends. Theirs is described in
``benchmarks/peers/sample_factory_peer.py``: a policy that ignores what it sees, and trajectories
that are dropped. Both play Pong with the same images; beside that stands theirs with images that
are cheaper to make (``pong_area``). ``env_processes`` says whether each of our envs is a process of
its own, so that a hang costs one env; theirs never are. Our roles lower their priority and theirs
do not, so measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from context import context
from scale import roles, summary, wait

WORKERS = 2
ENVS = 8
TURNS = 3
WARM_S = 5.0
PREFILL = 1_000_000_000
AS_BY_DEFAULT = "--actors.chunk-rows 64 --actors.max-chunk-age-s 1 --actors.pull-interval-s 1"
"""The debug preset, which is taken for its small model, has small chunks too."""
PEERS = {"pong": ("pong", "pong_area"), "half_cheetah": ("half_cheetah",)}
CASES = {
    "pong": (
        "--env atari:pong --env.image-size 64 --env.grayscale False --env.sticky 0 "
        "--env.full-actions False"
    ),
    "half_cheetah": "--env mujoco:half-cheetah",
}


def ours(case: str, seconds: float, env_processes: bool) -> float:
    """Rows per second into replay."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        words = [
            "--preset",
            "debug",
            "--agent",
            "dreamerv3:ci",
            "--run-dir",
            str(folder),
            "--metrics-port",
            "0",
            *CASES[case].split(),
        ]
        words += [
            "--workers",
            str(WORKERS),
            "--envs-per-worker",
            str(ENVS),
            "--actors.supervise",
            str(env_processes),
        ]
        words += [
            "--env-steps",
            "1000000000",
            "--eval-episodes",
            "0",
            "--train-ratio",
            "0.001",
            "--inference",
            "central",
        ]
        words += ["--replay.capacity-steps", "100000", *AS_BY_DEFAULT.split()]
        run = subprocess.Popen(
            [sys.executable, __file__, "--launch", *words], stdout=subprocess.DEVNULL
        )
        try:
            wait(
                run,
                lambda: (
                    len(roles("WorkerRole")) >= WORKERS
                    and summary(folder).get("agent_steps", 0) > 2000
                ),
            )
            time.sleep(WARM_S)
            begin, began = fresh_steps(folder)
            time.sleep(seconds)
            end, ended = fresh_steps(folder)
            return (end - begin) / (ended - began)
        finally:
            run.terminate()
            run.wait(90)


def fresh_steps(folder: Path) -> tuple[int, float]:
    """Agent steps of a summary that was written this moment, and when."""
    path = folder / "summary.json"
    last = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == last:
        time.sleep(0.01)
    return summary(folder)["agent_steps"], path.stat().st_mtime


def launch_at_random(words: list[str]) -> int:
    """The launcher, with random actions until something was trained."""
    from worldloom_dist import launch
    from worldloom_dist.run import plan

    resolve = plan.resolve

    def resolve_at_random(config: Any) -> Any:
        """The plan of a run that begins with random actions."""
        whole = resolve(config)
        limits = dataclasses.replace(whole.limits, prefill_agent_steps=PREFILL)
        return dataclasses.replace(
            whole, limits=limits, spec=dataclasses.replace(whole.spec, random_prefill=True)
        )

    plan.resolve = resolve_at_random
    return launch.main(words)


def theirs(python: str, case: str, seconds: float) -> dict[str, Any]:
    """What the peer prints."""
    script = Path(__file__).resolve().parent / "peers" / "sample_factory_peer.py"
    command = [
        python,
        str(script),
        case,
        "--workers",
        str(WORKERS),
        "--envs",
        str(ENVS),
        "--seconds",
        str(seconds),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure in turns, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; default all")
    parser.add_argument(
        "--sample-factory",
        metavar="PYTHON",
        help="the Python of an environment that has it; without, only ours",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument(
        "--env-processes", action="store_true", help="each of our envs in a process of its own"
    )
    options = parser.parse_args()
    report: dict[str, Any] = {
        **context(),
        "workers": WORKERS,
        "envs_per_worker": ENVS,
        "env_processes": options.env_processes,
    }
    for case in options.cases or CASES:
        peers = PEERS[case] if options.sample_factory else ()
        rates: dict[str, list[float]] = {
            "ours": [],
            **{f"sample_factory_{peer}": [] for peer in peers},
        }
        for _ in range(options.turns):
            rates["ours"].append(round(ours(case, options.seconds, options.env_processes), 1))
            for peer in peers:
                found = theirs(options.sample_factory, peer, options.seconds)
                rates[f"sample_factory_{peer}"].append(found["rows_per_s"])
                report["versions"] = found["versions"]
        middle = {who: statistics.median(values) for who, values in rates.items()}
        ratios = {f"over_{who}": round(middle["ours"] / middle[who], 2) for who in list(rates)[1:]}
        report[case] = {"rows_per_s": middle, "turns": rates, **ratios}
        print(case, json.dumps(report[case], indent=2), flush=True)
    (Path(__file__).resolve().parent / "results" / "sampling.json").write_text(
        json.dumps(report, indent=2) + "\n"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--launch"]:
        sys.exit(launch_at_random(sys.argv[2:]))
    main()
