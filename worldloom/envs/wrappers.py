"""One environment behind flat mappings: every wrapper that we have, in one place and in one order.

    flat action -> native action (rescaled) -> step, repeated, rewards summed -> time limit
                -> flat observation -> images resized -> grey -> stacked

The settings come from a resolved ``EnvConfig``, which a run and its checkpoints record, so evaluation sees the same env.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from worldloom.core.exceptions import ConfigurationError, EnvFailureError, MissingDependencyError, StateError
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.config import NEUTRAL, RENDERED, SUITES, EnvConfig
from worldloom.envs.spaces import ActionMapper, ObsMapper

__all__ = ["EnvAdapter", "GymEnv", "RawEnv"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class GymEnv(Protocol):
    """What we use of a ``gymnasium.Env``. With ``get_state`` and ``set_state`` beside it, an env can be resumed exactly."""

    @property
    def observation_space(self) -> Any:
        """A Gymnasium space."""

    @property
    def action_space(self) -> Any:
        """A Gymnasium space."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated, info."""

    def close(self) -> None:
        """Free what the env holds."""


@dataclass(frozen=True, slots=True)
class RawEnv:
    """What a suite hands over.

    Attributes:
        env: The environment itself.
        handles_repeat: True when one ``step`` already is one decision (Atari pools frames inside the repeat).
        episode_limit: Simulator steps after which the env itself truncates, or None.
        may_terminate: False when the env is known never to terminate.
    """

    env: GymEnv
    handles_repeat: bool = False
    episode_limit: int | None = None
    may_terminate: bool = True


