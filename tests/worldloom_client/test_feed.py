"""Rows that clients made themselves: spooled to disk, pushed, stored once."""

import subprocess
import sys
import time

import numpy as np
import pytest

from tests.fakes import check_counting_rows
from tests.worldloom_client.live import Live, live
from tests.worldloom_dist.gateway.parts import KeptShard, contract_of
from worldloom.data.codec import notes_of
from worldloom.envs.toy import CountingEnv
from worldloom_client import ClientError, RefusedError, UnavailableError, WireError, feed
from worldloom_client.wire import message
from worldloom_dist.ports import SampleRequest

KILLED = """
import os, sys
from worldloom.envs.toy import CountingEnv
from worldloom_client import feed
replay = feed(sys.argv[1], spool=sys.argv[2])
env = CountingEnv()
obs, reward, terminated, truncated = env.reset(seed=0)[0], 0.0, False, False
for _ in range(33):
    action = env.action_space.low
    replay.add(obs, action, reward, terminated=terminated, truncated=truncated)
    if terminated or truncated:
        obs, reward, terminated, truncated = env.reset()[0], 0.0, False, False
    else:
        obs, reward, terminated, truncated, _ = env.step(action)
os._exit(9)
"""


def kept_shard(folder):
    return KeptShard(contract_of().columns, folder / "shard")


def add_rows(replay, rows, env=None, now=None, index=0):
    """Some rows of ``toy:counting`` by a script; returns where it is."""
    env = env or CountingEnv()
    obs, reward, terminated, truncated = now or (env.reset(seed=0)[0], 0.0, False, False)
    for number in range(rows):
        action = np.array([number % 7 / 10, -0.1], np.float32)
        ended = terminated or truncated
        replay.add(
            obs,
            None if ended else action,
            reward,
            terminated=terminated,
            truncated=truncated,
            env=index,
        )
        if ended:
            obs, reward, terminated, truncated = env.reset()[0], 0.0, False, False
        else:
            obs, reward, terminated, truncated, _ = env.step(action)
    return env, (obs, reward, terminated, truncated)


def wait_until(condition, within_s=20.0):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rows_of_a_script_are_stored_once_with_their_source(tmp_path) -> None:
    shard = kept_shard(tmp_path)
    with live(shard=shard) as server:
        with feed(server.address, spool=tmp_path / "spool", num_envs=2) as replay:
            add_rows(replay, 40)
            add_rows(replay, 30, index=1)
        for env, count in ((0, 40), (1, 30)):
            rows = shard.rows(lambda chunk, env=env: chunk.stream.env == env)
            assert len(rows["reward"]) == count
            check_counting_rows(rows)
        assert {tuple(notes_of(c.payload)["sources"]) for c in shard.chunks} <= {
            (4,) * count for count in range(1, 65)
        }
        values, facts = server.rig.gateway.drain_metrics()
        assert values["gateway_rows_total{source=script}"].value == 70
        assert values["agent_steps_total"].value == sum(c.num_agent_steps for c in shard.chunks)
        assert [e["return"] for e in facts["episodes"]][:1] == [15.0]
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["lock"]


def test_windows_of_pushed_rows_are_whole_and_join_no_gap(tmp_path) -> None:
    shard = kept_shard(tmp_path)
    with live(shard=shard) as server, feed(server.address, spool=tmp_path / "spool") as replay:
        add_rows(replay, 20)
    assert shard.shard.live_windows() == 20 - len({c.seq for c in shard.chunks if _begins(c)})


def _begins(chunk) -> bool:
    return chunk.num_agent_steps < chunk.num_rows


def test_a_gateway_that_dies_between_pushes_leaves_nothing_out_and_doubles_nothing(
    tmp_path,
) -> None:
    shard = kept_shard(tmp_path)
    first = Live(shard=shard)
    port = first.thread.port
    replay = feed(first.address, spool=tmp_path / "spool")
    env, now = add_rows(replay, 25)
    wait_until(lambda: len(shard.chunks) >= 3)
    first.kill()
    env, now = add_rows(replay, 33, env, now)
    assert replay.waiting_bytes > 0
    second = Live(shard=shard, port=port, incarnation=2)
    wait_until(lambda: replay.waiting_bytes == 0)
    shard.lose_acks = 3
    env, now = add_rows(replay, 42, env, now)
    assert replay.close() == 0
    second.thread.stop()
    rows = shard.rows()
    assert len(rows["reward"]) == 100
    check_counting_rows(rows)
    assert shard.shard.row_counters().duplicate > 0
    assert len({chunk.stream for chunk in shard.chunks}) == 1


