"""The asyncio client against a gateway that listens."""

import asyncio

import numpy as np
import pytest

from tests.fakes import check_counting_rows
from tests.worldloom_client.live import Live, live
from tests.worldloom_client.test_session import joined
from worldloom.envs.toy import CountingEnv
from worldloom_client import ClientError, RefusedError, UnavailableError
from worldloom_client.aio import connect


async def play(session, steps, env=None, now=None):
    env = env or CountingEnv()
    obs, reward, terminated, truncated = now or (env.reset(seed=0)[0], 0.0, False, False)
    for _ in range(steps):
        action = await session.act(obs, reward, terminated=terminated, truncated=truncated)
        if terminated or truncated:
            obs, reward, terminated, truncated = env.reset()[0], 0.0, False, False
        else:
            obs, reward, terminated, truncated, _ = env.step(action)
    return env, (obs, reward, terminated, truncated)


def test_every_row_is_stored() -> None:
    async def work(server) -> list[int]:
        async with await connect(server.address) as session:
            await play(session, 33)
            assert session.version == (1, 7)
        return session.stored

    with live() as server:
        assert asyncio.run(work(server)) == [33]
        rows = joined(server.rig.shard)
    rows["truncated"][-1] = False
    check_counting_rows(rows)


def test_it_goes_on_at_another_gateway() -> None:
    first = Live()
    second = Live(shard=first.rig.shard, index=1)

    async def work() -> None:
        session = await connect(f"{first.address},{second.address}")
        env, now = await play(session, 14)
        await asyncio.to_thread(first.kill)
        await play(session, 20, env, now)
        await session.close()

    asyncio.run(work())
    second.thread.stop()
    rows = joined(first.rig.shard)
    assert len(rows["reward"]) == 34
    check_counting_rows({name: value[:33] for name, value in rows.items()})


def test_errors_are_those_of_the_blocking_client() -> None:
    async def work(server) -> None:
        with pytest.raises(RefusedError, match="num_envs"):
            await connect(server.address, num_envs=300)
        with pytest.raises(UnavailableError, match="no gateway answered"):
            await connect("127.0.0.1:1", timeout_s=0.3)
        session = await connect(server.address)
        await session.act(np.zeros(3, np.float32))
        await session.close()
        with pytest.raises(ClientError, match="closed"):
            await session.act(np.zeros(3, np.float32))

    with live() as server:
        asyncio.run(work(server))
