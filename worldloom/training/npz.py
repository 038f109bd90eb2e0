"""Episodes in an ``.npz`` file, written and read one at a time. numpy only; nothing is ever
unpickled.

Written: ``obs, actions, rewards, dones`` concatenated over episodes, ``obs_shape, action_dim,
capacity``; since 0.2 also ``truncated``, ``episode_lengths``, ``final_obs`` (one per episode) and
``final_obs_mask``.

Read: these, and the files of others under the names in :mod:`worldloom.training.array_names`. What
the last action of an episode led to is taken from ``final_obs``, from ``next_obs``, or from ``obs``
where each episode has one more than actions. Whatever is not used, or had to be concluded, is a
sentence in ``FileFacts.notes``.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.files import expanded, replacing
from worldloom.core.plain_files import open_plain
from worldloom.training.array_names import (
    Ends,
    find_ends,
    flat_note,
    match_names,
    unused_note,
)
from worldloom.training.casting import stored_obs_dtype
from worldloom.training.trajectories import cut_episodes

__all__ = ["DAMAGE", "FileFacts", "is_choice", "read_episodes", "write_episodes"]

DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
)
"""What reading a damaged file may raise."""
ALWAYS = ("actions", "rewards", "dones", "obs_shape", "action_dim", "capacity")
SINCE_0_2 = ("truncated", "episode_lengths", "final_obs_mask", "final_obs")
ONE_HOT = "actions_onehot"
"""Where 0.1's Atari collector kept codes beside integer actions."""
MOST_EXPANSION = 500
ALWAYS_ALLOWED = 256 * 2**20
"""How much larger than a file what it holds may be; frames of a game compress a few
hundredfold.
"""
LARGE = ("obs", "next_obs")
"""Arrays of one observation per transition: read an episode at a time."""
OWN = frozenset({*ALWAYS, *SINCE_0_2, ONE_HOT, "obs", "env_spec"})
"""Arrays that the writers of this project leave; ``env_spec`` is the note of ``worldloom_dist``."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file says before its observations are read.

    Attributes:
        obs_shape, obs_dtype: Of one observation, as a buffer keeps it.
        action_dim: Width of an action; for integer actions ``[n]`` the number of choices.
        capacity, steps: Of the buffer that was saved; transitions in the file.
        actions: ``[n, ...]`` as the file has them.
        notes: Sentences on what is not used and what had to be concluded; complete once all
            episodes are read.
    """

    obs_shape: tuple[int, ...]
    obs_dtype: np.dtype[Any]
    action_dim: int
    capacity: int
    steps: int
    actions: np.ndarray
    notes: list[str] = field(default_factory=list)


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
        path: ``.npz`` is added when missing; ``~`` is the home folder.
        episodes: As ``ReplayBuffer.episodes`` gives them; consumed once.
        lengths: Their transitions.
        obs: Shape and dtype of one observation.
        action_dim, capacity: Stored beside them.
        notes: Further arrays that a writer leaves for itself; readers that do not know them ignore
            them.

    Raises:
        ConfigurationError: If the path is none, or a folder.
    """
    target = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shape, dtype = obs
    total = sum(lengths)
    final = np.zeros((len(lengths), *shape), dtype)
    mask = np.zeros(len(lengths), bool)
    small: dict[str, list[np.ndarray]] = {
        name: [] for name in ("actions", "rewards", "dones", "truncated")
    }
    with (
        replacing(target) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        with archive.open("obs.npy", "w", force_zip64=True) as file:
            _write_header(file, (total, *shape), dtype)
            for number, episode in enumerate(episodes):
                file.write(
                    np.ascontiguousarray(episode["obs"]).data.cast("B")
                    if episode["obs"].size
                    else b""
                )
                for name, parts in small.items():
                    parts.append(np.asarray(episode[name]))
                if episode["final_obs"] is not None:
                    final[number] = episode["final_obs"]
                    mask[number] = True
        arrays = {
            name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in small.items()
        }
        arrays["actions"] = arrays["actions"].reshape(total, action_dim).astype(np.float32)
        arrays |= {
            "obs_shape": np.array(shape),
            "action_dim": np.array(action_dim),
            "capacity": np.array(capacity),
        }
        arrays |= {
            "episode_lengths": np.array(lengths, np.int64),
            "final_obs": final,
            "final_obs_mask": mask,
        }
        for name, array in {**(notes or {}), **arrays}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy.write_array(file, array, allow_pickle=False)


def read_episodes(path: str | PathLike[str]) -> tuple[FileFacts, Iterator[dict[str, Any]]]:
    """What the file says, and its episodes as arguments of ``ReplayBuffer.add_episode``, read as
    they are asked for.

    Raises:
        CheckpointError: If the file is missing, damaged, lacks an array, or contradicts itself;
            also while episodes are read.
    """
    named = expanded(path)
    source = named if named.exists() or not named.name else _with_suffix(named)
    with reading(source, "is not a readable .npz of episodes"):
        check_members(source)
        file = _open(source)
    return file.facts, _episodes(file)


def check_members(source: Path) -> None:
    """Compare what the arrays of an ``.npz`` say of their sizes with the file, before anything of
    them is allocated.

    Raises:
        CheckpointError: If an array claims another size than it has, is no plain array, or if the
            file expands beyond all reason.
        OSError, ValueError, zipfile.BadZipFile: If it is no archive of arrays.
    """
    expanded_bytes = 0
    with open_plain(source) as opened, zipfile.ZipFile(opened) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as file:
                shape, dtype = _plain_header(file)
                claimed = file.tell() + math.prod(shape) * dtype.itemsize
            if min((0, *shape)) < 0 or claimed != member.file_size:
                raise CheckpointError(
                    f"{source}: array {member.filename.removesuffix('.npy')!r} says that it has "
                    f"{claimed} bytes, and has {member.file_size}; the file is damaged"
                )
            expanded_bytes += member.file_size
    check_expansion(source, expanded_bytes)


def check_expansion(source: Path, expanded_bytes: int) -> None:
    """Refuse a file that would take much more memory than its size lets anybody expect.

    Raises:
        CheckpointError: If it expands more than five hundredfold, to more than 256 MiB.
    """
    size = source.stat().st_size
    if expanded_bytes > max(ALWAYS_ALLOWED, MOST_EXPANSION * size):
        raise CheckpointError(
            f"{source}: has {size} bytes and would expand to {expanded_bytes}, more than "
            f"{MOST_EXPANSION} times as much; write it again without compression if it is yours"
        )


def _plain_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("an array holds objects, which are never read")
    return shape, dtype


def is_choice(actions: np.ndarray) -> bool:
    """True for actions ``[n]`` or ``[n, 1]`` that are whole numbers: choices, counted from 0."""
    return actions.dtype.kind in "iu" and actions.size == len(actions)


@dataclass(frozen=True, slots=True)
class _File:
    """An opened file: everything but its observations.

    Attributes:
        names: Given name of each array that is known, by ours.
        small: Arrays by our names.
        extra: 1 where ``obs`` has one observation more than actions in each episode, else 0.
    """

    source: Path
    facts: FileFacts
    names: Mapping[str, str]
    small: Mapping[str, np.ndarray]
    ends: Ends
    extra: int


def _open(source: Path) -> _File:
    with open_plain(source) as file, np.load(file, allow_pickle=False) as archive:
        names, unknown = match_names(archive.files, str(source))
        missing = {"obs", "actions", "rewards"} - set(names)
        if missing:
            raise CheckpointError(
                f"{source}: lacks {sorted(missing)}, has {sorted(archive.files)}; it "
                "is not a file of episodes"
            )
        is_ours = any(name in archive.files for name in ("final_obs", "final_obs_mask"))
        lost = [name for name in (*ALWAYS, *SINCE_0_2) if is_ours and name not in archive.files]
        if lost:
            raise CheckpointError(
                f"{source}: lacks {lost}, which belong to its other arrays; it is damaged"
            )
        small = {ours: archive[name] for ours, name in names.items() if ours not in LARGE}
        small |= {
            name: archive[name]
            for name in (*OWN, ONE_HOT)
            if name in unknown and name not in ("final_obs", "env_spec")
        }
    if ONE_HOT in small:
        small["actions"] = small.pop(ONE_HOT)
    if small["actions"].dtype.kind == "b":
        small["actions"] = small["actions"].astype(np.int8)
    notes = []
    if left := [name for name in unknown if name not in OWN]:
        notes.append(f"arrays that are not used: {', '.join(left)}")
    return _described(source, names, small, notes)


def _described(
    source: Path, names: Mapping[str, str], small: Mapping[str, np.ndarray], notes: list[str]
) -> _File:
    """The file with its ends and sizes; all of its arrays agree."""
    with open_plain(source) as file, zipfile.ZipFile(file) as archive:
        shape, dtype = _shape_of(archive, names["obs"])
        following = _shape_of(archive, names["next_obs"]) if "next_obs" in names else None
    actions = small["actions"]
    steps = len(small["rewards"])
    if small["rewards"].size != steps:
        raise CheckpointError(
            f"{source}: {names['rewards']!r} has shape {small['rewards'].shape}; give "
            "one number per action"
        )
    ends = find_ends(small, steps, str(source))
    extra = int(shape[0] == steps + len(ends.stops) and shape[0] != steps)
    lengths = {"obs": shape[0], "actions": len(actions), "rewards": steps}
    if (shape[0] != steps and not extra) or len(actions) != steps:
        raise CheckpointError(
            f"{source}: arrays have different lengths {lengths}; it is truncated or foreign"
        )
    if following is not None and following[0] != (steps, *shape[1:]):
        raise CheckpointError(
            f"{source}: {names['next_obs']!r} has shape {following[0]}, expected "
            f"{(steps, *shape[1:])}"
        )
    for name, kind in (
        ("obs", dtype.kind),
        ("actions", actions.dtype.kind),
        ("rewards", small["rewards"].dtype.kind),
    ):
        if kind not in "biuf":
            raise CheckpointError(
                f"{source}: {names.get(name, name)!r} does not hold numbers; give "
                "integers, floats or flags"
            )
    if extra and following is not None:
        notes.append(unused_note(names["next_obs"]))
    if steps and not ends.is_marked:
        flags = "'terminated' and 'truncated'"
        notes.append(
            f"nothing says where an episode ends, so all {steps} transitions are one "
            f"episode; add {flags} if they are not"
        )
    width = int(math.prod(actions.shape[1:]))
    if actions.ndim > 2 and actions.dtype.kind == "f":
        notes.append(flat_note(names["actions"], actions.shape[1:]))
        small = {**small, "actions": actions.reshape(steps, width)}
        actions = small["actions"]
    if "action_dim" in small:
        width = int(small["action_dim"])
    elif is_choice(actions):
        width = max(1, int(actions.max(initial=0)) + 1)
    kept = stored_obs_dtype(dtype)
    facts = FileFacts(
        tuple(shape[1:]), kept, width, int(small.get("capacity", steps)), steps, actions, notes
    )
    return _File(source, facts, names, small, ends, extra)


def _episodes(file: _File) -> Iterator[dict[str, Any]]:
    with reading(file.source, "is damaged in the middle"), contextlib.ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(file.source))
        obs = _Rows(stack.enter_context(archive.open(f"{file.names['obs']}.npy")))
        following = None
        if "next_obs" in file.names and not file.extra:
            following = _Rows(stack.enter_context(archive.open(f"{file.names['next_obs']}.npy")))
        yield from cut_episodes(
            file.ends,
            file.small["actions"],
            file.small["rewards"].reshape(-1),
            obs,
            following,
            file.extra,
            _finals(archive, file),
            file.names.get("next_obs", ""),
            file.facts.notes,
        )


def _finals(archive: zipfile.ZipFile, file: _File) -> dict[int, np.ndarray]:
    """Final observations that were stored one per episode, by the transition after the episode's
    last one.
    """
    if "final_obs.npy" not in archive.namelist():
        return {}
    with archive.open("final_obs.npy") as opened:
        array: np.ndarray = npy.read_array(opened, allow_pickle=False)
    mask = file.small["final_obs_mask"].astype(bool)
    stops = np.cumsum(file.small["episode_lengths"])
    return {int(stop): array[number] for number, stop in enumerate(stops) if mask[number]}


class _Rows:
    """Reads an array row by row from its place in an archive; one in Fortran's order is read whole.

    Args:
        file: The opened ``.npy``.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._shape, is_fortran, self._dtype = _read_header(file)
        self._file = file
        self._taken = 0
        self._whole: np.ndarray | None = None
        if is_fortran:
            size = math.prod(self._shape) * self._dtype.itemsize
            self._whole = np.frombuffer(_exactly(file, size), self._dtype).reshape(
                self._shape, order="F"
            )

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` rows."""
        before = self._taken
        self._taken = self._taken + count
        if self._whole is not None:
            return np.ascontiguousarray(self._whole[before : self._taken])
        size = count * math.prod(self._shape[1:]) * self._dtype.itemsize
        return np.frombuffer(_exactly(self._file, size), self._dtype).reshape(
            count, *self._shape[1:]
        )


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"an array ends after {len(data)} of {size} bytes")
    return data


def _shape_of(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(f"{name}.npy") as file:
        shape, _, dtype = _read_header(file)
    return shape, dtype


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    header = (
        npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    )
    shape, is_fortran, dtype = header
    if dtype.hasobject or not shape:
        raise ValueError("observations must be plain numbers with a leading axis of transitions")
    return shape, is_fortran, dtype


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    npy.write_array_header_1_0(
        file, {"shape": shape, "fortran_order": False, "descr": npy.dtype_to_descr(dtype)}
    )


def _target(path: str | PathLike[str]) -> Path:
    """Where a file of that name is written."""
    named = expanded(path)
    target = _with_suffix(named) if named.name else named
    if target.is_dir():
        raise ConfigurationError(
            f"{target}: is a folder; name a file, for example {target / 'data.npz'}"
        )
    return target


def _with_suffix(path: Path) -> Path:
    """The name that a file of episodes gets: one that ends in ``.npz``, in whatever case, stays."""
    return path if path.suffix.lower() == ".npz" else path.with_name(path.name + ".npz")
