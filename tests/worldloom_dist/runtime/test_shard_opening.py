"""A shard whose journal takes long to read: it answers meanwhile, says how far it is, and lives as
long as it comes on.
"""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from tests.worldloom_dist.replay.test_shard import counting_chunk, open_shard
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.recovery import RecoveryProgress
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve
from worldloom_dist.runtime import shard_role
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.shard_role import ShardRole

PLAN = resolve(parse(["--preset", "debug", "--env", "toy:counting", "--runtime", "ray"]))


@pytest.fixture
def slow(monkeypatch):
    """The journal is read when ``go`` is set; what is told to the role's progress before."""
    found = SimpleNamespace(go=threading.Event(), progress=None, fails=None)
    real = shard_role.build_shard

    def build(plan, index, folder, progress):
        found.progress = progress
        found.go.wait(30)
        if found.fails is not None:
            raise found.fails
        return real(plan, index, folder, progress)

    monkeypatch.setattr(shard_role, "build_shard", build)
    monkeypatch.setattr(shard_role, "coordinator_client", SimpleNamespace)
    monkeypatch.setattr(shard_role, "AsyncRpcClient", lambda *_: None)
    monkeypatch.setattr(shard_role, "Reporter", lambda *_: SimpleNamespace(emit=lambda *_: None))
    yield found
    found.go.set()


def test_a_shard_that_reads_answers_and_says_how_far_it_is(tmp_path, slow, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(shard_role, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def story():
        role = ShardRole(PLAN, 0, tmp_path)
        while slow.progress is None:
            await asyncio.sleep(0.01)
        slow.progress.total_bytes = 10_000_000
        for read in range(1, 6):
            slow.progress.rows = 1000 * read
            slow.progress.read_bytes = 1_000_000 * read
            status = await role.ping()
            assert status["reading"] == f"{1000 * read:,} rows so far, {read}.0 of 10.0 MB"
            assert status["stuck"] == ""
            now[0] += DEADLINES.start_s * 2
        assert await role.sample([SampleRequest(1, (0,))]) is None, "others are asked"
        now[0] += DEADLINES.read_s
        assert "has read nothing of its journal" in (await role.ping())["stuck"]
        slow.go.set()
        while not role.opening.done():
            await asyncio.sleep(0.01)
        status = await role.ping()
        assert "reading" not in status
        assert status["stored"] == 0

    asyncio.run(story())


def test_a_journal_that_cannot_be_read_ends_the_role_with_the_reason(tmp_path, slow):
    slow.fails = ValueError("its journal is damaged")
    slow.go.set()

    async def story():
        role = ShardRole(PLAN, 0, tmp_path)
        with pytest.raises(ValueError, match="its journal is damaged"):
            await role.run_forever()
        assert "stuck" not in await role.ping()

    asyncio.run(story())


def test_the_progress_counts_rows_and_bytes_to_the_end(tmp_path):
    shard = open_shard(tmp_path, segment_bytes=2000)
    for seq in range(30):
        shard.append(counting_chunk(0, seq))
    shard.close()
    progress = RecoveryProgress()
    open_shard(tmp_path, segment_bytes=2000, progress=progress).close()
    assert progress.rows == 150
    assert 0.9 * progress.total_bytes < progress.read_bytes <= progress.total_bytes
