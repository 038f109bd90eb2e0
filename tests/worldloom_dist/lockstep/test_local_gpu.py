"""Where a lock-step run on a GPU decides and evaluates, and that it waits for what it publishes."""

import pytest
import torch

from tests.worldloom_dist import small_runs
from worldloom_dist.learner.learner import Learner
from worldloom_dist.lockstep import evaluator as evaluator_module
from worldloom_dist.lockstep import workers as workers_module


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_acting_and_evaluation_are_where_the_learner_is(monkeypatch, tmp_path):
    run = small_runs.start(tmp_path / "run", "--env", "toy:counting", "--env-steps", "90")
    runtime = run.runtime
    for part in (runtime.workers, runtime.evaluator):
        assert part.device == "cpu"
        part.device = "cuda:1"  # as the runtime gives them a learner's
    made = []

    def remember(plan, *_, device, **__):
        made.append(device)
        raise InterruptedError

    monkeypatch.setattr(workers_module, "build_policy", remember)
    monkeypatch.setattr(evaluator_module, "build_evaluator", remember)
    for act in (runtime.workers.begin, lambda: runtime.evaluator.begin(0, is_last=True)):
        with pytest.raises(InterruptedError):
            act()
    runtime.close()
    assert made == ["cuda:1", "cuda:1"]


def test_every_version_is_waited_for(monkeypatch, tmp_path):
    waited = []
    publish = Learner.publish

    def watched(self, *, waits=False):
        waited.append(waits)
        return publish(self, waits=waits)

    monkeypatch.setattr(Learner, "publish", watched)
    run = small_runs.start(tmp_path / "run", "--env", "toy:counting", "--env-steps", "90")
    assert run.run() == "completed"
    assert len(waited) > 5
    assert all(waited)
