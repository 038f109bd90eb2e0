"""Watches over the servers of Ray: when the raylet or the GCS dies, every call into Ray may hang
for minutes, and Ray's own client ends this process without a word after one. Those of a private
cluster are processes of this machine, those of another one are asked over the network.

    a thread looks every second -> sentence is set -> the driver's thread raises it, writes the
    summary and leaves -> or, if it hangs in Ray, the thread does so in its place
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

import psutil

from worldloom.core.loopback import address_text

__all__ = ["DistantServer", "ServerWatch", "dead_servers", "lives"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
LEAVE_WITHIN_S = 15.0
"""For the driver's thread to leave by itself."""
LEAST_FAILURES = 3
SERVER_SILENT_S = 12.0
"""Silence after which a distant server is lost; a GCS with Redis behind it may be started again
until then.
"""


def lives(process: psutil.Process) -> bool:
    """False also when no one has taken note of its end."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def dead_servers(servers: Mapping[str, psutil.Process]) -> str:
    """A sentence that names the servers of this machine that have died; empty while all live.

    Args:
        servers: By the names that Ray gives them.
    """
    dead = [name for name, process in servers.items() if not lives(process)]
    if not dead:
        return ""
    names = " and ".join(f"{name} (pid {servers[name].pid})" for name in dead)
    return f"Ray's {names} on this machine has died, and the run's roles with it"


class DistantServer:
    """A server of a cluster that we joined: called, it says in a sentence that it is lost.

    Args:
        name: For the sentence.
        host, port: Where it listens.
        clock: Monotonic seconds.
    """

    def __init__(
        self, name: str, host: str, port: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._where = (host, port)
        self._clock = clock
        self._failed_since: float | None = None
        self._failures = 0

    def __call__(self) -> str:
        """Connect, and hang up."""
        try:
            socket.create_connection(self._where, timeout=LOOK_EVERY_S).close()
        except OSError as error:
            if self._failed_since is None:  # this process itself may have stood still until now
                self._failed_since = self._clock()
            self._failures += 1
            silent_s = self._clock() - self._failed_since
            if silent_s < SERVER_SILENT_S or self._failures < LEAST_FAILURES:
                return ""
            why = error.strerror or error
            return (
                f"{self._name} at {address_text(*self._where)} has not answered for "
                f"{silent_s:.0f} s ({why}), and the run's roles are lost with it"
            )
        self._failed_since = None
        self._failures = 0
        return ""


class ServerWatch:
    """The servers of one cluster.

    Args:
        look: Says in a sentence which server is lost; empty while none is.
        clean_up: Ends what is left of the cluster; called where the driver's thread cannot.
        leave: Ends this process with a status.

    Attributes:
        on_hang: Called before that: says in the run's summary why it ends.
    """

    def __init__(
        self,
        look: Callable[[], str],
        clean_up: Callable[[], None],
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._look = look
        self._clean_up = clean_up
        self._leave = leave
        self._is_over = threading.Event()
        self._dead = ""
        self.on_hang: Callable[[str], None] = lambda _: None
        self._thread = threading.Thread(target=self._watch, name="ray-servers", daemon=True)
        self._thread.start()

    @property
    def sentence(self) -> str:
        """Which server is lost; empty while none is."""
        return self._dead

    def close(self) -> None:
        """The cluster is stopped: its servers may end."""
        self._is_over.set()

    def join(self, timeout_s: float) -> bool:
        """Wait until it watches no more; False when that took too long."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_EVERY_S):
            self._dead = self._look()
            if self._dead:
                break
        if not self._dead or self._is_over.wait(LEAVE_WITHIN_S):
            return
        logger.error("the run failed: %s", self._dead)
        try:
            self.on_hang(self._dead)
        finally:
            try:
                self._clean_up()
            finally:
                self._leave(1)
