"""Names that are no UTF-8 reach what a run says of itself as they were typed."""

import logging
import os

from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.console import LogFile
from worldloom_dist.run.folder import RunFolder

NAME = os.fsdecode(b"run\xff")


def test_the_id_of_a_run_is_a_text_that_sinks_and_ray_take_whatever_its_folder_is_called(tmp_path):
    folder = RunFolder(tmp_path / f"my {NAME}\n")
    folder.path.mkdir()
    run_id = folder.describe(RunConfig(), {}, {})
    assert run_id.startswith("my run---")
    assert run_id.isprintable()
    assert run_id.encode()


def test_the_command_line_and_the_log_take_a_name_that_is_no_utf_8(tmp_path):
    folder = RunFolder(tmp_path)
    folder.describe(RunConfig(), {}, {}, ["--run-dir", NAME])
    assert b"--run-dir 'run\xff'\n" in (tmp_path / "command.txt").read_bytes()
    log = LogFile(tmp_path / "console.log")
    record = logging.LogRecord("run", logging.INFO, "", 0, "run %s", (NAME,), None)
    log.emit(record)
    log.close()
    assert (tmp_path / "console.log").read_bytes() == b"run run\xff\n"
