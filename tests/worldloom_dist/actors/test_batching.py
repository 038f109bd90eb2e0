"""Batches for one policy, on an event loop."""

import asyncio
import threading

import numpy as np

from tests.fakes import FakePolicy, FakeWeights, snapshot_of
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom_dist.actors.acting import ActRequest
from worldloom_dist.actors.batching import Batcher
from worldloom_dist.actors.inference import InferenceServer

SPEC = EnvSpec(name="toy", obs={"obs": ArraySpec((2,))}, action={"action": ArraySpec((1,))})
NOTHING = ActRequest(0, 0, np.zeros(0, np.int64), {}, np.zeros(0, bool))


def test_which_weights_act_is_not_said_before_the_server_has_looked() -> None:
    """A gateway that comes back in the middle of a run must not act at random until it knows."""
    may_build = threading.Event()
    version = PolicyVersion(1, 7)

    def build() -> InferenceServer:
        may_build.wait(20)
        weights = FakeWeights()
        weights.publish(snapshot_of(0.5, version))
        return InferenceServer(FakePolicy(SPEC), weights)

    async def work():
        batcher = Batcher(8, 0.0)
        running = asyncio.ensure_future(batcher.run_forever(build, 1.0, lambda _: None))
        at_once = await batcher.ask(NOTHING)
        asked = asyncio.ensure_future(batcher.ask_when_built(NOTHING))
        await asyncio.sleep(0.01)
        was_waiting = not asked.done()
        may_build.set()
        answer = await asyncio.wait_for(asked, 20)
        running.cancel()
        return at_once, was_waiting, answer

    at_once, was_waiting, answer = asyncio.run(work())
    assert at_once.version == NO_POLICY
    assert was_waiting
    assert answer.version == version
