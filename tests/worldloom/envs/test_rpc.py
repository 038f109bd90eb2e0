"""``rpc:HOST:PORT``: worlds of a dm_env_rpc server as envs. The server of these tests is held
against the protocol's own compliance suite.
"""

import contextlib
import sys
from types import MappingProxyType

import grpc
import numpy as np
import pytest

pytest.importorskip("dm_env_rpc", reason="dm-env-rpc is not installed (extra rpc)")

from dm_env_rpc.v1 import connection, tensor_utils
from dm_env_rpc.v1 import dm_env_rpc_pb2 as pb

from tests.worldloom.envs.rpc_server import OBS, Server, tensor
from worldloom.core.exceptions import ConfigurationError, EnvFailureError, MissingDependencyError
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import env_spec, make_env, make_raw


@contextlib.contextmanager
def serving(*specs, **more):
    server = Server(*specs, **more)
    try:
        yield server, f"rpc:127.0.0.1:{server.port}"
    finally:
        server.stop()


def raw(name):
    return make_raw(EnvConfig(env=name).resolved(), 1).env


def test_tensors_become_spaces_with_their_bounds(caplog) -> None:
    with serving() as (server, name):
        spec = env_spec(EnvConfig(env=name))
        assert {key: value.shape for key, value in spec.obs.items()} == {
            "count": (3,),
            "phase": (5,),
        }
        assert spec.action["move"].shape == (2,)
        assert spec.action["mode"].num_classes == (3,)
        assert spec.action["grip"].num_classes == (2, 3)
        assert list(spec.action) == ["grip", "mode", "move"]
        assert "'hint' are no numbers and are left out" in caplog.text
        assert "'note' are no numbers and are left out" in caplog.text
        assert not server.worlds  # what was made to look at is destroyed again


def test_actions_reach_the_server_in_its_own_bounds() -> None:
    with serving() as (server, name):
        vector = make_env(EnvConfig(env=name), num_envs=1, seed=0)
        vector.reset()
        for move, mode, grip in (([1, -1], 0, [0, 0]), ([0.5, 1], 2, [1, 2])):
            vector.step(
                {
                    "move": np.array([move], np.float32),
                    "mode": np.array([mode]),
                    "grip": np.array([grip]),
                }
            )
        (world,) = server.worlds.values()
        assert world.given[0]["move"].tolist() == [2.0, -4.0]
        assert world.given[1]["move"].tolist() == [1.0, 4.0]
        assert [int(given["mode"]) for given in world.given] == [1, 3]
        assert [given["grip"].tolist() for given in world.given] == [[0, -1], [1, 1]]
        vector.close()


def test_episodes_end_as_the_server_says() -> None:
    still = {"move": np.zeros(2, np.float32), "mode": 1, "grip": np.zeros(2, np.int64)}
    with serving() as (server, name):
        env = raw(name)
        ends = []
        for _ in range(4):
            obs, _ = env.reset(seed=3)
            assert obs["count"][1] == 0
            assert obs["phase"] == 0
            steps = 0
            while True:
                obs, reward, terminated, truncated, _ = env.step(still)
                steps += 1
                assert reward == steps == obs["count"][1]
                if terminated or truncated:
                    ends.append((steps, terminated, truncated))
                    break
        assert ends == [(5, True, False), (1, False, True), (3, True, False), (8, False, True)]
        env.close()
        assert not server.worlds


def test_a_discount_decides_where_there_is_one() -> None:
    observations = {**OBS, 9: tensor("discount", pb.FLOAT)}
    with serving(observations) as (_, name):  # which is 0 there
        env = raw(name)
        still = {"move": np.zeros(2, np.float32), "mode": 1, "grip": np.zeros(2, np.int64)}
        for _ in range(2):
            obs, _ = env.reset()
            terminated = truncated = False
            while not (terminated or truncated):
                obs, _, terminated, truncated, _ = env.step(still)
            assert terminated
        assert "discount" not in obs
        env.close()


