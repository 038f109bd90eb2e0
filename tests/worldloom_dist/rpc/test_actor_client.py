"""Calls of roles that die and come back; Ray is a fake that finds the present process of a role."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError

from worldloom_dist.interfaces import Coordinator, Hub, coordinator_client, hub_client
from worldloom_dist.rpc import actor_client as module
from worldloom_dist.rpc.actor_client import RoleGoneError, drain_errors, submit


class FakeRay:
    """Processes of one role, the present one first; each answers with what it is made with, or
    raises it.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.looked_up: list[str] = []
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.timeouts: list[float | None] = []

    def get_actor(self, name: str) -> Any:
        self.looked_up.append(name)
        if not self.answers:
            raise ValueError(f"Failed to look up actor with name {name!r}")
        answer = self.answers.pop(0)

        class Handle:
            def __getattr__(_, method: str) -> Any:
                return SimpleNamespace(remote=lambda *a, **k: self._ask(answer, method, a, k))

        return Handle()

    def get(self, reference: Any, timeout: float | None) -> Any:
        self.timeouts.append(timeout)
        if isinstance(reference, Exception):
            raise reference
        return reference

    def _ask(self, answer: Any, method: str, args: Any, kwargs: Any) -> Any:
        self.asked.append((method, args, kwargs))
        return answer


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    def make(*answers: Any) -> FakeRay:
        fake = FakeRay(*answers)
        monkeypatch.setattr(module, "ray", fake)
        return fake

    drain_errors()
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    return make


def test_a_call_goes_by_the_name_of_the_method_with_its_arguments(ray) -> None:
    fake = ray(7)
    assert coordinator_client().call(Coordinator.updates_due) == 7
    assert fake.looked_up == ["coordinator-0"]
    assert fake.asked == [("updates_due", (), {})]


def test_a_successor_is_looked_up_and_asked_again(ray) -> None:
    fake = ray(RayActorError(), GetTimeoutError("silent"), 7)
    client = coordinator_client()
    assert client.call(Coordinator.is_live, 3) == 7
    assert client.call(Coordinator.is_live, shard=4) == 7
    assert fake.looked_up == ["coordinator-0"] * 3, "a handle that works is kept"
    assert fake.asked[-2:] == [("is_live", (3,), {}), ("is_live", (), {"shard": 4})]
    assert drain_errors() == {"gone": 1, "timeout": 1}


def test_other_deadlines_share_the_handle_that_was_found(ray) -> None:
    fake = ray(1)
    client = coordinator_client()
    client.call(Coordinator.updates_due)
    client.within(timeout_s=5.0).call(Coordinator.updates_due)
    client.within(timeout_s=None, patience_s=0.0).call(Coordinator.updates_due)
    assert fake.timeouts == [30.0, 5.0, None]
    assert fake.looked_up == ["coordinator-0"]
    client.within(timeout_s=5.0).forget()
    fake.answers.append(2)
    assert client.call(Coordinator.updates_due) == 2, "forgotten by all of them"


def test_a_role_without_a_successor_is_given_up(ray) -> None:
    ray(RayActorError())
    with pytest.raises(RoleGoneError, match="coordinator-0 did not answer for 0 s"):
        coordinator_client().within(patience_s=0.0).call(Coordinator.updates_due)


def test_an_error_of_the_role_is_no_reason_to_repeat_the_call(ray) -> None:
    fake = ray(ValueError("a bad seed"))
    with pytest.raises(ValueError, match="a bad seed"):
        coordinator_client().call(Coordinator.split, 1, (0, 0, 0))
    assert len(fake.asked) == 1


def test_an_event_loop_repeats_a_call_likewise(ray) -> None:
    async def answer(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    ray(answer(RayActorError()), answer(7))
    assert asyncio.run(coordinator_client().acall(Coordinator.updates_due)) == 7


def test_what_is_sent_to_a_role_that_is_away_is_counted_and_lost(ray) -> None:
    ray()
    hub_client().notify(Hub.emit, "actor", 0, {}, None)
    assert drain_errors() == {"gone": 1}


def test_one_process_is_called_without_its_successor(ray) -> None:
    fake = ray("numbers")
    handle = fake.get_actor("hub-0")
    assert submit(handle, Hub.snapshot) == "numbers"
    assert fake.asked == [("snapshot", (), {})]


def test_a_notice_after_one_that_reached_no_one_goes_to_the_successor(monkeypatch) -> None:
    sent = []

    class Actor:
        """One process; what is sent to it after its death fails without a word."""

        def __init__(self, name, error=None):
            self.name = name
            self.error = error
            self.emit = SimpleNamespace(remote=self._send)

        def _send(self, *_):
            sent.append(self.name)
            outcome = Future()
            outcome.set_exception(self.error) if self.error else outcome.set_result(None)
            return SimpleNamespace(future=lambda: outcome)

    actors = iter([Actor("dead", RayActorError()), Actor("successor")])
    monkeypatch.setattr(module.ray, "get_actor", lambda name: next(actors))
    client = module.ActorClient("metrics-0")
    for _ in range(4):
        client.notify(Hub.emit, "actor", 0, {}, None)
    assert sent == ["dead", "successor", "successor", "successor"]
