"""Runs that begin with what was learned of other tasks, or with a file of the TD-MPC2 authors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worldloom.algorithms.tdmpc2.test_tdmpc2_official import architecture, official_state
from tests.worldloom_dist.local_runs import completed, newest_state, restored_threads, start
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.specs import ArraySpec
from worldloom_dist.launch import main as launch
from worldloom_dist.launch import prepare
from worldloom_dist.run.cli import parse
from worldloom_dist.run.initial_agent import begin_with

WORDS = [*TINY["tdmpc2:ci"], "--env-steps", "60"]
TWO = "toy:point,toy:counting"
FINE = ["--agent.prefill-agent-steps", "1", "--agent.pretrain-updates", "0"]


_threads = pytest.fixture(autouse=True)(restored_threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks."""
    folder = tmp_path_factory.mktemp("made") / "two"
    return completed(folder, *WORDS, "--env", TWO, "--workers", "2")


def begun(*words: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The state with which a run would begin, and what it says of it."""
    from worldloom.algorithms.registry import make_agent

    plan, *_ = prepare(parse([*WORDS, *words]))
    agent = make_agent(plan.agent, plan.env_spec, seed=4)
    begin_with(plan, agent)
    return agent.state_dict(), plan.initial_lines


def test_a_run_is_fine_tuned_to_one_of_its_tasks(made: Path, tmp_path: Path) -> None:
    words = ["--init-from", str(made), "--env", "toy:counting", *FINE]
    assert launch([*WORDS, *words, "--run-dir", str(tmp_path / "one")]) == 0
    said = (tmp_path / "one" / "console.log").read_text()
    assert f"init     {made}: " in said
    assert "init     tasks: counting of its 2, whose embedding is a part of the first" in said
    assert (
        newest_state(tmp_path / "one")["learner"]["agent"]["model"]
        .keys()
        .isdisjoint({"task_emb", "action_masks"})
    )
    state, lines = begun(*words)
    old = newest_state(made)["learner"]["agent"]
    latent = old["model"]["dynamics.2.bias"].numel()
    size = old["model"]["task_emb"].shape[1]
    weight = old["model"]["dynamics.0.weight"]
    actions = weight[:, latent + size :]
    assert torch.equal(
        state["model"]["dynamics.0.weight"], torch.cat([weight[:, :latent], actions], 1)
    )
    assert torch.equal(state["updater"]["scale"], old["updater"]["scale"])
    total = len(old["model"]) + len(old["target"]) + 2
    total += sum(len(old["updater"][f"{part}_optimizer"]) for part in ("model", "policy"))
    assert f" of {total} entries loaded (" in lines[0]


def test_a_run_begins_with_one_of_other_tasks(made: Path) -> None:
    state, lines = begun("--init-from", str(made), "--env", f"toy:mirror,{TWO}", "--workers", "3")
    old = newest_state(made)["learner"]["agent"]
    assert torch.equal(state["model"]["task_emb"][1:], old["model"]["task_emb"])
    assert lines[2] == "new: task embedding of mirror, optimizers"
    assert lines[3] == "tasks: 2 of its 2"
    same, lines = begun("--init-from", str(made), "--env", TWO, "--workers", "2")
    assert lines == ()
    assert torch.equal(same["model"]["pi.0.weight"], old["model"]["pi.0.weight"])
    moments = old["updater"]["model_optimizer"]
    for name, value in same["updater"]["model_optimizer"].items():
        assert torch.equal(value["exp_avg"], moments[name]["exp_avg"])


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    """A file in the authors' present layout, of an agent with the sizes of these runs."""
    import dataclasses

    model = newest_state(made)["learner"]["agent"]["model"]
    sizes = dataclasses.replace(
        architecture(
            latent_dim=model["dynamics.2.bias"].numel(),
            encoder_dim=model["encoder.state.0.bias"].numel(),
            mlp_dim=model["dynamics.0.bias"].numel(),
            num_q=model["critics.0.bias"].shape[0],
            num_bins=model["reward_head.2.bias"].numel(),
        ),
        obs={"obs": ArraySpec((4,))},
    )
    state: dict[str, Any] = dict(official_state(sizes))
    state |= {
        name.replace("_Qs.", "_detach_Qs_", 1): value
        for name, value in state.items()
        if name.startswith("_Qs.params.")
    }
    state["log_std_min"] = torch.tensor(-10)
    state["log_std_dif"] = torch.tensor(12)
    state["_Qs.params.__batch_size"] = torch.Size([5])
    path = tmp_path / "point.pt"
    torch.save({"model": state}, path)
    return path


def test_a_run_begins_with_a_file_of_the_authors(file: Path, tmp_path: Path) -> None:
    words = ["--init-from", str(file), "--env", "toy:point"]
    assert launch([*WORDS, *words, *FINE, "--run-dir", str(tmp_path / "one")]) == 0
    said = (tmp_path / "one" / "console.log").read_text()
    entries = torch.load(file, weights_only=True)["model"]
    loaded = len(entries) - 13
    assert f"init     {file}: {loaded} of {len(entries)} entries loaded (encoder " in said
    left_out = (
        "init     left out: 10 _detach_Qs_params (a second copy of the critics), "
        "1 log_std_min, 1 log_std_dif (constants, which are settings here), 1 _Qs (no tensors)"
    )
    assert left_out in said
    assert "init     new: running scale, optimizers" in said
    state, _ = begun(*words)
    assert torch.equal(state["model"]["pi.2.weight"], entries["_pi.2.weight"])
    assert torch.equal(state["target"]["1.weight"], entries["_target_Qs_params.1.weight"])


class Hostile:
    """Unpickling this would create a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_what_a_run_cannot_begin_with_is_one_sentence(
    made: Path, file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(file.read_bytes()[:900])
    hostile = tmp_path / "hostile.pt"
    torch.save({"model": Hostile(tmp_path / "marker")}, hostile)
    one = tmp_path / "single"
    assert start(one, *WORDS, "--env", "toy:point").run() == "completed"
    capfd.readouterr()
    cases = [
        (file, ["--env", TWO], f"init_from: {file}: it learned one task, point.pt, and this run"),
        (file, ["--env", "toy:counting"], "observations: it knows obs of 4, and toy:counting has"),
        (cut, ["--env", "toy:point"], "is not a readable PyTorch file of tensors"),
        (hostile, ["--env", "toy:point"], "holds more than tensors"),
        (made, ["--env", "gym:Pendulum-v1"], "gym:Pendulum-v1 is none of its 2 tasks"),
        (made, ["--env", "toy:point", "--agent.latent-dim", "8"], "add --agent.latent-dim "),
        (one, ["--env", TWO], "it learned one task, toy:point, and this run learns 2"),
        (file, ["--env", "toy:point", "--agent", "mlp:ci"], "begins with runs of its own env only"),
    ]
    for place, words, message in cases:
        given = TINY["mlp:ci"] if "mlp:ci" in words else WORDS
        folder = tmp_path / "new"
        status = launch([*given, "--init-from", str(place), *words, "--run-dir", str(folder)])
        said = capfd.readouterr().err
        assert status == 2, said
        assert message in said
        assert said.count("init_from: ") == 1
        assert "Traceback" not in said
        assert not folder.exists()
    assert not (tmp_path / "marker").exists()
