"""LeRobot datasets are read as LeRobot lays them out, and written so; what cannot be used is
refused in one sentence, whatever is in the folder.
"""

import contextlib
import dataclasses
import io
import json
import shutil
import tracemalloc

import numpy as np
import pytest
from gymnasium.spaces import Box
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worldloom_dist.replay.test_episode_files import assert_same, random_episode
from tests.worldloom_dist.replay.test_hostile_episode_files import mutated
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.space_json import spaces_to_json
from worldloom_dist.replay.formats.episode_files import open_episodes, write_episode_file
from worldloom_dist.replay.formats.episode_rows import fit_rows
from worldloom_dist.replay.imports import check_beginning, check_file, fingerprint
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve

pyarrow = pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
from pyarrow import parquet  # noqa: E402

FPS = 10
STATE = "observation.state"
CAMERA = "observation.images.top"
COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
VECTOR = EnvSpec(name="gym:X-v0", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((2,))})
DICT = EnvSpec(
    name="x",
    obs={"camera": ArraySpec((32, 33, 3), "uint8"), "pose": ArraySpec((4,))},
    action={"arm": ArraySpec((2,)), "grip": ArraySpec((), "int32", (3,))},
)
GREY = EnvSpec(
    name="x",
    obs={"obs": ArraySpec((32, 40, 1), "uint8"), "speed": ArraySpec((1,))},
    action={"action": ArraySpec((), "int32", (5,))},
)
REFUSED = (CheckpointError, ConfigurationError)


def columns_of(lengths, *, action=lambda t: [t / 100, -t / 100]):
    """Columns as LeRobot has them: row t of an episode sees t, and its action leads to t + 1."""
    found = {name: [] for name in (*COUNTERS, STATE, "action", "next.reward", "next.done")}
    for episode, length in enumerate(lengths):
        for t in range(length):
            row = {
                "timestamp": t / FPS,
                "frame_index": t,
                "episode_index": episode,
                "index": len(found["index"]),
                "task_index": 0,
                STATE: [float(t), float(episode), 0.5],
                "action": action(t),
                "next.reward": float(t + 1),
                "next.done": t == length - 1 and episode % 2 == 0,
            }
            for name, value in row.items():
                found[name].append(value)
    return found


def feature(dtype, *shape):
    return {"dtype": dtype, "shape": list(shape), "names": None}


FEATURES = {
    STATE: feature("float32", 3),
    "action": feature("float32", 2),
    "next.reward": feature("float32", 1),
    "next.done": feature("bool", 1),
    **{name: feature("int64", 1) for name in COUNTERS[1:]},
    "timestamp": feature("float32", 1),
}


