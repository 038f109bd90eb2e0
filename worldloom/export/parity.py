"""Does an exported policy decide as the agent does? Decisions that the agent made are made again by
the file, from the same inputs and the same draws, and compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.leaves import has_bounds
from worldloom.export.graph import CARRY, NEXT, PolicyGraph, Port
from worldloom.export.recording import Recording

__all__ = ["LEAST_AGREEING", "TOLERANCE", "Parity", "check", "compare"]

TOLERANCE = {"float32": 1e-3, "bf16": 2e-2, "int8": 2e-2}
"""Precision -> how far an action may be off, in half ranges of its bounds, to be the same one."""
LEAST_AGREEING = 0.99
"""Share of decisions that must be the same. A rounding can change one of thousands: a draw that
falls on the edge between two classes, or a planner's choice between two equal plans.
"""
WARM_UP = 10
"""Decisions before the clock counts."""
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What a comparison found.

    Attributes:
        decisions: How many were compared.
        observations: ``env`` or ``random``.
        agreeing: Share of them that were the same.
        tolerance: How far an action might be off, in half ranges of its bounds.
        largest: Output -> largest difference, in its own units; of classes the share that differs.
        latency_ms: ``torch`` and the runtime -> ``p50`` and ``p99`` of one decision, by one thread.
        returns: Of the agent's episodes that ended meanwhile.
    """

    decisions: int
    observations: str
    agreeing: float
    tolerance: float
    largest: Mapping[str, float]
    latency_ms: Mapping[str, Mapping[str, float]]
    returns: Sequence[float]

    def to_dict(self) -> dict[str, Any]:
        """As ``parity.json`` has it."""
        return {
            "decisions": self.decisions,
            "observations": self.observations,
            "agreeing": self.agreeing,
            "least_agreeing": LEAST_AGREEING,
            "tolerance": self.tolerance,
            "largest_difference": dict(self.largest),
            "latency_ms": {name: dict(times) for name, times in self.latency_ms.items()},
            "threads": 1,
            "returns": list(self.returns),
        }

    def lines(self) -> list[str]:
        """For people."""
        latency = ", ".join(
            f"{name} {times['p50']:.3f} (p99 {times['p99']:.3f})"
            for name, times in self.latency_ms.items()
        )
        differences = ", ".join(f"{name} {value:.3g}" for name, value in self.largest.items())
        return [
            f"parity: {self.agreeing:.2%} of {self.decisions} decisions agree with the agent's",
            f"largest differences: {differences}",
            f"milliseconds per decision, 1 thread: {latency}",
        ]


def compare(
    run: Run,
    recording: Recording,
    graph: PolicyGraph,
    *,
    runtime: str,
    tolerance: float,
    observations: str,
) -> Parity:
    """Make recorded decisions again.

    Args:
        run: The exported policy: inputs by name to outputs by name.
        recording: What the agent decided.
        graph: Names inputs and outputs.
        runtime: Of ``run``, for the report.
        tolerance: See :class:`Parity`.
        observations: Where they came from, for the report.
    """
    kept = {CARRY + name: port.zeros(1) for name, port in _frames(graph).items()}
    seconds = []
    largest: dict[str, float] = {port.name: 0.0 for port in graph.outputs}
    same = 0
    for given, wanted in zip(recording.inputs, recording.outputs, strict=True):
        began = time.perf_counter()
        found = run(given | kept)
        seconds.append(time.perf_counter() - began)
        kept = {CARRY + name: found[NEXT + name] for name in _frames(graph)}
        agrees = True
        for port in graph.outputs:
            if port.name in wanted:
                off, is_same = _difference(port, found[port.name], wanted[port.name], tolerance)
                agrees = agrees and (is_same or port.role != "action")
                is_share = port.role == "action" and _is_choice(port)
                sum_or_most = largest[port.name] + off if is_share else max(largest[port.name], off)
                largest[port.name] = sum_or_most
        same += agrees
    count = len(recording.inputs)
    for port in graph.outputs:
        if port.role == "action" and _is_choice(port):
            largest[port.name] /= count
        if port.name.removeprefix(NEXT) in _frames(graph):
            del largest[port.name]
    return Parity(
        decisions=count,
        observations=observations,
        agreeing=same / count,
        tolerance=tolerance,
        largest=largest,
        latency_ms={"torch": _times(recording.seconds), runtime: _times(seconds)},
        returns=recording.returns,
    )


def check(parity: Parity, what: str) -> None:
    """Refuse a policy that decides otherwise.

    Raises:
        ConfigurationError: With the share of decisions that agree.
    """
    if parity.agreeing < LEAST_AGREEING:
        raise ConfigurationError(
            f"{what} does not decide as the agent does: {parity.agreeing:.2%} of "
            f"{parity.decisions} decisions agree within {parity.tolerance:g} of the action's "
            f"range, and {LEAST_AGREEING:.0%} must; nothing was written"
        )


def _frames(graph: PolicyGraph) -> dict[str, Port]:
    """What the graph itself keeps of images, by name."""
    return {
        port.name.removeprefix(CARRY): port
        for port in graph.inputs
        if port.role == "carry" and port.name.removeprefix(CARRY) in graph.read.carry
    }


def _is_choice(port: Port) -> bool:
    from gymnasium import spaces

    return not isinstance(port.space, spaces.Box)


def _difference(
    port: Port, found: np.ndarray, wanted: np.ndarray, tolerance: float
) -> tuple[float, bool]:
    """How far an output is off, and whether it counts as the same; of classes 0 or 1."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf"), False
    if port.role == "action" and _is_choice(port):
        is_same = bool(np.array_equal(found, wanted))
        return float(not is_same), is_same
    off = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    most = float(off.max(initial=0.0))
    if port.role != "action":
        return most, True
    bounded = has_bounds(port.space)
    reach = np.where(bounded, np.subtract(port.space.high, port.space.low, dtype=float) / 2, 1.0)
    if np.dtype(port.space.dtype).kind != "f":
        reach = np.maximum(reach, 1.0 / tolerance)  # one step of an integer is no difference
    return most, bool((off <= tolerance * np.where(reach > 0, reach, 1.0)).all())


def _times(seconds: Sequence[float]) -> dict[str, float]:
    counted = np.array(seconds[WARM_UP:] or seconds) * 1e3
    return {"p50": float(np.percentile(counted, 50)), "p99": float(np.percentile(counted, 99))}
