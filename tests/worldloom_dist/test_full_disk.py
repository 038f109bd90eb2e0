"""A disk that takes no more: one sentence, the right status, what was written before is whole, and
the run goes on later.
"""

import errno
import json
import logging
import os

import pytest
import torch
from safetensors import SafetensorError

from tests.worldloom_dist.local_runs import newest_state
from tests.worldloom_dist.small_runs import SMALL, start
from worldloom.training.checkpoints import CheckpointStore
from worldloom_dist.launch import main
from worldloom_dist.replay.verify import verify_run
from worldloom_dist.run import loop
from worldloom_dist.run.console import LogFile
from worldloom_dist.run.folder import RunFolder

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def _restored():
    threads = torch.get_num_threads()
    root = logging.getLogger()
    before = [*root.handlers]
    yield
    torch.set_num_threads(threads)
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()


def summary_of(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    "error", [FULL, SafetensorError("Error while serializing: I/O error: No space left on device")]
)
def test_checkpoint_that_cannot_be_written_ends_the_run_with_one_sentence(
    tmp_path, monkeypatch, capsys, error
):
    folder = tmp_path / "run"
    save = CheckpointStore.save
    made = []

    def save_once(store, *args):
        if made:
            raise error
        made.append(1)
        return save(store, *args)

    words = [*SMALL, "--metrics-port", "0", "--env-steps", "150"]
    with monkeypatch.context() as patched:
        patched.setattr(CheckpointStore, "save", save_once)
        assert main([*words, "--run-dir", str(folder)]) == 1
    shown = capsys.readouterr()
    last = (shown.out + shown.err).strip().splitlines()[-1]
    assert "the run failed: the checkpoint at" in last
    assert "No space left on device" in last
    assert f"--resume {folder}" in last
    assert "Traceback" not in shown.out + shown.err
    assert summary_of(folder)["status"] == "failed"
    assert newest_state(folder)["learner"]["train_steps"] > 0
    assert main(["--resume", str(folder)]) == 0
    assert summary_of(folder)["status"] == "completed"
    assert verify_run(folder).problems == []


def test_summary_that_cannot_be_written_ends_the_run_with_one_sentence(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"

    def full(*_):
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_summary", full)
        patched.setattr(loop, "PAUSES_OF_LAST_WRITE_S", (0.0, 0.0))
        assert (
            main([*SMALL, "--metrics-port", "0", "--env-steps", "60", "--run-dir", str(folder)])
            == 1
        )
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("free space: it is tried again") == 2
    assert (
        "the run failed: [Errno 28] No space left on device"
        in (shown.out + shown.err).strip().splitlines()[-1]
    )
    assert "Traceback" not in shown.out + shown.err
    assert main(["--resume", str(folder)]) == 0


def test_a_disk_that_gets_room_in_time_ends_the_run_as_it_was(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    real = RunFolder.write_summary
    failures = iter([FULL, FULL])

    def full_at_the_end(self, summary):
        if summary["status"] == "completed" and (failure := next(failures, None)):
            raise failure
        real(self, summary)

    monkeypatch.setattr(RunFolder, "write_summary", full_at_the_end)
    monkeypatch.setattr(loop, "PAUSES_OF_LAST_WRITE_S", (0.0, 0.0))
    words = [*SMALL, "--metrics-port", "0", "--env-steps", "60", "--run-dir", str(folder)]
    assert main(words) == 0
    assert summary_of(folder)["status"] == "completed"
    assert capsys.readouterr().out.count("free space: it is tried again") == 2


def test_record_that_cannot_be_written_costs_a_warning_and_no_other_record(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"a": float("nan")})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"cut": ')  # as a full disk leaves it
    folder.append_metrics({"b": [float("inf"), 1]})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == ['{"a": null}', '{"cut": ', '{"b": [null, 1]}']
    os.rename(tmp_path / "metrics.jsonl", tmp_path / "old")
    (tmp_path / "metrics.jsonl").mkdir()
    folder.append_metrics({"c": 1})
    assert "a record is lost" in caplog.text


def test_log_that_cannot_be_written_says_so_once(tmp_path, capsys, monkeypatch):
    def full():
        raise FULL

    handler = LogFile(tmp_path / "console.log")
    with monkeypatch.context() as patched:
        patched.setattr(handler, "flush", full)
        for _ in range(3):
            handler.emit(logging.makeLogRecord({"msg": "a line"}))
    handler.close()
    shown = capsys.readouterr().err
    assert shown.count("cannot be written (No space left on device); lines are lost") == 1
    assert "Traceback" not in shown


def test_failed_run_whose_summary_cannot_be_written_still_tells_its_own_failure(
    tmp_path, monkeypatch
):
    run = start(tmp_path / "run", "--env-steps", "60")

    def broken(*_):
        raise RuntimeError("the learner is broken")

    def full(*_):
        raise FULL

    monkeypatch.setattr(run.runtime.learner, "train", broken)
    write = RunFolder.write_summary
    monkeypatch.setattr(
        RunFolder,
        "write_summary",
        lambda *args: full() if args[1]["status"] == "failed" else write(*args),
    )
    with pytest.raises(RuntimeError, match="the learner is broken"):
        run.run()


def test_new_run_that_cannot_be_described_leaves_no_folder_and_no_wrong_advice(
    tmp_path, monkeypatch, caplog
):
    def fail(*_):
        raise FULL

    monkeypatch.setattr(RunFolder, "describe", fail)
    assert main([*SMALL, "--metrics-port", "0", "--run-dir", str(tmp_path / "run")]) == 1
    assert "No space left on device" in caplog.text
    assert "then start it again" in caplog.text
    assert not (tmp_path / "run").exists()
