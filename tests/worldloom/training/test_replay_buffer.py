from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from worldloom.core.exceptions import (
    BufferError,
    CheckpointError,
    ConfigurationError,
    ShapeMismatchError,
)
from worldloom.training import ReplayBuffer, TrajectoryDataset
from worldloom.training.data import create_random_buffer


def counting(
    capacity: int = 1000,
    episodes: int = 6,
    steps: int = 10,
    *,
    final: bool = True,
    done: bool = True,
) -> ReplayBuffer:
    """Observation (episode, step); the reward of a step is 100 * episode + step."""
    buffer = ReplayBuffer(capacity, (2,), 3, seed=0)
    for e in range(episodes):
        t = np.arange(steps + 1)
        obs = np.stack([np.full(steps + 1, e), t], 1)
        ends = (np.arange(steps) == steps - 1) & done
        buffer.add_episode(
            obs if final else obs[:-1], np.eye(3)[t[:-1] % 3], 100 * e + t[:-1], ends
        )
    return buffer


def test_windows_keep_each_reward_with_its_own_step() -> None:
    batch = counting().sample(300, 4)
    obs = batch["obs"]
    assert torch.equal(batch["rewards"], 100 * obs[..., 0] + obs[..., 1])
    assert torch.equal(batch["actions"].argmax(-1), (obs[..., 1] % 3).long())
    assert (obs[:, 1:, 1] - obs[:, :-1, 1] == 1).all()
    assert torch.equal(batch["continues"] == 0, obs[..., 1] == 9)
    assert batch["last_obs_mask"].all()
    assert torch.equal(batch["last_obs"][:, 1], obs[:, -1, 1] + 1)


def test_a_truncated_episode_goes_on_and_an_unrecorded_end_is_marked() -> None:
    batch = counting(final=False, done=False).sample(300, 4)
    assert (batch["continues"] == 1).all()
    assert torch.equal(batch["last_obs_mask"], batch["obs"][:, -1, 1] != 9)


def test_every_window_is_drawn_equally_often() -> None:
    buffer = ReplayBuffer(100, (1,), 1, seed=0)
    buffer.add_episode(np.zeros((3, 1)), np.zeros(3), np.arange(3))
    buffer.add_episode(np.zeros((6, 1)), np.zeros(6), np.arange(6) + 10)
    first = buffer.sample(7000, 3)["rewards"][:, 0]
    values, counts = first.unique(return_counts=True)
    assert values.tolist() == [0, 10, 11, 12, 13]
    assert (counts - 1400).abs().max() < 150


def test_the_oldest_transitions_go_first() -> None:
    buffer = counting(capacity=35)
    assert (len(buffer), buffer.num_transitions, buffer.num_episodes) == (35, 35, 4)
    assert set(buffer.sample(2000, 1)["rewards"].flatten().tolist()) == {
        *range(205, 210),
        *range(300, 310),
        *range(400, 410),
        *range(500, 510),
    }


def test_held_out_episodes_are_apart() -> None:
    buffer = counting(episodes=10)
    held = set(buffer.sample(500, 3, held_out=(5, True))["obs"][:, 0, 0].tolist())
    rest = set(buffer.sample(500, 3, held_out=(5, False))["obs"][:, 0, 0].tolist())
    assert held == {4.0, 9.0}
    assert rest == set(map(float, range(10))) - held


@pytest.mark.parametrize("final", [True, False])
def test_a_saved_buffer_comes_back_with_every_fact(final: bool, tmp_path: Path) -> None:
    buffer = counting(capacity=35, final=final, done=final)
    buffer.save(tmp_path / "data")
    again = ReplayBuffer.load(tmp_path / "data.npz")
    assert (again.capacity, again.obs_shape, again.action_dim, len(again)) == (35, (2,), 3, 35)
    for one, other in zip(buffer.episodes(), again.episodes(), strict=True):
        for key in one:
            assert np.array_equal(one[key], other[key]), key
    with np.load(tmp_path / "data.npz") as file:
        assert {"obs", "actions", "rewards", "dones", "obs_shape", "action_dim", "capacity"} <= set(
            file.files
        )


def test_uint8_images_stay_bytes_through_files_and_samples(tmp_path: Path) -> None:
    buffer = create_random_buffer(60, (3, 8, 8), 2, num_episodes=3, episode_length=10, seed=0)
    assert buffer.sample(2, 4)["obs"].dtype == torch.uint8
    buffer.save(tmp_path / "images.npz")
    assert ReplayBuffer.load(tmp_path / "images.npz").obs_dtype == np.uint8


