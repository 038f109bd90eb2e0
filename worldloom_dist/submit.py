"""``python -m worldloom_dist.submit --address http://HEAD:8265 -- LAUNCH FLAGS``: train on a Ray
cluster as one of its jobs.

The working directory is uploaded (``.gitignore`` is honoured), or ``--working-dir none`` uses what
the cluster's image holds. The log comes here as it is written; at the end the run's
``summary.json`` and its exit status come back. What goes to the cluster is the flags and the files,
and the git commit that they are at; nothing of this machine's environment.

``--slurm`` writes an sbatch script and hands it to Slurm instead
(:mod:`worldloom_dist.run.slurm_command`).
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError, StateError
from worldloom.core.fields import NOT_NEGATIVE, checked
from worldloom.core.json_text import to_json
from worldloom.core.program import called, interruptible
from worldloom_dist.run.cli import parse
from worldloom_dist.run.slurm_command import add_options, check_kind, submit_to_slurm
from worldloom_dist.run.versions import COMMIT_VARIABLE, git_commit
from worldloom_dist.runtime.jobs import (
    LOOK_EVERY_S,
    OVER,
    JobResult,
    check_job_id,
    connect,
    follow_job,
    job_result,
    job_state,
    make_room,
    note,
    reason,
    send_job,
)

__all__ = ["JobResult", "follow", "main", "stop", "submit"]

EXCLUDES = (
    ".git",
    ".venv",
    "runs",
    "outputs",
    "benchmarks/results",
    "tests",
    "**/__pycache__",
    "*.egg-info",
)
STOP_WAIT_S = 120
"""How long a job that is stopped may take for its checkpoint before Ray kills it."""


def submit(
    flags: Sequence[str],
    *,
    address: str = "http://127.0.0.1:8265",
    working_dir: Path | None = Path("."),
    job_id: str | None = None,
    wait: bool = True,
    retries: int = 0,
    start_timeout_s: float = 600.0,
    python: str = "python",
    attach: bool = False,
    connect_timeout_s: float = 0.0,
    write: Callable[[str], object] | None = None,
) -> JobResult:
    """Run ``worldloom_dist.launch`` as a job of a Ray cluster.

    Args:
        flags: Of the launch, for example ``["--workers", "64"]``; checked here before anything is
            sent.
        address: Of the cluster's job interface (the dashboard).
        working_dir: Uploaded to every node and put first on the path of modules; None uses what is
            installed there.
        job_id: Names the job and its run folder; a new one by default. A job that is submitted
            again under the id of one that is over takes its place and goes on with its run.
        wait: Follow the log and return at the end; otherwise return once the job is accepted.
        retries: How often a job that failed (exit status 1, or its driver was lost) is submitted
            again; it goes on from its last checkpoint. Wrong input (exit status 2) is never
            retried.
        start_timeout_s: A job that waits longer for its resources is withdrawn.
        python: The interpreter on the cluster.
        attach: A job of this id that runs already is followed; otherwise that is an error.
        connect_timeout_s: How long to wait for a head that is just being started.
        write: Takes the log as it arrives; by default nothing is written.

    Raises:
        ConfigurationError: If a flag is wrong, the cluster cannot be reached, or it refuses the
            token.
        StateError: If the job did not start in time, or the cluster went away while it was
            followed.
    """
    if job_id is not None:
        check_job_id(job_id)
    # that folder is on the cluster, where the launch looks at it
    if not any(word.startswith("--resume") for word in flags):
        parse([word for word in flags if word != "--debug"])
    if working_dir is not None and not working_dir.is_dir():
        raise ConfigurationError(
            f"working_dir: {working_dir} is not a folder; name one, "
            "or none to use what the cluster has"
        )
    client = connect(address, connect_timeout_s)
    if attach and job_id is not None and job_state(client, job_id) in ("PENDING", "RUNNING"):
        return follow_job(client, job_id, start_timeout_s, write)
    job_id = job_id or f"worldloom-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    result = _attempt(client, flags, job_id, working_dir, python, wait, start_timeout_s, write)
    while wait and retries > 0 and result.status == "FAILED" and result.exit_status != 2:
        retries -= 1
        note(
            write,
            f"job {job_id} failed ({reason(result.message)}); submitting it again, "
            f"{retries} retries left\n",
        )
        result = _attempt(client, flags, job_id, working_dir, python, wait, start_timeout_s, write)
    return result


def follow(
    job_id: str,
    *,
    address: str = "http://127.0.0.1:8265",
    start_timeout_s: float = 600.0,
    write: Callable[[str], object] | None = None,
) -> JobResult:
    """Follow a job to its end.

    Raises:
        ConfigurationError, StateError: As :func:`submit`.
    """
    check_job_id(job_id)
    client = connect(address)
    if job_state(client, job_id) is None:
        raise ConfigurationError(
            f"job {job_id!r}: the cluster at {address} knows no such job; submit it first"
        )
    return follow_job(client, job_id, start_timeout_s, write)


def stop(job_id: str, *, address: str = "http://127.0.0.1:8265", wait: bool = True) -> JobResult:
    """Ask a job to checkpoint and leave.

    Raises:
        ConfigurationError: If there is no such job, or the cluster cannot be reached.
        StateError: As :func:`submit`.
    """
    check_job_id(job_id)
    client = connect(address)
    try:
        client.stop_job(job_id)
    except RuntimeError as error:
        raise ConfigurationError(f"job {job_id!r}: {reason(error)}") from error
    deadline = time.monotonic() + STOP_WAIT_S + 30.0
    while wait and client.get_job_status(job_id).value not in OVER and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    return job_result(client, job_id)


def _attempt(
    client: Any,
    flags: Sequence[str],
    job_id: str,
    working_dir: Path | None,
    python: str,
    wait: bool,
    start_timeout_s: float,
    write: Callable[[str], object] | None,
) -> JobResult:
    make_room(client, job_id)
    environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
    if working_dir is not None:
        environment |= {"working_dir": str(working_dir), "excludes": list(EXCLUDES)}
        if commit := git_commit(working_dir):  # the repository itself stays here
            environment["env_vars"][COMMIT_VARIABLE] = commit
    command = f"{shlex.quote(python)} -m worldloom_dist.job --job-id {shlex.quote(job_id)}"
    entrypoint = f"exec {command} -- {shlex.join(flags)}"
    send_job(client, entrypoint=entrypoint, submission_id=job_id, runtime_env=environment)
    submit = called("submit")
    note(write, f"job      {job_id} (stop it with: {submit} --stop {job_id})\n")
    return (
        follow_job(client, job_id, start_timeout_s, write) if wait else job_result(client, job_id)
    )


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the launch's exit status."""
    words = list(sys.argv[1:] if words is None else words)
    cut = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:cut])
    flags = words[cut + 1 :]
    try:
        check_kind(options, words[:cut])
        if options.slurm:
            return submit_to_slurm(options, flags, _to_terminal)
        result = _act_in_foreground(options, flags) if options.foreground else _act(options, flags)
    except ConfigurationError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        return 2
    except StateError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except (OSError, RuntimeError) as error:  # the latter where it answers that it is at fault
        sys.stderr.write(
            f"error: the job interface went away ({reason(error)}); the job may go on without us\n"
        )
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(
            "left; the job goes on (follow it again with --follow, end it with --stop)\n"
        )
        return 1
    if result.summary is not None:
        sys.stdout.write(to_json(result.summary, indent=2) + "\n")
    sys.stderr.write(
        f"job {result.job_id}: {result.status}; "
        f"run folder on the cluster: {result.run_dir or 'none'}\n"
    )
    if options.summary is not None and result.summary is not None:
        try:
            options.summary.write_text(to_json(result.summary, indent=2) + "\n")
        except OSError as error:
            sys.stderr.write(
                f"error: --summary: {options.summary} cannot be written ({error.strerror}); "
                "the summary is above\n"
            )
            return result.exit_status or 1
    return result.exit_status or 0


