"""Episodes in files that other programs read and write: one reader and one writer for every
format, chosen by the name of the file.

    FILE.npz          the library's own (``ReplayBuffer.save``): one array of each kind
    FILE.parquet      every column of every row, as stored; needs pyarrow, which Ray brings
    minari:NAME-v0    a Minari dataset on this machine; needs the extra ``minari``
    rllib:FOLDER      episodes that RLlib recorded, or reads (``SingleAgentEpisode``)
    lerobot:FOLDER    a LeRobot dataset v3.0 on this machine; ``?obs=COLUMN`` names its columns

Inside there is one shape only: an episode is the rows of ``core.sequence``, from its ``is_first``
row to its last one. numpy only.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.plain_files import check_plain
from worldloom.core.sequence import Rows
from worldloom.core.specs import EnvSpec
from worldloom_dist.replay.formats.episode_rows import EpisodeFile

__all__ = [
    "SOURCES",
    "columns_of_name",
    "open_episodes",
    "source_files",
    "whole_name",
    "write_episode_file",
]

MINARI = "minari:"
RLLIB = "rllib:"
LEROBOT = "lerobot:"
SUFFIXES = ("npz", "parquet")
SOURCES = "FILE.npz, FILE.parquet, minari:NAME-v0, rllib:FOLDER or lerobot:FOLDER"
WRONG_NAMES = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""What the system says when no file can have the name; what else it says has to do with
the disk.
"""


def open_episodes(source: str) -> EpisodeFile:
    """Open a file of episodes.

    Raises:
        ConfigurationError: If the name says no known format.
        CheckpointError: If the file is missing, damaged or of another kind; also while episodes are
            read.
        MissingDependencyError: If the format needs a package that is not installed.
    """
    kind = _kind(source)
    with reading(source):
        _check_files(source)
        opened = open_as(kind, source)
    opened.episodes = _guarded(source, opened.episodes)
    return opened


def _check_files(source: str) -> None:
    """Refuse a pipe or a device among the files of a source, which a reader would wait for."""
    for path in source_files(source):
        try:
            check_plain(path)
        except FileNotFoundError:
            continue  # its reader says what is missing
        except OSError as error:
            raise CheckpointError(f"{source}: {path} cannot be read ({error.strerror})") from error


def open_as(kind: str, source: str) -> EpisodeFile:
    """Open a file as one of a format."""
    if kind == "npz":
        from worldloom_dist.replay.formats.npz import read_npz

        return read_npz(Path(source))
    if kind == "parquet":
        from worldloom_dist.replay.formats.parquet import read_parquet

        return read_parquet(Path(source))
    if kind == "rllib":
        from worldloom_dist.replay.formats.rllib import read_rllib

        return read_rllib(Path(source.removeprefix(RLLIB)))
    if kind == "lerobot":
        from worldloom_dist.replay.formats.lerobot import read_lerobot

        return read_lerobot(source.removeprefix(LEROBOT))
    from worldloom_dist.replay.formats.minari import read_minari

    return read_minari(source.removeprefix(MINARI))


def _guarded(source: str, episodes: Iterator[Rows]) -> Iterator[Rows]:
    """The episodes, with one kind of error for whatever a file makes its reader raise."""
    with reading(source, "is damaged in the middle, or of another space than it says"):
        yield from episodes


def whole_name(source: str) -> str:
    """The same source, as a process that runs in another folder names it."""
    if source.startswith(MINARI):
        return source
    scheme = next((name for name in (RLLIB, LEROBOT) if source.startswith(name)), "")
    return f"{scheme}{Path(source.removeprefix(scheme)).absolute()}"


def columns_of_name(source: str) -> str:
    """What the name of a source says of its columns, which make other rows of one folder each; the
    same however it is spelled.

    Raises:
        CheckpointError, ConfigurationError: As :func:`open_episodes`.
    """
    if not source.startswith(LEROBOT):
        return ""
    from worldloom_dist.replay.formats.lerobot import chosen_columns

    with reading(source):
        return chosen_columns(source.removeprefix(LEROBOT))


def source_files(source: str) -> list[Path]:
    """The files that hold its numbers.

    Raises:
        CheckpointError: If a dataset or folder has none.
        MissingDependencyError: If finding them needs a package that is not installed.
    """
    if source.startswith(MINARI):
        from worldloom_dist.replay.formats.minari import minari_files

        return minari_files(source.removeprefix(MINARI))
    if source.startswith(RLLIB):
        from worldloom_dist.replay.formats.rllib import rllib_files

        return rllib_files(Path(source.removeprefix(RLLIB)))
    if source.startswith(LEROBOT):
        from worldloom_dist.replay.formats.lerobot_layout import lerobot_files

        return lerobot_files(source.removeprefix(LEROBOT))
    return [Path(source)]


def write_episode_file(target: str, env: EnvSpec, episodes: Iterable[Rows]) -> list[str]:
    """Write whole episodes; the file appears whole or not at all.

    Args:
        target: Where, and by its name in which format.
        env: Whose episodes.
        episodes: With the columns of ``env``, each from ``is_first`` to its last row.

    Returns:
        Sentences on what the format made of them; mostly none.

    Raises:
        ConfigurationError: If the name says no known format or cannot be written to, or the format
            cannot hold these spaces.
        CheckpointError: If the disk takes no more.
        MissingDependencyError: If the format needs a package that is not installed.
    """
    kind = _kind(target)
    if kind in SUFFIXES and Path(target).is_dir():
        raise ConfigurationError(
            f"{target}: is a folder; name a file, for example {Path(target) / f'data.{kind}'}"
        )
    try:
        return _write(kind, target, env, episodes)
    except OSError as error:
        if error.errno in WRONG_NAMES:
            raise ConfigurationError(
                f"{target}: cannot be written ({error}); name a file in a folder that "
                "you may write to"
            ) from error
        raise CheckpointError(
            f"{target}: could not be written ({error}); free space, or name a file on another disk"
        ) from error


def _write(kind: str, target: str, env: EnvSpec, episodes: Iterable[Rows]) -> list[str]:
    if kind == "lerobot":
        from worldloom_dist.replay.formats.lerobot_writer import write_lerobot

        return write_lerobot(target.removeprefix(LEROBOT), env, episodes)
    if kind == "npz":
        from worldloom_dist.replay.formats.npz import write_npz

        write_npz(Path(target), env, episodes)
    elif kind == "parquet":
        from worldloom_dist.replay.formats.parquet import write_parquet

        write_parquet(Path(target), env, episodes)
    elif kind == "rllib":
        from worldloom_dist.replay.formats.rllib import write_rllib

        write_rllib(Path(target.removeprefix(RLLIB)), env, episodes)
    else:
        from worldloom_dist.replay.formats.minari import write_minari

        write_minari(target.removeprefix(MINARI), env, episodes)
    return []


def _kind(name: str) -> str:
    if name.startswith(MINARI) and len(name) > len(MINARI):
        return "minari"
    if name.startswith(RLLIB) and len(name) > len(RLLIB):
        return "rllib"
    if name.startswith(LEROBOT) and len(name) > len(LEROBOT):
        return "lerobot"
    suffix = Path(name).suffix.lower().removeprefix(".")
    if suffix in SUFFIXES:
        return suffix
    raise ConfigurationError(f"{name!r} is no known kind of file; use {SOURCES}")
