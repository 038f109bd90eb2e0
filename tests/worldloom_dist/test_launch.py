"""What the launcher sets up around a run."""

import logging
import sys

import pytest

from worldloom_dist.launch import open_log
from worldloom_dist.run_folder import RunFolder


@pytest.fixture
def restored_root():
    root = logging.getLogger()
    before = [*root.handlers]
    yield root
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    for handler in before:
        if handler not in root.handlers:
            root.addHandler(handler)


def test_each_line_appears_once_on_the_terminal_and_once_in_the_log(tmp_path, restored_root, capsys):
    restored_root.addHandler(logging.StreamHandler(sys.stderr))  # what absl leaves behind
    open_log(RunFolder(tmp_path))
    logging.getLogger("worldloom_dist").info("one line")
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("one line") == 1
    assert (tmp_path / "console.log").read_text().count("one line") == 1
