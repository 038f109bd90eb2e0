"""``dmc:DOMAIN-TASK``: the DeepMind Control Suite, from state or from pixels."""

from __future__ import annotations

import importlib
import logging
import math
import os
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError, nearest
from worldloom.envs.config import EnvConfig
from worldloom.envs.suites.rendering import set_up_headless
from worldloom.envs.wrappers import RawEnv

__all__ = ["DmcEnv", "make"]

SHORT_NAMES = {"cup": "ball-in-cup", "pointmass": "point-mass"}
CAMERAS = {"quadruped": 2, "rodent": 4}
DEFAULT_IMAGE_SIZE = 64
PICTURE_SIZE = 192
MODEL_SEED = 0
"""Of what a task draws while it is loaded (the springs of lqr): one system for all envs, workers
and evaluations.
"""


def make(config: EnvConfig, *, renders: bool = False) -> RawEnv:
    """Build a task from a resolved config; ``renders`` if it will be asked for pictures.

    Raises:
        MissingDependencyError: If dm_control is not installed.
        ConfigurationError: If there is no such task.
    """
    suite = _suite(needs_pictures=bool(config.pixels) or renders)
    others: Any = importlib.import_module("worldloom.envs.suites.dmc_tasks")
    known = {
        f"{domain}-{task}".replace("_", "-"): (domain, task)
        for domain, task in (*suite.ALL_TASKS, *others.TASKS)
    }
    wanted = config.name.lower().replace("_", "-")
    for short, full in SHORT_NAMES.items():
        if wanted.startswith(short + "-"):
            wanted = full + wanted.removeprefix(short)
    if wanted not in known:
        raise ConfigurationError(
            f"env {config.env!r}: there is no such task{nearest(wanted, known)}"
        )
    domain, task = known[wanted]
    camera = config.camera if config.camera is not None else CAMERAS.get(domain, 0)
    size = (config.image_size or DEFAULT_IMAGE_SIZE) if config.pixels else None
    if (domain, task) in others.TASKS:
        loaded = others.TASKS[domain, task](MODEL_SEED)
    else:
        loaded = suite.load(domain, task, task_kwargs={"random": MODEL_SEED})
    env = DmcEnv(loaded, repeat=config.action_repeat or 1, image_size=size, camera=camera)
    return RawEnv(
        env,
        handles_repeat=True,
        episode_limit=env.step_limit,
        may_terminate=domain == "lqr",
        order=env.obs_order,
    )


def _suite(*, needs_pictures: bool) -> Any:
    """dm_control's tasks. It imports a renderer at once; where ours cannot be and no picture is
    needed, it does without.
    """
    is_ours = set_up_headless()
    try:
        return _imported()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "dm_control":
            raise MissingDependencyError("dmc envs", "dm-control", "dmc") from error
        raise
    except Exception:  # of a graphics library: an ImportError, an AttributeError, ...
        if needs_pictures or not is_ours:
            raise
        del os.environ["MUJOCO_GL"]
        return _imported()


def _imported() -> Any:
    handlers = [*logging.root.handlers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rendering backends that are not used
            return importlib.import_module("dm_control.suite")
    finally:
        logging.root.handlers[:] = handlers  # absl, which it imports, adds one


class DmcEnv(gymnasium.Env[Any, np.ndarray]):
    """A dm_control environment as a Gymnasium one.

    State observations keep the suite's names (a slash becomes an underscore); from pixels there is
    one image and nothing else.

    Args:
        env: A ``dm_control.rl.control.Environment``.
        repeat: Control steps per decision; rewards are summed, and only the last one is observed
            (and rendered).
        image_size: Side of the image, or None to observe the state.
        camera: Which camera renders.
    """

    metadata: dict[str, Any] = {}  # noqa: RUF012 - the base class declares it so

    def __init__(self, env: Any, *, repeat: int, image_size: int | None, camera: int) -> None:
        self._env = env
        self._repeat = repeat
        self._size = image_size
        self._camera = camera
        action = env.action_spec()
        low, high = (
            np.broadcast_to(bound, action.shape).astype(np.float64)
            for bound in (action.minimum, action.maximum)
        )
        self.action_space = spaces.Box(low, high, action.shape, np.float64)
        if image_size is not None:
            self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        else:
            boxes: dict[str, spaces.Space[Any]] = {
                key.replace("/", "_"): spaces.Box(-np.inf, np.inf, spec.shape, np.float64)
                for key, spec in env.observation_spec().items()
            }
            self.observation_space = spaces.Dict(boxes)

    @property
    def obs_order(self) -> tuple[str, ...]:
        """Keys of the state in dm_control's own order; a space sorts them."""
        if self._size is not None:
            return ()
        return tuple(key.replace("/", "_") for key in self._env.observation_spec())

    @property
    def dt(self) -> float:
        """Simulated seconds of one control step."""
        return float(self._env.control_timestep())

    @property
    def step_limit(self) -> int | None:
        """Control steps of an episode, None when there is no limit."""
        limit = self._env._step_limit
        return math.ceil(limit) if math.isfinite(limit) else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        if seed is not None:
            self._env.task.random.seed(seed % 2**32)
        return self._observe(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One decision; a discount of 0 terminates, the time limit truncates."""
        total = 0.0
        for _ in range(self._repeat):
            result = self._env.step(action)
            total += float(result.reward or 0.0)
            if result.last():
                break
        is_last = result.last()
        terminates = result.discount == 0
        return self._observe(result), total, is_last and terminates, is_last and not terminates, {}

    def render(self) -> Any:
        """A picture for people."""
        return self._env.physics.render(PICTURE_SIZE, PICTURE_SIZE, camera_id=self._camera)

    def close(self) -> None:
        """Free the physics and its renderer."""
        self._env.close()

    def _observe(self, result: Any) -> Any:
        if self._size is not None:
            return self._env.physics.render(self._size, self._size, camera_id=self._camera)
        return {
            key.replace("/", "_"): np.asarray(value, np.float64)
            for key, value in result.observation.items()
        }
