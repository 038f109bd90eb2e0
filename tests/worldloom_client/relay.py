"""A line between a client and a gateway that can be slow, silent or broken, as networks are."""

import contextlib
import heapq
import random
import select
import socket
import threading
import time


class Relay:
    """Passes connections on to a port of this machine.

    ``delay_s``: how long bytes are on the way, each way. ``stall``: share of the pieces that take
    ``STALL_S`` longer, as segments do that are lost and sent again. :meth:`cut` lets nothing pass
    and closes nothing, as a cable that is pulled; :meth:`mend` ends it, and the connections of
    before are dead then.
    """

    STALL_S = 0.2

    def __init__(self, port, delay_s=0.0, stall=0.0, seed=0) -> None:
        self.to_port = port
        self._delay_s = delay_s
        self._stall = stall
        self._rng = random.Random(seed)
        self._is_cut = False
        self._is_over = False
        self._pairs = []
        self._late = []
        self._count = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        self._is_cut = True

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self._is_over = True
        self._thread.join(10)
        for pair in self._pairs:
            for end in pair:
                end.close()
        self._listener.close()

    def _run(self) -> None:
        is_dead = False
        while not self._is_over:
            if self._is_cut:
                is_dead = True
                time.sleep(0.01)
                continue
            if is_dead:  # who was connected finds out when it speaks
                is_dead = False
                self._late.clear()
                for pair in self._pairs:
                    for end in pair:
                        end.close()
                self._pairs.clear()
            self._turn()

    def _turn(self) -> None:
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, _, end, data = heapq.heappop(self._late)
            with contextlib.suppress(OSError):
                end.sendall(data)
        wait_s = min(0.01, max(0.0, self._late[0][0] - now)) if self._late else 0.01
        other = {id(a): b for pair in self._pairs for a, b in (pair, pair[::-1])}
        ends = [end for pair in self._pairs for end in pair]
        for end in select.select([self._listener, *ends], [], [], wait_s)[0]:
            if end is self._listener:
                self._connect(end.accept()[0])
                continue
            try:
                data = end.recv(65536)
            except OSError:
                data = b""
            if not data:
                self._drop(end)
                continue
            late = self._rng.random() < self._stall
            self._count += 1
            due = now + self._delay_s + (self.STALL_S if late else 0.0)
            known = [entry[0] for entry in self._late if entry[2] is other[id(end)]]
            due = max([due, *known])  # what was sent first arrives first
            heapq.heappush(self._late, (due, self._count, other[id(end)], data))

    def _connect(self, near) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self.to_port), timeout=1)
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.append((near, far))

    def _drop(self, end) -> None:
        for pair in list(self._pairs):
            if end in pair:
                self._pairs.remove(pair)
                for one in pair:
                    one.close()
