"""``worldloom report``: the page of a run as one file."""

import json
import re

import numpy as np
import pytest

from tests.worldloom_dist.browser import drawn, needs_browser
from tests.worldloom_dist.written_runs import write_run
from worldloom import commands
from worldloom_dist import report
from worldloom_dist.actors.videos import save_videos
from worldloom_dist.report import main, report_html


def state_of(html):
    text = re.search(r'<script id="state" type="application/json">(.*?)</script>', html, re.DOTALL)[
        1
    ]
    return json.loads(text)


def test_the_report_has_everything_inside(tmp_path, capsys):
    folder = write_run(tmp_path / "run", summary={"status": "stopped"})
    (folder / "videos").mkdir()
    for number in range(3):
        (folder / "videos" / f"eval-00000{number}000-0.gif").write_bytes(b"GIF89a")
    assert main([str(folder), "-o", str(tmp_path / "r.html"), "--videos", "2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/r.html\n"
    state = state_of((tmp_path / "r.html").read_text())
    assert state["view"]["status"] == "stopped"
    assert [video["url"] for video in state["videos"]] == ["data:image/gif;base64,R0lGODlh"] * 2
    assert state["videos_left_out"] == 1


def test_a_report_takes_as_many_videos_as_it_is_told(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "videos").mkdir()
    for number in range(12):
        (folder / "videos" / f"eval-{number:09d}-0.gif").write_bytes(b"GIF89a")
    for videos, left_out in ((10, 2), (4, 8), (0, 12), (99, 0)):
        state = state_of(report_html(folder, videos=videos))
        assert len(state["videos"]) == 12 - left_out
        assert state["videos_left_out"] == left_out


def test_a_video_that_is_gone_meanwhile_is_left_out(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "run")
    (folder / "videos").mkdir()
    for number in range(3):
        (folder / "videos" / f"eval-00000{number}000-0.gif").write_bytes(b"GIF89a")
    real = report.read_plain

    def read_plain(path, most):
        if path.name == "eval-000001000-0.gif":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path, most)

    monkeypatch.setattr(report, "read_plain", read_plain)
    assert main([str(folder)]) == 0
    state = state_of((folder / "report.html").read_text())
    assert (len(state["videos"]), state["videos_left_out"]) == (2, 1)


def test_no_text_of_a_run_becomes_code(tmp_path):
    bad = "</script><script>alert(1)</script>"
    folder = write_run(tmp_path / "run", summary={"status": "failed", "error": bad})
    html = report_html(folder)
    assert bad not in html
    assert state_of(html)["view"]["error"] == bad


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/nothing"], "holds no run"),
        (["{tmp}/run", "-o", "{tmp}/no/r.html"], "cannot be written"),
        (["{tmp}/run", "--videos", "-1"], "videos must be"),
        (["{tmp}/damaged"], "cannot be read"),
    ],
)
def test_what_cannot_be_reported_is_one_sentence(tmp_path, capsys, words, message):
    write_run(tmp_path / "run")
    (write_run(tmp_path / "damaged") / "summary.json").write_text("{")
    assert main([word.format(tmp=tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@needs_browser
@pytest.mark.parametrize("case", ["completed", "failed", "empty", "offline"])
def test_a_browser_draws_the_page(tmp_path, case):
    made = {
        "completed": {
            "summary": {"status": "completed"},
            "last": {"workers{state=alive}": 0, "workers{state=starting}": 2},
        },
        "failed": {
            "share": 0.5,
            "summary": {"status": "failed", "error": "TrainingError: it broke"},
        },
        "empty": {"records": 0},
        "offline": {
            "config": {"env": {"env": "none"}, "replay": {"capacity_steps": 9, "load": "data.npz"}}
        },
    }
    page = tmp_path / "page.html"
    page.write_text(report_html(write_run(tmp_path / "a-run", **made[case])))
    text = drawn(page.as_uri(), tmp_path)
    assert ">a-run</h1>" in text
    assert text.count("<svg") >= {"completed": 9, "failed": 9, "empty": 0, "offline": 6}[case]
    expected = {
        "completed": ["evaluation, mean", "learner-bound at 96 %", "None: nothing failed"],
        "failed": ["TrainingError: it broke", "took"],
        "empty": ["No episode has ended yet", "due at 1,000 env steps", "No update yet"],
        "offline": ["10,000 of 10,000 updates", "data.npz, offline"],
    }
    for words in expected[case]:
        assert words in text, words
    assert "2 starting" not in text, "a run that is over has no workers"


@needs_browser
def test_a_pointer_over_a_curve_reads_all_of_them(tmp_path):
    """Every chart has the same place marked; the one below the pointer says its values."""
    html = report_html(write_run(tmp_path / "run", records=100))
    points = """<script>setTimeout(() => {
        const curve = document.querySelector(".chart svg"), box = curve.getBoundingClientRect();
        const place = { clientX: box.left + box.width / 2, clientY: box.top + 40, bubbles: true };
        curve.dispatchEvent(new MouseEvent("mousemove", place));
    }, 300)</script></body>"""
    page = tmp_path / "page.html"
    page.write_text(html.replace("</body>", points))
    tips = re.findall(
        r'<div class="tip number"([^>]*)>(.*?)</div></div></div>', drawn(page.as_uri(), tmp_path)
    )
    shown = [text for attributes, text in tips if "hidden" not in attributes]
    assert len(shown) == 1
    assert len(tips) > 5
    assert "env steps" in shown[0]
    assert "training" in shown[0]
    assert "evaluation, mean" in shown[0]


def test_a_link_among_the_videos_shows_no_file_of_ones_own(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "videos").mkdir()
    (tmp_path / "secret.gif").write_bytes(b"my own")
    (folder / "videos" / "eval-000009000-0.gif").symlink_to(tmp_path / "secret.gif")
    (folder / "videos" / "eval-000001000-0.gif").write_bytes(b"GIF89a")
    state = state_of(report_html(folder))
    assert [video["file"] for video in state["videos"]] == ["eval-000001000-0.gif"]
    assert state["videos_left_out"] == 0


@pytest.mark.parametrize(
    ("command", "name"),
    [("report", "report.html"), ("plot", "plot.png"), ("export", "policy")],
)
def test_a_link_in_a_run_leads_no_command_to_a_file_of_ones_own(command, name, tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    mine = tmp_path / "mine"
    mine.write_text("my own")
    (folder / name).symlink_to(mine)
    assert commands.main([command, str(folder)]) == 2
    assert f"{name} is a link, perhaps to a file of yours" in capsys.readouterr().err
    assert mine.read_text() == "my own"


def test_no_video_is_written_over_a_file_that_a_link_leads_to(tmp_path):
    mine = tmp_path / "mine.mp4"
    mine.write_text("my own")
    for ending in ("mp4", "gif"):
        (tmp_path / f"best-0.{ending}").symlink_to(mine)
    saved = save_videos([np.zeros((2, 16, 16, 3), np.uint8)], tmp_path, "best")
    assert saved.paths == ()
    assert "is a link" in saved.problems[0]
    assert mine.read_text() == "my own"
