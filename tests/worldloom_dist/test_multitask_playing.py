"""What plays one task of an agent of several: loaded, exported, served and watched, it acts as in
the run's own evaluations of that task.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import worldloom
from tests.worldloom_dist.local_runs import completed, restored_threads, start
from tests.worldloom_dist.test_serve import serving
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import TASK
from worldloom.envs.consent import UntrustedEnvError
from worldloom.envs.factory import make_env
from worldloom.envs.vector import EnvStep, VectorEnv
from worldloom.export.exporting import export_policy
from worldloom.training.one_task import for_task
from worldloom.training.saved_agents import SavedAgent
from worldloom_client import connect
from worldloom_dist.enjoy import main as enjoy
from worldloom_dist.enjoy import play
from worldloom_dist.evaluate import load_policy
from worldloom_dist.run.cli import read_config
from worldloom_dist.run.closing import closing_lines
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.serve import Served, serve

LIST = "toy:point,toy:counting,gym:Pendulum-v1"
WORDS = [*TINY["tdmpc2:ci"], "--env", LIST, "--workers", "3", "--env-steps", "120"]


_threads = pytest.fixture(autouse=True)(restored_threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "multi"
    return completed(folder, *WORDS)


@pytest.mark.parametrize(("task", "index"), [("point", 0), ("Pendulum-v1", 2)])
def test_an_agent_of_one_task_has_the_mind_of_all(made: Path, task: str, index: int) -> None:
    alone = worldloom.load_agent(made, task=task)
    env, policy = load_policy(made)
    sizes = {"point": (4, 2), "Pendulum-v1": (3, 1)}[task]
    assert alone.observation_space.shape == sizes[:1]
    assert alone.action_space.shape == sizes[1:]
    stage = make_env(env, seed=0, cycles=[[index]])
    try:
        row = stage.reset()
        obs = row.obs["obs"][0, : sizes[0]]
    finally:
        stage.close()
    model = policy.model  # type: ignore[attr-defined]
    number = torch.tensor([index])
    padded = {"obs": torch.from_numpy(row.obs["obs"])}
    embedding = model.embed(number)
    z = model.encode(padded, embedding)
    noise = torch.zeros(1, 2)
    want = model.policy(z, noise, embedding, model.mask(number)).mean[:, : sizes[1]]
    own = for_task(SavedAgent.read(made), task).build(device="cpu", seed=0).model
    own_z = own.encode({"obs": torch.from_numpy(obs[None])})
    got = own.policy(own_z, torch.zeros(1, sizes[1])).mean
    assert torch.allclose(got, want, atol=1e-5)
    assert alone.act(np.asarray(obs)).shape == sizes[1:]


def test_a_copy_of_one_task_is_an_ordinary_agent(made: Path, tmp_path: Path) -> None:
    agent = worldloom.load_agent(made, task="counting")
    agent.save(tmp_path / "one")
    again = worldloom.load_agent(tmp_path / "one")
    assert again.observation_space == agent.observation_space
    facts = json.loads((tmp_path / "one" / "manifest.json").read_text())["facts"]
    assert facts["origin"]["task"] == "counting"
    assert "tasks" not in facts["env"]
    again.save(tmp_path / "two")


def test_one_task_is_exported(made: Path, tmp_path: Path) -> None:
    found = export_policy(
        made, tmp_path / "policy", format="torch", decisions=5, task="Pendulum-v1"
    )
    assert found.parity is not None
    with pytest.raises(ConfigurationError, match="learned 3 tasks; choose one with --task"):
        export_policy(made, tmp_path / "other", format="torch", decisions=5)
    assert not (tmp_path / "other").exists()


def test_one_task_is_served(made: Path) -> None:
    alone = worldloom.load_agent(made, task="point")
    with serving(made, task="point") as address, connect(address) as session:
        assert [spec.shape for spec in session.obs_specs] == [(4,)]
        assert session.act(np.zeros(4, np.float32)).shape == alone.action_space.shape
    with pytest.raises(ConfigurationError, match="choose one with --task NAME"):
        asyncio.run(serve(Served(run_dir=made, port=0), until=asyncio.Event()))


def test_one_task_is_watched(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def picture(env: VectorEnv, row: EnvStep) -> np.ndarray:
        seen.append(row.obs[TASK].item())
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("worldloom_dist.enjoy.picture_of", picture)
    returns = play(made, lambda frame, title: True, episodes=2, task="point")
    assert len(returns) == 2
    assert set(seen) == {0}
    returns = play(made, lambda frame, title: True, episodes=1, task="Pendulum-v1")
    assert seen[-1] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "learned 3 tasks; choose one with --task NAME (task=NAME in Python): point, "),
        (["--task", "pont"], "learned no 'pont'; did you mean point? (tasks: point, "),
    ],
)
def test_a_task_that_is_missing_or_wrong_is_one_sentence(
    made: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enjoy([str(made), "--video", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_a_run_of_one_task_needs_no_name(made: Path, tmp_path: Path) -> None:
    del made
    single = tmp_path / "single"
    few = [*TINY["tdmpc2:ci"], "--env", "toy:point", "--env-steps", "60"]
    assert start(single, *few).run() == "completed"
    assert worldloom.load_agent(single, task="point").action_space.shape == (2,)
    with pytest.raises(ConfigurationError, match=r"learned one task \(toy:point\), got 'walk'"):
        worldloom.load_agent(single, task="walk")


def test_a_strangers_task_runs_no_code_unasked(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "copied")
    config = (folder / "config.json").read_text().replace("toy:counting", "my_tasks:Counting")
    (folder / "config.json").write_text(config)
    for manifest in folder.rglob("manifest.json"):
        manifest.write_text(manifest.read_text().replace("toy:counting", "my_tasks:Counting"))
    with pytest.raises(UntrustedEnvError, match="my_tasks"):
        worldloom.load_agent(folder, task="counting")


def test_the_last_lines_of_a_run_can_be_typed(made: Path) -> None:
    lines = closing_lines(read_config(made), made, RunFolder(made))
    (watch,) = [line for line in lines if line.startswith("watch")]
    assert watch.endswith(f"enjoy {made} --task point")


@pytest.mark.parametrize("with_spaces", [False, True])
def test_a_strangers_list_of_tasks_is_not_read_unasked(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, with_spaces: bool
) -> None:
    (tmp_path / "evil.py").write_text('open(__file__ + ".ran", "w").close()\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.toml").write_text('[a]\nenv = "evil:Env"\n')
    folder = shutil.copytree(made, tmp_path / "copied")
    for env, said in (
        (f"mt:{tmp_path / 'evil.toml'}", "nothing here says which"),
        ("evil:Env", "--trust-env"),
    ):
        for path in [folder / "config.json", *folder.rglob("manifest.json")]:
            known = json.loads((made / path.relative_to(folder)).read_text())
            spec = known["env"] if "env" in known else known["facts"]["env"]
            spec["tasks"][1]["env"] = env
            if with_spaces:
                spec["spaces"] = {"obs": {}, "action": {}}
            path.write_text(json.dumps(known))
        for use in (
            lambda: worldloom.load_agent(folder, task="counting"),
            lambda: export_policy(folder, tmp_path / "out", task="counting"),
        ):
            with pytest.raises(ConfigurationError, match=said):
                use()
    assert not list(tmp_path.glob("*.ran"))
