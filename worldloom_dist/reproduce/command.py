"""The command line of ``worldloom reproduce``. Exit status as of ``worldloom train``."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    MissingDependencyError,
    WorldLoomError,
)
from worldloom.core.program import called, interruptible
from worldloom_dist.plot.style import check_drawing
from worldloom_dist.reproduce.outcome import Outcome
from worldloom_dist.reproduce.peers import Peer, find_peer
from worldloom_dist.reproduce.targets import MACHINE, TARGETS, Target, find_target, flags
from worldloom_dist.run.signals import EXIT_AGAIN, stop_on_signals
from worldloom_dist.run.text_table import aligned
from worldloom_dist.seeds import parse_seeds, run_seeds

__all__ = ["main"]

HEADS = ("name", "env steps", "agent", "hours/seed", "compared with")
SMOKE = "this was a smoke run: it shows that the path works, and says nothing of the result"


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(words)
    try:
        if options.task is None:
            _check_alone(options)
            sys.stdout.write("\n".join(_listed()) + "\n")
            return 0
        return _reproduce(options)
    except (ConfigurationError, MissingDependencyError) as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        return 2
    except WorldLoomError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _reproduce(options: argparse.Namespace) -> int:
    target = find_target(options.task)
    if options.smoke and options.env_steps is not None:
        raise ConfigurationError("--env-steps: a smoke run has an end of its own; leave one out")
    if options.smoke:
        target = target.smaller()
    if options.env_steps is not None:
        target = target.ending_at(options.env_steps)
    if options.precision is not None:
        chosen = {**target.settings, "agent.precision": options.precision}
        target = dataclasses.replace(target, settings=chosen)
    seeds = parse_seeds(options.seeds)
    root = _root(options)
    outcome = Outcome(target, root, is_smoke=options.smoke)
    check_drawing(outcome.picture, needs_folder=False)
    peer = _peer(options, target)
    words = [*flags(target.settings), "--run-dir", str(outcome.run_dir)]
    _check_same(outcome, seeds)
    _say_what(target, seeds, outcome)
    given = {"seeds": options.seeds, "parallel": str(options.parallel)}
    status = run_seeds([*words, "--if-exists", "resume", "--metrics-port", "0"], given)
    has_ended = status == 0 and outcome.is_complete(seeds)
    if peer is not None and has_ended:
        has_ended, status = _run_peer(peer, outcome, seeds)
    for line in outcome.write():
        sys.stdout.write(line + "\n")
    if not has_ended and status in (0, EXIT_AGAIN):
        sys.stdout.write("not at its end: the same command goes on\n")
    if options.smoke and has_ended:
        sys.stdout.write(SMOKE + "\n")
    return status


def _run_peer(peer: Peer, outcome: Outcome, seeds: Sequence[int]) -> tuple[bool, int]:
    """The authors' code for every seed in turn; returns whether all are complete, and the exit
    status.
    """
    with stop_on_signals() as stop:
        for seed in seeds:
            folder = outcome.peer_folder(seed)
            sys.stdout.write(f"seed {seed}, the authors' code: {folder}\n")
            sys.stdout.flush()
            try:
                if not peer.run(seed, folder, stop):
                    return False, EXIT_AGAIN if stop.asks_again else 0
            except subprocess.CalledProcessError as error:
                raise CheckpointError(
                    f"the authors' code ended with exit status {error.returncode}; "
                    f"{folder / 'log.txt'} has what it said"
                ) from error
    return True, 0


def _peer(options: argparse.Namespace, target: Target) -> Peer | None:
    if options.peer is None:
        if options.peer_python is not None:
            raise ConfigurationError("--peer-python is for --peer: name the authors' checkout, too")
        return None
    return find_peer(target, options.peer, options.peer_python)


def _root(options: argparse.Namespace) -> Path:
    root: Path = options.output
    return root / "smoke" if options.smoke else root


def _check_same(outcome: Outcome, seeds: Sequence[int]) -> None:
    """Refuse a folder that cannot be written, and to go on with runs of other settings, another end
    among them: it was fixed before.
    """
    for seed in seeds:
        if changes := outcome.changes(seed):
            raise ConfigurationError(
                f"--output: {outcome.folder(seed)} holds a run of other settings "
                f"({', '.join(changes)}); name another folder"
            )


def _check_alone(options: argparse.Namespace) -> None:
    given = (options.peer, options.peer_python, options.env_steps, options.precision)
    if options.smoke or any(value is not None for value in given):
        raise ConfigurationError(
            f"TASK: name a published result; {called('reproduce')} alone lists them"
        )


def _say_what(target: Target, seeds: Sequence[int], outcome: Outcome) -> None:
    expected = _hours(target)
    command = shlex.join(["worldloom", "train", *flags(target.settings)])
    lines = [
        f"{target.name}: seeds {', '.join(map(str, seeds))}, {target.env_steps:,} env steps each",
        f"expected {expected} per seed ({MACHINE})" if not outcome.is_smoke else "a smoke run",
        f"settings {command}",
    ]
    if target.differs:
        lines.append(f"differs  {target.differs}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _listed() -> list[str]:
    lines: list[Sequence[str]] = [HEADS]
    for target in TARGETS.values():
        published = target.curve()
        against = published.label if published else "no published numbers"
        if target.goal is not None:
            against = f"solved at {target.goal:.0f}"
        agent = str(target.settings["agent"])
        lines.append((target.name, f"{target.env_steps:,}", agent, _hours(target), against))
    return [
        *aligned(lines, right=("env steps", "hours/seed")),
        "",
        f"hours: on {MACHINE}; --smoke runs the same path in minutes",
    ]


def _hours(target: Target) -> str:
    return "needs a GPU" if target.hours is None else f"{target.hours:g} h"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("reproduce"),
        description="Run a published result by name, with its settings and an end that is fixed "
        "before, and put it beside the published numbers. The same command goes on where it was "
        "stopped. Without a name: the list of names.",
    )
    parser.add_argument(
        "task", nargs="?", metavar="TASK", help="name of a published result, as tdmpc2/cup-catch"
    )
    parser.add_argument(
        "--seeds", default="1", help="a run for each, as 1-3 or 1,2,7 (default: %(default)s)"
    )
    parser.add_argument(
        "--parallel", type=int, default=1, metavar="N", help="runs at once (default: %(default)s)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="the same path in minutes; proves nothing but the path"
    )
    parser.add_argument(
        "--env-steps",
        type=int,
        metavar="N",
        help="another end, fixed before as well (default: that of the name)",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "auto"],
        help="of matrix products; auto measures which is faster here (default: the agent's own)",
    )
    parser.add_argument(
        "--peer",
        type=Path,
        metavar="CHECKOUT",
        help="also run the authors' code, from a checkout of their repository, with one thread",
    )
    parser.add_argument(
        "--peer-python",
        type=Path,
        metavar="PYTHON",
        help="of an environment with the authors' packages (default: this one)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/reproduce"),
        metavar="FOLDER",
        help="where runs and results go (default: %(default)s)",
    )
    return parser
