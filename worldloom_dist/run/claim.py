"""Which folder a run gets, who has made it, and whether it may be deleted when the run cannot
begin.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.config import TASKS_SUITE
from worldloom_dist.run.config import NO_PRESET, RunConfig
from worldloom_dist.run.folder import RunFolder

__all__ = ["Claim", "choose_folder", "claim_folder", "run_name"]


@dataclass(slots=True)
class Claim:
    """A folder that a launcher has taken for its run, and how far that run has come.

    Attributes:
        shown: Path of the folder, as the user knows it.
        path: The same, wherever an env may go.
        is_made: True when this launcher has made it.
        is_held: True when this launcher holds its lock.
        has_begun: True when the run is known to work: what is wrong from then on is a failure of
            the run, and no wrong input.
    """

    shown: Path
    is_made: bool = False
    is_held: bool = False
    has_begun: bool = False
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.shown.absolute()

    @property
    def is_run(self) -> bool:
        """True when the run has begun, or, a new one, has recorded something before that."""
        return self.has_begun or (self.is_made and RunFolder(self.path).has_records)

    def discard(self) -> None:
        """Delete the folder of a run that never began, so that the next try finds no run there. One
        that was there before stays, and so does one that another launcher uses.
        """
        if not self.is_made or self.is_run:
            return
        if self.is_held:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # another launcher's, or not empty
                self.path.rmdir()


def choose_folder(config: RunConfig, root: Path = Path("runs")) -> tuple[Path, bool]:
    """The folder of a run, and whether a run in it goes on. Creates nothing.

    Raises:
        ConfigurationError: If the folder holds a run and ``if_exists`` is ``error``, or if none is
            named and ``if_exists`` is ``resume``.
    """
    if config.resume is not None:
        return config.resume, True
    if config.run_dir is not None:
        _check_writable(config.run_dir)
        exists = (config.run_dir / "config.json").exists()
        if exists and config.if_exists == "error":
            raise ConfigurationError(
                f"run_dir: {config.run_dir} holds a run already; add --if-exists "
                "resume to go on with it, or name another folder"
            )
        return config.run_dir, exists
    if config.if_exists == "resume":
        raise ConfigurationError(
            "if_exists: --if-exists resume needs --run-dir, the folder of the run that goes on, "
            "and without it every run gets a new one; add --run-dir, or name the run by --resume"
        )
    name = run_name(config)
    taken = [
        int(p.name.rsplit("-", 1)[1])
        for p in root.glob(f"{name}-[0-9]*")
        if p.name.rsplit("-", 1)[1].isdecimal()
    ]
    return root / f"{name}-{max(taken, default=0) + 1:04d}", False


def run_name(config: RunConfig) -> str:
    """The preset, or where there is none the env: ``cartpole-v1``, ``my_env-thermostat``,
    ``mt-dmc10``, ``point-and-2`` (others).
    """
    if config.preset != NO_PRESET:
        return config.preset
    name = "offline" if config.env.is_none else config.env.name
    if config.env.suite == TASKS_SUITE:
        first, *others = config.env.tasks
        is_list = "," in config.env.env
        name = f"{first}-and-{len(others)}" if is_list else f"mt-{Path(name).stem}"
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-.") or "run"


def claim_folder(config: RunConfig, folder: Path, *, is_resumed: bool = False) -> Claim:
    """Make the folder; when another launcher took the same default number meanwhile, take the next
    one.

    Args:
        config: Of the run.
        folder: As it was chosen.
        is_resumed: True when a run in it goes on.

    Raises:
        ConfigurationError: If it cannot be made, or holds a run by now.
    """
    is_named = config.resume is not None or config.run_dir is not None
    while True:
        try:
            folder.mkdir(parents=True)
            return Claim(folder, is_made=True)
        except OSError as error:
            if isinstance(error, FileExistsError):
                if is_named and folder.is_dir():
                    break
                following, _ = choose_folder(config, folder.parent)
                if not is_named and following != folder:
                    folder = following
                    continue
            raise ConfigurationError(
                f"run_dir: {folder} cannot be written ({error}); name another folder"
            ) from error
    if not is_resumed and (folder / "config.json").exists():
        raise ConfigurationError(
            f"run_dir: another launcher has begun a run in {folder} meanwhile; go on with it by "
            "--if-exists resume, or name another folder"
        )
    return Claim(folder)


def _check_writable(folder: Path) -> None:
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigurationError(
            f"run_dir: {folder} cannot be made, because {parent} is not a folder that "
            "can be written to"
        )
