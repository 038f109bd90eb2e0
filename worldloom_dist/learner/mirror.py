"""The newest state of a learner in shared memory, for the standby that goes on when it is killed.

    learner   between two updates: state -> slot 0, slot 1, slot 0, ...     (StateMirror)
    standby   maps the same memory; once the learner is dead: the newest whole slot  (MirrorReader)

    head      positions that were trained | of each slot: sequence number, sizes, checksums
    slot      the skeleton of the state and a table of its tensors (JSON) | the tensors

A slot's number is 0 from before the first byte of a state is written until after the last one, so
a learner that is killed in the middle leaves the slot before it as the newest whole one. Checksums
tell memory that was changed otherwise. The memory has no name in any file system: the learner opens
it (``memfd_create``), the standby opens the descriptor of the learner's process, and it is gone
with both of them.

Copying costs the training thread time, so it rests after each copy until that was at most
``SHARE`` of all time: a large model is copied every few updates.
"""

from __future__ import annotations

import json
import logging
import math
import mmap
import os
import struct
import time
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from worldloom.core.exceptions import StateError
from worldloom.core.json_text import parse_json
from worldloom.training.trees import join_tree, split_tree
from worldloom_dist.ports import MirrorPlace

__all__ = ["MirrorReader", "StateMirror"]

logger = logging.getLogger(__name__)

SHARE = 0.015
"""Of the training thread's time."""
PAGE = 4096
ALIGNMENT = 64
TRAINED = struct.Struct("<Q")
MAGIC = b"wlmirror"
SLOT = struct.Struct("<QQQQQ")
"""Sequence number, bytes of the text, bytes of all, checksum of the text, sum of the tensors."""
SLOTS = 2
WORD = 2**64


class Trained(Protocol):
    """What is mirrored: a learner, as far as this module knows it."""

    replayed_steps: int

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""


