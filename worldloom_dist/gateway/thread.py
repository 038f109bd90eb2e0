"""A gateway on an event loop in a thread of its own, for a process whose main thread has other
work.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from worldloom_dist.gateway.server import GatewayServer

__all__ = ["GatewayThread"]

T = TypeVar("T")

LOOP_ANSWERS_WITHIN_S = 30.0
LOOK_AT_END_EVERY_S = 0.01


class GatewayThread:
    """Starts a server, and stops it.

    Args:
        make: Makes the server, on its loop.
        port: To listen on; 0 for any.

    Attributes:
        port: That it listens on.
        server: The server.

    Raises:
        ConfigurationError: If it cannot listen there.
    """

    def __init__(self, make: Callable[[], GatewayServer], port: int) -> None:
        self.server: GatewayServer
        self.port: int
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()
        self._tending: asyncio.Future[None] | None = None
        try:
            self.server, self.port = self.call(self._start(make, port))
        except BaseException:
            self._end()
            raise

    def call(self, work: Coroutine[Any, Any, T], within_s: float = LOOP_ANSWERS_WITHIN_S) -> T:
        """Do something on the loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(within_s)

    def stop(self, drain_s: float = 5.0, meanwhile: Callable[[], object] = lambda: None) -> int:
        """Stop the server.

        Args:
            drain_s: How long it may take until rows are stored.
            meanwhile: Called again and again until then: what this thread has to do for it.

        Returns:
            Rows that could not be stored.
        """
        ending = asyncio.run_coroutine_threadsafe(self.server.stop(drain_s), self.loop)
        try:
            while not ending.done():
                meanwhile()
                concurrent.futures.wait([ending], timeout=LOOK_AT_END_EVERY_S)
            return int(ending.result())
        finally:
            self._end()

    def abort(self) -> None:
        """End at once, see :meth:`GatewayServer.abort`; clients go on at another gateway."""
        try:
            self.call(self.server.abort())
        finally:
            self._end()

    async def _start(self, make: Callable[[], GatewayServer], port: int) -> tuple[Any, int]:
        server = make()
        found = await server.start(port)
        self._tending = asyncio.ensure_future(server.gateway.tend_for_ever())
        server.health.set(is_serving=True)
        return server, found

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def _end(self) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LOOP_ANSWERS_WITHIN_S)
