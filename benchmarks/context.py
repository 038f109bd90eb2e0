"""What every result file says of where it comes from: the machine, the commit, the command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["context"]

LOAD_AT_START = os.getloadavg()[0]
"""When the script began: what it measures is a load of its own."""
CODE = ["--", ":(top)", ":(top,exclude)benchmarks/results"]
"""What must be committed: everything but what an earlier script has just written."""


def context() -> dict[str, Any]:
    """Machine, load when the script began, commit and command, ready for JSON."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    status = subprocess.run(
        [*git, "status", "--porcelain", "-uno", *CODE], capture_output=True, text=True, check=False
    ).stdout
    return {
        "machine": {
            "cpu": model,
            "cores": os.cpu_count(),
            "load": LOAD_AT_START,
            "python": platform.python_version(),
        },
        "commit": commit + ("+changes" if status.strip() else ""),
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
    }
