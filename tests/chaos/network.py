"""The handle on a :mod:`tests.chaos.network_keeper`, and a Ray cluster over its machines."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

KEEPER = Path(__file__).with_name("network_keeper.py")
PR_SET_PDEATHSIG = 1
NETWORK = "10.77.0"
SYSTEM = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 4000,
    "health_check_failure_threshold": 3,
}
STORE_BYTES = 100 * 2**20


def why_not() -> str:
    """Why this machine cannot have a network of its own; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare", "nsenter") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} is not installed (Debian: apt install iproute2 util-linux)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    return ""


def _die_with_parent() -> None:
    """Also when pytest is killed by its time limit: the keeper ends, and with it all it started."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Network:
    """Machines that reach each other as they are told. Use as a context."""

    def __init__(self, seed: int, *nodes: str) -> None:
        self.nodes = nodes
        words = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child=KILL"]
        self._keeper = subprocess.Popen(
            [*words, sys.executable, str(KEEPER), str(seed), *nodes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.kill()
        self._keeper.communicate()

    def address(self, node: str) -> str:
        """Its IP address."""
        return f"{NETWORK}.{self.nodes.index(node) + 1}"

    def start(self, node: str, command: list[str], env: dict[str, str], output: Path) -> int:
        """Start a process on a machine; returns its number."""
        found: int = self._ask(start=node, command=command, env=env, output=str(output))
        return found

    def status(self, process: int) -> int | None:
        """Its exit status; None while it runs."""
        found: int | None = self._ask(poll=process)
        return found

    def send_signal(self, process: int, number: int) -> None:
        """Send a signal to a process that was started."""
        self._ask(signal=process, number=number)

    def link(self, source: str, target: str, **how: Any) -> None:
        """What becomes of frames from one machine to another: ``cut``, ``delay_s``, ``jitter_s``,
        ``loss``; nothing heals it.
        """
        self._ask(link=[source, target], **how)

    def heal(self) -> None:
        """Every link as it was."""
        for source in self.nodes:
            for target in self.nodes:
                if source != target:
                    self.link(source, target)

    def _ask(self, **what: Any) -> Any:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(json.dumps(what) + "\n")
        self._keeper.stdin.flush()
        answer = self._keeper.stdout.readline()
        assert answer, f"the network ended with {self._keeper.poll()}"
        return json.loads(answer)


@dataclass(frozen=True)
class Event:
    """Something that happens to the network.

    Attributes:
        links: From and to, of every link that it happens to.
        how: As of :meth:`Network.link`.
        seconds: How long.
        rest_s: What is left alone afterwards.
    """

    what: str
    links: tuple[tuple[str, str], ...]
    how: dict[str, float | bool]
    seconds: float
    rest_s: float

    def __str__(self) -> str:
        return f"{self.what} for {self.seconds:.0f} s"


def schedule_of(seed: int, nodes: tuple[str, ...], num_events: int) -> list[Event]:
    """Events at random, the same for the same seed: machines cut off from all others or from one,
    in both directions or in one, for less and for more time than a machine is given up after; and
    networks that delay, reorder and lose.
    """
    rng = random.Random(seed)
    every = tuple((a, b) for a in nodes for b in nodes if a != b)
    found = []
    for _ in range(num_events):
        victim, other = rng.sample(nodes, 2)
        out = tuple(pair for pair in every if pair[0] == victim)
        into = tuple(pair for pair in every if pair[1] == victim)
        pair = ((victim, other), (other, victim))
        short = rng.random() < 0.5
        seconds = rng.uniform(1, 6) if short else rng.uniform(15, 25)
        cuts = {
            f"{victim} is cut off": out + into,
            f"{victim} hears and is not heard": out,
            f"{victim} is heard and hears nothing": into,
            f"{victim} and {other} do not reach each other": pair,
        }
        troubles = {
            "frames are late and out of order": {
                "delay_s": rng.uniform(0.005, 0.08),
                "jitter_s": rng.uniform(0.01, 0.1),
            },
            "frames are lost": {"loss": rng.uniform(0.01, 0.1)},
        }
        what = rng.choice([*cuts, *cuts, *troubles])
        links = cuts.get(what, every)
        how: dict[str, float | bool] = dict(troubles.get(what, {"cut": True}))
        found.append(Event(what, links, how, seconds, rng.uniform(2, 8)))
    return found
