import logging
import time

import pytest
import ray
from ray.exceptions import RayError, RayTaskError

from worldloom.core.exceptions import ConfigurationError, EnvFailureError, TrainingError
from worldloom_dist.interfaces import Process
from worldloom_dist.runtime import supervisor as module
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.supervisor import (
    MAX_QUICK_ENV_LOSSES,
    MAX_VAIN_STARTS,
    PAUSES,
    STEADY_S,
    Role,
    Supervisor,
)


def role_of() -> Role:
    return Role("worker", 0, start=lambda _: None, run_forever=lambda _: None, is_vital=False)


def pause_after_death(supervisor: Supervisor, role: Role, lived_s: float | None) -> float:
    role.ready_at = None if lived_s is None else time.monotonic() - lived_s
    role.started_at = time.monotonic() - (lived_s or 0.0)
    supervisor.died(role, "it was killed")
    return role.start_at - time.monotonic()


def test_role_that_worked_comes_back_at_once_and_one_that_dies_at_once_waits_longer() -> None:
    supervisor = Supervisor(max_restarts=20, window_s=600.0)
    role = role_of()
    for _ in range(3):
        assert pause_after_death(supervisor, role, 2 * STEADY_S) <= 0
    quick = [pause_after_death(supervisor, role, lived) for lived in (None, 0.1, None)]
    assert quick == pytest.approx([factor * PAUSES.first_s for factor in (1, 2, 4)], abs=0.2)
    assert pause_after_death(supervisor, role, 2 * STEADY_S) <= 0
    assert role.incarnation == supervisor.restarts["worker"] == 7


def test_role_that_loses_its_envs_again_and_again_is_given_up_soon_without_tracebacks(
    monkeypatch, caplog
) -> None:
    failure = EnvFailureError("no env is left of 1")

    def get(_):
        raise RayTaskError("run", "Traceback: ...", failure).as_instanceof_cause()

    monkeypatch.setattr(ray, "get", get)
    supervisor = Supervisor(max_restarts=20, window_s=600.0)
    role = role_of()
    role.started_at = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for _ in range(MAX_QUICK_ENV_LOSSES + 1):
            assert not role.is_given_up
            supervisor.ended(role)
    assert role.is_given_up
    assert "Traceback" not in caplog.text
    assert "given up after 3 restarts in 600 s; the last time no env is left of 1" in caplog.text
    other = role_of()
    for _ in range(MAX_QUICK_ENV_LOSSES + 1):
        other.ready_at = time.monotonic() - 2 * STEADY_S
        supervisor.ended(other)
    assert not other.is_given_up, "it works for a while, so max_restarts counts alone"


def test_an_error_of_ray_without_a_text_is_a_death_like_any_other(monkeypatch) -> None:
    def get(_):
        raise RayError

    monkeypatch.setattr(ray, "get", get)
    supervisor = Supervisor(max_restarts=20, window_s=600.0)
    role = role_of()
    supervisor.ended(role)
    assert role.last_failure == "it was lost (RayError)"


class Clock:
    """Time as the supervisor sees it; a role whose pings are answered with a status."""

    def __init__(self, monkeypatch, status=None) -> None:
        self.now = 1000.0
        self.status = status or {}
        self.is_silent = False
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "submit", lambda _, method: method)
        monkeypatch.setattr(ray, "kill", lambda *_, **__: None)
        monkeypatch.setattr(ray, "get", lambda _: dict(self.status))
        monkeypatch.setattr(ray, "wait", self.answered)

    def answered(self, asked, **_):
        """Pings, unless it is silent; no role ends."""
        pings = [one for one in asked if one is Process.ping and not self.is_silent]
        return pings, [one for one in asked if one not in pings]

    def pass_for(self, supervisor: Supervisor, role: Role, seconds: float) -> None:
        """Poll once a second, and start it again when that is due."""
        for _ in range(int(seconds)):
            if role.is_given_up:
                return
            self.now += 1.0
            if role.handle is None and self.now >= role.start_at:
                supervisor.start_role(role)
            elif role.handle is not None:
                supervisor.check_ping(role, self.now)


def watched() -> Role:
    return Role("shard", 0, start=lambda _: object(), run_forever=lambda _: None, is_vital=False)


