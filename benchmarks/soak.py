"""What a long run with a full replay does to its processes: memory, open files, threads; and to
what it measures: speed, latencies, object store, disk.

    OMP_NUM_THREADS=1 python benchmarks/soak.py                          # half an hour, two workers
    OMP_NUM_THREADS=1 python benchmarks/soak.py --hours 2 --workers 64

The run and the looks at it are those of tests/integration/test_soak.py, which says what is allowed.
``growth`` has, per role, how many processes lived through all looks and the largest of each value
among them: unique memory at the end, the slope of a straight line through it, and medians of open
files and threads in both halves. ``drift`` has medians of the run's own metrics in both halves.
Writes benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from context import context

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Soak and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=0.5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/soak.json")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    result: dict[str, Any] = {"context": context()}
    with tempfile.TemporaryDirectory() as folder:
        result |= _soaked(Path(folder) / "run", options.hours * 60, options.workers)
    text = json.dumps(result, indent=2)
    options.output.write_text(text + "\n")
    print(text)


def _soaked(folder: Path, minutes: float, workers: int) -> dict[str, Any]:
    from tests.integration.soaking import soak

    soaked = soak(folder, minutes, workers)
    found = asdict(soaked)
    found["growth"] = soaked.growth_by_role
    kept = ("env_steps", "train_steps", "rows", "restarts")
    found["summary"] = {key: found["summary"][key] for key in kept}
    return found


if __name__ == "__main__":
    main()
