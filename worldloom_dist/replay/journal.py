"""An append-only log in segments: what was acknowledged is still there after the process was
killed.

A record is a frame of 16 bytes (magic, kind, length, crc32 of all that follows the magic but
itself) and its bytes. A segment is one file; its first record is a *head*, written by the owner,
that says everything one must know to start reading there. So old segments can be deleted, and
reading what is left still restores the owner's state.

Promises: when ``append`` returns the record is in the operating system's hands and survives ``kill
-9`` of this process. When ``sync`` returns and ``fsync`` is on, it survives a power loss; threads
that call it together share one fsync (group commit). Nothing is promised if the disk itself is
damaged, but damage is noticed: a bad frame is skipped up to the next good one.

One process at a time: the directory is locked until ``close`` or the death of the process.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from zlib_ng import zlib_ng as zlib

from worldloom.core.exceptions import CheckpointError, StateError
from worldloom.core.files import sync
from worldloom.core.plain_files import check_size, open_plain, read_plain

__all__ = [
    "DEFAULT_SEGMENT_BYTES",
    "HEAD",
    "MOST_SEGMENT_BYTES",
    "Journal",
    "JournalDamage",
    "JournalHeldError",
    "JournalPosition",
    "Record",
    "SegmentRecords",
    "read_journal",
    "read_newest_segments",
    "segment_path",
]

logger = logging.getLogger(__name__)

MAGIC = b"WLJ1"
FRAME = struct.Struct("<4sIII")
HEAD = 1
Buffer = bytes | memoryview
DEFAULT_SEGMENT_BYTES = 32 << 20
MOST_SEGMENT_BYTES = 2**31
"""No shard writes a longer file: a segment ends with the chunk that fills it."""
MOST_IN_VAIN = 16
"""A segment in which this multiple of its size has been looked at for frames that are none is given
up: it would take time that grows with the square of its size.
"""
SEGMENT_NAME = re.compile(r"segment-(\d{8,})\.wal")


class JournalHeldError(StateError):
    """Another process holds the directory of a journal."""


class Record(NamedTuple):
    """One record: its segment, the owner's kind (``HEAD`` is 1), its bytes, and where in the
    segment these begin.
    """

    segment: int
    kind: int
    payload: bytes
    offset: int


class SegmentRecords(NamedTuple):
    """The intact records of a segment, where they lie in it.

    Attributes:
        segment: Its number.
        size: Of its file.
        data: Its bytes, and perhaps more after them; they change when the next segment is read.
        frames: Of every record the kind, where its bytes begin, and how many they are.
    """

    segment: int
    size: int
    data: bytearray
    frames: list[tuple[int, int, int]]

    def record(self, number: int) -> Record:
        """One of them, copied."""
        kind, start, size = self.frames[number]
        return Record(self.segment, kind, bytes(memoryview(self.data)[start : start + size]), start)


class JournalPosition(NamedTuple):
    """A cut through the log: everything before ``offset`` in ``segment``, and all segments before
    it.
    """

    segment: int
    offset: int


@dataclass(slots=True)
class JournalDamage:
    """What reading found.

    Attributes:
        torn_bytes: Of a record that was being written when the process died.
        corrupt_bytes: Altered later.
        evicted_segments: Deleted by the writer while the journal was read; no damage, and the
            records after them do not follow.
    """

    torn_bytes: int = 0
    corrupt_bytes: int = 0
    evicted_segments: int = 0


class Journal:
    """A log of records in a directory.

    Args:
        directory: Where the segments lie; created if missing.
        fsync: Make :meth:`sync` wait for the disk.
        segment_bytes: Size after which the owner should :meth:`rotate`.

    Raises:
        JournalHeldError: If another process holds the directory.
        StateError: If its disk knows no locks.
    """

    def __init__(
        self, directory: Path, *, fsync: bool = False, segment_bytes: int = DEFAULT_SEGMENT_BYTES
    ) -> None:
        self.directory = directory
        self.damage = JournalDamage()
        self._fsync = fsync
        self._segment_bytes = segment_bytes
        directory.mkdir(parents=True, exist_ok=True)
        self._lock_file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_file)
            if not isinstance(error, BlockingIOError):
                raise StateError(
                    f"replay journal {directory} cannot be locked ({error}); use a "
                    "disk with file locks"
                ) from error
            raise JournalHeldError(
                f"replay journal {directory} is held by another process; stop it "
                "before this one starts"
            ) from error
        if fsync:
            sync(directory.parent)
        self._sync_lock = threading.Lock()
        self._file = -1
        self._segment = -1
        self._offset = 0
        self._head_bytes = 0
        self._written = 0
        self._synced = 0
        self._broken = ""

    @property
    def failure(self) -> str:
        """Why it takes no more records until it is opened again, in a sentence; empty while
        it does.
        """
        return f"replay journal {self.directory}: {self._broken}" if self._broken else ""

    def fail(self, reason: str) -> None:
        """Take no more records until it is opened again: what its owner holds is not what its
        records say.
        """
        self._broken = self._broken or reason

    @property
    def segments(self) -> list[int]:
        """Numbers of the segments on disk, the oldest first."""
        return _segments(self.directory)

    def size_bytes(self) -> int:
        """Bytes of all segments on disk."""
        return sum(self.path(number).stat().st_size for number in self.segments)

    @property
    def position(self) -> JournalPosition:
        """The end of the log."""
        return JournalPosition(self._segment, self._offset)

    @property
    def needs_rotation(self) -> bool:
        """True before the first record and when the current segment is full; its head does not
        count, or a head that alone is as large would make a segment of every record.
        """
        return self._file < 0 or self._offset - self._head_bytes >= self._segment_bytes

    def read_segments(self) -> Iterator[SegmentRecords]:
        """Yield the intact records of every segment, then open the end of the log for appending.
        Call it once, before anything else.
        """
        self.damage = JournalDamage()
        segments = self.segments
        if self._fsync and segments:
            self._bring_to_disk(segments[-1])
        for number, size, data in self._read_ahead(segments):
            is_last = number == segments[-1]
            frames = list(_scan(data, size, self.path(number), self.damage, is_last=is_last))
            yield SegmentRecords(number, size, data, frames)
            if is_last:
                _, start, length = frames[-1] if frames else (0, 0, 0)
                self._open_segment(number, start + length)

    def read(self) -> Iterator[Record]:
        """As :meth:`read_segments`, one record after the other."""
        for found in self.read_segments():
            yield from map(found.record, range(len(found.frames)))

    def append(self, kind: int, parts: Sequence[Buffer]) -> JournalPosition:
        """Add a record; when this returns it survives the death of the process.

        Returns:
            Where its bytes begin.

        Raises:
            StateError: If the disk takes no more; the log is then as before the call.
        """
        if self._broken or self._file < 0:
            raise StateError(
                f"replay journal {self.directory} takes no records: "
                f"{self._broken or 'no segment is open'}"
            )
        frame = _frame(kind, parts)
        size = sum(len(part) for part in frame)
        try:
            _write_all(self._file, frame, size)
        except OSError as error:
            self._cut_failed_write()
            raise StateError(
                f"replay journal {self.directory}: cannot write {size} bytes "
                f"({error}); nothing is acknowledged, free space"
            ) from error
        place = JournalPosition(self._segment, self._offset + FRAME.size)
        self._offset += size
        self._written += size
        return place

    def sync(self) -> None:
        """With ``fsync``: wait until everything appended before this call is on the disk."""
        if not self._fsync:
            return
        target = self._written
        with self._sync_lock:
            if self._synced >= target:
                return
            if self._broken:  # the disk says it once, to one of those who wait
                raise StateError(self.failure)
            upto = self._written
            try:
                os.fsync(self._file)
            except OSError as error:
                self.fail(f"{error}; the disk cannot be trusted")
                raise StateError(self.failure) from error
            self._synced = upto

    def rotate(self, head: bytes) -> None:
        """Begin a new segment whose first record is ``head``. A segment without its head never
        exists, whenever we die.

        Raises:
            StateError: If the disk takes no more; the log is then as before the call, or takes no
                records until it is opened again.
        """
        if self._broken:
            raise StateError(self.failure)
        number = max([self._segment, *self.segments], default=-1) + 1
        path = self.path(number)
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.writelines(_frame(HEAD, [head]))
            if self._fsync:
                sync(temporary)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StateError(
                f"replay journal {self.directory}: cannot begin a segment ({error}); "
                "nothing is acknowledged, free space"
            ) from error
        self.sync()
        try:
            temporary.rename(path)
            self._sync_directory()
            self._open_segment(number, path.stat().st_size)
        except OSError as error:  # which segment is the last one is not known any more
            self.fail(f"{error}; the disk cannot be trusted")
            raise StateError(self.failure) from error

    def truncate(self, position: JournalPosition) -> None:
        """Forget everything after ``position``.

        Raises:
            CheckpointError: If the log does not reach that far.
        """
        path = self.path(position.segment)
        if not path.exists() or path.stat().st_size < position.offset:
            raise CheckpointError(
                f"replay journal {self.directory} does not reach {position}; it was "
                "cut or its disk was replaced"
            )
        for number in self.segments:
            if number > position.segment:
                self.path(number).unlink()
        self._open_segment(position.segment, position.offset)
        self._sync_directory()

    def drop_before(self, segment: int) -> None:
        """Delete the segments before ``segment``; never the current one."""
        for number in self.segments:
            if number < min(segment, self._segment):
                self.path(number).unlink()

    def close(self) -> None:
        """Flush if ``fsync`` is on, and let go of the directory."""
        if self._file >= 0:
            if not self._broken:
                self.sync()
            os.close(self._file)
            self._file = -1
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    def path(self, segment: int) -> Path:
        """Of a segment's file."""
        return segment_path(self.directory, segment)

    def _read_ahead(self, segments: Sequence[int]) -> Iterator[tuple[int, int, bytearray]]:
        """Number, size and bytes of each segment; the next one is read meanwhile. Memory is used
        again: to fault it in takes longer than to fill it.
        """
        rooms = [bytearray(), bytearray()]
        with ThreadPoolExecutor(1, "journal-reader") as reader:
            reading = [reader.submit(_read_file, self.path(n), rooms[0]) for n in segments[:1]]
            for turn, number in enumerate(segments):
                size, rooms[turn % 2] = reading.pop().result()
                following = segments[turn + 1 : turn + 2]
                room = rooms[(turn + 1) % 2]
                reading += [reader.submit(_read_file, self.path(n), room) for n in following]
                yield number, size, rooms[turn % 2]

    def _open_segment(self, number: int, offset: int) -> None:
        with self._sync_lock:
            file = os.open(self.path(number), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.ftruncate(file, offset)
            except OSError:
                os.close(file)
                raise
            if self._file >= 0:
                os.close(self._file)
            self._file = file
            self._segment = number
            self._offset = offset
            self._head_bytes = min(offset, _head_bytes(self.path(number)))

    def _bring_to_disk(self, number: int) -> None:
        """Write the last segment again: what is read of it may be in memory only, where it was
        never synced, or marked as written by a sync that failed and is not tried again. The
        segments before it were synced when it was begun.
        """
        path = self.path(number)
        temporary = path.with_suffix(".tmp")
        try:
            with open_plain(path) as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target)
            sync(temporary)
            temporary.rename(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StateError(
                    f"replay journal {self.directory}: {path.name} cannot be written again "
                    f"({error}); the disk cannot be trusted"
                ) from error
            sync(path)
        self._sync_directory()

    def _sync_directory(self) -> None:
        if self._fsync:
            sync(self.directory)

    def _cut_failed_write(self) -> None:
        try:
            os.ftruncate(self._file, self._offset)
        except OSError as error:
            self.fail(f"{error}; the disk cannot be trusted")


def read_journal(directory: Path, damage: JournalDamage) -> Iterator[Record]:
    """Yield every intact record of a journal without a lock, while someone may write to it;
    changes nothing.

    Args:
        directory: Where the segments lie.
        damage: Filled with what is found.
    """
    segments = _segments(directory)
    for number in segments:
        try:
            yield from _read_segment(directory, number, damage, is_last=number == segments[-1])
        except FileNotFoundError:
            damage.evicted_segments += 1
            logger.info("segment %d of %s was evicted while it was read", number, directory)


def read_newest_segments(directory: Path) -> Iterator[Iterator[Record]]:
    """The intact records of every segment, the newest segment first; without a lock."""
    for number in reversed(_segments(directory)):
        yield _read_segment(directory, number, JournalDamage(), is_last=True)


def _read_segment(
    directory: Path, number: int, damage: JournalDamage, *, is_last: bool
) -> Iterator[Record]:
    """One record after the other; what comes after the last one that is asked for is not read."""
    path = segment_path(directory, number)
    try:
        data = read_plain(path, MOST_SEGMENT_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    for kind, start, size in _scan(data, len(data), path, damage, is_last=is_last):
        yield Record(number, kind, data[start : start + size], start)


def _segments(directory: Path) -> list[int]:
    """Numbers of the segments of a folder; files of other names, a copy someone made for example,
    are none.
    """
    names = (SEGMENT_NAME.fullmatch(path.name) for path in directory.glob("segment-*.wal"))
    return sorted(int(name[1]) for name in names if name)


def segment_path(directory: Path, segment: int) -> Path:
    """The file of a segment."""
    return directory / f"segment-{segment:08d}.wal"


def _head_bytes(path: Path) -> int:
    """What the head of a segment takes in its file; 0 if it is damaged."""
    with open_plain(path) as file:
        frame = file.read(FRAME.size)
    if len(frame) < FRAME.size:
        return 0
    magic, kind, size, _ = FRAME.unpack(frame)
    return FRAME.size + int(size) if (magic, kind) == (MAGIC, HEAD) else 0


def _read_file(path: Path, room: bytearray) -> tuple[int, bytearray]:
    """The size of a file, and its bytes at the begin of ``room``, or of a new one if that is too
    small.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(path, size, MOST_SEGMENT_BYTES)
        if size > len(room):
            room = bytearray(size + size // 8)  # segments end with their last record
        got = 0
        while got < size:
            count = file.readinto(memoryview(room)[got:size])
            if not count:
                break
            got += count
    return got, room


def _scan(
    data: bytes | bytearray, stop: int, path: Path, damage: JournalDamage, *, is_last: bool
) -> Iterator[tuple[int, int, int]]:
    """Yield kind, start and size of a segment's intact records; it ends at ``stop``."""
    offset = end = 0
    in_vain = 0
    while offset < stop:
        found = _parse(data, stop, offset)
        if isinstance(found, int):
            in_vain += found
            offset = data.find(MAGIC, offset + 1, stop)
            if offset < 0 or in_vain > MOST_IN_VAIN * stop:
                break
            continue
        if offset > end:
            damage.corrupt_bytes += offset - end
            logger.warning(
                "replay journal %s: %d damaged bytes skipped at %d", path, offset - end, end
            )
        _, start, size = found
        offset = end = start + size
        yield found
    if is_last and _is_cut_off(data, stop, end):
        damage.torn_bytes += stop - end
    else:
        damage.corrupt_bytes += stop - end


def _is_cut_off(data: bytes | bytearray, stop: int, offset: int) -> bool:
    """Whether what is left is the beginning of one record, as a writer that dies leaves it."""
    if stop - offset < FRAME.size:
        return MAGIC.startswith(bytes(data[offset : min(stop, offset + len(MAGIC))]))
    magic, _, size, _ = FRAME.unpack_from(data, offset)
    return bool(magic == MAGIC and offset + FRAME.size + size > stop)


def _frame(kind: int, parts: Sequence[Buffer]) -> list[Buffer]:
    size = sum(len(part) for part in parts)
    checksum = zlib.crc32(struct.pack("<II", kind, size))
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return [FRAME.pack(MAGIC, kind, size, checksum), *parts]


def _parse(data: bytes | bytearray, stop: int, offset: int) -> tuple[int, int, int] | int:
    """Kind, start and size of the record whose frame is at ``offset``; the bytes that were looked
    at in vain, if there is no intact one.
    """
    start = offset + FRAME.size
    if start > stop:
        return 0
    kind: int
    size: int
    magic, kind, size, checksum = FRAME.unpack_from(data, offset)
    if magic != MAGIC or start + size > stop:
        return 0
    payload = memoryview(data)[start : start + size]
    if zlib.crc32(payload, zlib.crc32(data[offset + 4 : offset + 12])) != checksum:
        return size
    return kind, start, size


def _write_all(file: int, parts: list[Buffer], size: int) -> None:
    written = os.writev(file, parts)
    if written < size:
        rest = memoryview(b"".join(parts))[written:]
        while rest:
            rest = rest[os.write(file, rest) :]
