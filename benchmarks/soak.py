"""What a long run with a full replay does to its processes: memory, open files, threads.

    OMP_NUM_THREADS=1 python benchmarks/soak.py [--minutes 30]

The run and the looks at it are those of tests/integration/test_soak.py, which says what is allowed.
Writes benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from context import context

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Soak and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.integration.soaking import soak

    result = {"context": context()}
    with tempfile.TemporaryDirectory() as folder:
        found = asdict(soak(Path(folder) / "run", options.minutes))
    kept = ("env_steps", "train_steps", "rows", "restarts")
    found["summary"] = {key: found["summary"][key] for key in kept}
    text = json.dumps(result | found, indent=2)
    (Path(__file__).parent / "results" / "soak.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
