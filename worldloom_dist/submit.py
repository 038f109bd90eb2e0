"""``python -m worldloom_dist.submit --address http://HEAD:8265 -- LAUNCH FLAGS``: train on a Ray cluster as one of its jobs.

The working directory is uploaded (``.gitignore`` is honoured), or ``--working-dir none`` uses what the cluster's image holds. The
log comes here as it is written; at the end the run's ``summary.json`` and its exit status come back. What goes to the cluster is
the flags and the files, nothing of this machine's environment.

Nothing is unpickled: Ray's job interface is HTTP with JSON, and with token authentication on, each request carries the token of
``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError, StateError
from worldloom_dist.cli import parse
from worldloom_dist.job import SUMMARY_MARK
from worldloom_dist.runtime.cluster import choose_auth_mode

__all__ = ["JobResult", "follow", "main", "stop", "submit"]

EXCLUDES = (".git", ".venv", "runs", "outputs", "benchmarks/results", "tests", "**/__pycache__", "*.egg-info")
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
LOOK_EVERY_S = 1.0
STOP_WAIT_S = 120
"""How long a job that is stopped may take for its checkpoint before Ray kills it."""
SEND_S = 30.0
AWAY_S = 120.0
"""How long the job interface may be away (a head that restarts) before we stop following."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job ended.

    Attributes:
        job_id: Its id on the cluster.
        status: Ray's word: SUCCEEDED, FAILED, STOPPED; PENDING or RUNNING when nobody waited.
        exit_status: As of ``worldloom_dist.launch``; None while it runs.
        run_dir: The run folder, on the cluster.
        summary: The run's ``summary.json``; None when it did not get so far.
        message: What Ray says of a job that failed.
    """

    job_id: str
    status: str
    exit_status: int | None = None
    run_dir: str | None = None
    summary: Mapping[str, Any] | None = None
    message: str = ""


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
        flags: Of the launch, for example ``["--workers", "64"]``; checked here before anything is sent.
        address: Of the cluster's job interface (the dashboard).
        working_dir: Uploaded to every node and put first on the path of modules; None uses what is installed there.
        job_id: Names the job and its run folder; a new one by default. A job that is submitted again under the id of one that is
            over takes its place and goes on with its run.
        wait: Follow the log and return at the end; otherwise return once the job is accepted.
        retries: How often a job that failed (exit status 1, or its driver was lost) is submitted again; it goes on from its last
            checkpoint. Wrong input (exit status 2) is never retried.
        start_timeout_s: A job that waits longer for its resources is withdrawn.
        python: The interpreter on the cluster.
        attach: A job of this id that runs already is followed; otherwise that is an error.
        connect_timeout_s: How long to wait for a head that is just being started.
        write: Takes the log as it arrives; by default nothing is written.

    Raises:
        ConfigurationError: If a flag is wrong, the cluster cannot be reached, or it refuses the token.
        StateError: If the job did not start in time, or the cluster went away while it was followed.
    """
    if not any(word.startswith("--resume") for word in flags):  # that folder is on the cluster, where the launch looks at it
        parse([word for word in flags if word != "--debug"])
    if working_dir is not None and not working_dir.is_dir():
        raise ConfigurationError(f"working_dir: {working_dir} is not a folder; name one, or none to use what the cluster has")
    client = connect(address, connect_timeout_s)
    if attach and job_id is not None and _state(client, job_id) in ("PENDING", "RUNNING"):
        return _follow(client, job_id, start_timeout_s, write)
    job_id = job_id or f"worldloom-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    result = _attempt(client, flags, job_id, working_dir, python, wait, start_timeout_s, write)
    while wait and retries > 0 and result.status == "FAILED" and result.exit_status != 2:
        retries -= 1
        _note(write, f"job {job_id} failed ({_first_line(result.message)}); submitting it again, {retries} retries left\n")
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
    return _follow(connect(address), job_id, start_timeout_s, write)


def stop(job_id: str, *, address: str = "http://127.0.0.1:8265", wait: bool = True) -> JobResult:
    """Ask a job to checkpoint and leave.

    Raises:
        ConfigurationError: If there is no such job, or the cluster cannot be reached.
        StateError: As :func:`submit`.
    """
    client = connect(address)
    try:
        client.stop_job(job_id)
    except RuntimeError as error:
        raise ConfigurationError(f"job {job_id!r}: {_first_line(error)}") from error
    deadline = time.monotonic() + STOP_WAIT_S + 30.0
    while wait and client.get_job_status(job_id).value not in OVER and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    return _result(client, job_id)


