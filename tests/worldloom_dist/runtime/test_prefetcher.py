"""The prefetcher with shards that answer, have too little, or are gone; no Ray is started."""

import itertools
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from worldloom.data.windows import EncodedWindows, SampledWindows
from worldloom_dist.interfaces import Coordinator
from worldloom_dist.ports import SampleRequest
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve
from worldloom_dist.runtime import prefetcher as feed_module
from worldloom_dist.runtime.prefetcher import (
    MOST_AT_ONCE,
    ROUND_BYTES,
    ROUND_S,
    BatchPrefetcher,
    _next_round,
)


def windows_of(shard: int, request: SampleRequest) -> SampledWindows:
    rows = np.random.default_rng(list(request.seed)).integers(1 << 40, size=(request.windows, 4))
    zeros = np.zeros(request.windows, np.int64)
    return SampledWindows(
        {"reward": rows.astype(float)}, rows, zeros + shard, zeros, zeros.astype(float)
    )


BEGAN_AT = 1234


class Roles:
    """A coordinator and two shards; ``broken`` says what a shard raises instead of an answer, or
    when it has enough to draw from.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken: dict[int, Exception | Iterator[bool]] = {}
        self.answered_bytes = 1000
        self.rounds: list[list[tuple[int, ...]]] = []
        self.down: list[int] = []
        self.asked = threading.Semaphore(0)
        self.length = 0
        monkeypatch.setattr(feed_module, "shard_client", self._shard)
        monkeypatch.setattr(feed_module, "coordinator_client", self._coordinator)
        monkeypatch.setattr(feed_module, "ShardClient", self._reader)

    def split(self, windows: int, seed: tuple[int, ...]) -> dict[int, SampleRequest]:
        live = [index for index in (0, 1) if index not in self.broken]
        return {index: SampleRequest(windows // len(live), (*seed, index + 1)) for index in live}

    def _shard(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(index=index, forget=lambda: None)

    def _coordinator(self) -> SimpleNamespace:
        coordinator = SimpleNamespace(call=self._call, notify=self._told)
        coordinator.within = lambda **_: coordinator
        return coordinator

    def _reader(self, shard: SimpleNamespace, _: object) -> SimpleNamespace:
        return SimpleNamespace(
            submit=lambda requests: lambda: self._give(shard.index, requests),
            answered_bytes=self.answered_bytes,
        )

    def _call(self, method, *args):
        if method is Coordinator.shard_down:
            self.down.append(args[0])
        if method is Coordinator.split:
            return self.split(*args)
        if method is not Coordinator.admit_samples:
            return None
        _, _, windows, seeds, began_at, taken = args
        permitted = sum(len(seeds) for seeds in self.rounds) * windows * self.length
        assert (began_at, taken) == (BEGAN_AT, permitted), "what this rank was permitted so far"
        self.rounds.append(seeds)
        self.asked.release()
        return [{i: SampleRequest(windows // 2, (*seed, i + 1)) for i in (0, 1)} for seed in seeds]

    def _told(self, method, *args):
        assert (method, args[0]) == (Coordinator.dismiss, "learner-0"), "the prefetcher ends"

    def _give(self, index, requests):
        fault = self.broken.get(index, itertools.repeat(True))
        if isinstance(fault, Exception):
            raise fault
        if not next(fault):
            return None
        given = [windows_of(index, request) for request in requests]
        return EncodedWindows(SampledWindows.concatenate(given))


def batches(monkeypatch, count, broken=None, more=(), answered_bytes=1000):
    roles = Roles(monkeypatch)
    roles.broken = broken or {}
    roles.answered_bytes = answered_bytes
    words = ["--preset", "debug", "--env", "toy:counting", "--replay.shards", "2", *more]
    plan = resolve(parse(words))
    roles.length = plan.spec.sampling.length
    prefetcher = BatchPrefetcher(plan, 5, lambda windows: windows, began_at=BEGAN_AT)
    try:
        return roles, prefetcher, [prefetcher.get(timeout_s=10.0) for _ in range(count)]
    finally:
        prefetcher.stop()


def test_a_fast_learner_gets_several_batches_for_one_round_of_questions_each_with_draws_of_its_own(
    monkeypatch,
):
    roles, prefetcher, given = batches(monkeypatch, 80)
    asked = [seed for seeds in roles.rounds for seed in seeds]
    assert [seed[1] for seed in asked] == list(range(5, 5 + len(asked))), (
        "no batch is skipped or drawn twice"
    )
    assert max(map(len, roles.rounds)) == 2 * MOST_AT_ONCE, "this many for each shard"
    assert prefetcher.gauges()["queue_capacity_items{queue=batches}"].value > 2, (
        "the queue holds a round while the next one is asked for"
    )
    for seed, windows in zip(asked, given, strict=False):
        half = prefetcher.num_windows // 2
        expected = SampledWindows.concatenate(
            [windows_of(i, SampleRequest(half, (*seed, i + 1))) for i in (0, 1)]
        )
        assert np.array_equal(windows.row_ids, expected.row_ids)


def test_a_round_of_large_batches_is_as_small_as_with_one_shard(monkeypatch):
    roles, _, _ = batches(monkeypatch, 80, answered_bytes=ROUND_BYTES)
    assert max(map(len, roles.rounds)) == MOST_AT_ONCE


@pytest.mark.parametrize("more", [["--runtime", "local"], ["--learners", "2"]])
def test_lock_step_and_several_ranks_ask_for_one_batch_at_a_time(monkeypatch, more):
    roles, _, _ = batches(monkeypatch, 10, more=more)
    assert {len(seeds) for seeds in roles.rounds} == {1}


@pytest.mark.parametrize(
    "fault", [RoleGoneError("gone"), itertools.repeat(False)], ids=["is gone", "has too little"]
)
def test_what_one_shard_cannot_give_comes_from_the_other(monkeypatch, fault):
    roles, prefetcher, given = batches(monkeypatch, 12, {1: fault})
    for windows in given:
        assert len(windows.row_ids) == prefetcher.num_windows
        assert set(windows.shard) == {0}
    assert (1 in roles.down) == isinstance(fault, RoleGoneError)


def test_what_a_shard_cannot_give_for_a_round_comes_from_the_other_for_all_its_batches(monkeypatch):
    roles, prefetcher, given = batches(monkeypatch, 40, {1: itertools.cycle([True, False])})
    assert max(map(len, roles.rounds)) > 1
    assert all(len(windows.row_ids) == prefetcher.num_windows for windows in given)
    assert {tuple(np.unique(windows.shard)) for windows in given} == {(0, 1), (0,)}
    assert not roles.down


def test_a_round_grows_slowly_and_shrinks_at_once():
    assert _next_round(1, 0.0, 8) == 2
    assert _next_round(8, 0.0, 8) == 8
    assert _next_round(8, 8 * ROUND_S, 8) == 1
    assert _next_round(4, 4 * ROUND_S / 3.5, 8) == 3
