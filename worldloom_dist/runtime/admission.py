"""A shard's questions to the coordinator: chunks that arrive while one is open share the next, so
that a busy shard asks less often.

The coordinator permits a question's chunks in their order, as many as the train ratio allows now,
and waits until that is one. Nothing is permitted ahead of what has arrived: steps that a shard
merely might insert would count as inserted for those who sample. Questions are numbered, so that
one that is asked again, because its answer was lost on the way, is not permitted twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["Admission"]

ItemT = TypeVar("ItemT")


class Admission(Generic[ItemT]):
    """One shard's queue of chunks that are not admitted yet; lives on an event loop.

    Args:
        ask: Takes the question's number and what is to be known of the chunks; answers how many of
            these, from the first, are admitted: none when a successor of the shard has shown up.
    """

    def __init__(self, ask: Callable[[int, list[ItemT]], Awaitable[int]]) -> None:
        self._ask = ask
        self._asked = 0
        self._waiting: deque[tuple[ItemT, asyncio.Future[bool]]] = deque()
        self._asking: asyncio.Task[None] | None = None

    async def admit(self, chunk: ItemT) -> bool:
        """True when a chunk may be stored; False when a successor of the shard has shown up.

        Raises:
            RoleGoneError: If the coordinator stayed away.
        """
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((chunk, answer))
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._go_on())
        return await answer

    async def _go_on(self) -> None:
        """Ask until no one waits."""
        try:
            while self._waiting:
                self._asked += 1
                permitted = await self._ask(self._asked, [chunk for chunk, _ in self._waiting])
                for _ in range(permitted or len(self._waiting)):
                    _, answer = self._waiting.popleft()
                    if not answer.done():
                        answer.set_result(permitted > 0)
        except Exception as error:  # the waiting calls get it
            while self._waiting:
                _, answer = self._waiting.popleft()
                if not answer.done():
                    answer.set_exception(error)
        finally:
            self._asking = None
