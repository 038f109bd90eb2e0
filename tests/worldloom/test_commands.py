import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.guest_packages import install
from worldloom import MODEL_CATALOG, __version__, create_world_model
from worldloom.algorithms.registry import agent_names
from worldloom.catalogue import LISTS
from worldloom.commands import KINDS, RUN_COMMANDS, main
from worldloom.core.guests import AGENTS, ENV_SUITES, SINKS
from worldloom.training.data import create_random_buffer


def test_the_console_script_is_this_function() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "worldloom/pyproject.toml").read_text())[
        "project"
    ]
    assert project["scripts"]["worldloom"] == f"{main.__module__}:{main.__name__}"


def test_presets_and_settings_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names[:3] == ["dreamerv3:ci", "dreamerv3:size1m", "dreamerv3:size12m"]
    assert set(names) == {*agent_names(), *MODEL_CATALOG}
    assert len(names) == len(set(names))
    assert {line.split()[0] for line in lines if line.endswith("--agent")} == set(agent_names())
    create_world_model("mlp:ci", latent_dim=8).save_pretrained(tmp_path)
    for name in ("mlp:ci", str(tmp_path)):
        assert main(["info", name]) == 0
        assert json.loads(capsys.readouterr().out)["model_type"] == "mlp"


def test_what_installed_packages_bring_is_listed_with_ours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    home = f"listed_{tmp_path.name}"
    lines = ["PRESETS, DEFAULT_PRESET = {'small': None, 'big': None}, 'small'"]
    lines += ["ENV_DEFAULTS, ARCHITECTURE, make_spec = {}, set(), None"]
    (tmp_path / f"{home}.py").write_text("\n".join(lines))
    install(tmp_path, "my-agents", AGENTS, {"mine": home, "gone": "not_there_at_all"})
    install(tmp_path, "my-envs", ENV_SUITES, {"walk": "walks", "toy": "walks"})
    install(tmp_path, "my-sinks", SINKS, {"lines": "lines:Sink", "wandb": "lines:Sink"})
    assert main(["models"]) == 0
    models = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in models[-2:]] == [
        "mine:small an agent of my-agents 1.2; --agent",
        "mine:big an agent of my-agents 1.2; --agent",
    ]
    assert main(["list"]) == 0
    found = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in found if line.endswith(":")] == ["agents:", "envs:", "sinks:"]
    for line in (
        "dreamerv3 worldloom --agent dreamerv3:ci|size1m|size12m|size25m|size50m|size100m|size200m"
        "|size400m",
        "mine my-agents 1.2 --agent mine:small|big",
        "atari worldloom --env atari:NAME",
        "walk my-envs 1.2 --env walk:NAME",
        "toy my-envs 1.2 toy is one of ours",
        "wandb worldloom --wandb",
        "lines my-sinks 1.2 --sink lines",
        "wandb my-sinks 1.2 wandb is one of ours",
    ):
        assert line in found
    assert any(line.startswith("gone my-agents 1.2 agent 'gone' cannot be") for line in found)
    for kind in LISTS:
        assert main(["list", kind]) == 0
        part = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert part
        assert set(part) <= set(found)
    assert tuple(LISTS) == KINDS


def test_a_model_is_measured_and_drawn_on_its_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    create_world_model("mlp:ci", obs_shape=(4,), action_dim=2).save_pretrained(tmp_path / "model")
    create_random_buffer(60, (4,), 2, num_episodes=3, episode_length=20, seed=0).save(
        tmp_path / "data.npz"
    )
    words = [
        "--model",
        str(tmp_path / "model"),
        "--data",
        str(tmp_path / "data.npz"),
        "--horizon",
        "3",
    ]
    assert main(["evaluate", *words]) == 0
    assert len(json.loads(capsys.readouterr().out)["obs_error"]) == 3
    assert main(["imagine", *words, "--output-dir", str(tmp_path / "out")]) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["imagination.png"]


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["imagine", "--model", "drimer"], 2, "Invalid model identifier"),
        (["imagine", "--horizon", "0"], 2, "horizon"),
        (["imagine", "--test", "--seed", "-1"], 2, "--seed must be an integer >= 0, got -1"),
        (["evaluate", "--horizon", "-3"], 2, "--horizon must be an integer >= 1, got -3"),
        (["evaluate", "--data", "nothing.npz"], 2, "nothing.npz"),
        (["info", "file"], 2, "got the file"),
        (
            ["imagine", "--model", "mlp:ci", "--horizon", "2", "--output-dir", "file/below"],
            1,
            "file/below cannot be read or written",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str],
    status: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert main(words) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"worldloom {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    listed = {line.split()[0] for line in text.splitlines() if line.startswith("    ")}
    assert listed >= {*RUN_COMMANDS, "models", "imagine", "completion"}


