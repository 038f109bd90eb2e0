"""Reads what clients send: every message is checked before anything is changed by it, and before
anything of its size is allocated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from worldloom_client.errors import WireError
from worldloom_client.wire import SOURCES, check_action, named
from worldloom_dist.gateway.contract import Contract
from worldloom_dist.gateway.refusal import RefusalError

__all__ = ["Executed", "Question", "check_source", "read_question"]

SOURCE_NUMBERS = frozenset(SOURCES.values())


class Executed(NamedTuple):
    """What ran in place of an answer, per key, and who chose it."""

    action: Mapping[str, np.ndarray]
    source: int


@dataclass(frozen=True, slots=True)
class Question:
    """One checked question of ``n`` envs.

    Attributes:
        envs, steps: ``n`` numbers each.
        obs: Per key ``[n, ...]``.
        reward: ``[n]`` float32.
        is_first, terminated, truncated: ``[n]`` bool.
        executed: By env.
        skip_store: Its rows stay out of replay.
        begins, ends: ``n`` plain values: the row begins, or ends, its episode.
        rewards: ``n`` plain values.
        is_plain: It tells nothing but where envs in mid-episode have arrived, to be stored.
    """

    envs: list[int]
    steps: list[int]
    obs: Mapping[str, np.ndarray]
    reward: np.ndarray
    is_first: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    executed: Mapping[int, Executed]
    skip_store: bool
    begins: Sequence[bool]
    ends: Sequence[bool]
    rewards: Sequence[float]
    is_plain: bool


def read_question(request: Any, contract: Contract, num_envs: int) -> Question:
    """Check an ``ActRequest``.

    Args:
        request: The message.
        contract: What it must fit.
        num_envs: Of the session.

    Raises:
        RefusalError: Says what is wrong with it.
    """
    try:
        return _read(request, contract, num_envs)
    except WireError as error:
        raise RefusalError("INVALID_ARGUMENT", str(error)) from error


def _read(request: Any, contract: Contract, num_envs: int) -> Question:
    count = len(request.env)
    if count > num_envs:
        raise WireError(f"env: got {count} envs, expected each of at most {num_envs} once")
    envs = list(request.env)
    if envs != _in_order(num_envs):
        if len(set(envs)) != count:
            raise WireError(f"env: got {count} envs, expected each of at most {num_envs} once")
        if count and max(envs) >= num_envs:
            raise WireError(f"env: got {max(envs)}, expected 0 to {num_envs - 1}")
    for name in ("step", "reward", "is_first", "terminated", "truncated"):
        found = len(getattr(request, name))
        if found != count:
            raise WireError(f"{name}: got {found} values, expected {count}, one for each env")
    rewards = list(request.reward)
    reward = np.array(rewards, np.float32)
    if not math.isfinite(sum(rewards)):  # float32 numbers, summed as float64: none overflows
        raise WireError("reward: holds numbers that are not finite, expected finite ones")
    none, zeros = _none(count)
    is_quiet = request.is_first == request.terminated == request.truncated == none
    first = zeros if is_quiet else _flags(request, "is_first")
    terminated = zeros if is_quiet else _flags(request, "terminated")
    truncated = zeros if is_quiet else _flags(request, "truncated")
    begins = first.tolist()
    if not is_quiet and b"\x01" in request.is_first:
        if (first & (terminated | truncated)).any():
            raise WireError("is_first: a row that begins an episode cannot end it, too")
        if reward[first].any():
            raise WireError("reward: got another than 0 where is_first, expected 0")
    return Question(
        envs,
        list(request.step),
        named(contract.obs, request.obs, (count,), "obs") if count else {},
        reward,
        first,
        terminated,
        truncated,
        _read_executed(request, contract, dict(zip(envs, begins, strict=True)))
        if request.executed
        else {},
        bool(request.skip_store),
        begins,
        begins if is_quiet else (terminated | truncated).tolist(),
        rewards,
        bool(is_quiet and count and not request.skip_store and not request.executed),
    )


@functools.lru_cache(maxsize=1024)
def _in_order(num_envs: int) -> list[int]:
    """Every env of a session; not to be changed."""
    return list(range(num_envs))


@functools.lru_cache(maxsize=1024)
def _none(count: int) -> tuple[bytes, np.ndarray]:
    """Flags of which none is set, as they come and as [n] bool, read-only."""
    data = bytes(count)
    return data, np.frombuffer(data, bool)


def _flags(request: Any, name: str) -> np.ndarray:
    """[n] bool, read-only."""
    data: bytes = getattr(request, name)
    odd = data.strip(b"\x00\x01")
    if odd:
        raise WireError(f"{name}: got a byte {max(odd)}, expected 0 or 1")
    return np.frombuffer(data, bool)


def _read_executed(
    request: Any, contract: Contract, is_first: Mapping[int, bool]
) -> dict[int, Executed]:
    if len(request.executed) > len(is_first):
        raise WireError(
            f"executed: got {len(request.executed)} entries, expected at most {len(is_first)}"
        )
    found: dict[int, Executed] = {}
    for entry in request.executed:
        if entry.env not in is_first or entry.env in found:
            raise WireError(f"executed: env {entry.env} is not asked for, or named twice")
        if is_first[entry.env]:
            raise WireError(f"executed: env {entry.env} begins an episode, so nothing ran before")
        check_source(entry.source, "executed: source")
        action = named(contract.action, entry.action, (), "executed action")
        for spec in contract.action:
            check_action(action[spec.name], spec, f"executed action {spec.name!r}")
        found[entry.env] = Executed(action, entry.source)
    return found


def check_source(source: int, what: str) -> None:
    """Raises:
    WireError: If no one is named by it.
    """
    if source not in SOURCE_NUMBERS:
        names = ", ".join(f"{number} ({name})" for name, number in SOURCES.items())
        raise WireError(f"{what}: got {source}, expected one of {names}")
