"""Where a gateway's answers come from: random actions until the first weights, where the agent
wants that, then a policy.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import numpy as np

from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.vector import sample_actions
from worldloom_dist.actors.acting import ActReply, ActRequest

__all__ = ["Decider", "Decisions"]

LOOK_FOR_WEIGHTS_EVERY_S = 0.5


class Decider(Protocol):
    """Answers for a gateway."""

    async def __call__(self, request: ActRequest) -> ActReply:
        """Decide. A request without rows asks for the version that acts.

        Raises:
            StateError: If no one can decide now; the request may come again.
        """


class Decisions:
    """Random until there are weights, then those of ``ask``.

    Args:
        ask: Decides.
        env_spec: What actions are.
        columns: Columns of a row, the agent's own included.
        seed: Of the random actions.
        random_prefill: Act at random before there are weights.
        clock: Monotonic seconds.

    Attributes:
        version: Weights that acted last, as far as is known.
    """

    def __init__(
        self,
        ask: Callable[[ActRequest], Awaitable[ActReply]],
        env_spec: EnvSpec,
        columns: Mapping[str, ArraySpec],
        *,
        seed: int,
        random_prefill: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.version: PolicyVersion = NO_POLICY
        self._ask = ask
        self._spec = env_spec
        own = env_spec.columns()
        self._extras = {name: spec for name, spec in columns.items() if name not in own}
        self._seed = np.random.SeedSequence(seed)
        # by slot and env, of one incarnation: a session that is over leaves its slot to the next
        self._generators: dict[tuple[int, int], tuple[int, np.random.Generator]] = {}
        self._is_random = random_prefill
        self._clock = clock
        self._look_at = -float("inf")

    async def __call__(self, request: ActRequest) -> ActReply:
        """Decide (see :class:`Decider`)."""
        if self._is_random:
            await self._look(request.slot)
        if self._is_random:
            return self._random(request)
        reply = await self._ask(request)
        self.version = max(self.version, reply.version)
        return reply

    async def _look(self, slot: int) -> None:
        """See whether there are weights now."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_FOR_WEIGHTS_EVERY_S
        empty = ActRequest(slot, 0, np.zeros(0, np.int64), {}, np.zeros(0, bool))
        self.version = (await self._ask(empty)).version
        self._is_random = self.version == NO_POLICY
        if not self._is_random:
            self._generators.clear()

    def _random(self, request: ActRequest) -> ActReply:
        count = request.num_rows
        generators = [
            self._generator(request.slot, request.incarnation, env) for env in request.envs.tolist()
        ]
        return ActReply(
            sample_actions(self._spec, generators) if count else {},
            {name: spec.zeros(count) for name, spec in self._extras.items()},
            NO_POLICY,
            np.zeros(count, bool),
        )

    def _generator(self, slot: int, incarnation: int, env: int) -> np.random.Generator:
        known, found = self._generators.get((slot, env), (None, None))
        if found is None or known != incarnation:
            name = (slot, incarnation, env)
            child = np.random.SeedSequence(self._seed.entropy, spawn_key=name)
            found = np.random.default_rng(child)
            self._generators[slot, env] = (incarnation, found)
        return found