def _act_in_foreground(options: argparse.Namespace, flags: Sequence[str]) -> JobResult:
    """The job lives as long as this process: what ends the one (a container's stop) checkpoints and
    ends the other.
    """
    if options.job_id is None:
        raise ConfigurationError(
            "--foreground needs --job-id, so that the process that comes next finds the job again"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _act(options, flags)
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _to_terminal(f"stopping job {options.job_id}; it checkpoints first\n")
        return stop(options.job_id, address=options.address)


def _act(options: argparse.Namespace, flags: Sequence[str]) -> JobResult:
    checked("retries", options.retries, int, NOT_NEGATIVE)
    checked("connect_timeout", options.connect_timeout, float, NOT_NEGATIVE)
    checked("start_timeout", options.start_timeout, float, NOT_NEGATIVE)
    if options.summary is not None and not options.summary.absolute().parent.is_dir():
        raise ConfigurationError(
            f"summary: {options.summary.absolute().parent} is no folder; "
            "name a file in one that exists"
        )
    if options.summary is not None and options.summary.is_dir():
        raise ConfigurationError(f"summary: {options.summary} is a folder; name a file in it")
    common: dict[str, Any] = {"address": options.address}
    if options.stop:
        return stop(options.stop, wait=not options.no_wait, **common)
    common["write"] = _to_terminal
    if options.follow:
        return follow(options.follow, start_timeout_s=options.start_timeout, **common)
    return submit(
        flags,
        working_dir=None if options.working_dir == "none" else Path(options.working_dir),
        job_id=options.job_id,
        wait=not options.no_wait,
        retries=options.retries,
        start_timeout_s=options.start_timeout,
        python=options.python,
        attach=options.foreground,
        connect_timeout_s=options.connect_timeout,
        **common,
    )


def _to_terminal(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("submit"),
        description="Train as a job of a Ray cluster: the log goes to stderr, "
        "the run's summary to stdout. With --slurm, as a job of Slurm: its id goes to stdout.",
        epilog="After --, the flags of worldloom_dist.launch. With token authentication, the token "
        "comes from the file that RAY_AUTH_TOKEN_PATH names; never from the command line.",
    )
    parser.add_argument(
        "--address",
        default="http://127.0.0.1:8265",
        help="the job interface (default: http://127.0.0.1:8265)",
    )
    parser.add_argument(
        "--working-dir",
        default=".",
        help="uploaded to every node; none = use what is installed (default: .)",
    )
    parser.add_argument("--job-id", help="names the job and its run folder (default: a new one)")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        help="submit a job that failed again so often; it resumes (default: 0)",
    )
    parser.add_argument(
        "--foreground",
        action="store_true",
        help="follow a running job of this id; stop it with this process",
    )
    parser.add_argument("--no-wait", action="store_true", help="return once the job is accepted")
    parser.add_argument(
        "--connect-timeout",
        type=float,
        default=0.0,
        help="seconds that the head may take to answer (default: 0)",
    )
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=600.0,
        help="seconds that it may wait to start (default: 600)",
    )
    parser.add_argument(
        "--python", default="python", help="the interpreter on the cluster (default: python)"
    )
    parser.add_argument("--summary", type=Path, help="write the run's summary here, too")
    parser.add_argument("--follow", metavar="JOB", help="follow a job that was submitted earlier")
    parser.add_argument("--stop", metavar="JOB", help="ask a job to checkpoint and leave")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
