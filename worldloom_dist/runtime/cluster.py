"""Start, join and leave a Ray cluster. The authentication mode is always set before ``import ray``,
because Ray reads it once.

A cluster that we start is private: it listens on the loopback only, uses a token from a 0600 file
in a private folder, keeps its files in a folder of its own, and is stopped by us, on every way out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import ConfigurationError, TrainingError
from worldloom_dist.runtime.private_folders import make_held, release, sweep
from worldloom_dist.runtime.server_watch import DistantServer, ServerWatch, dead_servers, lives

__all__ = ["CPUS_PER_ROLE", "choose_auth_mode", "ray_cluster", "store_used"]

logger = logging.getLogger(__name__)

STORE_BYTES = 512 * 2**20
STARTS_AT_ONCE = "128"
"""Processes that Ray may start at the same time. Waves bound it; Ray warns at every multiple of it,
by default of the cores.
"""
GONE_WITHIN_S = 5.0
CPUS_PER_ROLE = 0.001
"""Roles share the machine by threads and niceness, not by Ray's counting; a tiny share keeps any
number of them schedulable.
"""


OTHER_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
LONGEST_SOCKET = 107
"""Bytes of a socket's path, by the system."""
SOCKET = "/ray/session_2026-11-30_02-24-50_328123_4194304/sockets/plasma_store"
"""The longest path that Ray makes in its folder."""
MARK = "WORLDLOOM_CLUSTER"
"""Variable in the environment of every process of a private cluster: its folder."""


@contextlib.contextmanager
def ray_cluster(address: str | None, run_id: str) -> Iterator[ServerWatch | None]:
    """Connect to ``address``, or start a local cluster; leave (and stop what we started) at the
    end.

    Yields:
        What watches over the servers.

    Raises:
        ConfigurationError: If nothing answers at ``address``.
        TrainingError: If a local cluster does not start.
    """
    folder = private_folder() if address is None else None
    environment = dict(os.environ)
    try:
        _prepare_environment(folder)
        import ray

        _connect(address, folder, run_id)
        watch = _watch_head() if folder is None else _watch(folder)
        try:
            yield watch
        finally:
            from worldloom_dist.runtime.ray_internals import own_servers

            family = own_servers() if address is None else []
            if folder is not None and watch is not None and watch.sentence:
                family += marked(folder)  # the raylet cannot end them any more
                end_processes(family)
            try:
                ray.shutdown()
            finally:
                end_processes(family)
                if watch is not None:
                    watch.close()
    finally:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        if folder is not None:
            release(folder)


def private_folder() -> Path:
    """A folder that no one else can read, with a path that is short enough for Ray's sockets.

    Raises:
        ConfigurationError: If there is no place for one.
    """
    asked = tempfile.gettempdir()
    sweep((asked, *OTHER_PLACES), lambda folder: end_processes(marked(folder)))
    name = "/wl-12345678"
    for place in (asked, *OTHER_PLACES):
        is_short = len(os.fsencode(place)) + len(name + SOCKET) <= LONGEST_SOCKET
        if is_short and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
            if place != asked:
                logger.info("files of Ray are in %s: %s is too long for a socket", place, asked)
            return make_held(place)
    raise ConfigurationError(
        f"TMPDIR: {asked} is too long for the sockets of Ray, and none of "
        f"{', '.join(OTHER_PLACES)} can be written to; set TMPDIR to a folder of at most "
        f"{LONGEST_SOCKET - len(name + SOCKET)} characters"
    )


def _watch(folder: Path) -> ServerWatch:
    from worldloom_dist.runtime.ray_internals import core_servers

    def clean_up() -> None:
        end_processes(marked(folder))
        release(folder)

    return ServerWatch(partial(dead_servers, core_servers()), clean_up)


def _watch_head() -> ServerWatch | None:
    """Over the GCS of a cluster that we joined, and the raylet through which we did; None where Ray
    does not say where they are.
    """
    from worldloom_dist.runtime.ray_internals import distant_servers

    servers = [DistantServer(name, host, port) for name, host, port in distant_servers()]
    if not servers:
        return None
    return ServerWatch(lambda: next(filter(None, (one() for one in servers)), ""), lambda: None)


def marked(folder: Path) -> list[psutil.Process]:
    """Every process of a cluster, and what those have started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder) and process.pid != os.getpid():
                found.append(process)
    return found


def end_processes(family: Sequence[psutil.Process]) -> None:
    """Kill those that still live, and wait until they are gone."""
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    give_up = time.monotonic() + GONE_WITHIN_S
    while left := [str(process.pid) for process in family if lives(process)]:
        if time.monotonic() > give_up:
            logger.warning("processes of Ray are left: %s", ", ".join(left))
            return
        time.sleep(0.02)


def store_used() -> float:
    """Bytes of the object store in use, over all nodes."""
    import ray

    name = "object_store_memory"
    all_of = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    return float(all_of.get(name, 0.0)) - float(free.get(name, 0.0))


def _prepare_environment(folder: Path | None) -> None:
    """Variables that Ray and its children read, set before the import."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if folder is None:
        os.environ.setdefault("RAY_AUTH_MODE", choose_auth_mode())
        return
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ[MARK] = str(folder)
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", STARTS_AT_ONCE)
    os.environ.pop("RAY_ADDRESS", None)
    if os.environ.get("RAY_AUTH_MODE") != "disabled":
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))


def choose_auth_mode() -> str:
    """``RAY_AUTH_MODE`` for a cluster that we join: what the environment says, else ``token`` when
    there is one to show.
    """
    known = bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"))
    known = known or os.path.exists(os.path.expanduser("~/.ray/auth_token"))
    return os.environ.get("RAY_AUTH_MODE") or ("token" if known else "disabled")


def _connect(address: str | None, folder: Path | None, run_id: str) -> None:
    import ray

    common: dict[str, Any] = {
        "namespace": run_id,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if folder is not None:
        local: dict[str, Any] = {
            "address": "local",
            "include_dashboard": False,
            "_temp_dir": str(folder / "ray"),
        }
        # Ray's servers inherit the mask: a signal to the
        # process group (timeout, Slurm, systemd) must reach us only, or they would be gone before
        # the checkpoint
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
        try:
            ray.init(object_store_memory=STORE_BYTES, **local, **common)
        except BaseException as error:
            end_processes(marked(folder))  # those that live would go on writing there
            if not isinstance(error, Exception):  # a second Ctrl-C
                raise
            # Ray raises that itself, where a server of it is late
            raise TrainingError(
                f"Ray did not start on this machine ({first_line(error)}); it may be too busy (its "
                f"load is {os.getloadavg()[0]:.0f}), or "
                "its name may lead to an address of IPv6 or of another machine (getent hosts "
                "$(hostname)); try again, name a cluster with --address, or add --runtime local"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        return
    try:
        ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"address: no Ray cluster answers at {address!r} "
            f"({first_line(error)}); start one with 'ray start --head', "
            "check the token (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH), or leave --address out"
        ) from error
