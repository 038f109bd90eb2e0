"""Rows go out to every kind of file and come back as they were; what a run cannot use is refused in
one sentence.
"""

import shutil
import warnings

import numpy as np
import pytest

from tests.worldloom.dying import DeathError
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import check_sequence
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.spaces import ActionMapper
from worldloom.training import ReplayBuffer
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.formats import rllib
from worldloom_dist.replay.formats.episode_files import open_episodes, write_episode_file
from worldloom_dist.replay.formats.episode_rows import fit_rows
from worldloom_dist.replay.imports import check_file, load_share
from worldloom_dist.replay.shard import ReplayShard

VECTOR = EnvSpec(name="gym:X-v0", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((2,))})
IMAGE = EnvSpec(
    name="x",
    obs={"obs": ArraySpec((32, 32, 1), "uint8")},
    action={"action": ArraySpec((), "int32", (5,))},
)
DICT = EnvSpec(
    name="x",
    obs={"camera": ArraySpec((32, 33, 3), "uint8"), "pose": ArraySpec((4,))},
    action={"arm": ArraySpec((2,)), "grip": ArraySpec((), "int32", (3,))},
)


def random_episode(env, steps, seed, *, terminated):
    rng = np.random.default_rng(seed)
    rows = {}
    for name, spec in env.columns().items():
        if spec.is_discrete:
            rows[name] = rng.integers(0, spec.num_classes[0], (steps + 1, *spec.shape)).astype(
                spec.dtype
            )
        elif spec.dtype == "uint8":
            rows[name] = rng.integers(0, 256, (steps + 1, *spec.shape), np.uint8)
        elif spec.dtype == "bool":
            rows[name] = np.zeros(steps + 1, bool)
        else:
            rows[name] = rng.uniform(-1, 1, (steps + 1, *spec.shape)).astype(np.float32)
        if name.startswith("action"):
            rows[name][-1] = 0
    rows["is_first"][0] = True
    rows["reward"][0] = 0
    rows["terminated" if terminated else "truncated"][-1] = True
    check_sequence(rows, env.columns())
    return rows


def episodes_of(env):
    return [
        random_episode(env, steps, seed, terminated=seed % 2 == 0)
        for seed, steps in enumerate((7, 1, 30))
    ]


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
            assert a[name].dtype == b[name].dtype


@pytest.mark.parametrize(
    ("env", "name"),
    [
        (VECTOR, "f.npz"),
        (IMAGE, "f.npz"),
        (VECTOR, "f.parquet"),
        (IMAGE, "f.parquet"),
        (DICT, "f.parquet"),
    ],
)
def test_episodes_come_back_as_they_were(tmp_path, env, name):
    episodes = episodes_of(env)
    write_episode_file(str(tmp_path / name), env, episodes)
    opened = open_episodes(str(tmp_path / name))
    assert opened.env == env
    assert_same(list(opened.episodes), episodes)
    assert opened.repeated == 0
    assert opened.notes == []
    assert [path.name for path in tmp_path.iterdir()] == [name], "no temporary file is left"


def test_a_minari_dataset_comes_back_as_it_was(tmp_path, monkeypatch):
    pytest.importorskip("minari", reason="the extra 'minari' is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for env, name in ((VECTOR, "minari:vector-v0"), (DICT, "minari:dict-v0")):
        episodes = episodes_of(env)
        write_episode_file(name, env, episodes)
        opened = open_episodes(name)
        assert (opened.env.obs, opened.env.action) == (env.obs, env.action)
        assert_same([fit_rows(rows, env.columns(), name) for rows in opened.episodes], episodes)
    with pytest.raises(ConfigurationError, match="choose another name"):
        write_episode_file("minari:vector-v0", VECTOR, episodes_of(VECTOR))
    with pytest.raises(CheckpointError, match="minari list local"):
        open_episodes("minari:nothing-v0")


SEVERAL = EnvSpec(
    name="x", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((2,), "int32", (3, 4))}
)


