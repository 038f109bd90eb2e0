"""A learner on ``cuda:1``: nothing of it belongs to the first GPU, in none of its threads."""

import numpy as np
import pytest
import torch

from tests import fake_cuda
from tests.worldloom_dist.learner.test_staging_and_step import windows
from worldloom.training.checkpoints import CheckpointStore
from worldloom_dist.learner import checkpointing
from worldloom_dist.learner.checkpointing import CheckpointWriter
from worldloom_dist.learner.guard import NonfiniteGuard
from worldloom_dist.learner.learner import Learner
from worldloom_dist.learner.publishing import CudaDownload
from worldloom_dist.learner.staging import _CudaLane
from worldloom_dist.learner.step import prepare_torch
from worldloom_dist.learner.weight_store import WeightStore

SECOND = "cuda:1"


class OnSecond(torch.Tensor):
    """A tensor that says that it is on the second GPU, and is copied as one of the CPU."""

    device = torch.device(SECOND)

    def record_stream(self, stream):
        assert str(stream.device) == SECOND

    __torch_function__ = torch._C._disabled_torch_function_impl


def on_second(values) -> OnSecond:
    return torch.as_tensor(values).as_subclass(OnSecond)


@pytest.fixture
def runtime(monkeypatch):
    return fake_cuda.install(monkeypatch)


def test_preparing_torch_makes_the_device_the_threads_current_one(runtime):
    try:
        prepare_torch(SECOND, threads=1)
        assert runtime.device == 1
    finally:
        prepare_torch("cpu", threads=1)


def test_flags_are_read_after_the_work_of_their_own_device(runtime):
    watching = NonfiniteGuard(None)
    taken = []
    watching.judge = lambda *pending: taken.append(pending[2].stream.device)
    watching.watch(1, on_second(0.0), windows(1.0))
    assert taken == [torch.device(SECOND)]


def test_latents_and_the_lead_are_watched_on_the_learners_device(runtime):
    from tests.worldloom_dist.learner.test_learner import FakeAgent

    learner = Learner(FakeAgent(), WeightStore())
    learner.device = torch.device(SECOND)
    learner.is_cuda = True
    learner.limit_lead()
    learner.write_back = lambda *_: None
    learner.send_refreshed = lambda *, wait: None
    learner.keep_refreshed(windows(1.0), {"latent/x": torch.zeros(2, 3)})
    events = [learner.launched[0], learner.refreshed[0][2]]
    assert [str(event.stream.device) for event in events] == [SECOND, SECOND]


def test_a_checkpoint_is_copied_after_the_work_of_its_own_device_and_by_that_device(
    runtime, monkeypatch, tmp_path
):
    used = []

    def to_host(tree):
        used.append((runtime.device, runtime.stream()))
        return tree

    monkeypatch.setattr(checkpointing, "to_host", to_host)
    writer = CheckpointWriter(CheckpointStore(tmp_path), SECOND)
    writer.save(1, {"w": torch.zeros(2)}, {})
    writer.close()
    [(device, stream)] = used
    assert device == 1
    assert stream.device == torch.device(SECOND)
    assert str(stream.waits[0].stream.device) == SECOND


def test_batches_and_weights_use_page_locked_memory_of_their_own_device(runtime):
    lane = _CudaLane(torch.device(SECOND))
    lane.pin(torch.zeros(3))
    download = CudaDownload(SECOND)
    receive = download.begin(on_second(np.arange(4, dtype=np.uint8)))
    assert runtime.pinned == [1, 1]
    assert list(receive()) == [0, 1, 2, 3]
    assert download.stream.device == lane.stream.device == torch.device(SECOND)
    assert [one.device.index for one in download.stream.waits] == [1]
