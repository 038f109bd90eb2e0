"""Pictures while training: when they are due, where they go, who hears of them, and that nothing
about them can stop a run.
"""

import json
import logging
import threading

import numpy as np
import pytest
from PIL import Image

from worldloom.core.exceptions import MissingDependencyError
from worldloom.core.protocol import Reporting
from worldloom_dist.learner import prediction_videos as module
from worldloom_dist.learner.prediction_videos import PredictionVideos

STILL = np.zeros((1, 6, 8, 3), np.uint8)
FILM = np.concatenate([STILL + 60 * t for t in range(4)])


class Painter:
    """Reports what it was given; a function instead of a picture is called."""

    def __init__(self, videos) -> None:
        self.videos = videos
        self.batches = []

    def report(self, batch):
        self.batches.append(batch)
        return self.videos() if callable(self.videos) else self.videos


def index(folder) -> list[dict]:
    """The lines of a folder's index."""
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_films_and_stills_are_written_and_indexed(tmp_path):
    prediction_videos = PredictionVideos(tmp_path / "videos", every=100)
    agent = Painter({"camera/left": FILM, "joints": STILL})
    prediction_videos.report(agent, "batch", 250, 30)
    prediction_videos.close()
    assert agent.batches == ["batch"]
    video, still = (
        tmp_path / "videos" / f"open_loop-{name}"
        for name in ("camera_left-0000000250.gif", "joints-0000000250.png")
    )
    with Image.open(video) as first, Image.open(still) as second:
        assert (first.n_frames, first.size, second.size) == (4, (8, 6), (8, 6))
    assert [
        (line["name"], line["path"], line["env_steps"], line["train_steps"])
        for line in index(tmp_path / "videos")
    ] == [
        ("open_loop/camera/left", video.name, 250, 30),
        ("open_loop/joints", still.name, 250, 30),
    ]


def test_reports_are_due_every_so_many_env_steps_since_the_last_one(tmp_path):
    prediction_videos = PredictionVideos(tmp_path, every=100, done=40)
    assert [prediction_videos.is_due(steps) for steps in (41, 139, 140)] == [False, False, True]
    prediction_videos.report(Painter({}), None, 165, 1)
    assert [prediction_videos.is_due(steps) for steps in (264, 265)] == [False, True]


def test_off_means_that_the_agent_is_never_asked(tmp_path):
    prediction_videos = PredictionVideos(tmp_path, every=0)
    agent = Painter({"x": STILL})
    assert not prediction_videos.is_due(10**9)
    prediction_videos.report(agent, None, 5, 5)
    assert agent.batches == []


def test_an_agent_without_pictures_is_left_alone(tmp_path):
    assert not isinstance(object(), Reporting)
    prediction_videos = PredictionVideos(tmp_path / "videos", every=1)
    prediction_videos.report(object(), None, 1, 1)
    prediction_videos.close()
    assert not (tmp_path / "videos").exists()


def broken():
    raise RuntimeError("no picture today")


@pytest.mark.parametrize(
    ("videos", "message"),
    [(broken, "no picture today"), ({"x": np.zeros(3)}, "could not be written")],
)
def test_a_report_that_fails_is_logged_and_the_next_one_is_drawn(tmp_path, caplog, videos, message):
    prediction_videos = PredictionVideos(tmp_path, every=1)
    with caplog.at_level(logging.WARNING):
        prediction_videos.report(Painter(videos), None, 1, 1)
        if prediction_videos.pending is not None:
            prediction_videos.collect(10.0)
    assert message in caplog.text
    prediction_videos.report(Painter({"x": STILL}), None, 2, 2)
    prediction_videos.close()
    assert [line["env_steps"] for line in index(tmp_path)] == [2]


def test_without_the_package_that_draws_it_says_so_once(tmp_path, caplog, monkeypatch):
    def refuse(*args, **more):
        raise MissingDependencyError("pictures", "pillow", "viz")

    monkeypatch.setattr("worldloom.evaluation.visualize.save_frames", refuse)
    prediction_videos = PredictionVideos(tmp_path, every=1)
    agent = Painter({"x": STILL})
    for steps in (1, 2, 3):
        prediction_videos.report(agent, None, steps, steps)
        prediction_videos.close() if steps == 3 else prediction_videos.collect(10.0)
    assert len(agent.batches) == 1
    assert caplog.text.count("pip install") == 1


def test_nobody_waits_for_a_slow_writer(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(
        "worldloom.evaluation.visualize.save_frames", lambda frames, path, fps: gate.wait(10.0)
    )
    prediction_videos = PredictionVideos(tmp_path, every=1)
    agent = Painter({"x": STILL})
    for steps in (1, 2, 3):
        prediction_videos.report(agent, None, steps, steps)
    assert len(agent.batches) == 1
    gate.set()
    prediction_videos.close()
    assert [line["env_steps"] for line in index(tmp_path)] == [1]


def test_only_the_newest_pictures_of_a_key_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    prediction_videos = PredictionVideos(tmp_path, every=1)
    for steps in (1, 2, 3):
        prediction_videos.report(Painter({"x": STILL, "x-0": STILL}), None, steps, steps)
        prediction_videos.collect(10.0)
    prediction_videos.close()
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        f"open_loop-{key}-000000000{steps}.png" for key in ("x-0", "x") for steps in (2, 3)
    ]