def test_files_of_others_are_split_at_their_dones(tmp_path: Path) -> None:
    path = tmp_path / "old.npz"
    arrays = {"obs": np.zeros((30, 4), "f4"), "actions": np.zeros((30, 2)), "rewards": np.zeros(30)}
    np.savez_compressed(
        path, **arrays, dones=np.arange(30) % 10 == 9, obs_shape=(4,), action_dim=2, capacity=99
    )
    buffer = ReplayBuffer.load(path)
    assert (buffer.num_episodes, buffer.capacity) == (3, 99)
    np.savez(path, **arrays)
    assert ReplayBuffer.load(path).num_episodes == 1
    codes = np.eye(3, dtype="f4")[np.arange(30) % 3]
    np.savez(path, **arrays | {"actions": np.arange(30) % 3}, actions_onehot=codes)
    assert np.array_equal(next(iter(ReplayBuffer.load(path).episodes()))["actions"], codes)


@pytest.mark.parametrize("damage", ["cut", "foreign", "lengths", "pickle", "missing"])
def test_damaged_files_are_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    counting().save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    elif damage == "foreign":
        np.savez(path, weights=np.zeros(3))
    elif damage == "lengths":
        np.savez(path, obs=np.zeros((3, 2)), actions=np.zeros((3, 1)), rewards=np.zeros(4))
    elif damage == "pickle":
        np.savez(path, obs=np.array([{}], object), actions=np.zeros((1, 1)), rewards=np.zeros(1))
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"data\.npz"):
        ReplayBuffer.load(path)


def test_a_buffer_too_large_for_memory_costs_only_what_is_in_it() -> None:
    buffer = ReplayBuffer(1_000_000, (3, 64, 64), 2, seed=0)  # 49 GB if it were reserved
    steps = np.arange(9)
    buffer.add_episode(
        np.broadcast_to(steps[:, None, None, None], (9, 3, 64, 64)), np.zeros((9, 2)), steps
    )
    batch = buffer.sample(8, 4)
    assert torch.equal(batch["obs"][..., 0, 0, 0], batch["rewards"])


def test_integer_actions_become_codes_and_lists_of_episodes_a_buffer() -> None:
    buffer = ReplayBuffer(10, (1,), 3)
    buffer.add_episode(np.zeros((4, 1)), [[0], [2], [1], [0]], np.zeros(4))
    assert next(iter(buffer.episodes()))["actions"].argmax(-1).tolist() == [0, 2, 1, 0]
    episode = {"obs": np.zeros((5, 2)), "actions": np.zeros((5, 1)), "rewards": np.zeros(5)}
    assert len(ReplayBuffer.from_trajectories([episode, episode])) == 10
    dataset = TrajectoryDataset(ReplayBuffer.from_trajectories([episode]), 3, samples_per_epoch=7)
    assert len(dataset) == 7
    assert dataset[0]["obs"].shape == (3, 2)
    with pytest.raises(IndexError):
        dataset[7]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"obs": np.zeros((4, 3))}, ShapeMismatchError, r"obs of an episode.*\(4, 2\).*\(4, 3\)"),
        ({"actions": np.zeros((4, 2))}, ShapeMismatchError, "actions of an episode"),
        ({"actions": np.array([0, 1, 2, 3])}, ShapeMismatchError, "integer actions"),
        ({"dones": np.zeros(3)}, ShapeMismatchError, "dones"),
        ({"final_obs": np.zeros(3)}, ShapeMismatchError, "final_obs"),
        ({"rewards": np.array([0, np.nan, 0, 0])}, BufferError, "rewards: entry 1 is NaN"),
        ({"obs": np.full((4, 2), np.inf)}, BufferError, "obs: entry 0"),
    ],
)
def test_wrong_episodes_are_refused(
    change: dict[str, np.ndarray], error: type[Exception], words: str
) -> None:
    buffer = ReplayBuffer(10, (2,), 3)
    episode = {
        "obs": np.zeros((4, 2)),
        "actions": np.zeros((4, 3)),
        "rewards": np.zeros(4),
    } | change
    with pytest.raises(error, match=words) as caught:
        buffer.add_episode(**episode)
    assert isinstance(caught.value, ValueError)
    assert len(buffer) == 0


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="capacity of a replay buffer must be an integer >= 1, got 0"
    ):
        ReplayBuffer(0, (2,), 1)
    with pytest.raises(BufferError, match="exceeds the capacity of 5"):
        counting(capacity=5)
    with pytest.raises(BufferError, match=r"seq_len is 11, the longest .* has 10"):
        counting().sample(1, 11)
    with pytest.raises(BufferError, match="batch_size"):
        counting().sample(0, 1)
    with pytest.raises(BufferError, match="at least one"):
        ReplayBuffer.from_trajectories([])
    with pytest.raises(ShapeMismatchError, match="uint8"):
        ReplayBuffer(9, (1,), 1, np.uint8).add_episode(np.array([[0.5]]), [0.0], [0.0])
    buffer = counting(episodes=0)
    buffer.add_episode(np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0))
    assert buffer.num_episodes == 0


