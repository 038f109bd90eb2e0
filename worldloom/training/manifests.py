"""The manifest of a checkpoint folder: format version, sha256 and size of its files, and facts of
the caller. It is read without torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError
from worldloom.core.files import open_together, write_json
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_open

__all__ = [
    "FILES",
    "FORMAT",
    "MANIFEST",
    "parsed_manifest",
    "read_manifest",
    "write_manifest",
    "writing",
]

FORMAT = 1
FILES = ("tensors.safetensors", "tree.json")
MANIFEST = "manifest.json"


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Say what could not be written; what was there before is still there then."""
    try:
        yield
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{place}: could not be written ({error}); what was there before is unchanged"
        ) from error


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint folder."""
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder.

    Raises:
        CheckpointError: If it is missing or of another format.
    """
    with (
        reading(folder, "is not a checkpoint"),
        open_together(folder, [MANIFEST]) as files,
    ):
        return parsed_manifest(folder, files.get(MANIFEST))


def parsed_manifest(folder: Path, file: BufferedReader | None) -> dict[str, Any]:
    """The manifest in a file that was opened in ``folder``; None where there was none.

    Raises:
        CheckpointError: As :func:`read_manifest`.
    """
    if file is None:
        raise CheckpointError(f"{folder}: is not a checkpoint (it has no {MANIFEST})")
    with reading(folder, "is not a checkpoint"):
        manifest: dict[str, Any] = parse_json(read_open(file, folder / MANIFEST))
        if manifest["format"] != FORMAT or set(manifest["files"]) != set(FILES):
            raise CheckpointError(
                f"{folder}: format {manifest['format']!r}, this version reads {FORMAT}"
            )
        if not all({"sha256", "bytes"} <= set(entry) for entry in manifest["files"].values()):
            raise CheckpointError(
                f"{folder}: its manifest has no sha256 or size of a file; use an earlier checkpoint"
            )
        if not isinstance(manifest.get("facts"), dict):
            raise CheckpointError(f"{folder}: its manifest has no facts; use an earlier checkpoint")
    return manifest
