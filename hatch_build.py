"""What ``pip`` installs: three distributions in a release, everything at once from a checkout.

``worldloom`` (the library) and ``worldloom-client`` have a ``pyproject.toml`` in their folders;
``worldloom-dist`` is built from the repository's root. In a release, that is built from an sdist,
``worldloom-dist`` holds ``worldloom_dist`` and depends on the other two in its own version. From a
checkout ``pip install .`` and ``pip install -e .`` give all three packages and what they need, so
that there is nothing to install twice, and no copy of the library beside the edited one.
"""

import tomllib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PARTS = ("worldloom", "worldloom_client")


def is_checkout(root: str) -> bool:
    """An sdist has ``PKG-INFO`` at its root, a checkout has not."""
    return not (Path(root) / "PKG-INFO").exists()


def project(root: str, part: str) -> dict[str, Any]:
    """Table ``[project]`` of one part."""
    table: dict[str, Any] = tomllib.loads((Path(root) / part / "pyproject.toml").read_text())
    found: dict[str, Any] = table["project"]
    return found


class Metadata(MetadataHookInterface):
    """Dependencies and console scripts."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add what the other parts need, or the parts themselves."""
        needed = list(self.config["dependencies"])
        parts = [project(self.root, part) for part in PARTS]
        if is_checkout(self.root):
            needed += [line for part in parts for line in part["dependencies"]]
            metadata["scripts"] = parts[0]["scripts"]
        else:
            needed += [f"{part['name']}=={metadata['version']}" for part in parts]
            metadata["scripts"] = {}
        metadata["dependencies"] = sorted(set(needed))


class Contents(BuildHookInterface[Any]):
    """Packages of the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put all packages into a wheel that is built from a checkout."""
        if is_checkout(self.root) and version == "standard":
            for part in PARTS:
                for path in sorted((Path(self.root) / part).rglob("*")):
                    if path.is_file() and "__pycache__" not in path.parts:
                        name = path.relative_to(self.root)
                        if name.parts[1] not in ("pyproject.toml", "README.md", "LICENSE"):
                            build_data["force_include"][str(path)] = str(name)
