"""Watches over the servers of a private Ray cluster: when the raylet or the GCS dies, every call
into Ray may hang for minutes, and Ray's own client ends this process without a word after one.

    a thread looks every second -> sentence is set -> the driver's thread raises it, writes the
    summary and leaves -> or, if it hangs in Ray, the thread does so in its place
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping

import psutil

__all__ = ["ServerWatch", "lives"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
LEAVE_WITHIN_S = 15.0
"""For the driver's thread to leave by itself."""


def lives(process: psutil.Process) -> bool:
    """False also when no one has taken note of its end."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


class ServerWatch:
    """The servers of one cluster.

    Args:
        servers: By the names that Ray gives them.
        clean_up: Ends what is left of the cluster; called where the driver's thread cannot.
        leave: Ends this process with a status.

    Attributes:
        on_hang: Called before that: says in the run's summary why it ends.
    """

    def __init__(
        self,
        servers: Mapping[str, psutil.Process],
        clean_up: Callable[[], None],
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._servers = dict(servers)
        self._clean_up = clean_up
        self._leave = leave
        self._is_over = threading.Event()
        self._dead = ""
        self.on_hang: Callable[[str], None] = lambda _: None
        self._thread = threading.Thread(target=self._watch, name="ray-servers", daemon=True)
        self._thread.start()

    @property
    def sentence(self) -> str:
        """Which server has died; empty while all live."""
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
            dead = [name for name, process in self._servers.items() if not lives(process)]
            if dead:
                names = " and ".join(f"{name} (pid {self._servers[name].pid})" for name in dead)
                self._dead = f"Ray's {names} on this machine has died, and the run's roles with it"
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
