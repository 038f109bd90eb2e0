"""One environment behind flat mappings: every wrapper that we have, in one place and in one order.

    flat action -> native action (rescaled) -> step, repeated, rewards summed -> time limit
                -> flat observation -> images resized -> grey -> stacked

The settings come from a resolved ``EnvConfig``, which a run and its checkpoints record, so
evaluation sees the same env.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

from worldloom.core.exceptions import (
    ConfigurationError,
    EnvFailureError,
    MissingDependencyError,
    StateError,
)
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.building import FOREIGN_ERRORS, error_text
from worldloom.envs.config import NEUTRAL, RENDERED, EnvConfig, suite_settings
from worldloom.envs.contract import (
    LARGEST,
    Resetter,
    call_step,
    close_env,
    say_once,
    to_flag,
    to_reward,
)
from worldloom.envs.space_json import spaces_to_json
from worldloom.envs.spaces import ActionMapper, ObsMapper

__all__ = ["EnvAdapter", "GymEnv", "ObsReader", "RawEnv", "own_repeat", "repeat_remark"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
OWN_REPEATS = {
    "AtariEnv": ("_frameskip",),
    "AtariPreprocessing": ("frame_skip",),
    "MaxAndSkipObservation": ("_skip",),
}
"""Class -> where it keeps how many frames it plays per step."""


class GymEnv(Protocol):
    """What we use of a ``gymnasium.Env``.

    With ``worldloom_get_state()`` and ``worldloom_set_state(state)`` beside it, an env can be
    resumed exactly; no other name is taken for these two.
    """

    @property
    def observation_space(self) -> Any:
        """A Gymnasium space."""

    @property
    def action_space(self) -> Any:
        """A Gymnasium space."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
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
        handles_repeat: True when one ``step`` already is one decision (Atari pools frames inside
            the repeat).
        episode_limit: Simulator steps after which the env itself truncates, or None.
        may_terminate: False when the env is known never to terminate.
        order: Keys of a dict observation in the env's own order, which its space has sorted.
    """

    env: GymEnv
    handles_repeat: bool = False
    episode_limit: int | None = None
    may_terminate: bool = True
    order: tuple[str, ...] = ()


class EnvAdapter:
    """One env that takes and gives flat mappings.

    Args:
        raw: The environment and what its suite knows about it.
        config: Resolved settings.

    Attributes:
        map_action: From flat actions to the env's own.
        check_finite: Look for NaN in every observation; False when the caller does.

    Raises:
        ConfigurationError: If a space is not supported or a setting would do nothing: one for
            images where there is none, a time limit above the env's own.
    """

    def __init__(self, raw: RawEnv, config: EnvConfig) -> None:
        self._env = raw.env
        self._repeat = 1 if raw.handles_repeat else config.action_repeat or 1
        self._reset = Resetter(raw.env, config.env)
        self._reader = ObsReader(raw.env.observation_space, config)
        self._action_space = raw.env.action_space
        self.map_action = ActionMapper(self._action_space)
        self.check_finite = True
        self._say_remarks(raw, config)
        self._limit = config.time_limit
        self._elapsed = 0
        self.spec = EnvSpec(
            name=config.env,
            obs=self._reader.specs,
            action=self.map_action.specs,
            episode_limit=_episode_limit(raw, config),
            action_repeat=config.action_repeat or 1,
            may_terminate=raw.may_terminate,
            settings=config.settings(),
            spaces=spaces_to_json(raw.env.observation_space, self._action_space),
            order=_own_order(raw.order, self._reader.specs),
        )

    def reset(self, seed: int | None = None) -> dict[str, np.ndarray]:
        """Start an episode and return its first observation.

        Raises:
            EnvFailureError: If the env has another action space now, to which actions are not
                scaled.
        """
        obs = self._reset(seed)
        space = self._env.action_space
        if space is not self._action_space and space != self._action_space:
            raise EnvFailureError(
                f"action_space was {self._action_space} when the env was made, and is {space} "
                "after a reset; set it in __init__ and keep it"
            )
        self._elapsed = 0
        return self._observe(obs, first=True)

    def step(
        self, action: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], float, bool, bool]:
        """Act once: observation, summed reward, terminated, truncated.

        Raises:
            EnvFailureError: If the reward or an observation is not finite.
            ShapeMismatchError: If an array has not the promised shape.
        """
        return self.step_native(self.map_action(action))

    def step_native(self, native: Any) -> tuple[dict[str, np.ndarray], float, bool, bool]:
        """As :meth:`step`, with an action as the env itself takes it (from ``map_action``)."""
        total = 0.0
        left = self._repeat
        while left:
            left -= 1
            obs, reward, terminated, truncated, _ = call_step(
                self._env, _copied(native) if left else native
            )
            total += to_reward(reward)
            terminated = to_flag("terminated", terminated)
            truncated = to_flag("truncated", truncated)
            if terminated or truncated:
                break
        if not -LARGEST <= total <= LARGEST:  # NaN fails this too
            raise EnvFailureError(
                f"reward {total} is not finite in float32 (at most 3.4e38 in size); "
                "mend or scale it inside the env"
            )
        self._elapsed += 1
        if self._limit is not None and self._elapsed >= self._limit and not terminated:
            truncated = True
        return self._observe(obs, first=False), total, terminated, truncated

    def get_state(self) -> dict[str, Any] | None:
        """Everything that decides what happens next, or None when the env cannot tell."""
        if not self._is_resumable:
            return None
        stacks = {key: pipeline.get_state() for key, pipeline in self._reader.images.items()}
        try:
            state = self._env.worldloom_get_state()  # type: ignore[attr-defined]
        except FOREIGN_ERRORS as error:
            raise EnvFailureError(
                f"env {self.spec.name!r}: worldloom_get_state raised {error_text(error)}"
            ) from error
        return {"env": state, "elapsed": self._elapsed, "stacks": stacks}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`get_state`.

        Raises:
            StateError: If the env has no ``worldloom_set_state``.
        """
        if not self._is_resumable:
            raise StateError(
                f"env {self.spec.name!r} cannot be resumed exactly; give it "
                "worldloom_get_state() and worldloom_set_state(state)"
            )
        self._env.worldloom_set_state(state["env"])  # type: ignore[attr-defined]
        self._elapsed = int(state["elapsed"])
        for key, pipeline in self._reader.images.items():
            pipeline.set_state(state["stacks"][key])

    def render(self) -> Any:
        """What the env renders: a picture, a list of those since the last call, or None when it
        draws none.
        """
        render: Any = getattr(self._env, "render", None)
        return render() if render is not None else None

    def close(self) -> None:
        """Close the env."""
        close_env(self._env)

    @property
    def _is_resumable(self) -> bool:
        return hasattr(self._env, "worldloom_get_state") and hasattr(
            self._env, "worldloom_set_state"
        )

    def _say_remarks(self, raw: RawEnv, config: EnvConfig) -> None:
        for remark in self._reader.remarks:
            say_once(f"env {config.env!r}: {remark}")
        own = own_repeat(raw.env)
        if own > 1 and self._repeat > 1:
            say_once(f"env {config.env!r}: {repeat_remark(own, self._repeat)}")

    def _observe(self, obs: Any, *, first: bool) -> dict[str, np.ndarray]:
        return self._reader(obs, first=first, check_finite=self.check_finite)


