"""Decisions of a trained policy, recorded with everything that went into them: what an exported one
must decide as well.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from worldloom.core.exceptions import ConfigurationError, EnvFailureError
from worldloom.core.protocol import Capturable, Policy
from worldloom.envs.building import FOREIGN_ERRORS, error_text
from worldloom.envs.config import EnvConfig
from worldloom.envs.contract import call_step, to_flag, to_reward
from worldloom.envs.factory import make_raw
from worldloom.envs.spaces import ActionMapper, find
from worldloom.envs.wrappers import RawEnv
from worldloom.export.graph import CARRY, IS_FIRST, NEXT, NORMAL, UNIFORM, PolicyGraph
from worldloom.training.saved_agents import SavedAgent
from worldloom.training.trained_policy import obs_reader, torch_threads

__all__ = ["Played", "RandomObs", "Recording", "Source", "opened", "record", "steps_per_second"]

RANDOM_EPISODE = 100
"""Random observations that count as one episode."""
Arrays = dict[str, np.ndarray]


@dataclass
class Recording:
    """Decisions one after another.

    Attributes:
        inputs: Of each decision, as the graph takes them, one row each; without what the graph
            itself keeps of images.
        outputs: What the policy decided, as the graph gives it.
        seconds: How long each decision took.
        returns: Of the episodes that ended.
    """

    inputs: list[Arrays] = field(default_factory=list)
    outputs: list[Arrays] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)


class Source(Protocol):
    """Where observations come from."""

    name: str

    def begin(self) -> Any:
        """The first observation of an episode."""

    def step(self, action: Any) -> tuple[Any, bool]:
        """The next observation, and whether the episode is over."""

    returns: list[float]


class Played:
    """The env that the policy was trained in, stepped as in training.

    Args:
        raw: From :func:`opened`.
        config: Its resolved settings.
        seed: Of the first episode.

    Attributes:
        returns: Of the episodes that ended.
    """

    name = "env"

    def __init__(self, raw: RawEnv, config: EnvConfig, seed: int) -> None:
        self._env = raw.env
        self._repeat = 1 if raw.handles_repeat else config.action_repeat or 1
        self._limit = config.time_limit
        self._name = config.env
        self._seed: int | None = seed
        self._total = 0.0
        self._steps = 0
        self.returns: list[float] = []

    def begin(self) -> Any:
        """See :class:`Source`."""
        try:
            obs, _ = self._env.reset(seed=self._seed)
        except FOREIGN_ERRORS as error:
            raise EnvFailureError(f"env {self._name!r}: {error_text(error)}") from error
        self._seed = None
        self._total = 0.0
        self._steps = 0
        return obs

    def step(self, action: Any) -> tuple[Any, bool]:
        """See :class:`Source`."""
        self._steps += 1
        for _ in range(self._repeat):
            obs, reward, terminated, truncated, _ = call_step(self._env, action)
            self._total += to_reward(reward)
            is_over = to_flag("terminated", terminated) or to_flag("truncated", truncated)
            if is_over:
                break
        is_over = is_over or (self._limit is not None and self._steps >= self._limit)
        if is_over:
            self.returns.append(self._total)
        return obs, is_over


class RandomObs:
    """Random members of the observation space.

    Args:
        space: Of one env.
        seed: Of the draws.
    """

    name = "random"

    def __init__(self, space: Any, seed: int) -> None:
        self._space = space
        self._space.seed(seed)
        self._left = 0
        self.returns: list[float] = []

    def begin(self) -> Any:
        """See :class:`Source`."""
        self._left = RANDOM_EPISODE
        return self._space.sample()

    def step(self, action: Any) -> tuple[Any, bool]:
        """See :class:`Source`."""
        del action
        self._left -= 1
        return self._space.sample(), self._left == 0


@contextlib.contextmanager
def opened(config: EnvConfig) -> Iterator[RawEnv]:
    """One env as its suite makes it.

    Raises:
        ConfigurationError: If it cannot be built, or is a vector env.
    """
    raw = make_raw(config, 1)
    try:
        if not isinstance(raw, RawEnv):
            raise ConfigurationError(
                f"env {config.env!r} is a vector env, and parity is recorded in a single one; "
                "compare on random observations: --observations random"
            )
        yield raw
    finally:
        (raw.env if isinstance(raw, RawEnv) else raw).close()


def steps_per_second(env: Any) -> float | None:
    """How many steps of an env make a second of what it simulates, as far as it says so: by ``dt``,
    or by ``metadata["render_fps"]``.
    """
    dt = getattr(getattr(env, "unwrapped", env), "dt", None)
    if isinstance(dt, int | float | np.number) and dt > 0:
        return float(1.0 / dt)
    frames = (getattr(env, "metadata", None) or {}).get("render_fps")
    return float(frames) if isinstance(frames, int | float | np.number) and frames > 0 else None


def record(
    saved: SavedAgent, policy: Policy, graph: PolicyGraph, source: Source, steps: int
) -> Recording:
    """Let a policy decide, and note what went in and what came out.

    Args:
        saved: Where the policy comes from.
        policy: Acts as ``graph`` does.
        graph: Names inputs and outputs.
        source: Observations.
        steps: Decisions.

    Raises:
        EnvFailureError: If the env fails.
        ConfigurationError: If the policy draws numbers that cannot be seen.
    """
    obs_space, action_space = saved.spaces()
    read = obs_reader(saved, obs_space)
    native = ActionMapper(action_space)
    noted = _Noted(policy, graph)
    found = Recording(returns=source.returns)
    carry = policy.initial_carry(1)
    first = True
    obs = source.begin()
    with torch_threads(1):
        while len(found.inputs) < steps:
            flat = {key: value[None] for key, value in read(obs, first=first).items()}
            began = time.perf_counter()
            out = policy.act(flat, carry, np.array([first]), explore=False)
            found.seconds.append(time.perf_counter() - began)
            action = native({key: value[0] for key, value in out.action.items()})
            found.inputs.append(noted.inputs(obs, carry, first))
            found.outputs.append(_outputs(graph, action, out.carry))
            carry = out.carry
            obs, is_over = source.step(action)
            first = is_over
            if is_over:
                obs = source.begin()
    return found


class _Noted:
    """Sees the draws of a policy's decisions."""

    def __init__(self, policy: Policy, graph: PolicyGraph) -> None:
        self._graph = graph
        self._draws: dict[str, Any] = {}
        needs = graph.step.uniform or graph.step.normal
        if needs and not isinstance(policy, Capturable):
            raise ConfigurationError(
                f"{type(policy).__name__} draws numbers for its step and has no decide_through, "
                "by which they are seen; give it one (worldloom.core.protocol.Capturable)"
            )
        if isinstance(policy, Capturable):
            policy.decide_through(self._wrap)

    def _wrap(self, decide: Any) -> Any:
        def noted(inputs: Mapping[str, Any], *, explore: bool) -> Any:
            """The decision itself; what went in is kept."""
            self._draws = dict(inputs)
            return decide(inputs, explore=explore)

        return noted

    def inputs(self, obs: Any, carry: Mapping[str, Any], first: bool) -> Arrays:
        """Of the last decision, as the graph takes them."""
        found: Arrays = {}
        step = self._graph.step
        for port in self._graph.inputs:
            if port.role == "observation":
                found[port.name] = np.asarray(find(obs, port.path)).astype(port.dtype)[None]
            elif port.role == "carry" and port.name.removeprefix(CARRY) in step.carry:
                name = port.name.removeprefix(CARRY)
                found[port.name] = np.array(carry[name], port.dtype)
        if self._graph.carry:
            found[IS_FIRST] = np.array([first])
        if step.uniform or step.normal:
            drawn = dict(zip((UNIFORM, NORMAL), step.noise(self._draws), strict=True))
            found |= {name: value.copy() for name, value in drawn.items() if value.shape[1]}
        return found


def _outputs(graph: PolicyGraph, action: Any, carry: Mapping[str, Any]) -> Arrays:
    found: Arrays = {}
    for port in graph.outputs:
        if port.role == "action":
            found[port.name] = np.asarray(find(action, port.path)).astype(port.dtype)[None]
        elif port.name.removeprefix(NEXT) in graph.step.carry:
            found[port.name] = np.array(carry[port.name.removeprefix(NEXT)], port.dtype)
    return found
