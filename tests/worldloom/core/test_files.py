"""Files are whole or absent, and a set of files is all old or all new, whatever moment its writer
dies at.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.worldloom.dying import dying
from worldloom.core.files import current, open_together, replacing, replacing_together, write_text

NAMES = ("a", "b", "c")


def write(folder: Path, word: str) -> None:
    with replacing_together(folder) as staging:
        for name in NAMES:
            (staging / name).write_text(word)


def read(folder: Path) -> set[str | None]:
    with open_together(folder, NAMES) as found:
        return {found[name].read().decode() if name in found else None for name in NAMES}


def test_a_writer_that_dies_at_any_moment_leaves_the_old_set_or_the_new_one(tmp_path, monkeypatch):
    outcomes = []
    for at in range(40):
        folder = tmp_path / str(at)
        write(folder, "old")
        with dying(monkeypatch, at):
            write(folder, "new")
        (found,) = outcome = read(folder)
        assert outcome in ({"old"}, {"new"})
        outcomes.append(found)
        write(folder, "next")
        assert read(folder) == {"next"}
        # and the next writer tidies up
        assert sorted(path.name for path in folder.iterdir()) == list(NAMES)
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes.count("old") > 5
    assert outcomes.count("new") > 5


def test_a_folder_that_is_written_for_the_first_time_appears_whole_or_not_at_all(
    tmp_path, monkeypatch
):
    for at in range(20):
        folder = tmp_path / str(at)
        with dying(monkeypatch, at):
            write(folder, "new")
        assert read(folder) == ({"new"} if folder.exists() else {None})
        write(folder, "next")
        assert read(folder) == {"next"}
        assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_readers_beside_writers_never_see_a_mix(tmp_path):
    write(tmp_path / "set", "0")
    is_over = threading.Event()
    seen = []

    def look() -> None:
        while not is_over.is_set():
            seen.append(read(tmp_path / "set"))

    def rewrite(number: int) -> None:
        for turn in range(30):
            write(tmp_path / "set", f"{number}/{turn}")

    reader = threading.Thread(target=look)
    writers = [threading.Thread(target=rewrite, args=(number,)) for number in range(3)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    is_over.set()
    reader.join()
    assert all(len(words) == 1 and None not in words for words in seen)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == list(NAMES)


def test_what_fails_to_be_written_changes_nothing(tmp_path):
    folder = tmp_path / "set"
    write(folder, "old")
    (folder / "mine.txt").write_text("mine")
    with contextlib.suppress(ZeroDivisionError), replacing_together(folder) as staging:
        (staging / "a").write_text("new")
        raise ZeroDivisionError
    assert read(folder) == {"old"}
    assert sorted(path.name for path in folder.iterdir()) == [*NAMES, "mine.txt"]
    with contextlib.suppress(ZeroDivisionError), replacing_together(tmp_path / "fresh"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_other_files_of_the_folder_stay_also_through_a_link_and_below_a_read_only_parent(tmp_path):
    (tmp_path / "home" / "set").mkdir(parents=True)
    (tmp_path / "home" / "set" / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "home" / "set")
    (tmp_path / "home").chmod(0o555)
    try:
        write(tmp_path / "link", "new")
    finally:
        (tmp_path / "home").chmod(0o755)
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "home" / "set") == {"new"}
    assert sorted(path.name for path in (tmp_path / "home" / "set").iterdir()) == [
        *NAMES,
        "mine.txt",
    ]


def test_a_file_in_the_place_of_a_folder_and_the_reverse_are_refused_and_kept(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("file", "nowhere"):
        with pytest.raises(NotADirectoryError):
            write(tmp_path / name, "new")
    (tmp_path / "set" / "b").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"set/b: is a folder"):
        write(tmp_path / "set", "new")
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["b"]


def test_a_file_that_is_linked_in_unchanged_is_replaced_by_itself(tmp_path):
    write(tmp_path / "set", "old")
    with replacing_together(tmp_path / "set") as staging:
        os.link(tmp_path / "set" / "a", staging / "a")
        (staging / "b").write_text("new")
    assert [(tmp_path / "set" / name).read_text() for name in NAMES] == ["old", "new", "old"]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == list(NAMES)


def test_the_stage_of_a_living_writer_is_left_alone(tmp_path):
    write(tmp_path / "set", "old")
    with replacing_together(tmp_path / "set") as staging:
        (staging / "a").write_text("slow")
        write(tmp_path / "set", "fast")
        assert (staging / "a").read_text() == "slow"
    assert current(tmp_path / "set", "a").read_text() == "slow"


def test_a_single_file_counts_after_a_set_whose_writer_died(tmp_path, monkeypatch):
    for at in range(12, 24):
        folder = tmp_path / str(at)
        write(folder, "old")
        with dying(monkeypatch, at):
            write(folder, "new")
        write_text(folder / "a", "single")
        assert current(folder, "a").read_text() == "single"


def test_a_file_replaces_what_a_link_names_or_nothing_when_the_block_fails(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with contextlib.suppress(ZeroDivisionError), replacing(tmp_path / "link") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "real").read_text() == "old"
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_of_two_writers_of_a_file_neither_shows_what_the_other_has_half_written(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as temporary, temporary.open("w") as slow:
        slow.write("half")
        slow.flush()
        write_text(path, "whole")
        slow.write(" and half")
        slow.flush()
        assert path.read_text() == "whole"
    assert path.read_text() == "half and half"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_writer_of_a_file_leaves_is_removed_by_the_next(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    for at in range(6):
        with dying(monkeypatch, at):
            write_text(path, "new")
        assert path.read_text() in ("old", "new")
        write_text(path, "old")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_text_is_utf_8_wherever_it_is_written(tmp_path):
    """A machine may have a locale of another encoding, and read what another machine wrote."""
    code = (
        "import sys; from pathlib import Path; from worldloom.core.files import write_text; "
        "write_text(Path(sys.argv[1]), '12 \\u00b1 3')"
    )
    latin = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    subprocess.run(command, check=True, timeout=60, env={**os.environ, **latin})
    assert (tmp_path / "file").read_bytes() == "12 \u00b1 3".encode()


def test_what_is_no_file_is_refused_and_never_replaced_by_one(tmp_path):
    """As in ``worldloom report -o /dev/null`` by root."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        with pytest.raises(OSError, match="a file is needed"):
            write_text(path, "text")
    assert pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]