def test_a_role_that_uses_up_its_start_deadline_again_and_again_is_given_up(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    clock.is_silent = True
    supervisor = Supervisor(max_restarts=20, window_s=600.0)
    role = watched()
    clock.pass_for(supervisor, role, 4 * (role.start_timeout_s + 40))
    assert role.is_given_up
    assert "did not answer for 180 s" in role.last_failure
    assert len(role.deaths) == MAX_VAIN_STARTS + 1


def test_a_role_that_works_and_hangs_by_turns_is_given_up_after_its_restarts(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    supervisor = Supervisor(max_restarts=5, window_s=600.0)
    role = watched()
    for _ in range(6):
        clock.is_silent = False
        clock.pass_for(supervisor, role, 60)
        assert not role.is_given_up
        clock.is_silent = True
        clock.pass_for(supervisor, role, 150)  # in all longer than the window
    assert role.is_given_up
    other = watched()
    for _ in range(20):
        clock.is_silent = False
        clock.pass_for(supervisor, other, 300)
        clock.is_silent = True
        clock.pass_for(supervisor, other, 40)
    assert not other.is_given_up, "restarts that lie far behind are forgotten"


def test_a_role_that_reads_its_journal_for_long_lives_and_one_that_fails_after_it_is_given_up(
    monkeypatch,
) -> None:
    clock = Clock(monkeypatch, {"reading": "1,000 rows so far, 7 of 10,000 MB"})
    supervisor = Supervisor(max_restarts=20, window_s=600.0)
    role = watched()
    clock.pass_for(supervisor, role, 2000)
    assert role.incarnation == 0
    assert role.handle is not None
    assert not role.is_up, "it does not serve yet"
    for failures in range(1, MAX_VAIN_STARTS + 2):
        assert not role.is_given_up
        supervisor.died(role, "it raised CheckpointError: its journal is damaged")
        assert role.is_given_up == (failures > MAX_VAIN_STARTS)
        clock.pass_for(supervisor, role, 200)


def test_a_role_that_cannot_be_placed_says_so_and_is_not_tried_for_ever() -> None:
    def start(_: int) -> None:
        raise ConfigurationError("learners: 2 ranks need a GPU each, and the cluster has 1")

    supervisor = Supervisor(max_restarts=20, window_s=600.0)
    role = role_of()
    role.start = start
    with pytest.raises(ConfigurationError, match="need a GPU each"):
        supervisor.start_role(role)
    role.has_been_up = True  # the run has data by now: it failed, and was not started wrongly
    with pytest.raises(TrainingError, match=r"worker-0 cannot be started again: learners: 2 ranks"):
        supervisor.start_role(role)


def test_a_name_that_is_not_free_yet_is_tried_again() -> None:
    def start(_: int) -> None:
        raise ValueError("Actor with name 'worker-0' already exists")

    supervisor = Supervisor(max_restarts=20, window_s=600.0)
    role = role_of()
    role.start = start
    supervisor.start_role(role)
    assert role.start_at > time.monotonic()


def test_a_driver_that_was_stopped_takes_no_role_for_silent(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    supervisor = Supervisor(max_restarts=20, window_s=600.0)
    role = watched()
    supervisor.add(role)
    supervisor.poll(0.0)
    assert role.is_up
    clock.is_silent = True  # it was asked, and then all processes were stopped for an hour
    clock.now += 5.0
    supervisor.poll(0.0)
    clock.now += 3600.0
    supervisor.poll(0.0)
    assert role.is_up
    for _ in range(int(role.ping_timeout_s) + 1):
        clock.now += 1.0
        supervisor.poll(0.0)
    assert not role.is_up, "a role that says nothing now is silent"
    assert role.last_failure == "it did not answer for 30 s"


def test_a_driver_that_was_stopped_leaves_roles_their_time_to_leave(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    supervisor = Supervisor(max_restarts=20, window_s=600.0)
    role = watched()
    supervisor.add(role)
    supervisor.poll(0.0)
    clock.is_silent = True
    supervisor.move(role)
    clock.now += 3600.0
    supervisor.poll(0.0)
    assert role.handle is not None, "it sends what is open"
    for _ in range(int(DEADLINES.leave_s) + 1):
        clock.now += 1.0
        supervisor.poll(0.0)
    assert role.handle is None


def test_a_worker_whose_env_is_never_built_is_given_up_with_the_reason(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    supervisor = Supervisor(max_restarts=20, window_s=600.0)
    role = watched()
    for failures in range(1, MAX_VAIN_STARTS + 2):
        clock.status = {"doing": "starting", "seconds": 100.0}
        clock.pass_for(supervisor, role, 100)
        assert role.is_up, "it answers"
        clock.status |= {"seconds": 181.0, "stuck": "its env was not built within 181 s"}
        while len(role.deaths) < failures:
            clock.pass_for(supervisor, role, 1)
        assert role.is_given_up == (failures > MAX_VAIN_STARTS)
    assert role.last_failure == "its env was not built within 181 s"


def test_a_role_whose_env_ends_it_by_sigterm_at_once_is_no_machine_that_goes(monkeypatch) -> None:
    told = {"open_rows": 0, "is_preempted": True}
    monkeypatch.setattr(ray, "get", lambda _: told)
    supervisor = Supervisor(max_restarts=2, window_s=600.0)
    role = role_of()
    for _ in range(3):
        role.started_at = time.monotonic()
        assert not role.is_given_up
        supervisor.ended(role)
    assert role.is_given_up
    steady = role_of()
    for _ in range(3):
        steady.ready_at = time.monotonic() - 2 * STEADY_S
        supervisor.ended(steady)
    assert not steady.is_given_up
    assert not steady.deaths, "a machine that is taken away is no fault of the role"