def numbered() -> ReplayBuffer:
    """Every observation is another number."""
    buffer = ReplayBuffer(4000, (1,), 1, seed=0)
    for e in range(20):
        buffer.add_episode(
            np.arange(e * 200, e * 200 + 151)[:, None], np.zeros((150, 1)), np.zeros(150)
        )
    return buffer


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_and_epochs_draw_other_windows_and_a_seed_repeats_them(persistent: bool) -> None:
    def epochs(seed: int, root: int = 0) -> list[list[int]]:
        torch.manual_seed(seed)
        dataset = TrajectoryDataset(numbered(), 5, 8, seed=root)
        loader = DataLoader(dataset, batch_size=1, num_workers=2, persistent_workers=persistent)
        return [[int(batch["obs"][0, 0, 0]) for batch in loader] for _ in range(2)]

    first = epochs(1)
    # 16 draws of about 3000 windows
    assert len({start for epoch in first for start in epoch}) >= 14
    assert epochs(1) == first
    assert epochs(2) != first
    assert epochs(1, root=5) != first


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        (
            np.int8,
            0.7,
            r"obs for a buffer of int8: expected integers in -128..127, got 0.7 in "
            r"entry 2; create the buffer",
        ),
        (np.int8, 200, r"expected integers in -128\.\.127, got 200"),
        (bool, 0.7, "expected 0 and 1"),
        (bool, 2, "expected 0 and 1"),
        (np.uint8, -1, r"expected integers in 0\.\.255, got -1"),
        (np.float16, 1e6, "expected numbers up to 6.55e"),
        (np.float32, 1e300, "expected numbers up to 3.4e"),
        (np.int32, float("nan"), "entry 2 is NaN or infinite"),
        (np.float32, float("inf"), "entry 2 is NaN or infinite"),
    ],
)
def test_numbers_that_a_buffer_cannot_hold_are_refused_and_nothing_is_stored(
    dtype: type, value: float, words: str
) -> None:
    buffer = ReplayBuffer(100, (2,), 1, dtype)
    obs = np.zeros((5, 2), np.asarray(value).dtype)
    obs[2, 1] = value
    with pytest.raises((ShapeMismatchError, BufferError), match=words):
        buffer.add_episode(obs, np.zeros((5, 1)), np.zeros(5))
    assert len(buffer) == 0
    buffer.add_episode(np.ones((5, 2)), np.zeros((5, 1)), np.zeros(5))
    assert buffer.sample(1, 2)["obs"].eq(1).all()


def test_what_cannot_be_stored_of_actions_rewards_and_ends_is_refused_before_anything_is() -> None:
    buffer = ReplayBuffer(100, (1,), 1)
    good = {"obs": np.zeros((4, 1)), "actions": np.zeros((4, 1)), "rewards": np.zeros(4)}
    wrong = {
        "actions": (np.full((4, 1), 1e300), "actions for a buffer of float32"),
        "rewards": (np.array([0, 0, np.nan, 0]), "rewards: entry 2 is NaN or infinite"),
        "dones": (np.array([0, 0.5, 0, 1]), "dones: entry 1 is .*0.5"),
        "truncated": (np.array(["no"] * 4), "truncated: entry 0 is .*no"),
    }
    for name, (values, words) in wrong.items():
        with pytest.raises((ShapeMismatchError, BufferError), match=words):
            buffer.add_episode(**(good | {name: values}))
    small = ReplayBuffer(5, (1,), 1)
    ends = np.array([1, 0, 0, 0, 0, 0, 0, 1])
    with pytest.raises(BufferError, match="an episode of 7 transitions exceeds the capacity of 5"):
        small.add_episode(np.zeros((8, 1)), np.zeros((8, 1)), np.zeros(8), ends)
    assert len(buffer) == len(small) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"capacity": 1.5}, "capacity of a replay buffer must be an integer >= 1, got 1.5"),
        ({"capacity": True}, "capacity of a replay buffer must be an integer >= 1, got True"),
        (
            {"capacity": float("inf")},
            "capacity of a replay buffer must be an integer >= 1, got inf",
        ),
        ({"action_dim": "2"}, "action_dim of a replay buffer must be an integer >= 1, got '2'"),
        ({"obs_shape": ()}, "obs_shape must have at least one axis"),
        (
            {"obs_shape": (3, 0)},
            "each axis of obs_shape of a replay buffer must be an integer >= 1, got 0",
        ),
        ({"obs_dtype": "U3"}, "obs_dtype: expected a dtype of numbers"),
        ({"obs_dtype": "nothing"}, "obs_dtype: expected a dtype of numbers"),
        ({"seed": -1}, "seed must be None or an integer >= 0, got -1"),
    ],
)
def test_sizes_that_are_none_are_named(arguments: dict, words: str) -> None:
    with pytest.raises((ConfigurationError, ShapeMismatchError), match=words):
        ReplayBuffer(**({"capacity": 10, "obs_shape": (2,), "action_dim": 1} | arguments))
    assert ReplayBuffer(1e3, np.array([2]), np.int64(3)).capacity == 1000
