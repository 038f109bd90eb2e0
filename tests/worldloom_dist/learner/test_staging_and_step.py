"""Batches reach the device through two buffers that are never overwritten too early; a captured
update is what an eager one is.
"""

import logging

import numpy as np
import pytest
import torch

from tests.worldloom_dist.learner import rank_process
from worldloom.algorithms.registry import make_agent, make_agent_config
from worldloom.core.protocol import (
    AgentSpec,
    CapturableUpdate,
    SamplingSpec,
    SharesWeights,
    TrainOutput,
)
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.windows import SampledWindows
from worldloom.nn.cuda_graphs import CudaRecorder
from worldloom_dist.learner import step as step_module
from worldloom_dist.learner.staging import Stager
from worldloom_dist.learner.step import CaptureFailedError, GraphStep, make_step, prepare_torch


def windows(number: float) -> SampledWindows:
    columns = {name: np.zeros((2, 4), bool) for name in ("is_first", "terminated", "truncated")}
    columns |= {name: np.full((2, 4, 1), number, "float32") for name in ("obs", "action")}
    columns["reward"] = np.full((2, 4), number, "float32")
    for column in columns.values():
        column.flags.writeable = False  # as from an object store
    return SampledWindows(
        columns,
        np.arange(8).reshape(2, 4),
        np.zeros(2, np.int64),
        np.zeros(2, np.int64),
        np.zeros(2),
    )


class Copy:
    """An upload on its way: it reads the pinned memory only when someone waits for it."""

    def __init__(self, pinned, targets):
        self.pinned = pinned
        self.targets = targets

    def synchronize(self):
        for source, target in zip(self.pinned, self.targets, strict=True):
            target.copy_(source)
        self.pinned = self.targets = []


class LazyLane:
    """A copy stream that is as late as it may be."""

    def __init__(self):
        self.pins = 0

    def pin(self, like):
        self.pins += 1
        return torch.empty_like(like)

    def upload(self, pinned):
        targets = [torch.full_like(tensor, 99) for tensor in pinned]
        return targets, Copy(list(pinned), targets)

    def await_on_stream(self, event, tensors):
        assert [id(t) for t in tensors] or not event.targets
        event.synchronize()


def test_a_late_copy_still_brings_its_own_batch():
    lane = LazyLane()
    stager = Stager("cpu", lane)
    # further ahead than there are buffers
    staged = [stager.stage(windows(float(number))) for number in range(5)]
    for number, item in enumerate(staged):
        batch = stager.take(item)
        assert float(batch.reward.min()) == float(batch.reward.max()) == number
        assert float(batch.obs["obs"].max()) == number
    assert lane.pins == 2 * 6, "two sets of buffers, reused"


def test_on_a_cpu_read_only_arrays_are_copied_once():
    stager = Stager("cpu")
    staged = stager.stage(windows(3.0))
    staged.reward.add_(1)
    assert float(staged.windows.columns["reward"].max()) == 3.0
    assert len(stager.drain_seconds()) == 1
    assert stager.drain_seconds() == []


def test_an_agent_gets_its_batch_without_what_the_learner_knows_of_it():
    stager = Stager("cpu", LazyLane())
    staged = stager.stage(windows(3.0))
    batch = stager.take(staged)
    assert staged.windows is not None
    assert staged.arrived is not None
    assert (batch.windows, batch.arrived) == (None, None)
    assert batch.row_ids is staged.windows.row_ids


class FakeRecorder:
    """Keeps the work and runs it again; what it returned keeps its tensors, as in a graph."""

    def __init__(self, error=None):
        self.error = error
        self.calls = []

    def warm(self, work):
        self.calls.append("warm")
        return work()

    def capture(self, work):
        if self.error:
            raise self.error
        self.calls.append("capture")
        self.work = work
        self.output = TrainOutput({"seen": torch.zeros(())}, torch.zeros(()))
        return self.output

    def replay(self):
        self.calls.append("replay")
        self.output.metrics["seen"].copy_(self.work().metrics["seen"])


class Summing:
    """Adds up the rewards it was shown."""

    spec = AgentSpec(
        name="summing:x",
        sampling=SamplingSpec(batch_size=2, length=3),
        train_ratio=1,
        prefill_agent_steps=0,
        can_compile=True,
    )

    def __init__(self):
        self.total = torch.zeros(())

    def train_step(self, batch):
        self.total.add_(batch.reward.sum())
        return TrainOutput({"seen": batch.reward.sum()}, torch.zeros(()))

    def state_dict(self):
        return {"total": self.total.clone()}

    def load_state_dict(self, state):
        self.total.copy_(state["total"])


