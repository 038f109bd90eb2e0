"""How soon a killed worker and a hung env are replaced: the two minutes of chaos of the tests, and
what they measured.

    python benchmarks/recovery.py      # three minutes; writes benchmarks/results/recovery.json

Two workers of two envs misbehave in every way (raise, hang, return NaN or wrong shapes, leak, exit,
segfault) while a worker or an inference server is killed every five seconds or so
(``tests/chaos/test_env_chaos.py``). A worker counts as replaced when the first chunk of its
successor is stored, a hung env when the first chunk of the next one is: after its deadline, and
what comes on top. The file is written only if the test passes: the run reached its target, and
every stored row is right.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from context import context

ROOT = Path(__file__).parents[1]
TEST = "tests/chaos/test_env_chaos.py::test_two_minutes_of_chaos_cost_no_stored_row"


def measure() -> dict[str, Any]:
    """Run the test; returns what it wrote down."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "long",
            TEST,
            "--basetemp",
            f"{folder}/runs",
        ]
        subprocess.run(command, cwd=ROOT, check=True, timeout=1800)
        (found,) = Path(folder).rglob("recovery.json")
        report: dict[str, Any] = json.loads(found.read_text())
    return report


def spread(seconds: list[float]) -> dict[str, float]:
    """Of those that were replaced: what hung when the run ended was not."""
    replaced = [value for value in seconds if value >= 0]
    return {
        "count": len(replaced),
        "median_s": statistics.median(replaced),
        "longest_s": max(replaced),
    }


def main() -> None:
    """Measure and write the report."""
    argparse.ArgumentParser(description=__doc__).parse_args()  # --help measures nothing
    found = measure()
    recovery = found["recovery_s"]
    deadline = found["recovery_s"]["deadline"]
    report = context() | {
        "worker_killed_to_rows_of_its_successor": spread(recovery["worker_killed"]),
        "env_hung_to_rows_of_the_next": spread(recovery["env_hung"]) | {"deadline_s": deadline},
        "restarts": found["restarts"],
        "misbehaved": found["misbehaved"],
    }
    path = ROOT / "benchmarks" / "results" / "recovery.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
