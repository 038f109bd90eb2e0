from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from worldloom.core.exceptions import ConfigurationError, EnvFailureError, ShapeMismatchError
from worldloom.core.specs import ArraySpec
from worldloom.envs import leaves
from worldloom.envs.config import EnvConfig
from worldloom.envs.spaces import ActionMapper, ObsMapper
from worldloom.envs.toy import CountingEnv
from worldloom.envs.vector import sample_actions
from worldloom.envs.wrappers import EnvAdapter, RawEnv


def test_spaces_of_every_kind_become_flat_arrays() -> None:
    class ManyEnv(CountingEnv):
        observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (3, 48, 40), np.uint8),
                "depth": spaces.Box(0, 255, (40, 48), np.uint8),
                "inner": spaces.Dict(
                    {"mode": spaces.Discrete(3, start=1), "bits": spaces.MultiBinary(2)}
                ),
                "pair": spaces.MultiDiscrete([2, 3]),
                "height": spaces.Box(-1, 1, (), np.float64),
                "nothing": spaces.Box(-1, 1, (0,), np.float32),
            }
        )
        action_space = spaces.Dict(
            {
                "move": spaces.Box(np.float32([0.0, -2.0]), np.float32([10.0, 2.0])),
                "button": spaces.Discrete(4, start=2),
            }
        )
        taken: Any = None

        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            camera = np.zeros((3, 48, 40), np.uint8)
            camera[1] = 7
            inner = {"mode": 2, "bits": np.array([0, 1], np.int8)}
            rest = {"pair": np.array([1, 2]), "height": np.float64(0.5), "nothing": np.zeros(0)}
            return {
                "camera": camera,
                "depth": np.full((40, 48), 9, np.uint8),
                "inner": inner,
                **rest,
            }, {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            ManyEnv.taken = action
            return self.reset()[0], 1.0, False, False, {}

    adapter = EnvAdapter(RawEnv(ManyEnv()), EnvConfig(env="toy:counting").resolved())
    assert {key: (spec.shape, spec.dtype) for key, spec in adapter.spec.obs.items()} == {
        "camera": ((48, 40, 3), "uint8"),
        "depth": ((40, 48, 1), "uint8"),
        "height": ((), "float32"),
        "inner/bits": ((2,), "float32"),
        "inner/mode": ((3,), "float32"),
        "pair": ((5,), "float32"),
    }
    assert adapter.spec.action == {
        "button": ArraySpec((), "int32", (4,)),
        "move": ArraySpec((2,)),
    }
    obs = adapter.reset()
    assert obs["camera"][0, 0].tolist() == [0, 7, 0]
    assert obs["inner/mode"].tolist() == [0, 1, 0]
    assert obs["pair"].tolist() == [0, 1, 0, 0, 1]
    adapter.step({"move": np.array([1.0, -3.0], np.float32), "button": np.int32(3)})
    assert ManyEnv.taken["button"] == 5
    assert ManyEnv.taken["move"].tolist() == [10.0, -2.0]


def test_batched_conversion_equals_conversion_one_by_one() -> None:
    space = spaces.Dict(
        {
            "a": spaces.MultiDiscrete([[2, 3], [4, 5]]),
            "b": spaces.Discrete(3),
            "c": spaces.Box(-1, 1, (2, 2)),
        }
    )
    mapper = ObsMapper(space)
    samples = [space.sample() for _ in range(6)]
    batch = mapper(
        {key: np.stack([np.asarray(s[key]) for s in samples]) for key in space.spaces}, (6,)
    )
    for index, sample in enumerate(samples):
        for key, value in mapper(sample).items():
            assert np.array_equal(batch[key][index], value)


def test_bounds_are_reached_exactly_and_never_passed() -> None:
    mapper = ActionMapper(
        spaces.Box(np.float32([-0.4, 0.1, -np.inf]), np.float32([0.4, 0.7, np.inf]))
    )
    assert (
        mapper({"action": np.float32([1, 1, 1])}).tolist() == np.float32([0.4, 0.7, 1.0]).tolist()
    )
    assert (
        mapper({"action": np.float32([-1, -1, -1])}).tolist()
        == np.float32([-0.4, 0.1, -1.0]).tolist()
    )
    assert (
        mapper({"action": np.float32([9, -9, 0.5])}).tolist()
        == np.float32([0.4, 0.1, 0.5]).tolist()
    )


@pytest.mark.parametrize("context", [leaves.IGNORING_OVERFLOW, None], ids=["numpy 2", "numpy 1"])
@pytest.mark.parametrize("error_state", ["warn", "raise"])
def test_numbers_too_large_for_float32_are_refused_whatever_numpy_says_of_overflow(
    context: Any, error_state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaves, "IGNORING_OVERFLOW", context)
    mapper = ObsMapper(spaces.Box(-np.inf, np.inf, (2,), np.float64))
    with np.errstate(all=error_state):
        before = np.geterr()
        assert mapper(np.array([1e30, -2.5]))["obs"].tolist() == [np.float32(1e30), -2.5]
        for number in (1e39, -1e300, np.inf, np.nan):
            with pytest.raises(EnvFailureError, match="not finite"):
                mapper(np.array([0.0, number]))
        assert np.geterr() == before


def test_wrong_shapes_and_numbers_are_refused() -> None:
    mapper = ObsMapper(spaces.Box(-1, 1, (2,)))
    with pytest.raises(ShapeMismatchError, match="observation 'obs'"):
        mapper(np.zeros(3, np.float32))
    with pytest.raises(EnvFailureError, match="not finite"):
        mapper(np.float32([0, np.inf]))
    with pytest.raises(EnvFailureError, match="outside its discrete space"):
        ObsMapper(spaces.Discrete(3))(3)
    with pytest.raises(ShapeMismatchError, match="keys of an action"):
        ActionMapper(spaces.Discrete(3))({"act": np.int32(0)})


IMAGE_SPACES = [
    spaces.Box(0, 255, shape, np.uint8) for shape in ((40, 48, 3), (3, 40, 48), (40, 48))
]


@pytest.mark.parametrize("space", IMAGE_SPACES, ids=lambda space: str(space.shape))
def test_image_that_is_not_uint8_is_refused_and_never_cut(space: Any) -> None:
    mapper = ObsMapper(space)
    whole = np.full(space.shape, 200)
    assert mapper(whole)["obs"].dtype == np.uint8
    assert (mapper(whole.astype(np.int16))["obs"] == 200).all()
    with pytest.raises(
        EnvFailureError, match="image 'obs' is float32 and its space says uint8; return"
    ):
        mapper(np.full(space.shape, 0.5, np.float32))
    with pytest.raises(EnvFailureError, match="image 'obs' holds numbers from 200 to 300"):
        mapper(np.stack([whole, whole + 100]), (2,))
    with pytest.raises(EnvFailureError, match="holds numbers from -1 to -1"):
        mapper(np.full(space.shape, -1))


@pytest.mark.parametrize("space", [spaces.Text(4), spaces.Sequence(spaces.Discrete(2))])
def test_space_without_arrays_of_fixed_size_is_refused(space: Any) -> None:
    with pytest.raises(ConfigurationError, match="is not supported; use Box"):
        ObsMapper(space)
    with pytest.raises(ConfigurationError, match="is not supported; use Box"):
        ActionMapper(space)


def test_random_actions_of_one_env_do_not_depend_on_the_others() -> None:
    class MixedEnv(CountingEnv):
        action_space = spaces.Dict(
            {"move": spaces.Box(-1, 1, (2,)), "pick": spaces.MultiDiscrete([2, 5])}
        )

    spec = EnvAdapter(RawEnv(MixedEnv()), EnvConfig(env="toy:counting").resolved()).spec
    both = sample_actions(spec, [np.random.default_rng(1), np.random.default_rng(2)])
    alone = sample_actions(spec, [np.random.default_rng(2)])
    assert np.array_equal(both["move"][1], alone["move"][0])
    assert np.array_equal(both["pick"][1], alone["pick"][0])
    many = sample_actions(spec, [np.random.default_rng(i) for i in range(300)])
    assert {tuple(column) for column in many["pick"].tolist()} == {
        (a, b) for a in range(2) for b in range(5)
    }
    assert many["move"].min() < -0.9
    assert many["move"].max() > 0.9


def native_of(space: Any, value: Any, dtype: Any = np.float32) -> Any:
    native = ActionMapper(space)({"action": np.asarray(value, dtype)})
    assert space.contains(native), f"{native!r} is not in {space}"
    return native


INT64 = np.iinfo(np.int64)
BOXES = {
    "int64": (spaces.Box(INT64.min, INT64.max, (1,), np.int64), [INT64.min], [INT64.max]),
    "uint64": (
        spaces.Box(0, np.iinfo(np.uint64).max, (1,), np.uint64),
        [0],
        [np.iinfo(np.uint64).max],
    ),
    "beside-2^53": (
        spaces.Box(-(2**53) - 1, 2**53 + 1, (1,), np.int64),
        [-(2**53) - 1],
        [2**53 + 1],
    ),
    "int8": (spaces.Box(-3, 9, (1,), np.int8), [-3], [9]),
    "bytes": (spaces.Box(0, 255, (1,), np.uint8), [0], [255]),
    "float16": (spaces.Box(-0.1, 0.7, (1,), np.float16), [np.float16(-0.1)], [np.float16(0.7)]),
    "float64": (spaces.Box(-0.1, 0.7, (1,), np.float64), [-0.1], [0.7]),
    "lopsided": (spaces.Box(-1e9, 1e-9, (1,), np.float64), [-1e9], [1e-9]),
    "equal": (spaces.Box(3, 3, (1,)), [3], [3]),
    "scalar": (spaces.Box(-2, 5, ()), -2, 5),
    "unbounded": (spaces.Box(-np.inf, np.inf, (1,)), [-1], [1]),
    "end-of-float32": (
        spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (1,)),
        [-1],
        [1],
    ),
    "end-of-float32-in-64": (
        spaces.Box(
            -float(np.finfo(np.float32).max), float(np.finfo(np.float32).max), (1,), np.float64
        ),
        [-1],
        [1],
    ),
    "end-of-float64": (
        spaces.Box(-np.finfo(np.float64).max, np.finfo(np.float64).max, (1,), np.float64),
        [-1],
        [1],
    ),
    "end-of-float16": (
        spaces.Box(-np.finfo(np.float16).max, np.finfo(np.float16).max, (1,), np.float16),
        [-1],
        [1],
    ),
    "literal-end": (spaces.Box(-3.4e38, 3.4e38, (1,)), [-1], [1]),
    "infinite-int": (spaces.Box(-np.inf, np.inf, (1,), np.int32), [-1], [1]),
    "half-open": (spaces.Box(0, np.inf, (1,)), [0], [1]),
    "huge": (spaces.Box(-1e30, 1e30, (1,)), [np.float32(-1e30)], [np.float32(1e30)]),
}


