"""A policy as one graph: raw observations, carry and draws in, raw actions and the next carry out.

Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldloom.core.policy_step import PolicyStep
from worldloom.core.specs import ACTION, OBS, ArraySpec, EnvSpec, column_name
from worldloom.envs.config import EnvConfig
from worldloom.export.scaling import ActionWriter, ObsReader, graph_dtype

__all__ = ["PolicyGraph", "Port"]

IS_FIRST, UNIFORM, NORMAL = "is_first", "uniform", "normal"
CARRY, NEXT = "carry/", "next_carry/"
Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output of a graph.

    Attributes:
        name: In the graph.
        role: ``observation``, ``is_first``, ``carry``, ``noise`` or ``action``.
        shape: Of one row.
        dtype: In the graph.
        path: Where an observation or an action lies in the env's own.
        space: Of such an array.
        draws: Which draws a noise is: ``uniform`` or ``normal``.
        next: Of a carry that comes in: the output that comes in next time.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    path: tuple[str | int, ...] = ()
    space: Any = None
    draws: str = ""
    next: str = ""

    def zeros(self, rows: int) -> np.ndarray:
        """Zeros for this many rows."""
        return np.zeros((rows, *self.shape), self.dtype)


class PolicyGraph(nn.Module):
    """A trained policy from the env's own arrays to the env's own arrays.

    Args:
        step: The decision, between the agent's arrays.
        env: What the agent observes and does.
        spaces: Observation and action space of one env.
        config: Resolved settings of the env.

    Attributes:
        inputs, outputs: In the order of their names.
    """

    def __init__(
        self, step: PolicyStep, env: EnvSpec, spaces: tuple[Any, Any], config: EnvConfig
    ) -> None:
        super().__init__()
        assert isinstance(step, nn.Module)
        self.step = step
        self.read = ObsReader(spaces[0], config, env.obs)
        self.write = ActionWriter(spaces[1])
        self.carry: dict[str, ArraySpec] = {**self.read.carry, **step.carry}
        self.inputs = sorted(self._inputs(step), key=lambda port: port.name)
        self.outputs = sorted(self._outputs(), key=lambda port: port.name)
        self.eval().requires_grad_(False)

    def forward(self, inputs: Tensors) -> Tensors:
        """Tensors by name ``[N, ...]`` -> tensors by name."""
        carry = {name: inputs[CARRY + name] for name in self.carry}
        first = inputs.get(IS_FIRST)
        raw = {key: inputs[column_name(OBS, key)] for key in self.read.leaves}
        obs, after = self.read(raw, carry, first)
        action, remembered = self.step(obs, carry, first, inputs.get(UNIFORM), inputs.get(NORMAL))
        after |= remembered
        found = {NEXT + name: after[name] for name in self.carry}
        native = self.write(action)
        found |= {column_name(ACTION, key): native[key] for key in self.write.leaves}
        return {port.name: found[port.name] for port in self.outputs}

    def example(self, rows: int) -> Tensors:
        """Inputs that fit."""
        return {port.name: torch.from_numpy(port.zeros(rows)) for port in self.inputs}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Decide by torch."""
        with torch.inference_mode():
            found = self({name: torch.tensor(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in found.items()}

    def _inputs(self, step: PolicyStep) -> list[Port]:
        ports = _space_ports(OBS, "observation", self.read.leaves)
        ports += [
            Port(
                name=CARRY + name,
                role="carry",
                shape=spec.shape,
                dtype=spec.dtype,
                next=NEXT + name,
            )
            for name, spec in self.carry.items()
        ]
        if self.carry:
            ports.append(Port(name=IS_FIRST, role="is_first", shape=(), dtype="bool"))
        widths = {UNIFORM: step.uniform, NORMAL: step.normal}
        ports += [
            Port(name=name, role="noise", shape=(width,), dtype="float32", draws=name)
            for name, width in widths.items()
            if width
        ]
        return ports

    def _outputs(self) -> list[Port]:
        return _space_ports(ACTION, "action", self.write.leaves) + [
            Port(name=NEXT + name, role="carry", shape=spec.shape, dtype=spec.dtype)
            for name, spec in self.carry.items()
        ]


def _space_ports(group: str, role: str, leaves: Mapping[str, tuple[Any, Any]]) -> list[Port]:
    """One port for each array of a space, as the env has it."""
    return [
        Port(
            name=column_name(group, key),
            role=role,
            shape=leaf.native_shape,
            dtype=graph_dtype(space.dtype),
            path=leaf.path,
            space=space,
        )
        for key, (space, leaf) in leaves.items()
    ]
