"""Env code of a folder that was made elsewhere runs only where that was agreed to."""

import asyncio
import dataclasses
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import worldloom
from tests.worldloom_dist.local_runs import start
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.algorithms.registry import outside_module
from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.consent import (
    SIGNATURE_FILE,
    UntrustedEnvError,
    check_env_code,
    is_own,
    module_of,
    sign_run,
)
from worldloom.export.exporting import export_policy
from worldloom.training.saved_agents import SavedAgent
from worldloom_dist.evaluate import evaluate, load_policy
from worldloom_dist.serve import Served, serve

ENV = """
import pathlib
from worldloom.envs.toy import PointEnv

pathlib.Path(__file__).with_name("ran").touch()


class Room(PointEnv):
    pass
"""


@pytest.mark.parametrize(
    ("env", "module"),
    [
        ("a.b:C", "a.b"),
        ("os:abort", "os"),
        ("gym:pack:Room-v0", "pack"),
        ("pack:Room-v0", None),
        ("mujoco:pack:Room-v0", "pack"),
        ("mujoco:HalfCheetah-v5", None),
        ("gym:Pendulum-v1", None),
        ("toy:point", None),
        ("rpc:127.0.0.1:5000", None),
        ("none", None),
    ],
)
def test_envs_that_are_code_are_known_by_their_names(env, module):
    try:
        assert module_of(env) == module
    except ConfigurationError:
        assert module is None, "no env at all"


def test_ones_own_runs_ask_nothing_and_those_of_others_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    sign_run(tmp_path, "my_env:Room")
    assert is_own(tmp_path, "my_env:Room")
    check_env_code(tmp_path, "my_env:Room", trust_env=False)
    check_env_code(tmp_path / "checkpoints" / "step-1", "my_env:Room", trust_env=False)
    assert not is_own(tmp_path, "other_env:Room"), "the name in the folder was changed"
    with pytest.raises(UntrustedEnvError, match=r"module other_env .* add --trust-env"):
        check_env_code(tmp_path, "other_env:Room", trust_env=False)
    key = tmp_path / "mine/worldloom/owner.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    assert not is_own(tmp_path, "my_env:Room"), "others may have read the key"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    assert not is_own(tmp_path, "my_env:Room")
    check_env_code(tmp_path, "my_env:Room", trust_env=True)
    check_env_code(tmp_path, "toy:point", trust_env=False)


def test_an_agent_from_outside_is_code_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    assert outside_module("evil:x") == "evil"
    assert outside_module("tdmpc2:5m") is None
    with pytest.raises(UntrustedEnvError, match=r"its agent is Python code: module evil .* would"):
        check_env_code(tmp_path, "toy:point", "evil", trust_env=False)
    sign_run(tmp_path, "toy:point", "evil")
    check_env_code(tmp_path, "toy:point", "evil", trust_env=False)
    with pytest.raises(UntrustedEnvError, match="module other"):
        check_env_code(tmp_path, "toy:point", "other", trust_env=False)