def test_a_world_that_is_there_is_joined_and_left_as_it_is() -> None:
    with serving() as (server, name):
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            own = connection.Connection(channel)
            made = own.send(pb.CreateWorldRequest()).world_name
            env = raw(f"{name}/{made}")
            env.reset()
            env.close()
            own.close()
        assert list(server.worlds) == [made]
        with pytest.raises(ConfigurationError, match="the server says: there is no world 'moon'"):
            raw(f"{name}/moon")
        server.refuses["create_world"] = "ask the operator"
        with pytest.raises(ConfigurationError, match=r"ask the operator.*name one: rpc:HOST:PORT"):
            raw(name)


@pytest.mark.parametrize(
    ("observations", "actions", "says"),
    [
        ({1: tensor("text", pb.STRING)}, None, "has no numeric observation"),
        (None, {1: tensor("text", pb.STRING)}, "has no numeric action"),
        ({1: tensor("reward", pb.FLOAT)}, None, "has no numeric observation"),
        (
            {1: tensor("cloud", pb.FLOAT, (-1, 3))},
            None,
            r"observation 'cloud' has the shape \[-1, 3",
        ),
        (
            None,
            {1: pb.TensorSpec(name="odd", dtype=pb.INT32, min={"floats": {"array": [1.0]}})},
            "the bounds of the action 'odd' are none",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_one_sentence(observations, actions, says) -> None:
    with serving(observations, actions) as (_, name):
        with pytest.raises(ConfigurationError, match=says) as caught:
            env_spec(EnvConfig(env=name))
        assert len(str(caught.value).splitlines()) == 1


def test_every_kind_of_tensor_has_a_space() -> None:
    observations = {
        1: tensor("image", pb.UINT8, (64, 64, 3), 0, 255),
        2: tensor("flag", pb.BOOL),
        3: tensor("flags", pb.BOOL, (4,)),
        4: tensor("wide", pb.INT32, (), 0, 2_000_000),
        5: tensor("half", pb.DOUBLE, (2,), low=0.0),
        6: tensor("deep/name", pb.INT8, (2,)),
    }
    with serving(observations, {1: tensor("jump", pb.BOOL), 2: tensor("paddle", pb.INT8)}) as (
        _,
        name,
    ):
        spec = env_spec(EnvConfig(env=name))
    assert spec.obs["image"].is_image
    assert spec.obs["flag"].shape == (2,)
    assert spec.obs["flags"].shape == (4,)
    assert spec.obs["wide"].shape == ()
    assert spec.action["jump"].num_classes == (2,)
    assert spec.action["paddle"].num_classes == ()


@pytest.mark.parametrize(
    ("low", "high", "sent"),
    [(None, None, [-1, 0, 1]), (0, None, [0, 0, 1]), (-900, 900, [-900, 180, 900])],
)
def test_an_integer_action_without_bounds_is_minus_one_to_one_rounded(low, high, sent) -> None:
    with serving(OBS, {1: tensor("move", pb.INT32, (2,), low, high)}) as (server, name):
        vector = make_env(EnvConfig(env=name), num_envs=1, seed=0)
        vector.reset()
        for value in (-1.0, 0.2, 1.0):
            vector.step({"move": np.full((1, 2), value, np.float32)})
        (world,) = server.worlds.values()
        assert [int(given["move"][0]) for given in world.given] == sent
        vector.close()


def test_a_server_that_is_not_there_is_named(monkeypatch) -> None:
    monkeypatch.setattr("worldloom.envs.suites.rpc.REACHED_WITHIN_S", 0.2)
    with pytest.raises(ConfigurationError, match=r"no dm_env_rpc server answers at 127.0.0.1:1"):
        env_spec(EnvConfig(env="rpc:127.0.0.1:1"))


@pytest.mark.parametrize("name", ["rpc:", "rpc:host", "rpc:host:port", "rpc:host:50051/", "rpc::1"])
def test_an_address_has_a_host_and_a_port(name) -> None:
    with pytest.raises(ConfigurationError, match=r"rpc:HOST:PORT|a name must follow"):
        EnvConfig(env=name)


def test_a_server_that_dies_is_a_failure_of_the_env_and_its_successor_is_joined() -> None:
    with serving() as (server, name):
        env = raw(name)
        env.reset()
        server.stop()
        still = {"move": np.zeros(2, np.float32), "mode": 1, "grip": np.zeros(2, np.int64)}
        with pytest.raises(EnvFailureError, match=r"server at 127\.0\.0\.1:\d+ (broke off|ended)"):
            env.step(still)
        env.close()
        second = Server(port=server.port)
        again = raw(name)
        again.reset()
        again.step(still)
        again.close()
        second.stop()


def test_a_vector_of_envs_goes_on_with_the_successor_of_a_server() -> None:
    from worldloom.envs.config import EnvLimits

    with serving() as (server, name):
        vector = make_env(EnvConfig(env=name), num_envs=2, seed=0, limits=EnvLimits(backoff_s=0.01))
        vector.reset()
        action = {
            "move": np.zeros((2, 2), np.float32),
            "mode": np.zeros(2, int),
            "grip": np.zeros((2, 2), int),
        }
        vector.step(action)
        server.stop()
        second = Server(port=server.port)
        for _ in range(6):
            vector.step(action)
        assert len(second.worlds) == 2
        assert all(world.given for world in second.worlds.values())
        vector.close()
        second.stop()


def test_the_package_is_named_where_it_is_missing(monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith("dm_env_rpc")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dm_env_rpc", None)
    with pytest.raises(MissingDependencyError, match=r"dm-env-rpc: pip install .*\[rpc\]"):
        env_spec(EnvConfig(env="rpc:127.0.0.1:1"))


def test_pictures_are_for_others() -> None:
    with pytest.raises(ConfigurationError, match=r"env\.pixels is for"):
        EnvConfig(env="rpc:127.0.0.1:1", pixels=True)


def test_the_server_of_these_tests_complies_with_the_protocol() -> None:
    """Each test of the suite, with a connection of its own."""
    import unittest

    from dm_env_rpc.v1 import compliance

    server = Server()

    class Own:
        """What every part of the suite asks for."""

        def setUp(self):
            super().setUp()
            self._channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
            self._connection = connection.Connection(self._channel)
            self.addCleanup(self._channel.close)
            self.made = self._connection.send(pb.CreateWorldRequest()).world_name

        @property
        def connection(self):
            return self._connection

        @property
        def world_name(self):
            return self.made

    class Joining(Own):
        """In its world."""

        def join_world(self):
            return self._connection.send(pb.JoinWorldRequest(world_name=self.made)).specs

    class Step(Joining, compliance.Step):
        def setUp(self):
            super().setUp()
            self.joined = self.join_world()

        @property
        def specs(self):
            return self.joined

    class Reset(Joining, compliance.Reset):
        pass

    class ResetWorld(Own, compliance.ResetWorld):
        pass

    class JoinLeaveWorld(Own, compliance.JoinLeaveWorld):
        pass

    class CreateDestroyWorld(Own, compliance.CreateDestroyWorld):
        required_world_settings = MappingProxyType({})
        invalid_world_settings = MappingProxyType({"colour": tensor_utils.pack_tensor(1)})
        has_multiple_world_support = True

    suite = unittest.TestSuite()
    for case in (Step, Reset, ResetWorld, JoinLeaveWorld, CreateDestroyWorld):
        suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    result = unittest.TestResult()
    suite.run(result)
    server.stop()
    assert result.testsRun > 30
    problems = [*result.failures, *result.errors]
    assert not problems, problems[0][1]
