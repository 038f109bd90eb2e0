"""Gymnasium envs as clients: spaces are converted as in workers, and wrong ones are refused."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from tests.fakes import check_counting_rows
from tests.worldloom_client.live import live
from tests.worldloom_dist.gateway.parts import contract_of
from worldloom.envs.spaces import ActionMapper, ObsMapper
from worldloom.envs.toy import CountingEnv
from worldloom_client import ClientError, connect, drive
from worldloom_client.__main__ import main
from worldloom_client.spaces import ActionConverter, ObsConverter
from worldloom_client.wire import Spec

SPACES = [
    spaces.Box(-2.0, 3.0, (3,), np.float32),
    spaces.Box(np.array([-1.0, -np.inf], np.float64), np.array([5.0, np.inf]), dtype=np.float64),
    spaces.Box(-3, 4, (2, 2), np.int32),
    spaces.Discrete(4, start=3),
    spaces.MultiDiscrete([2, 5]),
    spaces.MultiBinary(3),
    spaces.Dict({"a": spaces.Box(0.0, 1.0, (2,)), "b": spaces.Discrete(3)}),
]
IMAGES = [
    spaces.Box(0, 255, (64, 64, 3), np.uint8),
    spaces.Box(0, 255, (3, 64, 64), np.uint8),
    spaces.Box(0, 255, (64, 64), np.uint8),
]


def specs_of(mapper):
    return [
        Spec(key, tuple(spec.shape), spec.dtype, tuple(spec.num_classes))
        for key, spec in mapper.specs.items()
    ]


@pytest.mark.parametrize("space", [*SPACES, *IMAGES], ids=str)
def test_observations_are_what_a_worker_makes_of_them(space) -> None:
    mapper = ObsMapper(space)
    convert = ObsConverter(space, specs_of(mapper))
    space.seed(0)
    for _ in range(5):
        obs = space.sample()
        expected = mapper(obs)
        found = convert(obs)
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert np.array_equal(value, expected[key])
            assert value.dtype == expected[key].dtype


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_actions_are_what_a_worker_makes_of_them(space) -> None:
    mapper = ActionMapper(space)
    convert = ActionConverter(space, specs_of(mapper))
    rng = np.random.default_rng(0)
    for _ in range(10):
        action = {}
        for key, spec in mapper.specs.items():
            if spec.num_classes:
                high = np.array(spec.num_classes).reshape(spec.shape)
                action[key] = np.asarray(rng.integers(high)).astype(spec.dtype)
            else:
                action[key] = rng.choice([-1.0, 1.0, 0.3, -0.7], spec.shape).astype(np.float32)
        expected = mapper(action)
        found = convert(action)
        if isinstance(expected, dict):
            for key, value in expected.items():
                assert np.allclose(found[key], value)
        else:
            assert np.allclose(found, expected)
            assert np.asarray(found).dtype == np.asarray(expected).dtype
        back = convert.inverse(found)
        for key, value in action.items():
            if mapper.specs[key].num_classes:
                assert np.array_equal(back[key], value)


@pytest.mark.parametrize(
    ("space", "specs", "says"),
    [
        (spaces.Text(5), [Spec("obs", (3,))], "not supported"),
        (spaces.Box(-1, 1, (4,)), [Spec("obs", (3,))], r"the policy sees float32 of shape \(3,\)"),
        (spaces.Dict({"a": spaces.Discrete(2)}), [Spec("b", (2,))], "keys"),
        (spaces.Box(-1, 1, (4,)), [Spec("a", (4,)), Spec("b", (2,))], "keys a, b"),
    ],
)
def test_an_env_that_is_not_the_runs_is_refused_in_a_sentence(space, specs, says) -> None:
    with pytest.raises(ClientError, match=says):
        ObsConverter(space, specs)


def test_an_action_space_that_is_not_the_runs_is_refused() -> None:
    with pytest.raises(ClientError, match="the env takes Discrete"):
        ActionConverter(spaces.Discrete(3), [Spec("action", (2,))])


def test_driving_stores_every_row_of_an_env() -> None:
    with live() as server:
        with connect(server.address) as session:
            told = []
            episodes = drive(CountingEnv(), session, episodes=6, seed=0, on_episode=told.append)
        assert [e.length for e in episodes] == [5, 1, 3, 8, 2, 5]
        assert [e.episode_return for e in episodes][:2] == [15.0, 1.0]
        assert told == episodes
        (stream,) = server.rig.shard.writer.chunks
        check_counting_rows(server.rig.shard.writer.rows(stream))


def test_steps_end_driving_in_mid_episode() -> None:
    with live() as server:
        with connect(server.address) as session:
            drive(CountingEnv(), session, steps=4, seed=0)
        (stream,) = server.rig.shard.writer.chunks
        rows = server.rig.shard.writer.rows(stream)
    assert len(rows["reward"]) == 5
    assert rows["truncated"].tolist() == [False] * 4 + [True]


def test_an_override_runs_in_place_of_the_policy_and_is_told() -> None:
    def take_over(obs, action):
        return (np.array([0.5, -0.5], np.float32), "human") if obs[1] == 1 else None

    with live() as server:
        with connect(server.address) as session:
            drive(CountingEnv(), session, episodes=3, seed=0, override=take_over)
        (stream,) = server.rig.shard.writer.chunks
        rows = server.rig.shard.writer.rows(stream)
    check_counting_rows(rows)
    at = (rows["obs"][:, 1] == 1) & ~rows["terminated"] & ~rows["truncated"]
    assert at.sum() == 2
    assert np.allclose(rows["action"][at], [0.5, -0.5])
    assert server.rig.gateway.meter.drain(0)[0]["gateway_rows_total{source=human}"].value == 2


def test_the_command_needs_only_gymnasium() -> None:
    with live(contract=contract_of("gym:Pendulum-v1")) as server:
        code = (
            "import sys\n"
            "for name in ('torch', 'ray', 'worldloom', 'worldloom_dist'):\n"
            "    sys.modules[name] = None\n"
            "from worldloom_client.__main__ import main\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        words = ["--env", "gym:Pendulum-v1", "--address", server.address, "--steps", "250"]
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("return -")
        assert server.rig.shard.writer.num_rows == 252


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("Pendulum", "expected gym:ID or MODULE:CALLABLE"),
        ("gym:NoSuchEnv-v0", "cannot be made"),
        ("no_such_module:make", "needs a package"),
    ],
)
def test_an_env_that_cannot_be_made_is_told_in_a_sentence(env, says, capsys) -> None:
    assert main(["--env", env, "--address", "127.0.0.1:1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: env: ")
    assert says in error
    assert len(error.splitlines()) == 1


def test_another_env_than_the_runs_is_told_in_a_sentence(capsys) -> None:
    with live(contract=contract_of("gym:Pendulum-v1")) as server:
        words = ["--env", "gym:CartPole-v1", "--address", server.address, "--steps", "5"]
        assert main(words) == 2
        assert "use the env that it was trained in" in capsys.readouterr().err


def test_gymnasium_is_here() -> None:
    assert gym.spaces is spaces
