"""Where reference arrays are found, and how close is close enough.

``WORLDLOOM_GOLDEN`` names a folder with one sub-folder per algorithm. Without it
``../shared/golden`` beside the repository is used, and the test is skipped when that does not
exist. When the variable is set, missing files are failures.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def golden_dir(algorithm: str) -> Path:
    """Folder of the reference arrays of ``algorithm``; skips or fails the calling test when there
    is none.
    """
    named = os.environ.get("WORLDLOOM_GOLDEN")
    folder = (Path(named) if named else REPOSITORY.parent / "shared" / "golden") / algorithm
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"WORLDLOOM_GOLDEN={named} is set, but {folder} does not exist")
    pytest.skip(f"no reference arrays: WORLDLOOM_GOLDEN is not set and {folder} does not exist")


def golden_file(algorithm: str, name: str) -> Path:
    """One reference file; a folder without it is a failure."""
    path = golden_dir(algorithm) / name
    if not path.is_file():
        pytest.fail(f"reference file {path} is missing")
    return path


def load_golden(algorithm: str, name: str) -> dict[str, np.ndarray]:
    """All arrays of one ``.npz`` file."""
    with np.load(golden_file(algorithm, name), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def assert_agrees(
    got: object, want: np.ndarray, *, tolerance: float, name: str = "", floor: float = 0.0
) -> None:
    """Check max|got - want| <= tolerance * max|want| (+ ``floor``) for one tensor; shapes must
    agree, NaN never does.
    """
    got_array = np.asarray(got.detach() if hasattr(got, "detach") else got)  # type: ignore[attr-defined]
    assert got_array.shape == want.shape, f"{name}: shape {got_array.shape}, reference {want.shape}"
    if want.size == 0:
        return
    error = np.abs(got_array.astype(np.float64) - want.astype(np.float64)).max()
    bound = tolerance * np.abs(want.astype(np.float64)).max() + floor
    assert error <= bound, f"{name}: error {error:.3g} exceeds {bound:.3g}"
