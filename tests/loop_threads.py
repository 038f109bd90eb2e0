"""An event loop in a thread of its own, as a role has one, that can end as by kill -9."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for the threads of a test; keeps every connection that its servers take."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._transports: list[asyncio.Transport] = []
        self._servers: list[asyncio.Server] = []
        self._create_server = self.loop.create_server
        self.loop.create_server = self._create_watched_server  # type: ignore[method-assign, assignment]
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def soon(self, work: Callable[[], object]) -> None:
        """Have the loop do it."""
        self.loop.call_soon_threadsafe(work)

    def end(self) -> None:
        """As kill -9 would: nothing goes on, and every connection breaks."""
        if not self._thread.is_alive():
            return

        async def break_all() -> None:
            for server in self._servers:
                server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            for transport in self._transports:
                transport.abort()

        self.run(break_all())
        self.soon(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    async def _create_watched_server(
        self, factory: Callable[[], Any], *args: Any, **kwargs: Any
    ) -> asyncio.Server:
        def watched() -> Any:
            protocol = factory()
            made = protocol.connection_made

            def connection_made(transport: asyncio.Transport) -> None:
                self._transports.append(transport)
                made(transport)

            protocol.connection_made = connection_made
            return protocol

        server = await self._create_server(watched, *args, **kwargs)
        self._servers.append(server)
        return server