def connect(address: str, wait_s: float = 0.0) -> Any:
    """A client of the job interface; fails in one sentence when it cannot be used.

    Args:
        address: Of the job interface.
        wait_s: How long a head may take to come up; a refused token is not waited for.

    Raises:
        ConfigurationError: If nothing answers, or the token is missing or wrong.
    """
    os.environ.setdefault("RAY_AUTH_MODE", choose_auth_mode())
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address.startswith(("http://", "https://")):
        raise ConfigurationError(f"address must be the job interface's, like http://HEAD:8265, got {address!r}")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules").setLevel(logging.WARNING)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return JobSubmissionClient(address)
        except AuthenticationError as error:
            raise ConfigurationError(
                f"address: the cluster at {address} refuses the token; put it into the file that RAY_AUTH_TOKEN_PATH names and set "
                "RAY_AUTH_MODE=token"
            ) from error
        except (ConnectionError, RuntimeError, OSError) as error:
            if time.monotonic() >= deadline:
                raise ConfigurationError(
                    f"address: no job interface answers at {address} ({_first_line(error)}); is the head's dashboard on, and its "
                    "port open?"
                ) from error
        time.sleep(LOOK_EVERY_S)


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
    _make_room(client, job_id)
    environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
    if working_dir is not None:
        environment |= {"working_dir": str(working_dir), "excludes": list(EXCLUDES)}
    entrypoint = f"exec {shlex.quote(python)} -m worldloom_dist.job --job-id {shlex.quote(job_id)} -- {shlex.join(flags)}"
    _send(client, entrypoint=entrypoint, submission_id=job_id, runtime_env=environment)
    _note(write, f"job      {job_id} (stop it with: python -m worldloom_dist.submit --stop {job_id})\n")
    return _follow(client, job_id, start_timeout_s, write) if wait else _result(client, job_id)


def _send(client: Any, **job: Any) -> None:
    """Submit; an interface that breaks off is asked whether it took the job, and gets it again if not."""
    deadline = time.monotonic() + SEND_S
    while True:
        try:
            client.submit_job(**job)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise StateError(f"the job interface broke off ({_first_line(error)}); try again") from error
            time.sleep(LOOK_EVERY_S)
            if _state(client, job["submission_id"]) is not None:
                return
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(f"job {job['submission_id']!r} was not accepted: {_first_line(error)}") from error


def _make_room(client: Any, job_id: str) -> None:
    """Forget a former job of this id that is over; its run folder stays."""
    state = _state(client, job_id)
    if state is None:
        return
    if state not in OVER:
        raise ConfigurationError(f"job {job_id!r} is {state} already; follow it with --follow {job_id}, or name another id")
    client.delete_job(job_id)


def _state(client: Any, job_id: str) -> str | None:
    return next((str(job.status.value) for job in client.list_jobs() if job.submission_id == job_id), None)


def _follow(client: Any, job_id: str, start_timeout_s: float, write: Callable[[str], object] | None) -> JobResult:
    _wait_for_start(client, job_id, start_timeout_s)
    log, last_answer = _Log(write), time.monotonic()
    while True:
        try:
            with contextlib.suppress(RuntimeError, OSError):  # the stream broke: take up where it was, or see that the job is over
                asyncio.run(_stream(client, job_id, log))
            if client.get_job_status(job_id).value in OVER:
                log.take(0, client.get_job_logs(job_id))
                return _result(client, job_id)
            last_answer = time.monotonic()
        except (RuntimeError, OSError) as error:
            if time.monotonic() - last_answer > AWAY_S:
                raise StateError(
                    f"the cluster did not answer for {AWAY_S:.0f} s ({_first_line(error)}); the job {job_id} may go on without us"
                ) from error
        time.sleep(LOOK_EVERY_S)


async def _stream(client: Any, job_id: str, log: _Log) -> None:
    start = 0
    async for chunk in client.tail_job_logs(job_id):
        log.take(start, chunk)
        start += len(chunk)


class _Log:
    """Passes a job's log on, once, line by line, without the summary's line."""

    def __init__(self, write: Callable[[str], object] | None) -> None:
        self._write, self._shown, self._rest = write, 0, ""

    def take(self, start: int, text: str) -> None:
        """``text`` is the log from character ``start`` on."""
        new = text[max(0, self._shown - start) :]
        self._shown = max(self._shown, start + len(text))
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            if not line.startswith(SUMMARY_MARK):
                _note(self._write, line + "\n")


