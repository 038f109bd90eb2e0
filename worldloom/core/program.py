"""How the command is called that a person has typed, and how it ends by Ctrl-C, by SIGTERM, by a
file that it may not touch, by a network that fails, or when those who read its output have gone
(``worldloom train --help | head``).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import select
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import ParamSpec, TextIO

from worldloom.core.error_text import first_line

__all__ = ["EXIT_INTERRUPTED", "EXIT_NO_READER", "EXIT_TERMINATED", "called", "interruptible"]

MODULES_OF = "worldloom_dist"
NETWORKING = {"urllib", "urllib3", "requests", "aiohttp"}
UNREACHABLE = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT."""
EXIT_NO_READER = 141
"""Exit status when standard output is closed, as shells have it: 128 and the number of SIGPIPE."""
EXIT_TERMINATED = 143
"""Exit status after SIGTERM, as shells have it: 128 and the number of SIGTERM."""
P = ParamSpec("P")


def interruptible(main: Callable[P, int]) -> Callable[P, int]:
    """A command that Ctrl-C ends with one line and exit status 130, wherever it is, a closed
    standard output without a word and with 141, and SIGTERM with 143, after what it made for a
    while is removed. A file, folder or network that cannot be used is one sentence and 1.

    Args:
        main: Returns the exit status.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        """``main``, or 130, 141, 143 or 1."""
        try:
            with _unwound_by_sigterm():
                _print_any_text(sys.stdout)
                return main(*args, **kwargs)
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            if _is_read(sys.stdout):  # another pipe broke
                raise
            return EXIT_NO_READER
        except OSError as error:
            sys.stderr.write(f"error: {_sentence(error)}\n")
            return 1
        finally:
            if not _is_read(sys.stdout):  # what waits in the buffer would be an error at exit
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, sys.stdout.fileno())
                os.close(nowhere)

    return run


@contextlib.contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise ``SystemExit`` inside, where no one else handles it."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(EXIT_TERMINATED)


def _print_any_text(stream: TextIO | None) -> None:
    """Let names of files that are no UTF-8 be printed as they are, and what the encoding of a
    terminal lacks as an escape.
    """
    if isinstance(stream, io.TextIOWrapper):
        is_utf8 = stream.encoding.lower().replace("-", "") == "utf8"
        stream.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def _sentence(error: OSError) -> str:
    """What is wrong with a file, a folder or a network."""
    reason = error.strerror or first_line(error)
    if _is_of_network(error):
        return f"the connection failed ({reason}); look whether the other end can be reached"
    if error.filename is not None:
        return (
            f"{error.filename} cannot be read or written ({reason}); give the rights to it, or "
            "name another place"
        )
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the folder that this was typed in is gone; go to another one"
    if error.errno is None:  # raised with a text alone
        return reason
    return f"the output cannot be written ({reason}); free space, or name another place"


def _is_of_network(error: OSError) -> bool:
    """Whether it tells of a connection; libraries derive errors of their own from OSError."""
    if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)):
        return True
    package = type(error).__module__.partition(".")[0]
    return error.errno in UNREACHABLE or package in NETWORKING


def _is_read(stream: TextIO | None) -> bool:
    """False for a pipe whose reader has gone; None is what Python has for a closed descriptor."""
    if stream is None:
        return True
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # no file: captured
        return True
    look = select.poll()
    look.register(descriptor, 0)
    return not any(event & select.POLLERR for _, event in look.poll(0))


def called(command: str) -> str:
    """What a usage line begins with: ``worldloom status``, or ``python -m worldloom_dist.status``
    where that was typed.

    Args:
        command: Of ``worldloom``, for example ``status``.
    """
    parts = Path(sys.argv[0]).with_suffix("").parts
    if MODULES_OF not in parts:
        return f"worldloom {command}"
    path = [part for part in parts[parts.index(MODULES_OF) :] if part != "__main__"]
    return f"python -m {'.'.join(path)}"