class StateMirror:
    """The learner's side. One thread calls it.

    Args:
        limit_bytes: The most that both slots may take; a larger state is not mirrored, and one line
            says so.

    Attributes:
        place: Where the memory is; None before the first state.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.place: MirrorPlace | None = None
        self._limit_bytes = limit_bytes
        self._is_too_large = False
        self._memory: mmap.mmap | None = None
        self._slot_bytes = 0
        self._sequence = 0
        self._opened = 0
        self._due = 0.0
        self._views: dict[int, tuple[Any, list[Tensor]]] = {}

    def follow(self, learner: Trained) -> float:
        """Note how far the learner is, and copy its state when that is due.

        Returns:
            Seconds that the copy took; 0 without one.
        """
        if self._memory is not None:
            self._memory[: TRAINED.size] = TRAINED.pack(learner.replayed_steps)
        began = time.monotonic()
        if began < self._due or self._is_too_large:
            return 0.0
        is_first = self.place is None
        self.write(learner.state_dict())
        seconds = time.monotonic() - began
        # the first one opens the memory; what a copy costs from then on is told by the second
        self._due = 0.0 if is_first else began + seconds / SHARE
        return seconds

    def write(self, state: Mapping[str, Any]) -> None:
        """Make ``state`` the newest one; the one before it stays whole until this one is."""
        skeleton, found = split_tree(state)
        tensors = [value.contiguous() for value in found.values()]
        table, end = _table(found)
        text = json.dumps([skeleton, table], separators=(",", ":")).encode()
        begin = _aligned(len(text))
        if not self._has_room(begin + end):
            return
        assert self._memory is not None  # or there would be no room
        self._sequence += 1
        slot = self._sequence % SLOTS
        at = PAGE + slot * self._slot_bytes
        self._write_head(slot, 0, 0, 0, 0, 0)
        self._memory[at : at + len(text)] = text
        self._copy(slot, at + begin, table, tensors)
        total = _sum(_view(self._memory, at + begin, ["", "uint8", [end], 0])) % WORD
        self._write_head(slot, self._sequence, len(text), begin + end, zlib.crc32(text), total)
        trained = int(state.get("replayed_steps", 0))
        self._memory[: TRAINED.size] = TRAINED.pack(trained)

    def close(self) -> None:
        """Give the memory back, once no standby maps it."""
        self._views.clear()
        if self.place is not None:
            os.close(self.place.descriptor)
        self.place = None
        self._memory = None

    def _copy(self, slot: int, at: int, table: list[Any], tensors: list[Tensor]) -> None:
        """Views of the slot are kept: they are the same in every copy of a learner's state."""
        key, views = self._views.get(slot, (None, []))
        if key != (at, table):
            views = [_view(self._memory, at, entry) for entry in table]
            self._views[slot] = ((at, table), views)
        torch._foreach_copy_(views, tensors)

    def _has_room(self, size: int) -> bool:
        """Open memory for slots of this size, where those that there are are too small."""
        if size <= self._slot_bytes:
            return True
        slot_bytes = -(-size * 5 // 4 // PAGE) * PAGE
        if SLOTS * slot_bytes > self._limit_bytes:
            self._is_too_large = True
            logger.warning(
                "the state of this learner is not mirrored: twice its %.1f GB is more than the "
                "%.1f GB that its machine has for that; after a kill the standby goes on from the "
                "newest checkpoint",
                size / 1e9,
                self._limit_bytes / 1e9,
            )
            self.close()
            return False
        self.close()
        descriptor = os.memfd_create("worldloom-learner", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, PAGE + SLOTS * slot_bytes)
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._memory = mmap.mmap(descriptor, PAGE + SLOTS * slot_bytes, flags=flags)
        self._memory[TRAINED.size : TRAINED.size + len(MAGIC)] = MAGIC
        self._slot_bytes = slot_bytes
        self._opened += 1
        self.place = MirrorPlace(os.getpid(), descriptor, self._opened)
        return True

    def _write_head(self, slot: int, *numbers: int) -> None:
        assert self._memory is not None  # the caller has written there
        at = ALIGNMENT * (slot + 1)
        self._memory[at : at + SLOT.size] = SLOT.pack(*numbers)


class MirrorReader:
    """The standby's side; never writes.

    Args:
        place: Of the learner's mirror, in a process of the same user on this machine.

    Raises:
        OSError: If there is none.
    """

    def __init__(self, place: MirrorPlace) -> None:
        path = f"/proc/{place.process}/fd/{place.descriptor}"
        with open(path, "rb") as file:
            if os.pread(file.fileno(), len(MAGIC), TRAINED.size) != MAGIC:
                raise FileNotFoundError(f"{path} is no mirror")  # the number came again
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._slot_bytes = (len(self._memory) - PAGE) // SLOTS

    @property
    def trained(self) -> int:
        """Positions that the learner had trained when it was last seen."""
        return int(TRAINED.unpack_from(self._memory)[0])

    def newest(self) -> dict[str, Any] | None:
        """The newest whole state, in tensors of its own; None where there is none. To be read when
        its learner is dead: one that lives writes there.
        """
        heads = {
            slot: SLOT.unpack_from(self._memory, ALIGNMENT * (slot + 1)) for slot in range(SLOTS)
        }
        for slot in sorted(heads, key=lambda slot: heads[slot][0], reverse=True):
            try:
                return self._read(slot, *heads[slot])
            except StateError as error:
                logger.warning("a mirrored state is passed over: %s", error)
        return None

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()

    def _read(
        self, slot: int, sequence: int, text_bytes: int, size: int, text_sum: int, total: int
    ) -> dict[str, Any]:
        if not sequence:
            raise StateError("it was being written when its learner died, or never was")
        if not 0 < text_bytes <= size <= self._slot_bytes:
            raise StateError("its sizes are wrong")
        at = PAGE + slot * self._slot_bytes
        copied = bytearray(self._memory[at : at + size])  # of our own, and writable
        text = bytes(copied[:text_bytes])
        begin = _aligned(text_bytes)
        data = torch.frombuffer(copied, dtype=torch.uint8)[begin:]
        if zlib.crc32(text) != text_sum or _sum(data) % WORD != total:
            raise StateError("its checksum is wrong")
        skeleton, table = parse_json(text)
        views = {entry[0]: _view(copied, begin, entry) for entry in table}
        state: dict[str, Any] = join_tree(skeleton, views)
        return state


def _table(tensors: Mapping[str, Tensor]) -> tuple[list[Any], int]:
    """Path, dtype, shape and place of every tensor, and the bytes of all."""
    table = []
    end = 0
    for path, value in tensors.items():
        table.append([path, str(value.dtype).removeprefix("torch."), list(value.shape), end])
        end = _aligned(end + value.numel() * value.element_size())
    return table, end


def _view(memory: Any, at: int, entry: list[Any]) -> Tensor:
    _, name, shape, offset = entry
    dtype: torch.dtype = getattr(torch, name)
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=at + offset).view(shape)


def _sum(data: Tensor) -> int:
    """Of the words of bytes ``[n]``; as fast as memory is read."""
    return int(data.view(torch.int64).sum()) if len(data) else 0


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
