"""How far a world model may be trusted, in numbers: its predictions on episodes that it was never
trained on, beside what came. Numpy alone.

Errors are shares of the variance of what came: 0 is perfect, 1 is no better than to predict the
mean of these rows, more is worse than that. Legend: B windows, W seen rows, K imagined rows, S = W
+ K.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloom.core.foresight import Foresight
from worldloom.core.protocol import PredictsAhead
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec
from worldloom.evaluation.calibration import calibration

__all__ = ["HORIZONS", "IMAGINED_ROWS", "SEEN_ROWS", "Probes", "action_facts", "model_facts"]

SEEN_ROWS = 5
"""W: rows that a model sees before it predicts."""
IMAGINED_ROWS = 15
"""K: rows that it predicts, as many decisions as DreamerV3 imagines."""
HORIZONS = (1, 2, 4, 8, 15)
"""Decisions ahead of which errors are told."""
LEAST_VARIANCE = 1e-8
"""What hardly changes is not judged."""
BINS = 10
"""Parts of a continuous action's range that coverage counts."""
AT_BOUND = 0.99


@dataclass(frozen=True, slots=True)
class Probes:
    """Windows of episodes, and how those went on.

    Attributes:
        batch: Numpy arrays ``[B, S, ...]``, each window inside one episode.
        episode: ``[B]`` number of the episode.
        offset: ``[B]`` place of the window's first row in it.
        rewards: Per episode ``[n + 1]``, on arrival at every row.
        terminated: Per episode; of the others the last window ends with the last row.
        actions: Per key ``[R, ...]``, every decision of these episodes.
    """

    batch: SequenceBatch
    episode: np.ndarray
    offset: np.ndarray
    rewards: Sequence[np.ndarray]
    terminated: Sequence[bool]
    actions: Mapping[str, np.ndarray]


def model_facts(agent: Any, probes: Probes, actions: Mapping[str, ArraySpec]) -> dict[str, Any]:
    """What ``model`` of an evaluation says; empty for an agent that does not predict ahead.

    Args:
        agent: A trained one.
        probes: What it was never trained on.
        actions: Of the env.

    Returns:
        ``windows``; ``error`` by what (``obs``, ``latent``, ``reward``) and decisions ahead;
        ``reward_bias`` (predicted minus received, per decision); ``continue_gap``;
        ``value_bias``, ``value_error`` and ``value_correlation`` against the returns that came;
        ``disagreement`` by decisions ahead; ``action_coverage`` and ``action_saturation``, see
        :func:`action_facts`. What cannot be told (nothing varies) is left out; so is a number that
        is not finite, and ``not_finite`` names it.
    """
    if not isinstance(agent, PredictsAhead):
        return {}
    ahead = agent.predict_ahead(probes.batch, SEEN_ROWS)
    came = probes.batch.reward[:, SEEN_ROWS:]
    numbers = [_scaled(pair, each=True) for pair in ahead.obs.values()]
    pixels = [_scaled(pair, each=False) for pair in ahead.pixels.values()]
    error = {
        "obs": _errors([*numbers, *pixels]),
        "latent": _errors([_scaled(ahead.latent, each=False)]),
        "reward": _errors([_scaled((ahead.reward[..., None], came[..., None]), each=True)]),
    }
    facts: dict[str, Any] = {
        "windows": len(came),
        "error": {what: found for what, found in error.items() if found},
        "reward_bias": float(np.mean(ahead.reward - came)),
    }
    if ahead.goes_on is not None:
        went_on = 1.0 - probes.batch.terminated[:, SEEN_ROWS:].astype(np.float32)
        facts["continue_gap"] = calibration(np.clip(ahead.goes_on, 0.0, 1.0), went_on)
    facts |= _value_facts(ahead, probes)
    facts["disagreement"] = {
        str(k): float(ahead.disagreement[:, k - 1].mean())
        for k in HORIZONS
        if k <= ahead.disagreement.shape[1]
    }
    facts |= action_facts(probes.actions, actions)
    odd: list[str] = []
    found = _finite(facts, odd)
    return found | ({"not_finite": odd} if odd else {})


