"""Files that are none, or far larger than what is written there: an error at once."""

import os
import tracemalloc
from pathlib import Path

import pytest

from worldloom.core.plain_files import (
    LINE_BYTES,
    check_plain,
    open_plain,
    plain_lines,
    read_plain,
    read_tail,
)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize(
    "read", [open_plain, read_plain, check_plain, lambda path: list(plain_lines(path))]
)
def test_a_pipe_is_not_waited_for_and_a_device_is_not_read(pipe: Path, read) -> None:
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(OSError, match="a file is needed"):
            read(path)
    with pytest.raises(IsADirectoryError):
        read(pipe.parent)
    with pytest.raises(FileNotFoundError):
        read(pipe.parent / "none")


def test_a_hole_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x\n")
    os.truncate(path, 2**40)
    with pytest.raises(OSError, match=r"1,099,511,627,776 bytes.*at most 67,108,864"):
        read_plain(path)
    lines = plain_lines(path)
    assert next(lines) == b"x\n"
    with pytest.raises(OSError, match=f"a line of more than {LINE_BYTES:,}"):
        next(lines)
    assert read_tail(path, 3) == b"\0\0\0"


def test_what_is_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\n\ntwo")
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_plain(link) == b"one\n\ntwo"
    assert list(plain_lines(link)) == [b"one\n", b"\n", b"two"]
    assert list(plain_lines(link, 5)) == [b"two"]
    assert read_tail(link, 3) == b"two"
    assert read_tail(link, 30) == b"one\n\ntwo"
    assert read_plain(link, 8)
    with pytest.raises(OSError, match="at most 7"):
        read_plain(link, 7)


def test_a_small_file_takes_no_more_memory_than_it_has(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"{}")
    tracemalloc.start()
    try:
        assert read_plain(path) == b"{}"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
