"""What a run would do with an env, in small: a worker that stores rows, windows to learn from, an
evaluation, a video.

The parts are those that a run builds (``worldloom_dist.run.builders``); only the decisions are
random, and nothing is learned or kept. A part of ``worldloom_dist.check_env``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import WorldLoomError
from worldloom.core.protocol import ActOutput, Carry
from worldloom.core.specs import EnvSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.envs.building import FOREIGN_ERRORS, error_text
from worldloom.envs.check_spaces import Finding
from worldloom.envs.factory import make_env
from worldloom.envs.vector import EnvStep, VectorEnv, sample_actions
from worldloom_dist.actors.acting import LocalActing
from worldloom_dist.actors.evaluation import Evaluator
from worldloom_dist.replay.coordinator import ReplayCoordinator
from worldloom_dist.replay.direct import DirectReplay
from worldloom_dist.run.builders import build_shard, build_worker
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.plan import Plan, resolve, role_seed

__all__ = ["Rehearsal", "rehearse"]

MOST_EVALUATION_STEPS = 200
WINDOWS_TO_JUDGE = 4
"""This many windows' rows without a window say that there will be none."""


@dataclasses.dataclass(slots=True)
class Rehearsal:
    """How it went.

    Attributes:
        findings: What to change.
        facts: What was seen, by name.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def rehearse(config: RunConfig, steps: int) -> Rehearsal:
    """Act in an env as the roles of a run would, for ``steps`` decisions as a worker and some more
    as the evaluator.

    Args:
        config: Of the run; its replay lies in a temporary folder.
        steps: How many.
    """
    result = Rehearsal()
    small = dataclasses.replace(
        config, runtime="local", replay=dataclasses.replace(config.replay, shards=1)
    )
    try:
        with _said_in_the_report():
            plan = resolve(small)
            has_ended = _work(plan, steps, result)
            if has_ended and not result.findings:
                _evaluate(plan, min(steps, MOST_EVALUATION_STEPS), result)
    except FOREIGN_ERRORS as error:  # the edge of foreign code
        result.findings.append(Finding(True, error_text(error)))
    return result


def _work(plan: Plan, steps: int, result: Rehearsal) -> bool:
    """Store rows as a worker does, and look for windows in them; returns whether an
    episode ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        shard = build_shard(plan, 0, Path(folder))
        replay = DirectReplay(
            [shard],
            ReplayCoordinator(plan.limits, window_positions=plan.spec.sampling.length),
            is_lockstep=True,
        )
        acting = LocalActing(
            _RandomPolicy(plan.env_spec, role_seed(plan, "policy")), plan.config.envs_per_worker
        )
        worker = build_worker(plan, 0, 0, acting, replay)
        sampling = plan.spec.sampling
        least = 0 if sampling.cross_episodes else WINDOWS_TO_JUDGE * sampling.window_rows
        try:
            for _ in range(max(steps, least)):
                worker.step()
            worker.flush()
            has_windows = replay.has_windows
        finally:
            worker.close()
            replay.close()
    all_episodes = worker.drain_episodes()
    episodes = [episode for episode in all_episodes if episode.reason != "error"]
    if broken := len(all_episodes) - len(episodes):
        result.findings.append(
            Finding(
                True,
                f"the env failed {broken} times as a worker's; mend it, or its episodes are lost",
            )
        )
    window = sampling.window_rows
    longest = max((episode.length + 1 for episode in episodes), default=0)
    result.facts["as a worker"] = f"{worker.rows} rows of {len(episodes)} episodes"
    if episodes and not has_windows and worker.rows >= WINDOWS_TO_JUDGE * window:
        result.findings.append(
            Finding(
                True,
                f"{plan.agent.name} learns from windows of {window} rows inside one "
                f"episode, and the longest of {len(episodes)} "
                f"episodes has {longest}, so it would learn nothing; make episodes "
                "longer, or take --agent dreamerv3:ci, whose "
                "windows go on into the next episode",
            )
        )
    return bool(episodes)


def _evaluate(plan: Plan, steps: int, result: Rehearsal) -> None:
    """Play an episode as the evaluator does, with a video; one that is longer than ``steps`` is
    left.
    """
    seed = role_seed(plan, "evaluation")

    def env() -> VectorEnv:
        """One evaluation env."""
        return _Bounded(
            make_env(plan.env, num_envs=1, seed=seed, is_exact=False, renders=True), steps
        )

    evaluator = Evaluator(env, _RandomPolicy(plan.env_spec, seed), 1, videos=1)
    try:
        played = evaluator.evaluate()
    except _EnoughError:
        result.facts["as the evaluator"] = f"{steps} decisions, no episode ended"
        return
    result.facts["as the evaluator"] = f"an episode of {played.lengths[0]} decisions"
    for why in played.lost_envs.values():
        result.findings.append(Finding(True, f"the evaluation lost its env: {why}"))
    for video in evaluator.videos:
        result.facts["video"] = f"{len(video)} frames of {video.shape[1]} x {video.shape[2]}"
    for problem in evaluator.video_problems:
        result.facts["video"] = problem


@contextlib.contextmanager
def _said_in_the_report() -> Iterator[None]:
    """Keep back warnings that become findings or facts."""
    loggers = [
        logging.getLogger(f"worldloom{name}") for name in ("_dist.actors.videos", ".envs.suites")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _EnoughError(WorldLoomError):
    """The evaluation has seen what it was to see."""


class _Bounded:
    """Envs that end the evaluation after this many steps; everything else is theirs."""

    def __init__(self, env: VectorEnv, steps: int) -> None:
        self._env = env
        self._left = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def step(self, action: Mapping[str, np.ndarray]) -> EnvStep:
        """As the envs do."""
        self._left -= 1
        if self._left < 0:
            raise _EnoughError("enough")
        return self._env.step(action)


class _RandomPolicy:
    """Decides at random, as a :class:`worldloom.core.protocol.Policy`: the env cannot tell, and
    nothing has to be built.
    """

    def __init__(self, spec: EnvSpec, seed: int) -> None:
        self._spec = spec
        self._rng = np.random.default_rng(seed)

    def initial_carry(self, num_envs: int) -> Carry:
        """None is needed."""
        return {"unused": np.zeros(num_envs)}

    def act(
        self, obs: Mapping[str, np.ndarray], carry: Carry, is_first: np.ndarray, *, explore: bool
    ) -> ActOutput:
        """Uniformly random actions."""
        generators: Sequence[np.random.Generator] = [self._rng] * len(is_first)
        return ActOutput(sample_actions(self._spec, generators), carry, {})

    def load_weights(self, snapshot: WeightsSnapshot) -> None:
        """There are none."""

    def rng_state(self) -> dict[str, Any]:
        """Of the generator."""
        return dict(self._rng.bit_generator.state)

    def load_rng_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`rng_state`."""
        self._rng.bit_generator.state = dict(state)