@pytest.mark.parametrize("name", BOXES)
def test_ends_of_every_box_are_reached_exactly_and_never_passed(name: str) -> None:
    space, low, high = BOXES[name]
    for end, bound in ((-1.0, low), (1.0, high), (-5.0, low), (5.0, high)):
        native = native_of(space, np.full(space.shape, end))
        assert isinstance(native, np.ndarray)
        assert native.tolist() == np.asarray(bound, space.dtype).tolist()
    for unit in np.linspace(-1, 1, 41, dtype=np.float32):
        native_of(space, np.full(space.shape, unit))


def test_small_actions_stay_small_where_there_are_no_bounds() -> None:
    space = BOXES["end-of-float32"][0]
    assert native_of(space, [0.01]).tolist() == [np.float32(0.01)]


@pytest.mark.parametrize(("low", "high"), [(5, np.inf), (1, np.inf), (-np.inf, -1), (7, 3.4e38)])
def test_open_box_without_a_choice_is_refused(low: float, high: float) -> None:
    with pytest.raises(
        ConfigurationError, match=r"so every action becomes .*; give the Box two finite bounds"
    ):
        ActionMapper(spaces.Box(low, high, (2,)))


def test_bounds_that_are_no_interval_are_refused() -> None:
    space = spaces.Box(-1, 1, (2,))
    space.low = np.float32([np.nan, -1])
    with pytest.raises(
        ConfigurationError, match=r"action 'action' has the bounds \[nan, 1\]; low must be a number"
    ):
        ActionMapper(space)
    space.low = np.float32([-1, 2])
    with pytest.raises(ConfigurationError, match=r"action 'action' has the bounds \[2, 1\]"):
        ActionMapper(space)


