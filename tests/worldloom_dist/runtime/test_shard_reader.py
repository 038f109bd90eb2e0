"""The way a question to a shard goes; Ray and the line are fakes."""

from types import SimpleNamespace

import pytest
from ray.exceptions import GetTimeoutError

from worldloom_dist.ports import SampleRequest
from worldloom_dist.runtime import shard_reader as module
from worldloom_dist.runtime.remote import RoleGoneError
from worldloom_dist.runtime.shard_reader import LARGE_BYTES, ShardReader


class Shard:
    """Answers with objects of ``size`` bytes, over either way, and keeps which it was."""

    name = "shard-0"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size, self.ways, self.forgotten = 100, [], 0
        self.error: Exception | None = None
        self.has_name = True
        monkeypatch.setattr(module, "Line", lambda *_: SimpleNamespace(submit=lambda asked: lambda: self._answer("line", asked)))
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
        return [SimpleNamespace(nbytes=self.size) for _ in requests]


def test_the_size_of_an_answer_decides_the_way_of_the_next_question(monkeypatch):
    shard = Shard(monkeypatch)
    reader = ShardReader(shard)
    for size in (100, LARGE_BYTES // 2 + 1, LARGE_BYTES, 100, 100):
        shard.size = size
        assert len(reader.submit([SampleRequest(1, (0,)), SampleRequest(1, (1,))])()) == 2
    assert shard.ways == ["line", "line", "ray", "ray", "line"]


@pytest.mark.parametrize("lost_by", ["silence", "name"])
def test_a_shard_that_is_gone_is_said_to_be_gone_and_looked_up_again(monkeypatch, lost_by):
    shard = Shard(monkeypatch)
    reader = ShardReader(shard)
    shard.size = LARGE_BYTES + 1
    reader.submit([SampleRequest(1, (0,))])()
    shard.has_name = lost_by != "name"
    shard.error = GetTimeoutError("silent")
    with pytest.raises(RoleGoneError, match="shard-0"):
        reader.submit([SampleRequest(1, (0,))])()
    assert shard.forgotten == (lost_by == "silence")
