"""``policy.json``: all that a program must know to act with an exported policy, in any language."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from worldloom import __version__
from worldloom.core.specs import EnvSpec
from worldloom.envs.config import EnvConfig
from worldloom.envs.space_json import space_to_json, spaces_to_json
from worldloom.export.graph import PolicyGraph, Port
from worldloom.training.saved_agents import SavedAgent

__all__ = ["FORMAT", "control", "describe", "graph_facts"]

FORMAT = 1
"""Of the contract; it is raised when a reader of this one could not read the next."""
PACKAGES = ("torch", "numpy", "gymnasium", "onnx", "onnxscript", "onnxruntime", "safetensors")
GYMNASIUM = ("gym", "mujoco")
"""Suites whose names are ids of Gymnasium."""
UNITS = {
    "picture": "pixels, 0 to 255",
    "class": "class, as the env counts them",
    "number": "raw numbers of the env",
}


def describe(
    saved: SavedAgent, *, steps_per_second: float | None, env_id: str | None
) -> dict[str, Any]:
    """Where a policy comes from and which env it acts in.

    Args:
        saved: The agent.
        steps_per_second: Of the env, as far as it says so.
        env_id: By which Gymnasium registered the env, if it was built.
    """
    return {
        "format": FORMAT,
        "agent": dict(saved.agent),
        "run": dict(saved.origin),
        "env": _env(saved.env, saved.env_config(), env_id),
        "spaces": spaces_to_json(*saved.spaces()),
        "control": control(saved.env, steps_per_second),
        "versions": _versions(),
    }


def control(env: EnvSpec, steps_per_second: float | None) -> dict[str, Any]:
    """How often the policy decides.

    Args:
        env: Of the agent.
        steps_per_second: Of the env; None where it does not say.
    """
    decisions = None if steps_per_second is None else steps_per_second / env.action_repeat
    return {
        "action_repeat": env.action_repeat,
        "steps_per_second": steps_per_second,
        "decisions_per_second": decisions,
    }


def graph_facts(
    graph: PolicyGraph, *, file: str, precision: str, takes_any_batch: bool
) -> dict[str, Any]:
    """What goes into a graph, and what comes out.

    Args:
        graph: What was exported.
        file: Its file, beside the contract.
        precision: Of its weights.
        takes_any_batch: False when it takes one row.
    """
    return {
        "file": file,
        "precision": precision,
        "batch": "any" if takes_any_batch else 1,
        "inputs": [_port(port) for port in graph.inputs],
        "outputs": [_port(port) for port in graph.outputs],
    }


def _port(port: Port) -> dict[str, Any]:
    """Shapes are those of one row, without the batch axis, which comes first."""
    facts: dict[str, Any] = {
        "name": port.name,
        "role": port.role,
        "shape": list(port.shape),
        "dtype": port.dtype,
    }
    if port.space is not None:
        facts |= {
            "path": list(port.path),
            "env_dtype": str(np.dtype(port.space.dtype)),
            "space": space_to_json(port.space),
            "units": UNITS[_kind(port)],
        }
    if port.draws:
        facts["draws"] = port.draws
    if port.next:
        facts |= {"start": 0, "next": port.next}
    return facts


def _kind(port: Port) -> str:
    from gymnasium import spaces

    if not isinstance(port.space, spaces.Box):
        return "class"
    return "picture" if port.dtype == "uint8" and len(port.shape) > 1 else "number"


def _env(spec: EnvSpec, config: EnvConfig, env_id: str | None) -> dict[str, Any]:
    """The env, and how Gymnasium makes it where it can."""
    known: Mapping[str, Any] = dict(spec.settings)
    facts: dict[str, Any] = {"name": spec.name, "settings": known, "gymnasium": None}
    if config.suite in GYMNASIUM and not config.pixels:
        limit = config.time_limit
        steps = None if limit is None else limit * (config.action_repeat or 1)
        kwargs = {} if steps is None else {"max_episode_steps": steps}
        facts["gymnasium"] = {"id": env_id or config.name, "kwargs": kwargs}
    return facts


def _versions() -> dict[str, str]:
    found = {"worldloom": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
