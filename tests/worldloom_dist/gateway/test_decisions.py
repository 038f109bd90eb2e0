"""Actions before there are weights."""

import asyncio
import weakref

import numpy as np

from tests.worldloom_dist.gateway.parts import spec_of
from worldloom.core.sequence import NO_POLICY
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.gateway.decisions import Decisions


def test_sessions_that_are_over_leave_no_generator_behind(monkeypatch) -> None:
    made = []

    class Generator(np.random.Generator):
        """One that can be asked for."""

    def make(seed):
        found = Generator(np.random.PCG64(seed))
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(np.random, "default_rng", make)
    spec = spec_of()

    async def no_weights(request):
        return ActReply({}, {}, NO_POLICY, np.zeros(0, bool))

    async def work():
        decide = Decisions(no_weights, spec, spec.columns(), seed=3, random_prefill=True)
        seen = []
        for incarnation in range(20):
            for _ in range(2):
                request = ActRequest(7, incarnation, np.arange(2), {}, np.zeros(2, bool))
                seen.append((await decide(request)).action["action"].tobytes())
        assert len(set(seen)) == 40, "each goes on where it was, and no two are alike"
        assert len(made) == 40
        assert sum(one() is not None for one in made) == 2

    asyncio.run(work())
