"""How far ahead a task asks to look, from how long its episodes may be. No torch."""

from __future__ import annotations

__all__ = ["derived_discount"]


def derived_discount(episode_limit: int | None, *, denom: float, low: float, high: float) -> float:
    """The discount per decision that looks ahead one episode limit divided by ``denom``.

    ``clip((f - 1) / f, low, high)`` with ``f = episode_limit / denom``; ``high`` without a limit.

    Source: TD-MPC2's code (github.com/nicklashansen/tdmpc2, ``tdmpc2.py``, ``_get_discount``).

    Example:
        >>> derived_discount(200, denom=5, low=0.95, high=0.99)
        0.975
    """
    if episode_limit is None:
        return high
    reach = episode_limit / denom
    return min(max((reach - 1) / reach, low), high)
