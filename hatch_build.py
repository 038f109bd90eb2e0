"""What ``pip`` installs: three distributions in a release, everything at once from a checkout.

``worldloom`` (the library) and ``worldloom-client`` have a ``pyproject.toml`` in their folders;
``worldloom-dist`` is built from the repository's root. In a release, that is built from an sdist,
``worldloom-dist`` holds ``worldloom_dist`` and depends on the other two in its own version. From a
checkout ``pip install .`` and ``pip install -e .`` give all three packages and what they need, so
that there is nothing to install twice, and no copy of the library beside the edited one.

``WORLDLOOM_URL=https://HOST/OWNER/worldloom make dist`` gives packages that say where the project
lives: a page on an index shows the README away from its repository, so its links become absolute,
and badges say version, Python and license.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PARTS = ("worldloom", "worldloom_client")
ADDRESS = "WORLDLOOM_URL"
"""Variable with the address of the repository; where it is not set, links stay relative."""
SHIELDS = "https://img.shields.io/pypi"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|mailto:|#)([^)]+)\)")


def is_checkout(root: str) -> bool:
    """An sdist has ``PKG-INFO`` at its root, a checkout has not."""
    return not (Path(root) / "PKG-INFO").exists()


def project(root: str, part: str) -> dict[str, Any]:
    """Table ``[project]`` of one part."""
    table: dict[str, Any] = tomllib.loads((Path(root) / part / "pyproject.toml").read_text())
    found: dict[str, Any] = table["project"]
    return found


def with_absolute_links(text: str, address: str) -> str:
    """Markdown whose relative links lead to files of a repository."""

    def absolute(found: re.Match[str]) -> str:
        view = "raw" if found[1] else "blob"
        return f"{found[1]}[{found[2]}]({address}/{view}/main/{found[3]})"

    return LINK.sub(absolute, text)


def with_badges(text: str, name: str) -> str:
    """Markdown with badges of a package below its title."""
    badges = [
        f"![{what}]({SHIELDS}/{kind}/{name})"
        for what, kind in (("version", "v"), ("Python", "pyversions"), ("license", "l"))
    ]
    title, _, rest = text.partition("\n")
    return "\n".join([title, "", *badges, rest])


class Metadata(MetadataHookInterface):
    """Dependencies, console scripts, README and addresses."""

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
        text = (Path(self.root) / "README.md").read_text()
        address = os.environ.get(ADDRESS, "").rstrip("/")
        if address:
            text = with_badges(with_absolute_links(text, address), metadata["name"])
            metadata["urls"] = {
                "Homepage": address,
                "Changelog": f"{address}/blob/main/CHANGELOG.md",
                "Issues": f"{address}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


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