def _wait_for_start(client: Any, job_id: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while client.get_job_status(job_id).value == "PENDING":
        if time.monotonic() > deadline:
            message = _first_line(client.get_job_info(job_id).message)
            client.stop_job(job_id)
            raise StateError(f"job {job_id} did not start within {timeout_s:.0f} s ({message}); it was withdrawn")
        time.sleep(LOOK_EVERY_S / 4)


def _result(client: Any, job_id: str) -> JobResult:
    info = client.get_job_info(job_id)
    status = info.status.value
    run_dir, summary = _find_summary(client.get_job_logs(job_id))
    exit_status = info.driver_exit_code
    if status == "STOPPED":  # Ray does not say how a job that it stopped left
        exit_status = 0 if (summary or {}).get("status") in ("stopped", "completed") else 1
    elif status == "FAILED" and exit_status != 2:  # lost, or killed by a signal
        exit_status = 1
    return JobResult(
        job_id=job_id, status=status, exit_status=exit_status, run_dir=run_dir, summary=summary, message=info.message or ""
    )


def _find_summary(log: str) -> tuple[str | None, Mapping[str, Any] | None]:
    lines = [line for line in log.splitlines() if line.startswith(SUMMARY_MARK)]
    if not lines:
        return None, None
    found = json.loads(lines[-1].removeprefix(SUMMARY_MARK))
    return found["run_dir"], found["summary"]


def _note(write: Callable[[str], object] | None, text: str) -> None:
    if write is not None and text:
        write(text)


def _first_line(error: object) -> str:
    lines = str(error or "no reason given").strip().splitlines()
    return lines[0].rstrip(".")[:300]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the launch's exit status."""
    words = list(sys.argv[1:] if words is None else words)
    cut = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:cut])
    flags = words[cut + 1 :]
    try:
        result = _act_in_foreground(options, flags) if options.foreground else _act(options, flags)
    except ConfigurationError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        return 2
    except StateError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"error: the job interface went away ({_first_line(error)}); the job may go on without us\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("left; the job goes on (follow it again with --follow, end it with --stop)\n")
        return 1
    if options.summary is not None and result.summary is not None:
        options.summary.write_text(json.dumps(result.summary, indent=2) + "\n")
    if result.summary is not None:
        sys.stdout.write(json.dumps(result.summary, indent=2) + "\n")
    sys.stderr.write(f"job {result.job_id}: {result.status}; run folder on the cluster: {result.run_dir or 'none'}\n")
    return result.exit_status or 0


def _act_in_foreground(options: argparse.Namespace, flags: Sequence[str]) -> JobResult:
    """The job lives as long as this process: what ends the one (a container's stop) checkpoints and ends the other."""
    if options.job_id is None:
        raise ConfigurationError("--foreground needs --job-id, so that the process that comes next finds the job again")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _act(options, flags)
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _to_terminal(f"stopping job {options.job_id}; it checkpoints first\n")
        return stop(options.job_id, address=options.address)


def _act(options: argparse.Namespace, flags: Sequence[str]) -> JobResult:
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
        prog="python -m worldloom_dist.submit",
        description="Train as a job of a Ray cluster: the log goes to stderr, the run's summary to stdout.",
        epilog="After --, the flags of worldloom_dist.launch. With token authentication, the token comes from the file that "
        "RAY_AUTH_TOKEN_PATH names; never from the command line.",
    )
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="the job interface (default: http://127.0.0.1:8265)")
    parser.add_argument("--working-dir", default=".", help="uploaded to every node; none = use what is installed (default: .)")
    parser.add_argument("--job-id", help="names the job and its run folder (default: a new one)")
    parser.add_argument("--retries", type=int, default=0, help="submit a job that failed again so often; it resumes (default: 0)")
    parser.add_argument("--foreground", action="store_true", help="follow a running job of this id; stop it with this process")
    parser.add_argument("--no-wait", action="store_true", help="return once the job is accepted")
    parser.add_argument("--connect-timeout", type=float, default=0.0, help="seconds that the head may take to answer (default: 0)")
    parser.add_argument("--start-timeout", type=float, default=600.0, help="seconds that it may wait to start (default: 600)")
    parser.add_argument("--python", default="python", help="the interpreter on the cluster (default: python)")
    parser.add_argument("--summary", type=Path, help="write the run's summary here, too")
    parser.add_argument("--follow", metavar="JOB", help="follow a job that was submitted earlier")
    parser.add_argument("--stop", metavar="JOB", help="ask a job to checkpoint and leave")
    return parser


if __name__ == "__main__":
    sys.exit(main())
