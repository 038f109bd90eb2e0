"""Machines of a small network on this one: each a network namespace with one link to a switch that
can be told to lose, delay, reorder or cut what one machine sends to another.

    unshare --net --pid --mount --fork --kill-child=KILL python network_keeper.py SEED NODE...

It is the first process of a PID namespace, so whatever it started ends with it, however it ends;
links and namespaces are gone with the last process in them. It answers a JSON line on stdin with
one on stdout:

    {"start": NODE, "command": [...], "env": {...}, "output": FILE}    -> its number
    {"poll": NUMBER}                                                    -> status, or null
    {"signal": NUMBER, "number": 2}                                     -> null
    {"link": [FROM, TO], "cut": false, "delay_s": 0, "jitter_s": 0, "loss": 0}   -> null

The switch is a program, because not every kernel has netem; frames wait in a heap for their time,
so those with other delays overtake each other. It needs root, and ``/dev/net/tun``.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
MTU = 9000
NETWORK = "10.77.0"


@dataclass
class Link:
    """What becomes of frames from one machine to another."""

    cut: bool = False
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0


def sh(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


class Network:
    """The machines, their links, and what runs on them."""

    def __init__(self, seed: int, nodes: list[str]) -> None:
        self.nodes = nodes
        self.links = {(a, b): Link() for a in nodes for b in nodes if a != b}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._rng = random.Random(seed)
        self._late: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        os.makedirs("/run/netns", exist_ok=True)
        sh("mount", "-t", "tmpfs", "none", "/run/netns")
        sh("mount", "-t", "proc", "proc", "/proc")
        self.taps = [self._add(index, name) for index, name in enumerate(nodes)]

    def _add(self, index: int, name: str) -> int:
        """A machine with an address and a link; returns the switch's end of it."""
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        named = struct.pack("16sH22x", f"n{index}".encode(), IFF_TAP | IFF_NO_PI)
        fcntl.ioctl(tap, TUNSETIFF, named)
        sh("ip", "netns", "add", name)
        sh("ip", "link", "set", f"n{index}", "netns", name)
        inside = ("ip", "-n", name)
        sh(*inside, "link", "set", "lo", "up")
        sh(*inside, "link", "set", f"n{index}", "address", f"02:00:00:00:00:{index:02x}")
        sh(*inside, "link", "set", f"n{index}", "mtu", str(MTU), "up")
        sh(*inside, "addr", "add", f"{NETWORK}.{index + 1}/24", "dev", f"n{index}")
        return tap

    def serve(self) -> None:
        """Pass frames on and do what is asked, until stdin ends."""
        poll = select.poll()
        places = {tap: index for index, tap in enumerate(self.taps)}
        for place in (0, *self.taps):
            poll.register(place, select.POLLIN)
        asked = b""
        while True:
            wait_s = max(0.0, self._late[0][0] - time.monotonic()) if self._late else 0.2
            for place, _ in poll.poll(1000 * min(wait_s, 0.2)):
                if place == 0:
                    fresh = os.read(0, 65536)
                    if not fresh:
                        return
                    *lines, asked = (asked + fresh).split(b"\n")
                    for line in lines:
                        os.write(1, json.dumps(self.do(json.loads(line))).encode() + b"\n")
                else:
                    self._take(places[place])
            self._pass_on()

    def do(self, asked: dict[str, Any]) -> Any:
        if "link" in asked:
            pair = tuple(asked.pop("link"))
            self.links[pair] = Link(**asked)
            return None
        if "start" in asked:
            command = ["nsenter", f"--net=/run/netns/{asked['start']}", *asked["command"]]
            with open(asked["output"], "ab") as output:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        env=asked["env"],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
            return len(self.processes) - 1
        if "signal" in asked:
            self.processes[asked["signal"]].send_signal(asked["number"])
            return None
        return self.processes[asked["poll"]].poll()

    def _take(self, source: int) -> None:
        """Take what a machine has sent."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                frame = os.read(self.taps[source], 65536)
                for target in range(len(self.taps)):
                    is_meant = frame[0] & 1 or frame[5] == target  # to all, or by our own numbers
                    if target != source and is_meant:
                        self._send(source, target, frame)

    def _send(self, source: int, target: int, frame: bytes) -> None:
        link = self.links[self.nodes[source], self.nodes[target]]
        if link.cut or self._rng.random() < link.loss:
            return
        delay_s = link.delay_s + self._rng.random() * link.jitter_s
        if delay_s:
            self._count += 1
            heapq.heappush(self._late, (time.monotonic() + delay_s, self._count, target, frame))
        else:
            self._write(target, frame)

    def _pass_on(self) -> None:
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, _, target, frame = heapq.heappop(self._late)
            self._write(target, frame)

    def _write(self, target: int, frame: bytes) -> None:
        with contextlib.suppress(OSError):  # a full queue loses it, as a switch does
            os.write(self.taps[target], frame)


if __name__ == "__main__":
    Network(int(sys.argv[1]), sys.argv[2:]).serve()