CHOICES = {
    "start": (spaces.Discrete(3, start=-7), 2, -5),
    "one": (spaces.Discrete(1, start=4), 0, 4),
    "multi": (spaces.MultiDiscrete([2, 3], start=[-1, 7]), [1, 2], [0, 9]),
    "matrix": (spaces.MultiDiscrete([[2, 3], [4, 5]]), [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
    "bits": (spaces.MultiBinary((2, 1)), [[1], [0]], [[1], [0]]),
    "small-dtype": (spaces.MultiDiscrete([2, 3], dtype=np.int8), [1, 2], [1, 2]),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_reach_the_env_in_its_own_numbers_and_come_back(name: str) -> None:
    space, flat, native = CHOICES[name]
    assert native_of(space, flat, np.int32).tolist() == native
    mapper = ActionMapper(space)
    assert mapper.inverse(mapper({"action": np.int32(flat)}))["action"].tolist() == flat
    rows = mapper.rows({"action": np.stack([np.int32(flat)] * 3)}, 3)
    assert all(space.contains(row) for row in rows)


def test_nested_actions_have_the_structure_of_their_space() -> None:
    hand = spaces.Tuple([spaces.Discrete(2, start=5), spaces.Box(0, 8, (2,), np.int32)])
    space = spaces.Dict(
        {"hand": hand, "leg": spaces.Box(0, 9, ()), "none": spaces.Box(0, 1, (0, 3))}
    )
    mapper = ActionMapper(space)
    assert list(mapper.specs) == ["hand/0", "hand/1", "leg"]
    action = {"hand/0": np.int32(1), "hand/1": np.float32([-1, 1]), "leg": np.float32(1)}
    native = mapper(action)
    assert space.contains(native)
    assert (native["hand"][0], native["hand"][1].tolist(), native["leg"].tolist()) == (6, [0, 8], 9)
    rows = mapper.rows({key: np.stack([value, value]) for key, value in action.items()}, 2)
    assert all(space.contains(row) for row in rows)


@pytest.mark.parametrize("make", [ObsMapper, ActionMapper])
def test_two_arrays_under_one_key_are_refused(make: Any) -> None:
    box = spaces.Box(-1, 1, (2,))
    with pytest.raises(
        ConfigurationError,
        match=r"key 'a/b' would be made twice, of \['a'\]\['b'\] and of \['a/b'\]",
    ):
        make(spaces.Dict({"a/b": box, "a": spaces.Dict({"b": box})}))
    with pytest.raises(ConfigurationError, match="key 'a/0' would be made twice"):
        make(spaces.Dict({"a/0": box, "a": spaces.Tuple([box])}))


def test_images_of_every_layout_are_images_and_others_are_told() -> None:
    stack = ObsMapper(spaces.Box(0, 255, (4, 48, 40, 3), np.uint8))
    assert (stack.specs["obs"], stack.frames, stack.remarks) == (
        ArraySpec((48, 40, 12), "uint8"),
        {"obs": 4},
        [],
    )
    value = np.stack([np.full((48, 40, 3), number, np.uint8) for number in range(4)])
    assert stack(value)["obs"][0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    voxels = ObsMapper(spaces.Box(0, 255, (10, 10, 10, 10), np.uint8))
    assert voxels.specs["obs"] == ArraySpec((10, 10, 10, 10))
    assert "no image is recognised, so dense layers read 10000 numbers" in voxels.remarks[0]
    for shape, dtype, what in (
        ((64, 64, 3), np.float32, "floats"),
        ((4, 84, 84), np.float64, "floats"),
        ((64, 64, 3), np.int32, "int32"),
    ):
        (remark,) = ObsMapper(spaces.Box(0, 255, shape, dtype)).remarks
        assert f"may be an image of {what}, and dense layers read its" in remark
    assert ObsMapper(spaces.Box(0, 1, (5, 5))).remarks == []


def test_numbers_that_float32_cannot_hold_are_refused_and_named() -> None:
    mapper = ObsMapper(
        spaces.Dict(
            {"a": spaces.Box(-1, 1, (1,)), "b": spaces.Box(-np.inf, np.inf, (2,), np.float64)}
        )
    )
    with pytest.raises(
        EnvFailureError, match=r"observation 'b' holds inf at .1., which is not finite in float32"
    ):
        mapper({"a": np.zeros(1), "b": np.array([0.0, 1e300])})
    largest = float(np.finfo(np.float32).max)
    assert mapper({"a": np.zeros(1), "b": np.array([0.0, largest])})["b"].tolist() == [0.0, largest]


@pytest.mark.parametrize("wrong", [[0, 2], [0, -1], [0.5, 1]])
def test_flags_that_are_neither_0_nor_1_are_refused_by_name(wrong: list[float]) -> None:
    mapper = ObsMapper(spaces.Dict({"bits": spaces.MultiBinary(2)}))
    assert mapper({"bits": np.array([0, 1], np.int8)})["bits"].tolist() == [0.0, 1.0]
    with pytest.raises(EnvFailureError, match=r"'bits' is .*promises 0 and 1"):
        mapper({"bits": np.array(wrong)})
