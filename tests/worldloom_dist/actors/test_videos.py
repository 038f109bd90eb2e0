import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import FakePolicy
from worldloom.core.pixel_text import draw_text, text_size
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import build_env, env_spec, make_env
from worldloom.envs.local import LocalVectorEnv
from worldloom_dist.actors.evaluation import Evaluation, Evaluator
from worldloom_dist.actors.videos import Recorder, captioned, save_videos


def evaluate(env: str, videos: int) -> tuple[Evaluation, list[np.ndarray]]:
    config = EnvConfig(env=env, time_limit=8)
    evaluator = Evaluator(
        lambda: make_env(config, num_envs=3, seed=1, renders=videos > 0),
        FakePolicy(env_spec(config)),
        videos=videos,
    )
    return evaluator.evaluate(), evaluator.videos


def test_films_show_whole_episodes_and_change_no_number() -> None:
    result, videos = evaluate("toy:pixel", videos=2)
    assert [video.shape for video in videos] == [(9, 192 + 12, 192, 3)] * 2, (
        "the first row, then one frame per decision"
    )
    assert (videos[0] != videos[1]).any(), "each env has its own video"
    again, none = evaluate("toy:pixel", videos=0)
    assert again == result
    assert none == []


def test_env_without_pictures_is_evaluated_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result, videos = evaluate("toy:point", videos=1)
    assert len(result.returns) == 3
    assert videos == []
    assert "no video of env toy:point" in caplog.text


def test_env_of_state_is_filmed_by_what_it_renders() -> None:
    class Drawing(LocalVectorEnv):
        def render(self, index: int) -> np.ndarray:
            return np.full((600, 300, 3), index + 1, np.uint8)

    config = EnvConfig(env="toy:point", time_limit=3).resolved()
    env = Drawing(lambda: build_env(config), 2, 0)
    recorder = Recorder(env, 2)
    row = env.reset()
    for _ in range(6):
        recorder.see(row)
        row = env.step({"action": np.zeros((2, 2), np.float32)})
    env.close()
    assert [video.shape for video in recorder.videos] == [(4, 200, 100, 3)] * 2, (
        "one episode, made smaller"
    )
    assert [int(video.max()) for video in recorder.videos] == [1, 2]


def test_pictures_of_changing_size_take_the_size_of_the_first() -> None:
    class Growing(LocalVectorEnv):
        sizes = iter([(40, 60, 3), (20, 120, 3), (80, 30), (40, 60, 3)])

        def render(self, index: int) -> np.ndarray:
            return np.full(next(self.sizes), 7, np.uint8)

    config = EnvConfig(env="toy:point", time_limit=3).resolved()
    env = Growing(lambda: build_env(config), 1, 0)
    recorder = Recorder(env, 1)
    row = env.reset()
    for _ in range(4):
        recorder.see(row)
        row = env.step({"action": np.zeros((1, 2), np.float32)})
    env.close()
    (video,) = recorder.videos
    assert (video.shape, video.min(), video.max()) == ((4, 40, 60, 3), 7, 7)


def video_of(
    pictures: list[Any], caplog: pytest.LogCaptureFixture
) -> tuple[list[np.ndarray], list[str]]:
    """The video of an env that draws these, and why there is none."""
    drawn = iter(pictures)

    class Drawing(LocalVectorEnv):
        def render(self, index: int) -> Any:
            return next(drawn)

    config = EnvConfig(env="toy:point", time_limit=len(pictures)).resolved()
    env = Drawing(lambda: build_env(config), 1, 0)
    recorder = Recorder(env, 1)
    row = env.reset()
    with caplog.at_level(logging.WARNING):
        for _ in pictures:
            recorder.see(row)
            row = env.step({"action": np.zeros((1, 2), np.float32)})
    env.close()
    return recorder.videos, recorder.problems


