"""The learner with a fake agent: counters, versions, metrics, skipped updates, and what it writes
back.
"""

import numpy as np
import pytest
import torch

from tests.fakes import FakeWeights
from worldloom.core.exceptions import StateError, TrainingError
from worldloom.core.metrics import Last
from worldloom.core.protocol import AgentSpec, SamplingSpec, TrainOutput
from worldloom.core.sequence import PolicyVersion
from worldloom.data.windows import SampledWindows
from worldloom.nn.snapshot import pack
from worldloom_dist.learner import learner as learner_module
from worldloom_dist.learner.learner import Learner
from worldloom_dist.learner.weight_store import WeightStore

SAMPLING = SamplingSpec(batch_size=2, length=3, bootstrap=1)


class FakeAgent:
    """Counts its updates in its only weight; is not finite when the batch's reward says so."""

    spec = AgentSpec(name="fake:x", sampling=SAMPLING, train_ratio=6, prefill_agent_steps=0)

    def __init__(self) -> None:
        self.weight = torch.zeros(1)
        self.batches = []

    def train_step(self, batch):
        assert batch.reward.dtype == torch.float32
        assert batch.shape == (2, 4)
        self.batches.append(batch)
        bad = ~torch.isfinite(batch.reward).all()
        self.weight = self.weight + torch.where(bad, 0.0, 1.0)
        refreshed = {"latent/x": batch.reward[:, -3:, None] + 1}
        metrics = {"loss/total": self.weight.clone(), "scale": torch.tensor(2.0)}
        return TrainOutput(metrics, nonfinite=bad, refreshed=refreshed)

    def policy_weights(self):
        return pack({"w": self.weight})

    def state_dict(self):
        return {"w": self.weight}

    def load_state_dict(self, state):
        self.weight = state["w"]


def windows(reward: float = 0.5) -> SampledWindows:
    columns = {name: np.zeros((2, 4), bool) for name in ("is_first", "terminated", "truncated")}
    columns |= {"obs": np.zeros((2, 4, 1), "float32"), "action": np.zeros((2, 4, 1), "float32")}
    columns["reward"] = np.full((2, 4), reward, "float32")
    columns["reward"].flags.writeable = False  # as from an object store
    return SampledWindows(
        columns,
        np.arange(8).reshape(2, 4),
        np.zeros(2, np.int64),
        np.zeros(2, np.int64),
        np.zeros(2),
    )


def test_counters_versions_and_metrics_follow_the_updates():
    store = WeightStore()
    learner = Learner(FakeAgent(), store, incarnation=3)
    for _ in range(4):
        learner.train(windows())
    learner.publish()
    assert (learner.train_steps, learner.replayed_steps) == (4, 24)
    assert store.version() == PolicyVersion(3, 4)
    metrics = learner.drain_metrics()
    assert metrics["learner_updates_total"].value == 4
    assert metrics["learner_replayed_steps_total"].value == 24
    assert metrics["loss{name=total}"] == Last(4.0)
    assert metrics["model_stat{name=scale}"] == Last(2.0)
    assert metrics["learner_update_seconds{phase=forward_backward}"].count == 4
    assert "learner_updates_total" not in learner.drain_metrics()


def test_refreshed_extras_are_written_back_with_their_windows():
    learner = Learner(FakeAgent(), WeightStore())
    written = []
    learner.write_back = lambda *args: written.append(args)
    sampled = windows(0.5)
    learner.train(sampled)
    assert written[0][0] is sampled
    assert written[0][1]["latent/x"].tolist() == [[[1.5]] * 3] * 2


def test_a_bad_update_is_counted_and_its_batch_saved(tmp_path):
    learner = Learner(FakeAgent(), WeightStore(), bad_batches=tmp_path / "bad")
    learner.train(windows(np.nan))
    learner.train(windows())
    assert learner.drain_metrics()["learner_skipped_updates_total{reason=nonfinite}"].value == 1
    assert learner.drain_metrics()["learner_skipped_updates_total{reason=nonfinite}"].value == 0
    with np.load(tmp_path / "bad" / "update-000000001.npz") as saved:
        assert np.isnan(saved["reward"]).all()


