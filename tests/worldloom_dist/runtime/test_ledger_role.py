"""The ledger as a role, without Ray: what it lets through, and when."""

import asyncio

import pytest

from worldloom_dist.cli import parse
from worldloom_dist.plan import Plan, resolve
from worldloom_dist.ports import RowBooks
from worldloom_dist.runtime.replay_roles import LedgerRole


def plan_of(*words: str) -> Plan:
    return resolve(parse(["--preset", "debug", "--env", "toy:counting", "--runtime", "ray", *words]))


async def samples_soon(ledger: LedgerRole, plan: Plan) -> bool:
    """Whether a batch is admitted without anything else happening."""
    asked = asyncio.ensure_future(ledger.admit_samples("learner-0", "life", plan.spec.sampling.batch_size, [(0, 0, 0)]))
    for _ in range(20):
        await asyncio.sleep(0)
    is_admitted = asked.done()
    asked.cancel()
    return is_admitted


@pytest.mark.parametrize("lockstep", [True, False])
def test_in_lock_step_samples_wait_until_what_was_admitted_is_stored(lockstep):
    plan = plan_of(*(["--barrier", "True"] if lockstep else []))

    async def story() -> None:
        ledger = LedgerRole(plan, 0)
        await ledger.join(0, RowBooks(), 10)
        assert await ledger.admit_insert(0, "first", plan.spec.prefill_agent_steps + 64)
        assert await samples_soon(ledger, plan) != lockstep, "the ratio allows it, but a shard is still storing"
        await ledger.stored(0)
        assert await samples_soon(ledger, plan)
        assert await ledger.admit_insert(0, "first", 0), "rows of a reset alone, which change what is drawn too"
        assert await samples_soon(ledger, plan) != lockstep
        await ledger.join(0, RowBooks(), 10)  # the shard died with it, and its successor has what it has
        await ledger.stored(0)
        assert not any(ledger._storing.values())

    asyncio.run(story())
