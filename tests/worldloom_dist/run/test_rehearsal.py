"""What ``check_env`` promises is what a run keeps: every env that it calls good trains, every other
one gets a sentence.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.worldloom.envs import odd_envs
from tests.worldloom_dist.local_runs import start
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.exceptions import WorldLoomError
from worldloom_dist.check_env import main


@pytest.fixture(autouse=True)
def _odd_envs_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(odd_envs.__file__).parent))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def spelled(name: str) -> str:
    return f"odd_envs:{name.replace('-', '_')}"


def agent_of(name: str) -> str:
    return "dreamerv3:ci" if name in odd_envs.DISCRETE else "tdmpc2:ci"


def outcome_of_run(folder: Path, name: str) -> str:
    """``completed``, or the one sentence that a run ends with."""
    words = [
        *TINY[agent_of(name)],
        "--env",
        spelled(name),
        "--env-steps",
        "40",
        "--actors.max-env-failures",
        "1",
    ]
    try:
        return start(folder, *words).run()
    except WorldLoomError as error:
        return str(error)


def outcome_of_check(name: str, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit status, and what was printed."""
    status = main([spelled(name), "--steps", "48", *words])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


QUICK = (
    "plain",
    "reward-array",
    "ends-int",
    "odd-attributes",
    "unclosable",
    "in-place",
    "obs-list",
    "obs-one-class",
    "obs-stacked",
    "obs-float-image",
    "act-scalar",
    "act-int64",
    "act-far-bounds",
    "act-half-open",
    "act-one-class",
    "act-start",
)
"""What runs in every test run; ``test_env_matrix`` takes the other spellings together."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in odd_envs.GOOD],
)
def test_env_that_is_good_to_train_on_trains(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = outcome_of_check(name, capsys)
    assert status == 0, report
    assert f"rehearsed with       {agent_of(name)}" in report
    assert outcome_of_run(tmp_path / "run", name) == "completed"


@pytest.mark.parametrize("name", odd_envs.REFUSED)
def test_env_that_cannot_be_trained_on_is_refused_before_a_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = odd_envs.REFUSED[name][1]
    status, report = outcome_of_check(name, capsys)
    assert status == 2
    assert report.count("\n") == 1
    assert sentence in report
    assert sentence in outcome_of_run(tmp_path / "run", name)


@pytest.mark.parametrize("name", odd_envs.BROKEN)
def test_env_that_breaks_its_contract_fails_the_check_and_the_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sentence = odd_envs.BROKEN[name][1]
    status, report = outcome_of_check(name, capsys)
    assert status == 1
    (finding,) = [line for line in report.splitlines() if "ERROR" in line]
    assert sentence in finding
    with caplog.at_level(logging.CRITICAL):
        said = outcome_of_run(tmp_path / "run", name)
    assert sentence in said
    assert "\n" not in said


def test_vector_envs_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    status, report = outcome_of_check("cartpoles", capsys)
    assert status == 0, report
    words = [
        *TINY["dreamerv3:ci"],
        "--env",
        "odd_envs:cartpoles",
        "--envs-per-worker",
        "4",
        "--env-steps",
        "60",
    ]
    assert start(tmp_path / "good", *words).run() == "completed"
    status, report = outcome_of_check("Lying", capsys)
    assert (
        status,
        "says that its autoreset mode is NEXT_STEP, and gives infos['final_obs']" in report,
    ) == (1, True)
    with caplog.at_level(logging.CRITICAL):
        assert "says that its autoreset mode is NEXT_STEP" in outcome_of_run(
            tmp_path / "bad", "Lying"
        )


def test_episodes_that_no_window_fits_into_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    status, report = outcome_of_check("one-step", capsys)
    assert status == 1
    assert (
        "tdmpc2:ci learns from windows of 4 rows inside one episode, and the longest of" in report
    )
    assert "episodes has 2, so it would learn nothing" in report
    assert outcome_of_check("one-step", capsys, "--steps", "3")[0] == 1, "however short the check"
    assert outcome_of_check("one-step", capsys, "--agent", "dreamerv3:ci", "--steps", "200")[0] == 0


def test_agent_that_cannot_act_in_the_env_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    status, report = outcome_of_check("act-start", capsys, "--agent", "tdmpc2:ci")
    assert status == 1
    assert "plans in continuous action spaces only" in report
    status, report = outcome_of_check("plain", capsys, "--agent", "tdmpc3:ci")
    assert (status, report.count("\n")) == (2, 1)


def test_evaluation_that_does_not_end_and_its_film_are_facts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "as the evaluator     an episode of 20 decisions" in outcome_of_check("plain", capsys)[1]
    _, report = outcome_of_check("obs-image", capsys)
    assert "video                21 frames of 204 x 160" in report, "enlarged, with a caption"
    _, report = outcome_of_check("endless", capsys)
    assert "as the evaluator" not in report
    assert "no episode ended in 48 decisions" in report
