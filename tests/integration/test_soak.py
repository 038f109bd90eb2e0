"""A long run with a full replay: memory, open files and threads stay flat.
``WORLDLOOM_SOAK_MINUTES`` says how long (30).
"""

import os

import pytest

from tests.integration.soaking import DRIVER, ROLES, soak

MINUTES = float(os.environ.get("WORLDLOOM_SOAK_MINUTES", "30"))

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(int(MINUTES * 60) + 400)]


def test_nothing_grows(tmp_path):
    found = soak(tmp_path / "run", MINUTES)
    rows = found.summary["rows"]
    assert found.leftovers == []
    assert sum(found.summary["restarts"].values()) == 0
    assert rows["inserted"] == rows["stored"] + rows["evicted"]
    lived = {name.partition(":pid ")[0] for name in found.growth}
    assert lived >= {DRIVER, *ROLES}, "every role lived from the first look to the last"
    for name, one in found.growth.items():
        print(name, one)
        assert one.memory_mb_per_hour < 4.0 or one.memory_mb_grown < 1.0, (
            f"{name} grows by {one.memory_mb_per_hour:.2f} MB/h"
        )
        assert one.files_after <= one.files_before + 2, f"{name} leaks files"
        assert one.threads_after <= one.threads_before + 2, f"{name} leaks threads"
    for name in ("object_store_used_bytes", "replay_bytes{storage=disk}"):
        drift = found.drift[name]
        assert drift.after <= 1.2 * drift.before + 2**20, f"{name} grows: {drift}"
