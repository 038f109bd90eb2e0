"""How a call and its answer travel over a connection: pickled, with large buffers beside the
pickle, so that no one copies them again, and authenticated, so that nothing is unpickled that the
other end has not sent.

Layout, little endian: size of the body and number of the call (8 bytes each); on a connection then
the codes of the body and of the head (16 bytes each, :class:`FrameMac`); then the body: how many
buffers, the size of the pickle and of every buffer (8 bytes each), the pickle, and the buffers,
each at a multiple of 16 bytes, so that arrays which are views of a received body are aligned.
"""

from __future__ import annotations

import hmac
import itertools
import os
import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any

from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext, Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

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
NONCE = struct.Struct("<QI")
HEAD_PART, BODY_PART = range(2)
"""What a nonce says beside the place of the frame."""
CODE_BYTES = 16
SEALED_BYTES = HEAD.size + 2 * CODE_BYTES
"""Of a head on a connection."""
LARGEST_FRAME = 2**32
LARGE_BUFFER = 32 * 2**10
"""Smaller ones are cheaper inside the pickle."""
ALIGNMENT = 16
ROOM = 64 * 2**10
MOST_AT_ONCE = 2**30
"""Bytes that OpenSSL is handed; it takes less than 2 GiB."""

CHANGED = "a frame came that is not what the other end sent"

Buffer = bytes | bytearray | memoryview


class FrameError(ConnectionError, ValueError):
    """What came over a connection is no frame of the other end; nothing of it was unpickled."""


class FrameMac:
    """Authenticates the frames of one direction of one connection: who does not have the key can
    change, add, repeat, leave out or reorder none without its being noticed.

    A frame carries two codes (AES-256-GMAC): of its body, and of its head with the code of the
    body. So a head is known to be true before its body is waited for, and a body is looked at as it
    comes. Both are made with a nonce that holds the place of the frame in this direction, so a
    frame is true in its place only.

    One nonce for two frames would give the key away. So there is one key for each direction of each
    connection, one counter gives places, a frame that is sealed has used up its place whether it is
    sent or not, and a process that was forked off seals nothing with its parent's key.

    Args:
        key: Of this direction of this connection alone; 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AES(key)
        self._at_once = AESGCM(key)
        self._places = itertools.count()
        self._process = os.getpid()

    def seal(self, head: bytes, body: Sequence[Buffer]) -> bytes:
        """The head of the next frame that is sent, with both codes.

        Args:
            head: Size and number of the call.
            body: Its parts, in order.

        Raises:
            FrameError: In another process than the one that opened the connection.
        """
        if os.getpid() != self._process:
            raise FrameError("a connection is used by a process that has not opened it")
        place = next(self._places)
        known = head + self.body_code(place, body)
        return known + self._code(place, HEAD_PART, known)

    def open(self, head: Buffer) -> tuple[int, bytes]:
        """The place of the next frame that is received, and the code that its body must have.

        Args:
            head: With both codes.

        Raises:
            FrameError: If the other end has not sent it next.
        """
        place = next(self._places)
        known = bytes(head[:-CODE_BYTES])
        if not hmac.compare_digest(self._code(place, HEAD_PART, known), head[-CODE_BYTES:]):
            raise FrameError("a frame came that the other end did not send next")
        return place, known[HEAD.size :]

    def body_code(self, place: int, body: Sequence[Buffer]) -> bytes:
        """The code of the body, in parts, of the frame at this place."""
        if len(body) == 1 and len(body[0]) <= MOST_AT_ONCE:
            return self._code(place, BODY_PART, body[0])
        code = self.code_in_parts(place)
        for part in body:
            code.add(part)
        return code.done()

    def code_in_parts(self, place: int) -> PartwiseCode:
        """The same, for who has one part after the other."""
        return PartwiseCode(Cipher(self._cipher, GCM(NONCE.pack(place, BODY_PART))).encryptor())

    def _code(self, place: int, part: int, data: Buffer) -> bytes:
        return self._at_once.encrypt(NONCE.pack(place, part), b"", data)


class PartwiseCode:
    """The code of a body that comes in parts.

    Args:
        context: To which nothing was added.
    """

    def __init__(self, context: AEADEncryptionContext) -> None:
        self._context = context

    def add(self, part: Buffer) -> None:
        """The next part."""
        view = memoryview(part)
        for start in range(0, len(view), MOST_AT_ONCE):
            self._context.authenticate_additional_data(view[start : start + MOST_AT_ONCE])

    def done(self) -> bytes:
        """The code, after the last part."""
        self._context.finalize()
        return self._context.tag


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
    head_bytes = HEAD.size if mac is None else SEALED_BYTES
    first = bytearray().join((bytes(head_bytes), table, body))
    end = len(table) + len(body)
    pieces: list[Buffer] = [memoryview(first)[head_bytes:]]
    for raw in large:
        padding = bytes(-end % ALIGNMENT)
        pieces += [padding, raw] if padding else [raw]
        end += len(padding) + raw.nbytes
    head = HEAD.pack(end, number)
    first[:head_bytes] = head if mac is None else mac.seal(head, pieces)
    pieces[0] = first
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
        self._place = -1
        self._code = b""
        # of a large one
        self._body = bytearray()
        self._body_code: PartwiseCode | None = None

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
                self._compare(self._mac.body_code(self._place, [body]))
            self._on_frame(self._number, body)
        self._keep(start)

    def _open(self, head: memoryview) -> None:
        """Read a head, after comparing its code."""
        size, number = HEAD.unpack_from(head)
        if self._mac is not None:
            self._place, self._code = self._mac.open(head)
        if not 0 < size <= LARGEST_FRAME:
            raise FrameError(f"a frame of {size} bytes")
        self._size = size
        self._number = number

    def _begin_large(self, start: int) -> None:
        """Go on with a large frame whose first bytes are here."""
        found = self._got - start
        body = bytearray(self._size)
        body[:found] = memoryview(self._room)[start : self._got]
        self._body_code = None if self._mac is None else self._mac.code_in_parts(self._place)
        self._body = body
        self._got = 0
        self._go_on(found)

    def _go_on(self, count: int) -> None:
        """``count`` more bytes of a large frame are in their place."""
        if self._body_code is not None:
            self._body_code.add(memoryview(self._body)[self._got : self._got + count])
        self._got += count
        if self._got < self._size:
            return
        body = self._body
        self._body = bytearray()
        self._size = self._got = 0
        if self._body_code is not None:
            self._compare(self._body_code.done())
        self._on_frame(self._number, body)

    def _compare(self, code: bytes) -> None:
        """Refuse a body whose code is not the one that its head has announced."""
        if not hmac.compare_digest(code, self._code):
            raise FrameError(CHANGED)

    def _keep(self, start: int) -> None:
        """Make room after what belongs to a frame that is not complete."""
        rest = self._got - start
        if start and rest:
            self._room[:rest] = self._room[start : self._got]
        self._got = rest
