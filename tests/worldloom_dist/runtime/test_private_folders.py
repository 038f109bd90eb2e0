"""Folders with a token are private, and go also where their launcher could not remove them."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from worldloom_dist.runtime.private_folders import LOCK, make_held, release, sweep

HOLDER = (
    "import sys, time\nfrom worldloom_dist.runtime.private_folders import make_held\n"
    "print(make_held(sys.argv[1]), flush=True)\ntime.sleep(600)\n"
)


def test_the_folder_of_a_launcher_that_was_killed_goes_with_what_ran_of_it(tmp_path: Path) -> None:
    ended: list[Path] = []
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        folder = Path(launcher.stdout.readline().strip())
        (folder / "token").write_text("secret")
        assert folder.stat().st_mode & 0o777 == 0o700
        sweep([str(tmp_path)], ended.append)
        assert (folder / "token").exists(), "its launcher lives"
        launcher.kill()
    sweep([str(tmp_path), str(tmp_path / "not-there")], ended.append)
    assert ended == [folder]
    assert not folder.exists()


def test_own_folders_and_those_that_are_not_a_launchers_stay(tmp_path: Path) -> None:
    mine = make_held(str(tmp_path))
    foreign = tmp_path / "wl-foreign"
    foreign.mkdir()
    target = tmp_path / "precious"
    target.mkdir()
    (target / LOCK).touch()
    (tmp_path / "wl-link").symlink_to(target)
    sneaky = tmp_path / "wl-sneaky"
    sneaky.mkdir()
    (sneaky / LOCK).symlink_to(target / LOCK)
    sweep([str(tmp_path)], lambda folder: None)
    assert all(path.exists() for path in (mine, foreign, target / LOCK, sneaky))
    release(mine)
    assert not mine.exists()


def test_a_folder_that_another_launcher_sweeps_away_in_the_making_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several launchers start at the same time: between making the lock and holding it, a folder
    looks like one whose launcher is dead.
    """
    swept: list[Path] = []
    flock = fcntl.flock

    def late(file: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            sweep([str(tmp_path)], swept.append)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    mine = make_held(str(tmp_path))
    assert len(swept) == 1
    assert mine.is_dir()
    assert mine not in swept
    release(mine)


def test_what_was_written_while_a_folder_was_removed_goes_with_the_next_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = make_held(str(tmp_path))
    (mine / "token").write_text("secret")
    (mine / "ray/session/logs").mkdir(parents=True)
    remove = shutil.rmtree

    def and_written_again(path: Path, **more: bool) -> None:
        remove(path, **more)
        (mine / "ray/session/logs").mkdir(parents=True)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", and_written_again)
        release(mine)
    assert mine.exists()
    assert not (mine / "token").exists()
    ended: list[Path] = []
    sweep([str(tmp_path)], ended.append)
    assert ended == [mine]
    assert not mine.exists()


def test_a_folder_of_which_only_rays_part_is_left_goes_and_one_in_the_making_stays(
    tmp_path: Path,
) -> None:
    rest = tmp_path / "wl-resthere"
    (rest / "ray/session").mkdir(parents=True)
    others = tmp_path / "wl-othersin"
    (others / "ray").mkdir(parents=True)
    (others / "notes").touch()
    empty = tmp_path / "wl-emptyone"
    empty.mkdir()
    sweep([str(tmp_path)], lambda folder: None)
    assert not rest.exists()
    assert others.exists()
    assert empty.exists()