class ObsReader:
    """Observations of one env as an agent gets them: flat arrays, images resized, grey, stacked.

    Args:
        space: The env's own.
        config: Resolved settings.

    Attributes:
        specs: Per key, what it becomes.
        images: What is done to each image.
        remarks: What a person should know of how the observations are read.

    Raises:
        ConfigurationError: If the space is not supported, or a setting for images would do nothing.
    """

    def __init__(self, space: Any, config: EnvConfig) -> None:
        self._map = ObsMapper(space)
        self.remarks = self._map.remarks
        specs = self._map.specs
        frames = self._map.frames
        self.images = {key: _ImagePipeline(key, specs[key], config, frames[key]) for key in frames}
        if not self.images:
            _refuse_image_settings(config)
        self.specs: dict[str, ArraySpec] = {
            key: self.images[key].spec if key in self.images else spec
            for key, spec in specs.items()
        }

    def __call__(
        self, obs: Any, *, first: bool, check_finite: bool = True
    ) -> dict[str, np.ndarray]:
        """Convert and check one observation; raises as :class:`ObsMapper`."""
        flat = self._map(obs, check_finite=check_finite)
        for key, pipeline in self.images.items():
            flat[key] = pipeline(flat[key], first=first)
        return flat


class _ImagePipeline:
    """Resize, grey, stack: for one [Y, X, channels] image key, which may hold a stack of
    ``own_frames`` images itself.

    Raises:
        ConfigurationError: If images are to become grey that have neither one channel nor three.
    """

    def __init__(self, key: str, spec: ArraySpec, config: EnvConfig, own_frames: int) -> None:
        height, width, channels = spec.shape
        size = config.image_size
        self._resize = (
            _resizer(size) if size is not None and (height, width) != (size, size) else None
        )
        if self._resize is not None:
            height = width = int(size or 0)
        colours = channels // own_frames
        if config.grayscale and colours not in (1, 3):
            raise ConfigurationError(
                f"env.grayscale needs images of three channels, and image {key!r} of "
                f"{config.env!r} has {colours}; "
                "leave it out, or set env.grayscale to False"
            )
        self._gray = bool(config.grayscale) and colours == 3
        self._is_stack = own_frames > 1
        channels = own_frames if self._gray else channels
        self._frames: deque[np.ndarray] = deque(maxlen=config.frame_stack or 1)
        self.spec = ArraySpec((height, width, channels * (config.frame_stack or 1)), "uint8")

    def __call__(self, image: np.ndarray, *, first: bool) -> np.ndarray:
        if self._resize is not None:
            image = self._resize(image)
        if self._gray:
            image = image.reshape(*image.shape[:2], -1, 3) if self._is_stack else image
            image = (image @ LUMA).astype(np.uint8).reshape(*image.shape[:2], -1)
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


