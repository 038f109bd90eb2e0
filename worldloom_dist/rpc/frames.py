"""How a call and its answer travel over a connection: pickled, with large buffers beside the
pickle, so that no one copies them again, and authenticated, so that nothing is unpickled that the
other end has not sent.

Layout, little endian: size of the body and number of the call (8 bytes each); on a connection then
the hash of the body and a code (32 and 16 bytes, :class:`FrameMac`); then the body: how many
buffers, the size of the pickle and of every buffer (8 bytes each), the pickle, and the buffers,
each at a multiple of 16 bytes, so that arrays which are views of a received body are aligned.
"""

from __future__ import annotations

import hashlib
import hmac
import pickle
import struct
from collections.abc import Callable, Iterable
from typing import Any

__all__ = [
    "HEAD",
    "LARGEST_FRAME",
    "FrameError",
    "FrameMac",
    "FrameReader",
    "content_of",
    "pieces_of",
]

HEAD = struct.Struct("<QQ")
COUNT = struct.Struct("<Q")
HASH_BYTES = 32
CODE_BYTES = 16
SEALED_BYTES = HEAD.size + HASH_BYTES + CODE_BYTES
"""Of a head on a connection."""
LARGEST_FRAME = 2**32
LARGE_BUFFER = 32 * 2**10
"""Smaller ones are cheaper inside the pickle."""
ALIGNMENT = 16
ROOM = 64 * 2**10

CHANGED = "a frame came that is not what the other end sent"

Buffer = bytes | bytearray | memoryview


class FrameError(ConnectionError, ValueError):
    """What came over a connection is no frame of the other end; nothing of it was unpickled."""


class FrameMac:
    """Authenticates the frames of one direction of one connection: who does not have the key can
    change, add, repeat, leave out or reorder none without its being noticed.

    A frame carries a hash of its body, and a message authentication code (keyed BLAKE2b) of its
    place in the order, its head and that hash; so a head is known to be true before its body is
    waited for, and a body is hashed as it comes.

    Args:
        key: Of this direction of this connection alone; at most 64 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=CODE_BYTES)
        self._count = 0

    def code_of_next(self, head: Buffer) -> bytes:
        """The code of the next frame.

        Args:
            head: Its head, with the hash of its body.
        """
        code = self._keyed.copy()
        code.update(COUNT.pack(self._count))
        code.update(head)
        self._count += 1
        return code.digest()

    def seal(self, head: bytes, body: Iterable[Buffer]) -> bytes:
        """The head of the next frame with the hash of its body and its code.

        Args:
            head: Size and number.
            body: Its parts, in order.
        """
        hashed = _hash_of(HEAD.unpack(head)[0])
        for part in body:
            hashed.update(part)
        known: bytes = head + hashed.digest()
        return known + self.code_of_next(known)


def pieces_of(number: int, content: Any, mac: FrameMac | None = None) -> list[Buffer]:
    """What to send, one after the other: everything small in one piece, and large buffers as they
    are.

    Args:
        number: Of the call.
        content: What can be pickled.
        mac: Of the connection; what is made with it must be sent in the order in which it is made.
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
    pieces: list[Buffer] = [table, body]
    for raw in large:
        padding = bytes(-end % ALIGNMENT)
        pieces += [padding, raw] if padding else [raw]
        end += len(padding) + raw.nbytes
    head = HEAD.pack(end, number)
    if mac is not None:
        head = mac.seal(head, pieces)
    pieces[:2] = [b"".join((head, table, body))]
    return pieces


def content_of(body: Buffer) -> Any:
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
    large one into its own memory, which is taken when its head is known to be true.

    Args:
        on_frame: Called with the number and the body of every frame.
        mac: Of the connection; without one frames carry no codes.
    """

    def __init__(
        self, on_frame: Callable[[int, bytes | bytearray], None], mac: FrameMac | None = None
    ) -> None:
        self._on_frame = on_frame
        self._mac = mac
        self._head_bytes = HEAD.size if mac is None else SEALED_BYTES
        self._room = bytearray(ROOM)
        self._got = 0
        # of the frame whose head was read; 0 bytes before that
        self._size = 0
        self._number = 0
        self._hash = b""
        # of a large one
        self._body = bytearray()
        self._hashed = _hash_of(0)

    def free(self) -> memoryview:
        """Where the next bytes go."""
        return memoryview(self._body or self._room)[self._got :]

    def arrived(self, count: int) -> None:
        """``count`` bytes were written there.

        Raises:
            FrameError: If the other end has not sent this, or no frame is that long.
        """
        if self._body:
            self._go_on(count)
            return
        self._got += count
        start = 0
        while True:
            if not self._size:
                if self._got - start < self._head_bytes:
                    break
                self._open(memoryview(self._room)[start : start + self._head_bytes])
                start += self._head_bytes
                if self._size > ROOM:
                    self._begin_large(start)
                    return
            stop = start + self._size
            if stop > self._got:
                break
            body = bytes(memoryview(self._room)[start:stop])
            start = stop
            self._size = 0
            if self._mac is not None:
                hashed = _hash_of(len(body))
                hashed.update(body)
                if hashed.digest() != self._hash:
                    raise FrameError(CHANGED)
            self._on_frame(self._number, body)
        self._keep(start)

    def _open(self, head: memoryview) -> None:
        """Read a head, and compare its code."""
        size, number = HEAD.unpack_from(head)
        if self._mac is not None:
            known = head[:-CODE_BYTES]
            if not hmac.compare_digest(self._mac.code_of_next(known), head[-CODE_BYTES:]):
                raise FrameError("a frame came that the other end did not send next")
            self._hash = bytes(known[HEAD.size :])
        if not 0 < size <= LARGEST_FRAME:
            raise FrameError(f"a frame of {size} bytes")
        self._size = size
        self._number = number

    def _begin_large(self, start: int) -> None:
        """Go on with a large frame whose first bytes are here."""
        found = self._got - start
        body = bytearray(self._size)
        body[:found] = memoryview(self._room)[start : self._got]
        self._hashed = _hash_of(self._size)
        self._body = body
        self._got = 0
        self._go_on(found)

    def _go_on(self, count: int) -> None:
        """``count`` more bytes of a large frame are in their place."""
        if self._mac is not None:
            self._hashed.update(memoryview(self._body)[self._got : self._got + count])
        self._got += count
        if self._got < self._size:
            return
        body = self._body
        self._body = bytearray()
        self._size = self._got = 0
        if self._mac is not None and self._hashed.digest() != self._hash:
            raise FrameError(CHANGED)
        self._on_frame(self._number, body)

    def _keep(self, start: int) -> None:
        """Make room after what belongs to a frame that is not complete."""
        rest = self._got - start
        if start and rest:
            self._room[:rest] = self._room[start : self._got]
        self._got = rest


def _hash_of(size: int) -> Any:
    """A hash to be fed with a body of this size: SHA-256 for large ones, for which processors have
    instructions; BLAKE2b for small ones, because OpenSSL's hashes take longer to begin.
    """
    return hashlib.sha256() if size >= LARGE_BUFFER else hashlib.blake2b(digest_size=HASH_BYTES)
