"""The job interface of a Ray cluster: connect, send a job, follow its log, and read how it ended.

Nothing is unpickled: Ray's job interface is HTTP with JSON, and with token authentication on, each
request carries the token of ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from worldloom.core.error_text import telling_line
from worldloom.core.exceptions import ConfigurationError, StateError
from worldloom_dist.metrics.endpoint import is_loopback
from worldloom_dist.runtime.cluster import choose_auth_mode

__all__ = [
    "LOOK_EVERY_S",
    "OVER",
    "SUMMARY_MARK",
    "JobResult",
    "check_job_id",
    "connect",
    "follow_job",
    "job_result",
    "job_state",
    "make_room",
    "note",
    "reason",
    "send_job",
]

SUMMARY_MARK = "worldloom-summary: "
"""Begins the line of a job's log that holds ``{"run_dir": ..., "summary": ...}``."""
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
"""What Ray calls a job that runs no more."""
MAX_ID_CHARS = 128
MAX_REASON_CHARS = 300
JOB_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_ID_CHARS - 1}}}")
LOOK_EVERY_S = 1.0
SEND_S = 30.0
AWAY_S = 120.0
"""How long the job interface may be away (a head that restarts) before we stop following."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job ended.

    Attributes:
        job_id: Its id on the cluster.
        status: Ray's word: SUCCEEDED, FAILED, STOPPED; PENDING or RUNNING when no one waited.
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


def check_job_id(job_id: str) -> str:
    """The id, if it can name a job and its run folder.

    Raises:
        ConfigurationError: If it cannot: the cluster would take some such jobs and never start or
            forget them.
    """
    if not JOB_ID.fullmatch(job_id):
        raise ConfigurationError(
            f"job_id must be 1 to {MAX_ID_CHARS} letters, digits, '.', '_' and '-', "
            "the first one a letter or a digit, "
            f"got {job_id!r}; name another one"
        )
    return job_id


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
        raise ConfigurationError(
            f"address must be the job interface's, like http://HEAD:8265, got {address!r}"
        )
    _pass_by_proxies(address)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules").setLevel(logging.WARNING)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return JobSubmissionClient(address)
        except AuthenticationError as error:
            raise ConfigurationError(
                f"address: the cluster at {address} refuses the token; put it into "
                "the file that RAY_AUTH_TOKEN_PATH names and set "
                "RAY_AUTH_MODE=token"
            ) from error
        except (ConnectionError, RuntimeError, OSError) as error:
            if time.monotonic() >= deadline:
                raise ConfigurationError(
                    f"address: no job interface answers at {address} "
                    f"({reason(error)}); is the head's dashboard on, and its "
                    "port open?"
                ) from error
        time.sleep(LOOK_EVERY_S)


def _pass_by_proxies(address: str) -> None:
    """No proxy leads to this machine's own loopback, whatever ``http_proxy`` says."""
    host = urlsplit(address).hostname or ""
    if is_loopback(host):
        for name in ("no_proxy", "NO_PROXY"):
            known = os.environ.get(name, "")
            os.environ[name] = f"{known},{host}" if known else host


def send_job(client: Any, **job: Any) -> None:
    """Submit; an interface that breaks off is asked whether it took the job, and gets it again if
    not.
    """
    deadline = time.monotonic() + SEND_S
    while True:
        try:
            client.submit_job(**job)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise StateError(
                    f"the job interface broke off ({reason(error)}); try again"
                ) from error
            time.sleep(LOOK_EVERY_S)
            if job_state(client, job["submission_id"]) is not None:
                return
        except (RuntimeError, ValueError) as error:
            job_id = job["submission_id"]
            state = job_state(client, job["submission_id"])
            if state is not None:  # there was none when we looked: another client was faster
                raise ConfigurationError(
                    f"job {job_id!r} was submitted by another client at the same "
                    f"moment and is {state}; "
                    f"follow it with --follow {job_id}, or name another id"
                ) from error
            raise ConfigurationError(f"job {job_id!r} was not accepted: {reason(error)}") from error