def write_dataset(folder, lengths=(5, 3, 4), *, per_file=2, columns=None, info=None, lines=None):
    """A dataset in the published layout, by pyarrow alone: episodes dealt to files in order."""
    columns = columns_of(lengths) if columns is None else columns
    meta = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "robot_type": "so100",
        "total_episodes": len(lengths),
        "features": FEATURES,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        **(info or {}),
    }
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(meta))
    table = pyarrow.table(columns)
    numbers = np.array(columns["episode_index"])
    for number in range(-(-len(lengths) // per_file)):
        part = table.filter(pyarrow.array(numbers // per_file == number))
        parquet.write_table(part, folder / f"data/chunk-000/file-{number:03d}.parquet")
    described = [
        {
            "episode_index": episode,
            "length": length,
            "tasks": ["push"],
            "data/chunk_index": 0,
            "data/file_index": episode // per_file,
            "stats/action/min": [0.0],
            **((lines or [{}] * len(lengths))[episode]),
        }
        for episode, length in enumerate(lengths)
    ]
    parquet.write_table(
        pyarrow.Table.from_pylist(described),
        folder / "meta/episodes/chunk-000/file-000.parquet",
    )
    return f"lerobot:{folder}"


def drain(source, env=VECTOR):
    opened = open_episodes(source)
    rows = [fit_rows(rows, env.columns(), source) for rows in opened.episodes]
    return opened, rows


def test_a_dataset_is_read_by_the_time_index_of_a_run(tmp_path):
    opened, rows = drain(write_dataset(tmp_path / "d"))
    assert opened.env.obs == VECTOR.obs
    assert opened.env.action == VECTOR.action
    assert [len(one["reward"]) for one in rows] == [6, 4, 5]
    np.testing.assert_array_equal(rows[0]["obs"][:, 0], [0, 1, 2, 3, 4, 4])
    np.testing.assert_array_equal(rows[0]["reward"], [0, 1, 2, 3, 4, 5]), "reward on arrival"
    np.testing.assert_allclose(rows[0]["action"][:5, 0], np.arange(5) / 100)
    assert [bool(one["terminated"][-1]) for one in rows] == [True, False, True]
    assert [bool(one["truncated"][-1]) for one in rows] == [False, True, False]
    assert opened.repeated == 3
    assert "1 episodes have no end in the dataset; they count as truncated" in opened.notes
    assert any("'next.truncated'; they count as terminated" in note for note in opened.notes)


def test_next_truncated_tells_a_limit_from_an_end(tmp_path):
    columns = columns_of((2, 2))
    columns["next.done"] = [False, True, False, True]
    columns["next.truncated"] = [False, False, False, True]
    features = {**FEATURES, "next.truncated": feature("bool", 1)}
    source = write_dataset(tmp_path / "d", (2, 2), columns=columns, info={"features": features})
    opened, rows = drain(source)
    assert [bool(one["terminated"][-1]) for one in rows] == [True, False]
    assert opened.notes == []


@pytest.mark.parametrize("env", [VECTOR, DICT, GREY])
def test_episodes_come_back_as_they_were(tmp_path, env):
    episodes = [random_episode(env, n, n, terminated=n % 2 == 0) for n in (7, 1, 30, 64, 65)]
    episodes[2]["truncated"][-1] = True  # it ended for good, and at its limit
    name = f"lerobot:{tmp_path / 'a' / 'd'}?fps=20"
    assert write_episode_file(name, env, episodes) == []
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["d"], "nothing else is left"
    opened = open_episodes(name.partition("?")[0])
    assert opened.env == env
    assert_same(list(opened.episodes), episodes)
    assert (opened.notes, opened.repeated) == ([], 0)
    key = next(key for key, spec in env.obs.items() if not spec.is_image)
    column = "observation.state" if key == "obs" else f"observation.{key}"
    chosen = open_episodes(f"{name.partition('?')[0]}?obs={column}")
    for found, rows in zip(chosen.episodes, episodes, strict=True):
        for flag in ("terminated", "truncated"):
            np.testing.assert_array_equal(found[flag], rows[flag])
    with pytest.raises(ConfigurationError, match="is there already"):
        write_episode_file(name, env, episodes)


def test_what_is_written_has_the_published_layout(tmp_path):
    episodes = [random_episode(DICT, n, n, terminated=n == 2) for n in (2, 5)]
    notes = write_episode_file(f"lerobot:{tmp_path / 'd'}", DICT, episodes)
    assert "timestamps count decisions" in notes[0]
    info = json.loads((tmp_path / "d/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"]) == (2, 7)
    assert info["splits"] == {"train": "0:2"}
    assert info["features"]["observation.images.camera"]["dtype"] == "image"
    assert info["features"]["observation.pose"]["shape"] == [4]
    table = parquet.read_table(tmp_path / "d/data/chunk-000/file-000.parquet")
    assert set(table.column_names) == set(info["features"])
    assert table.column("index").to_pylist() == list(range(7))
    assert table.column("frame_index").to_pylist() == [0, 1, 0, 1, 2, 3, 4]
    assert table.column("next.done").to_pylist() == [False, True, *[False] * 4, True]
    np.testing.assert_array_equal(
        table.column("next.reward").to_numpy()[:2], episodes[0]["reward"][1:]
    )
    lines = parquet.read_table(tmp_path / "d/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [line["dataset_from_index"] for line in lines] == [0, 2]
    assert [line["dataset_to_index"] for line in lines] == [2, 7]
    assert lines[0]["tasks"] == ["x"]
    stats = json.loads((tmp_path / "d/meta/stats.json").read_text())
    seen = np.concatenate([one["obs/pose"][:-1] for one in episodes])
    np.testing.assert_allclose(stats["observation.pose"]["mean"], seen.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(stats["observation.pose"]["std"], seen.std(axis=0), rtol=1e-5)
    assert np.shape(stats["observation.images.camera"]["max"]) == (3, 1, 1)
    pandas = pytest.importorskip("pandas", reason="LeRobot reads tasks with it")
    tasks = pandas.read_parquet(tmp_path / "d/meta/tasks.parquet")
    assert tasks.iloc[0].name == "x"


def test_a_dataset_of_links_into_a_cache_is_read(tmp_path):
    write_dataset(tmp_path / "d")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted((tmp_path / "d").rglob("*"))):
        if path.is_file():
            path.rename(blobs / str(number))
            path.symlink_to(blobs / str(number))
    assert len(list(open_episodes(f"lerobot:{tmp_path / 'd'}").episodes)) == 3


def test_columns_that_would_be_one_column_of_a_run_are_refused(tmp_path):
    columns = columns_of((5, 3, 4))
    columns["observation.top"] = columns[STATE]
    columns["observation.images.top"] = columns[STATE]
    features = {
        **without(FEATURES, STATE),
        **{name: feature("float32", 3) for name in columns if name.endswith(".top")},
    }
    source = write_dataset(tmp_path / "d", columns=columns, info={"features": features})
    with pytest.raises(
        CheckpointError,
        match=r"'observation.top' and 'observation.images.top' would both be the run's 'obs/top'; "
        r"name those to use with \?obs/KEY=COLUMN",
    ):
        open_episodes(source)
    opened = open_episodes(f"{source}?obs/a=observation.top&obs/b=observation.images.top")
    assert set(opened.env.obs) == {"a", "b"}


def test_a_file_ends_when_it_is_large_and_the_next_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("worldloom_dist.replay.formats.lerobot_writer.FILE_BYTES", 1)
    episodes = [random_episode(VECTOR, n, n, terminated=False) for n in (4, 5, 6)]
    write_episode_file(f"lerobot:{tmp_path / 'd'}", VECTOR, episodes)
    assert len(list((tmp_path / "d/data").rglob("*.parquet"))) == 3
    assert_same(list(open_episodes(f"lerobot:{tmp_path / 'd'}").episodes), episodes)


def picture(t):
    image = pytest.importorskip("PIL.Image", reason="the extra 'viz' is not installed")
    file = io.BytesIO()
    image.fromarray(np.full((32, 48, 3), t * 10, np.uint8)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def with_camera(folder, dtype, **more):
    columns = columns_of((5, 3, 4))
    if dtype == "image":
        columns[CAMERA] = [picture(t) for t in columns["frame_index"]]
    info = {"features": {**FEATURES, CAMERA: feature(dtype, 32, 48, 3)}}
    return write_dataset(folder, columns=columns, info=info, **more)


def test_images_are_read_and_columns_are_chosen_by_name(tmp_path):
    source = with_camera(tmp_path / "d", "image")
    opened = open_episodes(source)
    assert set(opened.env.obs) == {"state", "top"}
    rows = next(opened.episodes)
    np.testing.assert_array_equal(rows["obs/top"][:, 0, 0, 0], [0, 10, 20, 30, 40, 40])
    with pytest.raises(CheckpointError, match=r"holds .*obs/state.* and the run stores .*\?obs="):
        check_file(source, VECTOR.columns())
    check_file(f"{source}?obs=observation.state", VECTOR.columns())
    opened = open_episodes(f"{source}?obs/eye={CAMERA}&action=action")
    assert list(opened.env.obs) == ["eye"]
    assert opened.notes == ["columns that are not used: observation.state"]
    names = (source, f"{source}?obs=observation.state")
    assert fingerprint(names[0]) != fingerprint(names[1]), "other columns are other rows"


def test_a_dataset_is_the_same_however_its_columns_are_spelled(tmp_path):
    source = write_dataset(tmp_path / "d")
    same = [
        "",
        f"?obs={STATE}",
        f"?obs={STATE}&action=action",
        f"?action=action&reward=next.reward&obs={STATE}",
        "?bounds=-1:1",
        "?bounds=-1.0/-1:1&terminated=next.done",
    ]
    assert len({fingerprint(source + query) for query in same}) == 1
    others = ["", "?bounds=-2:2", f"?obs/seen={STATE}", "?terminated=next.reward"]
    assert len({fingerprint(source + query) for query in others}) == len(others)
    with pytest.raises(CheckpointError, match="has no column 'x'"):
        fingerprint(f"{source}?obs=x")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 32\n%%EndComments\n%%EndProlog\nshowpage\n"


def test_an_image_whose_decoder_would_start_a_program_is_refused(tmp_path):
    with_camera(tmp_path / "d", "image")
    for path in (tmp_path / "d/data").rglob("*.parquet"):
        table = parquet.read_table(path)
        at = table.column_names.index(CAMERA)
        images = pyarrow.array([{"bytes": EPS, "path": None}] * len(table))
        parquet.write_table(table.set_column(at, CAMERA, images), path)
    with pytest.raises(CheckpointError, match=r"an image that is neither of PNG nor of JPEG"):
        list(open_episodes(f"lerobot:{tmp_path / 'd'}").episodes)


@pytest.mark.parametrize(("lengths", "sentence"), [((400,), "would expand"), ((3,), "400 rows of")])
def test_images_are_decoded_for_no_more_rows_than_the_dataset_says(tmp_path, lengths, sentence):
    image = pytest.importorskip("PIL.Image", reason="the extra 'viz' is not installed")
    file = io.BytesIO()
    image.fromarray(np.zeros((512, 512, 3), np.uint8)).save(file, "png")
    columns = columns_of((400,))
    columns[CAMERA] = [{"bytes": file.getvalue(), "path": None}] * 400
    features = {**FEATURES, CAMERA: feature("image", 512, 512, 3)}
    source = write_dataset(tmp_path / "d", lengths, columns=columns, info={"features": features})
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=sentence):
            list(open_episodes(f"{source}?obs={CAMERA}").episodes)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def videos(folder):
    """Frames of three episodes in two files, brightness by the number of the row."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="the extra 'video' is not installed")
    for number, lengths in enumerate(((5, 3), (4,))):
        path = folder / f"videos/{CAMERA}/chunk-000/file-{number:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = ffmpeg.write_frames(str(path), (48, 32), fps=FPS, macro_block_size=2)
        writer.send(None)
        for t in [t for length in lengths for t in range(length)]:
            writer.send(np.full((32, 48, 3), 20 + t * 40, np.uint8))
        writer.close()


def test_videos_that_are_not_chosen_need_not_be_there(tmp_path):
    source = with_camera(tmp_path / "d", "video", lines=places())
    assert len(list(open_episodes(f"{source}?obs={STATE}").episodes)) == 3
    with pytest.raises(CheckpointError, match=r"lacks the file .*file-000.mp4"):
        list(open_episodes(source).episodes)


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
    ],
)
def test_a_playlist_in_the_place_of_a_video_is_not_followed(tmp_path, playlist):
    videos(tmp_path / "d")
    source = f"{with_camera(tmp_path / 'd', 'video', lines=places())}?obs={CAMERA}"
    for path in sorted((tmp_path / "d/videos").rglob("*.mp4")):
        real = path.rename(path.parent / f"real-{path.name}")
        path.write_text(playlist.format(real.name))
    with pytest.raises(CheckpointError, match=r"file-000.mp4: has 0 frames"):
        list(open_episodes(source).episodes)


def places(starts=((0, 0.0), (0, 0.5), (1, 0.0))):
    return [
        {
            f"videos/{CAMERA}/chunk_index": 0,
            f"videos/{CAMERA}/file_index": number,
            f"videos/{CAMERA}/from_timestamp": start,
            f"videos/{CAMERA}/to_timestamp": start + 0.1,
        }
        for number, start in starts
    ]


def test_frames_of_videos_belong_to_the_rows_of_their_episode(tmp_path):
    videos(tmp_path / "d")
    source = with_camera(tmp_path / "d", "video", lines=places())
    opened = open_episodes(f"{source}?obs={CAMERA}")
    assert any("lossy" in note for note in opened.notes)
    found = [rows["obs"][:-1, 16, 24, 0].astype(int) for rows in opened.episodes]
    assert [len(values) for values in found] == [5, 3, 4]
    for values in found:
        np.testing.assert_allclose(values, 20 + 40 * np.arange(len(values)), atol=8)


def test_a_video_that_ends_too_early_or_has_another_size_is_named(tmp_path):
    videos(tmp_path / "a")
    source = with_camera(tmp_path / "a", "video", lines=places([(0, 0.0), (0, 0.7), (1, 0.0)]))
    with pytest.raises(CheckpointError, match=r"file-000.mp4: has 8 frames, .* from 7 to 9"):
        list(open_episodes(source).episodes)
    videos(tmp_path / "b")
    columns = columns_of((5, 3, 4))
    features = {**FEATURES, CAMERA: feature("video", 64, 64, 3)}
    source = write_dataset(
        tmp_path / "b", columns=columns, info={"features": features}, lines=places()
    )
    with pytest.raises(CheckpointError, match=r"frames of 32 x 48, and meta/info.json says"):
        list(open_episodes(source).episodes)
    (tmp_path / "b/videos" / CAMERA / "chunk-000/file-000.mp4").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the file .*file-000.mp4"):
        list(open_episodes(source).episodes)


def test_actions_are_scaled_by_the_bounds_that_are_named(tmp_path):
    columns = columns_of((4,), action=lambda t: [float(t), 3.0])
    source = write_dataset(tmp_path / "d", (4,), columns=columns)
    with pytest.raises(CheckpointError, match=r"'action' reaches 3, outside its bounds -1:1.*\?b"):
        list(open_episodes(source).episodes)
    rows = next(open_episodes(f"{source}?bounds=-6:6").episodes)
    np.testing.assert_allclose(rows["action"][:4, 0], np.arange(4) / 6)
    stats = {"action": {"min": [0.0, 3.0], "max": [3.0, 3.0]}}
    (tmp_path / "d/meta/stats.json").write_text(json.dumps(stats))
    rows = next(open_episodes(f"{source}?bounds=stats").episodes)
    np.testing.assert_allclose(rows["action"][:4, 0], [-1, -1 / 3, 1 / 3, 1], rtol=1e-5)
    np.testing.assert_allclose(rows["action"][:4, 1], 0)
    rows = next(open_episodes(f"{source}?bounds=-6/0:6/4").episodes)
    np.testing.assert_allclose(rows["action"][:4], [[t / 6, 0.5] for t in range(4)], rtol=1e-5)
    rows = next(open_episodes(f"{source}?bounds=-1:1&bounds/action=-6:6").episodes)
    np.testing.assert_allclose(rows["action"][:4, 0], np.arange(4) / 6)
    with pytest.raises(ConfigurationError, match=r"'bounds/arm' is of no action; .*'action'"):
        open_episodes(f"{source}?bounds/arm=-6:6")
    for wrong in ("2", "2:1", "nan:1", "-1:inf", "a:b", "1/2/3:4", "-1/2:1", "1:2:3"):
        with pytest.raises(ConfigurationError, match="bounds must be LOW:HIGH"):
            open_episodes(f"{source}?bounds={wrong}")


def env_of(low, high):
    space = Box(np.array(low, np.float32), np.array(high, np.float32))
    spaces = spaces_to_json(Box(-1, 1, (3,)), space)
    return dataclasses.replace(VECTOR, name="gym:X-v0", spaces=spaces)


@pytest.mark.parametrize(
    ("query", "ends", "remedy"),
    [
        ("", ([-2, -2], [2, 2]), "bounds -1:1, and those .* are -2:2, .*give [?]bounds=-2:2"),
        ("?bounds=stats", ([-2, -2], [2, 2]), r"give \?bounds=-2:2"),
        ("?bounds=-2:2", ([-2, -1], [2, 1]), r"give \?bounds=-2/-1:2/1"),
        ("?bounds=-2/-1:2/1", ([-2, -1], [2, 1]), None),
        ("?bounds=-2:2", ([-2, -2], [2, 2]), None),
        ("", ([-np.inf, -1], [np.inf, 1]), None),
    ],
)
def test_bounds_are_held_against_those_of_the_runs_env(tmp_path, query, ends, remedy):
    source = write_dataset(tmp_path / "d") + query
    stats = {"action": {"min": [0.0, -0.04], "max": [0.04, 0.0]}}
    (tmp_path / "d/meta/stats.json").write_text(json.dumps(stats))
    env = env_of(*ends)
    for check in (check_file, check_beginning):
        if remedy is None:
            check(source, env.columns(), env)
            continue
        with pytest.raises(CheckpointError, match=remedy):
            check(source, env.columns(), env)
    notes = open_episodes(source).notes
    assert any("no bound of an env" in note for note in notes) == ("stats" in query)


def test_a_run_refuses_a_dataset_of_other_bounds_before_anything_starts(tmp_path):
    source = write_dataset(tmp_path / "d", columns=columns_of((5, 3, 4), action=lambda t: [0.5]))
    changed(tmp_path / "d", features={**FEATURES, "action": feature("float32", 1)})
    words = ["--preset", "debug", "--runtime", "local", "--env", "gym:Pendulum-v1"]
    with pytest.raises(ConfigurationError, match=r"replay.load: .*are -2:2, .* \?bounds=-2:2"):
        resolve(parse([*words, "--replay.load", source]))
    resolve(parse([*words, "--replay.load", f"{source}?bounds=-2:2"]))


def test_actions_that_this_program_wrote_have_no_other_bounds(tmp_path):
    source = f"lerobot:{tmp_path / 'd'}"
    write_episode_file(source, VECTOR, [random_episode(VECTOR, 5, 5, terminated=True)])
    env = env_of([-2, -2], [2, 2])
    for query in ("", "?obs=observation.state"):
        check_file(source + query, env.columns(), env)
    with pytest.raises(ConfigurationError, match=r"written by this program, .* leave bounds out"):
        open_episodes(f"{source}?bounds=-2:2")


def test_whole_actions_are_choices(tmp_path):
    features = {**FEATURES, "action": feature("int64", 1)}
    columns = columns_of((4, 3), action=lambda t: t)
    source = write_dataset(tmp_path / "a", (4, 3), columns=columns, info={"features": features})
    opened = open_episodes(source)
    assert opened.env.action == {"action": ArraySpec((), "int32", (4,))}
    np.testing.assert_array_equal(next(opened.episodes)["action"][:4], [0, 1, 2, 3])
    columns = columns_of((4, 3), action=lambda t: t - 1)
    source = write_dataset(tmp_path / "b", (4, 3), columns=columns, info={"features": features})
    with pytest.raises(CheckpointError, match="count choices from 0, got -1"):
        open_episodes(source)


def changed(folder, **more):
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps({**info, **more}))


def without(columns, *names):
    return {name: value for name, value in columns.items() if name not in names}


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?obs=observation.sate", r"no column 'observation.sate', which is to be the run's 'obs'"),
        ("?speed=observation.state", "'speed' is no column of a run; use obs, obs/KEY"),
        ("?obs", "'obs' is no KEY=VALUE"),
        ("?reward=action", r"'action' has rows of shape \(2,\), and a run stores one number"),
        ("?terminated=observation.state", r"'observation.state' has rows of shape \(3,\)"),
        ("?terminated=next.reward", "'next.reward' of episode 0 is not False up to the last row"),
    ],
)
def test_a_query_that_names_what_is_not_there_is_refused(tmp_path, query, sentence):
    source = write_dataset(tmp_path / "d") + query
    with pytest.raises(REFUSED, match=sentence) as caught:
        list(open_episodes(source).episodes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"codebase_version": "v2.1"}, "version 'v2.1', and v3.0 is read; convert it"),
        ({"codebase_version": 3}, "of version 3, and v3.0 is read"),
        ({"fps": 0}, "meta/info.json is damaged"),
        ({"features": {STATE: feature("float32", 3)}}, r"has no column 'action' or 'action.KEY'"),
        ({"features": without(FEATURES, "next.reward")}, r"no column 'next.reward', and a run lea"),
        ({"features": without(FEATURES, STATE)}, r"no column 'observation' or 'observation.KEY'"),
        ({"features": {**FEATURES, STATE: feature("float32", 4)}}, "or not 4 numbers in each row"),
        ({"features": {**FEATURES, STATE: feature("float32", -1)}}, "meta/info.json is damaged"),
        ({"features": {**FEATURES, STATE: feature("float32", 10**12)}}, "would expand to|damaged"),
        ({"features": []}, "meta/info.json is damaged"),
        ({"data_path": "../{chunk_index:03d}.parquet"}, "lacks the file"),
        ({"data_path": "{chunk_index.__class__}"}, "lacks the file"),
        ({"data_path": "{colour}"}, "'colour' is none of"),
        ({"data_path": 3}, "meta/info.json is damaged"),
    ],
)
def test_a_description_that_cannot_be_is_refused_in_one_sentence(tmp_path, change, sentence):
    source = write_dataset(tmp_path / "d")
    changed(tmp_path / "d", **change)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=sentence) as caught:
            list(open_episodes(source).episodes)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"frame_index": [1, 0, 2, 0, 1, 2]}, "'frame_index' of episode 0 does not count its rows"),
        ({"episode_index": [0, 0, 1, 0, 1, 1]}, "3 rows of episode 0 follow, and there are 2 rows"),
        ({"next.done": [True, False, True] * 2}, "'next.done' of episode 0 is not False up to"),
        ({"next.reward": [None, *[1.0] * 5]}, "'next.reward' has empty entries"),
        ({STATE: [[1.0], [1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 3] * 2}, "not 3 numbers in each row"),
        ({STATE: ["a"] * 6}, "not 3 numbers in each row"),
        ({"next.reward": ["a"] * 6}, "is string, and numbers are read"),
        ({STATE: [[0.0, np.nan, 0.0]] * 6}, "not finite, first in row 0"),
    ],
)
def test_rows_that_cannot_be_are_refused_in_one_sentence(tmp_path, change, sentence):
    columns = {**columns_of((3, 3)), **change}
    source = write_dataset(tmp_path / "d", (3, 3), columns=columns)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        drain(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [((3, 4), "4 rows of episode 1 follow, and there are 3"), ((3,), "does not name")],
)
def test_episodes_that_are_described_otherwise_are_refused(tmp_path, lengths, sentence):
    write_dataset(tmp_path / "d", (3, 3))
    write_dataset(tmp_path / "e", lengths, columns=columns_of(lengths))
    shutil.copytree(tmp_path / "e/meta", tmp_path / "d/meta", dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match=sentence):
        drain(f"lerobot:{tmp_path / 'd'}")


def test_spaces_that_lerobot_has_no_column_for_are_refused_before_a_file_is_written(tmp_path):
    action = {"action": ArraySpec((1,))}
    for obs, sentence in (
        ({"obs": ArraySpec((64, 64, 12), "uint8")}, "images of 12 channels"),
        ({"arm/left": ArraySpec((3,))}, "no column for the obs key 'arm/left'"),
        ({"obs": ArraySpec((2,)), "state": ArraySpec((2,))}, "no column for the obs key 'obs'"),
    ):
        env = EnvSpec(name="x", obs=obs, action=action)
        with pytest.raises(ConfigurationError, match=sentence):
            write_episode_file(f"lerobot:{tmp_path / 'd'}", env, ())
    for query in ("?fps=0", "?fps=1.5", "?obs=x"):
        with pytest.raises(ConfigurationError, match="whole number of decisions per second"):
            write_episode_file(f"lerobot:{tmp_path / 'd'}{query}", VECTOR, ())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_dataset_is_named(tmp_path):
    for source in (f"lerobot:{tmp_path}", f"lerobot:{tmp_path / 'none'}"):
        with pytest.raises(CheckpointError, match=r"has no meta/info\.json"):
            open_episodes(source)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "d"
    with_camera(folder, "image")
    return folder


DAMAGED = [
    "meta/info.json",
    "meta/episodes/chunk-000/file-000.parquet",
    "data/chunk-000/file-000.parquet",
]


@given(
    name=st.sampled_from(DAMAGED),
    op=st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]),
    place=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 255),
)
@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_datasets_raise_only_the_documented_error(good, tmp_path, name, op, place, seed):
    folder = tmp_path / "d"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    (folder / name).write_bytes(mutated((good / name).read_bytes(), op, place, seed))
    try:
        lengths = [len(rows["reward"]) for rows in open_episodes(f"lerobot:{folder}").episodes]
    except REFUSED:
        return
    assert lengths == [6, 4, 5], "what is read is whole"


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_cut_is_refused(good, tmp_path, name):
    shutil.copytree(good, tmp_path / "d")
    whole = (good / name).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "d" / name).write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            list(open_episodes(f"lerobot:{tmp_path / 'd'}").episodes)


STRANGE = [0, -1, 2**62, 1e300, "text", "", None, [], {}, [[1]], True, "v3.0", {"a": 1}]


@given(
    path=st.sampled_from(
        [
            ("codebase_version",),
            ("fps",),
            ("features",),
            ("data_path",),
            ("video_path",),
            ("features", STATE),
            ("features", STATE, "dtype"),
            ("features", STATE, "shape"),
            ("features", CAMERA, "dtype"),
            ("features", CAMERA, "shape"),
            ("features", "action", "dtype"),
            ("features", "action", "shape"),
            ("features", "next.reward"),
            ("features", "next.done", "shape"),
        ]
    ),
    value=st.sampled_from(range(len(STRANGE))),
)
@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.filterwarnings("ignore")
def test_strange_descriptions_raise_only_the_documented_error(good, tmp_path, path, value):
    folder = tmp_path / "d"
    if not folder.exists():
        shutil.copytree(good, folder)
    info = json.loads((good / "meta/info.json").read_text())
    at = info
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = STRANGE[value]
    (folder / "meta/info.json").write_text(json.dumps(info))
    with contextlib.suppress(*REFUSED):
        list(open_episodes(f"lerobot:{folder}").episodes)