def test_ten_in_a_row_end_training_and_nine_do_not(tmp_path):
    learner = Learner(FakeAgent(), WeightStore(), bad_batches=tmp_path)
    for _ in range(9):
        learner.train(windows(np.inf))
    learner.train(windows())
    for _ in range(9):
        learner.train(windows(np.inf))
    with pytest.raises(TrainingError, match="10 updates in a row"):
        learner.train(windows(np.inf))


def test_a_restored_learner_goes_on_under_its_own_incarnation():
    first = Learner(FakeAgent(), WeightStore(), incarnation=1)
    first.train(windows())
    second = Learner(FakeAgent(), WeightStore(), incarnation=2)
    second.load_state_dict(first.state_dict())
    assert (second.train_steps, second.replayed_steps, second.version) == (
        1,
        6,
        PolicyVersion(2, 1),
    )


@pytest.mark.parametrize("make_store", [WeightStore, FakeWeights])
def test_a_version_never_falls(make_store):
    store = make_store()
    snapshot = pack({"w": torch.zeros(1)})
    with pytest.raises(StateError):
        store.fetch()
    store.publish(snapshot.with_version(PolicyVersion(2, 5)))
    for version in (PolicyVersion(2, 5), PolicyVersion(1, 99)):
        with pytest.raises(StateError):
            store.publish(snapshot.with_version(version))
    store.publish(snapshot.with_version(PolicyVersion(3, 0)))
    assert store.fetch().version == store.version() == PolicyVersion(3, 0)


class Replayed:
    """What a captured update leaves behind: one set of tensors, which every replay writes again."""

    def __init__(self):
        zeros = torch.zeros(2)
        self.output = TrainOutput(
            {"loss/total": torch.zeros(())},
            torch.zeros(()),
            refreshed={"latent/x": torch.zeros(2, 3, 1)},
            priorities=zeros,
        )

    def __call__(self, batch):
        value = batch.reward[0, 0]
        out = self.output
        for tensor in (out.metrics["loss/total"], out.refreshed["latent/x"], out.priorities):
            tensor.fill_(float(value))
        out.nonfinite.fill_(float(value == 2))
        return out


class LateEvent:
    """An event of a busy GPU: asked four times, it has not happened yet."""

    def __init__(self):
        self.asked = 0

    def query(self):
        self.asked += 1
        return self.asked > 4

    def synchronize(self):
        self.asked = 5


@pytest.mark.parametrize("is_cuda", [False, True])
def test_what_an_update_leaves_is_taken_before_the_next_replay_writes_over_it(
    monkeypatch, tmp_path, is_cuda
):
    real = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *args, pin_memory=False, **kwargs: real(*args, **kwargs)
    )
    monkeypatch.setattr(learner_module, "recorded_event", lambda device: LateEvent())
    learner = Learner(FakeAgent(), WeightStore(), bad_batches=tmp_path)
    learner.step = Replayed()
    learner.is_cuda = is_cuda
    written = []
    priorities = []
    learner.write_back = lambda sampled, refreshed: written.append(
        (sampled, refreshed["latent/x"].copy())
    )
    learner.update_priorities = lambda sampled, values: priorities.append((sampled, values))
    batches = [windows(float(number)) for number in range(1, 8)]
    for sampled in batches:
        learner.train(sampled)
    assert (len(written) < len(batches)) == is_cuda, "a GPU's copies are not waited for"
    metrics = learner.drain_metrics()
    learner.state_dict()
    for taken in (written, priorities):
        assert [sampled for sampled, _ in taken] == batches
        assert [set(np.unique(values)) for _, values in taken] == [
            {float(number)} for number in range(1, 8)
        ]
    assert metrics["loss{name=total}"].value == 7.0
    assert metrics["learner_skipped_updates_total{reason=nonfinite}"].value == 1
    assert [path.name for path in tmp_path.iterdir()] == ["update-000000002.npz"]
