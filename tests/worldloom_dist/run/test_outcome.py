"""What is refused because it could not train, and what keeps a run from being called completed."""

import dataclasses
import json
import re
import signal
import threading

import pytest
import torch

from tests.worldloom_dist.local_runs import write_pendulum_rows
from tests.worldloom_dist.small_runs import start
from worldloom.core.exceptions import ConfigurationError, TrainingError
from worldloom.envs.faults import FailureTracker
from worldloom.envs.toy import CountingEnv, PointEnv
from worldloom_dist.actors.evaluation import EvaluationStoppedError
from worldloom_dist.actors.videos import VideoReport
from worldloom_dist.launch import main
from worldloom_dist.lockstep import evaluator as module
from worldloom_dist.run.cli import parse
from worldloom_dist.run.outcome import (
    check_episodes,
    check_files_loaded,
    check_trains,
    check_windows,
    is_as_asked,
    shortfall,
)
from worldloom_dist.run.plan import resolve

RESULT = {"env_steps": 400, "return_mean": 1.0}
EVALUATED = ["--eval-episodes", "2", "--eval-every", "0", "--env-steps", "60"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def plan_of(*words):
    return resolve(parse(["--preset", "debug", "--runtime", "local", *words]))


class OneStepEnv(PointEnv):
    episode_limit = None

    def step(self, action):
        obs, reward, _, _, info = super().step(action)
        return obs, reward, True, False, info


class EndlessEnv(PointEnv):
    episode_limit = None

    def step(self, action):
        obs, reward, _, _, info = super().step(action)
        return obs, reward, False, False, info


class FailingEnv(PointEnv):
    def step(self, action):
        if self._step >= 4:
            raise KeyError("motor")
        return super().step(action)


class ShortEnv(CountingEnv):
    episode_limit = 2


def summary_of(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    ("words", "least"),
    [
        (["--env-steps", "100"], 104),
        (["--env-steps", "1", "--env.action-repeat", "2"], 208),
        (["--env-steps", "100", "--agent.pretrain-updates", "0"], 104),
    ],
)
def test_run_that_would_end_before_its_first_update_is_refused_with_the_number_that_is_enough(
    words, least
):
    with pytest.raises(
        ConfigurationError,
        match=rf"env_steps must be >= {least},.*got {words[1]}.*--env-steps {least} or more",
    ):
        check_trains(plan_of(*words))
    check_trains(plan_of(*words, "--env-steps", str(least)))


def test_the_launch_refuses_it_and_writes_nothing(tmp_path, capsys):
    words = [
        "--preset",
        "debug",
        "--runtime",
        "local",
        "--env-steps",
        "50",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: env_steps must be >= 104")
    assert not (tmp_path / "run").exists()


def test_windows_longer_than_any_episode_are_refused_where_the_env_says_its_limit():
    with pytest.raises(
        ConfigurationError,
        match=r"windows of 4 rows, and an episode of .*:ShortEnv has at most 3.*--agent.horizon",
    ):
        check_trains(plan_of("--env", f"{__name__}:ShortEnv"))
    check_trains(plan_of("--env", f"{__name__}:ShortEnv", "--agent.horizon", "2"))


def test_no_window_is_waited_for_only_so_long():
    plan = plan_of("--env", "toy:counting", "--env-steps", "100000", "--workers", "2")
    check_windows(plan, 1099, 0)
    check_windows(plan, 1100, 1)
    with pytest.raises(
        TrainingError, match="no episode in 1100 agent steps filled a window of 4 rows"
    ):
        check_windows(plan, 1100, 0)
    many = dataclasses.replace(plan, config=dataclasses.replace(plan.config, workers=64))
    check_windows(many, 5000, 0)  # the rows are spread over many envs


def test_files_that_were_left_out_are_not_waited_for_while_nothing_acts(tmp_path):
    rows = write_pendulum_rows(tmp_path / "rows.npz")
    load = ["--replay.load", rows]
    bad = {"rows.npz": "rows.npz: column 'obs' holds a number that is not finite"}
    refused = pytest.raises(TrainingError, match=r"trained without rows.npz, .* \(rows.npz: column")
    first = plan_of("--env", "gym:Pendulum-v1", *load, "--offline-steps", "30")
    for plan in (first, plan_of("--env", "none", *load, "--train-steps", "9")):
        with refused:
            check_files_loaded(plan, 0, 0, bad)
        check_files_loaded(plan, 0, 0, {})
        check_files_loaded(plan, 0, 1, bad)
    check_files_loaded(first, 30, 0, bad)  # the env makes rows by now
    check_files_loaded(plan_of("--env", "gym:Pendulum-v1", *load), 0, 0, bad)


def test_every_thing_that_was_asked_for_and_not_done_is_named():
    plan = plan_of("--eval-videos", "1")
    assert shortfall(plan, 9, {**RESULT, "videos": ["eval-0.gif"]}) is None
    assert "made no update" in shortfall(plan, 0, RESULT)
    assert "could not be evaluated (no env is left)" in shortfall(plan, 9, None, "no env is left")
    assert "no video" in shortfall(plan, 9, {**RESULT, "videos": []})
    assert shortfall(plan_of("--eval-episodes", "0"), 9, None) is None


@pytest.mark.parametrize(
    ("evaluation", "is_one"),
    [
        ({"episodes": 2, "lengths": [40, 40]}, True),
        ({"episodes": 3, "lengths": [40, 40, 40]}, False),
        ({"episodes": 2, "lengths": [40, 51]}, False),
        ({"episodes": 2, "lengths": [7, 7], "cut_episodes": 2}, False),
        ({"episodes": 2, "lengths": [50, 7], "cut_episodes": 1}, True),
    ],
)
def test_evaluation_of_other_episodes_than_asked_for_is_not_the_one(evaluation, is_one):
    asked = ("--eval-episodes", "2", "--eval-max-steps", "50")
    assert is_as_asked(plan_of(*asked), evaluation) is is_one
    filmed = plan_of(*asked, "--eval-videos", "1")
    assert not is_as_asked(filmed, evaluation)
    assert is_as_asked(filmed, {**evaluation, "videos": ["a.gif"]}) is is_one
    tried = {**evaluation, "videos": [], "video_problems": ["it draws nothing"]}
    assert is_as_asked(filmed, tried) is is_one


def test_resumed_run_that_asks_for_other_episodes_evaluates_again(tmp_path):
    folder = tmp_path / "run"
    assert start(folder, *EVALUATED, "--eval-every", "60").run() == "completed"
    assert start(folder, *EVALUATED, "--eval-episodes", "3").run() == "completed"
    assert summary_of(folder)["eval"]["episodes"] == 3
    words = [*EVALUATED, "--eval-episodes", "3", "--eval-max-steps", "5"]
    assert start(folder, *words).run() == "completed"
    assert summary_of(folder)["eval"]["lengths"] == [5, 5, 5]


def test_episodes_that_are_too_short_end_a_run_with_one_sentence(tmp_path):
    run = start(tmp_path / "run", "--env", f"{__name__}:OneStepEnv", "--env-steps", "90")
    with pytest.raises(
        TrainingError, match=r"no episode in 9. agent steps filled a window of 4 rows"
    ):
        run.run()
    assert summary_of(tmp_path / "run")["status"] == "failed"


def test_endless_episodes_are_cut_counted_and_said(tmp_path, caplog):
    words = ["--env", f"{__name__}:EndlessEnv", *EVALUATED, "--eval-max-steps", "7"]
    assert start(tmp_path / "run", *words).run() == "completed"
    found = summary_of(tmp_path / "run")["eval"]
    assert (found["lengths"], found["cut_episodes"]) == ([7, 7], 2)
    assert "2 of 2 episodes had no end within 7 decisions and were cut there" in caplog.text


def test_evaluation_that_takes_too_long_fails_the_run_and_keeps_its_checkpoint(tmp_path):
    run = start(
        tmp_path / "run", "--env", f"{__name__}:EndlessEnv", *EVALUATED, "--eval-timeout-s", "0.05"
    )
    with pytest.raises(EvaluationStoppedError, match=r"longer than 0.05 s: 0 of 2 episodes"):
        run.run()
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["train_steps"] > 0) == ("failed", True)


def test_first_ctrl_c_leaves_an_evaluation_out_and_the_run_says_stopped(tmp_path):
    words = ["--env", f"{__name__}:EndlessEnv", *EVALUATED]
    run = start(tmp_path / "run", *words)
    before = signal.getsignal(signal.SIGINT)
    run.stop.listen()
    evaluate = run.runtime.evaluator.begin

    def interrupted(env_steps, *, is_last):
        threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
        return evaluate(env_steps, is_last=is_last)

    run.runtime.evaluator.begin = interrupted
    try:
        assert run.run() == "stopped"
    finally:
        signal.signal(signal.SIGINT, before)
    assert summary_of(tmp_path / "run")["eval"] is None
    assert start(tmp_path / "run", *words, "--eval-max-steps", "5").run() == "completed"
    assert summary_of(tmp_path / "run")["eval"]["lengths"] == [5, 5]


def test_run_that_is_stopped_while_it_owes_updates_is_not_completed(tmp_path):
    # all updates come at once, after the last step
    words = ["--env-steps", "60", "--agent.prefill-agent-steps", "60"]
    run = start(tmp_path / "run", *words)
    train = run.runtime.learner.train

    def train_and_stop(batch):
        train(batch)
        run.stop.set("Ctrl-C")

    run.runtime.learner.train = train_and_stop
    assert run.run() == "stopped"
    assert summary_of(tmp_path / "run")["train_steps"] == 1
    steps = summary_of(tmp_path / "run")["env_steps"]
    resumed = start(tmp_path / "run", *words)
    assert resumed.run() == "completed"
    summary = summary_of(tmp_path / "run")
    due = resumed.runtime.replay.coordinator.limiter.updates_due(steps)
    assert (summary["train_steps"], summary["env_steps"]) == (due, steps), (
        "what is owed is paid, and no step more is made"
    )


def test_run_without_the_film_that_was_asked_for_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "save_videos", lambda *_: VideoReport((), ("the env draws nothing",))
    )
    run = start(tmp_path / "run", *EVALUATED, "--eval-videos", "1")
    with pytest.raises(
        TrainingError,
        match=r"no video of the last evaluation could be made \(the env draws nothing\)",
    ):
        run.run()
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "failed"
    assert summary["error"].startswith("TrainingError: no video")
    assert summary["eval"]["videos"] == []
    assert summary["eval"]["video_problems"] == ["the env draws nothing"]