def test_a_minari_dataset_takes_several_choices_and_appears_whole_or_not_at_all(
    tmp_path, monkeypatch
):
    minari = pytest.importorskip("minari", reason="the extra 'minari' is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    episodes = episodes_of(SEVERAL)
    for name in ("minari:several-v0", "minari:team/several-v0"):
        write_episode_file(name, SEVERAL, episodes)
        opened = open_episodes(name)
        assert opened.env.action == SEVERAL.action
        assert_same([fit_rows(rows, SEVERAL.columns(), name) for rows in opened.episodes], episodes)
    assert sorted(minari.list_local_datasets()) == ["several-v0", "team/several-v0"]
    before = sorted(tmp_path.rglob("*"))

    def breaks(*args, **kwargs):
        real(*args, **kwargs)
        raise TypeError("arrow cannot convert this")

    real = minari.create_dataset_from_buffers
    monkeypatch.setattr(minari, "create_dataset_from_buffers", breaks)
    with pytest.raises(ConfigurationError, match="arrow cannot convert this"):
        write_episode_file("minari:other-v0", SEVERAL, episodes)
    for name in ("minari:../outside-v0", "minari:several-v0"):
        with pytest.raises(ConfigurationError, match="choose another name"):
            write_episode_file(name, SEVERAL, episodes)
    assert sorted(tmp_path.rglob("*")) == before


def test_actions_of_a_minari_dataset_are_never_clipped(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="the extra 'minari' is not installed")
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    actions = np.array([[0.5], [1.5], [-2.0]])
    buffer = EpisodeBuffer(
        id=0,
        observations=np.zeros((4, 3), np.float32),
        actions=actions,
        rewards=[0.0] * 3,
        terminations=[False] * 3,
        truncations=[False] * 3,
        infos={"speed": np.zeros((4, 2))},
    )
    spaces = {
        "observation_space": Box(-1, 1, (3,)),
        "action_space": Box(-np.inf, np.inf, (1,), np.float64),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # advice on authors and links
        minari.create_dataset_from_buffers(
            "wide-v0", buffer=[buffer], data_format="arrow", **spaces
        )
    opened = open_episodes("minari:wide-v0")
    (rows,) = opened.episodes
    np.testing.assert_allclose(rows["action"][:-1], actions)
    assert opened.notes == [
        "infos that are not used: speed",
        "1 episodes have no end in the file; they count as truncated",
    ]
    with pytest.raises(
        CheckpointError, match=r"reaches 2, and continuous actions lie in \[-1, 1\]; rescale them"
    ):
        fit_rows(rows, opened.env.columns(), "minari:wide-v0")


def test_native_actions_become_unit_actions_and_back():
    from gymnasium import spaces

    mapper = ActionMapper(
        spaces.Dict({"torque": spaces.Box(-2.0, 6.0, (2,)), "gear": spaces.Discrete(3, start=1)})
    )
    unit = {
        "torque": np.array([[-1.0, 0.5], [1.0, 0.0]], np.float32),
        "gear": np.array([0, 2], np.int32),
    }
    native = mapper(unit, (2,))
    assert native["torque"].tolist() == [[-2.0, 4.0], [6.0, 2.0]]
    back = mapper.inverse(native, (2,))
    for key, value in unit.items():
        np.testing.assert_allclose(back[key], value)
        assert back[key].dtype == value.dtype


def test_the_library_reads_what_a_run_exports_and_the_other_way_round(tmp_path):
    episodes = episodes_of(VECTOR)
    write_episode_file(str(tmp_path / "run.npz"), VECTOR, episodes)
    buffer = ReplayBuffer.load(tmp_path / "run.npz", seed=0)
    assert (len(buffer), buffer.num_episodes) == (38, 3)
    buffer.save(tmp_path / "library.npz")
    opened = open_episodes(str(tmp_path / "library.npz"))
    assert_same([fit_rows(rows, VECTOR.columns(), "x") for rows in opened.episodes], episodes)


def write_plain(path, ends, *, steps=60, every=5, **more):
    """A file of others: 4 numbers in, 2 out, a reward at each end only."""
    rng = np.random.default_rng(0)
    last = np.arange(steps) % every == every - 1
    arrays = {
        "obs": rng.standard_normal((steps, 4)),
        "actions": rng.uniform(-1, 1, (steps, 2)),
        "rewards": last * 3.0,
    }
    np.savez(path, **arrays | {name: last & keep for name, keep in ends.items()} | more)
    return arrays


NO = np.bool_(False)
YES = np.bool_(True)


@pytest.mark.parametrize(
    "ends",
    [
        {"dones": YES},
        {"done": YES},
        {"terminated": YES, "truncated": NO},
        {"terminals": YES, "timeouts": NO},
        {"terminations": YES, "truncations": NO},
        {"dones": YES, "truncated": NO},
    ],
)
def test_every_reward_and_end_of_a_plain_file_arrives_by_both_doors(tmp_path, ends):
    arrays = write_plain(tmp_path / "f.npz", ends)
    opened = open_episodes(str(tmp_path / "f.npz"))
    rows = list(opened.episodes)
    episodes = list(ReplayBuffer.load(tmp_path / "f.npz").episodes())
    assert len(rows) == len(episodes) == opened.repeated == 12
    for number, (row, episode) in enumerate(zip(rows, episodes, strict=True)):
        part = slice(5 * number, 5 * number + 5)
        np.testing.assert_array_equal(row["reward"][1:], arrays["rewards"][part])
        np.testing.assert_array_equal(episode["rewards"], arrays["rewards"][part])
        np.testing.assert_array_equal(row["obs"][:-1], arrays["obs"][part].astype(np.float32))
        np.testing.assert_array_equal(row["obs"][-1], row["obs"][-2])
        assert row["terminated"].tolist() == [False] * 5 + [True]
        assert not row["truncated"].any()
        assert episode["dones"].tolist() == [False] * 4 + [True]
        assert not episode["truncated"].any()


def test_the_outcome_of_a_last_action_is_taken_from_wherever_the_file_has_it(tmp_path):
    steps = np.arange(60)
    truth = np.arange(240.0).reshape(60, 4) + 0.5
    arrays = write_plain(
        tmp_path / "next.npz", {"terminals": NO, "timeouts": YES}, next_observations=truth
    )
    obs = arrays["obs"].copy()
    truth[:-1][steps[:-1] % 5 != 4] = obs[1:][steps[:-1] % 5 != 4]
    write_plain(tmp_path / "next.npz", {"terminals": NO, "timeouts": YES}, next_observations=truth)
    longer = np.insert(obs, [5 * (n + 1) for n in range(12)], truth[4::5], axis=0)
    write_plain(tmp_path / "longer.npz", {"timeouts": YES}, obs=longer)
    for name in ("next.npz", "longer.npz"):
        opened = open_episodes(str(tmp_path / name))
        rows = list(opened.episodes)
        assert opened.repeated == 0
        assert opened.notes == []
        np.testing.assert_array_equal(
            [row["obs"][-1] for row in rows], truth[4::5].astype(np.float32)
        )
        assert all(row["truncated"][-1] and not row["terminated"].any() for row in rows)


def test_what_a_file_holds_beside_its_episodes_and_what_had_to_be_concluded_is_said(
    tmp_path, caplog
):
    write_plain(tmp_path / "f.npz", {}, qpos=np.zeros(3))
    opened = open_episodes(str(tmp_path / "f.npz"))
    assert len(list(opened.episodes)) == 1
    assert opened.notes[0] == "arrays that are not used: qpos"
    assert (
        "nothing says where an episode ends, so all 60 transitions are one episode"
        in opened.notes[1]
    )
    ReplayBuffer.load(tmp_path / "f.npz")
    assert "not used: qpos" in caplog.text
    assert "nothing says where an episode ends" in caplog.text


def test_integer_actions_are_choices_by_both_doors_and_codes_too(tmp_path):
    steps = np.arange(60)
    choices = np.arange(60) % 3
    for actions in (choices, choices[:, None], np.eye(3)[choices], np.eye(3, dtype=int)[choices]):
        write_plain(tmp_path / "f.npz", {"dones": YES}, actions=actions)
        opened = open_episodes(str(tmp_path / "f.npz"))
        assert opened.env.action["action"] == ArraySpec((), "int32", (3,))
        got = np.concatenate([rows["action"][:-1] for rows in opened.episodes])
        np.testing.assert_array_equal(got, choices)
        buffer = ReplayBuffer.load(tmp_path / "f.npz")
        assert buffer.action_dim == 3
        got = np.concatenate([episode["actions"] for episode in buffer.episodes()])
        np.testing.assert_array_equal(got, np.eye(3)[choices])
    write_plain(tmp_path / "f.npz", {"dones": YES}, actions=np.stack([choices, steps % 4], axis=1))
    opened = open_episodes(str(tmp_path / "f.npz"))
    assert opened.env.action["action"] == ArraySpec((2,), "int32", (3, 4))
    assert opened.notes == ["actions are 2 choices at once, among (3, 4)"]


def test_one_choice_goes_out_and_comes_back(tmp_path):
    env = EnvSpec(
        name="x", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((), "int32", (1,))}
    )
    episodes = episodes_of(env)
    for name in ("f.npz", "f.parquet"):
        write_episode_file(str(tmp_path / name), env, episodes)
        assert_same(
            [
                fit_rows(rows, env.columns(), name)
                for rows in open_episodes(str(tmp_path / name)).episodes
            ],
            episodes,
        )


def test_images_of_a_file_are_what_a_live_env_would_make_of_them(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 40, 48), np.uint8)
    write_plain(tmp_path / "f.npz", {"dones": YES}, obs=images)
    opened = open_episodes(str(tmp_path / "f.npz"))
    assert opened.env.obs["obs"] == ArraySpec((40, 48, 3), "uint8")
    np.testing.assert_array_equal(next(opened.episodes)["obs"][:-1], np.moveaxis(images[:5], 1, -1))
    write_plain(tmp_path / "f.npz", {"dones": YES}, obs=images / 255)
    assert any("image" in note for note in open_episodes(str(tmp_path / "f.npz")).notes), (
        "not flattened without a word"
    )
    write_plain(tmp_path / "f.npz", {"dones": YES}, obs=np.stack([images] * 4, axis=1))
    assert open_episodes(str(tmp_path / "f.npz")).env.obs["obs"] == ArraySpec((40, 48, 12), "uint8")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            {"observations": np.zeros((60, 4))},
            r"\['obs', 'observations'\], which are names of one thing",
        ),
        ({"is_first": np.zeros(60)}, "another convention of time"),
        ({"dones": np.full(60, 0.5)}, "other values than False and True"),
        ({"dones": np.zeros(59, bool)}, "'dones' has 59 entries and there are 60 rewards"),
        (
            {"dones": np.arange(60) == 3, "terminated": np.arange(60) == 4},
            "'dones' and 'terminated' disagree, first at",
        ),
        ({"episode_lengths": np.array([20, 30])}, "'episode_lengths' covers 50 transitions"),
        ({"episode_ends": np.array([40, 20, 60])}, "'episode_ends' covers 60"),
        ({"rewards": np.full(60, 1e40)}, "reward 0 of an episode is 1e\\+40"),
        ({"rewards": np.full(60, np.nan)}, "reward 0 of an episode is nan"),
        ({"rewards": np.array(["a"] * 60)}, "'rewards' does not hold numbers"),
        ({"actions": np.full(60, -1)}, "count choices from 0, got -1"),
        ({"next_obs": np.zeros((60, 3))}, r"'next_obs' has shape \(60, 3\)"),
    ],
)
def test_contradictions_and_what_is_no_number_are_refused_in_one_sentence(tmp_path, more, sentence):
    write_plain(tmp_path / "f.npz", {}, **more)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        list(open_episodes(str(tmp_path / "f.npz")).episodes)
    assert "\n" not in str(caught.value)
    if "actions" not in more:
        with pytest.raises(CheckpointError):
            ReplayBuffer.load(tmp_path / "f.npz")


