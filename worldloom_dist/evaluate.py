"""``python -m worldloom_dist.evaluate RUN_DIR``: play episodes with a checkpoint of a run, in its
own env and settings.

The same evaluator and seeds as in training: for the same weights it prints the same number.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldloom.algorithms.registry import outside_module
from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    MissingDependencyError,
    TrainingError,
    WorldLoomError,
    nearest,
)
from worldloom.core.fields import NOT_NEGATIVE, POSITIVE, Bounds, checked
from worldloom.core.files import inside
from worldloom.core.json_text import to_json
from worldloom.core.program import called, interruptible
from worldloom.core.protocol import Agent, Policy
from worldloom.core.weights import WeightsSnapshot
from worldloom.envs.config import EnvConfig
from worldloom.envs.consent import check_env_code, with_consent
from worldloom.hub.fetching import located
from worldloom_dist.actors.videos import VideoReport, save_videos
from worldloom_dist.run.builders import build_evaluator, build_store, check_none, restore_agent
from worldloom_dist.run.cli import read_config
from worldloom_dist.run.closing import result_line
from worldloom_dist.run.config import ReplayConfig, RunConfig
from worldloom_dist.run.console import stdout_to_stderr
from worldloom_dist.run.drawing import remedy_for, why_not_drawn
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.listing import newest_run
from worldloom_dist.run.machine import check_device
from worldloom_dist.run.model_check import check_model
from worldloom_dist.run.plan import Plan, resolve

if TYPE_CHECKING:
    from worldloom.training.checkpoints import CheckpointStore

PLAYED_ROWS = 100_000
PLAYED_RAM_GB = 10**6
"""Of a replay that is never built."""

__all__ = [
    "as_published",
    "check_draws",
    "evaluate",
    "find_checkpoint",
    "load_policy",
    "main",
    "recorded_env",
    "without_replay",
]


def evaluate(
    run_dir: Path,
    *,
    checkpoint: str = "newest",
    episodes: int | None = None,
    videos: int = 0,
    device: str = "cpu",
    env: str | None = None,
    max_steps: int | None = None,
    timeout_s: float | None = None,
    tasks: Sequence[str] = (),
    trust_env: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint.

    Args:
        run_dir: A run folder.
        checkpoint: ``newest``, ``best``, or the name of a folder under ``checkpoints/``.
        episodes: How many (of each task); by default as many as the run's own evaluations.
        videos: Episodes (of each task) of which a video is written to the run folder.
        device: Where the policy acts.
        env: For a run without an env: where to play, if not in the env that its data names.
        max_steps: Decisions after which an episode is cut; by default as in the run.
        timeout_s: Seconds that it may take; by default as in the run.
        tasks: Of a run of several, those to play; by default all.
        trust_env: Run the env's code, if it is a Python module, also where the folder was made
            elsewhere.

    Returns:
        As ``eval`` in ``summary.json``, with ``checkpoint`` and ``train_steps`` beside it.

    Raises:
        ConfigurationError, CheckpointError: If there is no run, no checkpoint of that name, or no
            such device.
        EvaluationStoppedError: If it takes too long.
        TrainingError: If a video that was asked for could not be made.
    """
    config = read_config(run_dir)
    checked("episodes", episodes, int | None, Bounds(1))
    checked("videos", videos, int, NOT_NEGATIVE)
    checked("max_steps", max_steps, int | None, Bounds(1))
    checked("timeout_s", timeout_s, float | None, POSITIVE)
    check_device("device", device)
    config = _played(config, run_dir, env, trust_env=trust_env)
    asked: dict[str, Any] = {
        "eval_episodes": episodes or config.eval_episodes or 10,
        "eval_videos": videos,
        "eval_max_steps": max_steps or config.eval_max_steps,
    }
    plan = resolve(dataclasses.replace(without_replay(config), **asked))
    _check_tasks(plan, tasks)
    folder = find_checkpoint(build_store(plan, run_dir), checkpoint)
    videos_folder = RunFolder(run_dir.absolute()).videos  # an env may change the working directory
    agent, train_steps = restore_agent(plan, folder, device=device)
    evaluator = build_evaluator(plan, device=device, tasks=tasks, timeout_s=timeout_s)
    if videos:
        inside(videos_folder.parent, videos_folder.name)
        check_draws(plan.env, videos, tasks)
    evaluator.load_weights(as_published(agent, config.learner.weights_dtype))
    result = {
        "checkpoint": folder.name,
        "train_steps": train_steps,
        **evaluator.evaluate().to_dict(),
    }
    result |= check_model(plan, agent, evaluator.probes)
    if videos:
        saved = save_videos(
            evaluator.videos,
            videos_folder,
            folder.name,
            evaluator.video_problems,
            evaluator.video_names,
        )
        result["videos"] = [str(path) for path in saved.paths]
        wanted = videos * (len(set(tasks)) or len(plan.env_spec.tasks) or 1)
        if len(saved.paths) < wanted:
            raise TrainingError(_missing_videos(wanted, saved))
    return result


