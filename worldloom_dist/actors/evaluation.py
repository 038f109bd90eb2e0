"""The evaluator: own envs, own seeds, ``explore=False``, and no way to replay.

The evaluation during training and ``worldloom_dist.evaluate`` use this class with the same env
config and seeds, so the same weights give the same number. Every evaluation starts from fresh envs
and the same random state: it depends on nothing but weights, as long as every env lives; the
episodes of one that fails for good are played by the others, and the result says so.

An evaluation ends: an episode that has no end is cut after ``max_steps`` decisions and counts as
truncated, the whole is given up after ``timeout_s``, and who asked for it may stop it between two
decisions.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError, EnvFailureError, WorldLoomError
from worldloom.core.protocol import Policy
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom.core.weights import WeightsSnapshot
from worldloom.envs.vector import EnvStep, VectorEnv
from worldloom_dist.actors.acting import LocalActing
from worldloom_dist.actors.videos import Recorder

__all__ = ["Evaluation", "EvaluationStoppedError", "Evaluator"]

logger = logging.getLogger(__name__)

SAY_EVERY_S = 10.0


class EvaluationStoppedError(WorldLoomError):
    """An evaluation was given up before all of its episodes had been played."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        returns: Sum of rewards of every episode, in a fixed order (env by env).
        lengths: Decisions of every episode.
        version: Weights that acted.
        lost_envs: Envs that failed too often, with the last failure; others played their episodes.
        cut_episodes: How many episodes had no end within the limit of decisions and were cut there.
        by_task: Of several tasks, what each came to; ``returns`` and the rest are of all together.
        scores: Their scores from 0 to 100, of those whose range is known.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    version: PolicyVersion = NO_POLICY
    lost_envs: Mapping[int, str] = field(default_factory=dict)
    cut_episodes: int = 0
    by_task: Mapping[str, Evaluation] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """Mean of the tasks' scores; None where one of them has none."""
        if not self.by_task or set(self.by_task) != set(self.scores):
            return None
        return float(np.mean(list(self.scores.values())))

    @property
    def return_mean(self) -> float:
        """Mean over the episodes."""
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Population standard deviation over the episodes."""
        return float(np.std(self.returns))

    def to_dict(self) -> dict[str, Any]:
        """As ``summary.json`` has it, without the step count.

        ``lost_envs`` and ``cut_episodes`` are there when there are some; of several tasks
        ``tasks`` has each one's, and ``score`` the mean of their scores, where all have one.
        """
        result: dict[str, Any] = {
            "episodes": len(self.returns),
            "return_mean": self.return_mean,
            "return_std": self.return_std,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
        }
        if self.lost_envs:
            result["lost_envs"] = {str(env): why for env, why in self.lost_envs.items()}
        if self.cut_episodes:
            result["cut_episodes"] = self.cut_episodes
        if self.score is not None:
            result["score"] = self.score
        if self.by_task:
            result["tasks"] = {
                name: part.to_dict() | ({"score": self.scores[name]} if name in self.scores else {})
                for name, part in self.by_task.items()
            }
        return result


class Evaluator:
    """Plays episodes and reports their returns; used by one thread.

    Args:
        env: Makes the evaluation envs; called once per evaluation, so each starts from the same
            seeds.
        policy: Decides, with ``explore=False``. Its random state now is the one that every
            evaluation starts from.
        episodes: Of one evaluation unless told otherwise; by default one per env.
        videos: Episodes that are recorded.
        max_steps: Decisions after which an episode is cut; None cuts none.
        timeout_s: Seconds that one evaluation may take.

    Attributes:
        videos: ``[T, Y, X, 3]`` uint8 of episodes of the last evaluation, with step and return
            below each picture.
        video_problems: Why videos of it are missing, one sentence each.
        video_names: What the names of their files end with, where that is no number.
    """

    def __init__(
        self,
        env: Callable[[], VectorEnv],
        policy: Policy,
        episodes: int | None = None,
        *,
        videos: int = 0,
        max_steps: int | None = None,
        timeout_s: float = float("inf"),
    ) -> None:
        self._make_env = env
        self._policy = policy
        self._episodes = episodes
        self._num_videos = videos
        self._max_steps = max_steps
        self._timeout_s = timeout_s
        self.videos: list[np.ndarray] = []
        self.video_problems: list[str] = []
        self.video_names: list[str] = []
        self._rng_state = policy.rng_state()
        self._version = NO_POLICY

    def load_weights(self, snapshot: WeightsSnapshot) -> None:
        """Evaluate these weights from now on."""
        self._policy.load_weights(snapshot)
        self._version = snapshot.version

    def evaluate(
        self,
        episodes: int | None = None,
        *,
        is_stopped: Callable[[], bool] = lambda: False,
        spent_s: float = 0.0,
    ) -> Evaluation:
        """Play episodes, all envs side by side.

        Each env plays its fixed share, so short episodes are not counted more often than long ones.
        An episode that its env breaks off by failing does not count and is played again. What an
        env in quarantine still owes is played by the others.

        Args:
            episodes: How many; by default as many as the evaluator was made for.
            is_stopped: Asked before every decision; True gives the evaluation up.
            spent_s: Seconds of its time that are over already.

        Raises:
            ConfigurationError: If it is not positive.
            EnvFailureError: If every env fails too often.
            EvaluationStoppedError: If it takes too long, or was stopped.
        """
        if episodes is not None and episodes < 1:
            raise ConfigurationError(f"eval episodes must be >= 1, got {episodes}")
        env = self._make_env()
        try:
            with _one_thread():
                wanted = episodes or self._episodes or env.num_envs
                left = self._timeout_s - spent_s
                watch = _Watch(self._timeout_s, time.monotonic() + left, is_stopped)
                counters = self._play(env, wanted, watch)
        finally:
            env.close()
        returns, lengths = zip(
            *(result for book in counters for result in book.results[: book.share]), strict=True
        )
        lost = {index: book.lost for index, book in enumerate(counters) if book.lost}
        return Evaluation(returns, lengths, self._version, lost, sum(book.cut for book in counters))

    def _play(self, env: VectorEnv, episodes: int, watch: _Watch) -> list[_EpisodeStats]:
        self._policy.load_rng_state(self._rng_state)
        acting = LocalActing(self._policy, env.num_envs, explore=False)
        shares = [
            episodes // env.num_envs + (index < episodes % env.num_envs)
            for index in range(env.num_envs)
        ]
        counters = [_EpisodeStats(share, self._max_steps) for share in shares]
        recorder = Recorder(env, self._num_videos)
        watch.counters = counters
        row = env.reset()
        while True:
            recorder.see(row)
            for index, book in enumerate(counters):
                book.enter(row, index)
            for fault in env.drain_faults():
                if fault.is_quarantined:
                    counters[fault.env].lost = f"{fault.kind}: {fault.detail}"
                    _hand_on(counters[fault.env], counters)
            if not any(book.owed for book in counters):
                self.videos = recorder.captioned_videos
                self.video_problems = recorder.problems
                return counters
            watch.look()
            if any(book.owed and not book.waits for book in counters):
                row = env.step(acting.act(row.obs, row.is_first, row.live).action)
            else:  # an env has no end of its own: only a reset begins what is still owed
                row = env.reset()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Split no sum over threads: how many differs between processes, and with it the last bit,
    which long episodes amplify.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Watch:
    """Ends an evaluation that takes too long or is stopped, and says now and then how far it is.

    Args:
        timeout_s: Seconds that it may take in all, for the sentence.
        deadline_s: When they are over, on the monotonic clock.
        is_stopped: True when it is not wanted any more.

    Attributes:
        counters: Of its envs.
    """

    def __init__(self, timeout_s: float, deadline_s: float, is_stopped: Callable[[], bool]) -> None:
        self.counters: list[_EpisodeStats] = []
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._is_stopped = is_stopped
        self._said = time.monotonic()
        self._decisions = 0

    def look(self) -> None:
        """Called before every decision.

        Raises:
            EvaluationStoppedError: If it must not go on.
        """
        now = time.monotonic()
        if self._is_stopped():
            raise EvaluationStoppedError(f"the evaluation was stopped: {self._progress()}")
        if now > self._deadline_s:
            raise EvaluationStoppedError(
                f"the evaluation took longer than {self._timeout_s:g} s: {self._progress()}; "
                "raise --eval-timeout-s, or lower --eval-max-steps or --eval-episodes"
            )
        if now - self._said > SAY_EVERY_S:
            self._said = now
            logger.info("evaluating: %s", self._progress())
        self._decisions += 1

    def _progress(self) -> str:
        played = sum(min(len(book.results), book.share) for book in self.counters)
        wanted = sum(book.share for book in self.counters)
        return f"{played} of {wanted} episodes played, {self._decisions} decisions per env"


class _EpisodeStats:
    """Adds up the episodes of one env.

    Args:
        share: Episodes that it has to play.
        max_steps: Decisions after which an episode is cut; None cuts none.

    Attributes:
        results: Return and length of every episode.
        lost: The failure that put the env into quarantine, empty while it lives.
        cut: Episodes that were cut.
        waits: True when its episode was cut: only a reset begins the next one.
    """

    def __init__(self, share: int, max_steps: int | None) -> None:
        self.share = share
        self.lost = ""
        self.cut = 0
        self.waits = False
        self._max_steps = max_steps
        self.results: list[tuple[float, int]] = []
        self._return = 0.0
        self._length = 0

    @property
    def owed(self) -> int:
        """Episodes that are still to be played."""
        return max(0, self.share - len(self.results))

    def enter(self, row: EnvStep, index: int) -> None:
        """Add the row of env ``index``."""
        if not row.live[index]:
            return
        if row.is_first[index]:
            self._return = 0.0
            self._length = 0
            self.waits = False
            return
        if self.waits:
            return
        self._return = self._return + float(row.reward[index])
        self._length = self._length + 1
        if row.terminated[index] or row.truncated[index]:
            self.results.append((self._return, self._length))
        elif self._max_steps is not None and self._length >= self._max_steps and self.owed:
            self.results.append((self._return, self._length))
            self.cut = self.cut + 1
            self.waits = True


def _hand_on(dead: _EpisodeStats, counters: list[_EpisodeStats]) -> None:
    """Leave what a dead env owes to the living, one by one to the smallest share, of equal ones to
    the first.

    Raises:
        EnvFailureError: If none lives.
    """
    living = [book for book in counters if not book.lost]
    if not living:
        raise EnvFailureError(
            f"no env is left of {len(counters)} to play the evaluation; the last "
            f"failure: {dead.lost}"
        )
    for _ in range(dead.owed):
        min(living, key=lambda book: book.share).share += 1
    dead.share -= dead.owed
