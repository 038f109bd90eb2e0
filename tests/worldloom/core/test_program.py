"""How a command ends that a person interrupts, or whose output is not read to its end."""

import errno
import importlib
import io
import os
import socket
import subprocess
import sys
from urllib.error import URLError

import pytest

from worldloom import commands
from worldloom.core.program import interruptible


@interruptible
def command(status):
    """Its own help."""
    if status is None:
        raise KeyboardInterrupt
    return status


def test_ctrl_c_ends_a_command_with_one_line(capsys):
    assert command(3) == 3
    assert command(status=None) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert command.__doc__ == "Its own help."


@pytest.mark.parametrize(
    ("module", "inner", "words"),
    [
        ("worldloom_dist.check_env", "_parser", ["toy:point"]),
        ("worldloom_dist.doctor", "check_machine", []),
        ("worldloom_dist.plot.command", "read_run", ["--table", "runs/x"]),
        ("worldloom_dist.report", "report_html", ["runs/x"]),
        ("worldloom_dist.runs", "_parser", []),
        ("worldloom_dist.status", "read_view", ["runs/x"]),
        ("worldloom_dist.enjoy", "read_config", ["--video", "runs/x"]),
        ("worldloom_dist.launch", "parse", []),
        ("worldloom_dist.replay.__main__", "verify", ["verify", "x"]),
        ("worldloom_dist.reproduce.command", "_listed", []),
        ("worldloom_dist.serve", "_parser", ["x"]),
        ("worldloom_dist.submit", "_parser", []),
    ],
)
def test_every_command_is_interrupted_without_a_traceback(
    module, inner, words, monkeypatch, capsys, tmp_path
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    loaded = importlib.import_module(module)
    monkeypatch.setattr(loaded, inner, interrupt)
    assert loaded.main(words) == 130
    assert capsys.readouterr().err.endswith("stopped\n")


def test_ctrl_c_in_a_command_of_the_library_is_one_line(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "find_modules_here", interrupt)
    assert commands.main(["models"]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("buffering", [[], ["-u"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["train", "--help"], ["models"]], ids=" ".join)
def test_output_that_is_not_read_to_its_end_is_no_error(words, buffering):
    """As in ``worldloom train --help | head``."""
    reader, writer = os.pipe()
    os.close(reader)
    command_line = [sys.executable, *buffering, "-m", "worldloom", *words]
    done = subprocess.run(command_line, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode in {0, 141}


def test_another_pipe_that_breaks_is_an_error():
    @interruptible
    def failing():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        failing()


def test_a_command_ends_as_it_does_where_there_is_no_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert command(3) == 3


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x/config.json"), "x/config.json"),
        (OSError(errno.ENOSPC, "No space left on device"), "(No space left on device); free space"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory"), "(No usable temporary"),
        (NotADirectoryError("t/file: is a file"), "error: t/file: is a file\n"),
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
            "connection failed (Con",
        ),
        (TimeoutError(), "the connection failed (TimeoutError)"),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "failed (Name or service",
        ),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "failed (Network is unreachable)"),
        (URLError(OSError("bad\nlines")), "the connection failed (<urlopen error bad)"),
    ],
    ids=[
        *("named", "output", "temporary", "text"),
        *("refused", "late", "unknown", "unreachable", "library"),
    ],
)
def test_a_file_or_network_that_cannot_be_used_is_one_sentence(error, sentence, capsys):
    @interruptible
    def failing():
        raise error

    assert failing() == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert sentence in shown
    assert shown.count("\n") == 1


def test_a_command_in_a_folder_that_is_gone_says_so(monkeypatch, capsys, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert commands.main(["models"]) == 1
    assert capsys.readouterr().err.startswith("error: the folder that this was typed in is gone")


def test_sigterm_ends_a_command_after_what_it_made_for_a_while_is_removed(tmp_path):
    code = (
        "import signal, sys, tempfile\n"
        "from worldloom.core.program import interruptible\n"
        "@interruptible\n"
        "def main():\n"
        "    with tempfile.TemporaryDirectory(dir=sys.argv[1]):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    return 0\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert done.returncode == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", b"12 \xc2\xb1 3 bad\xff"), ("ascii", b"12 \\xb1 3 bad\\udcff")],
)
def test_every_text_can_be_printed_whatever_the_terminal_and_the_names_of_files(
    encoding, shown, monkeypatch
):
    @interruptible
    def printing():
        sys.stdout.write("12 \u00b1 3 bad\udcff")
        sys.stdout.flush()
        return 0

    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding, errors="strict"))
    assert printing() == 0
    assert screen.getvalue() == shown
