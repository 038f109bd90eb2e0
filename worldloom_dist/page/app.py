"""The page over HTTP, as a WSGI application beside ``/metrics``; it only reads."""

from __future__ import annotations

import gzip
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

from worldloom.core.json_text import to_json
from worldloom.core.plain_files import open_plain
from worldloom_dist.page.state import RunState
from worldloom_dist.page.videos import TYPES, video_path

__all__ = ["PageApp", "page_html"]

logger = logging.getLogger(__name__)

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' data:; media-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a browser lets the page do: nothing but show itself and ask this endpoint."""
HEADERS = [
    ("Cache-Control", "no-cache"),
    ("Content-Security-Policy", POLICY),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
]
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
CHUNK_BYTES = 256 * 1024
Start = Callable[..., Any]


class PageApp:
    """Answers ``/`` (the page), ``/run.json`` (what it shows) and ``/videos/NAME``.

    Args:
        folder: Of the run, which is running.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state = RunState(folder, is_live=True)

    def answers(self, path: str) -> bool:
        """True for a path of the page."""
        return path in ("/", "/run.json") or path.startswith("/videos/")

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        """Answer a request for one of its paths."""
        path = environ.get("PATH_INFO", "/")
        if path == "/":
            return _whole(environ, start, "text/html; charset=utf-8", page_html().encode())
        if path == "/run.json":
            return self._json(environ, start)
        video = video_path(self._folder / "videos", path.removeprefix("/videos/"))
        if video is None:
            return _refuse(start, "404 Not Found", "there is no such video")
        return _file(environ, start, video)

    def _json(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        tag = f'"{self._state.version()}"'
        if environ.get("HTTP_IF_NONE_MATCH") == tag:
            start("304 Not Modified", [*HEADERS, ("ETag", tag)])
            return []
        try:
            body = to_json(self._state.read()).encode()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.debug("the page has nothing to show", exc_info=True)
            return _refuse(
                start, "503 Service Unavailable", f"{self._folder} cannot be read here ({error!r})"
            )
        return _whole(environ, start, "application/json", body, [("ETag", tag)])


def page_html() -> str:
    """The page itself, one file, without numbers."""
    return resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def _whole(
    environ: dict[str, Any],
    start: Start,
    kind: str,
    body: bytes,
    more: Iterable[tuple[str, str]] = (),
) -> Iterable[bytes]:
    headers = [*HEADERS, ("Content-Type", kind), *more]
    if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
        body = gzip.compress(body, compresslevel=3)
        headers.append(("Content-Encoding", "gzip"))
    start("200 OK", [*headers, ("Content-Length", str(len(body)))])
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


def _file(environ: dict[str, Any], start: Start, path: Path) -> Iterable[bytes]:
    """A video, or the part of it that a player asks for (``Range: bytes=A-B``)."""
    try:
        file = open_plain(path)
    except OSError:  # a run deletes old ones
        return _refuse(start, "404 Not Found", "there is no such video any more")
    size = os.fstat(file.fileno()).st_size
    first, last, status = 0, size - 1, "200 OK"
    headers = [*HEADERS, ("Content-Type", TYPES[path.suffix.lower()]), ("Accept-Ranges", "bytes")]
    match = RANGE.fullmatch(environ.get("HTTP_RANGE", ""))
    if match and (match[1] or match[2]):
        first = int(match[1]) if match[1] else max(0, size - int(match[2]))
        last = min(last, int(match[2])) if match[1] and match[2] else last
        if first > last:
            file.close()
            return _refuse(start, "416 Range Not Satisfiable", f"the video has {size} bytes")
        status = "206 Partial Content"
        headers.append(("Content-Range", f"bytes {first}-{last}/{size}"))
    start(status, [*headers, ("Content-Length", str(last - first + 1))])
    if environ.get("REQUEST_METHOD") == "HEAD":
        file.close()
        return []
    return _Parts(file, first, last)


class _Parts:
    """A part of an open file, which the server closes when it has sent it, or cannot."""

    def __init__(self, file: BinaryIO, first: int, last: int) -> None:
        self._file = file
        self._first = first
        self._left = last - first + 1

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(self._first)
        while self._left > 0 and (part := self._file.read(min(CHUNK_BYTES, self._left))):
            self._left -= len(part)
            yield part

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _refuse(start: Start, status: str, why: str) -> Iterable[bytes]:
    start(status, [*HEADERS, ("Content-Type", "text/plain; charset=utf-8")])
    return [f"{status}: {why}\n".encode()]
