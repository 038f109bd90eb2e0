"""Asking a shard for windows: over a line while answers are small, through Ray's shared memory when they are large.

A call over Ray costs both sides about a millisecond, which is what a batch of compressed frames or of vectors takes to draw and to
decode; a line costs a tenth of that (``docs/adr/007-calls-over-a-socket.md``). Megabytes of raw pixels or latents are cheaper
where both sides see the same memory. What the last answer took decides the way of the next question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray

from worldloom_dist.ports import SampledWindows, SampleRequest
from worldloom_dist.replay.packed_windows import PackedWindows
from worldloom_dist.runtime.line import Line
from worldloom_dist.runtime.remote import GONE, Remote, RoleGoneError

__all__ = ["Given", "ShardReader"]

Given = SampledWindows | PackedWindows
SAMPLE_TIMEOUT_S = 30.0
LARGE_BYTES = 2 * 2**20


class ShardReader:
    """One shard, for one thread. Does not wait for the successor of a shard that is gone.

    Args:
        shard: Whose method ``sample`` takes a list of requests, also from a line.
    """

    def __init__(self, shard: Remote) -> None:
        self.shard = shard
        self._line = Line(shard, "sample", SAMPLE_TIMEOUT_S, 0.0)
        self._is_large = False

    def submit(self, requests: Sequence[SampleRequest]) -> Callable[[], list[Given]]:
        """Ask; the result waits for what is given: as many as were asked for, or fewer when the shard has too little.

        Raises:
            RoleGoneError: Then or when waiting, if the shard is gone or does not answer.
        """
        asked = list(requests)
        if not self._is_large:
            return partial(self._keep_size, self._line.submit(asked))
        try:
            return partial(self._keep_size, partial(self._get, self.shard.handle.sample.remote(asked)))
        except ValueError as error:
            raise RoleGoneError(f"{self.shard.name} is gone") from error

    def close(self) -> None:
        """Hang up."""
        self._line.close()

    def _keep_size(self, wait: Callable[[], list[Given]]) -> list[Given]:
        given = wait()
        self._is_large = sum(windows.nbytes for windows in given) > LARGE_BYTES
        return given

    def _get(self, reference: Any) -> list[Given]:
        try:
            given: list[Given] = ray.get(reference, timeout=SAMPLE_TIMEOUT_S)
        except GONE as error:
            self.shard.forget()
            raise RoleGoneError(f"{self.shard.name} is gone ({type(error).__name__})") from error
        return given