@pytest.mark.parametrize(
    ("agent", "flags"),
    [
        ("tdmpc2:ci", ["--agent.prefill-agent-steps"]),
        ("dreamerv3:ci", ["--agent.batch-size", "--agent.batch-length"]),
    ],
)
def test_a_run_that_would_end_before_its_first_update_names_flags_of_its_agent(agent, flags):
    config = parse(["--agent", agent, "--env", "toy:point", "--env-steps", "20"])
    with pytest.raises(ConfigurationError, match="before its first update") as raised:
        check_trains(resolve(config))
    named = re.findall(r"--agent\.[a-z-]+", str(raised.value))
    assert named == flags
    for flag in named:
        parse(["--agent", agent, flag, "8"])


def test_a_run_ends_whose_env_breaks_off_every_episode():
    plan = plan_of("--env", "toy:point", "--workers", "2")
    for broken, ended, steps in [(19, 19, 500), (25, 26, 500), (20, 20, 20_001), (0, 0, 0)]:
        check_episodes(plan, steps, broken, ended)
    with pytest.raises(
        TrainingError,
        match=r"all of the first 20 episodes were broken off .* worldloom check-env toy:point",
    ):
        check_episodes(plan, 500, 20, 20)
    many = dataclasses.replace(plan, config=dataclasses.replace(plan.config, workers=64))
    check_episodes(many, 500, 191, 191)  # the first ones of many envs


def test_a_run_whose_env_always_fails_says_so_and_where(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(FailureTracker, "wait_s", lambda *_: 0.0)
    words = ["--env", f"{__name__}:FailingEnv", "--env-steps", "4000", "--eval-episodes", "0"]
    said = caplog.at_level("WARNING", "worldloom.envs.faults")
    with said, pytest.raises(TrainingError, match="were broken off by their"):
        start(tmp_path / "run", *words, "--actors.max-env-failures", "1000").run()
    assert "KeyError: 'motor'" in caplog.text
    assert f"{__file__}:" in caplog.text
    assert '"status": "failed"' in (tmp_path / "run" / "summary.json").read_text()
