"""Runs with envs that change their process: the run goes on as if they did not, and its files lie
where they belong.
"""

import dataclasses
import json
import logging
import os
import threading

import numpy as np
import pytest
import torch

from tests.worldloom_dist.foreign_envs import Careless
from tests.worldloom_dist.small_runs import SMALL
from worldloom.algorithms.registry import make_agent
from worldloom.envs.thread_check import needs_main_thread
from worldloom_dist.evaluate import evaluate
from worldloom_dist.launch import main
from worldloom_dist.run.builders import build_envs, build_evaluator
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve

HOME = "tests.worldloom_dist.foreign_envs"


@pytest.fixture(autouse=True)
def _as_before():
    threads = torch.get_num_threads()
    handlers = [*logging.root.handlers]
    yield
    torch.set_num_threads(threads)
    for handler in {*logging.root.handlers} - {*handlers}:
        logging.root.removeHandler(handler)
        handler.close()


@pytest.mark.parametrize("env", ["MovesInInit", "MovesInReset"])
def test_a_run_keeps_its_place_when_its_env_changes_the_working_directory(
    tmp_path, monkeypatch, env
):
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path / "here")
    words = [
        "--env",
        f"{HOME}:{env}",
        "--eval-episodes",
        "1",
        "--eval-every",
        "60",
        "--env-steps",
        "120",
        "--metrics-port",
        "0",
    ]
    assert main([*SMALL, *words]) == 0
    monkeypatch.chdir(tmp_path / "here")
    assert not any((tmp_path / "elsewhere").iterdir())
    (folder,) = (tmp_path / "here" / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert list((folder / "checkpoints").iterdir())
    assert evaluate(folder.relative_to(tmp_path / "here"), episodes=1)["episodes"] == 1
    os.chdir(tmp_path / "here")
    assert main(["--resume", str(folder.relative_to(tmp_path / "here")), "--env-steps", "160"]) == 0
    assert not any((tmp_path / "elsewhere").iterdir())


def test_an_env_that_turns_off_gradients_logging_and_signals_turns_off_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Careless, "stops_after", 100)
    words = [
        "--env",
        f"{HOME}:Careless",
        "--env-steps",
        "4000",
        "--run-dir",
        str(tmp_path / "run"),
        "--metrics-port",
        "0",
    ]
    assert main([*SMALL, *words]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert summary["train_steps"] > 0
    said = capsys.readouterr().out
    for what in ("the handler of SIGTERM", "logging.disable", "whether torch computes gradients"):
        assert f"Careless' changed {what}" in said
    assert torch.is_grad_enabled()
    assert logging.root.manager.disable == 0


def test_an_env_that_needs_a_main_thread_has_one_in_workers_and_evaluations_of_ray_runs():
    plan = resolve(
        parse(
            [*SMALL, "--runtime", "ray", "--env", f"{HOME}:NeedsMainThread", "--eval-episodes", "1"]
        )
    )
    reason = needs_main_thread(plan.env)
    assert "signal only works in main thread" in reason
    plan = dataclasses.replace(plan, needs_main_thread=reason)
    found = []

    def role():
        env = build_envs(plan, 0, 1, 0, 1)
        rows = [env.reset(), env.step({"action": np.ones((1, 2), np.float32)})]
        env.close()
        evaluator = build_evaluator(plan)
        agent = make_agent(plan.agent, plan.env_spec, device="cpu", seed=0)
        evaluator.load_weights(agent.policy_weights())
        found.extend([*rows, evaluator.evaluate()])

    thread = threading.Thread(target=role)
    thread.start()
    thread.join()
    first, second, evaluation = found
    assert first.is_first.all()
    assert second.reward.tolist() == [-1.0]
    assert evaluation.lengths == (20,)
