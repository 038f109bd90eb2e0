"""A run as a job of Slurm: the sbatch script, and handing it over.

On one node the launcher starts a Ray of its own; over several, ``ray symmetric-run`` starts one on
all of them and the launcher on the first. The batch system's warning before the time limit becomes
a checkpoint and a requeue (``slurm_job.sh`` beside this file, the part that is the same for every
run), and a node that fails a requeue too: each start goes on with the run in the same folder.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from worldloom.core.error_text import telling_line
from worldloom.core.exceptions import ConfigurationError, StateError
from worldloom.core.fields import NOT_NEGATIVE, Bounds, normalize

__all__ = ["SlurmJob", "sbatch", "sbatch_script", "value_of"]

NAME = re.compile(r"[\w.@%+,:/=-]+")
JOB_NAME = re.compile(r"\w[\w.-]{0,127}")
TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(?::\d\d){0,2}")
OWNED = {
    "--nodes": "--slurm.nodes",
    "-N": "--slurm.nodes",
    "--cpus-per-task": "--slurm.cpus",
    "-c": "--slurm.cpus",
    "--gpus-per-node": "--slurm.gpus",
    "--time": "--slurm.time",
    "-t": "--slurm.time",
    "--partition": "--slurm.partition",
    "-p": "--slurm.partition",
    "--account": "--slurm.account",
    "-A": "--slurm.account",
    "--job-name": "--job-id",
    "-J": "--job-id",
    "--signal": "--slurm.warn-s",
    "--requeue": "",
    "--no-requeue": "",
    "--ntasks": "",
    "-n": "",
    "--ntasks-per-node": "",
    "--open-mode": "",
    "--output": "",
    "-o": "",
    "--array": "",
    "-a": "",
}
"""Options of sbatch that the script sets itself -> the flag for it; empty where there is none."""
SBATCH_WITHIN_S = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """What is asked of Slurm.

    Attributes:
        nodes: Nodes of the job.
        symmetric: Start Ray by ``ray symmetric-run`` also on one node; over several nodes it always
            is. Then nodes are the job's own (``--exclusive``): at its end it stops every Ray of the
            user there.
        cpus: CPUs of each node; None takes the partition's default.
        gpus: GPUs of each node.
        time: Limit of one start, as Slurm writes it; None takes the partition's.
        partition, account: As Slurm knows them; None takes its defaults.
        warn_s: Seconds before the limit at which the run checkpoints and is requeued.
        max_requeues: After this many the job ends, where it would be requeued again.
        sbatch_args: Further options of sbatch, as ``--qos=high``.
        setup: Lines that the script runs first (``module load ...``).
        name: Of the job, and of its run folder.
        python: The interpreter, as it is called on the nodes.
    """

    nodes: int = 1
    symmetric: bool = False
    cpus: int | None = None
    gpus: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    warn_s: int = 90
    max_requeues: int = 1000
    sbatch_args: Sequence[str] = ()
    setup: Sequence[str] = ()
    name: str = "worldloom"
    python: str = "python"

    def __post_init__(self) -> None:
        """Refuse what Slurm would not take.

        Raises:
            ConfigurationError: With a line per mistake.
        """
        bounds = {
            **dict.fromkeys(("nodes", "cpus", "gpus"), Bounds(1, 100_000)),
            "warn_s": Bounds(1, 65_535),
            "max_requeues": NOT_NEGATIVE,
        }
        found = normalize(self, bounds, prefix="slurm.")
        if not found:
            found = [*self._text_problems(), *filter(None, map(_arg_problem, self.sbatch_args))]
        if found:
            raise ConfigurationError("\n".join(found))

    def _text_problems(self) -> list[str]:
        found = [
            f"slurm.{field} must be a name as Slurm knows it, got {value!r}"
            for field in ("partition", "account")
            if (value := getattr(self, field)) is not None and not NAME.fullmatch(value)
        ]
        if not JOB_NAME.fullmatch(self.name):
            found.append(
                f"job-id must be letters, digits, dots, dashes and underscores, got {self.name!r}"
            )
        if self.time is not None and not TIME.fullmatch(self.time):
            found.append(
                "slurm.time must be minutes, HH:MM:SS or DAYS-HH:MM:SS, as 30 or 1-12:00:00, "
                f"got {self.time!r}"
            )
        return found


def _arg_problem(arg: str) -> str:
    option = arg.partition("=")[0]
    option = option if option.startswith("--") else option[:2]
    if not re.match(r"--?[A-Za-z]", arg) or any(ord(char) < 32 for char in arg):
        return f"sbatch-arg must be one option of sbatch, as --qos=high, got {arg!r}"
    flag = OWNED.get(option.partition(" ")[0])
    if flag is None:
        return ""
    instead = f"use {flag}" if flag else "the script needs its own"
    return f"sbatch-arg cannot be {arg!r}: {instead}"


def sbatch_script(job: SlurmJob, flags: Sequence[str], runs: Path = Path("runs")) -> str:
    """The script of a run.

    Args:
        job: What is asked of Slurm.
        flags: Of the launch; a run folder that they name is used.
        runs: Where run folders and logs go, below the folder that the job is submitted from.
    """
    folder = value_of(flags, "--run-dir") or value_of(flags, "--resume")
    run_dir = f'"{runs}/{job.name}-$SLURM_JOB_ID"' if folder is None else shlex.quote(folder)
    words = shlex.join(flags)
    words += f" --run-dir {run_dir}" if folder is None else ""
    words += "" if value_of(flags, "--resume") else " --if-exists resume"
    is_symmetric = job.symmetric or job.nodes > 1
    asks = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus,
        "gpus-per-node": job.gpus,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "signal": f"B:USR1@{job.warn_s}",
        "open-mode": "append",
        "output": f"{runs}/{job.name}-%j.log",
    }
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={value}" for name, value in asks.items() if value is not None),
        "#SBATCH --requeue",
        *(["#SBATCH --exclusive"] if is_symmetric else []),
        *(f"#SBATCH {arg}" for arg in job.sbatch_args),
        "",
        *job.setup,
        f"PYTHON={shlex.quote(job.python)}",
        f"NODES={job.nodes}",
        f"SYMMETRIC={'yes' if is_symmetric else ''}",
        f"GPUS={job.gpus or ''}",
        f"MAX_REQUEUES={job.max_requeues}",
        f"RUNS={shlex.quote(str(runs))}",
        f"RUN_DIR={run_dir}",
        f"FLAGS=({words.strip()})",
    ]
    body = resources.files("worldloom_dist.run").joinpath("slurm_job.sh").read_text()
    return "\n".join(lines) + "\n" + body


def sbatch(script: Path, working_dir: Path) -> str:
    """Hand a script to Slurm; returns the id of the job.

    Args:
        script: Its file.
        working_dir: Where the job runs.

    Raises:
        ConfigurationError: If there is no Slurm here, or it refuses the job.
        StateError: If it does not answer.
    """
    command = ["sbatch", "--parsable", f"--chdir={working_dir.absolute()}", str(script.absolute())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SBATCH_WITHIN_S)
    except FileNotFoundError as error:
        raise ConfigurationError(
            "slurm: there is no sbatch on this machine; submit from a login node of the cluster, "
            "or print the script with --dry-run and take it there"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise StateError(
            f"slurm: sbatch did not answer within {SBATCH_WITHIN_S:.0f} s; look at sinfo"
        ) from error
    if done.returncode:
        why = telling_line(done.stderr) or f"exit status {done.returncode}"
        raise ConfigurationError(f"slurm: the job was refused ({why}); the script is {script}")
    return done.stdout.strip().partition(";")[0]


def value_of(words: Sequence[str], flag: str) -> str | None:
    """What follows a flag; None where it is not given."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            return value if equals else next(iter(words[place + 1 :]), None)
    return None
