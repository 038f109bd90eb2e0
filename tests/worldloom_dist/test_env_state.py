"""Only the documented names save and restore an env; every other env begins new episodes where a
run goes on.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worldloom.envs import odd_envs
from tests.worldloom_dist.local_runs import assert_equal_trees, newest_state
from tests.worldloom_dist.small_runs import start
from worldloom.envs.toy import PointEnv


@pytest.fixture(autouse=True)
def _odd_envs_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(odd_envs.__file__).parent))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["Helper", "PerAgent", "MuJoCoLike"])
def test_methods_that_an_env_has_for_itself_are_left_alone(name: str, tmp_path: Path) -> None:
    words = ["--env", f"odd_envs:{name}"]
    assert start(tmp_path, *words, "--env-steps", "80").run() == "completed"
    assert newest_state(tmp_path)["workers"][0]["env"] is None
    resumed = start(tmp_path, *words, "--env-steps", "140")
    assert resumed.run() == "completed"
    assert resumed.report.env_steps >= 140


def test_env_with_the_documented_names_goes_on_exactly(tmp_path: Path) -> None:
    words = ["--env", "odd_envs:Resumable"]
    assert start(tmp_path / "whole", *words, "--env-steps", "180").run() == "completed"
    assert start(tmp_path / "parts", *words, "--env-steps", "120").run() == "completed"
    assert start(tmp_path / "parts", *words, "--env-steps", "180").run() == "completed"
    whole = newest_state(tmp_path / "whole")
    parts = newest_state(tmp_path / "parts")
    assert set(whole["workers"][0]["env"][0]["adapter"]["env"]) == {"t", "rng"}
    assert_equal_trees(whole["learner"], parts["learner"])
    assert_equal_trees(whole["workers"], parts["workers"])


def test_checkpoint_of_an_env_that_cannot_be_restored_any_more_is_resumed_with_new_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--env", "toy:point"]
    assert start(tmp_path, *words, "--env-steps", "80").run() == "completed"
    assert newest_state(tmp_path)["workers"][0]["env"] is not None

    def refuse(self: PointEnv, state: Any) -> None:
        raise TypeError("set_state() missing 1 required positional argument: 'qvel'")

    monkeypatch.setattr(PointEnv, "worldloom_set_state", refuse)
    resumed = start(tmp_path, *words, "--env-steps", "140")
    with caplog.at_level(logging.WARNING):
        assert resumed.run() == "completed"
    assert "worker-0 begins new episodes, because its envs do not go on: TypeError" in caplog.text
    counters = resumed.runtime.replay.row_counters()
    counters.check()
    assert counters.agent_steps >= 140


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Unsavable", "worldloom_get_state raised RuntimeError: the simulator"),
        ("StateOfBytes", "is a bytes, which cannot be stored without pickle"),
        ("StateOfTexts", "is an array of <U5, which cannot be stored"),
    ],
)
def test_env_whose_state_cannot_be_saved_begins_new_episodes_and_costs_no_checkpoint(
    name: str, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--env", f"odd_envs:{name}"]
    with caplog.at_level(logging.WARNING):
        assert start(tmp_path, *words, "--env-steps", "150").run() == "completed"
    told = [line for line in caplog.messages if "cannot be saved" in line]
    assert len(told) == 1, "once, however many checkpoints"
    assert why in told[0]
    assert newest_state(tmp_path)["workers"][0]["env"] is None
    assert start(tmp_path, *words, "--env-steps", "200").run() == "completed"
