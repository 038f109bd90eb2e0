"""The way a question to a shard goes, and how answers are dealt out to batches; Ray, the line and
the shards are fakes.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import GetTimeoutError

from worldloom.data.windows import EncodedWindows, SampledWindows
from worldloom_dist.ports import SampleRequest
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.runtime import shard_client as module
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.shard_client import LARGE_BYTES, ShardClient, ask_all


class Shard:
    """Answers with objects of ``size`` bytes, over either way, and keeps which it was."""

    name = "shard-0"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size = 100
        self.ways = []
        self.forgotten = 0
        self.error: Exception | None = None
        self.has_name = True
        monkeypatch.setattr(
            module,
            "RpcClient",
            lambda *_, **__: SimpleNamespace(
                submit=lambda asked: lambda: self._answer("line", asked)
            ),
        )
        monkeypatch.setattr(module.ray, "get", lambda asked, timeout: self._answer("ray", asked))

    @property
    def handle(self):
        if not self.has_name:
            raise ValueError("no such actor")
        return SimpleNamespace(sample=SimpleNamespace(remote=lambda requests: requests))

    def forget(self) -> None:
        self.forgotten += 1

    def _answer(self, way, requests):
        if self.error is not None:
            raise self.error
        self.ways.append(way)
        return SimpleNamespace(nbytes=self.size)


def test_the_size_of_an_answer_decides_the_way_of_the_next_question(monkeypatch):
    shard = Shard(monkeypatch)
    reader = ShardClient(shard)
    for size in (100, LARGE_BYTES + 1, LARGE_BYTES + 1, 100, 100):
        shard.size = size
        assert (
            reader.submit([SampleRequest(1, (0,)), SampleRequest(1, (1,))])().nbytes
            == size
            == reader.answered_bytes
        )
    assert shard.ways == ["line", "line", "ray", "ray", "line"]


@pytest.mark.parametrize("lost_by", ["silence", "name"])
def test_a_shard_that_is_gone_is_said_to_be_gone_and_looked_up_again(monkeypatch, lost_by):
    shard = Shard(monkeypatch)
    reader = ShardClient(shard)
    shard.size = LARGE_BYTES + 1
    reader.submit([SampleRequest(1, (0,))])()
    shard.has_name = lost_by != "name"
    shard.error = GetTimeoutError("silent")
    monkeypatch.setattr(module, "DEADLINES", replace(DEADLINES, sample_s=0.0))
    with pytest.raises(RoleGoneError, match="shard-0"):
        reader.submit([SampleRequest(1, (0,))])()
    assert shard.forgotten == (lost_by == "silence")


def test_a_silent_shard_is_waited_for_until_it_is_said_to_be_away(monkeypatch):
    shard = Shard(monkeypatch)
    looks = iter([False, False, True])
    reader = ShardClient(shard, lambda: next(looks))
    shard.size = LARGE_BYTES + 1
    reader.submit([SampleRequest(1, (0,))])()
    shard.error = GetTimeoutError("silent")
    with pytest.raises(RoleGoneError, match="shard-0"):
        reader.submit([SampleRequest(1, (0,))])()
    assert next(looks, None) is None
    assert shard.forgotten == 1


def answering(
    shard: int,
    fault: Exception | None = None,
    *,
    is_gone_at_once: bool = False,
    has_rows: bool = True,
) -> SimpleNamespace:
    """A reader of a shard whose windows say which request they are for."""

    def submit(requests):
        if is_gone_at_once:
            raise RoleGoneError("gone")
        return lambda: give(requests)

    def give(requests):
        if fault is not None:
            raise fault
        numbers = np.concatenate(
            [np.full(request.windows, request.seed[0]) for request in requests]
        )
        plain = SampledWindows(
            {"x": numbers}, numbers[:, None], numbers * 0 + shard, numbers, numbers
        )
        return EncodedWindows(plain) if has_rows else None

    return SimpleNamespace(submit=submit)


def test_every_batch_gets_from_every_shard_what_was_permitted_for_it():
    permits = [
        {0: SampleRequest(2, (7,)), 1: SampleRequest(1, (7,))},
        {1: SampleRequest(3, (8,))},
        {0: SampleRequest(1, (9,))},
    ]
    found = ask_all([answering(0), answering(1)], permits, pytest.fail)()
    assert [
        {shard: given.decode().columns["x"].tolist() for shard, given in batch.items()}
        for batch in found
    ] == [
        {0: [7, 7], 1: [7]},
        {1: [8, 8, 8]},
        {0: [9]},
    ]
    assert found[1][1].decode().shard.tolist() == [1, 1, 1]


def test_shards_that_are_gone_or_have_too_little_are_missing_and_the_gone_are_named():
    readers = [
        answering(0),
        answering(1, RoleGoneError("gone")),
        answering(2, is_gone_at_once=True),
        answering(3, has_rows=False),
    ]
    gone = []
    permit = {shard: SampleRequest(2, (5,)) for shard in range(4)}
    (found,) = ask_all(readers, [permit], gone.append)()
    assert list(found) == [0]
    assert gone == [1, 2]
