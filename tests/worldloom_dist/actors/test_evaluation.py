import re
from typing import Any

import numpy as np
import pytest

from tests.fakes import FakePolicy, snapshot_of
from worldloom.core.exceptions import ConfigurationError, EnvFailureError
from worldloom.core.sequence import PolicyVersion
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import env_spec, make_env
from worldloom.envs.local import LocalVectorEnv
from worldloom.envs.toy import CountingEnv
from worldloom.envs.vector import VectorEnv
from worldloom.envs.wrappers import EnvAdapter, RawEnv
from worldloom_dist.actors.evaluation import EvaluationStoppedError, Evaluator


def evaluator(env: str = "toy:point", num_envs: int = 3, seed: int = 4) -> Evaluator:
    config = EnvConfig(env=env)
    return Evaluator(
        lambda: make_env(config, num_envs=num_envs, seed=seed), FakePolicy(env_spec(config))
    )


def test_equal_weights_give_equal_numbers_whenever_and_wherever_they_are_evaluated() -> None:
    weights = snapshot_of(0.3, PolicyVersion(1, 5))
    training = evaluator()
    offline = evaluator()
    training.load_weights(snapshot_of(-0.9, PolicyVersion(1, 1)))
    early = training.evaluate(5)
    training.load_weights(weights)
    offline.load_weights(weights)
    first = training.evaluate(5)
    again = training.evaluate(5)
    other = offline.evaluate(5)
    assert first == again == other
    assert first.version == PolicyVersion(1, 5)
    assert early.returns != first.returns
    assert len(set(first.returns)) > 3


def test_other_seed_gives_other_episodes() -> None:
    assert evaluator(seed=4).evaluate().returns != evaluator(seed=5).evaluate().returns


def test_every_env_plays_its_share_so_that_short_episodes_do_not_count_more() -> None:
    result = evaluator("toy:counting", num_envs=2).evaluate(5)
    assert result.lengths == (5, 1, 3, 5, 1)
    assert result.returns == (15.0, 1.0, 6.0, 15.0, 1.0)
    assert result.return_mean == pytest.approx(7.6)
    assert result.return_std == pytest.approx(np.std([15, 1, 6, 15, 1]))
    assert result.to_dict()["episodes"] == 5


def test_one_episode_per_env_is_the_default() -> None:
    assert evaluator("toy:counting", num_envs=4).evaluate().lengths == (5, 5, 5, 5)


def test_policy_is_asked_not_to_explore() -> None:
    class Strict(FakePolicy):
        def act(self, obs: Any, carry: Any, is_first: np.ndarray, *, explore: bool) -> Any:
            assert not explore
            return super().act(obs, carry, is_first, explore=explore)

    config = EnvConfig(env="toy:counting")
    Evaluator(lambda: make_env(config, num_envs=2, seed=0), Strict(env_spec(config))).evaluate()


def test_episode_that_its_env_breaks_off_is_played_again() -> None:
    class FragileEnv(CountingEnv):
        failures = 1

        def step(self, action: np.ndarray) -> Any:
            if self._step == 3 and FragileEnv.failures:
                FragileEnv.failures -= 1
                raise RuntimeError("broken on purpose")
            return super().step(action)

    def envs() -> VectorEnv:
        return LocalVectorEnv(
            lambda: EnvAdapter(RawEnv(FragileEnv()), EnvConfig(env="toy:counting").resolved()), 1, 0
        )

    config = EnvConfig(env="toy:counting")
    assert Evaluator(envs, FakePolicy(env_spec(config))).evaluate(2).returns == (15.0, 1.0)


