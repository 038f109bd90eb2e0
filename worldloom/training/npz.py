"""Episodes in an ``.npz`` file, written and read one at a time. numpy only; nothing is ever unpickled.

Arrays: ``obs, actions, rewards, dones`` concatenated over episodes, ``obs_shape, action_dim, capacity``; since 0.2 also
``truncated``, ``episode_lengths``, ``final_obs`` (one per episode) and ``final_obs_mask``. A file without ``episode_lengths`` is
split at its ``dones``.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from worldloom.core.exceptions import CheckpointError
from worldloom.core.files import replacing

__all__ = ["DAMAGE", "FileFacts", "read_episodes", "write_episodes"]

DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What reading a damaged file may raise."""
ALWAYS = ("actions", "rewards", "dones", "obs_shape", "action_dim", "capacity")
SINCE_0_2 = ("truncated", "episode_lengths", "final_obs_mask", "final_obs")
ONE_HOT = "actions_onehot"
"""Where 0.1's Atari collector kept codes beside integer actions."""
SMALL = (*ALWAYS, *SINCE_0_2[:-1], ONE_HOT)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file says before its observations are read."""

    obs_shape: tuple[int, ...]
    obs_dtype: np.dtype[Any]
    action_dim: int
    capacity: int
    steps: int


def write_episodes(
    path: str | PathLike[str],
    episodes: Iterable[dict[str, Any]],
    *,
    lengths: list[int],
    obs: tuple[tuple[int, ...], np.dtype[Any]],
    action_dim: int,
    capacity: int,
    notes: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write episodes; the file appears whole or not at all.

    Args:
        path: ``.npz`` is added when missing.
        episodes: As ``ReplayBuffer.episodes`` gives them; consumed once.
        lengths: Their transitions.
        obs: Shape and dtype of one observation.
        action_dim, capacity: Stored beside them.
        notes: Further arrays that a writer leaves for itself; readers that do not know them ignore them.
    """
    target = _with_suffix(Path(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    shape, dtype = obs
    total, final = sum(lengths), np.zeros((len(lengths), *shape), dtype)
    mask = np.zeros(len(lengths), bool)
    small: dict[str, list[np.ndarray]] = {name: [] for name in ("actions", "rewards", "dones", "truncated")}
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("obs.npy", "w", force_zip64=True) as file:
            _write_header(file, (total, *shape), dtype)
            for number, episode in enumerate(episodes):
                file.write(np.ascontiguousarray(episode["obs"]).data.cast("B") if episode["obs"].size else b"")
                for name, parts in small.items():
                    parts.append(np.asarray(episode[name]))
                if episode["final_obs"] is not None:
                    final[number], mask[number] = episode["final_obs"], True
        arrays = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in small.items()}
        arrays["actions"] = arrays["actions"].reshape(total, action_dim).astype(np.float32)
        arrays |= {"obs_shape": np.array(shape), "action_dim": np.array(action_dim), "capacity": np.array(capacity)}
        arrays |= {"episode_lengths": np.array(lengths, np.int64), "final_obs": final, "final_obs_mask": mask}
        for name, array in {**(notes or {}), **arrays}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy.write_array(file, array, allow_pickle=False)


def read_episodes(path: str | PathLike[str]) -> tuple[FileFacts, Iterator[dict[str, Any]]]:
    """What the file says, and its episodes as arguments of ``ReplayBuffer.add_episode``, read as they are asked for.

    Raises:
        CheckpointError: If the file is missing, damaged, or lacks an array; also while episodes are read.
    """
    source = Path(path) if Path(path).exists() else _with_suffix(Path(path))
    try:
        small = _read_small(source)
        facts = _facts(source, small)
    except DAMAGE as error:
        raise CheckpointError(f"{source}: is not a readable .npz of episodes ({error})") from error
    return facts, _episodes(source, facts, small)


def _read_small(source: Path) -> dict[str, np.ndarray]:
    with source.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        missing = {"obs", "actions", "rewards"} - set(archive.files)
        if missing:
            raise CheckpointError(f"{source}: lacks {sorted(missing)}, has {sorted(archive.files)}; it is not a file of episodes")
        is_ours = any(name in archive.files for name in ("final_obs", "final_obs_mask"))
        lost = [name for name in (*ALWAYS, *SINCE_0_2) if is_ours and name not in archive.files]
        if lost:
            raise CheckpointError(f"{source}: lacks {lost}, which belong to its other arrays; it is damaged")
        small = {name: archive[name] for name in SMALL if name in archive.files}
    return small | ({"actions": small.pop(ONE_HOT)} if ONE_HOT in small else {})


def _facts(source: Path, small: dict[str, np.ndarray]) -> FileFacts:
    with zipfile.ZipFile(source) as archive, archive.open("obs.npy") as file:
        shape, _, dtype = _read_header(file)
    steps = len(small["rewards"])
    if shape[0] != steps or len(small["actions"]) != steps:
        lengths = {"obs": shape[0], "actions": len(small["actions"]), "rewards": steps}
        raise CheckpointError(f"{source}: arrays have different lengths {lengths}; it is truncated or foreign")
    width = int(small["action_dim"]) if "action_dim" in small else int(math.prod(small["actions"].shape[1:]))
    kept = np.dtype(np.float32) if dtype.kind == "f" else dtype
    return FileFacts(tuple(shape[1:]), kept, width, int(small.get("capacity", steps)), steps)


def _episodes(source: Path, facts: FileFacts, small: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    try:
        with zipfile.ZipFile(source) as archive, archive.open("obs.npy") as file:
            shape, _, dtype = _read_header(file)
            finals = _read_finals(archive)
            start = 0
            for number, length in enumerate(_lengths(facts.steps, small)):
                part = slice(start, start + length)
                obs = _read_rows(file, length, shape[1:], dtype)
                episode = {"obs": obs} | {n: small[n][part] for n in ("actions", "rewards", "dones", "truncated") if n in small}
                if finals is not None and small["final_obs_mask"][number]:
                    episode["final_obs"] = finals[number]
                start += length
                yield episode
    except DAMAGE as error:
        raise CheckpointError(f"{source}: damaged in the middle ({error})") from error


def _lengths(steps: int, small: dict[str, np.ndarray]) -> list[int]:
    if "episode_lengths" in small:
        return [int(n) for n in small["episode_lengths"]]
    dones = small["dones"].reshape(-1).astype(bool) if "dones" in small else np.zeros(steps, bool)
    ends = (np.flatnonzero(dones) + 1).tolist()
    bounds = ends if ends and ends[-1] == steps else [*ends, steps]
    return [int(stop - start) for start, stop in zip([0, *bounds], bounds, strict=False) if stop > start]


def _read_finals(archive: zipfile.ZipFile) -> np.ndarray | None:
    if "final_obs.npy" not in archive.namelist():
        return None
    with archive.open("final_obs.npy") as file:
        array: np.ndarray = npy.read_array(file, allow_pickle=False)
    return array


def _read_rows(file: IO[bytes], rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    size = rows * math.prod(shape) * dtype.itemsize
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"obs ends after {len(data)} of {size} bytes")
    return np.frombuffer(data, dtype).reshape(rows, *shape)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    header = npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    shape, is_fortran, dtype = header
    if is_fortran or dtype.hasobject or not shape:
        raise ValueError("obs must be a plain C-ordered array")
    return shape, is_fortran, dtype


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    npy.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": npy.dtype_to_descr(dtype)})


def _with_suffix(path: Path) -> Path:
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
