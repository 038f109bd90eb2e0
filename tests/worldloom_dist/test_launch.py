"""What the launcher sets up around a run."""

import json
import logging
import os
import signal
import subprocess
import sys

import pytest
import torch

from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.exceptions import ConfigurationError, TrainingError
from worldloom.envs.toy import PointEnv
from worldloom_dist.launch import main, train
from worldloom_dist.run.announcing import open_log
from worldloom_dist.run.checks import check_watching, without_effect
from worldloom_dist.run.claim import claim_folder
from worldloom_dist.run.cli import parse
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.signals import EXIT_AGAIN


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


def test_each_line_appears_once_on_the_terminal_and_once_in_the_log(
    tmp_path, restored_root, capsys
):
    restored_root.addHandler(logging.StreamHandler(sys.stderr))  # what absl leaves behind
    open_log(RunFolder(tmp_path))
    logging.getLogger("worldloom_dist").info("one line")
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("one line") == 1
    assert (tmp_path / "console.log").read_text().count("one line") == 1


class WarnedEnv(PointEnv):
    """A batch system warns the process in its twentieth step, once."""

    steps = 0

    def step(self, action):
        WarnedEnv.steps += 1
        if WarnedEnv.steps == 20:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().step(action)


@pytest.mark.usefixtures("restored_root")
def test_a_run_that_a_batch_system_warns_checkpoints_and_asks_for_another_start(tmp_path):
    run = tmp_path / "run"
    words = [*TINY["tdmpc2:ci"], "--env", f"{__name__}:WarnedEnv", "--env-steps", "60"]
    words += ["--metrics-port", "0", "--run-dir", str(run), "--if-exists", "resume"]
    before = signal.getsignal(signal.SIGUSR1)
    assert main(words) == EXIT_AGAIN == 75
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["env_steps"] < 60) == ("stopped", True)
    assert any((run / "checkpoints").iterdir())
    assert main(words) == 0, "the same command goes on"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["env_steps"]) == ("completed", 60)
    assert signal.getsignal(signal.SIGUSR1) is before


class BuiltOnceEnv(PointEnv):
    is_built = False

    def __init__(self):
        super().__init__()
        if BuiltOnceEnv.is_built:
            raise RuntimeError("the licence is in use")
        BuiltOnceEnv.is_built = True


@pytest.mark.usefixtures("restored_root")
def test_env_that_cannot_be_built_any_more_fails_the_run_and_is_no_wrong_input(tmp_path):
    folder = tmp_path / "run"
    words = [
        "--preset",
        "debug",
        "--runtime",
        "local",
        "--env",
        f"{__name__}:BuiltOnceEnv",
        "--run-dir",
        str(folder),
    ]
    threads = torch.get_num_threads()
    assert main(words) == 1
    torch.set_num_threads(threads)
    assert "the licence is in use" in (folder / "console.log").read_text()


