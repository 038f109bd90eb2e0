"""Pauses between attempts."""

import math

from worldloom.core.backoff import Backoff


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(first_s=0.05, longest_s=1.0)
    assert [backoff.pause_s(n) for n in range(6)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]


def test_a_single_failure_is_no_reason_to_wait() -> None:
    backoff = Backoff(first_s=0.5, longest_s=30.0)
    assert [backoff.pause_after_s(failures) for failures in range(5)] == [0.0, 0.0, 0.5, 1.0, 2.0]


def test_thousands_of_failures_overflow_nothing() -> None:
    assert Backoff(0.5, 30.0).pause_s(100_000) == 30.0
    assert Backoff(0.5, math.inf).pause_after_s(100_000) < math.inf
    assert Backoff(0.0, 30.0).pause_s(100_000) == 0.0