def batch_of(value: float, size: int = 2) -> SequenceBatch:
    ones = torch.full((size, 3), value)
    return SequenceBatch(
        {"obs": ones[..., None]}, {"action": ones[..., None]}, ones, ones > 9, ones > 9, ones > 9
    )


def test_every_batch_is_trained_on_once_before_and_after_the_capture():
    agent = Summing()
    recorder = FakeRecorder()
    step = GraphStep(agent, recorder)
    seen = [float(step(batch_of(float(number))).metrics["seen"]) for number in range(8)]
    assert seen == [6.0 * number for number in range(8)]
    assert float(agent.total) == sum(seen)
    assert recorder.calls == ["warm"] * 4 + ["capture"] + ["replay"] * 4
    assert float(step(batch_of(2.0, size=3)).metrics["seen"]) == 18.0, "another shape runs eagerly"


def test_what_cannot_be_captured_runs_eagerly_and_the_log_says_why(caplog):
    agent = Summing()
    with caplog.at_level(logging.INFO):
        assert make_step(agent, "cpu", "graph") == agent.train_step
        assert make_step(agent, "cuda", "auto", ranks=2) == agent.train_step
    said = [record.getMessage() for record in caplog.records]
    assert "a cpu has no graphs to capture" in said[0]
    assert "2 learner ranks" in said[1]
    assert len(said) == 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_asked_for_graphs_are_captured_with_any_number_of_ranks(monkeypatch, ranks):
    monkeypatch.setattr(step_module, "CudaRecorder", lambda device, generators: FakeRecorder())
    agent = Summing()
    agent.generators = list
    step = make_step(agent, "cuda", "graph", ranks=ranks)
    for _ in range(6):
        step(batch_of(1.0))
    assert step.is_captured
    assert float(agent.total) == 6 * 6.0


def test_a_failed_capture_ends_the_learner_and_names_what_broke_it():
    """Draws and memory of the process are unusable after it, so no update may follow."""
    broke = RuntimeError("operation not permitted when stream is capturing\nmore")
    ended = RuntimeError("operation failed due to a previous error during capture")
    ended.__context__ = broke
    agent = Summing()
    step = GraphStep(agent, FakeRecorder(ended))
    for _ in range(4):
        step(batch_of(1.0))
    with pytest.raises(
        CaptureFailedError, match=r"\(operation not permitted when stream is capturing\)"
    ):
        step(batch_of(1.0))
    assert float(agent.total) == 4 * 6.0
    assert not step.is_captured


def test_a_replay_is_followed_by_what_the_agent_prepares_for_acting():
    """A replayed update runs none of the agent's Python: it would act with old weights for ever."""
    agent = Summing()
    refreshed = []
    agent.refresh = lambda: refreshed.append(float(agent.total))
    step = GraphStep(agent, FakeRecorder())
    for _ in range(6):
        step(batch_of(1.0))
    assert refreshed == [30.0, 36.0], "after each replay"


def storages(tree: object) -> dict[str, int]:
    """Where every tensor that an agent owns lies."""
    found: dict[str, int] = {}
    for name, value in vars(tree).items():
        parts = value.state_dict(keep_vars=True) if isinstance(value, torch.nn.Module) else value
        parts = (
            parts
            if isinstance(parts, dict)
            else dict(enumerate(parts))
            if isinstance(parts, list | tuple)
            else {"": parts}
        )
        found |= {
            f"{name}.{key}": part.data_ptr()
            for key, part in parts.items()
            if isinstance(part, torch.Tensor)
        }
    return found


@pytest.mark.parametrize("name", ["tdmpc2", "dreamerv3"])
def test_an_update_changes_the_agents_state_in_place(name):
    """A captured update reads and writes fixed addresses; a state that moved would silently stop to
    change.
    """
    agent = rank_process.make(name)
    agent.train_step(rank_process.batch(agent, 0))  # optimizers make their moments here
    owners = [agent, getattr(agent, "updater", agent), getattr(agent, "optimizer", agent)]
    before = [storages(owner) for owner in owners]
    assert sum(map(len, before)) > 20
    agent.train_step(rank_process.batch(agent, 1))
    assert [storages(owner) for owner in owners] == before


