"""Pictures and videos of a run folder reach the sinks once, and whole."""

import os

from worldloom_dist.metrics import media
from worldloom_dist.metrics.media import MediaWatch


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
