"""A process that keeps what it frees does not fault it in again."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import resource, sys
import numpy as np
from worldloom_dist.runtime.allocator import keep_freed_memory
size, *modes = sys.argv[1:]
print(keep_freed_memory(is_training="train" in modes) if modes else None)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [np.ones(int(size), np.uint8) for _ in range(3)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def probe(*words, size=3_000_000, **variables):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")
    } | variables
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(size), *words],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's; this is another libc"
)
def test_blocks_that_are_freed_and_taken_again_are_not_faulted_in_again():
    said, kept = probe("keep")
    assert said == "True"
    assert kept < probe()[1] / 4


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's; this is another libc"
)
def test_a_process_that_trains_keeps_blocks_of_any_size():
    size = 40_000_000  # more than the largest threshold for blocks that go back
    said, kept = probe("train", size=size)
    assert said == "True"
    assert kept < probe("keep", size=size)[1] / 4


def test_the_library_leaves_the_allocator_of_its_caller_alone():
    sources = (Path(__file__).parents[3] / "worldloom").rglob("*.py")
    assert not [path.name for path in sources if "mallopt" in path.read_text()]


def test_variables_of_the_user_win():
    assert probe("keep", MALLOC_ARENA_MAX="4")[0] == "False"


def test_what_is_frozen_is_left_out_of_collections() -> None:
    code = (
        "import gc; from worldloom_dist.runtime.allocator import freeze_objects; "
        "kept = [[] for _ in range(1000)]; freeze_objects(); "
        "assert gc.get_freeze_count() > 1000; assert len(gc.get_objects()) < 1000"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