@pytest.mark.parametrize("command", RUN_COMMANDS)
def test_a_command_is_the_module_s_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: worldloom {command} " in shown


def test_a_run_command_refuses_as_its_module_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--wrokers", "3"]) == 2
    assert "did you mean --workers?" in capsys.readouterr().err
    assert main(["trian", "--env", "gym:CartPole-v1"]) == 2
    error = "error: trian: no such command; did you mean train? (worldloom --help lists all)"
    assert error in capsys.readouterr().err
    assert main(["status", "nowhere"]) == 2
    assert main(["evaluate", "nowhere"]) == 2
    assert "nowhere holds no run" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_words_are_completed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine-0001").mkdir(parents=True)
    (tmp_path / "runs/mine-0001/config.json").touch()

    def completed(*words: str) -> list[str]:
        assert main(["__complete", *words]) == 0
        return capsys.readouterr().out.split()

    assert completed("ev") == ["evaluate"]
    assert completed("train", "--replay.sh") == ["--replay.shards"]
    assert completed("train", "--agent", "tdmpc2:c") == ["tdmpc2:ci"]
    assert completed("train", "--preset", "atari100k-") == ["atari100k-smoke"]
    assert completed("reproduce", "tdmpc2/cup") == ["tdmpc2/cup-catch"]
    assert completed("reproduce", "tdmpc2/cup-catch", "") == []
    assert completed("status", "") == ["runs/mine-0001"]
    assert completed("runs", "--rev") == ["--reverse"]
    assert completed("runs", "--status", "da") == ["damaged"]
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert "worldloom __complete" in capsys.readouterr().out

    typed = "source <(worldloom completion {shell}); "
    asks = {
        "bash": "COMP_WORDS=(worldloom train --agent tdmpc2:c); COMP_CWORD=3; _worldloom; "
        "echo ${COMPREPLY[@]}",
        "zsh": "words=(worldloom train --agent tdmpc2:c); COMP_WORDS=($words); COMP_CWORD=4; "
        "echo ${_comps[worldloom]}",
        "fish": "complete -C 'worldloom train --agent tdmpc2:c'",
    }
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "worldloom").write_text(f'#!/bin/sh\nexec {sys.executable} -m worldloom "$@"\n')
    (binaries / "worldloom").chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    for shell, ask in asks.items():
        if shutil.which(shell) is None:
            continue
        source = "worldloom completion fish | source; " if shell == "fish" else typed
        options = ["-f"] if shell == "zsh" else []
        done = subprocess.run(
            [shell, *options, "-c", source.format(shell=shell) + ask],
            capture_output=True,
            text=True,
            timeout=100,
        )
        expected = "_worldloom" if shell == "zsh" else "tdmpc2:ci"
        assert expected in done.stdout.split(), (shell, done.stderr)


ROOM = """
import gymnasium, numpy as np


class Room(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9, 9, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), 0.0, False, self.t == 9, {}
"""


def test_an_env_is_found_in_the_folder_where_the_command_is_typed(tmp_path: Path) -> None:
    (tmp_path / "room_env.py").write_text(ROOM)
    script = "import sys; from worldloom.commands import main; sys.exit(main())"
    small = "--preset debug --runtime local --env-steps 110 --eval-episodes 1".split()
    for words in (
        ["train", "--env", "room_env:Room", *small, "--run-dir", "run"],
        ["evaluate", "run"],
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, *words],  # -P: a console script's path
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "return   0.0 +- 0.0 over 1 episodes"


def test_alone_it_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "check-env" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "typed"),
    [
        ("/venv/bin/worldloom", "worldloom status"),
        ("/venv/lib/worldloom/__main__.py", "worldloom status"),
        ("/venv/lib/worldloom_dist/status.py", "python -m worldloom_dist.status"),
    ],
)
def test_usage_shows_the_words_that_were_typed(
    program: str, typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit):
        main(["status", "--nothing-like-it"])
    assert f"usage: {typed} " in capsys.readouterr().err