def test_one_canvas_that_is_drawn_on_again_and_again_gives_different_frames() -> None:
    canvas = np.zeros((8, 8, 3), np.uint8)

    class Painter(LocalVectorEnv):
        def render(self, index: int) -> np.ndarray:
            canvas[:] += 1
            return canvas

    config = EnvConfig(env="toy:point", time_limit=3).resolved()
    env = Painter(lambda: build_env(config), 1, 0)
    recorder = Recorder(env, 1)
    row = env.reset()
    for _ in range(4):
        recorder.see(row)
        row = env.step({"action": np.zeros((1, 2), np.float32)})
    env.close()
    assert [int(frame.max()) for frame in recorder.videos[0]] == [1, 2, 3, 4]


COLOUR = np.stack([np.full((40, 60), level, np.uint8) for level in (10, 20, 30)], axis=-1)
OPAQUE = np.concatenate([COLOUR, np.full((40, 60, 1), 255, np.uint8)], axis=-1)


@pytest.mark.parametrize(
    ("picture", "pixel"),
    [
        (COLOUR, [10, 20, 30]),
        (OPAQUE, [10, 20, 30]),
        (np.moveaxis(COLOUR, -1, 0), [10, 20, 30]),
        (np.moveaxis(OPAQUE, -1, 0), [10, 20, 30]),
        (COLOUR / 255, [10, 20, 30]),
        ((COLOUR / 255).astype(np.float32), [10, 20, 30]),
        (COLOUR.astype(np.float64), [10, 20, 30]),
        (COLOUR.astype(np.int64), [10, 20, 30]),
        (COLOUR[..., 0], [10, 10, 10]),
        (COLOUR[..., :1], [10, 10, 10]),
        (COLOUR[None, ..., 0], [10, 10, 10]),
        (COLOUR[..., 0] > 5, [255, 255, 255]),
        ([COLOUR * 0, COLOUR], [10, 20, 30]),
        (COLOUR[:39, :59], [10, 20, 30]),
    ],
    ids=lambda value: (
        f"{type(value).__name__}-{getattr(value, 'dtype', '')}-{np.shape(value)}"
        if not isinstance(value, list)
        else ""
    ),
)
def test_pictures_of_every_kind_become_the_colours_that_they_show(
    picture: Any, pixel: list[int], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (video,), problems = video_of([picture, picture], caplog)
    assert video.dtype == np.uint8
    assert video[1, 3, 3].tolist() == pixel
    assert video.shape[1:] == (*video.shape[1:3], 3)
    assert video.shape[1] in (39, 40)
    assert problems == []
    report = save_videos([video], tmp_path, "eval")
    assert (len(report.paths), report.problems) == (1, ())


def test_dark_frames_of_a_film_are_not_made_bright(caplog: pytest.LogCaptureFixture) -> None:
    dark = np.full((8, 8, 3), 1.0)
    bright = np.full((8, 8, 3), 200.0)
    (video,), _ = video_of([dark, bright], caplog)
    assert video[:, 0, 0, 0].tolist() == [1, 200]


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (None, "it renders nothing; give it render_mode='rgb_array'"),
        ([], "it renders nothing"),
        ("+---+", "it renders str"),
        (np.full((8, 8, 3), np.nan), "hold numbers from nan to nan"),
        (np.full((8, 8, 3), -3), "hold numbers from -3 to -3"),
        (np.full((8, 8, 3), 300.0), "hold numbers from 300 to 300"),
        (np.zeros((8, 8, 7), np.uint8), "must have 1 to 4 channels, got 7"),
    ],
    ids=["None", "empty", "text", "nan", "negative", "large", "channels"],
)
def test_pictures_that_cannot_be_shown_are_named(
    picture: Any, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    videos, problems = video_of([picture], caplog)
    assert videos == []
    (problem,) = problems
    assert problem.startswith("no video of env toy:point")
    assert text in problem
    assert problem in caplog.text


def test_more_films_than_envs_are_not_promised(caplog: pytest.LogCaptureFixture) -> None:
    env = make_env(EnvConfig(env="toy:pixel"), num_envs=1, seed=0)
    with caplog.at_level(logging.WARNING):
        assert "2 videos were asked for and 1 envs play" in Recorder(env, 2).problems[0]
    env.close()


@pytest.mark.parametrize("shape", [(5,), (0, 4, 3), (2, 4, 4, 3)])
def test_what_is_no_picture_is_left_out_with_one_warning(
    shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(LocalVectorEnv):
        def render(self, index: int) -> np.ndarray:
            return np.zeros(shape, np.uint8)

    config = EnvConfig(env="toy:point").resolved()
    env = Odd(lambda: build_env(config), 1, 0)
    recorder = Recorder(env, 1)
    row = env.reset()
    with caplog.at_level(logging.WARNING):
        recorder.see(row)
        recorder.see(row)
    env.close()
    assert recorder.videos == []
    assert caplog.text.count("a picture must be [Y, X] or [Y, X, channels]") == 1


def test_film_that_cannot_be_written_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = np.zeros((3, 32, 32, 3), np.uint8)
    paths = save_videos([video, video], tmp_path / "videos", "eval-000000100").paths
    assert [path.stem for path in paths] == ["eval-000000100-0", "eval-000000100-1"]
    assert all(path.stat().st_size for path in paths)
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert save_videos([video], tmp_path / "file", "eval").paths == ()
    assert "could not be written" in caplog.text
    strange = np.zeros((3, 32, 32, 5))
    assert save_videos([strange], tmp_path, "eval").paths == (), "whatever the encoder raises"
    report = save_videos([np.zeros((3, 32, 32, 5)), video], tmp_path, "late", ["no video of env x"])
    assert [path.stem for path in report.paths] == ["late-1"]
    assert report.problems[0] == "no video of env x"
    assert report.problems[1].startswith("video late-0 could not be written")
    assert [path.stem for path in tmp_path.glob("*late*")] == ["late-1"], (
        "nothing is left half written"
    )


def test_step_and_return_stand_below_every_picture() -> None:
    small = np.full((3, 40, 50, 3), 9, np.uint8)
    made = captioned(small, [0.0, 1.5, -2.25])
    assert made.shape == (3, 3 * 40 + 12, 3 * 50, 3), "small pictures are made larger"
    assert (made[:, : 3 * 40] == 9).all()
    wide = np.zeros((2, 20, 300, 3), np.uint8)
    shown = captioned(wide, [0.0, 1.5])
    assert shown.shape == (2, 20 + 12, 300, 3)
    expected = np.zeros((12, 300, 3), np.uint8)
    text = "step 1  return 1.5"
    draw_text(expected, text, 2, (300 - text_size(text)[1]) // 2)
    assert np.array_equal(shown[1, 20:], expected)


def test_the_return_of_a_film_is_that_of_its_episode() -> None:
    class Drawing(LocalVectorEnv):
        def render(self, index: int) -> np.ndarray:
            return np.full((40, 160, 3), index, np.uint8)

    config = EnvConfig(env="toy:point", time_limit=5).resolved()
    env = Drawing(lambda: build_env(config), 2, 0)
    recorder = Recorder(env, 2)
    row = env.reset()
    total = np.zeros(2)
    for _ in range(6):
        recorder.see(row)
        total += row.reward
        row = env.step({"action": np.full((2, 2), 0.3, np.float32)})
    env.close()
    assert total.all()
    for index, video in enumerate(recorder.captioned_videos):
        whole = recorder.videos[index]
        assert np.array_equal(video[-1], captioned(whole, [total[index]] * 6)[-1])
        assert not np.array_equal(video[-1], captioned(whole, [0.0] * 6)[-1])


def test_two_evaluations_of_one_checkpoint_at_once_both_have_their_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worldloom.evaluation import visualize

    video = np.zeros((3, 32, 32, 3), np.uint8)
    reports = []
    saved = visualize.save_frames

    def beside_another(*args: Any, **options: Any) -> Path:
        path = saved(*args, **options)
        if len(reports) < 1:
            reports.append(None)
            reports.append(save_videos([video], tmp_path, "best"))
        return path

    monkeypatch.setattr(visualize, "save_frames", beside_another)
    reports.append(save_videos([video], tmp_path, "best"))
    assert [report.problems for report in reports[1:]] == [(), ()]
    assert [path.stem for path in tmp_path.iterdir()] == ["best-0"]