def evaluator_with_dead(num_envs: int, *dead: int) -> Evaluator:
    """Envs count; those in ``dead`` raise in their second episode, whenever they are built
    again.
    """

    class MortalEnv(CountingEnv):
        built = 0

        def __init__(self) -> None:
            super().__init__()
            # what is built later replaces a dead one
            self._is_mortal = MortalEnv.built in dead or MortalEnv.built >= num_envs
            MortalEnv.built += 1

        def step(self, action: np.ndarray) -> Any:
            if self._is_mortal and (self._episode == 1 or MortalEnv.built > num_envs):
                raise RuntimeError("broken on purpose")
            return super().step(action)

    def build() -> EnvAdapter:
        return EnvAdapter(RawEnv(MortalEnv()), EnvConfig(env="toy:counting").resolved())

    def envs() -> VectorEnv:
        MortalEnv.built = 0
        return LocalVectorEnv(build, num_envs, 0, limits=EnvLimits(max_failures=2, backoff_s=0.001))

    return Evaluator(envs, FakePolicy(env_spec(EnvConfig(env="toy:counting"))))


def test_episodes_of_an_env_in_quarantine_are_played_by_the_others() -> None:
    result = evaluator_with_dead(3, 1).evaluate(9)
    assert result.lengths == (5, 1, 3, 8, 5, 5, 1, 3, 8), (
        "it owed two of its three, and one went to each of the others"
    )
    why = result.lost_envs[1]
    assert re.fullmatch(
        r"raised: RuntimeError: broken on purpose \(.*/test_evaluation.py:\d+\)", why
    )
    assert result.to_dict()["lost_envs"] == {"1": why}
    assert evaluator_with_dead(3, 1).evaluate(9) == result
    healthy = evaluator_with_dead(3).evaluate(9)
    assert healthy.lengths == (5, 1, 3) * 3
    assert "lost_envs" not in healthy.to_dict()


def test_evaluation_whose_envs_are_all_in_quarantine_fails() -> None:
    with pytest.raises(EnvFailureError, match="no env is left of 2"):
        evaluator_with_dead(2, 0, 1).evaluate(4)


def test_no_episode_is_no_evaluation() -> None:
    with pytest.raises(ConfigurationError, match="eval episodes must be >= 1, got 0"):
        evaluator().evaluate(0)


class EndlessEnv(CountingEnv):
    """Episodes of no end, of which the second one after a reset pays twice."""

    def step(self, action: np.ndarray) -> Any:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, False, False, info


def endless(num_envs: int, **limits: Any) -> Evaluator:
    def envs() -> VectorEnv:
        config = EnvConfig(env="toy:counting").resolved()
        return LocalVectorEnv(lambda: EnvAdapter(RawEnv(EndlessEnv()), config), num_envs, 0)

    return Evaluator(envs, FakePolicy(env_spec(EnvConfig(env="toy:counting"))), **limits)


def test_episode_without_an_end_is_cut_and_the_next_one_begins_with_a_reset() -> None:
    result = endless(2, max_steps=4).evaluate(5)
    assert (result.lengths, result.returns) == ((4,) * 5, (10.0,) * 5)
    assert result.cut_episodes == result.to_dict()["cut_episodes"] == 5


def test_episodes_that_end_in_time_are_what_they_were() -> None:
    config = EnvConfig(env="toy:counting")
    limited = Evaluator(
        lambda: make_env(config, num_envs=2, seed=4), FakePolicy(env_spec(config)), max_steps=5
    )
    assert limited.evaluate(4) == evaluator("toy:counting", num_envs=2).evaluate(4)
    assert "cut_episodes" not in limited.evaluate(4).to_dict()


def test_evaluation_ends_at_its_deadline_and_when_it_is_stopped() -> None:
    with pytest.raises(
        EvaluationStoppedError, match=r"longer than 0.01 s: 0 of 2 episodes.*--eval-timeout-s"
    ):
        endless(2, timeout_s=0.01).evaluate()
    asked = iter([False, False, True])
    with pytest.raises(
        EvaluationStoppedError, match="was stopped: 0 of 2 episodes played, 2 decisions per env"
    ):
        endless(2).evaluate(is_stopped=lambda: next(asked))