class EnvAdapter:
    """One env that takes and gives flat mappings.

    Args:
        raw: The environment and what its suite knows about it.
        config: Resolved settings.

    Attributes:
        map_action: From flat actions to the env's own.
        check_finite: Look for NaN in every observation; False when the caller does.

    Raises:
        ConfigurationError: If a space is not supported or a setting would do nothing: one for images where there is none, a time
            limit above the env's own.
    """

    def __init__(self, raw: RawEnv, config: EnvConfig) -> None:
        self._env, self._repeat = raw.env, 1 if raw.handles_repeat else config.action_repeat or 1
        self._map_obs, self.map_action = ObsMapper(raw.env.observation_space), ActionMapper(raw.env.action_space)
        self.check_finite = True
        self._images = {key: _ImagePipeline(spec, config) for key, spec in self._map_obs.specs.items() if spec.is_image}
        if not self._images:
            _refuse_image_settings(config)
        self._limit, self._elapsed = config.time_limit, 0
        obs = {key: self._images[key].spec if key in self._images else spec for key, spec in self._map_obs.specs.items()}
        self.spec = EnvSpec(
            name=config.env,
            obs=obs,
            action=self.map_action.specs,
            episode_limit=_episode_limit(raw, config),
            action_repeat=config.action_repeat or 1,
            may_terminate=raw.may_terminate,
            settings=config.settings(),
        )

    def reset(self, seed: int | None = None) -> dict[str, np.ndarray]:
        """Start an episode and return its first observation."""
        obs, _ = self._env.reset(seed=seed)
        self._elapsed = 0
        return self._observe(obs, first=True)

    def step(self, action: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float, bool, bool]:
        """Act once: observation, summed reward, terminated, truncated.

        Raises:
            EnvFailureError: If the reward or an observation is not finite.
            ShapeMismatchError: If an array has not the promised shape.
        """
        return self.step_native(self.map_action(action))

    def step_native(self, native: Any) -> tuple[dict[str, np.ndarray], float, bool, bool]:
        """As :meth:`step`, with an action as the env itself takes it (from ``map_action``)."""
        total = 0.0
        for _ in range(self._repeat):
            obs, reward, terminated, truncated, _ = self._env.step(native)
            total += float(reward)
            if terminated or truncated:
                break
        if not math.isfinite(total):
            raise EnvFailureError(f"reward {total} is not finite")
        self._elapsed += 1
        if self._limit is not None and self._elapsed >= self._limit and not terminated:
            truncated = True
        return self._observe(obs, first=False), total, bool(terminated), bool(truncated)

    def get_state(self) -> dict[str, Any] | None:
        """Everything that decides what happens next, or None when the env cannot tell."""
        if not hasattr(self._env, "get_state"):
            return None
        stacks = {key: pipeline.get_state() for key, pipeline in self._images.items()}
        return {"env": self._env.get_state(), "elapsed": self._elapsed, "stacks": stacks}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`get_state`.

        Raises:
            StateError: If the env has no ``set_state``.
        """
        if not hasattr(self._env, "set_state"):
            raise StateError(f"env {self.spec.name!r} has no set_state, so it cannot be resumed exactly")
        self._env.set_state(state["env"])
        self._elapsed = int(state["elapsed"])
        for key, pipeline in self._images.items():
            pipeline.set_state(state["stacks"][key])

    def render(self) -> np.ndarray | None:
        """A picture for people, ``[Y, X, 3]`` uint8, or None when the env draws none."""
        render: Any = getattr(self._env, "render", None)
        picture: np.ndarray | None = render() if render is not None else None
        return picture

    def close(self) -> None:
        """Close the env."""
        self._env.close()

    def _observe(self, obs: Any, *, first: bool) -> dict[str, np.ndarray]:
        flat = self._map_obs(obs, check_finite=self.check_finite)
        for key, pipeline in self._images.items():
            flat[key] = pipeline(flat[key], first=first)
        return flat


class _ImagePipeline:
    """Resize, grey, stack: for one HWC image key."""

    def __init__(self, spec: ArraySpec, config: EnvConfig) -> None:
        height, width, channels = spec.shape
        size = config.image_size
        self._resize = _resizer(size) if size is not None and (height, width) != (size, size) else None
        if self._resize is not None:
            height = width = int(size or 0)
        self._gray = bool(config.grayscale) and channels == 3
        channels = 1 if self._gray else channels
        self._frames: deque[np.ndarray] = deque(maxlen=config.frame_stack or 1)
        self.spec = ArraySpec((height, width, channels * (config.frame_stack or 1)), "uint8")

    def __call__(self, image: np.ndarray, *, first: bool) -> np.ndarray:
        if self._resize is not None:
            image = self._resize(image)
        if self._gray:
            image = (image @ LUMA).astype(np.uint8)[..., None]
        if self._frames.maxlen == 1:
            return image
        # A copy, because many envs reuse their buffer.
        self._frames.extend([image.copy()] * (int(self._frames.maxlen or 1) if first else 1))
        return np.concatenate(self._frames, axis=-1)

    def get_state(self) -> list[np.ndarray]:
        """The stacked frames, oldest first."""
        return list(self._frames)

    def set_state(self, frames: list[np.ndarray]) -> None:
        """Inverse of :meth:`get_state`."""
        self._frames.extend(frames)


def _resizer(size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Bilinear with antialiasing, as DreamerV3 does it (Pillow)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("resizing images", "pillow", "atari") from error

    def resize(image: np.ndarray) -> np.ndarray:
        """One image ``[H, W, C]`` at the new size; Pillow takes one or three channels at a time."""
        if image.shape[-1] in (1, 3):
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            resized = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
            return resized.reshape(size, size, image.shape[-1])
        planes = [resize(image[..., channel : channel + 1]) for channel in range(image.shape[-1])]
        return np.concatenate(planes, axis=-1)

    return resize


def _episode_limit(raw: RawEnv, config: EnvConfig) -> int | None:
    """The limit in decisions; the env's own cannot be lifted from outside."""
    own = None if raw.episode_limit is None else math.ceil(raw.episode_limit / (config.action_repeat or 1))
    if own is not None and config.time_limit is not None and config.time_limit > own:
        raise ConfigurationError(
            f"env.time_limit must be <= {own}, the limit in decisions that {config.env!r} sets itself, got {config.time_limit}; "
            "leave it out"
        )
    return own if config.time_limit is None else config.time_limit


def _refuse_image_settings(config: EnvConfig) -> None:
    """Refuse those that the user set; every dmc env has the suite's image size, pixels or not."""
    usual = {**NEUTRAL, **SUITES[config.suite]}
    names = ("image_size", "grayscale", "frame_stack")
    used = [f"env.{name}" for name in names if getattr(config, name) not in (None, NEUTRAL.get(name), usual.get(name))]
    if used:
        remedy = "add env.pixels or leave it out" if config.suite in RENDERED else "leave it out"
        need = "needs" if len(used) == 1 else "need"
        raise ConfigurationError(f"{' and '.join(used)} {need} images, and {config.env!r} observes none; {remedy}")
