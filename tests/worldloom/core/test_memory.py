"""What bounds memory, and who holds how much of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_until
from worldloom.core import memory
from worldloom.core.memory import held_bytes, memory_bounds, memory_left, memory_total, tree_of

HOARD = "import sys; x = b'x' * 60_000_000; print('ready', flush=True); sys.stdin.read()"
FAMILY = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOARD!r}])"


@pytest.fixture
def own_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own"
    path.write_text("")
    monkeypatch.setattr(memory, "OWN_CGROUPS", path)
    return path


def limited(folder: Path, limit: str, used: int, cached: int | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    if cached is not None:
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    return folder


def test_without_a_limit_it_is_the_machine_s(tmp_path, own_cgroups):
    (bound,) = memory_bounds(tmp_path)
    assert bound.owner == "machine"
    assert 0 < bound.left <= bound.total
    limited(tmp_path, "max", 1)
    assert [one.owner for one in memory_bounds(tmp_path)] == ["machine"]


def test_a_container_s_limit_counts(tmp_path, own_cgroups):
    limited(tmp_path, "3000", 1000)
    assert memory_left(tmp_path) == 2000
    assert memory_total(tmp_path) == 3000
    limited(tmp_path, "3000", 4000)
    assert memory_left(tmp_path) == 0


def test_files_that_are_cached_are_not_taken(tmp_path, own_cgroups):
    limited(tmp_path, "3000", 2900, cached=900)
    assert memory_left(tmp_path) == 1000


def test_the_tightest_of_nested_groups_counts(tmp_path, own_cgroups):
    """As a Slurm job or a systemd slice has them, without a namespace of its own."""
    own_cgroups.write_text("0::/slice/job/step\n")
    limited(tmp_path / "slice" / "job" / "step", "max", 10)
    limited(tmp_path / "slice" / "job", "5000", 4900)
    limited(tmp_path / "slice", "9000", 5000)
    first, second, machine = memory_bounds(tmp_path)
    assert (first.total, first.left) == (5000, 100)
    assert (second.total, second.left) == (9000, 4000)
    assert machine.owner == "machine"


def test_version_1_is_read_too(tmp_path, own_cgroups):
    own_cgroups.write_text("4:cpu,cpuacct:/x\n7:memory:/docker/abc\n")
    own = tmp_path / "memory" / "docker" / "abc"
    own.mkdir(parents=True)
    (own / "memory.limit_in_bytes").write_text("7000\n")
    (own / "memory.usage_in_bytes").write_text("2500\n")
    (own / "memory.stat").write_text("cache 700\ntotal_inactive_file 400\ntotal_active_file 100\n")
    assert memory_left(tmp_path) == 5000
    (own / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_bounds(tmp_path)[0].owner == "machine"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc")
def test_what_children_s_children_hold_is_counted():
    child = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout.readline() == b"ready\n"
        wait_until(lambda: len(tree_of(child.pid)) == 2)
        tree = tree_of(child.pid)
        assert held_bytes([child.pid]) < 50e6
        assert 60e6 < held_bytes(tree, is_exact=True) <= held_bytes(tree)
    finally:
        child.stdin.close()
        child.wait(30)
        child.stdout.close()
    assert held_bytes([child.pid]) == held_bytes([child.pid], is_exact=True) == 0
    assert tree_of(child.pid) == [child.pid]
