"""Batches for one policy, on an event loop."""

import asyncio
import threading
from typing import Any

import numpy as np

from tests.fakes import FakePolicy, FakeWeights, snapshot_of
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom_dist.actors.acting import ActRequest
from worldloom_dist.actors.batching import Batcher
from worldloom_dist.actors.inference import InferenceServer

SPEC = EnvSpec(name="toy", obs={"obs": ArraySpec((2,))}, action={"action": ArraySpec((1,))})
TRUE = np.ones(1, bool)
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


def test_no_question_waits_for_newer_weights() -> None:
    """The transport of weights hangs; questions are answered by the old ones, and by the newer ones
    after they have come.
    """
    may_fetch = threading.Event()
    is_fetching = threading.Event()

    class SlowWeights(FakeWeights):
        """Its second fetch takes long."""

        def fetch(self) -> WeightsSnapshot:
            if self.fetches:
                is_fetching.set()
                assert may_fetch.wait(20)
            return super().fetch()

    weights = SlowWeights()
    weights.publish(snapshot_of(0.5, PolicyVersion(1, 1)))

    async def work() -> tuple[PolicyVersion, PolicyVersion]:
        batcher = Batcher(8, 0.0)
        running = asyncio.ensure_future(
            batcher.run_forever(
                lambda: InferenceServer(FakePolicy(SPEC), weights), 0.0, lambda _: None
            )
        )
        await batcher.ask_when_built(NOTHING)
        weights.publish(snapshot_of(0.6, PolicyVersion(1, 2)))
        one = ActRequest(0, 0, np.zeros(1, np.int64), {"obs": np.zeros((1, 2), np.float32)}, TRUE)
        try:
            while not is_fetching.is_set():
                await asyncio.wait_for(batcher.ask(one), 20)
            meanwhile = await asyncio.wait_for(batcher.ask(one), 20)
            may_fetch.set()
            after = meanwhile
            while after.version == meanwhile.version:
                after = await asyncio.wait_for(batcher.ask(one), 20)
        finally:
            may_fetch.set()
            running.cancel()
        return meanwhile.version, after.version

    assert asyncio.run(work()) == (PolicyVersion(1, 1), PolicyVersion(1, 2))


def test_an_error_of_the_policy_reaches_every_question_of_its_batch() -> None:
    class Broken(FakePolicy):
        def act(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("out of memory")

    async def work() -> list[BaseException]:
        batcher = Batcher(8, 0.0)
        server = InferenceServer(Broken(SPEC), FakeWeights())
        running = asyncio.ensure_future(batcher.run_forever(lambda: server, 1.0, lambda _: None))
        obs = {"obs": np.zeros((1, 2), np.float32)}
        requests = [ActRequest(slot, 0, np.zeros(1, np.int64), obs, TRUE) for slot in (0, 1)]
        answers = [asyncio.ensure_future(batcher.ask_when_built(each)) for each in requests]
        return await asyncio.wait_for(asyncio.gather(*answers, running, return_exceptions=True), 20)

    assert [str(error) for error in asyncio.run(work())] == ["out of memory"] * 3
