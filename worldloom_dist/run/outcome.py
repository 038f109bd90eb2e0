"""What a run has to have done to be called ``completed``, and how it is known early that it cannot
do it.

Both runtimes ask here. A run that has made all its steps, but trained nothing, or evaluated or
recorded nothing although it was asked to, has failed, and its summary says what is missing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from worldloom.core.exceptions import ConfigurationError, TrainingError
from worldloom_dist.run.plan import Plan

__all__ = [
    "check_episodes",
    "check_files_loaded",
    "check_trains",
    "check_windows",
    "is_as_asked",
    "shortfall",
]

LEAST_PATIENCE_STEPS = 1000
PATIENCE_WINDOWS = 4
"""Behind the prefill a run waits for an episode that is long enough: for at least this many agent
steps, and for this many windows per env."""
LEAST_BROKEN = 20
BROKEN_PER_ENV = 3
RARE_STEPS = 1000
"""Failures that are further apart may break off an env that has no end of its own."""
BATCH_FIELDS = ("batch_size", "batch_length")
"""They decide when an agent trains first that has no prefill of its own."""
WAY_OUT = (
    "sample shorter windows (--agent.horizon of tdmpc2), choose an agent whose windows may cross "
    "episodes (dreamerv3), or let episodes be longer"
)


def check_trains(plan: Plan) -> None:
    """Refuse a run that cannot make an update, before anything is started.

    Raises:
        ConfigurationError: If it ends before the first one (names the env steps that are enough),
            or if no episode fills a window.
    """
    if plan.is_offline:
        return
    limits = plan.limits
    sampling = plan.spec.sampling
    limits_of = {task.name: task.episode_limit for task in plan.env_spec.tasks} or {
        plan.env.env: plan.env_spec.episode_limit
    }
    for name, longest in limits_of.items():
        if longest is None or longest + 1 >= sampling.window_rows or sampling.cross_episodes:
            continue
        raise ConfigurationError(
            f"agent {plan.agent.name} samples windows of {sampling.window_rows} rows, "
            "and an episode "
            f"of {name} has at most {longest + 1}, so nothing could be trained; {WAY_OUT}"
        )
    # pretraining on the prefill alone would be a run in which the agent never acts
    least = limits.prefill_agent_steps + math.ceil(limits.batch_positions / limits.ratio)
    if plan.target_agent_steps < least:
        repeat = plan.env_spec.action_repeat
        raise ConfigurationError(
            f"env_steps must be >= {least * repeat}, or the run ends before its first update, got "
            f"{plan.config.env_steps}: {plan.agent.name} collects "
            f"{limits.prefill_agent_steps * repeat} env steps before it trains; "
            f"say --env-steps {least * repeat} or more, or train earlier "
            f"({_earlier(plan)})"
        )


def _earlier(plan: Plan) -> str:
    """The agent's own flags that decide when training begins."""
    settings: Any = plan.agent
    names = {field.name for field in dataclasses.fields(settings)}
    wanted = ("prefill_agent_steps",) if "prefill_agent_steps" in names else BATCH_FIELDS
    return ", ".join(f"--agent.{name.replace('_', '-')}" for name in wanted if name in names)


def check_files_loaded(
    plan: Plan, train_steps: int, windows: int, left_out: Mapping[str, str]
) -> None:
    """Refuse to wait for rows of files that were not imported, while nothing else makes rows.

    Args:
        plan: Of the run.
        train_steps: Updates made so far.
        windows: That can be sampled now, over all shards.
        left_out: Files that could not be imported, with the reason.

    Raises:
        TrainingError: If there is no window, a file was left out, and nothing acts until updates
            are made.
    """
    waits = plan.is_offline or train_steps < plan.config.offline_steps
    if waits and not windows and left_out:
        raise TrainingError(
            f"replay.load: nothing can be trained without {', '.join(left_out)}, which could not "
            f"be imported ({'; '.join(left_out.values())}); start a new run when that is done"
        )


def check_windows(plan: Plan, agent_steps: int, windows: int) -> None:
    """Refuse to go on when no episode fills a window: nothing could ever be sampled and trained.

    Args:
        plan: Of the run.
        agent_steps: Stored so far.
        windows: That can be sampled now, over all shards.

    Raises:
        TrainingError: If there is none though the prefill is long over, or though all steps of the
            run are made.
    """
    prefill = plan.limits.prefill_agent_steps
    rows = plan.spec.sampling.window_rows
    per_env = PATIENCE_WINDOWS * (rows + plan.config.actors.chunk_rows)
    patience = min(
        prefill + max(prefill, LEAST_PATIENCE_STEPS, per_env * plan.config.num_envs),
        plan.target_agent_steps,
    )
    if not plan.is_offline and not windows and agent_steps >= patience:
        raise TrainingError(
            f"no episode in {agent_steps} agent steps filled a window of {rows} rows, "
            "which an update "
            f"of {plan.agent.name} needs, so nothing can be trained; {WAY_OUT}"
        )


def check_episodes(plan: Plan, agent_steps: int, broken: int, ended: int) -> None:
    """Refuse to go on when the env breaks off every episode: the agent would train on beginnings
    alone, and an evaluation could never be played.

    Args:
        plan: Of the run.
        agent_steps: Stored since the run was started.
        broken: Episodes that ended by a failure of their env since then.
        ended: All episodes that ended since then.

    Raises:
        TrainingError: If there are many, no other one, and failures are not rare either.
    """
    if broken < max(LEAST_BROKEN, BROKEN_PER_ENV * plan.config.num_envs) or broken < ended:
        return
    if agent_steps <= broken * RARE_STEPS:
        raise TrainingError(
            f"all of the first {broken} episodes were broken off by their env (warnings above say "
            "why and where), so there is no whole episode to learn from; mend the env: worldloom "
            f"check-env {plan.env.env}"
        )


def is_as_asked(plan: Plan, evaluation: Mapping[str, Any]) -> bool:
    """True when an evaluation has the episodes and the videos that the run asks for now; a resumed
    run may ask for others than the one before.

    Args:
        plan: Of the run.
        evaluation: As in ``summary.json``.
    """
    config = plan.config
    longest = max(evaluation.get("lengths", ()), default=0)
    tasks = {task.name for task in plan.env_spec.tasks}
    times = len(tasks) or 1
    if evaluation["episodes"] != config.eval_episodes * times or longest > plan.eval_max_steps:
        return False
    if tasks != set(evaluation.get("tasks", ())):
        return False
    if evaluation.get("cut_episodes") and longest != plan.eval_max_steps:
        return False
    videos = evaluation.get("videos", ())
    return len(videos) >= config.eval_videos * times or "video_problems" in evaluation


def shortfall(
    plan: Plan, train_steps: int, evaluation: Mapping[str, Any] | None, why: str = ""
) -> str | None:
    """What a run that has made all its steps did not do, as one sentence; None when it did
    everything.

    Args:
        plan: Of the run.
        train_steps: Updates that it has made.
        evaluation: Of the weights it ended with, None when there is none.
        why: The failure that kept it from evaluating, if one is known.
    """
    config = plan.config
    if not train_steps:
        return f"the run made no update in {config.env_steps} env steps; raise --env-steps"
    if not config.eval_episodes:
        return None
    if evaluation is None:
        reason = f" ({why})" if why else ""
        return f"the last weights could not be evaluated{reason}; --eval-episodes 0 asks for none"
    if config.eval_videos and not evaluation.get("videos"):
        problems = evaluation.get("video_problems") or ["console.log says why"]
        return (
            f"no video of the last evaluation could be made ({problems[0]}); --eval-videos "
            "0 asks for none"
        )
    return None
