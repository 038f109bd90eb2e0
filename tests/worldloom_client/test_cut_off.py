"""A client that goes on by itself: held by the train ratio, or cut off; and what becomes of the
rows that it makes meanwhile.
"""

import contextlib
import threading
import time

import numpy as np
import pytest

from tests.fakes import check_counting_rows
from tests.worldloom_client.live import Live, live
from tests.worldloom_client.relay import Relay
from tests.worldloom_client.test_feed import wait_until
from tests.worldloom_client.test_session import play
from tests.worldloom_dist.gateway.parts import KeptShard, contract_of
from worldloom.data.codec import notes_of
from worldloom.envs.toy import CountingEnv
from worldloom_client import ClientError, RefusedError, connect

STILL = np.array([0.0, 0.25], np.float32)


def still(obs, env):
    """Hold the position."""
    assert obs.shape == (3,)
    return STILL


@contextlib.contextmanager
def relayed(shard, **line):
    """A gateway behind a line that can be cut."""
    server = Live(shard=shard, contract=contract_of(lease_s=2.0))
    relay = Relay(server.thread.port, **line)
    try:
        yield server, relay
    finally:
        relay.close()
        server.thread.stop(1.0)


def resumed(server):
    """How many sessions came back."""

    async def count():
        values, _ = server.rig.gateway.drain_metrics()
        return values.get("gateway_sessions_opened_total{kind=resumed}")

    return server.thread.call(count())


def check_all(shard, rows):
    """Every row is there once, and is what the env counted, however its action was chosen."""
    found = shard.rows()
    assert len(found["reward"]) == rows
    check_counting_rows({name: value[: rows - 1] for name, value in found.items()})
    return found


def sources(shard):
    """How many rows each source chose."""
    found = {}
    for chunk in shard.chunks:
        for number in notes_of(chunk.payload).get("sources", [1] * chunk.num_rows):
            found[number] = found.get(number, 0) + 1
    return found


def test_rows_that_replay_does_not_want_yet_are_spooled_and_pushed_later(tmp_path) -> None:
    shard = KeptShard(contract_of().columns, tmp_path / "shard")
    with live(shard=shard, contract=contract_of(held_chunks=2)) as server:
        server.hold()
        session = connect(server.address, on_hold="spool", spool=tmp_path / "spool")
        env, now = play(session, 60)
        assert session.spooled_bytes > 0
        server.let_go()
        wait_until(lambda: session.spooled_bytes == 0)
        play(session, 40, env, now)
        session.close()
        assert session.rows_skipped == 0
        check_all(shard, 100)
        assert sources(shard) == {1: 100}
        assert len({chunk.stream for chunk in shard.chunks}) == 2


def test_a_person_may_step_in_while_rows_are_spooled(tmp_path) -> None:
    shard = KeptShard(contract_of().columns, tmp_path / "shard")
    with live(shard=shard, contract=contract_of(held_chunks=1)) as server:
        server.hold()
        session = connect(server.address, on_hold="spool", spool=tmp_path / "spool")
        env = CountingEnv()
        obs, reward, terminated, truncated = env.reset(seed=0)[0], 0.0, False, False
        told = 0
        for step in range(60):
            action = session.act(obs, reward, terminated=terminated, truncated=truncated)
            if terminated or truncated:
                obs, reward, terminated, truncated = env.reset()[0], 0.0, False, False
                continue
            if step % 5 == 3:
                action = STILL
                session.executed(action, source="human")
                told += 1
            obs, reward, terminated, truncated, _ = env.step(action)
        server.let_go()
        session.close()
        check_all(shard, 60)
        assert sources(shard)[2] == told


@pytest.mark.parametrize("on_hold", ["spool", "act"])
def test_a_client_with_a_fallback_goes_on_through_a_cut_and_catches_up(tmp_path, on_hold) -> None:
    shard = KeptShard(contract_of().columns, tmp_path / "shard")
    with relayed(shard) as (server, relay):
        session = connect(
            relay.address,
            on_hold=on_hold,
            spool=tmp_path / "spool",
            fallback=still,
            answer_within_s=0.3,
        )
        env, now = play(session, 17)
        assert not session.is_cut_off
        relay.cut()
        env, now = play(session, 30, env, now)
        assert session.is_cut_off
        wait_until(lambda: server.rig.gateway.num_sessions == 0)  # its lease ends meanwhile
        relay.mend()
        deadline = time.monotonic() + 20
        rows = 47
        while session.is_cut_off:
            assert time.monotonic() < deadline
            env, now = play(session, 1, env, now)
            rows += 1
            time.sleep(0.02)
        env, now = play(session, 40, env, now)
        rows += 40
        session.close()
        assert len(session.streams) == 2
        if on_hold == "act":
            assert 30 <= session.rows_skipped < rows - 40
            assert len(shard.rows()["reward"]) == rows - session.rows_skipped
            return
        assert session.rows_skipped == 0
        assert session.spooled_bytes == 0
        check_all(shard, rows)
        assert sources(shard)[4] >= 29


