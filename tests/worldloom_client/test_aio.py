"""The asyncio client against a gateway that listens."""

import asyncio

import numpy as np
import pytest

from tests.fakes import check_counting_rows
from tests.worldloom_client.live import Live, live
from tests.worldloom_client.test_cut_off import check_all, relayed, sources, still
from tests.worldloom_client.test_session import joined, never
from tests.worldloom_dist.gateway.parts import KeptShard, contract_of
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


async def until(is_so) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.02)


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


def test_a_lease_that_no_one_renews_ends_in_an_error_in_time() -> None:
    async def work(server) -> None:
        session = await connect(server.address, timeout_s=0.5)
        server.rig.gateway.act = never
        with pytest.raises(UnavailableError, match=r"no gateway answered at .* within 0.5 s"):
            await session.keep_alive()
        await session.close()

    with live() as server:
        asyncio.run(work(server))


def test_rows_that_replay_does_not_want_yet_are_spooled_and_pushed_later(tmp_path) -> None:
    shard = KeptShard(contract_of().columns, tmp_path / "shard")

    async def work(server) -> None:
        server.hold()
        async with await connect(
            server.address, on_hold="spool", spool=tmp_path / "spool"
        ) as session:
            env, now = await play(session, 60)
            assert session.spooled_bytes > 0
            server.let_go()
            await until(lambda: session.spooled_bytes == 0)
            await play(session, 40, env, now)
        assert session.rows_skipped == 0

    with live(shard=shard, contract=contract_of(held_chunks=2)) as server:
        asyncio.run(work(server))
        check_all(shard, 100)
        assert sources(shard) == {1: 100}


@pytest.mark.parametrize("on_hold", ["spool", "act"])
def test_a_client_with_a_fallback_goes_on_through_a_cut_and_catches_up(tmp_path, on_hold) -> None:
    shard = KeptShard(contract_of().columns, tmp_path / "shard")

    async def work(server, relay) -> int:
        settings = {"spool": tmp_path / "spool", "fallback": still, "answer_within_s": 0.3}
        session = await connect(relay.address, on_hold=on_hold, **settings)
        env, now = await play(session, 17)
        assert not session.is_cut_off
        relay.cut()
        env, now = await play(session, 30, env, now)
        assert session.is_cut_off
        await until(lambda: server.rig.gateway.num_sessions == 0)  # its lease ends meanwhile
        relay.mend()
        rows = 47
        while session.is_cut_off:
            env, now = await play(session, 1, env, now)
            rows += 1
            await asyncio.sleep(0.02)
        await play(session, 40, env, now)
        await session.close()
        if on_hold == "act":
            assert 30 <= session.rows_skipped < rows
            return rows + 40 - session.rows_skipped
        assert (session.rows_skipped, session.spooled_bytes) == (0, 0)
        return rows + 40

    with relayed(shard) as (server, relay):
        rows = asyncio.run(work(server, relay))
        if on_hold == "act":
            assert len(shard.rows()["reward"]) == rows
        else:
            check_all(shard, rows)
            assert sources(shard)[4] >= 29


def test_a_session_that_is_closed_in_a_cut_leaves_its_rows_in_the_spool(tmp_path) -> None:
    shard = KeptShard(contract_of().columns, tmp_path / "shard")

    async def work(relay) -> None:
        session = await connect(
            relay.address,
            on_hold="spool",
            spool=tmp_path / "spool",
            fallback=still,
            answer_within_s=0.2,
        )
        env, now = await play(session, 5)
        relay.cut()
        await play(session, 20, env, now)
        await session.close(0.2)
        assert session.spooled_bytes > 0

    with relayed(shard) as (_, relay):
        asyncio.run(work(relay))