def test_a_push_goes_on_at_another_gateway(tmp_path) -> None:
    shard = kept_shard(tmp_path)
    first, second = Live(shard=shard), Live(shard=shard, index=1)
    replay = feed(f"{first.address},{second.address}", spool=tmp_path / "spool")
    env, now = add_rows(replay, 25)
    first.kill()
    add_rows(replay, 25, env, now)
    assert replay.close() == 0
    second.thread.stop()
    check_counting_rows(shard.rows())
    assert len(shard.rows()["reward"]) == 50


def test_what_is_left_in_a_spool_is_pushed_by_the_next_process(tmp_path) -> None:
    shard = kept_shard(tmp_path)
    first = Live(shard=shard)
    port = first.thread.port
    replay = feed(first.address, spool=tmp_path / "spool")
    first.kill()
    env, now = add_rows(replay, 27)
    assert replay.close(0.1) > 0
    second = Live(shard=shard, port=port, incarnation=2)
    with feed(second.address, spool=tmp_path / "spool") as replay:
        add_rows(replay, 20, env, now)
    second.thread.stop()
    streams = sorted({chunk.stream for chunk in shard.chunks})
    assert len(streams) == 2
    rows = shard.rows()
    # the second process began in the middle of an episode, and says that it begins there
    (seam,) = np.flatnonzero(rows["is_first"] & (rows["obs"][:, 1] != 0))
    rows["is_first"][seam] = False
    rows["reward"][seam] = rows["obs"][seam, 1]
    check_counting_rows(rows)
    assert len(rows["reward"]) == 47


def test_a_process_that_is_killed_leaves_whole_chunks(tmp_path) -> None:
    shard = kept_shard(tmp_path)
    server = Live(shard=shard)
    server.hold()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, server.address, str(tmp_path / "spool")], check=False
    )
    assert done.returncode == 9
    (folder,) = [p for p in (tmp_path / "spool").iterdir() if p.is_dir()]
    (folder / "000000000099-0000.tmp").write_bytes(b"half")
    assert not shard.chunks
    assert len(list(folder.glob("*.rows"))) >= 5
    server.let_go()
    feed(server.address, spool=tmp_path / "spool").close()
    server.thread.stop()
    rows = shard.rows()
    check_counting_rows(rows)
    assert len(rows["reward"]) == sum(chunk.num_rows for chunk in shard.chunks) >= 28


def test_a_full_spool_leaves_rows_out_counts_them_and_joins_nothing(tmp_path) -> None:
    shard = kept_shard(tmp_path)
    first = Live(shard=shard)
    port = first.thread.port
    replay = feed(first.address, spool=tmp_path / "spool", spool_bytes=3000)
    first.kill()
    env, now = add_rows(replay, 60)
    assert replay.waiting_bytes <= 3000
    skipped = replay.rows_skipped
    assert 0 < skipped < 60
    second = Live(shard=shard, port=port, incarnation=2)
    wait_until(lambda: replay.waiting_bytes == 0)
    add_rows(replay, 30, env, now)
    replay.close()
    second.thread.stop()
    assert replay.rows_skipped == skipped
    rows = shard.rows()
    assert len(rows["reward"]) == 90 - skipped
    names = rows["obs"][:, 0] * 100 + rows["obs"][:, 1]
    assert len(np.unique(names)) == len(names)
    windows = shard.shard.sample(SampleRequest(1000, (0,)))
    before, after = windows.columns["obs"][:, 0], windows.columns["obs"][:, 1]
    goes_on = (after[:, 0] == before[:, 0]) & (after[:, 1] == before[:, 1] + 1)
    begins = (after[:, 0] == before[:, 0] + 1) & (after[:, 1] == 0)
    assert (goes_on | begins).all()


def test_a_client_is_told_while_the_train_ratio_wants_no_rows(tmp_path) -> None:
    shard = kept_shard(tmp_path)
    with live(shard=shard) as server:
        server.hold()
        replay = feed(server.address, spool=tmp_path / "spool")
        add_rows(replay, 40)
        wait_until(lambda: replay.is_held)
        assert not shard.chunks
        server.let_go()
        assert replay.close() == 0
        assert not replay.is_held
        check_counting_rows(shard.rows())


