"""Inside an exported policy numbers are read and written exactly as the env's wrappers do it."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldloom.core.exceptions import CheckpointError
from worldloom.core.specs import ArraySpec
from worldloom.envs.config import EnvConfig
from worldloom.envs.spaces import ActionMapper, ObsMapper, find
from worldloom.envs.wrappers import ObsReader as EnvReader
from worldloom.export.scaling import ActionWriter, ObsReader, graph_dtype

PLAIN = EnvConfig(env="toy:counting").resolved()
OBS = {
    "numbers": spaces.Box(-3, 5, (4,), np.float64),
    "whole": spaces.Box(-300, 500, (2, 2), np.int16),
    "depth": spaces.Box(0, 65535, (3,), np.uint16),
    "class": spaces.Discrete(5, start=-2),
    "classes": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, -3]]),
    "flags": spaces.MultiBinary(4),
    "picture": spaces.Box(0, 255, (3, 40, 48), np.uint8),
    "stack": spaces.Box(0, 255, (4, 36, 36, 3), np.uint8),
    "parts": spaces.Dict(
        {
            "arm": spaces.Dict({"angle": spaces.Box(-1, 1, (2,)), "grip": spaces.Discrete(3)}),
            "eye": spaces.Box(0, 255, (32, 32, 1), np.uint8),
        }
    ),
    "pair": spaces.Tuple((spaces.Discrete(4), spaces.Box(-np.inf, np.inf, (3,), np.float32))),
}
WRAPPED = [
    {"image_size": 32},
    {"image_size": 64, "grayscale": True},
    {"grayscale": True, "frame_stack": 3},
    {"image_size": 40, "frame_stack": 2},
]
ACTIONS = {
    "bounds": spaces.Box(np.float32([-2, 0.1]), np.float32([2, 30.7])),
    "doubles": spaces.Box(-0.3, 1.7, (2, 2), np.float64),
    "unit": spaces.Box(-1, 1, (3,), np.float32),
    "open": spaces.Box(np.float32([-np.inf, 0]), np.float32([np.inf, np.inf])),
    "whole": spaces.Box(-7, 120, (2,), np.int8),
    "bytes": spaces.Box(0, 255, (2,), np.uint8),
    "far": spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64),
    "class": spaces.Discrete(4, start=-1),
    "classes": spaces.MultiDiscrete([3, 5], start=[1, -1]),
    "flags": spaces.MultiBinary(3),
    "parts": spaces.Dict(
        {"move": spaces.Box(0, 5, (2,)), "do": spaces.Tuple((spaces.Discrete(2),))}
    ),
}


def tensors(reader: ObsReader, obs: Any) -> dict[str, torch.Tensor]:
    found = {}
    for key, (space, leaf) in reader.leaves.items():
        value = np.asarray(find(obs, leaf.path)).astype(graph_dtype(space.dtype))
        found[key] = torch.from_numpy(value[None])
    return found


@pytest.mark.parametrize("name", OBS)
def test_observations_are_read_as_the_mapper_reads_them(name: str) -> None:
    space = OBS[name]
    space.seed(3)
    mapper = ObsMapper(space)
    reader = ObsReader(space, PLAIN, mapper.specs)
    assert not reader.carry
    for _ in range(20):
        obs = space.sample()
        found, _ = reader(tensors(reader, obs), {}, None)
        for key, wanted in mapper(obs).items():
            np.testing.assert_array_equal(found[key][0].numpy(), wanted)
            assert found[key][0].numpy().dtype == wanted.dtype


@pytest.mark.parametrize("settings", WRAPPED, ids=str)
@pytest.mark.parametrize("shape", [(3, 84, 100), (50, 61, 3), (2, 36, 36, 3)], ids=str)
def test_images_are_resized_grey_and_stacked_as_the_wrappers_do_it(
    settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    config = EnvConfig(env="my_env:Env", **settings).resolved()
    wrapped = EnvReader(space, config)
    reader = ObsReader(space, config, wrapped.specs)
    carry = {
        name: torch.zeros((1, *spec.shape), dtype=torch.uint8)
        for name, spec in reader.carry.items()
    }
    draw = np.random.default_rng(0)
    for step in range(7):
        first = step in (0, 4)
        image = draw.integers(0, 256, shape, np.uint8)
        if step % 2:  # a grey one, whose three colours are equal
            image[...] = draw.integers(0, 256)
        found, carry = reader({"obs": torch.from_numpy(image[None])}, carry, torch.tensor([first]))
        wanted = wrapped(image, first=first)["obs"].astype(int)
        off = np.abs(found["obs"][0].numpy() - wanted)
        if config.grayscale:  # sums of three floats, in an order that is the library's
            assert off.max() <= 1
            assert (off > 0).mean() < 1e-3
        else:
            assert not off.any()
    assert bool(carry) == (settings.get("frame_stack", 1) > 1)


def test_every_grey_stays_what_it_was() -> None:
    space = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    config = EnvConfig(env="my_env:Env", grayscale=True).resolved()
    wrapped = EnvReader(space, config)
    reader = ObsReader(space, config, wrapped.specs)
    image = np.zeros((32, 32, 3), np.uint8)
    image.reshape(-1, 3)[:256] = np.arange(256)[:, None]
    found, _ = reader({"obs": torch.from_numpy(image[None])}, {}, None)
    np.testing.assert_array_equal(found["obs"][0].numpy(), wrapped(image, first=True)["obs"])


@pytest.mark.parametrize("name", ACTIONS)
def test_actions_are_written_as_the_mapper_writes_them(name: str) -> None:
    space = ACTIONS[name]
    mapper = ActionMapper(space)
    writer = ActionWriter(space)
    draw = np.random.default_rng(1)
    for step in range(30):
        action = {}
        for key, spec in mapper.specs.items():
            if spec.is_discrete:
                classes = np.array(spec.num_classes).reshape(spec.shape)
                action[key] = np.asarray(draw.integers(0, classes), np.int32)
            else:
                value = draw.uniform(-1.3, 1.3, spec.shape).astype(np.float32)
                ends = {0: -1.0, 1: 1.0, 2: 0.0}
                action[key] = np.full_like(value, ends[step]) if step in ends else value
        native = mapper(action)
        found = writer({key: torch.from_numpy(value[None]) for key, value in action.items()})
        for key, (leaf_space, leaf) in writer.leaves.items():
            wanted = np.asarray(find(native, leaf.path))
            np.testing.assert_array_equal(found[key][0].numpy(), wanted)
            assert found[key].numpy().dtype == graph_dtype(leaf_space.dtype)


def test_a_space_of_another_run_is_refused() -> None:
    with pytest.raises(CheckpointError, match="of different runs"):
        ObsReader(spaces.Box(-1, 1, (3,)), PLAIN, {"obs": ArraySpec((4,))})
