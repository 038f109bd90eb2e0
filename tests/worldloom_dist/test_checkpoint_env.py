"""A checkpoint says in which env it was trained, and is loaded in no other."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.worldloom_dist.local_runs import newest_state
from tests.worldloom_dist.small_runs import SMALL, start
from worldloom.core.exceptions import CheckpointError, TrainingError
from worldloom.core.specs import EnvSpec
from worldloom.training.checkpoints import CheckpointStore
from worldloom.training.manifests import read_manifest
from worldloom.training.remote_checkpoints import open_store
from worldloom_dist.evaluate import evaluate, load_policy
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve
from worldloom_dist.runtime import learner_state

WORDS = ["--env", "toy:point", "--env.time-limit", "15", "--env-steps", "60"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert start(folder, *WORDS).run() == "completed"
    torch.set_num_threads(before)
    return folder


def copied(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained / "checkpoints", folder / "checkpoints")
    return folder


def test_manifest_names_the_env_its_spec_and_its_settings(trained: Path) -> None:
    (newest, *_) = CheckpointStore(trained / "checkpoints").folders()
    env = read_manifest(newest)["facts"]["env"]
    assert (env["name"], env["settings"]["time_limit"], env["settings"]["action_repeat"]) == (
        "toy:point",
        15,
        1,
    )
    assert EnvSpec.from_dict(env).obs["obs"].shape == (4,)


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--env.time-limit", "16"], "env.time_limit 15, and this run has 16"),
        (["--env.action-repeat", "2"], "env.action_repeat 1, and this run has 2"),
        (["--env", "toy:counting"], "env 'toy:point', and this run has 'toy:counting'"),
    ],
)
def test_copied_checkpoint_is_refused_where_the_env_differs(
    trained: Path, tmp_path: Path, words: list[str], difference: str
) -> None:
    folder = copied(trained, tmp_path / "run")
    with pytest.raises(
        CheckpointError, match=f"step-.* was trained with {difference}; set it back"
    ):
        start(folder, *WORDS, *words).run()
    for load in (evaluate, load_policy):
        with pytest.raises(CheckpointError, match=difference):
            load(folder)  # type: ignore[operator]


def test_learner_on_ray_ends_the_run_instead_of_starting_again(trained: Path) -> None:
    store = CheckpointStore(trained / "checkpoints")
    with pytest.raises(TrainingError, match=r"env.time_limit 15, and this run has 31"):
        learner_state.newest_state(
            store, resolve(parse([*SMALL, *WORDS, "--env.time-limit", "31"])), None
        )
    state, where = learner_state.newest_state(store, resolve(parse([*SMALL, *WORDS])), None)
    assert state is not None
    assert where == store.folders()[0].name


def test_checkpoint_that_says_nothing_of_its_env_is_loaded(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "run")
    for path in folder.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_text())
        del manifest["facts"]["env"]
        path.unlink()
        path.write_text(json.dumps(manifest))
    shutil.copytree(trained / "replay", folder / "replay")
    before = torch.get_num_threads()
    run = start(folder, *WORDS, "--env.time-limit", "31", "--env-steps", "70")
    assert run.run() == "completed"
    torch.set_num_threads(before)
    assert (
        newest_state(folder)["learner"]["train_steps"]
        >= newest_state(trained)["learner"]["train_steps"]
    )


def test_facts_are_found_behind_a_url_too() -> None:
    store = open_store("memory://facts-of-a-checkpoint")
    folder = store.save(3, {"a": torch.ones(2)}, {"env": {"name": "toy:point"}})
    assert store.facts(folder) == {"step": 3, "env": {"name": "toy:point"}}
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        store.facts(folder.with_name("step-000000000004"))