def test_a_spool_belongs_to_one_process_and_one_run(tmp_path) -> None:
    shard = kept_shard(tmp_path)
    with live(shard=shard) as server:
        replay = feed(server.address, spool=tmp_path / "spool")
        with pytest.raises(ClientError, match=r"spool: .* is used by another process"):
            feed(server.address, spool=tmp_path / "spool")
        replay.close()
        with pytest.raises(ClientError, match="cannot be used"):
            feed(server.address, spool=tmp_path / "spool" / "lock")
        foreign = tmp_path / "spool" / "abc"
        foreign.mkdir()
        (foreign / "secret").write_bytes(b"of another run" * 5)
        whole = message("PushRequest")(env=1).SerializeToString()
        (foreign / "000000000000-0000.rows").write_bytes(whole)
        replay = feed(server.address, spool=tmp_path / "spool")
        with pytest.raises(RefusedError, match=r"not given out by this run.*rows stay in .*abc"):
            wait_until(replay.check)
        add_rows(replay, 10)
        replay.close(5.0)
        assert (foreign / "000000000000-0000.rows").exists()
        assert len(shard.rows()["reward"]) == 10


def test_chunks_that_are_refused_are_kept_and_told(tmp_path) -> None:
    shard = kept_shard(tmp_path)
    with live(shard=shard) as server:
        left = tmp_path / "spool" / "of-a-process-before"
        left.mkdir(parents=True)
        opened = server.thread.call(server.rig.open(push=True))
        (left / "secret").write_bytes(opened.secret)
        (left / "000000000000-0009.rows").write_bytes(b"\x08\x09")
        replay = feed(server.address, spool=tmp_path / "spool")
        # the first call after the answer raises, which may be that of a row
        with pytest.raises(RefusedError, match=r"expected 0 to 0 \(kept in") as caught:
            wait_until(replay.check)
        assert caught.value.code == "INVALID_ARGUMENT"
        add_rows(replay, 10)
        replay.close()
        assert len(list((tmp_path / "spool" / "refused").iterdir())) == 1
        assert len(shard.rows()["reward"]) == 10


def test_one_torn_file_keeps_no_other_chunk_of_its_folder(tmp_path) -> None:
    shard = kept_shard(tmp_path)
    first = Live(shard=shard)
    port = first.thread.port
    replay = feed(first.address, spool=tmp_path / "spool")
    first.kill()
    add_rows(replay, 27)
    assert replay.close(0.0) > 0
    files = sorted((tmp_path / "spool").glob("*/*.rows"))
    files[1].write_bytes(bytes(files[1].stat().st_size))  # as a power cut leaves one
    second = Live(shard=shard, port=port, incarnation=2)
    replay = feed(second.address, spool=tmp_path / "spool")
    with pytest.raises(RefusedError, match=r"holds no whole chunk \(kept in"):
        replay.close()
    second.thread.stop()
    assert len(shard.chunks) == len(files) - 1
    assert [path.suffix for path in (tmp_path / "spool" / "refused").iterdir()] == [".rows"]


def test_what_is_no_row_of_the_run_is_refused_here(tmp_path) -> None:
    shard = kept_shard(tmp_path)
    with live(shard=shard) as server, feed(server.address, spool=tmp_path / "spool") as replay:
        obs, action = np.zeros(3, np.float32), np.zeros(2, np.float32)
        for given, says in (
            ((np.zeros(4, np.float32), action), r"obs 'obs': got shape \(4,\)"),
            ((obs, np.zeros(1, np.float32)), r"action 'action': got shape \(1,\)"),
            ((obs, None), "action: got none"),
            ((obs, action, float("nan")), "reward: got nan"),
            (({"a": obs}, action), r"obs: got keys \['a'\]"),
        ):
            with pytest.raises(WireError, match=says):
                replay.add(*given)
        with pytest.raises(WireError, match="source: got 'cat'"):
            replay.add(obs, action, source="cat")
        with pytest.raises(WireError, match="env: got 3"):
            replay.add(obs, action, env=3)


def test_a_server_that_stores_nothing_takes_no_rows(tmp_path) -> None:
    from dataclasses import replace

    contract = replace(contract_of(), features=("explore",))
    with live(contract=contract) as server, pytest.raises(RefusedError, match="takes no rows"):
        feed(server.address, spool=tmp_path / "spool")
    with pytest.raises(UnavailableError, match=r"within 0\.3 s"):
        feed("127.0.0.1:1", spool=tmp_path / "spool", timeout_s=0.3)
