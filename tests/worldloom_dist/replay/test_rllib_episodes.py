"""Episodes go to RLlib and come from it, by its own code on the other side."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom_dist.replay.formats.rllib import pack, read_rllib, unpack, write_rllib
from worldloom_dist.replay.formats.rllib_spaces import space_from_rllib, space_to_rllib

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed: pip install ray")
msgpack_numpy = pytest.importorskip(
    "msgpack_numpy", reason="msgpack-numpy is not installed: pip install msgpack-numpy"
)
pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
rllib_episode = pytest.importorskip("ray.rllib.env.single_agent_episode")


def recorded(name: str, steps: int, cut: int | None = None, *, scaled: bool = False) -> list[Any]:
    """An episode as RLlib's env runner makes it, in pieces if it is cut."""
    env = gymnasium.make(name)
    env.action_space.seed(1)
    episode = rllib_episode.SingleAgentEpisode(
        observation_space=env.observation_space, action_space=env.action_space
    )
    obs, info = env.reset(seed=1)
    episode.add_env_reset(observation=obs, infos=info)
    pieces = []
    for step in range(steps):
        action = env.action_space.sample()
        obs, reward, terminated, truncated, info = env.step(action)
        episode.add_env_step(
            observation=obs,
            action=action / 2 if scaled else action,
            reward=float(reward),
            infos=info,
            terminated=terminated,
            truncated=truncated,
            extra_model_outputs={"actions_for_env": action} if scaled else None,
        )
        if cut is not None and step == cut:
            pieces.append(episode)
            episode = episode.cut()
    env.close()
    return [*pieces, episode]


def written(folder: Path, episodes: list[Any]) -> Path:
    """As RLlib's recorder writes them."""
    from pyarrow import parquet

    items = [msgpack.packb(e.get_state(), default=msgpack_numpy.encode) for e in episodes]
    (folder / "env" / "run-000001-1").mkdir(parents=True)
    table = pyarrow.table({"item": pyarrow.array(items, pyarrow.binary())})
    parquet.write_table(table, folder / "env" / "run-000001-1" / "0_000000.parquet")
    return folder


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("cut", [None, 3])
def test_what_rllib_recorded_is_read(tmp_path: Path, name: str, cut: int | None) -> None:
    opened = read_rllib(written(tmp_path, recorded(name, 8, cut)))
    (rows,) = opened.episodes
    whole = recorded(name, 8)[0]
    assert np.array_equal(rows["obs"], np.stack(whole.get_observations()).astype("float32"))
    assert np.allclose(rows["reward"][1:], whole.get_rewards())
    actions = np.stack(whole.get_actions())
    if name == "Pendulum-v1":
        assert np.allclose(rows["action"][:-1], actions / 2.0), "scaled by the bounds of +-2"
    else:
        assert np.array_equal(rows["action"][:-1].reshape(-1), actions.reshape(-1))
    assert rows["truncated"][-1]
    assert len(opened.notes) == 1
    assert "no end" in opened.notes[0]


def test_actions_are_those_that_the_env_got(tmp_path: Path) -> None:
    opened = read_rllib(written(tmp_path, recorded("Pendulum-v1", 5, scaled=True)))
    (rows,) = opened.episodes
    executed = recorded("Pendulum-v1", 5)[0].get_actions()
    assert np.allclose(rows["action"][:-1], np.stack(executed) / 2.0)


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1"])
def test_rllib_reads_what_is_written(tmp_path: Path, name: str) -> None:
    from pyarrow import parquet

    opened = read_rllib(written(tmp_path / "in", recorded(name, 6)))
    (rows,) = list(opened.episodes)
    write_rllib(tmp_path / "out", opened.env, [rows, rows])
    (file,) = (tmp_path / "out").glob("*.parquet")
    items = parquet.read_table(file)["item"].to_pylist()
    assert len(items) == 2
    states = [msgpack.unpackb(item, object_hook=msgpack_numpy.decode) for item in items]
    episode = rllib_episode.SingleAgentEpisode.from_state(states[0])
    assert len(episode) == 6
    assert episode.is_truncated
    assert np.array_equal(np.stack(episode.get_observations()), rows["obs"])
    assert np.allclose(np.stack(episode.get_rewards()), rows["reward"][1:])
    assert all(episode.action_space.contains(action) for action in episode.get_actions())
    (again, _) = read_rllib(tmp_path / "out").episodes
    for key, value in rows.items():
        assert np.array_equal(again[key], value), key


def test_a_piece_that_is_missing_is_named(tmp_path: Path) -> None:
    pieces = recorded("CartPole-v1", 8, 3)
    opened = read_rllib(written(tmp_path, pieces[1:]))
    with pytest.raises(CheckpointError, match="steps 0 to 3 are missing"):
        list(opened.episodes)


def test_no_object_is_unpickled(tmp_path: Path) -> None:
    array = np.empty(1, object)
    array[0] = {1}
    assert unpack(msgpack.packb({"a": array}, default=msgpack_numpy.encode)) == {"a": None}
    (episode,) = recorded("CartPole-v1", 2)
    episode.infos.data[1]["odd"] = array
    (rows,) = read_rllib(written(tmp_path / "infos", [episode])).episodes
    assert len(rows["reward"]) == 3
    episode.observations.data[1] = array
    with pytest.raises(CheckpointError, match="Python objects"):
        list(read_rllib(written(tmp_path / "observations", [episode])).episodes)


def test_spaces_are_read_as_rllib_describes_them() -> None:
    from ray.rllib.utils.serialization import gym_space_from_dict, gym_space_to_dict

    spaces = gymnasium.spaces
    for space in (
        spaces.Box(-1, np.array([2, np.inf], "float32")),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 5]),
        spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(0, 255, (2, 2, 3), np.uint8)}),
    ):
        assert space_from_rllib(gym_space_to_dict(space)) == space
        assert gym_space_from_dict(space_to_rllib(space)) == space
    for space in (spaces.MultiBinary(4), spaces.Tuple([spaces.Discrete(2)])):
        assert space_from_rllib(gym_space_to_dict(space)) == space
    with pytest.raises(ValueError, match="kind 'text'"):
        space_from_rllib(gym_space_to_dict(spaces.Text(3)))


@pytest.mark.parametrize("item", [b"", b"junk", pack({"a": 1}), pack({"id_": "x"})])
def test_what_is_no_episode_is_one_sentence(tmp_path: Path, item: bytes) -> None:
    from pyarrow import parquet

    table = pyarrow.table({"item": pyarrow.array([item], pyarrow.binary())})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(CheckpointError, match=r"a\.parquet"):
        list(read_rllib(tmp_path).episodes)


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    from pyarrow import parquet

    with pytest.raises(CheckpointError, match="no Parquet file"):
        read_rllib(tmp_path / "nothing")
    parquet.write_table(pyarrow.table({"obs": [1.0]}), tmp_path / "a.parquet")
    with pytest.raises(CheckpointError, match="output_write_episodes=True"):
        read_rllib(tmp_path)
    opened = read_rllib(written(tmp_path / "in", recorded("CartPole-v1", 3)))
    with pytest.raises(ConfigurationError, match="is there already"):
        write_rllib(tmp_path, opened.env, opened.episodes)
