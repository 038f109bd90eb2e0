"""Pictures and videos of a run folder reach the sinks once, and whole."""

import os

import pytest

from worldloom_dist.metrics import media
from worldloom_dist.metrics.media import MediaWatch, subject_of


def test_pictures_are_found_once_and_only_when_they_are_whole(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(media.time, "monotonic", lambda: now[0])
    folder = tmp_path / "videos"
    watch = MediaWatch(folder)
    assert watch.fresh() == []
    folder.mkdir()
    for number, name in enumerate(
        ("old.gif", "open_loop-image-0000012000.mp4", "growing.png", "notes.txt")
    ):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (number * 1e9,) * 2)  # whatever a clock says
    assert watch.fresh() == []
    now[0] += 3.0
    (folder / "growing.png").write_bytes(b"xx")
    assert [(m.name, m.path.suffix, m.env_steps) for m in watch.fresh()] == [
        ("old", ".gif", None),
        ("open_loop-image", ".mp4", 12000),
    ]
    assert watch.fresh() == []
    assert [m.name for m in watch.fresh(unchanged_s=0.0)] == ["growing"], (
        "at the end of a run nothing grows any more"
    )
    assert MediaWatch(folder).fresh() == [], "a resumed run does not show old pictures again"


@pytest.mark.parametrize(
    ("stem", "name", "env_steps"),
    [
        ("eval-000002000-0", "eval", 2000),
        ("eval-000004000-0", "eval", 4000),
        ("eval-000002000-1", "eval-1", 2000),
        ("open_loop-image-0000012000", "open_loop-image", 12000),
        ("open_loop-front-cam-0000012000", "open_loop-front-cam", 12000),
        ("000012000-0", "000012000-0", None),
        ("best-0", "best-0", None),
        ("my-dog-3", "my-dog-3", None),
        ("eval-2000", "eval-2000", None),
    ],
)
def test_videos_of_one_curve_have_one_name_and_their_env_steps(stem, name, env_steps):
    subject = subject_of(stem)
    assert (subject.name, subject.env_steps) == (name, env_steps)


def test_a_video_that_is_still_written_is_no_video(tmp_path):
    watch = MediaWatch(tmp_path)
    (tmp_path / "eval-000002000-0.half.mp4").write_bytes(b"x")
    (tmp_path / "eval-000002000-0.mp4").write_bytes(b"x")
    assert [(m.name, m.env_steps) for m in watch.fresh(0.0)] == [("eval", 2000)]
