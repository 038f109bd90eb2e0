"""How a call and its answer travel over a connection: pickled, with large buffers beside the
pickle, so that no one copies them again.

Layout, little endian: size of the body and number of the call (8 bytes each); then the body: how
many buffers, the size of the pickle and of every buffer (8 bytes each), the pickle, and the
buffers, each at a multiple of 16 bytes, so that arrays which are views of a received body are
aligned.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

__all__ = ["HEAD", "LARGEST_FRAME", "FrameReader", "content_of", "pieces_of"]

HEAD = struct.Struct("<QQ")
LARGEST_FRAME = 2**32
LARGE_BUFFER = 32 * 2**10
"""Smaller ones are cheaper inside the pickle."""
ALIGNMENT = 16
ROOM = 64 * 2**10

Buffer = bytes | memoryview


def pieces_of(number: int, content: Any) -> list[Buffer]:
    """What to send, one after the other: everything small in one piece, and large buffers as they
    are.
    """
    large: list[memoryview] = []

    def take_out(buffer: pickle.PickleBuffer) -> bool:
        """Whether a buffer stays inside the pickle."""
        raw = buffer.raw()
        if raw.nbytes < LARGE_BUFFER:
            return True
        large.append(raw)
        return False

    body = pickle.dumps(content, 5, buffer_callback=take_out)
    sizes = [len(body), *(raw.nbytes for raw in large)]
    table = struct.pack(f"<Q{len(sizes)}Q", len(large), *sizes)
    end = len(table) + len(body)
    pieces: list[Buffer] = [b""]
    for raw in large:
        padding = bytes(-end % ALIGNMENT)
        pieces += [padding, raw] if padding else [raw]
        end += len(padding) + raw.nbytes
    pieces[0] = b"".join((HEAD.pack(end, number), table, body))
    return pieces


def content_of(body: bytes | bytearray) -> Any:
    """Inverse of :func:`pieces_of` without the head; large arrays are views of ``body``."""
    view = memoryview(body)
    (count,) = struct.unpack_from("<Q", view)
    size, *sizes = struct.unpack_from(f"<{count + 1}Q", view, 8)
    begin = 8 * (count + 2)
    end = begin + size
    large = []
    for length in sizes:
        start = end + -end % ALIGNMENT
        end = start + length
        large.append(view[start:end])
    return pickle.loads(view[begin : begin + size], buffers=large)


class FrameReader:
    """Takes apart what arrives: small frames out of one buffer that is used again and again, a
    large one into its own memory.

    Args:
        on_frame: Called with the number and the body of every frame.
    """

    def __init__(self, on_frame: Callable[[int, bytes | bytearray], None]) -> None:
        self._on_frame = on_frame
        self._room = bytearray(ROOM)
        self._got = 0
        # of a large frame that has begun, while there is one
        self._body = bytearray()
        self._number = 0

    def free(self) -> memoryview:
        """Where the next bytes go."""
        return memoryview(self._body or self._room)[self._got :]

    def arrived(self, count: int) -> None:
        """``count`` bytes were written there.

        Raises:
            ValueError: If no frame is that long.
        """
        self._got += count
        if self._body:
            if self._got == len(self._body):
                body = self._body
                self._body = bytearray()
                self._got = 0
                self._on_frame(self._number, body)
            return
        start = 0
        while self._got - start >= HEAD.size:
            size, number = HEAD.unpack_from(self._room, start)
            if not 0 < size <= LARGEST_FRAME:
                raise ValueError(f"a frame of {size} bytes")
            stop = start + HEAD.size + size
            if stop > self._got:
                if HEAD.size + size > ROOM:
                    self._begin(number, bytearray(size), start + HEAD.size)
                    return
                break
            self._on_frame(number, bytes(memoryview(self._room)[start + HEAD.size : stop]))
            start = stop
        self._keep(start)

    def _begin(self, number: int, body: bytearray, start: int) -> None:
        """Go on with a large frame whose first bytes are here."""
        found = self._got - start
        body[:found] = memoryview(self._room)[start : self._got]
        self._body = body
        self._number = number
        self._got = found

    def _keep(self, start: int) -> None:
        """Make room after what belongs to a frame that is not complete."""
        rest = self._got - start
        if start and rest:
            self._room[:rest] = self._room[start : self._got]
        self._got = rest
