"""With what a run is made: versions of python and of the packages that matter, and the git commit
of the folder in which it was started.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from worldloom.core.plain_files import read_plain

__all__ = ["COMMIT_VARIABLE", "build_facts", "commit_of", "git_commit", "versions"]

PACKAGES = (
    "worldloom-dist",
    "torch",
    "ray",
    "numpy",
    "gymnasium",
    "mujoco",
    "dm-control",
    "ale-py",
)
COMMIT_VARIABLE = "WORLDLOOM_COMMIT"
"""Names the commit where the folder has no git, as on a cluster to which it was uploaded."""
COMMIT = re.compile(r"[0-9a-f]{7,64}(-dirty)?")
GIT_WITHIN_S = 5.0


def build_facts() -> dict[str, str]:
    """Labels of the metric ``build_info``."""
    facts = {"python": platform.python_version()}
    for label, name in (("version", "worldloom-dist"), ("torch", "torch"), ("ray", "ray")):
        try:
            facts[label] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return facts


def versions(folder: Path = Path()) -> str:
    """Versions of python, of the machine, and of the packages that matter, and the commit of a
    folder where there is one; one per line.
    """
    lines = [f"python {platform.python_version()}", f"platform {platform.platform()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    commit = git_commit(folder)
    if commit:
        lines.append(f"commit {commit}")
    return "\n".join(lines) + "\n"


def git_commit(folder: Path = Path(), *, is_ours: bool = True) -> str:
    """The commit that a folder is at, with ``-dirty`` behind it where tracked files have changed
    since; empty where there is no repository, no git, or none that answers in time.

    Args:
        folder: By default the working directory.
        is_ours: False for the code of others, whose commit the variable does not name.
    """
    given = os.environ.get(COMMIT_VARIABLE, "").strip() if is_ours else ""
    if COMMIT.fullmatch(given):
        return given
    # without optional locks, so that a git of the user at work beside us is not disturbed
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=GIT_WITHIN_S,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    found = done.stdout.strip()
    return found if not done.returncode and COMMIT.fullmatch(found) else ""


def commit_of(run_dir: Path) -> str:
    """The commit in a run's ``versions.txt``; empty where there is none.

    Raises:
        OSError: If the file cannot be read.
    """
    path = run_dir / "versions.txt"
    lines = read_plain(path).decode(errors="replace").splitlines() if path.exists() else []
    return next((line.removeprefix("commit ") for line in lines if line.startswith("commit ")), "")
