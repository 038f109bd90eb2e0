"""``submit --slurm``: from its command line to a script that Slurm has taken."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.files import write_text
from worldloom_dist.run.claim import choose_folder, run_name
from worldloom_dist.run.cli import parse
from worldloom_dist.run.slurm import SlurmJob, sbatch, sbatch_script, value_of
from worldloom_dist.seeds import split_words

__all__ = ["add_options", "check_kind", "submit_to_slurm"]

RAY_FLAGS = (
    *("--address", "--retries", "--foreground", "--connect-timeout", "--start-timeout"),
    *("--summary", "--follow", "--stop", "--no-wait"),
)
"""Flags of ``submit`` that speak of a Ray cluster which runs already."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a command line the flags of a :class:`SlurmJob`."""
    group = parser.add_argument_group(
        "Slurm", "Submit to Slurm by sbatch instead of to a Ray cluster that runs already."
    )
    group.add_argument("--slurm", action="store_true", help="write an sbatch script and submit it")
    group.add_argument("--dry-run", action="store_true", help="print the script instead")
    for flag, kind, text in (
        ("nodes", int, "nodes; several get one Ray over all of them (default: 1)"),
        ("cpus", int, "CPUs of each node (default: the partition's)"),
        ("gpus", int, "GPUs of each node (default: none)"),
        ("time", str, "limit of one start, as 30 or 1-12:00:00 (default: the partition's)"),
        ("partition", str, "partition (default: Slurm's)"),
        ("account", str, "account (default: Slurm's)"),
        ("warn-s", int, "seconds before the limit: checkpoint, requeue, go on (default: 90)"),
        ("max-requeues", int, "requeues after which the job ends (default: 1000)"),
    ):
        group.add_argument(f"--slurm.{flag}", type=kind, metavar="X", help=text)
    group.add_argument(
        "--slurm.symmetric",
        action="store_true",
        help="ray symmetric-run also on one node (default: a Ray of the run's own)",
    )
    for flag, text in (
        ("--slurm.setup", "a line that the script runs first, as 'module load cuda'; repeatable"),
        ("--sbatch-arg", "an option of sbatch, as --sbatch-arg=--qos=high; repeatable"),
    ):
        group.add_argument(flag, action="append", default=[], metavar="TEXT", help=text)


def _job_of(options: argparse.Namespace, name: str) -> SlurmJob:
    """The job that a command line asks for.

    Args:
        options: With the flags of :func:`add_options`, and ``python``.
        name: Of the job.

    Raises:
        ConfigurationError: With a line per mistake.
    """
    given = {
        name: value
        for name in (field.name for field in dataclasses.fields(SlurmJob))
        if (value := getattr(options, f"slurm.{name}", None)) not in (None, [])
    }
    return SlurmJob(
        **given,
        sbatch_args=tuple(options.sbatch_arg),
        name=name,
        python=sys.executable if options.python == "python" else options.python,
    )


def check_kind(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Refuse flags of the one kind of cluster beside those of the other."""
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    if options.slurm:
        wrong = given & set(RAY_FLAGS)
        if wrong:
            raise ConfigurationError(
                f"{', '.join(sorted(wrong))}: of a Ray cluster, and --slurm makes its own; leave "
                f"{'it' if len(wrong) == 1 else 'them'} out"
            )
        return
    wrong = {flag for flag in given if flag.startswith("--slurm.")}
    wrong |= given & {"--sbatch-arg", "--dry-run"}
    if wrong:
        raise ConfigurationError(f"{', '.join(sorted(wrong))}: add --slurm")


def submit_to_slurm(
    options: argparse.Namespace, flags: Sequence[str], write: Callable[[str], object]
) -> int:
    """Write the script of a run and submit it, or print it; returns the exit status.

    Args:
        options: With the flags of :func:`add_options`.
        flags: Of the launch, checked here.
        write: Takes what people are told.

    Raises:
        ConfigurationError: If a flag is wrong, there is no Slurm here, or it refuses the job.
        StateError: If Slurm does not answer.
    """
    rest, sweep = split_words(list(flags))
    config = parse([word for word in rest if word != "--debug"])
    if options.working_dir == "none" or not Path(options.working_dir).is_dir():
        raise ConfigurationError(
            f"working_dir: {options.working_dir} is not a folder; name the one that the job runs in"
        )
    home = Path(options.working_dir)
    if not sweep and (value_of(flags, "--run-dir") or value_of(flags, "--resume")):
        choose_folder(config, home / "runs")
    job = _job_of(options, options.job_id or run_name(config))
    text = sbatch_script(job, flags)
    if options.dry_run:
        sys.stdout.write(text)
        return 0
    runs = home / "runs"
    runs.mkdir(exist_ok=True)
    script = runs / f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}.sbatch"
    write_text(script, text)
    job_id = sbatch(script, home)
    write(
        f"job      {job_id}, by {script}\n"
        f"log      {runs / f'{job.name}-{job_id}.log'}\n"
        f"watch    squeue -j {job_id}\n"
        f"stop     scancel --batch --signal=TERM {job_id} (it checkpoints first)\n"
    )
    sys.stdout.write(f"{job_id}\n")
    return 0
