"""Random spaces, random faults at random steps: the rows are exactly what the env gave, or one line
says what is wrong.

What is right is said by a naive twin that looks at one array at a time.
"""

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom.core.exceptions import WorldLoomError
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.local import LocalVectorEnv
from worldloom.envs.vector import RandomActions
from worldloom.envs.wrappers import EnvAdapter, RawEnv

SHAPES = st.sampled_from([(), (1,), (3,), (2, 2), (0,), (1, 2, 2)])
NUMBERS = st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8])
BOUNDS = st.sampled_from([(-1, 1), (0, 1), (0, 100), (-7, 3), (2, 2)])


@st.composite
def boxes(draw: Any) -> spaces.Box:
    (low, high), shape, dtype = draw(BOUNDS), draw(SHAPES), draw(NUMBERS)
    return spaces.Box(max(low, 0) if dtype is np.uint8 else low, high, shape, dtype)


DISCRETE = st.builds(
    lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-4, 4)
)
MULTI = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(spaces.MultiDiscrete)
BITS = st.integers(1, 3).map(spaces.MultiBinary)
LEAVES = st.one_of(boxes(), DISCRETE, MULTI, BITS)
IMAGES = st.sampled_from([(33, 34, 3), (34, 33, 1)]).map(
    lambda shape: spaces.Box(0, 255, shape, np.uint8)
)


def nested(leaves: Any) -> Any:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2).map(spaces.Dict),
            st.lists(inner, min_size=1, max_size=2).map(spaces.Tuple),
        ),
        max_leaves=4,
    )


FAULTS: dict[str, list[Any]] = {
    "reward": [
        None,
        "1",
        np.nan,
        -np.inf,
        1e40,
        1j,
        [1.0],
        np.array([2.0]),
        np.zeros(2),
        np.float64(3),
        True,
        10**400,
        {"a": 1},
    ],
    "terminated": [None, "no", 2, np.array([True]), np.zeros(2), 1, 0.0, [], np.nan],
    "truncated": [None, "", -1, np.array(False), {}, 1.0],
    "obs": [None, 0.0, "text", [[1], [1, 2]], {}, (), np.nan, 1e300, object(), 1j],
    "answer": [None, (), (0,) * 4, (0,) * 6, np.zeros(5), "five!"],
    "raise": [
        ValueError("many\nlines"),
        KeyError(),
        SystemExit(3),
        AssertionError(),
        RuntimeError("  "),
    ],
}
FAULT = st.sampled_from(
    [(part, number) for part, values in FAULTS.items() for number in range(len(values))]
)


class FuzzEnv(gymnasium.Env):
    """Gives samples of its spaces, one of them spoilt at step ``at``, and remembers all that it
    gave and got.
    """

    def __init__(
        self, obs: Any, action: Any, fault: tuple[str, int] | None, at: int, length: int
    ) -> None:
        self.observation_space = obs
        self.action_space = action
        self._fault = fault
        self._at = at
        self._length = length
        self.count = 0
        self.given: list[tuple[Any, Any, Any, Any]] = []
        self.got: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._in_episode = 0
        if seed is not None:
            self.observation_space.seed(seed % 2**31)
        obs = self.observation_space.sample()
        self.given.append((copy.deepcopy(obs), 0.0, False, False))
        return obs, {}

    def step(self, action: Any) -> Any:
        self.got.append(copy.deepcopy(action))
        self.count += 1
        self._in_episode += 1
        parts: dict[str, Any] = {
            "obs": self.observation_space.sample(),
            "reward": 0.25 * self.count,
            "terminated": self._in_episode >= self._length,
            "truncated": False,
        }
        if self._fault is not None and self.count == self._at:
            part, number = self._fault
            value = FAULTS[part][number]
            if part == "raise":
                raise value
            if part == "answer":
                return value
            parts[part] = spoilt(parts["obs"], value) if part == "obs" else value
        self.given.append(copy.deepcopy(tuple(parts.values())))
        return *parts.values(), {}


def spoilt(obs: Any, value: Any) -> Any:
    """The observation with its first array replaced, or filled with a number."""
    if isinstance(obs, dict) and obs and value not in ({}, ()):
        first, *others = obs
        return {first: spoilt(obs[first], value), **{key: obs[key] for key in others}}
    if isinstance(obs, tuple) and obs and value not in ({}, ()):
        return (spoilt(obs[0], value), *obs[1:])
    return np.full(np.shape(obs), value) if isinstance(value, float | complex) else value


class WrongError(Exception):
    """What the naive twin says of what no row can be made of."""


def real(value: Any) -> float:
    number = (
        value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
    )
    if isinstance(number, str | complex | list | dict | np.ndarray) or number is None:
        raise WrongError
    with np.errstate(over="ignore"):
        if not np.isfinite(np.float32(min(max(number, -1e300), 1e300))):
            raise WrongError
    return float(number)


def flag(value: Any) -> bool:
    number = (
        value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
    )
    if not isinstance(number, bool | int | float) or number not in (0, 1):
        raise WrongError
    return bool(number)


