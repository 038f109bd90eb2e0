"""A gateway that listens, with fakes behind it."""

import contextlib

from tests.worldloom_dist.gateway.parts import Rig
from worldloom_dist.gateway.server import Access, GatewayServer
from worldloom_dist.gateway.thread import GatewayThread


class Live:
    """A server in a thread of its own."""

    def __init__(self, access=None, port=0, **rig) -> None:
        def make():
            self.rig = Rig(**rig)
            return GatewayServer(self.rig.gateway, access or Access())

        self.thread = GatewayThread(make, port)
        self.address = f"127.0.0.1:{self.thread.port}"

    def hold(self) -> None:
        """Replay stores nothing for a while."""
        self.thread.loop.call_soon_threadsafe(self.rig.shard.permits.clear)

    def let_go(self) -> None:
        """It stores again."""
        self.thread.loop.call_soon_threadsafe(self.rig.shard.permits.set)

    def kill(self) -> None:
        """End without a word, as a process that is killed does."""
        self.thread.abort()


@contextlib.contextmanager
def live(access=None, **rig):
    server = Live(access, **rig)
    try:
        yield server
    finally:
        if not server.thread.loop.is_closed():
            server.thread.stop(1.0)