@pytest.mark.parametrize("command", ["evaluate", "serve"])
@pytest.mark.parametrize("env", [None, "toy:point"], ids=["its env", "an env that is named"])
def test_the_code_of_a_received_agent_does_not_run_unasked(command, env, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text('import pathlib\npathlib.Path(__file__ + ".ran").touch()\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "run"
    assert start(run, *TINY["tdmpc2:ci"], "--env", "toy:point", "--env-steps", "60").run()
    config = json.loads((run / "config.json").read_text())
    config["run"]["agent"] = config["agent"]["name"] = "evil:x"
    if env is not None:
        config["run"]["env"]["env"] = "none"
    (run / "config.json").write_text(json.dumps(config))
    ways = {
        "evaluate": lambda: evaluate(run, episodes=1, env=env),
        "serve": lambda: asyncio.run(
            serve(Served(run_dir=run, port=0, env=env), until=asyncio.Event())
        ),
    }
    with pytest.raises(UntrustedEnvError, match="module evil"):
        ways[command]()
    assert not list(tmp_path.glob("*.ran"))


@pytest.fixture(scope="module")
def agent_of_theirs(tmp_path_factory):
    """What ``Agent.save`` wrote of an agent from outside, as one gets it from someone."""
    place = tmp_path_factory.mktemp("theirs")
    words = [*TINY["tdmpc2:ci"], "--env", "toy:point", "--env-steps", "60"]
    start(place / "run", *words).run()
    saved = SavedAgent.read(place / "run")
    theirs = dataclasses.replace(saved, agent={**saved.agent, "name": "evil_agent:x"})
    (place / "evil_agent.py").write_text('open(__file__ + ".ran", "w").close()\n')
    return theirs.save(place / "agent")


@pytest.mark.parametrize(
    "call",
    [
        worldloom.load_agent,
        worldloom.Agent.load,
        lambda folder: export_policy(folder, folder.parent / "out", format="safetensors"),
        lambda folder: export_policy(
            folder, folder.parent / "out", format="torch", observations="random"
        ),
        lambda folder: start(
            folder.parent / "new", *TINY["tdmpc2:ci"], f"--init-from={folder}", "--env=toy:point"
        ).run(),
    ],
    ids=["load_agent", "Agent.load", "weights", "export", "init-from"],
)
def test_an_agent_that_was_received_does_not_run_unasked(agent_of_theirs, call, monkeypatch):
    monkeypatch.syspath_prepend(str(agent_of_theirs.parent))
    with pytest.raises(ConfigurationError, match=r"module evil_agent|another agent") as caught:
        call(agent_of_theirs)
    assert "trust_env=True" in str(caught.value) or "--init-from" in str(caught.value)
    assert not list(agent_of_theirs.parent.glob("*.ran"))
    assert "evil_agent" not in sys.modules


def test_an_agent_that_was_received_is_loaded_once_that_is_agreed(agent_of_theirs, monkeypatch):
    monkeypatch.syspath_prepend(str(agent_of_theirs.parent))
    with pytest.raises(ConfigurationError, match="evil_agent"):  # it holds no agent
        worldloom.load_agent(agent_of_theirs, trust_env=True)
    (ran,) = agent_of_theirs.parent.glob("*.ran")
    ran.unlink()
    sys.modules.pop("evil_agent", None)
    with pytest.raises(ConfigurationError, match="trust_env must be"):
        worldloom.load_agent(agent_of_theirs, trust_env="yes")


def test_an_agent_of_ones_own_is_saved_and_loaded_without_a_question(agent_of_theirs, tmp_path):
    saved = SavedAgent.read(agent_of_theirs)
    assert saved.agent_module == "evil_agent"
    with pytest.raises(UntrustedEnvError):
        SavedAgent.read(saved.save(tmp_path / "copy")).check_code(trust_env=False)
    run = tmp_path / "run"
    shutil.copytree(agent_of_theirs, run / "checkpoints" / "step-1")
    sign_run(run, saved.env.name, "evil_agent")
    own = SavedAgent.read(run / "checkpoints" / "step-1")
    SavedAgent.read(own.save(tmp_path / "elsewhere")).check_code(trust_env=False)


def test_both_modules_that_would_run_are_named(tmp_path):
    with pytest.raises(UntrustedEnvError, match=r"env 'a:B' and agent are .* module a .*module c"):
        check_env_code(tmp_path, "a:B", "c", trust_env=False)
    with pytest.raises(UntrustedEnvError, match=r"its agent is .* module c "):
        check_env_code(tmp_path, "a:B", "c", trust_env=False, runs_env=False)
    check_env_code(tmp_path, "a:B", trust_env=False, runs_env=False)


def test_an_env_that_serve_would_not_use_is_refused_and_is_no_consent(tmp_path):
    run = tmp_path / "run"
    assert start(run, *TINY["tdmpc2:ci"], "--env", "toy:point", "--env-steps", "60").run()
    served = Served(run_dir=run, port=0, env="gym:Pendulum-v1")
    with pytest.raises(ConfigurationError, match="leave --env out"):
        asyncio.run(serve(served, until=asyncio.Event()))


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null"])
def test_a_user_without_a_home_signs_nothing_and_is_asked(tmp_path, monkeypatch, home):
    monkeypatch.setenv("XDG_STATE_HOME", home)
    sign_run(tmp_path, "my_env:Room")
    assert not is_own(tmp_path, "my_env:Room")
    assert not (tmp_path / SIGNATURE_FILE).exists()


@pytest.fixture(scope="module")
def received(tmp_path_factory):
    """A folder with a run and the module of its env, as one gets it from someone."""
    place = tmp_path_factory.mktemp("received")
    (place / "their_room_env.py").write_text(ENV)
    words = [*TINY["tdmpc2:ci"], "--workers", "1", "--env-steps", "60", "--eval-episodes", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        start(place / "run", *words, "--env", "their_room_env:Room").run()
    assert (place / "run" / SIGNATURE_FILE).exists()
    sys.modules.pop("their_room_env")
    (place / "ran").unlink()
    (place / "run" / SIGNATURE_FILE).write_text("00" * 32)
    return place


def commands(place: Path) -> dict[str, list[str]]:
    run = str(place / "run")
    return {
        "evaluate": ["-m", "worldloom_dist.evaluate", run, "--episodes", "1"],
        "enjoy": ["-m", "worldloom_dist.enjoy", run, "--episodes", "1", "--video"],
        "serve": ["-m", "worldloom_dist.serve", run, "--port", "0"],
    }


@pytest.mark.parametrize("name", ["evaluate", "enjoy", "serve"])
def test_a_command_in_a_received_folder_runs_none_of_its_code(received, name):
    done = subprocess.run(
        [sys.executable, *commands(received)[name]],
        cwd=received,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2, done.stderr
    assert "was not made by you on this machine" in done.stderr
    assert str(received / "their_room_env.py") in done.stderr
    assert "Traceback" not in done.stderr
    assert not (received / "ran").exists()


@pytest.mark.parametrize(("answer", "status"), [(b"n\n", 2), (b"\n", 2), (b"y\n", 0)])
def test_at_a_terminal_it_is_asked(received, answer, status):
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer)
        done = subprocess.run(
            [sys.executable, *commands(received)["evaluate"]],
            cwd=received,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=100,
        )
        said = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == status, said
    assert "Run it? [y/N]" in said
    assert (received / "ran").exists() == (status == 0)
    (received / "ran").unlink(missing_ok=True)


def test_the_library_refuses_until_it_is_agreed_to(received, monkeypatch):
    monkeypatch.syspath_prepend(str(received))
    for call in (evaluate, load_policy):
        with pytest.raises(UntrustedEnvError, match="trust_env=True"):
            call(received / "run")
    with pytest.raises(UntrustedEnvError):
        asyncio.run(serve(Served(run_dir=received / "run", port=0), until=asyncio.Event()))
    assert not (received / "ran").exists()
    assert evaluate(received / "run", episodes=1, trust_env=True)["episodes"] == 1
    assert (received / "ran").exists()
    (received / "ran").unlink()
    sys.modules.pop("their_room_env")


def test_export_plays_in_the_env_of_a_received_agent_only_when_agreed(received, tmp_path):
    with pytest.raises(UntrustedEnvError):
        export_policy(received / "run", tmp_path / "out", format="torch")
    assert not (received / "ran").exists()
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    export_policy(received / "run", tmp_path / "out", format="torch", observations="random")
    assert not (received / "ran").exists()


def test_a_run_that_goes_on_is_not_made_ones_own(received):
    words = ["--resume", str(received / "run"), "--env-steps", "70"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(received))
        start(received / "run", *words).run()
    assert not is_own(received / "run", "their_room_env:Room")
    (received / "ran").unlink(missing_ok=True)
    sys.modules.pop("their_room_env", None)