def own_repeat(env: Any) -> int:
    """How often an env or a wrapper around it repeats every action by itself, as far as Gymnasium's
    and the ALE's own tell.
    """
    repeat = 1
    while env is not None:
        repeat *= max(
            _whole(getattr(env, name, None)) for name in OWN_REPEATS.get(type(env).__name__, ("",))
        )
        env = env.env if isinstance(env, gymnasium.Wrapper) else None
    return repeat


def repeat_remark(own: int, ours: int) -> str:
    """What to say of an env whose own repeat comes on top of ours."""
    return (
        f"it repeats every action {own} times itself, and env.action_repeat={ours} "
        f"repeats that, so a decision takes {own * ours} "
        "frames; leave env.action_repeat out, or build the env without its own (frameskip=1)"
    )


def _whole(value: Any) -> int:
    """A number of repeats; of a range that one is drawn from, the largest."""
    if isinstance(value, tuple | list) and value:
        value = max(value)
    return int(value) if isinstance(value, int | np.integer) and value > 0 else 1


def _copied(native: Any) -> Any:
    """An action that may be changed in place."""
    if isinstance(native, dict):
        return {key: _copied(value) for key, value in native.items()}
    if isinstance(native, tuple):
        return tuple(_copied(value) for value in native)
    return native.copy() if isinstance(native, np.ndarray) else native


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


def _own_order(order: tuple[str, ...], specs: Mapping[str, ArraySpec]) -> tuple[str, ...]:
    """The env's own order of the observation's keys; empty where that is ours too."""
    known = tuple(key for key in order if key in specs)
    return known if set(known) == set(specs) and known != tuple(specs) else ()


def _episode_limit(raw: RawEnv, config: EnvConfig) -> int | None:
    """The limit in decisions; the env's own cannot be lifted from outside."""
    own = (
        None
        if raw.episode_limit is None
        else math.ceil(raw.episode_limit / (config.action_repeat or 1))
    )
    if own is not None and config.time_limit is not None and config.time_limit > own:
        raise ConfigurationError(
            f"env.time_limit must be <= {own}, the limit in decisions that "
            f"{config.env!r} sets itself, got {config.time_limit}; "
            "leave it out"
        )
    return own if config.time_limit is None else config.time_limit


def _refuse_image_settings(config: EnvConfig) -> None:
    """Refuse those that the user set; every dmc env has the suite's image size, pixels or not."""
    usual = {**NEUTRAL, **suite_settings(config.suite)}
    names = ("image_size", "grayscale", "frame_stack")
    used = [
        f"env.{name}"
        for name in names
        if getattr(config, name) not in (None, NEUTRAL.get(name), usual.get(name))
    ]
    if used:
        remedy = "add env.pixels or leave it out" if config.suite in RENDERED else "leave it out"
        need = "needs" if len(used) == 1 else "need"
        raise ConfigurationError(
            f"{' and '.join(used)} {need} images, and {config.env!r} observes none; {remedy}"
        )
