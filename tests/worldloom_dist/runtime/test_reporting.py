"""What a role tells the hub, and that a hub that is away costs nothing but the message."""

from collections import Counter

import pytest

from worldloom.core.metrics import Histogram, Last
from worldloom_dist.interfaces import Hub
from worldloom_dist.runtime import reporting
from worldloom_dist.runtime.reporting import Reporter, flush_interval_s, with_planner


class FakeHub:
    def __init__(self) -> None:
        self.told = []

    def notify(self, method, *args) -> None:
        self.told.append((method, *args))


@pytest.fixture
def hub(monkeypatch):
    hub = FakeHub()
    monkeypatch.setattr(reporting, "hub_client", lambda: hub)
    return hub


def test_a_role_sends_its_numbers_with_memory_and_failed_calls(hub, monkeypatch):
    monkeypatch.setattr(reporting, "drain_errors", lambda: Counter(gone=2))
    reporter = Reporter("actor", 3)
    reporter.emit({"loss{name=total}": Last(1.0)}, {"episodes": []})
    method, role, index, values, facts = hub.told[0]
    assert (method, role, index, facts) == (Hub.emit, "actor", 3, {"episodes": []})
    assert values["rpc_errors_total{reason=gone}"].value == 2
    assert values["process_resident_memory_bytes"].value > 0
    assert values["loss{name=total}"].value == 1.0


def test_a_role_that_waits_for_long_gives_a_sign_of_life(hub, monkeypatch):
    reporter = Reporter("actor", 3)
    now = reporting.time.monotonic()
    reporter.beat()
    assert hub.told == []
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now + 60)
    reporter.beat()
    reporter.beat()
    assert hub.told == [(Hub.emit, "actor", 3, {}, None)]


def test_the_hub_gets_as_many_flushes_from_many_workers_as_from_few():
    assert flush_interval_s(2) == 2.0
    assert 64 / flush_interval_s(64) == pytest.approx(12.0)


def test_the_times_of_a_planner_have_a_name_of_their_own():
    times = Histogram.of((1.0,), 0.5)
    assert with_planner({"inference_seconds": times}, "planner")["planner_seconds"] is times
    assert "planner_seconds" not in with_planner({"inference_seconds": times}, "policy")