def test_next_obs_that_leads_elsewhere_is_a_cut_and_is_said(tmp_path):
    obs = np.zeros((60, 4))
    obs[:, 0] = np.arange(60)
    following = obs.copy()
    following[:, 0] += 1
    following[29, 0] = 999.0
    write_plain(tmp_path / "f.npz", {}, obs=obs, next_obs=following)
    opened = open_episodes(str(tmp_path / "f.npz"))
    rows = list(opened.episodes)
    assert [len(part["is_first"]) for part in rows] == [31, 31]
    assert rows[0]["obs"][-1, 0] == 999.0
    assert any(
        "at 1 transitions 'next_obs' is not the observation that follows" in note
        for note in opened.notes
    )


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("reward", 1e40, "does not fit into the run's float32"),
        ("reward", np.inf, "not finite, first in row 2"),
        ("obs", np.nan, "not finite, first in row 2"),
        ("terminated", 0.5, "does not fit into the run's bool"),
        ("action", 1.5, r"lie in \[-1, 1\]"),
    ],
)
def test_values_that_a_run_cannot_hold_are_refused_with_their_row(column, value, sentence):
    rows = random_episode(VECTOR, 4, 0, terminated=True)
    changed = rows[column].astype(np.float64)
    changed[2] = value
    with pytest.raises(CheckpointError, match=sentence):
        fit_rows(rows | {column: changed}, VECTOR.columns(), "f")