def test_deterministic_mode_is_torchs():
    try:
        prepare_torch("cpu", threads=1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        prepare_torch("cpu", threads=1)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["tdmpc2", "dreamerv3"])
def test_a_captured_update_equals_an_eager_one_on_cuda(name):
    from worldloom.algorithms.registry import make_agent, make_agent_config

    preset, settings = rank_process.AGENTS[name]
    eager, captured = (
        make_agent(make_agent_config(preset, settings), rank_process.ENV, device="cuda", seed=3)
        for _ in range(2)
    )
    step = GraphStep(captured, CudaRecorder(torch.device("cuda"), captured.generators()))
    for number in range(12):
        batch = rank_process.batch(eager, number).map(lambda t: t.cuda())
        eager.train_step(batch)
        step(batch)
    assert step.is_captured
    mine, theirs = (
        rank_process.flat(agent.policy_weights().arrays()) for agent in (captured, eager)
    )
    for path, value in theirs.items():
        np.testing.assert_allclose(
            mine[path], value, atol=1e-3 * max(np.abs(value).max(), 1e-3), err_msg=path
        )


@pytest.mark.parametrize(
    "error",
    [
        torch._dynamo.exc.Unsupported("generators\nand more"),
        RuntimeError("g++ was not found\nbut more"),
    ],
)
def test_an_update_that_cannot_be_compiled_is_made_eagerly_once_and_the_log_says_why(
    monkeypatch, caplog, error
):
    agent = Summing()
    tried = []

    def compiled(batch):
        tried.append(batch)
        agent.total.add_(100)  # the first part of the update, which could be compiled
        raise error

    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    with caplog.at_level(logging.INFO):
        step = make_step(agent, "cpu", "inductor")
        for _ in range(3):
            step(batch_of(1.0))
    assert float(agent.total) == 3 * 6.0
    assert len(tried) == 1
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("updates run through torch.compile")
    assert said[1] == f"updates run eagerly: torch.compile failed ({str(error).splitlines()[0]})"
    assert len(said) == 2


def test_an_error_of_a_compiled_update_that_has_worked_is_not_taken_for_a_failed_compilation(
    monkeypatch,
):
    answers = iter([TrainOutput({}, torch.zeros(()))])

    def compiled(_):
        for answer in answers:
            return answer
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    step = make_step(Summing(), "cpu", "inductor")
    step(batch_of(1.0))
    with pytest.raises(RuntimeError, match="out of memory"):
        step(batch_of(1.0))


def test_an_agent_that_is_not_known_to_compile_runs_eagerly_and_the_log_says_why(caplog):
    agent = rank_process.make("dreamerv3")
    assert make_step(agent, "cpu", "inductor") == agent.train_step
    assert (
        "dreamerv3:ci has not been shown to make the same update through torch.compile"
        in caplog.text
    )


@pytest.mark.long
@pytest.mark.timeout(900)
# torch's own, of its compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_update_is_an_eager_one(caplog):
    eager, compiled = (rank_process.make("tdmpc2") for _ in range(2))
    with caplog.at_level(logging.INFO, "worldloom_dist"):
        step = make_step(compiled, "cpu", "inductor")
        for number in range(3):
            batch = rank_process.batch(eager, number)
            expected = eager.train_step(batch)
            got = step(batch)
            assert float(got.nonfinite) == 0
            same = {key: float(value) for key, value in expected.metrics.items()}
            assert {key: float(value) for key, value in got.metrics.items()} == pytest.approx(
                same, rel=1e-3, abs=1e-4
            )
    assert [r.getMessage() for r in caplog.records if "eagerly" in r.getMessage()] == []


def test_an_agent_that_does_not_name_its_generators_is_not_captured(caplog):
    agent = Summing()
    with caplog.at_level("INFO"):
        assert make_step(agent, "cuda", "auto") == agent.train_step
    assert "summing:x does not say which generators" in caplog.text


@pytest.mark.parametrize("name", ["dreamerv3:ci", "tdmpc2:ci"])
def test_our_agents_name_every_generator_that_they_draw_from(name):
    env = EnvSpec(name="x", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((1,))})
    agent = make_agent(make_agent_config(name), env)
    assert isinstance(agent, CapturableUpdate)
    assert isinstance(agent, SharesWeights)
    saved = agent.state_dict()["rng"]
    states = [*saved["acting"], saved["train"]]
    assert len(agent.generators()) == len(states) == 2
    for generator, state in zip(agent.generators(), states, strict=True):
        assert torch.equal(generator.get_state(), state)
