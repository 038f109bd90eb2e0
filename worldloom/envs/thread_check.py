"""Does an env work in a thread that is not its process's main one? Tried in a process of its own,
beside whatever starts.

A role of a distributed run steps its env in a thread. An env that handles signals, or asks for the
event loop of its thread, cannot live there: it needs a process of its own. ``python -m
worldloom.envs.thread_check ANSWER`` reads a pickled config from its standard input, tries the env
and writes its finding, as JSON, to the inherited descriptor ANSWER. An env that hangs or kills the
process gives no answer, and the run's own deadlines and restarts take care of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.building import FOREIGN_ERRORS
from worldloom.envs.config import SUITES, EnvConfig, EnvLimits
from worldloom.envs.factory import make_env
from worldloom.envs.process import child_environment

__all__ = ["ThreadCheck", "needs_main_thread"]

TRIED_STEPS = 3
FOREIGN = ("gym", "module")
"""Where foreign envs come from, beside the suites of guests; those of our other suites are known to
work in threads.
"""


def _is_foreign(suite: str) -> bool:
    return suite in FOREIGN or suite not in SUITES


class ThreadCheck:
    """A check that runs; :meth:`result` waits for it.

    Args:
        config: Resolved settings of the env.
    """

    def __init__(self, config: EnvConfig) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if config.is_none or not any(_is_foreign(part.suite) for part in config.parts()):
            return
        self._answer, theirs = os.pipe()
        command = [sys.executable, "-m", "worldloom.envs.thread_check", str(theirs)]
        self._process = subprocess.Popen(
            command,
            pass_fds=(theirs,),
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(pickle.dumps(config))
            self._process.stdin.close()

    def result(self) -> str:
        """Why the env needs a main thread; empty when it does not, or gave no answer in time.

        Raises:
            ConfigurationError: If it fails in any thread, so that no run could make its first
                steps.
        """
        if self._process is None:
            return ""
        try:
            self._process.wait(EnvLimits().start_timeout_s)
            with os.fdopen(self._answer) as pipe:
                found = json.loads(pipe.read() or "{}")
        except subprocess.TimeoutExpired:
            os.close(self._answer)
            return ""
        finally:
            self.close()
        if "failure" in found:
            raise ConfigurationError(found["failure"])
        return str(found.get("reason", ""))

    def close(self) -> None:
        """End the process and what it has started. Safe to repeat."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def needs_main_thread(config: EnvConfig) -> str:
    """Try an env in a thread of this process, and what fails there in this thread too.

    Raises:
        ConfigurationError: If it fails in both.
    """
    if config.tasks:
        foreign = [part for part in config.parts() if _is_foreign(part.suite)]
        return next(filter(None, map(needs_main_thread, foreign)), "")
    reason = _in_a_thread(lambda: _try(config))
    failure = _try(config) if reason else ""
    if failure:
        raise ConfigurationError(
            f"env {config.env!r} fails in its first steps: {failure}; mend it, and look at it with "
            f"worldloom check-env {config.env}"
        )
    return reason


def _try(config: EnvConfig) -> str:
    """Build, begin and step an env; returns what went wrong."""
    try:
        env = make_env(config, seed=0, is_exact=False, limits=EnvLimits(max_failures=1))
        try:
            env.reset()
            for _ in range(TRIED_STEPS):
                env.step({name: spec.zeros(env.num_envs) for name, spec in env.spec.action.items()})
        finally:
            env.close()
    except FOREIGN_ERRORS as error:  # the edge of foreign code
        return first_line(error)
    return ""


def _in_a_thread(call: Callable[[], str]) -> str:
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join()
    return answers[0] if answers else "its thread ended without an answer"


def main(arguments: list[str]) -> None:
    """Answer for the config on standard input."""
    config: EnvConfig = pickle.load(sys.stdin.buffer)  # our parent's
    try:
        found = {"reason": needs_main_thread(config)}
    except ConfigurationError as error:
        found = {"failure": str(error)}
    os.write(int(arguments[0]), json.dumps(found).encode())
    os._exit(0)  # threads that the env left behind do not matter


if __name__ == "__main__":
    main(sys.argv[1:])
