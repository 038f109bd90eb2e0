"""What ``r2dreamer`` saves of DreamerV3's update, and whether it learns.

    python benchmarks/r2dreamer.py speed                 # updates in turn with DreamerV3's
    python benchmarks/r2dreamer.py speed --cases "img size1m" --repeats 9
    python benchmarks/r2dreamer.py learn                 # CartPole and the pixel toy, seeds 0-2
    python benchmarks/r2dreamer.py learn --tasks toy:pixel --seeds 1

Each writes ``benchmarks/results/r2dreamer_NAME.json``; ``learn`` also the curves,
``r2dreamer_curves.png``. ``speed`` has one thread and the batches of ``benchmarks/dreamerv3.py``;
the two agents take turns, update by update, so that other work on the machine disturbs both.
``parts`` is what stands in place of what, measured alone: forward and backward of DreamerV3's
decoder with its loss, and of the projector with its own. With ``--tasks`` or ``--seeds``, ``learn``
keeps the other runs that the file has; ``--jobs 2`` makes two runs at a time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dreamerv3
import torch
from context import context
from learning import train_all, trained, write

from worldloom.algorithms.dreamerv3.agent import DreamerAgent
from worldloom.algorithms.dreamerv3.context import window_batch
from worldloom.algorithms.registry import make_agent, make_agent_config

RESULTS = Path(__file__).resolve().parent / "results"
AGENTS = ("dreamerv3", "r2dreamer")
CASES = ("vec size1m", "img size1m")
SHORT = "--preset quick --runtime local --learner.threads 1 --learner.report-every-steps 0"
TASKS = {
    "gym:CartPole-v1": "--env-steps 4000",
    "toy:pixel": (
        "--agent.batch-length 8 --agent.lr 1e-3 --agent.entropy-scale 0.03 --train-ratio 32 "
        "--env-steps 4000"
    ),
}
"""Env -> settings, those of DreamerV3's runs in ``docs/dreamerv3.md``; CartPole takes longer."""
SEEDS = (0, 1, 2)
EVALUATIONS = 4


def in_turn(
    works: dict[str, Callable[[], object]], repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Wall and CPU milliseconds of each work, one call of every one per round."""
    times: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            wall, cpu = dreamerv3.timed(work, 1)
            times[name]["wall"] += wall
            times[name]["cpu"] += cpu
    return times


def representation(agent: DreamerAgent, batch: Any) -> Callable[[], object]:
    """Forward and backward of what the representation's losses read beside the latents."""
    model = agent.all_networks.model
    rows = window_batch(batch, model, agent.config.replay_context)
    with torch.no_grad():
        tokens = model.tokens(rows.obs)
        draws = agent.draw(*rows.reward.shape).posterior
        posterior = model.observe(model.weights(), rows, draws, tokens)
    leaves = [posterior.deter.detach(), posterior.stoch.detach()]
    deter, stoch = (leaf.requires_grad_() for leaf in leaves)
    latents = posterior._replace(deter=deter, stoch=stoch)
    own = model.dec if hasattr(model, "dec") else model.projector
    assert isinstance(own, torch.nn.Module)
    wanted = [deter, stoch, *own.parameters()]

    def work() -> object:
        losses = model.representation_losses(rows, tokens, latents)
        total = torch.stack([loss.mean() for loss in losses.values()]).sum()
        return torch.autograd.grad(total, wanted)

    return work


def speed_case(kind: str, size: str, repeats: int) -> dict[str, Any]:
    """One preset's update beside DreamerV3's, and the decoder beside the projector."""
    updates: dict[str, Callable[[], object]] = {}
    parts: dict[str, Callable[[], object]] = {}
    for name in AGENTS:
        env = dreamerv3.ENVS[kind]
        agent = make_agent(make_agent_config(f"{name}:{size}", {"precision": "float32"}), env)
        assert isinstance(agent, DreamerAgent)
        batch = dreamerv3.random_batch(agent, env)
        updates[name] = lambda agent=agent, batch=batch: agent.train_step(batch)
        parts[name] = representation(agent, batch)
    times = in_turn(updates, repeats)
    alone = in_turn(parts, repeats)
    pairs = {
        clock: statistics.median(
            ours / theirs
            for theirs, ours in zip(*(times[name][clock] for name in AGENTS), strict=True)
        )
        for clock in ("wall", "cpu")
    }
    cpu = {name: statistics.median(alone[name]["cpu"]) for name in AGENTS}
    whole = statistics.median(times["dreamerv3"]["cpu"])
    return {
        "update": {
            name: {f"{clock}_ms": dreamerv3.spread(values) for clock, values in found.items()}
            for name, found in times.items()
        },
        "wall_of_dreamerv3": round(pairs["wall"], 3),
        "cpu_of_dreamerv3": round(pairs["cpu"], 3),
        "parts": {
            "decoder_cpu_ms": round(cpu["dreamerv3"], 2),
            "projector_cpu_ms": round(cpu["r2dreamer"], 2),
            "decoder_share_of_update": round(cpu["dreamerv3"] / whole, 3),
            "projector_share_of_that_update": round(cpu["r2dreamer"] / whole, 3),
        },
    }


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """All cases, on one thread."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for case in options.cases:
        kind, size = case.split()
        row = found[case] = speed_case(kind, size, options.repeats)
        parts = row["parts"]
        theirs, ours = (row["update"][name]["cpu_ms"]["median"] for name in AGENTS)
        print(
            f"{case}: update {ours:.0f} ms CPU, DreamerV3's {theirs:.0f}: "
            f"{row['cpu_of_dreamerv3']:.2f} x (wall {row['wall_of_dreamerv3']:.2f} x); the decoder "
            f"takes {parts['decoder_cpu_ms']:.0f} ms, {parts['decoder_share_of_update']:.0%} of "
            f"DreamerV3's update, the projector {parts['projector_cpu_ms']:.1f} ms",
            flush=True,
        )
    return {"threads": 1, "repeats": options.repeats, "cases": found}


def train(task: str, seed: int) -> dict[str, Any]:
    """Train one seed through the command line; its evaluations and how long it took."""
    words = f"{SHORT} --env {task} --agent r2dreamer:ci {TASKS[task]} --seed {seed}".split()
    every = int(words[words.index("--env-steps") + 1]) // EVALUATIONS
    words += ["--eval-every", str(every), "--eval-episodes", "20"]
    found = trained(f"{task} seed {seed}", words)
    return {"task": task, "seed": seed, "words": " ".join(words), **found}


def learn(options: argparse.Namespace) -> dict[str, Any]:
    """All tasks and seeds, and their curves; written after every run."""

    def one(task: str, seed: int) -> dict[str, Any]:
        return train(task, seed)

    return train_all(one, RESULTS / "r2dreamer_learn.json", "r2dreamer:ci", options, TASKS, SEEDS)


def main() -> None:
    """Read the line, measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("speed")
    one.add_argument("--cases", nargs="+", default=list(CASES), help='as "img size1m"')
    one.add_argument("--repeats", type=int, default=7)
    one.set_defaults(measure=speed)
    one = commands.add_parser("learn")
    one.add_argument("--tasks", nargs="+", choices=list(TASKS))
    one.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2")
    one.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    one.set_defaults(measure=learn)
    options = parser.parse_args()
    options.before = context()
    result = {**options.before, **options.measure(options)}
    write(RESULTS / f"r2dreamer_{options.command}.json", result)


if __name__ == "__main__":
    main()