def action_facts(
    actions: Mapping[str, np.ndarray], specs: Mapping[str, ArraySpec]
) -> dict[str, float]:
    """How much of what could be done was done.

    Args:
        actions: Per key ``[R, ...]``, continuous ones in [-1, 1].
        specs: Of the keys.

    Returns:
        ``action_coverage``: the share of the parts of every component's range (tenths of it, or
        classes) in which an action lay, a mean over components. ``action_saturation``: the share of
        continuous components at an end of their range.
    """
    shares: list[float] = []
    at_bound: list[np.ndarray] = []
    for key, spec in specs.items():
        values = actions[key].reshape(len(actions[key]), -1)
        if spec.is_discrete:
            classes = np.broadcast_to(np.reshape(spec.num_classes, spec.shape), spec.shape).ravel()
            places, counts = values, classes
        else:
            places = np.clip((values + 1) / 2 * BINS, 0, BINS - 1).astype(int)
            counts = np.full(values.shape[1], BINS)
            at_bound.append(np.abs(values) >= AT_BOUND)
        shares += [
            len(np.unique(column)) / int(count)
            for column, count in zip(places.T, counts, strict=True)
        ]
    facts = {"action_coverage": float(np.mean(shares))} if shares else {}
    if at_bound:
        facts["action_saturation"] = float(np.mean(np.concatenate(at_bound, axis=1)))
    return facts


def _scaled(pair: tuple[np.ndarray, np.ndarray], *, each: bool) -> np.ndarray | None:
    """Squared errors of predictions ``[B, K, F]`` by row ahead, ``[K]``, as a share of the variance
    of what came; None where nothing changes.

    Args:
        pair: Predicted and seen.
        each: Divide the errors of every number by its own variance, because numbers have units of
            their own; one that hardly changes is left out. False for pixels and latents, which have
            one unit: all errors are divided by all of the variance.
    """
    predicted, seen = pair
    variance = seen.reshape(-1, seen.shape[-1]).var(0)
    if not each:
        variance = np.full_like(variance, variance.mean())
    tells = variance > LEAST_VARIANCE
    if not tells.any():
        return None
    squared = np.square(predicted[..., tells] - seen[..., tells]) / variance[tells]
    found: np.ndarray = squared.mean((0, 2))
    return found


def _errors(by_key: Sequence[np.ndarray | None]) -> dict[str, float]:
    """Errors by decisions ahead; keys count alike."""
    known = [errors for errors in by_key if errors is not None]
    if not known:
        return {}
    mean = np.mean(known, axis=0)
    return {str(k): float(mean[k - 1]) for k in HORIZONS if k <= len(mean)}


def _value_facts(ahead: Foresight, probes: Probes) -> dict[str, float]:
    """Values beside returns, in the rows that are filtered by then."""
    value: list[np.ndarray] = []
    returned: list[np.ndarray] = []
    ends = _values_at_ends(ahead, probes)
    length = ahead.value.shape[1]
    for row, (episode, offset) in enumerate(zip(probes.episode, probes.offset, strict=True)):
        to_come = _returns(probes.rewards[episode], ends[episode], ahead.discount)
        rows = np.arange(SEEN_ROWS - 1, length)
        rows = rows[offset + rows < len(to_come) - 1]  # after the last row nothing came
        value.append(ahead.value[row, rows])
        returned.append(to_come[offset + rows])
    values = np.concatenate(value).astype(np.float64)
    returns = np.concatenate(returned)
    if not len(values):
        return {}
    facts = {"value_bias": float(np.mean(values - returns))}
    spread = returns.std()
    if spread**2 > LEAST_VARIANCE:
        facts["value_error"] = float(np.mean(np.square(values - returns)) / spread**2)
        if values.var() > LEAST_VARIANCE:
            facts["value_correlation"] = float(np.corrcoef(values, returns)[0, 1])
    return facts


def _values_at_ends(ahead: Foresight, probes: Probes) -> list[float]:
    """The model's value of every episode's last row, 0 where the episode terminated: a truncated
    one would have gone on.
    """
    ends = [0.0] * len(probes.rewards)
    length = ahead.value.shape[1]
    for row, (episode, offset) in enumerate(zip(probes.episode, probes.offset, strict=True)):
        is_last = offset + length == len(probes.rewards[episode])
        if is_last and not probes.terminated[episode]:
            ends[episode] = float(ahead.value[row, -1])
    return ends


def _returns(rewards: np.ndarray, end: float, discount: float) -> np.ndarray:
    """Sum of discounted rewards after every row, ``[n + 1]``; ``end`` is that of the last one."""
    backwards = itertools.accumulate(
        rewards[:0:-1].tolist(), lambda later, reward: reward + discount * later, initial=end
    )
    return np.array(list(backwards)[::-1])


def _finite(facts: Mapping[str, Any], odd: list[str], place: str = "") -> dict[str, Any]:
    """Without numbers that are none, whose names are added to ``odd``."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found[name] = _finite(value, odd, f"{place}{name}.")
        elif np.isfinite(value):
            found[name] = value
        else:
            odd.append(f"{place}{name}")
    return found
