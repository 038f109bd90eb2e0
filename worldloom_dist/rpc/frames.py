"""How a call and its answer travel over a connection: pickled, with large buffers beside the
pickle, so that no one copies them again, and authenticated, so that nothing is unpickled that the
other end has not sent.

A frame is a small first part, and large buffers after it. Layout, little endian:

    8  bytes of all that follows the next field
    8  number of the call
    -  table: how many buffers, bytes of the pickle (0 if the first buffer is the pickle, because it
       is large), bytes of every buffer; 8 each
    -  with codes: that of every slice of the buffers, 16 each
    -  pickle; it ends the first part, which is ``ROOM`` at most
    16 with codes: that of all that came before
    -  the buffers; without codes each at a multiple of 16 bytes after the number

On a connection there are always codes. A buffer is cut into slices of ``slice_bytes``, the last of
which may be shorter. So memory for buffers is taken only after the code that covers their sizes was
compared, every slice is looked at while it is in the processor's cache, and no code needs a copy.
"""

from __future__ import annotations

import hmac
import itertools
import os
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = [
    "HEAD",
    "LARGEST_FRAME",
    "FrameBody",
    "FrameError",
    "FrameMac",
    "FrameReader",
    "content_of",
    "pieces_of",
]

HEAD = struct.Struct("<QQ")
TABLE = struct.Struct("<QQ")
NONCE = struct.Struct("<QI")
CODE_BYTES = 16
LARGEST_FRAME = 2**32
LARGE_BUFFER = 32 * 2**10
"""Smaller ones are cheaper inside the pickle."""
MOST_BUFFERS = 512
"""Beside the pickle; the rest is left inside."""
SLICE_BYTES = 256 * 2**10
MOST_SLICES = 512
"""Of a frame, but for one more per buffer: larger frames have larger slices."""
ALIGNMENT = 16
ROOM = 64 * 2**10

CHANGED = "a frame came that is not what the other end sent"

Buffer = bytes | bytearray | memoryview


class FrameError(ConnectionError, ValueError):
    """What came over a connection is no frame of the other end; nothing of it was unpickled."""


