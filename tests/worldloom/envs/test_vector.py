import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from worldloom.core.exceptions import (
    ConfigurationError,
    EnvFailureError,
    ShapeMismatchError,
    StateError,
)
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import make_env
from worldloom.envs.local import LocalVectorEnv
from worldloom.envs.toy import CountingEnv
from worldloom.envs.vector import STEPS_AHEAD, EnvStep, RandomActions, sample_actions
from worldloom.envs.wrappers import EnvAdapter, RawEnv

ZERO = {"action": np.zeros((1, 2), np.float32)}


class BrokenEnv(CountingEnv):
    """Misbehaves at a given step of every ``period``-th instance."""

    def __init__(self, failure: str, at_step: int = 2) -> None:
        super().__init__()
        self.failure = failure
        self.at_step = at_step
        self.closed = False

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        if self._step == self.at_step:
            if self.failure == "raise":
                raise RuntimeError("broken on purpose")
            if self.failure == "exit":
                sys.exit(3)
            if self.failure == "nan_obs":
                obs = obs * np.nan
            if self.failure == "nan_reward":
                reward = float("nan")
            if self.failure == "shape":
                obs = obs[:2]
        return obs, reward, terminated, truncated, info

    def close(self) -> None:
        self.closed = True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds < 1e6
        self.slept.append(seconds)
        self.now += seconds


def vector_of(
    envs: list[gymnasium.Env], limits: EnvLimits, clock: Clock, num_envs: int
) -> LocalVectorEnv:
    config = EnvConfig(env="toy:counting").resolved()
    return LocalVectorEnv(
        lambda: EnvAdapter(RawEnv(envs.pop(0)), config),
        num_envs,
        0,
        limits=limits,
        clock=clock,
        sleep=clock.sleep,
    )


def test_step_after_the_last_row_ignores_the_action_and_gives_the_reset_row() -> None:
    env = make_env(EnvConfig(env="toy:counting"), seed=0)
    rows = [
        env.reset(),
        *(env.step({"action": np.full((1, 2), 0.25, np.float32)}) for _ in range(12)),
    ]
    seen = [(*row.obs["obs"][0].tolist(), float(row.reward[0])) for row in rows]
    assert seen[:9] == [
        (0, 0, 0, 0),
        *((0, step, 0.25, step) for step in range(1, 6)),
        (1, 0, 0, 0),
        (1, 1, 0.25, 1),
        (2, 0, 0, 0),
    ]
    assert [i for i, row in enumerate(rows) if row.is_first[0]] == [0, 6, 8, 12]
    assert [i for i, row in enumerate(rows) if row.terminated[0]] == [5, 11]
    assert [i for i, row in enumerate(rows) if row.truncated[0]] == [7]


def test_env_that_cannot_be_closed_does_not_keep_the_others_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stubborn(CountingEnv):
        def close(self) -> None:
            sys.exit(3)

    last = BrokenEnv("raise")
    env = vector_of([Stubborn(), last], EnvLimits(), Clock(), num_envs=2)
    env.close()
    assert last.closed
    assert "could not be closed: SystemExit: 3" in caplog.text


def test_step_before_reset_is_an_error() -> None:
    with pytest.raises(StateError, match="before reset"):
        make_env(EnvConfig(env="toy:counting"), seed=0).step(ZERO)


@pytest.mark.parametrize("failure", ["raise", "exit", "nan_obs", "nan_reward", "shape"])
def test_failing_env_is_rebuilt_and_starts_a_new_episode(failure: str) -> None:
    broken = BrokenEnv(failure)
    env = vector_of([broken, CountingEnv(), CountingEnv()], EnvLimits(), Clock(), num_envs=2)
    action = {"action": np.zeros((2, 2), np.float32)}
    env.reset()
    env.step(action)
    row = env.step(action)
    assert row.is_first.tolist() == [True, False]
    assert row.live.all()
    assert row.reward.tolist() == [0, 2]
    assert row.obs["obs"][0].tolist() == [0, 0, 0]
    (fault,) = env.drain_faults()
    assert (fault.env, fault.kind, fault.is_quarantined) == (0, "raised", False)
    assert broken.closed
    assert env.drain_faults() == []


def test_env_that_fails_again_waits_while_the_others_go_on() -> None:
    clock = Clock()
    limits = EnvLimits(backoff_s=5.0, max_failures=10)
    env = vector_of(
        [BrokenEnv("raise", 1), CountingEnv(), BrokenEnv("raise", 1), CountingEnv()],
        limits,
        clock,
        num_envs=2,
    )
    action = {"action": np.zeros((2, 2), np.float32)}
    env.reset()
    assert env.step(action).live.tolist() == [True, True]
    waiting = env.step(action)
    assert waiting.live.tolist() == [False, True]
    assert waiting.is_first.tolist() == [True, False]
    clock.now += 4.9
    assert env.step(action).live.tolist() == [False, True]
    clock.now += 0.2
    back = env.step(action)
    assert (back.live.tolist(), back.is_first.tolist()) == ([True, True], [True, False])
    assert clock.slept == []


