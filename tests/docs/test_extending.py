"""The pages that teach changing the system: what they say is done to a copy of the tree, and their
commands are run there.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))
STEP = re.compile(r'^```(python title="([^"]+)"|diff|bash)\n(.*?)^```', re.DOTALL | re.MULTILINE)
COPIED = ("worldloom", "worldloom_dist", "docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_teaches_works(page: Path, tmp_path: Path) -> None:
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    steps = STEP.findall(page.read_text())
    for kind, title, text in steps:
        if title:
            (tmp_path / title).write_text(text)
        elif kind == "diff":
            run(["patch", "-p0", "--forward", "--fuzz=0"], tmp_path, text)
        else:
            for line in text.splitlines():
                run(["bash", "-c", line], tmp_path)
    assert steps or page.stem == "transport", "pages of plain python run in test_docs"


def run(command: list[str], folder: Path, text: str | None = None) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "PYTHONWARNINGS": "default",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, input=text, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