def make_room(client: Any, job_id: str) -> None:
    """Forget a former job of this id that is over; its run folder stays."""
    state = job_state(client, job_id)
    if state is None:
        return
    if state not in OVER:
        raise ConfigurationError(
            f"job {job_id!r} is {state} already; follow it with --follow {job_id}, or "
            "name another id"
        )
    client.delete_job(job_id)


def job_state(client: Any, job_id: str) -> str | None:
    """What Ray calls the state of a job; None when it does not know the job."""
    return next(
        (str(job.status.value) for job in client.list_jobs() if job.submission_id == job_id), None
    )


def follow_job(
    client: Any, job_id: str, start_timeout_s: float, write: Callable[[str], object] | None
) -> JobResult:
    """Pass on the log of a job until it is over; see :func:`worldloom_dist.submit.follow`."""
    _wait_for_start(client, job_id, start_timeout_s)
    log = _Log(write)
    last_answer = time.monotonic()
    while True:
        try:
            # the stream broke: take up where it was, or see that the job is over
            with contextlib.suppress(RuntimeError, OSError):
                asyncio.run(_stream(client, job_id, log))
            if client.get_job_status(job_id).value in OVER:
                log.take(0, client.get_job_logs(job_id))
                return job_result(client, job_id)
            last_answer = time.monotonic()
        except (RuntimeError, OSError) as error:
            if time.monotonic() - last_answer > AWAY_S:
                raise StateError(
                    f"the cluster did not answer for {AWAY_S:.0f} s "
                    f"({reason(error)}); the job {job_id} may go on without us"
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
        self._write = write
        self._shown = 0
        self._rest = ""

    def take(self, start: int, text: str) -> None:
        """``text`` is the log from character ``start`` on."""
        new = text[max(0, self._shown - start) :]
        self._shown = max(self._shown, start + len(text))
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            if not line.startswith(SUMMARY_MARK):
                note(self._write, line + "\n")


def _wait_for_start(client: Any, job_id: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while client.get_job_status(job_id).value == "PENDING":
        if time.monotonic() > deadline:
            message = reason(client.get_job_info(job_id).message)
            client.stop_job(job_id)
            raise StateError(
                f"job {job_id} did not start within {timeout_s:.0f} s ({message}); it was withdrawn"
            )
        time.sleep(LOOK_EVERY_S / 4)


def job_result(client: Any, job_id: str) -> JobResult:
    """How a job ended, or how it stands; its exit status is the launch's, also where Ray does not
    say.
    """
    info = client.get_job_info(job_id)
    status = info.status.value
    run_dir, summary = _find_summary(client.get_job_logs(job_id))
    exit_status = info.driver_exit_code
    if status == "STOPPED":  # Ray does not say how a job that it stopped left
        exit_status = 0 if (summary or {}).get("status") in ("stopped", "completed") else 1
    elif status == "FAILED" and exit_status != 2:  # lost, or killed by a signal
        exit_status = 1
    return JobResult(
        job_id=job_id,
        status=status,
        exit_status=exit_status,
        run_dir=run_dir,
        summary=summary,
        message=info.message or "",
    )


def _find_summary(log: str) -> tuple[str | None, Mapping[str, Any] | None]:
    lines = [line for line in log.splitlines() if line.startswith(SUMMARY_MARK)]
    if not lines:
        return None, None
    found = json.loads(lines[-1].removeprefix(SUMMARY_MARK))
    return found["run_dir"], found["summary"]


def note(write: Callable[[str], object] | None, text: str) -> None:
    """Write ``text`` where there is a reader."""
    if write is not None and text:
        write(text)


def reason(error: object) -> str:
    """What an error, or what Ray says of a job, comes down to: the middle of a sentence."""
    return telling_line(error or "no reason given")[:MAX_REASON_CHARS]