def test_no_call_takes_longer_than_an_answer_may(tmp_path) -> None:
    shard = KeptShard(contract_of().columns, tmp_path / "shard")
    with relayed(shard) as (_, relay):
        session = connect(
            relay.address,
            on_hold="spool",
            spool=tmp_path / "spool",
            fallback=still,
            answer_within_s=0.2,
        )
        play(session, 5)
        relay.cut()
        late = []
        for _ in range(4):
            began = time.monotonic()
            play(session, 5)
            late.append(time.monotonic() - began)
        relay.mend()
        assert late[0] >= 0.2
        assert sum(late) < 60, "a call that waits for the line would wait until it is mended"
        session.close()


def test_a_session_that_is_closed_in_a_cut_leaves_its_rows_in_the_spool(tmp_path) -> None:
    shard = KeptShard(contract_of().columns, tmp_path / "shard")
    with relayed(shard) as (_, relay):
        session = connect(
            relay.address,
            on_hold="spool",
            spool=tmp_path / "spool",
            fallback=still,
            answer_within_s=0.2,
            timeout_s=1.0,
        )
        play(session, 12)
        relay.cut()
        play(session, 25)
        session.close()
        assert session.spooled_bytes > 0
        relay.mend()
        with connect(relay.address, on_hold="spool", spool=tmp_path / "spool") as session:
            wait_until(lambda: session.spooled_bytes == 0)


def test_a_gateway_that_takes_the_session_no_more_is_told(tmp_path) -> None:
    shard = KeptShard(contract_of().columns, tmp_path / "shard")
    with relayed(shard) as (_, relay):
        session = connect(
            relay.address, on_hold="act", fallback=still, answer_within_s=0.2, timeout_s=1.0
        )
        play(session, 5)
        relay.cut()
        play(session, 5)
        with live(key=b"another run's" * 3) as other:
            relay.to_port = other.thread.port
            relay.mend()
            with pytest.raises(RefusedError, match="not given out by this run"):
                wait_until(lambda: play(session, 1) is None)
            session.close()


def test_a_fallback_goes_with_a_policy_that_does_not_wait() -> None:
    with pytest.raises(ClientError, match="fallback: with on_hold 'wait'"):
        connect("127.0.0.1:1", fallback=still)
    with pytest.raises(ClientError, match="spool: on_hold is 'spool', so name a folder"):
        connect("127.0.0.1:1", on_hold="spool")


def test_several_envs_go_on_together(tmp_path) -> None:
    shard = KeptShard(contract_of().columns, tmp_path / "shard")
    with relayed(shard) as (server, relay):
        session = connect(
            relay.address,
            num_envs=3,
            on_hold="spool",
            spool=tmp_path / "spool",
            fallback=still,
            answer_within_s=0.2,
        )
        envs = [CountingEnv() for _ in range(3)]
        obs = np.stack([env.reset(seed=0)[0] for env in envs])
        reward, ended = np.zeros(3, np.float32), np.zeros((2, 3), bool)
        for step in range(40):
            action = session.act_many({"obs": obs}, reward, ended[0], ended[1])["action"]
            if step == 10:
                relay.cut()
            if step == 25:
                relay.mend()
                wait_until(lambda: resumed(server))
            new = np.zeros((2, 3), bool)
            for place, env in enumerate(envs):
                if ended[:, place].any():
                    obs[place], reward[place] = env.reset()[0], 0.0
                else:
                    obs[place], reward[place], *flags, _ = env.step(action[place])
                    new[:, place] = flags
            ended = new
        session.close()
        for index in range(3):
            rows = shard.rows(lambda chunk, index=index: chunk.stream.env == index)
            assert len(rows["reward"]) == 40
            check_counting_rows({name: value[:39] for name, value in rows.items()})


def test_threads_end_with_their_session(tmp_path) -> None:
    shard = KeptShard(contract_of().columns, tmp_path / "shard")
    with relayed(shard) as (_, relay):
        before = threading.active_count()
        with connect(relay.address, on_hold="spool", spool=tmp_path / "spool") as session:
            play(session, 5)
        wait_until(lambda: threading.active_count() <= before)
