"""What runs in an env's own process: build one env, then answer requests until the pipe closes.
Never imports torch or ray.

Started by ``worldloom.envs.process`` as ``python -m worldloom.envs.child CONNECTION PARENT DUMP``
(three inherited descriptors): a fresh interpreter, neither a fork nor a second run of the parent's
main module. Messages in: the config and the tasks that it plays in turn (none but of a list), then
``("reset", seed)`` and ``("step", action)``. Out:
``("spec", spec)`` once, then ``("row", obs, reward, terminated, truncated)`` for each request; or
``("refused", error)`` for a config that cannot work, or ``("fault", text)`` as the last message.

The parent's end, whatever ends it, ends this process too, even if the env holds the interpreter
lock for ever: the kernel sends SIGIO, whose default action is to terminate, when the parent's side
of the PARENT pipe closes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import logging
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError

__all__ = ["main", "serve"]

Pipe = Connection  # messages are pickled; both ends are ours


def main(arguments: list[str]) -> None:
    """Serve on the inherited descriptors."""
    connection, parent_pipe, dump = (int(argument) for argument in arguments)
    _die_with_parent(parent_pipe)
    dump_file = os.fdopen(dump, "w")
    faulthandler.enable(dump_file)
    faulthandler.register(signal.SIGUSR1, dump_file)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # remarks on the env, which its parent has made
    logging.getLogger("worldloom.envs.contract").setLevel(logging.ERROR)
    with contextlib.suppress(EOFError, ConnectionError):
        serve(Pipe(connection))


def serve(pipe: Pipe) -> None:
    """Build the env that the first message describes and answer requests until the other end
    closes.

    Raises:
        EOFError, ConnectionError: When it does.
    """
    from worldloom.envs.building import FOREIGN_ERRORS, EnvBuildError, error_text
    from worldloom.envs.factory import build_env, build_tasks

    config, cycle = pipe.recv()
    try:
        env: Any
        if cycle:
            env = build_tasks(config)
            env.take_turns(cycle)
        else:
            env = build_env(config)
    except EnvBuildError as error:  # it may pass: the parent decides what it means
        pipe.send(("fault", str(error)))
        return
    except (ConfigurationError, MissingDependencyError) as error:
        pipe.send(("refused", error))
        return
    except FOREIGN_ERRORS as error:  # as above
        pipe.send(("fault", f"could not be built: {error_text(error)}"))
        return
    pipe.send(("spec", env.spec))
    while True:
        request, argument = pipe.recv()
        try:
            answer: tuple[Any, ...] = (
                (env.reset(argument), 0.0, False, False)
                if request == "reset"
                else env.step(argument)
            )
        except FOREIGN_ERRORS as error:  # as above
            pipe.send(("fault", f"{request}: {error_text(error)}"))
            return
        pipe.send(("row", *answer))


def _die_with_parent(parent_pipe: int) -> None:
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(parent_pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(
        parent_pipe,
        fcntl.F_SETFL,
        fcntl.fcntl(parent_pipe, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK,
    )
    # The parent may have ended before the signal was asked for; then the pipe is at its end
    # already.
    with contextlib.suppress(BlockingIOError):
        if os.read(parent_pipe, 1) == b"":
            os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