def _check_tasks(plan: Plan, tasks: Sequence[str]) -> None:
    """Refuse names of tasks that the run has not.

    Raises:
        ConfigurationError: Offers the nearest one.
    """
    known = [task.name for task in plan.env_spec.tasks]
    for name in tasks:
        if not known:
            raise ConfigurationError(
                f"task: the run has one task ({plan.env.env}), got {name!r}; leave it out"
            )
        if name not in known:
            raise ConfigurationError(
                f"task: the run has no task {name!r}{nearest(name, known)} (tasks: "
                f"{', '.join(known)})"
            )


def check_draws(env: EnvConfig, videos: int, tasks: Sequence[str] = ()) -> None:
    """Draw one picture of an env, so that a package that is missing is told before episodes are
    played for nothing.

    Raises:
        TrainingError: Why it cannot be drawn, and what to install.
    """
    why = why_not_drawn(env, tasks)
    if why:
        raise TrainingError(_missing_videos(videos, VideoReport((), (why,))))


def _missing_videos(wanted: int, saved: VideoReport) -> str:
    """Which videos were made, why others were not, and the line that installs what is missing."""
    made = f"only {len(saved.paths)}" if saved.paths else "none"
    why = f" ({saved.problems[0]})" if saved.problems else ""
    remedy = remedy_for(why)
    instead = f"{remedy}, or leave --videos out" if remedy else "leave --videos out"
    return f"{made} of {wanted} videos could be made{why}; {instead}"


def as_published(agent: Agent, dtype: str) -> WeightsSnapshot:
    """The policy's weights as the run's own evaluations got them."""
    from worldloom.nn.snapshot import to_bfloat16

    snapshot = agent.policy_weights()
    return to_bfloat16(snapshot) if dtype == "bfloat16" else snapshot


def load_policy(
    run_dir: Path,
    *,
    checkpoint: str = "newest",
    device: str = "cpu",
    env: str | None = None,
    trust_env: bool = False,
) -> tuple[EnvConfig, Policy]:
    """A run's env and its trained policy, for example to record episodes with
    ``worldloom.training.collect``; ``env`` and ``trust_env`` as in :func:`evaluate`.

    Raises:
        ConfigurationError, CheckpointError: If there is no run, no checkpoint of that name, or no
            such device.
    """
    check_device("device", device)
    plan = resolve(without_replay(_played(read_config(run_dir), run_dir, env, trust_env=trust_env)))
    agent, _ = restore_agent(
        plan, find_checkpoint(build_store(plan, run_dir), checkpoint), device=device
    )
    return plan.env, agent