def test_back_off_is_slept_when_no_other_env_can_be_stepped() -> None:
    clock = Clock()
    env = vector_of(
        [BrokenEnv("raise", 1), BrokenEnv("raise", 1), CountingEnv()],
        EnvLimits(backoff_s=3.0),
        clock,
        num_envs=1,
    )
    env.reset()
    env.step(ZERO)
    assert env.step(ZERO).is_first.tolist() == [True]
    assert clock.slept == [3.0]


def test_env_that_fails_too_often_goes_into_quarantine_and_the_last_one_ends_the_run() -> None:
    clock = Clock()
    broken: list[gymnasium.Env] = [BrokenEnv("raise", 1) for _ in range(3)]
    env = vector_of(
        [broken[0], BrokenEnv("raise", 20), *broken[1:]],
        EnvLimits(max_failures=3),
        clock,
        num_envs=2,
    )
    action = {"action": np.zeros((2, 2), np.float32)}
    env.reset()
    for _ in range(9):
        clock.now += 10
        row = env.step(action)
    assert row.live.tolist() == [False, True]
    assert [fault.is_quarantined for fault in env.drain_faults()] == [False, False, True]
    alone = vector_of(
        [BrokenEnv("raise", 1) for _ in range(2)], EnvLimits(max_failures=2), clock, num_envs=1
    )
    alone.reset()
    alone.step(ZERO)
    with pytest.raises(EnvFailureError, match=r"no env is left of 1; .*broken on purpose"):
        alone.step(ZERO)


def test_old_failures_are_forgotten() -> None:
    clock = Clock()
    env = vector_of(
        [BrokenEnv("raise", 1) for _ in range(9)],
        EnvLimits(max_failures=2, failure_window_s=60),
        clock,
        num_envs=1,
    )
    env.reset()
    for _ in range(8):
        clock.now += 61
        env.step(ZERO)
    assert len(env.drain_faults()) == 8


@pytest.mark.parametrize("name", ["counting", "point", "pixel"])
def test_state_restores_the_future_exactly(name: str) -> None:
    def make() -> LocalVectorEnv:
        env = make_env(EnvConfig(env=f"toy:{name}"), num_envs=2, seed=5)
        assert isinstance(env, LocalVectorEnv)
        return env

    def play(env: LocalVectorEnv, steps: int, rngs: list[np.random.Generator]) -> list[EnvStep]:
        return [env.step(sample_actions(env.spec, rngs)) for _ in range(steps)]

    env = make()
    rngs = [np.random.default_rng(i) for i in range(2)]
    env.reset()
    play(env, 7, rngs)
    state = env.state()
    assert state is not None
    twins = [np.random.default_rng(9), np.random.default_rng(10)]
    expected = play(env, 120, twins)
    copy = make()
    copy.set_state(state)
    got = play(copy, 120, [np.random.default_rng(9), np.random.default_rng(10)])
    for a, b in zip(expected, got, strict=True):
        assert np.array_equal(a.obs["obs"], b.obs["obs"])
        assert np.array_equal(a.reward, b.reward)
        assert np.array_equal(a.is_first, b.is_first)


def test_env_without_state_says_so() -> None:
    env = make_env(EnvConfig(env="gym:Pendulum-v1"), seed=0)
    env.reset()
    assert env.state() is None


def test_rows_belong_to_the_caller() -> None:
    env = make_env(EnvConfig(env="toy:pixel"), seed=0)
    first = env.reset()
    copy = first.obs["obs"].copy()
    for move in (1, 2, 3, 4):
        env.step({"action": np.full(1, move, np.int32)})
    assert np.array_equal(first.obs["obs"], copy)


def test_env_that_never_gives_a_finite_observation_ends_in_quarantine() -> None:
    class NanEnv(CountingEnv):
        def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
            return np.full(3, np.nan, np.float32), {}

    env = vector_of(
        [CountingEnv(), *(NanEnv() for _ in range(4))],
        EnvLimits(max_failures=3),
        Clock(),
        num_envs=2,
    )
    row = env.reset()
    assert row.live.tolist() == [True, False]
    assert row.obs["obs"].tolist() == [[0, 0, 0]] * 2
    assert {fault.env for fault in env.drain_faults()} == {1}


