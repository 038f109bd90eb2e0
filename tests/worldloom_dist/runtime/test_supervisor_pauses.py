import logging
import time

import pytest
import ray
from ray.exceptions import RayError, RayTaskError

from worldloom.core.exceptions import EnvFailureError
from worldloom_dist.runtime.supervisor import (
    MAX_QUICK_ENV_LOSSES,
    PAUSES,
    STEADY_S,
    Role,
    Supervisor,
)


def role_of() -> Role:
    return Role("worker", 0, start=lambda _: None, run_forever=lambda _: None, is_vital=False)


def pause_after_death(supervisor: Supervisor, role: Role, lived_s: float | None) -> float:
    role.ready_at = None if lived_s is None else time.monotonic() - lived_s
    supervisor._died(role, "it was killed")
    return role._start_at - time.monotonic()


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
    with caplog.at_level(logging.WARNING):
        for _ in range(MAX_QUICK_ENV_LOSSES + 1):
            assert not role.is_given_up
            supervisor._ended(role)
    assert role.is_given_up
    assert "Traceback" not in caplog.text
    assert "given up after 3 restarts in 600 s; the last time no env is left of 1" in caplog.text
    other = role_of()
    for _ in range(MAX_QUICK_ENV_LOSSES + 1):
        other.ready_at = time.monotonic() - 2 * STEADY_S
        supervisor._ended(other)
    assert not other.is_given_up, "it works for a while, so max_restarts counts alone"


def test_an_error_of_ray_without_a_text_is_a_death_like_any_other(monkeypatch) -> None:
    def get(_):
        raise RayError

    monkeypatch.setattr(ray, "get", get)
    supervisor = Supervisor(max_restarts=20, window_s=600.0)
    role = role_of()
    supervisor._ended(role)
    assert role.last_failure == "it was lost (RayError)"