def _played(config: RunConfig, run_dir: Path, env: str | None, *, trust_env: bool) -> RunConfig:
    """The config with the env in which the run's agent is to play, whose code may run.

    Raises:
        ConfigurationError: If a run without an env has none to play in, or another one names one.
    """
    code_of_env = config.env.played
    if config.env.is_none:
        config = dataclasses.replace(config, env=recorded_env(run_dir, env))
        # who names an env has agreed to its code, and to that alone
        code_of_env = config.env.played if env is None else code_of_env
    elif env is not None:
        raise ConfigurationError(
            f"env: {run_dir} was trained in {config.env.env}, and plays there; leave --env out"
        )
    check_env_code(run_dir, code_of_env, outside_module(config.agent), trust_env=trust_env)
    return config


def without_replay(config: RunConfig) -> RunConfig:
    """Only what acting needs: neither files to load nor this machine's memory decide who may play
    with a checkpoint.
    """
    return dataclasses.replace(
        config, replay=ReplayConfig(capacity_steps=PLAYED_ROWS, ram_gb=PLAYED_RAM_GB), learners=1
    )


def recorded_env(run_dir: Path, env: str | None) -> EnvConfig:
    """The env that an offline run's data came from, or the one that the user names."""
    spec = RunFolder(run_dir).read_json("config.json").get("env", {})
    if env is not None:
        return EnvConfig(env=env)
    if spec.get("name", "none") == "none":
        raise ConfigurationError(
            f"{run_dir} was trained from files that name no env; say where to play with --env SPEC"
        )
    return EnvConfig.from_settings(spec["name"], spec.get("settings", {}))


def find_checkpoint(store: CheckpointStore, name: str) -> Path:
    """The folder of a checkpoint by name.

    Raises:
        CheckpointError: If there is none at all.
        ConfigurationError: If there are others.
    """
    if name == "newest":
        found = store.newest()
        if found is None:
            check_none(store)
            raise CheckpointError(
                f"{store.root} holds no checkpoint yet; a run writes one after its first updates"
            )
        name = found[0].name
    known = ["newest", "best", *(folder.name for folder in store.folders())]
    if name not in known:
        raise ConfigurationError(f"checkpoint must be one of {', '.join(known)}, got {name!r}")
    return store.find(name)


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=called("evaluate"),
        description="Play episodes with a checkpoint of a run.",
    )
    parser.add_argument(
        "run_dir", nargs="?", help="a run folder, or hf://USER/NAME (default: the newest run)"
    )
    parser.add_argument(
        "--checkpoint", default="newest", help="newest, best, or a folder name (default: newest)"
    )
    parser.add_argument(
        "--episodes", type=int, default=None, help="how many (default: as in the run)"
    )
    parser.add_argument(
        "--videos", type=int, default=0, help="episodes of which to write a video (default: none)"
    )
    parser.add_argument("--device", default="cpu", help="where the policy acts (default: cpu)")
    parser.add_argument(
        "--max-steps",
        type=int,
        default=None,
        help="decisions after which an episode is cut (default: as in the run)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=None,
        help="seconds that it may take (default: as in the run)",
    )
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        help="of a run of several tasks, one to play; may be repeated (default: all)",
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
    chosen: dict[str, Any] = {
        "checkpoint": options.checkpoint,
        "episodes": options.episodes,
        "videos": options.videos,
        "device": options.device,
        "env": options.env,
        "max_steps": options.max_steps,
        "timeout_s": options.timeout,
        "tasks": options.task,
    }
    try:
        with stdout_to_stderr():
            named = options.run_dir
            run_dir = newest_run() if named is None else located(named, "run_dir")
            result = with_consent(
                lambda trust_env: evaluate(run_dir, trust_env=trust_env, **chosen),
                trust_env=options.trust_env,
            )
    except KeyboardInterrupt:
        sys.stderr.write("stopped: the evaluation was left at once, and nothing was written\n")
        return 1
    except WorldLoomError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigurationError | MissingDependencyError) else 1
    sys.stdout.write(to_json(result, indent=2) + "\n")
    sys.stderr.write(f"{result_line(result)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
