"""Videos need an env that draws: that is seen before a run begins, not when it has ended."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.extras import install_line
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import make_env
from worldloom_dist.actors.videos import picture_of
from worldloom_dist.run.config import NO_PRESET, RunConfig
from worldloom_dist.run.presets import default_config, find_preset

__all__ = ["drawable", "remedy_for", "why_not_drawn"]

logger = logging.getLogger(__name__)

DRAWING = {"pygame": "classic", "imageio": "video", "ffmpeg": "video", "mujoco": "mujoco"}
"""What an error of drawing may name -> the extra that installs it."""


def drawable(config: RunConfig) -> RunConfig:
    """The run, without the videos that its preset makes where this machine cannot draw its env.

    Raises:
        ConfigurationError: If videos were asked for that cannot be made; says what to install.
    """
    if not config.eval_videos or config.env.is_none or config.address is not None:
        return config
    why = why_not_drawn(config.env)
    if not why:
        return config
    is_preset = config.preset != NO_PRESET
    usual = find_preset(config.preset) if is_preset else default_config(config.env, config.agent)
    remedy = remedy_for(why)
    if config.eval_videos != usual.eval_videos:
        instead = "leave --eval-videos out"
        raise ConfigurationError(
            f"eval_videos: the env cannot be drawn ({why}); "
            + (f"{remedy}, or {instead}" if remedy else instead)
        )
    logger.warning(
        "this run makes no videos: the env cannot be drawn (%s)%s",
        why,
        f"; {remedy}" if remedy else "",
    )
    return dataclasses.replace(config, eval_videos=0)


def why_not_drawn(env: EnvConfig, tasks: Sequence[str] = ()) -> str:
    """Draw one picture of an env, of several tasks one of each, or of those that are named; why
    that fails, and empty when it does not.
    """
    if env.tasks:
        for name, part in zip(env.tasks, env.parts(), strict=True):
            if (not tasks or name in tasks) and (why := why_not_drawn(part)):
                return f"task {name}: {why}"
        return ""
    made = make_env(env, seed=0, renders=True)
    try:
        picture_of(made, made.reset())
    except ConfigurationError as error:
        return str(error)
    finally:
        made.close()
    return ""


def remedy_for(why: str) -> str:
    """The line that installs what an error of drawing names; empty where it names nothing known."""
    extra = next((extra for name, extra in DRAWING.items() if name in why), None)
    return install_line(extra) if extra else ""
