"""Questions of all envs in mid-episode are piled up; their rows are those of the same questions
asked in another order, which are entered env by env.
"""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worldloom_dist.gateway.parts import (
    KEY,
    VERSION,
    FakeShard,
    Rig,
    contract_of,
    question,
)
from worldloom.core.sequence import PolicyVersion
from worldloom.data.codec import carry_resets_of, decode_rows, notes_of
from worldloom_client.wire import message
from worldloom_dist.actors.acting import ActReply
from worldloom_dist.gateway.gateway import Gateway
from worldloom_dist.gateway.refusal import RefusalError

ENVS = 3


class Told:
    """Decides as it is told for every step: the version, and the env whose carry was lost."""

    def __init__(self, spec, plan) -> None:
        self.spec = spec
        self.plan = iter(plan)

    async def __call__(self, request):
        version, lost = next(self.plan)
        action = {key: spec.zeros(request.num_rows) for key, spec in self.spec.action.items()}
        return ActReply(action, {}, PolicyVersion(1, version), np.isin(request.envs, [lost]))


def row(env, step, kind, state):
    is_first = state[env]
    ends = kind == "end" and not is_first
    state[env] = ends
    obs = [env, step, 0.25]
    return (env, step, obs, 0.0 if is_first else step + env / 10, is_first, ends, False)


def stored(plan, kinds, order, tends):
    """Chunks of all envs, and what the meter says."""

    contract = contract_of()

    async def work():
        shard = FakeShard(contract.columns)
        gateway = Gateway(
            contract,
            Told(contract.env_spec, plan),
            lambda: VERSION,
            key=KEY,
            append=shard.append,
            chunk_rows=4,
            max_chunk_age_s=1e9,
        )
        opened = await gateway.open(
            message("OpenRequest")(client="test", num_envs=ENVS, explore=True, store=True)
        )
        state = [True] * ENVS
        for step, kind in enumerate(kinds):
            rows = [
                row(env, step, kind if env == step % ENVS else "", state) for env in range(ENVS)
            ]
            await gateway.act(opened.secret, question([rows[env] for env in order]))
            if step in tends:
                gateway.tend()
        await gateway.drain()
        return shard, *gateway.drain_metrics()

    shard, metrics, facts = asyncio.run(work())
    found = {
        stream.env: [
            (
                chunk.seq,
                chunk.version,
                notes_of(chunk.payload),
                carry_resets_of(chunk.payload),
                {k: v.tolist() for k, v in decode_rows(chunk.payload, contract.columns).items()},
            )
            for chunk in chunks
        ]
        for stream, chunks in shard.writer.chunks.items()
    }
    metrics.pop("gateway_question_seconds")
    key = sorted(facts["episodes"], key=lambda episode: (episode["length"], episode["return"]))
    return found, metrics, key


STEPS = 24


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    plan=st.lists(
        st.tuples(st.sampled_from([1, 1, 1, 2]), st.sampled_from([-1, -1, -1, -1, 0, 2])),
        min_size=STEPS,
        max_size=STEPS,
    ),
    kinds=st.lists(st.sampled_from(["", "", "", "", "", "end"]), min_size=STEPS, max_size=STEPS),
    tends=st.sets(st.integers(0, STEPS - 1)),
)
def test_piled_rows_are_those_that_envs_would_have_been_given_one_by_one(plan, kinds, tends):
    piled = stored(plan, kinds, [0, 1, 2], tends)
    one_by_one = stored(plan, kinds, [2, 0, 1], tends)
    assert piled == one_by_one
    assert sum(len(chunk[4]["reward"]) for chunks in piled[0].values() for chunk in chunks)


def test_rows_on_the_pile_count_as_unstored_and_are_refused_when_they_are_too_many() -> None:
    async def work():
        rig = Rig(contract_of(refused_chunks=2), chunk_rows=4)
        rig.shard.permits.clear()
        opened = await rig.open(2)
        for step in range(40):
            rows = [(env, step, [0, 0, 0], 0.0, step == 0, False, False) for env in (0, 1)]
            try:
                await rig.gateway.act(opened.secret, question(rows))
            except RefusalError as error:
                return rig.gateway.unstored, error
        return None

    unstored, error = asyncio.run(work())
    assert error.code == "RESOURCE_EXHAUSTED"
    assert unstored == 18  # the first even number above 2 chunks of 4 rows of 2 envs


@pytest.mark.parametrize("is_failing", [True, False])
def test_a_piled_question_that_comes_again_gets_the_same_answer(is_failing) -> None:
    from worldloom.core.exceptions import StateError

    async def work():
        rig = Rig(contract_of())
        opened = await rig.open(2)

        async def ask(step):
            rows = [(env, step, [0, step, 0], 0.0, step == 0, False, False) for env in (0, 1)]
            return await rig.gateway.act(opened.secret, question(rows))

        for step in range(3):
            await ask(step)
        if is_failing:
            rig.decider.failures.append(StateError("away"))
            with pytest.raises(RefusalError, match="does not answer just now"):
                await ask(3)
        first = await ask(3)
        asked = rig.decider.requests
        again = await ask(3)
        await ask(4)
        await rig.gateway.drain()
        return rig, first, again, asked

    rig, first, again, asked = asyncio.run(work())
    assert first.action == again.action
    assert rig.decider.requests == asked + 1
    for chunks in rig.shard.writer.chunks.values():
        rows = [decode_rows(chunk.payload, rig.contract.columns)["obs"] for chunk in chunks]
        assert np.concatenate(rows)[:, 1].tolist() == [0, 1, 2, 3, 4]
