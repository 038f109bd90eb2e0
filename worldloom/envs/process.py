"""A handle on one env process: start it, ask it, read its answer, kill it with a stack dump."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from worldloom.envs.config import EnvConfig

__all__ = ["EnvProcess", "child_environment"]

logger = logging.getLogger(__name__)

DUMP_WAIT_S = 1.0
DUMP_BYTES = 8192
KILL_WAIT_S = 5.0


class EnvProcess:
    """One running ``worldloom.envs.child``, which builds the env as soon as it is up.

    Its process group is its own: a kill reaches whatever the env has started, a Ctrl-C in the
    terminal does not reach it.

    Args:
        config: Resolved settings of the env.
        cycle: Of several tasks, those that it plays in turn.

    Attributes:
        verdict: Why it was ended for its memory; empty if it was not.
    """

    def __init__(self, config: EnvConfig, cycle: Sequence[int] = ()) -> None:
        ours, theirs = socket.socketpair()
        life_read, self._life_write = os.pipe()
        self._dump = tempfile.TemporaryFile()  # noqa: SIM115 - closed in kill()
        descriptors = (theirs.fileno(), life_read, self._dump.fileno())
        command = [sys.executable, "-m", "worldloom.envs.child", *map(str, descriptors)]
        self._process = subprocess.Popen(
            command,
            pass_fds=descriptors,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        os.close(life_read)
        self.connection = Connection(ours.detach())
        self.verdict = ""
        self._kill_lock = threading.Lock()
        self.ask((config, tuple(cycle)))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(self, request: Any) -> None:
        """Send a request; a process that has died shows when its answer is read."""
        try:
            self.connection.send(request)
        except (BrokenPipeError, ConnectionResetError):
            logger.debug("env process %d has closed its end", self.pid)

    def answer(self) -> tuple[Any, ...]:
        """The next message; waits for it.

        Raises:
            EOFError, OSError: If the process has died.
        """
        message: tuple[Any, ...] = self.connection.recv()
        return message

    def how_it_died(self) -> str:
        """Exit status or signal of a process whose connection has ended, with the innermost line of
        its stack dump.
        """
        try:
            status = self._process.wait(timeout=DUMP_WAIT_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        how = (
            f"killed by {signal.Signals(-status).name}"
            if status < 0
            else f"exited with status {status}"
        )
        dump = self.stack_dump()
        if dump:
            logger.warning("env process %d, %s:\n%s", self.pid, how, dump)
        return how

    def stack_dump(self) -> str:
        """What faulthandler wrote so far."""
        return os.pread(self._dump.fileno(), DUMP_BYTES, 0).decode(errors="replace").strip()

    def kill_hung(self) -> None:
        """Ask for a stack dump, log it, then kill."""
        self._process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + DUMP_WAIT_S
        sizes = [0]
        while time.monotonic() < deadline:  # until the dump is there and has stopped growing
            time.sleep(0.05)
            sizes.append(os.fstat(self._dump.fileno()).st_size)
            if sizes[-1] and sizes[-3:] == [sizes[-1]] * 3:
                break
        logger.warning(
            "env process %d hangs; its stack:\n%s", self.pid, self.stack_dump() or "(no dump)"
        )
        self.kill()

    def kill(self) -> None:
        """End the process and everything that it has started, now. Safe to repeat."""
        with self._kill_lock:
            if self._dump.closed:
                return
            self._kill_group()
            try:
                self._process.wait(KILL_WAIT_S)
            except subprocess.TimeoutExpired:
                logger.warning(
                    "env process %d is stuck in the kernel and does not end; it is left behind",
                    self.pid,
                )
            self.connection.close()
            os.close(self._life_write)
            self._dump.close()

    def condemn(self, verdict: str) -> None:
        """End it from another thread; who reads its next answer finds that it died, and why."""
        with self._kill_lock:
            if not self._dump.closed and self._process.poll() is None:
                self.verdict = verdict
                self._kill_group()

    def _kill_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            logger.debug("env process %d is gone already", self.pid)


def child_environment() -> dict[str, str]:
    """Ours, with our import path (so that ``module:callable`` is found) and one thread per maths
    library.
    """
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