class FrameMac:
    """Authenticates the frames of one direction of one connection: who does not have the key can
    change, add, repeat, leave out or reorder none without its being noticed.

    Codes are AES-256-GMAC, which reads some 20 GB/s on a processor with instructions for it. The
    nonce of each holds the place of its frame in this direction, and which part of the frame it
    covers (0 the first, then the slices), so a part is true in its place only.

    One nonce for two messages would give the key away. So there is one key for each direction of
    each connection, one counter gives places, a place is used up whether its frame is sent or not,
    and a process that was forked off uses none of its parent's.

    Args:
        key: Of this direction of this connection alone; 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._places = itertools.count()
        self._process = os.getpid()

    def next_place(self) -> int:
        """Of the next frame.

        Raises:
            FrameError: In another process than the one that opened the connection.
        """
        if os.getpid() != self._process:
            raise FrameError("a connection is used by a process that has not opened it")
        return next(self._places)

    def code(self, place: int, part: int, data: Buffer) -> bytes:
        """The code of one part of the frame at a place."""
        return self._cipher.encrypt(NONCE.pack(place, part), b"", data)


class FrameBody(NamedTuple):
    """What a frame holds: a pickle, and the buffers that are not inside it."""

    pickle: Buffer
    buffers: Sequence[Buffer]


def pieces_of(number: int, content: Any, mac: FrameMac | None = None) -> list[Buffer]:
    """What to send, one after the other: everything small in one piece, and large buffers as they
    are.

    Args:
        number: Of the call.
        content: What can be pickled.
        mac: Of the connection; what is made with it must be sent in the order in which it is made.

    Raises:
        ValueError: If it is more than a frame holds.
    """
    large: list[memoryview] = []

    def take_out(buffer: pickle.PickleBuffer) -> bool:
        """Whether a buffer stays inside the pickle."""
        raw = buffer.raw()
        if raw.nbytes < LARGE_BUFFER or len(large) == MOST_BUFFERS:
            return True
        large.append(raw)
        return False

    body = pickle.dumps(content, 5, buffer_callback=take_out)
    if len(body) >= LARGE_BUFFER:
        large.insert(0, memoryview(body))
        body = b""
    sizes = [raw.nbytes for raw in large]
    if sum(sizes) > LARGEST_FRAME:
        raise ValueError(f"{sum(sizes):,} bytes are more than the {LARGEST_FRAME:,} of a frame")
    layout = _Layout(len(body), sizes, has_codes=mac is not None)
    table = TABLE.pack(len(sizes), len(body)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    head = HEAD.pack(layout.total, number) + table
    if mac is None:
        pieces: list[Buffer] = [head + body]
        for padding, raw in zip(layout.paddings, large, strict=True):
            pieces += [bytes(padding), raw] if padding else [raw]
        return pieces
    place = mac.next_place()
    step = slice_bytes(sum(sizes))
    slices = (raw[at : at + step] for raw in large for at in range(0, raw.nbytes, step))
    codes = [mac.code(place, part, data) for part, data in enumerate(slices, 1)]
    first = bytearray().join((head, *codes, body))
    first += mac.code(place, 0, first)
    return [first, *large]


def content_of(body: FrameBody) -> Any:
    """What was pickled; large arrays are views of the buffers."""
    return pickle.loads(body.pickle, buffers=body.buffers)


def slice_bytes(total: int) -> int:
    """Bytes of a slice, in a frame whose buffers have ``total``."""
    return max(SLICE_BYTES, -(-total // MOST_SLICES))


class _Layout:
    """How long the parts of a frame are.

    Args:
        pickle_bytes: Of the pickle, if it is in the first part.
        sizes: Of the buffers.
        has_codes: As on a connection.

    Attributes:
        codes_at: Where in the frame the codes of slices begin.
        pickle_at: Where the pickle begins.
        first_bytes: From the head to the end of the pickle.
        paddings: Bytes before every buffer.
        total: Bytes of all that follows the head.
    """

    def __init__(self, pickle_bytes: int, sizes: Sequence[int], *, has_codes: bool) -> None:
        step = slice_bytes(sum(sizes))
        slices = sum(-(-size // step) for size in sizes) if has_codes else 0
        self.codes_at = HEAD.size + TABLE.size + 8 * len(sizes)
        self.pickle_at = self.codes_at + CODE_BYTES * slices
        self.first_bytes = self.pickle_at + pickle_bytes
        end = self.first_bytes - HEAD.size + (CODE_BYTES if has_codes else 0)
        self.paddings = []
        for size in sizes:
            self.paddings.append(0 if has_codes else -end % ALIGNMENT)
            end += self.paddings[-1] + size
        self.total = end


class FrameReader:
    """Takes apart what arrives: first parts out of one buffer that is used again and again, a large
    buffer into its own memory, which is taken when its size is known to be true.

    Args:
        on_frame: Called with the number and the body of every frame.
        mac: Of the connection; without one frames carry no codes.
    """

    def __init__(
        self, on_frame: Callable[[int, FrameBody], None], mac: FrameMac | None = None
    ) -> None:
        self._on_frame = on_frame
        self._mac = mac
        self._code_bytes = 0 if mac is None else CODE_BYTES
        self._room = memoryview(bytearray(ROOM))
        self._got = 0
        # of a frame with large buffers, the first of which is being received
        self._filling: _Buffers | None = None

    def free(self) -> memoryview:
        """Where the next bytes go."""
        return self._room[self._got :] if self._filling is None else self._filling.free()

    def arrived(self, count: int) -> None:
        """``count`` bytes were written there.

        Raises:
            FrameError: If the other end has not sent this, or no frame is that long.
        """
        if self._filling is not None:
            self._fill(self._filling, count)
            return
        self._got += count
        start = 0
        while (found := self._first_at(start)) is not None:
            sizes, layout = found
            stop = start + layout.first_bytes
            filling = self._open(self._room[start:stop], self._room[stop:], sizes, layout)
            start = stop + self._code_bytes
            while filling is not None and start < self._got:
                room = filling.free()[: self._got - start]
                room[:] = self._room[start : start + len(room)]
                start += len(room)
                self._filling = filling
                self._fill(filling, len(room))
                filling = self._filling
            if filling is not None:
                self._filling = filling
                self._got = 0
                return
        self._keep(start)

    def _first_at(self, start: int) -> tuple[tuple[int, ...], _Layout] | None:
        """The sizes of buffers, and the layout, of the frame whose first part begins there; None
        while that is not complete. Nothing of it is known to be true yet.
        """
        got = self._got - start
        if got < HEAD.size + TABLE.size:
            return None
        total, _ = HEAD.unpack_from(self._room, start)
        count, pickle_bytes = TABLE.unpack_from(self._room, start + HEAD.size)
        if count > MOST_BUFFERS + 1 or pickle_bytes > ROOM:
            raise FrameError(
                f"a frame came that has {count} buffers, and {pickle_bytes} bytes more"
            )
        if got < HEAD.size + TABLE.size + 8 * count:
            return None
        sizes = struct.unpack_from(f"<{count}Q", self._room, start + HEAD.size + TABLE.size)
        if sum(sizes) > LARGEST_FRAME or 0 in sizes:
            raise FrameError(f"a frame came that has buffers of {sum(sizes)} bytes, as none does")
        layout = _Layout(pickle_bytes, sizes, has_codes=self._mac is not None)
        if layout.first_bytes + self._code_bytes > ROOM or layout.total != total:
            raise FrameError(f"a frame came that says {total} bytes of itself, as none does")
        return (sizes, layout) if got >= layout.first_bytes + self._code_bytes else None

    def _open(
        self, first: memoryview, code: memoryview, sizes: Sequence[int], layout: _Layout
    ) -> _Buffers | None:
        """Read a first part, after comparing its code; returns the buffers that are to come, if
        there are any.
        """
        place = 0
        if self._mac is not None:
            place = self._mac.next_place()
            if not hmac.compare_digest(self._mac.code(place, 0, first), code[:CODE_BYTES]):
                raise FrameError("a frame came that the other end did not send next")
        _, number = HEAD.unpack_from(first)
        body = bytes(first[layout.pickle_at :])
        if not sizes:
            self._on_frame(number, FrameBody(body, ()))
            return None
        codes = bytes(first[layout.codes_at : layout.pickle_at])
        return _Buffers(number, body, sizes, layout.paddings, self._mac, place, codes)

    def _fill(self, filling: _Buffers, count: int) -> None:
        if filling.arrived(count):
            self._filling = None
            self._on_frame(filling.number, filling.body())

    def _keep(self, start: int) -> None:
        """Make room after what belongs to a frame that is not complete."""
        rest = self._got - start
        if start and rest:
            self._room[:rest] = bytes(self._room[start : self._got])
        self._got = rest


class _Buffers:
    """The large buffers of a frame, which arrive one after the other.

    Args:
        number: Of the call.
        pickle: Empty if the first buffer is the pickle.
        sizes: Of the buffers.
        paddings: Bytes that come before every buffer.
        mac: Of the connection; None without codes.
        place: Of the frame.
        codes: Of all slices.
    """

    def __init__(
        self,
        number: int,
        pickle: bytes,
        sizes: Sequence[int],
        paddings: Sequence[int],
        mac: FrameMac | None,
        place: int,
        codes: bytes,
    ) -> None:
        self.number = number
        self._pickle = pickle
        self._mac = mac
        self._place = place
        self._step = slice_bytes(sum(sizes))
        self._paddings = paddings
        # not filled with zeros first; each is aligned, and there is room before it
        self._memory = [np.empty(ALIGNMENT + size, np.uint8).data for size in sizes]
        self._buffers = [memory[ALIGNMENT:] for memory in self._memory]
        self._at = 0
        self._got = -paddings[0]
        self._checked = 0
        self._codes = self._numbered(codes)

    def free(self) -> memoryview:
        """Where the next bytes go."""
        return self._memory[self._at][ALIGNMENT + self._got :]

    def arrived(self, count: int) -> bool:
        """``count`` bytes were written there; True if that was all.

        Raises:
            FrameError: If the other end has not sent this.
        """
        self._got += count
        buffer = self._buffers[self._at]
        is_full = self._got == len(buffer)
        while self._checked + self._step <= self._got or (is_full and self._checked < self._got):
            self._check(buffer[self._checked : self._checked + self._step])
            self._checked = min(self._checked + self._step, len(buffer))
        if is_full:
            self._at += 1
            if self._at == len(self._buffers):
                return True
            self._got = -self._paddings[self._at]
            self._checked = 0
        return False

    def body(self) -> FrameBody:
        """All of it."""
        if self._pickle:
            return FrameBody(self._pickle, self._buffers)
        return FrameBody(self._buffers[0], self._buffers[1:])

    def _check(self, data: memoryview) -> None:
        """Compare the code of the next slice."""
        if self._mac is None:
            return
        part, code = next(self._codes, (0, b""))
        if not hmac.compare_digest(self._mac.code(self._place, part, data), code):
            raise FrameError(CHANGED)

    def _numbered(self, codes: bytes) -> Iterator[tuple[int, bytes]]:
        slices = range(0, len(codes), CODE_BYTES)
        return enumerate((codes[at : at + CODE_BYTES] for at in slices), 1)