def test_action_of_a_wrong_shape_is_the_callers_mistake() -> None:
    env = make_env(EnvConfig(env="toy:counting"), num_envs=2, seed=0)
    env.reset()
    with pytest.raises(ShapeMismatchError, match="action 'action'"):
        env.step({"action": np.zeros((2, 3), np.float32)})
    assert env.drain_faults() == []


MANY_ACTIONS = EnvSpec(
    name="many",
    obs={},
    action={
        "arm": ArraySpec((2, 2)),
        "gear": ArraySpec((), "int32", (5,)),
        "keys": ArraySpec((3,), "int32", (2, 3, 4)),
    },
)


def one_by_one(spec: EnvSpec, generators: list[np.random.Generator]) -> dict[str, np.ndarray]:
    """Actions of one step, drawn number by number."""
    rows = [
        [rng.random() for array in spec.action.values() for _ in range(array.size)]
        for rng in generators
    ]
    found = {}
    start = 0
    for key, array in spec.action.items():
        part = np.array([row[start : start + array.size] for row in rows])
        start += array.size
        scaled = np.floor(part * array.num_classes) if array.is_discrete else part * 2 - 1
        found[key] = scaled.reshape(len(rows), *array.shape).astype(array.dtype)
    return found


def own_generators(seed: int, count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(count)]


def test_random_actions_drawn_ahead_are_those_drawn_step_by_step() -> None:
    ahead = RandomActions(MANY_ACTIONS, 3, seed=4)
    twins = own_generators(4, 3)
    slow = own_generators(4, 3)
    for _ in range(2 * STEPS_AHEAD + 3):
        got = ahead()
        twin = sample_actions(MANY_ACTIONS, twins)
        expected = one_by_one(MANY_ACTIONS, slow)
        assert list(got) == list(twin) == list(expected)
        for key, value in expected.items():
            assert (got[key].dtype, twin[key].dtype) == (value.dtype, value.dtype)
            assert np.array_equal(got[key], value)
            assert np.array_equal(twin[key], value)


@pytest.mark.parametrize("steps", [0, 1, STEPS_AHEAD, STEPS_AHEAD + 5])
def test_state_of_random_actions_knows_nothing_of_what_was_drawn_ahead(steps: int) -> None:
    ahead = RandomActions(MANY_ACTIONS, 2, seed=4)
    slow = own_generators(4, 2)
    for _ in range(steps):
        ahead()
        one_by_one(MANY_ACTIONS, slow)
    states = ahead.states()
    assert states == [rng.bit_generator.state for rng in slow]
    again = RandomActions(MANY_ACTIONS, 2, seed=5)
    again()
    again.set_states(states)
    expected = one_by_one(MANY_ACTIONS, slow)
    for other in (ahead, again):
        assert all(np.array_equal(value, expected[key]) for key, value in other().items())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_observation_that_is_not_finite_is_found_beside_one_whose_square_is_not(bad: float) -> None:
    class LargeEnv(CountingEnv):
        bad = 0.0

        def _observe(self, action: float) -> np.ndarray:
            return np.array([1e30, -1e30, LargeEnv.bad], np.float32)

    env = vector_of([LargeEnv(), CountingEnv()], EnvLimits(), Clock(), num_envs=1)
    assert env.reset().obs["obs"][0, :2].tolist() == np.array([1e30, -1e30], np.float32).tolist()
    env.step(ZERO)
    assert env.drain_faults() == []
    LargeEnv.bad = bad
    assert env.step(ZERO).obs["obs"].tolist() == [[0, 0, 0]]
    assert len(env.drain_faults()) == 1


class Bounded(CountingEnv):
    """Takes actions up to ``high``, and remembers what it was given."""

    def __init__(self, high: float, width: int = 2) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Box(-high, high, (width,))
        self.given: list[float] = []

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.given.append(float(action[0]))
        if len(self.given) == 2:
            raise RuntimeError("broken on purpose")
        return super().step(np.zeros(2, np.float32))


def test_envs_with_bounds_of_their_own_get_actions_within_these() -> None:
    envs = [Bounded(1.0), Bounded(2.0), Bounded(5.0)]
    built = list(envs)
    env = vector_of(built, EnvLimits(), Clock(), 2)
    env.reset()
    one = {"action": np.ones((2, 2), np.float32)}
    env.step(one)
    assert [each.given for each in envs[:2]] == [[1.0], [2.0]]
    built.append(Bounded(7.0))
    env.step(one)  # both fail, and are built again
    env.step(one)
    assert envs[2].given == [5.0]


def test_an_env_that_is_built_with_other_arrays_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"action \(\(2,\).* once and \(\(3,\)"):
        vector_of([Bounded(1.0), Bounded(1.0, width=3)], EnvLimits(), Clock(), 2)