def test_ctrl_c_before_a_run_is_open_is_one_line(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("worldloom_dist.launch.prepare", interrupt)
    assert main(["--preset", "debug", "--run-dir", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert not (tmp_path / "run").exists()


class WithdrawnEnv(PointEnv):
    """It can be had for training, and is gone when an evaluation asks for it."""

    built = 0


def withdrawn():
    WithdrawnEnv.built += 1
    return WithdrawnEnv() if WithdrawnEnv.built <= 2 else None


@pytest.mark.usefixtures("restored_root")
def test_wrong_input_that_shows_late_fails_the_run_and_keeps_it(tmp_path, capsys):
    run = tmp_path / "run"
    words = [*TINY["tdmpc2:ci"], "--env", f"{__name__}:withdrawn", "--env-steps", "60"]
    words += ["--metrics-port", "0", "--eval-episodes", "1", "--eval-every", "20"]
    WithdrawnEnv.built = 0
    assert main([*words, "--run-dir", str(run)]) == 1
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["env_steps"] > 0) == ("failed", True)
    assert any((run / "checkpoints").iterdir())
    shown = capsys.readouterr()
    assert "the run failed: env " in shown.out + shown.err
    WithdrawnEnv.built = 0
    with pytest.raises(TrainingError, match="returned a NoneType"):
        train([*words, "--run-dir", str(tmp_path / "again")])
    assert any((tmp_path / "again" / "checkpoints").iterdir())
    WithdrawnEnv.built = -100
    assert main(["--resume", str(run)]) == 0
    WithdrawnEnv.built = 0
    assert main(["--resume", str(run), "--env-steps", "120"]) == 1


@pytest.mark.usefixtures("restored_root")
def test_wrong_input_before_a_run_begins_leaves_no_folder(tmp_path, monkeypatch):
    def refuse(*_):
        raise ConfigurationError("replay.load: no")

    monkeypatch.setattr("worldloom_dist.lockstep.runtime.begin_with", refuse)
    words = [*TINY["tdmpc2:ci"], "--metrics-port", "0"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 2
    with pytest.raises(ConfigurationError, match=r"replay\.load: no"):
        train([*words, "--run-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("restored_root")
def test_who_comes_too_late_for_a_folder_leaves_it_to_who_was_first(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    other = (
        "import fcntl, sys; file = open(sys.argv[1] + '/lock', 'w'); fcntl.lockf(file, "
        "fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    held = []

    def claim_late(*args, **more):
        claim = claim_folder(*args, **more)
        process = subprocess.Popen(
            [sys.executable, "-c", other, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout.readline() == b"held\n"
        held.append(process)
        return claim

    monkeypatch.setattr("worldloom_dist.launch.claim_folder", claim_late)
    try:
        words = [*TINY["tdmpc2:ci"], "--metrics-port", "0", "--run-dir", str(folder)]
        assert main(words) == 2
        assert (folder / "lock").exists()
    finally:
        held[0].communicate(timeout=10)


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--runtime", "local"], []),
        (["--runtime", "local", "--inference", "central"], ["--inference central"]),
        (["--runtime", "local", "--inference-servers", "2"], ["--inference-servers"]),
        (["--train-steps", "5"], ["--train-steps"]),
        (["--inference", "central", "--inference-servers", "2"], []),
    ],
)
def test_flags_that_a_run_does_not_use_are_said(words, flags):
    assert [flag for flag, _ in without_effect(parse(words))] == flags


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.example.org", "head", "10.0.0.1"])
def test_an_endpoint_that_others_could_read_without_a_secret_is_refused(
    host, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("WORLDLOOM_METRICS_AUTH", raising=False)
    secret = tmp_path / "secret"
    secret.write_text("user:a-long-word")
    secret.chmod(0o600)
    folder = tmp_path / "run"
    monkeypatch.setattr("worldloom_dist.launch.choose_port", lambda _: 1)  # names lead nowhere here
    assert main(["--metrics-host", host, "--runtime", "local", "--run-dir", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "metrics_host: other machines reach" in said
    assert "--metrics-auth-file FILE" in said
    assert "Traceback" not in said
    assert not folder.exists()
    check_watching(parse(["--metrics-host", host, "--metrics-auth-file", str(secret)]))
    check_watching(parse(["--metrics-host", host, "--metrics-port", "0"]))
    monkeypatch.setenv("WORLDLOOM_METRICS_AUTH", "a-long-word")
    check_watching(parse(["--metrics-host", host]))


def test_a_metrics_host_of_another_machine_is_refused(capsys, tmp_path):
    words = ["--metrics-host", "192.0.2.1", "--runtime", "local", "--run-dir", str(tmp_path / "r")]
    assert main(words) == 2
    assert "metrics_host: nothing can listen at '192.0.2.1'" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_an_endpoint_on_the_loopback_needs_no_secret(host, monkeypatch):
    monkeypatch.delenv("WORLDLOOM_METRICS_AUTH", raising=False)
    check_watching(parse(["--metrics-host", host]))


def test_a_program_that_starts_several_runs_keeps_its_own_log_handlers(tmp_path):
    root = logging.getLogger()
    before = [*root.handlers]
    for name in ("a", "b"):
        words = ["--preset", "debug", "--runtime", "local", "--env-steps", "110"]
        assert main([*words, "--eval-episodes", "0", "--run-dir", str(tmp_path / name)]) == 0
        assert root.handlers == before
    assert str(tmp_path / "b") not in (tmp_path / "a/console.log").read_text()
