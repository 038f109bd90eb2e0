"""``python -m worldloom_dist.evaluate``: what it prints, and wrong input."""

import json
from pathlib import Path

import pytest
import torch

from tests.worldloom_dist.small_runs import start
from worldloom.envs.toy import PointEnv
from worldloom_dist import evaluate as module
from worldloom_dist.actors.videos import VideoReport
from worldloom_dist.evaluate import main


class PrintingEnv(PointEnv):
    def step(self, action):
        print("from the env")
        return super().step(action)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("evaluate") / "run"
    before = torch.get_num_threads()
    assert (
        start(folder, "--env", f"{__name__}:PrintingEnv", "--env-steps", "60").run() == "completed"
    )
    torch.set_num_threads(before)
    return folder


def test_json_is_not_disturbed_by_an_env_that_prints(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--episodes", "2"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["episodes"] == 2
    assert "from the env" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--episodes", "0"], "episodes must be None or an integer >= 1, got 0"),
        (["--videos", "-1"], "videos must be an integer >= 0, got -1"),
        (["--checkpoint", "nope"], "checkpoint must be one of newest, best, step-"),
        (["--checkpoint", "../.."], "checkpoint must be one of newest, best, step-"),
        (["--max-steps", "0"], "max_steps must be None or an integer >= 1, got 0"),
        (["--timeout", "nan"], "timeout_s must be None or a finite number > 0, got nan"),
        (["--device", "foo"], "device must be cpu, cuda or cuda:N, got 'foo'"),
        (["--device", "cuda:x"], "device must be cpu, cuda or cuda:N, got 'cuda:x'"),
        (["--device", "cuda:99"], "device: 'cuda:99' is not available on this machine"),
    ],
)
def test_wrong_input_gives_status_2_and_one_sentence(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_env_that_cannot_be_built_any_more_is_wrong_input(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: PrintingEnv) -> None:
        raise RuntimeError("the licence has ended")

    monkeypatch.setattr(PrintingEnv, "__init__", fail)
    assert main([str(run)]) == 2
    assert "cannot be built: RuntimeError: the licence has ended" in capsys.readouterr().err


def test_ctrl_c_leaves_an_evaluation_at_once_with_one_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(self: PrintingEnv, action: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PrintingEnv, "step", step)
    assert main([str(run)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("stopped: the evaluation was left at once")
    assert captured.out == ""


def test_evaluation_that_takes_too_long_ends_with_status_1(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--timeout", "1e-6"]) == 1
    assert "error: the evaluation took longer than 1e-06 s" in capsys.readouterr().err


def test_films_that_cannot_be_made_are_an_error(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "check_draws", lambda *_: None)
    monkeypatch.setattr(
        module, "save_videos", lambda *_: VideoReport((), ("the env draws nothing",))
    )
    assert main([str(run), "--videos", "2"]) == 1
    assert (
        "error: none of 2 videos could be made (the env draws nothing)" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("problem", "remedy"),
    [
        ("pygame is not installed", "pip install 'worldloom-dist[classic]', or leave --videos out"),
        ("it renders nothing", "leave --videos out"),
    ],
)
def test_a_video_that_is_missing_is_no_success_and_names_what_to_install(
    run, capsys, monkeypatch, tmp_path, problem, remedy
):
    monkeypatch.setattr(module, "check_draws", lambda *_: None)
    for made, says in (((), "none of 2"), ((tmp_path / "a.gif",), "only 1 of 2")):
        monkeypatch.setattr(
            module, "save_videos", lambda *_, made=made: VideoReport(made, (problem,))
        )
        assert main([str(run), "--videos", "2"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error == f"error: {says} videos could be made ({problem}); {remedy}"


def test_an_env_that_cannot_be_drawn_is_refused_before_an_episode_is_played(
    run, capsys, monkeypatch
):
    monkeypatch.setattr(module, "build_evaluator", lambda *_, **__: None)
    assert main([str(run), "--videos", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: none of 1 videos could be made (env ")
    assert error.endswith("leave --videos out")
