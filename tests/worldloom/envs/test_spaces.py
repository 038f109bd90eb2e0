from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from worldloom.core.exceptions import ConfigurationError, EnvFailureError, ShapeMismatchError
from worldloom.core.specs import ArraySpec
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
                "inner": spaces.Dict({"mode": spaces.Discrete(3, start=1), "bits": spaces.MultiBinary(2)}),
                "pair": spaces.MultiDiscrete([2, 3]),
                "height": spaces.Box(-1, 1, (), np.float64),
                "nothing": spaces.Box(-1, 1, (0,), np.float32),
            }
        )
        action_space = spaces.Dict(
            {"move": spaces.Box(np.float32([0.0, -2.0]), np.float32([10.0, 2.0])), "button": spaces.Discrete(4, start=2)}
        )
        taken: Any = None

        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            camera = np.zeros((3, 48, 40), np.uint8)
            camera[1] = 7
            inner = {"mode": 2, "bits": np.array([0, 1], np.int8)}
            rest = {"pair": np.array([1, 2]), "height": np.float64(0.5), "nothing": np.zeros(0)}
            return {"camera": camera, "depth": np.full((40, 48), 9, np.uint8), "inner": inner, **rest}, {}

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
    space = spaces.Dict({"a": spaces.MultiDiscrete([[2, 3], [4, 5]]), "b": spaces.Discrete(3), "c": spaces.Box(-1, 1, (2, 2))})
    mapper, samples = ObsMapper(space), [space.sample() for _ in range(6)]
    batch = mapper({key: np.stack([np.asarray(s[key]) for s in samples]) for key in space.spaces}, (6,))
    for index, sample in enumerate(samples):
        for key, value in mapper(sample).items():
            assert np.array_equal(batch[key][index], value)


def test_bounds_are_reached_exactly_and_never_passed() -> None:
    mapper = ActionMapper(spaces.Box(np.float32([-0.4, 0.1, -np.inf]), np.float32([0.4, 0.7, np.inf])))
    assert mapper({"action": np.float32([1, 1, 1])}).tolist() == np.float32([0.4, 0.7, 1.0]).tolist()
    assert mapper({"action": np.float32([-1, -1, -1])}).tolist() == np.float32([-0.4, 0.1, -1.0]).tolist()
    assert mapper({"action": np.float32([9, -9, 0.5])}).tolist() == np.float32([0.4, 0.1, 0.5]).tolist()


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


IMAGE_SPACES = [spaces.Box(0, 255, shape, np.uint8) for shape in ((40, 48, 3), (3, 40, 48), (40, 48))]


@pytest.mark.parametrize("space", IMAGE_SPACES, ids=lambda space: str(space.shape))
def test_image_that_is_not_uint8_is_refused_and_never_cut(space: Any) -> None:
    mapper, whole = ObsMapper(space), np.full(space.shape, 200)
    assert mapper(whole)["obs"].dtype == np.uint8
    assert (mapper(whole.astype(np.int16))["obs"] == 200).all()
    with pytest.raises(EnvFailureError, match="image 'obs' is float32 and its space says uint8; return"):
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
        action_space = spaces.Dict({"move": spaces.Box(-1, 1, (2,)), "pick": spaces.MultiDiscrete([2, 5])})

    spec = EnvAdapter(RawEnv(MixedEnv()), EnvConfig(env="toy:counting").resolved()).spec
    both = sample_actions(spec, [np.random.default_rng(1), np.random.default_rng(2)])
    alone = sample_actions(spec, [np.random.default_rng(2)])
    assert np.array_equal(both["move"][1], alone["move"][0])
    assert np.array_equal(both["pick"][1], alone["pick"][0])
    many = sample_actions(spec, [np.random.default_rng(i) for i in range(300)])
    assert {tuple(column) for column in many["pick"].tolist()} == {(a, b) for a in range(2) for b in range(5)}
    assert many["move"].min() < -0.9
    assert many["move"].max() > 0.9
