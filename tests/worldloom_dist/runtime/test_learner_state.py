"""What a learner goes on from: what it followed, or a checkpoint where that is newer."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from worldloom.core.exceptions import TrainingError
from worldloom.training.checkpoints import CheckpointStore
from worldloom_dist.run.cli import parse
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.plan import resolve
from worldloom_dist.runtime.learner_state import newest_state

PLAN = resolve(parse(["--preset", "debug", "--runtime", "ray"]))


def following(steps: int | None) -> SimpleNamespace:
    state = None if steps is None else {"train_steps": steps, "agent": {}}
    return SimpleNamespace(newest=lambda: state, trained=0)


def saved(root: Path, *steps: int) -> CheckpointStore:
    store = CheckpointStore(root / "checkpoints")
    for step in steps:
        tree = {"learner": {"train_steps": step, "agent": {"w": torch.zeros(2)}}}
        store.save(step, tree, {"train_steps": step})
    return store


@pytest.mark.parametrize(
    ("followed", "checkpoints", "expected"),
    [
        (None, (), None),
        (None, (10, 20), 20),
        (following(None), (10, 20), 20),
        (following(25), (10, 20), 25),
        (following(20), (10, 20), 20),
        (following(15), (10, 20), 20),
        (following(3), (), 3),
    ],
)
def test_the_newest_state_is_taken(tmp_path, followed, checkpoints, expected):
    state, where = newest_state(saved(tmp_path, *checkpoints), PLAN, followed)
    assert (state and state["train_steps"]) == expected
    if state is not None:
        is_followed = followed is not None and followed.newest() is state
        assert where == (
            f"update {expected} of its predecessor" if is_followed else f"step-{expected:012d}"
        )


def test_a_checkpoint_that_cannot_be_read_does_not_hide_what_was_followed(tmp_path):
    store = saved(tmp_path, 10)
    (store.folders()[0] / "manifest.json").write_text("{")
    assert newest_state(store, PLAN, following(5))[0]["train_steps"] == 5
    with pytest.raises(TrainingError, match="none of the 1 checkpoints"):
        newest_state(store, PLAN, None)


def test_a_run_knows_its_newest_learner_without_starting_one(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.incarnation("learner") == 0
    assert [folder.next_incarnation("learner") for _ in range(2)] == [1, 2]
    assert folder.incarnation("learner") == 2
