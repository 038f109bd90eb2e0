"""Evaluations of a run say how good its model is on their episodes."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.worldloom_dist.small_runs import start
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.evaluation.trust import Probes
from worldloom_dist.evaluate import evaluate, find_checkpoint
from worldloom_dist.metrics.evaluation import eval_metrics, eval_warnings
from worldloom_dist.page.state import RunState
from worldloom_dist.run import model_check as module
from worldloom_dist.run.builders import build_evaluator, build_store, restore_agent
from worldloom_dist.run.cli import parse
from worldloom_dist.run.model_check import check_checkpoint, check_model
from worldloom_dist.run.plan import resolve

WORDS = ["--env", "toy:point", "--env-steps", "80", "--eval-episodes", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model") / "run"
    assert start(folder, *WORDS).run() == "completed"
    return folder


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_an_evaluation_says_it_and_evaluate_says_the_same(run: Path) -> None:
    model = summary(run)["eval"]["model"]
    assert model["windows"] >= 2
    assert set(model["error"]) == {"latent", "reward"}, "TD-MPC2 decodes nothing"
    assert list(model["error"]["latent"]) == ["1", "2", "4", "8", "15"]
    assert 0 < model["action_coverage"] <= 1
    assert evaluate(run)["model"] == model


def test_the_newest_checkpoint_says_the_same_and_names_its_updates(run: Path) -> None:
    plan = resolve(parse(["--resume", str(run)]))
    probes = probes_of(run)
    found = check_checkpoint(plan, run, probes)["model"]
    assert found["train_steps"] == summary(run)["train_steps"]
    assert {k: v for k, v in found.items() if k != "train_steps"} == summary(run)["eval"]["model"]


def test_it_is_on_the_page_and_a_metric_of_the_run(run: Path) -> None:
    state = RunState(run).read()
    assert state["evaluations"][-1]["model"] == summary(run)["eval"]["model"]
    values = eval_metrics(summary(run)["eval"])
    error = summary(run)["eval"]["model"]["error"]["reward"]["4"]
    assert values["model_error{of=reward,horizon=4}"].value == error
    assert "model_value_bias" in values
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    newest = next(record for record in reversed(records) if record["kind"] == "eval")
    assert newest["model"] == summary(run)["eval"]["model"]


def test_a_run_may_leave_it_out(tmp_path: Path) -> None:
    assert start(tmp_path / "run", *WORDS, "--eval-model", "False").run() == "completed"
    assert "model" not in summary(tmp_path / "run")["eval"]


def test_a_model_that_fails_harms_no_evaluation(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def predict_ahead(self, batch: Any, warm_up: int) -> Any:
            raise ValueError("no idea")

    plan = resolve(parse(["--resume", str(run)]))
    probes = probes_of(run)
    with caplog.at_level(logging.WARNING):
        assert check_model(plan, Broken(), probes) == {}  # type: ignore[arg-type]
    assert "could not be held against the evaluation: no idea" in caplog.text
    with caplog.at_level(logging.WARNING):
        for file in (run / "checkpoints").glob("*/tree.json"):
            file.rename(file.with_suffix(".away"))
        try:
            assert check_checkpoint(plan, run, probes) == {}
        finally:
            for file in (run / "checkpoints").glob("*/tree.away"):
                file.rename(file.with_suffix(".json"))


def test_a_checkpoint_for_which_there_is_no_memory_is_left_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "memory_left", lambda: 1000)
    with caplog.at_level(logging.WARNING):
        assert check_checkpoint(resolve(parse(["--resume", str(run)])), run, probes_of(run)) == {}
    assert "--eval-model False asks for none" in caplog.text


def test_predictions_that_are_none_are_a_warning() -> None:
    result = {"return_mean": 1.0, "model": {"not_finite": ["error.latent.8"]}}
    assert list(eval_warnings(result, 10)) == [
        "the model predicts numbers that are not finite: error.latent.8"
    ]
    result = {"return_mean": 1.0, "model": {"tasks": {"a": result["model"], "b": {"windows": 2}}}}
    assert list(eval_warnings(result, 10)) == [
        "the model predicts numbers that are not finite in task a: error.latent.8"
    ]


def test_actions_of_a_task_are_those_that_it_uses(run: Path) -> None:
    """Padded components are no actions: they would count as never tried."""
    plan = resolve(parse([*TINY["tdmpc2:ci"], "--env", "toy:point,gym:Pendulum-v1"]))
    own = resolve(parse(["--resume", str(run)]))
    agent, _ = restore_agent(own, find_checkpoint(build_store(own, run), "newest"))
    probes = probes_of(run)
    wide = np.linspace(-1, 1, 200, dtype=np.float32)[:, None]
    padded = dataclasses.replace(probes, actions={"action": np.hstack([wide, 0 * wide])})
    found = check_model(plan, agent, {"point": padded, "Pendulum-v1": padded, "none": None})
    tasks = found["model"]["tasks"]
    assert tasks["Pendulum-v1"]["action_coverage"] == 1.0
    assert tasks["point"]["action_coverage"] == pytest.approx(0.55)
    assert tasks["Pendulum-v1"]["action_saturation"] == pytest.approx(
        2 * tasks["point"]["action_saturation"]
    )


def probes_of(folder: Path) -> Probes:
    """What the run's own evaluator keeps."""
    plan = resolve(parse(["--resume", str(folder)]))
    evaluator = build_evaluator(plan)
    agent, _ = restore_agent(plan, find_checkpoint(build_store(plan, folder), "newest"))
    evaluator.load_weights(agent.policy_weights())
    evaluator.evaluate()
    assert evaluator.probes is not None
    return evaluator.probes