def test_choices_and_images_are_never_rounded_or_wrapped():
    rows = random_episode(IMAGE, 4, 0, terminated=True)
    half = rows["action"] + 0.5
    with pytest.raises(CheckpointError, match="does not fit into the run's int32"):
        fit_rows(rows | {"action": half}, IMAGE.columns(), "f")
    with pytest.raises(CheckpointError, match="does not fit into the run's uint8"):
        fit_rows(rows | {"obs": rows["obs"].astype(np.int64) + 200}, IMAGE.columns(), "f")
    with pytest.raises(CheckpointError, match="an end at the last row, 4, only"):
        fit_rows(rows | {"terminated": np.ones(5, bool)}, IMAGE.columns(), "f")


def test_a_parquet_file_names_columns_that_it_lacks_and_those_that_are_not_used(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Ray brings it")
    file = tmp_path / "f.parquet"
    write_episode_file(str(file), VECTOR, episodes_of(VECTOR))
    table = parquet.read_table(file)
    parquet.write_table(table.append_column("mood", [np.zeros(len(table))]), file)
    assert open_episodes(str(file)).notes == ["columns that are not used: mood"]
    parquet.write_table(table.drop_columns(["reward"]), file)
    with pytest.raises(CheckpointError, match=r"lacks the columns \['reward'\]"):
        open_episodes(str(file))
    rewards = table.column("reward").to_pylist()
    empty = table.set_column(table.column_names.index("reward"), "reward", [[None, *rewards[1:]]])
    parquet.write_table(empty, file)
    with pytest.raises(CheckpointError, match="'reward' has empty entries"):
        list(open_episodes(str(file)).episodes)


def test_files_that_cannot_be_used_are_named_with_the_reason(tmp_path):
    with pytest.raises(ConfigurationError, match="no known kind of file"):
        open_episodes("data.csv")
    for name in ("none.npz", "none.parquet"):
        with pytest.raises(CheckpointError, match=name):
            open_episodes(str(tmp_path / name))
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(CheckpointError, match="not a readable Parquet"):
        open_episodes(str(tmp_path / "bad.parquet"))
    with pytest.raises(ConfigurationError, match=r"ends in \.parquet"):
        write_episode_file(str(tmp_path / "d.npz"), DICT, episodes_of(DICT))


def test_a_damaged_note_of_the_spaces_is_named(tmp_path):
    for name in ("f.npz", "f.parquet"):
        write_episode_file(str(tmp_path / name), VECTOR, episodes_of(VECTOR))
    data = (tmp_path / "f.npz").read_bytes()
    (tmp_path / "f.npz").write_bytes(data.replace(b'"name"', b'"nane"'))
    parquet = pytest.importorskip("pyarrow.parquet", reason="Ray brings it")
    table = parquet.read_table(tmp_path / "f.parquet")
    parquet.write_table(
        table.replace_schema_metadata({"worldloom_env": "{"}), tmp_path / "f.parquet"
    )
    for name in ("f.npz", "f.parquet"):
        with pytest.raises(CheckpointError, match=rf"{name}: .*(spaces.* damaged|env_spec)"):
            open_episodes(str(tmp_path / name))


def test_rows_of_a_parquet_file_that_are_no_episode_are_refused(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Ray brings it")
    file = tmp_path / "f.parquet"
    write_episode_file(str(file), VECTOR, episodes_of(VECTOR))
    table = parquet.read_table(file)
    for column, value in (("is_first", False), ("episode", 0)):
        place = table.column_names.index(column)
        name = table.field(column)
        changed = table.set_column(place, name, [np.full(len(table), value)])
        parquet.write_table(changed, file)
        with pytest.raises(
            CheckpointError, match=r"is_first at row \[0\] only.*give each episode a number"
        ) as caught:
            list(open_episodes(str(file)).episodes)
        assert len(str(caught.value)) < 300


def test_rows_of_another_env_are_refused_with_the_column():
    rows = random_episode(VECTOR, 4, 0, terminated=True)
    with pytest.raises(CheckpointError, match="'obs' has rows of shape"):
        fit_rows(rows, IMAGE.columns(), "f")
    with pytest.raises(CheckpointError, match=r"lie in \[-1, 1\]; rescale"):
        fit_rows(rows | {"action": rows["action"] * 3}, VECTOR.columns(), "f")
    with pytest.raises(CheckpointError, match="not finite"):
        fit_rows(rows | {"obs": rows["obs"] * np.nan}, VECTOR.columns(), "f")
    fitted = fit_rows(rows, VECTOR.columns({"latent": ArraySpec((2,), "uint16")}), "f")
    assert fitted["latent"].shape == (5, 2)


def open_shard(folder, index=0, capacity=1000):
    return ReplayShard(
        index,
        VECTOR.columns(),
        SamplingSpec(batch_size=2, length=2),
        capacity_rows=capacity,
        directory=folder,
    )


def test_a_file_is_stored_once_however_often_it_is_loaded_and_owes_no_training(tmp_path):
    file = str(tmp_path / "f.npz")
    write_episode_file(file, VECTOR, episodes_of(VECTOR))
    for _ in range(2):
        for index in range(2):
            shard = open_shard(tmp_path / str(index), index)
            load_share(shard, file, 2)
            report = load_share(shard, file, 2)
            assert report.known_rows == report.rows
            shard.close()
    counters = [open_shard(tmp_path / str(index), index).row_counters() for index in range(2)]
    assert [b.inserted for b in counters] == [8 + 31, 2]
    assert all(b.agent_steps == 0 and b.duplicate == 0 and b.is_balanced for b in counters)


def test_an_import_that_was_cut_off_goes_on_where_it_was(tmp_path, monkeypatch):
    file = str(tmp_path / "f.npz")
    episodes = [random_episode(VECTOR, 99, seed, terminated=False) for seed in range(3)]
    write_episode_file(file, VECTOR, episodes)
    shard = open_shard(tmp_path / "shard")
    real = shard.append
    calls = []

    def append(chunk):
        calls.append(chunk)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(chunk)

    monkeypatch.setattr(shard, "append", append)
    with pytest.raises(KeyboardInterrupt):
        load_share(shard, file, 1)
    shard.close()
    again = open_shard(tmp_path / "shard")
    assert load_share(again, file, 1).known_rows == 128
    assert again.row_counters().inserted == again.row_counters().stored == 300
    windows = again.sample(SampleRequest(200, (0,)))
    stored = np.concatenate([episode["obs"] for episode in episodes])
    np.testing.assert_array_equal(windows.columns["obs"], stored[windows.row_ids])


def test_files_without_a_transition_are_opened_whatever_their_actions(tmp_path):
    for actions in (np.zeros((0, 2)), np.zeros(0, int), np.zeros((0, 2), int)):
        np.savez(tmp_path / "f.npz", obs=np.zeros((0, 3)), actions=actions, rewards=np.zeros(0))
        assert list(open_episodes(str(tmp_path / "f.npz")).episodes) == []
        with pytest.raises(CheckpointError, match="holds no transition"):
            check_file(str(tmp_path / "f.npz"), VECTOR.columns())


def test_actions_of_several_axes_are_stored_in_a_row_and_that_is_said(tmp_path):
    actions = np.linspace(-1, 1, 24).reshape(6, 2, 2)
    np.savez(tmp_path / "f.npz", obs=np.zeros((6, 3)), actions=actions, rewards=np.zeros(6))
    opened = open_episodes(str(tmp_path / "f.npz"))
    rows = next(opened.episodes)
    np.testing.assert_allclose(rows["action"][:-1], actions.reshape(6, 4), rtol=1e-6)
    assert "'actions' are arrays of (2, 2); their 4 numbers are stored in a row" in opened.notes


def test_an_export_whose_name_ends_in_capitals_is_found_under_that_name(tmp_path):
    episodes = episodes_of(VECTOR)
    for name in ("f.NPZ", "f.Parquet"):
        write_episode_file(str(tmp_path / name), VECTOR, episodes)
        opened = open_episodes(str(tmp_path / name))
        assert opened.env == VECTOR
        assert_same(list(opened.episodes), episodes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.NPZ", "f.Parquet"]


def test_a_look_at_a_file_finds_rows_that_do_not_fit_before_anything_starts(tmp_path):
    np.savez(
        tmp_path / "f.npz", obs=np.zeros((6, 4)), actions=np.zeros((6, 2)), rewards=np.zeros(6)
    )
    with pytest.raises(
        CheckpointError, match=r"column 'obs' has rows of shape \(4,\) and the run stores \(3,\)"
    ):
        check_file(str(tmp_path / "f.npz"), VECTOR.columns())
    np.savez(tmp_path / "f.npz", obs=np.zeros((6, 3)), actions=np.arange(6), rewards=np.zeros(6))
    with pytest.raises(
        CheckpointError, match=r"column 'action' has rows of shape \(\) and the run stores \(2,\)"
    ):
        check_file(str(tmp_path / "f.npz"), VECTOR.columns())


@pytest.mark.parametrize("target", ["lerobot:{}/d", "rllib:{}/d", "minari:d-v0"])
def test_what_a_killed_export_of_a_folder_leaves_is_no_dataset_and_goes_with_the_next(
    tmp_path, monkeypatch, target
):
    if target.startswith("minari:"):
        pytest.importorskip("minari", reason="the extra 'minari' is not installed")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
        from minari import create_dataset_from_buffers as made

        def killed(*args, **options):
            made(*args, **options)
            raise DeathError

        monkeypatch.setattr("minari.create_dataset_from_buffers", killed)
    name = target.format(tmp_path)
    monkeypatch.setattr(rllib, "EPISODES_PER_FILE", 1)

    def episodes():
        yield from episodes_of(VECTOR)
        if not name.startswith("minari:"):
            raise DeathError

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **options: None)
        with pytest.raises(DeathError):
            write_episode_file(name, VECTOR, episodes())
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".tmp")
    if name.startswith("minari:"):
        monkeypatch.setattr("minari.create_dataset_from_buffers", made)
    write_episode_file(name, VECTOR, episodes_of(VECTOR))
    (written,) = tmp_path.iterdir()
    assert written.name == name.rpartition("/")[2].removeprefix("minari:")
    assert len(list(open_episodes(name).episodes)) == 3
