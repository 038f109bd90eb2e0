"""Gateways and shards are killed while a client pushes rows that it made itself: each row is in the
journals once.
"""

import contextlib
import os
import signal

import numpy as np
import pytest

from tests.chaos.test_gateway_chaos import WORDS
from tests.fakes import check_counting_rows
from tests.integration.running import PATIENCE, launched, read_journals
from tests.ports import free_port
from tests.worldloom_client.test_feed import add_rows
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import decode_rows, notes_of
from worldloom_client import feed

COLUMNS = {
    "obs": ArraySpec((3,)),
    "action": ArraySpec((2,)),
    "reward": ArraySpec(()),
    **dict.fromkeys(("is_first", "terminated", "truncated"), ArraySpec((), "bool")),
}
VICTIMS = ("Gateway", "Shard", "Gateway", "Shard")


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.timeout(300 * PATIENCE)
def test_rows_that_are_pushed_survive_gateways_and_shards(tmp_path) -> None:
    folder = tmp_path / "run"
    port = free_port()
    words = [*WORDS, "--gateway-port", str(port), "--run-dir", str(folder)]
    with launched(folder, *words) as run:
        replay = feed(f"127.0.0.1:{port}", spool=tmp_path / "spool", timeout_s=120 * PATIENCE)
        env, now, count = None, None, 0
        for victim in VICTIMS:
            env, now = add_rows(replay, 40, env, now)
            count += 40
            for pid in run.wait_until(lambda victim=victim: run.pids(f"ray::{victim}Role"), 90):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            env, now = add_rows(replay, 40, env, now)
            count += 40
            run.wait_until(lambda: replay.waiting_bytes == 0, 90)
        assert replay.close() == 0
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.finish() == 0
        summary = run.summary()
    (chunks,) = read_journals(folder).values()
    assert [stored.chunk.seq for stored in chunks] == list(range(len(chunks)))
    parts = [decode_rows(stored.chunk.payload, COLUMNS) for stored in chunks]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    assert len(rows["reward"]) == count == summary["rows"]["inserted"]
    check_counting_rows(rows)
    assert all(set(notes_of(stored.chunk.payload)["sources"]) == {4} for stored in chunks)
    assert summary["rows"]["lost_acked"] == 0
    # what a gateway counted last died with it
    assert 0 < summary["gateway"]["rows"] <= count