def naive(space: Any, value: Any, path: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The flat observation."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        result: dict[str, np.ndarray] = {}
        for part, inner in parts:
            if not sum(np.size(leaf) for leaf in leaves_of(inner.sample())):
                continue
            try:
                found = value[part]
            except (KeyError, IndexError, TypeError) as error:
                raise WrongError from error
            result |= naive(inner, found, (*path, str(part)))
        return result
    key = "/".join(path) or "obs"
    if not np.size(space.sample()):
        return {}
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise WrongError from error
    if array.shape != space.shape or array.dtype.kind not in "biuf":
        raise WrongError
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        sizes = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec)
        index = np.atleast_1d(array) - space.start
        if array.dtype.kind == "f" or np.any(index < 0) or np.any(index >= sizes):
            raise WrongError
        return {key: np.concatenate([np.eye(n)[i] for n, i in zip(sizes, index, strict=True)])}
    if space.dtype == np.uint8 and len(space.shape) == 3 and array.dtype.kind == "f":
        raise WrongError
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise WrongError
    return {key: array}


def leaves_of(sample: Any) -> list[Any]:
    if isinstance(sample, dict | tuple):
        return [
            leaf
            for part in (sample.values() if isinstance(sample, dict) else sample)
            for leaf in leaves_of(part)
        ]
    return [sample]


def right_row(env: FuzzEnv) -> tuple[dict[str, np.ndarray], float, bool, bool] | None:
    """The row that the env gave last, None if there can be none."""
    obs, reward, terminated, truncated = env.given[-1]
    try:
        return naive(env.observation_space, obs), real(reward), flag(terminated), flag(truncated)
    except WrongError:
        return None


def assert_equal(row: Any, right: tuple[dict[str, np.ndarray], float, bool, bool] | None) -> None:
    assert right is not None, "no row can be made of this"
    obs, reward, terminated, truncated = right
    assert set(row.obs) == set(obs)
    for key, value in obs.items():
        assert np.array_equal(row.obs[key][0], value.reshape(row.obs[key][0].shape)), key
    assert (row.reward[0], row.terminated[0], row.truncated[0]) == (
        np.float32(reward),
        terminated,
        truncated,
    )


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    obs=st.one_of(nested(LEAVES), IMAGES),
    action=nested(LEAVES),
    fault=st.one_of(st.none(), FAULT),
    at=st.integers(1, 9),
    length=st.integers(1, 4),
)
def test_every_env_gives_its_very_rows_or_one_sentence(
    obs: Any, action: Any, fault: tuple[str, int] | None, at: int, length: int
) -> None:
    inner = FuzzEnv(obs, action, fault, at, length)
    adapter = outcome_of(
        lambda: EnvAdapter(RawEnv(inner), EnvConfig(env="toy:counting").resolved())
    )
    if isinstance(adapter, str):
        nothing_to_see, nothing_to_do = (
            not sum(map(np.size, leaves_of(space.sample()))) for space in (obs, action)
        )
        assert nothing_to_see or nothing_to_do, adapter
        return
    built = [adapter]
    env = LocalVectorEnv(built.pop, 1, 0, limits=EnvLimits(max_failures=1))
    choose = RandomActions(env.spec, 1, 0)
    env.reset()
    for _ in range(24):
        row = outcome_of(lambda: env.step(choose()))
        if isinstance(row, str):
            assert fault is not None, row
            assert inner.count == at
            assert fault[0] in ("raise", "answer") or right_row(inner) is None, row
            return
        assert_equal(row, right_row(inner))
        assert all(action.contains(native) for native in inner.got[-1:])
    assert fault is None or fault[0] not in ("raise", "answer")


def outcome_of(call: Any) -> Any:
    """What it returns, or the one line that it raises."""
    try:
        return call()
    except WorldLoomError as error:
        lines = str(error).splitlines()
    (line,) = lines
    return line


@settings(max_examples=50, deadline=None, derandomize=True)
@given(action=nested(LEAVES), repeat=st.integers(1, 3), seed=st.integers(0, 99))
def test_what_an_env_does_to_its_action_reaches_nobody_else(
    action: Any, repeat: int, seed: int
) -> None:
    class Spoiler(FuzzEnv):
        def step(self, native: Any) -> Any:
            answer = super().step(native)
            for leaf in leaves_of(native):
                if isinstance(leaf, np.ndarray):
                    leaf[...] = 0
            return answer

    inner = Spoiler(spaces.Discrete(2), action, None, 0, 99)
    try:
        adapter = EnvAdapter(
            RawEnv(inner), EnvConfig(env="toy:counting", action_repeat=repeat).resolved()
        )
    except WorldLoomError:
        return
    chosen = {key: value[0] for key, value in RandomActions(adapter.spec, 1, seed)().items()}
    kept = copy.deepcopy(chosen)
    adapter.reset(0)
    adapter.step(chosen)
    assert len(inner.got) == repeat
    for native in inner.got:
        assert all(
            np.array_equal(a, b)
            for a, b in zip(leaves_of(native), leaves_of(adapter.map_action(kept)), strict=True)
        )
    assert all(np.array_equal(chosen[key], kept[key]) for key in kept)
