"""A process that keeps what it frees does not fault it in again."""

import os
import platform
import subprocess
import sys

import pytest

PROBE = """
import resource, sys
import numpy as np
from worldloom_dist.runtime.allocator import keep_freed_memory
print(keep_freed_memory() if "keep" in sys.argv else None)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [np.ones(3_000_000, np.uint8) for _ in range(3)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def probe(*words, **variables):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")
    } | variables
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words],
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


def test_variables_of_the_user_win():
    assert probe("keep", MALLOC_ARENA_MAX="4")[0] == "False"
