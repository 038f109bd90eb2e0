"""``python -m worldloom_dist.enjoy RUN``: watch the agent of a run play, in a window; without a
screen, or with ``--video``, as videos in the run folder.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import (
    ConfigurationError,
    MissingDependencyError,
    WorldLoomError,
)
from worldloom.core.extras import install_line
from worldloom.core.fields import Bounds, checked
from worldloom.core.program import called, interruptible
from worldloom.envs.consent import with_consent
from worldloom.envs.factory import make_env
from worldloom.training.one_task import chosen_task
from worldloom_dist.actors.videos import picture_of
from worldloom_dist.evaluate import evaluate, load_policy
from worldloom_dist.run.cli import read_config
from worldloom_dist.run.console import stdout_to_stderr
from worldloom_dist.run.listing import newest_run

__all__ = ["main", "play"]

WINDOW_FRAMES_PER_S = 30
WINDOW_SIDE = 512
INVISIBLE = ("offscreen", "dummy")
"""What SDL draws to where the screen that a variable names is no more."""
Show = Callable[[np.ndarray, str], bool]


def play(
    run_dir: Path,
    show: Show,
    *,
    checkpoint: str = "newest",
    episodes: int = 3,
    env: str | None = None,
    task: str | None = None,
    trust_env: bool = False,
) -> list[float]:
    """Play episodes and show every picture.

    Args:
        run_dir: A run folder.
        show: Gets ``[Y, X, 3]`` uint8 and what to write above it; returns False when it was
            closed.
        checkpoint: ``newest``, ``best``, or a folder's name.
        episodes: How many.
        task: Of a run of several tasks, the name of the one to watch.
        env, trust_env: As in :func:`worldloom_dist.evaluate.evaluate`.

    Returns:
        The returns of the whole episodes.

    Raises:
        ConfigurationError, CheckpointError: If there is no run, or no checkpoint of that name.
    """
    chosen = watched(run_dir, task)
    config, policy = load_policy(run_dir, checkpoint=checkpoint, env=env, trust_env=trust_env)
    cycles = [[list(config.tasks).index(name)] for name in chosen] or None
    stage = make_env(config, seed=0, renders=True, cycles=cycles)
    returns: list[float] = []
    try:
        row = stage.reset()
        carry = policy.initial_carry(1)
        total = 0.0
        step = 0
        while len(returns) < episodes:
            title = f"episode {len(returns) + 1}, step {step}, return {total:.1f}"
            if not show(picture_of(stage, row), title):
                break
            out = policy.act(row.obs, carry, row.is_first, explore=False)
            carry = out.carry
            row = stage.step(out.action)
            total += float(row.reward[0])
            step += 1
            if row.is_last[0]:
                returns.append(total)
                total = 0.0
                step = 0
                row = stage.step(out.action)  # which begins the next episode
    finally:
        stage.close()
    return returns


def watched(run_dir: Path, task: str | None) -> list[str]:
    """The task of a run of several that is to be watched; empty for a run of one.

    Raises:
        ConfigurationError: If none was chosen, or the run has none of that name.
    """
    config = read_config(run_dir).env
    found = chosen_task(task, list(config.tasks), run_dir, config.env)
    return [] if found is None else [found]


def _window() -> contextlib.AbstractContextManager[Show]:
    """A window; closing it, or Escape, ends the show."""
    import pygame

    @contextlib.contextmanager
    def opened() -> Any:
        """Frames on a surface of their own, scaled to a window of their shape."""
        pygame.display.init()
        clock = pygame.time.Clock()
        screen: Any = None

        def show(frame: np.ndarray, title: str) -> bool:
            """Draw one picture."""
            nonlocal screen
            if screen is None:
                larger = WINDOW_SIDE / max(frame.shape[:2])
                size = (round(frame.shape[1] * larger), round(frame.shape[0] * larger))
                screen = pygame.display.set_mode(size)
            pygame.display.set_caption(f"worldloom: {title}")
            events = pygame.event.get()
            if any(
                event.type == pygame.QUIT
                or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE)
                for event in events
            ):
                return False
            surface = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
            screen.blit(pygame.transform.scale(surface, screen.get_size()), (0, 0))
            pygame.display.flip()
            clock.tick(WINDOW_FRAMES_PER_S)
            return True

        try:
            yield show
        finally:
            pygame.display.quit()

    return opened()


def _why_no_window() -> str:
    """Empty when a window can be opened."""
    has_screen = any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")))
    if sys.platform.startswith("linux") and not has_screen:
        return "there is no screen"
    if importlib.util.find_spec("pygame") is None:
        return f"a window needs pygame ({install_line('classic')})"
    with stdout_to_stderr():  # it greets
        import pygame
    try:
        pygame.display.init()  # a variable may name a screen that is no more
    except pygame.error as error:
        return f"no window can be opened ({error})"
    driver = pygame.display.get_driver()
    if driver in INVISIBLE and "SDL_VIDEODRIVER" not in os.environ:
        pygame.display.quit()
        return f"no window can be opened (there is no screen, and {driver} would show none)"
    return ""


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=called("enjoy"),
        description="Watch the agent of a run play: in a window, or without a screen as videos.",
    )
    parser.add_argument("run_dir", type=Path, nargs="?", help="a run folder (default: the newest)")
    parser.add_argument(
        "--checkpoint", default="newest", help="newest, best, or a folder name (default: newest)"
    )
    parser.add_argument("--episodes", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument(
        "--video", action="store_true", help="write videos to the run folder, screen or not"
    )
    parser.add_argument(
        "--task", default=None, help="of a run of several tasks: which one to watch"
    )
    parser.add_argument(
        "--env", default=None, help="where to play, for a run that was trained from files only"
    )
    parser.add_argument(
        "--trust-env",
        action="store_true",
        help="run env code of a folder that was made elsewhere, without being asked",
    )
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    reason = "as asked with --video" if options.video else _why_no_window()
    chosen: dict[str, Any] = {
        "checkpoint": options.checkpoint,
        "episodes": options.episodes,
        "env": options.env,
    }
    try:
        checked("episodes", options.episodes, int, Bounds(1))
        run_dir = options.run_dir or newest_run()
        tasks = watched(run_dir, options.task)  # before anything is said of what will be written
        if reason:
            word = "video" if options.episodes == 1 else f"{options.episodes} videos"
            sys.stderr.write(f"{reason}: writing {word} to {run_dir / 'videos'}\n")
            with stdout_to_stderr():
                result = with_consent(
                    lambda trust_env: evaluate(
                        run_dir,
                        videos=options.episodes,
                        tasks=tasks,
                        trust_env=trust_env,
                        **chosen,
                    ),
                    trust_env=options.trust_env,
                )
            lines = [*result["videos"], *result.get("video_problems", [])]
            returns = result["returns"]
        else:
            with stdout_to_stderr(), _window() as show:
                returns = with_consent(
                    lambda trust_env: play(
                        run_dir, show, task=options.task, trust_env=trust_env, **chosen
                    ),
                    trust_env=options.trust_env,
                )
            lines = []
    except WorldLoomError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigurationError | MissingDependencyError) else 1
    shown = ", ".join(f"{value:.1f}" for value in returns if value is not None)
    sys.stdout.write("".join(f"{line}\n" for line in [*lines, f"returns: {shown or 'none'}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
