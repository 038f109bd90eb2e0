"""The only places where we use what Ray does not document, each with what happens without it.

``own_servers``: without it a private cluster ends five seconds later. ``core_servers``: without it
the death of a raylet is not told from that of the roles. ``distant_servers``: without it a run
waits for a cluster whose head is gone until Ray ends its process. ``draining_nodes``: without
it only the signal to a worker's process announces that its machine will go. Neither is used with a
Ray outside the versions that ``pyproject.toml`` allows, and neither ever raises.
"""

from __future__ import annotations

import contextlib
import logging
import re
from functools import cache
from typing import Any

import psutil
import ray

__all__ = ["core_servers", "distant_servers", "draining_nodes", "is_known", "own_servers"]

logger = logging.getLogger(__name__)

FIRST_KNOWN = (2, 55)
FIRST_UNKNOWN = (3, 0)
CORE = ("raylet", "gcs_server")
"""Servers without which nothing works."""


def is_known(version: str) -> bool:
    """True for a version of Ray whose internals are as they are used here."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and FIRST_KNOWN <= (int(numbers[1]), int(numbers[2])) < FIRST_UNKNOWN


def draining_nodes() -> set[str]:
    """Ids of nodes that a cluster manager has announced the end of; empty where Ray does not
    say.
    """
    if not _may_use():
        return set()
    try:
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except Exception as error:  # of a private call nothing is promised, its errors included
        say_once(f"{type(error).__name__}: {error}")
        return set()


def own_servers() -> list[psutil.Process]:
    """The processes of a cluster that we started; has Ray kill its servers at once when it shuts
    down. Empty where Ray does not say.

    They block SIGTERM (see ``cluster``), so the second of grace that each of the five is given
    would be waited for in vain. What the raylet started itself, its agents above all, notices its
    death only seconds later, so it is for the caller to end.
    """
    if not _may_use():
        return []
    try:
        from ray._private import worker

        node: Any = worker._global_node
        if node is None:
            return []
        servers = [server.process.pid for kind in node.all_processes.values() for server in kind]
        kill = node.kill_all_processes
    except Exception as error:  # as above
        say_once(f"{type(error).__name__}: {error}")
        return []

    def kill_at_once(check_alive: bool = True, **_: Any) -> None:
        kill(check_alive=check_alive, allow_graceful=False)

    node.kill_all_processes = kill_at_once
    family = []
    for server in servers:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(server)
            family += [process, *process.children(recursive=True)]
    return family


def core_servers() -> dict[str, psutil.Process]:
    """The servers of a cluster that we started without which nothing works, by name; empty where
    Ray does not say.
    """
    if not _may_use():
        return {}
    try:
        from ray._private import worker

        node: Any = worker._global_node
        kinds = {} if node is None else node.all_processes
        return {name: psutil.Process(kinds[name][0].process.pid) for name in CORE if name in kinds}
    except Exception as error:  # as above
        say_once(f"{type(error).__name__}: {error}")
        return {}


def distant_servers() -> list[tuple[str, str, int]]:
    """Name, host and port of the servers of a cluster that we joined without which nothing works;
    empty where Ray does not say.
    """
    if not _may_use():
        return []
    try:
        context = ray.get_runtime_context()
        host, _, port = str(context.gcs_address).rpartition(":")
        found = [("the GCS of the cluster's head", host.strip("[]"), int(port))]
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if node["NodeID"] == context.get_node_id():
                where = (str(node["NodeManagerAddress"]), int(node["NodeManagerPort"]))
                found.append(("the raylet of this machine", *where))
        return found
    except Exception as error:  # as above; over ray:// there is neither
        say_once(f"{type(error).__name__}: {error}")
        return []


def _may_use() -> bool:
    if is_known(ray.__version__):
        return True
    say_once(f"version {ray.__version__}")
    return False


@cache
def say_once(what: str) -> None:
    """Once for each reason."""
    logger.info("Ray's internals are not used (%s)", what)
