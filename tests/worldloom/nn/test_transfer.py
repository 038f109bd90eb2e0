"""One copy up and one down bring every array whole, whatever its type; a decision needs no more."""

import numpy as np
import pytest
import torch

from tests import fake_cuda
from tests.worldloom_dist.actors.test_act_graphs import AGENTS, PIXELS, VECTOR, policy_of, request
from worldloom.nn.transfer import HostTransfer, _CudaLane


class Counting:
    """A device that is memory of its own; page-locked bytes are rubbish until they are written."""

    def __init__(self):
        self.calls = []

    def pin(self, nbytes):
        return torch.full((nbytes,), 77, dtype=torch.uint8)

    def upload(self, pinned):
        self.calls.append("up")
        return pinned.clone()

    def download(self, flat, pinned):
        self.calls.append("down")
        pinned.copy_(flat)


def test_arrays_of_all_types_arrive_and_return_and_are_the_callers_own():
    lane = Counting()
    transfer = HostTransfer(torch.device("cpu"), lane)
    frozen = np.arange(6, dtype=np.float32).reshape(2, 3)
    frozen.flags.writeable = False
    arrays = {
        "flags": np.array([True, False, True]),
        "frozen": frozen,
        "turned": np.arange(12, dtype=np.int64).reshape(3, 4).T,
        "image": np.arange(48, dtype=np.uint8).reshape(4, 4, 3)[:, ::2],
        "nothing": np.zeros((2, 0), np.float64),
        "one": np.float64(2.5),
    }
    there = transfer.to_device({**arrays, "resident": torch.ones(2)})
    assert list(there) == [*arrays, "resident"]
    for name, array in arrays.items():
        assert there[name].shape == array.shape
        assert np.array_equal(there[name].numpy(), array), name
    first = transfer.to_host(
        there | {"half": torch.ones(3, 5).t().to(torch.bfloat16).view(torch.uint16)}
    )
    kept = {name: array.copy() for name, array in first.items()}
    transfer.to_host({name: torch.zeros_like(tensor) for name, tensor in there.items()})
    for name, array in {**arrays, "resident": np.ones(2, np.float32)}.items():
        assert np.array_equal(first[name], array), name
        assert first[name].dtype == array.dtype
    assert all(np.array_equal(first[name], kept[name]) for name in kept)
    assert set(first["half"].flatten()) == {0x3F80}
    assert lane.calls == ["up", "down", "down"]


@pytest.mark.parametrize("env", [VECTOR, PIXELS], ids=["vector", "pixels"])
@pytest.mark.parametrize("name", AGENTS)
def test_a_decision_takes_one_copy_each_way_and_is_the_same(name, env):
    plain, moved = policy_of(name, env), policy_of(name, env)
    lane = Counting()
    moved.transfer = HostTransfer(torch.device("cpu"), lane)
    carries = [plain.initial_carry(2), moved.initial_carry(2)]
    for step in range(3):
        asked = request([0, 1], step, env)
        outs = [
            policy.act(asked.obs, carry, asked.is_first, explore=True)
            for policy, carry in zip((plain, moved), carries, strict=True)
        ]
        carries = [out.carry for out in outs]
        for mine, theirs in ((outs[1].action, outs[0].action), (outs[1].extras, outs[0].extras)):
            assert mine.keys() == theirs.keys()
            assert all(np.array_equal(mine[key], theirs[key]) for key in theirs)
            assert all(mine[key].dtype == theirs[key].dtype for key in theirs)
    assert lane.calls == ["up", "down"] * 3


def test_page_locked_memory_and_the_event_are_of_the_device(monkeypatch):
    runtime = fake_cuda.install(monkeypatch)
    events = []
    monkeypatch.setattr(
        fake_cuda.FakeEvent, "synchronize", lambda self: events.append(self.stream.device.index)
    )
    lane = _CudaLane(torch.device("cuda:1"))
    lane.download(torch.ones(3, dtype=torch.uint8), lane.pin(3))
    assert (runtime.pinned, events) == ([1], [1])
