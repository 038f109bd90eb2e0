"""Packages as pip leaves them, for tests of what they bring along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(site: Path, package: str, group: str, points: Mapping[str, str]) -> None:
    """Write the metadata of a package with entry points into a folder on ``sys.path``.

    Args:
        site: The folder.
        package: Its name; its version is 1.2.
        group: Of the entry points.
        points: Name -> ``module`` or ``module:name``.
    """
    info = site / f"{package.replace('-', '_')}-1.2.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    with (info / "entry_points.txt").open("a") as file:
        file.write("\n".join([f"[{group}]", *lines, ""]))
