"""Trajectories in memory are read as a file with the same arrays is."""

import logging
from pathlib import Path

import numpy as np
import pytest

from worldloom.core.exceptions import BufferError, CheckpointError, ConfigurationError
from worldloom.training import ReplayBuffer

STEPS = 12
RNG = np.random.default_rng(0)
WALK = RNG.standard_normal((STEPS + 1, 3)).astype(np.float32)
LEAP = WALK[1:] + (np.arange(STEPS) == 2)[:, None]
ACTIONS = RNG.uniform(-1, 1, (STEPS, 2)).astype(np.float32)
END = np.arange(STEPS) % 6 == 5
CHOICES = np.arange(STEPS) % 3


def arrays(**changes):
    plain = {"obs": WALK[:-1], "actions": ACTIONS, "rewards": np.arange(STEPS), "terminated": END}
    found = {**plain, **changes}
    return {name: values for name, values in found.items() if values is not None}


def by_file(given, tmp_path: Path, **options):
    np.savez(tmp_path / "given.npz", **given)
    return ReplayBuffer.load(tmp_path / "given.npz", **options)


@pytest.mark.parametrize(
    "changes",
    [
        {"next_observations": WALK[1:]},
        {"next_observations": LEAP},
        {"next_observations": LEAP, "terminated": None, "timeouts": END},
        {"next_obs": WALK[1:].astype(np.float64)},
        {"obs": RNG.random((STEPS + 2, 3))},
        {"obs": RNG.random((STEPS + 2, 3)), "next_obs": WALK[1:]},
        {"actions": CHOICES},
        {"actions": CHOICES[:, None]},
        {"actions": CHOICES == 1},
        {"actions": np.stack([ACTIONS, ACTIONS], 1)},
        {"obs": np.arange(STEPS, dtype=np.float32)},
        {"terminated": None, "episode_lengths": np.array([4, 8])},
        {"terminated": None, "episode_index": np.arange(STEPS) // 5},
        {"terminated": np.arange(STEPS) == STEPS - 1, "episode_id": np.arange(STEPS)[:, None] // 5},
        {"rewards": np.arange(STEPS)[:, None], "terminated": END[:, None]},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_memory_and_file_hold_the_same_episodes_and_say_the_same(changes, tmp_path, caplog):
    given = arrays(**changes)
    expected = by_file(given, tmp_path)
    said = [record.getMessage().partition(": ")[2] for record in caplog.records]
    caplog.clear()
    found = ReplayBuffer.from_trajectories([given])
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == said
    pairs = list(zip(found.episodes(), expected.episodes(), strict=True))
    assert len(pairs) >= 2
    for ours, theirs in pairs:
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_numbers_of_episodes_say_where_they_end(tmp_path, caplog):
    buffer = by_file(arrays(terminated=None, episode_index=np.arange(STEPS) // 5), tmp_path)
    assert [len(episode["rewards"]) for episode in buffer.episodes()] == [5, 5, 2]
    assert all(episode["truncated"][-1] for episode in buffer.episodes())
    assert not caplog.records
    with pytest.raises(CheckpointError, match="'episode_index' has 3 entries and there are 12"):
        by_file(arrays(episode_index=np.arange(3)), tmp_path)
    with pytest.raises(CheckpointError, match="another convention"):
        by_file(arrays(terminated=None, continues=~END), tmp_path)


def test_choices_of_all_trajectories_have_codes_of_one_width():
    few = arrays(actions=CHOICES // 2)
    many = arrays(actions=CHOICES + 1)
    buffer = ReplayBuffer.from_trajectories([few, many])
    codes = np.concatenate([episode["actions"] for episode in buffer.episodes()])
    assert codes.shape == (2 * STEPS, 4)
    np.testing.assert_array_equal(codes.argmax(-1), [*(CHOICES // 2), *(CHOICES + 1)])
    np.testing.assert_array_equal(codes.sum(-1), 1)


def test_next_observations_in_another_precision_are_no_cut(tmp_path, caplog):
    exact = RNG.standard_normal((STEPS + 1, 3))
    given = arrays(obs=exact[:-1], next_obs=exact[1:].astype(np.float32))
    for buffer in (by_file(given, tmp_path), ReplayBuffer.from_trajectories([given])):
        assert buffer.num_episodes == 2
    assert not caplog.records


def test_transitions_that_have_no_room_are_counted_and_no_room_is_refused(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    assert len(by_file(arrays(), tmp_path, capacity=6)) == 6
    assert len(ReplayBuffer.from_trajectories([arrays()], capacity=6)) == 6
    assert caplog.text.count("the oldest 6 of 12 transitions have no room; raise capacity") == 2
    with pytest.raises(ConfigurationError, match="capacity"):
        by_file(arrays(), tmp_path, capacity=0)
    with pytest.raises(ConfigurationError, match="capacity"):
        ReplayBuffer.from_trajectories([arrays()], capacity=0)


@pytest.mark.parametrize(
    ("trajectory", "sentence"),
    [
        ([WALK], "trajectory 0: is list; give a dict"),
        (arrays(obs=[[1.0], [1.0, 2.0]]), "'obs' is no array"),
        (arrays(obs=[{"a": 1}] * STEPS), "'obs' is object"),
        (arrays(obs=WALK[:-2]), r"different lengths \{'obs': 11, 'actions': 12, 'rewards': 12\}"),
        (arrays(next_obs=WALK), r"'next_obs' has shape \(13, 3\), expected \(12, 3\)"),
        (arrays(rewards=np.zeros((1, STEPS))), r"'rewards' has shape \(1, 12\)"),
        (arrays(obs=WALK[:0], actions=ACTIONS[:0], rewards=[], terminated=None), "at least one"),
    ],
)
def test_what_is_no_trajectory_is_refused_in_one_sentence(trajectory, sentence):
    with pytest.raises(BufferError, match=sentence):
        ReplayBuffer.from_trajectories([trajectory])


def test_a_file_whose_name_ends_in_capitals_keeps_its_name(tmp_path):
    buffer = ReplayBuffer.from_trajectories([arrays()])
    buffer.save(tmp_path / "data.NPZ")
    assert [path.name for path in tmp_path.iterdir()] == ["data.NPZ"]
    assert len(ReplayBuffer.load(tmp_path / "data.NPZ")) == STEPS
    with pytest.raises(CheckpointError):
        ReplayBuffer.load(tmp_path / "other.NPZ")


def test_names_of_files_are_paths_like_all_others_and_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    buffer = ReplayBuffer.from_trajectories([arrays()])
    buffer.save("~/data")
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]
    assert len(ReplayBuffer.load("~/data")) == len(ReplayBuffer.load("~/data.npz")) == STEPS
    (tmp_path / "folder.npz").mkdir()
    for wrong in ("~/folder", "", None):
        with pytest.raises(ConfigurationError, match=r"is a folder; name a file|must be a text"):
            buffer.save(wrong)
    with pytest.raises(CheckpointError, match=r"folder\.npz: is not a readable"):
        ReplayBuffer.load("~/folder.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "folder.npz"]
