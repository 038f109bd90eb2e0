"""A shard asks for an answer to its reports, so that it learns of a coordinator that is new."""

import asyncio
import types

import pytest

from worldloom_dist.interfaces import Coordinator
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.runtime import shard_role


def test_a_report_that_no_one_answers_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_role, "REPORT_EVERY_S", 0.0)
    reports = []

    class Client:
        def within(self, **_):
            return self

        async def acall(self, method, *args):
            assert method is Coordinator.report
            reports.append(args)
            if len(reports) == 1:
                raise RoleGoneError("coordinator-0 did not answer")
            if len(reports) == 3:
                raise asyncio.CancelledError

    role = types.SimpleNamespace(
        _coordinator=Client(),
        _index=2,
        shard=types.SimpleNamespace(row_counters=lambda: "counters", window_counts=lambda: (7, 3)),
    )

    async def work() -> None:
        with pytest.raises(asyncio.CancelledError):
            await shard_role.report_for_ever(role)

    asyncio.run(work())
    assert reports == [(2, "counters", 7, 3)] * 3
