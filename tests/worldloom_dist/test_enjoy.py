"""Watching a run's agent: in a window where there is one, else as videos."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist import enjoy
from worldloom_dist.evaluate import load_policy
from worldloom_dist.launch import main as launch
from worldloom_dist.replay.__main__ import main as replay


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pixels"
    words = (
        "--preset debug --runtime local --metrics-port 0 --env toy:pixel --env.time-limit 6 "
        "--agent dreamerv3:ci --agent.batch-size 2 --agent.batch-length 4 --train-ratio 1 "
        "--agent.report-length 4 --env-steps 60 --eval-episodes 0 --run-dir"
    )
    assert launch([*words.split(), str(folder)]) == 0
    return folder


def test_without_a_screen_it_writes_videos(run, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    assert enjoy.main([str(run), "--episodes", "2"]) == 0
    shown = capsys.readouterr()
    assert f"there is no screen: writing 2 videos to {run}/videos" in shown.err
    lines = shown.out.splitlines()
    assert len(lines) == 3
    assert all((run / "videos").samefile(line.rpartition("/")[0]) for line in lines[:2])
    assert lines[2].startswith("returns: ")


def test_every_picture_of_every_episode_is_shown_until_the_window_is_closed(run):
    pictures = []

    titles = []

    def show(picture, title):
        pictures.append(picture)
        titles.append(title)
        return len(pictures) < 12

    assert len(enjoy.play(run, show, episodes=1)) == 1
    assert [title.partition(", return")[0] for title in titles] == [
        f"episode 1, step {step}" for step in range(6)
    ]
    assert len(pictures) == 6, "the picture after the last action is the next episode's"
    assert all(p.dtype == np.uint8 and p.shape == (64, 64, 3) for p in pictures)
    enjoy.play(run, show, episodes=99)
    assert len(pictures) == 12


def test_a_window_shows_pictures_and_is_closed(run, capsys, monkeypatch):
    drawn = []
    surface = types.SimpleNamespace(blit=lambda *a: drawn.append(a), get_size=lambda: (512, 512))
    display = types.SimpleNamespace(
        init=lambda: None,
        set_mode=lambda size: surface,
        set_caption=lambda text: None,
        flip=lambda: None,
        quit=lambda: drawn.append("closed"),
        get_driver=lambda: "x11",
    )
    window = types.ModuleType("pygame")
    window.__spec__ = types.SimpleNamespace()
    window.display = display
    window.time = types.SimpleNamespace(Clock=lambda: types.SimpleNamespace(tick=lambda fps: None))
    window.event = types.SimpleNamespace(get=list)
    window.surfarray = types.SimpleNamespace(make_surface=lambda array: array)
    window.transform = types.SimpleNamespace(scale=lambda array, size: array)
    monkeypatch.setitem(sys.modules, "pygame", window)
    monkeypatch.setenv("DISPLAY", ":0")
    assert enjoy.main([str(run), "--episodes", "1"]) == 0
    assert drawn[-1] == "closed"
    assert len(drawn) == 7
    assert capsys.readouterr().out.startswith("returns: ")


@pytest.mark.parametrize("does_raise", [False, True])
def test_a_screen_that_is_no_more_gives_videos(run, capsys, monkeypatch, does_raise):
    class PygameError(RuntimeError):
        """As pygame's own."""

    def init():
        if does_raise:
            raise PygameError("x11 not available")

    window = types.ModuleType("pygame")
    window.__spec__ = types.SimpleNamespace()
    window.error = PygameError
    window.display = types.SimpleNamespace(
        init=init, quit=lambda: None, get_driver=lambda: "offscreen"
    )
    monkeypatch.setitem(sys.modules, "pygame", window)
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    monkeypatch.setenv("DISPLAY", ":97")
    assert enjoy.main([str(run), "--episodes", "1"]) == 0
    shown = capsys.readouterr()
    why = "x11 not available" if does_raise else "there is no screen"
    assert f"no window can be opened ({why}" in shown.err
    assert f"writing video to {run}/videos" in shown.err


def test_mistakes_are_one_sentence(run, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    assert enjoy.main([str(run), "--episodes", "0"]) == 2
    assert enjoy.main([str(run), "--checkpoint", "bst"]) == 2
    assert enjoy.main([str(run / "no"), "--video"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 3


def test_a_real_window_is_opened_and_closed(run, capsys, monkeypatch):
    pytest.importorskip("pygame", reason="needs pygame: pip install 'worldloom-dist[classic]'")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(enjoy, "WINDOW_FRAMES_PER_S", 1000)
    assert enjoy.main([str(run), "--episodes", "1"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("returns: ")
    assert "writing" not in shown.err


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline")
    recorded = ["--env", "toy:pixel", "--env.time-limit", "5", "--agent", "dreamerv3:ci"]
    words = "--agent.batch-size 2 --agent.batch-length 4 --agent.report-length 4 --preset debug"
    before = torch.get_num_threads()
    launch(
        [
            *words.split(),
            *recorded,
            "--runtime",
            "local",
            "--metrics-port",
            "0",
            "--env-steps",
            "40",
            "--eval-episodes",
            "0",
            "--run-dir",
            str(folder / "run"),
        ]
    )
    replay(["export", str(folder / "run"), str(folder / "data.npz")])
    launch(
        [
            *words.split(),
            "--agent",
            "dreamerv3:ci",
            "--runtime",
            "local",
            "--metrics-port",
            "0",
            "--env",
            "none",
            "--replay.load",
            str(folder / "data.npz"),
            "--train-steps",
            "2",
            "--run-dir",
            str(folder / "offline"),
        ]
    )
    torch.set_num_threads(before)
    return folder / "offline"


def test_an_agent_of_files_plays_where_they_were_recorded(offline):
    pictures = []

    def show(picture, title):
        pictures.append(picture)
        return True

    assert len(enjoy.play(offline, show, episodes=1)) == 1
    assert len(pictures) == 5
    assert load_policy(offline)[0].env == "toy:pixel"


def test_an_agent_of_files_plays_where_it_is_told_to(offline, capsys):
    assert enjoy.main([str(offline), "--video", "--episodes", "1", "--env", "toy:pixel"]) == 0
    assert "returns: " in capsys.readouterr().out
    assert load_policy(offline, env="toy:pixel")[0].env == "toy:pixel"


def test_who_was_trained_in_an_env_plays_there(run, capsys):
    assert enjoy.main([str(run), "--video", "--env", "toy:point"]) == 2
    assert "was trained in toy:pixel, and plays there; leave --env out" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="leave --env out"):
        load_policy(run, env="toy:point")


def test_files_that_name_no_env_need_one_with_a_screen_too(offline, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(offline, folder)
    config = json.loads((folder / "config.json").read_text())
    config["env"]["name"] = "none"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="say where to play with --env SPEC"):
        enjoy.play(folder, lambda picture, title: True)
