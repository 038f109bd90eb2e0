"""Rows go out to every kind of file and come back as they were; what a run cannot use is refused in one sentence."""

import numpy as np
import pytest

from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import check_sequence
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.spaces import ActionMapper
from worldloom.training import ReplayBuffer
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.episode_files import fit_rows, open_episodes, write_episode_file
from worldloom_dist.replay.imports import load_share
from worldloom_dist.replay.shard import ReplayShard

VECTOR = EnvSpec(name="gym:X-v0", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((2,))})
IMAGE = EnvSpec(name="x", obs={"obs": ArraySpec((32, 32, 1), "uint8")}, action={"action": ArraySpec((), "int32", (5,))})
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
            rows[name] = rng.integers(0, spec.num_classes[0], (steps + 1, *spec.shape)).astype(spec.dtype)
        elif spec.dtype == "uint8":
            rows[name] = rng.integers(0, 256, (steps + 1, *spec.shape), np.uint8)
        elif spec.dtype == "bool":
            rows[name] = np.zeros(steps + 1, bool)
        else:
            rows[name] = rng.uniform(-1, 1, (steps + 1, *spec.shape)).astype(np.float32)
        if name.startswith("action"):
            rows[name][-1] = 0
    rows["is_first"][0], rows["reward"][0] = True, 0
    rows["terminated" if terminated else "truncated"][-1] = True
    check_sequence(rows, env.columns())
    return rows


def episodes_of(env):
    return [random_episode(env, steps, seed, terminated=seed % 2 == 0) for seed, steps in enumerate((7, 1, 30))]


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
            assert a[name].dtype == b[name].dtype


@pytest.mark.parametrize(
    ("env", "name"), [(VECTOR, "f.npz"), (IMAGE, "f.npz"), (VECTOR, "f.parquet"), (IMAGE, "f.parquet"), (DICT, "f.parquet")]
)
def test_episodes_come_back_as_they_were(tmp_path, env, name):
    episodes = episodes_of(env)
    write_episode_file(str(tmp_path / name), env, episodes)
    opened = open_episodes(str(tmp_path / name))
    assert opened.env == env
    assert_same(list(opened.episodes), episodes)
    assert opened.left_out == 0
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


def test_native_actions_become_unit_actions_and_back():
    from gymnasium import spaces

    mapper = ActionMapper(spaces.Dict({"torque": spaces.Box(-2.0, 6.0, (2,)), "gear": spaces.Discrete(3, start=1)}))
    unit = {"torque": np.array([[-1.0, 0.5], [1.0, 0.0]], np.float32), "gear": np.array([0, 2], np.int32)}
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


def test_a_transition_without_its_outcome_is_left_out_and_counted(tmp_path):
    buffer = ReplayBuffer(100, (3,), 2, seed=0)
    for steps in (1, 5, 9):
        buffer.add_episode(np.ones((steps, 3)), np.zeros((steps, 2)), np.arange(steps), np.arange(steps) == steps - 1)
    buffer.save(tmp_path / "f.npz")
    opened = open_episodes(str(tmp_path / "f.npz"))
    rows = list(opened.episodes)
    assert [len(part["is_first"]) for part in rows] == [5, 9]
    assert opened.left_out == 3
    assert not any(part["terminated"].any() for part in rows)
    assert all(part["truncated"][-1] for part in rows)
    np.testing.assert_array_equal(rows[0]["reward"], [0, 0, 1, 2, 3])


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
    parquet.write_table(table.replace_schema_metadata({"worldloom_env": "{"}), tmp_path / "f.parquet")
    for name in ("f.npz", "f.parquet"):
        with pytest.raises(CheckpointError, match=rf"{name}: .*spaces.* damaged"):
            open_episodes(str(tmp_path / name))


def test_rows_of_a_parquet_file_that_are_no_episode_are_refused(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Ray brings it")
    file = tmp_path / "f.parquet"
    write_episode_file(str(file), VECTOR, episodes_of(VECTOR))
    table = parquet.read_table(file)
    for column, value in (("is_first", False), ("episode", 0)):
        place, name = table.column_names.index(column), table.field(column)
        changed = table.set_column(place, name, [np.full(len(table), value)])
        parquet.write_table(changed, file)
        with pytest.raises(CheckpointError, match=r"is_first at row \[0\] only.*number episodes anew") as caught:
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
    return ReplayShard(index, VECTOR.columns(), SamplingSpec(batch_size=2, length=2), capacity_steps=capacity, directory=folder)


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
    books = [open_shard(tmp_path / str(index), index).books() for index in range(2)]
    assert [b.inserted for b in books] == [8 + 31, 2]
    assert all(b.agent_steps == 0 and b.duplicate == 0 and b.is_balanced for b in books)


def test_an_import_that_was_cut_off_goes_on_where_it_was(tmp_path, monkeypatch):
    file = str(tmp_path / "f.npz")
    episodes = [random_episode(VECTOR, 99, seed, terminated=False) for seed in range(3)]
    write_episode_file(file, VECTOR, episodes)
    shard = open_shard(tmp_path / "shard")
    real, calls = shard.append, []

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
    assert again.books().inserted == again.books().stored == 300
    windows = again.sample(SampleRequest(200, (0,)))
    stored = np.concatenate([episode["obs"] for episode in episodes])
    np.testing.assert_array_equal(windows.columns["obs"], stored[windows.row_ids])
