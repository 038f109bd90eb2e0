"""Sinks of others: found by name or module, refused in one sentence, fed as ours are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest_packages import install
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.guests import SINKS
from worldloom_dist.metrics.guest_sinks import OURS, find_sink, sink_names
from worldloom_dist.metrics.sinks import NEEDS, check_sinks, open_sinks

LINES = """
import json

class LineSink:
    def __init__(self, folder, run_id, config):
        self.path = folder / "lines.jsonl"
        self.say(["open", run_id, config["seed"]])

    def say(self, what):
        with self.path.open("a") as file:
            file.write(json.dumps(what) + "\\n")

    def write(self, env_steps, values):
        self.say(["write", env_steps, sorted(values)])

    def show(self, env_steps, name, path):
        self.say(["show", env_steps, name])

    def close(self, status):
        self.say(["close", status])


class Half:
    def write(self, env_steps, values):
        pass


def made(folder, run_id, config):
    return LineSink(folder, run_id, config)


text = "no sink"
"""
NO_SWITCH = {"tensorboard": False, "wandb": False, "trackio": False, "mlflow": False, "seed": 3}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with sinks, which a package brings as ``lines``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"lines_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(LINES)
    install(tmp_path, "my-sinks", SINKS, {"lines": f"{name}:LineSink", "wandb": f"{name}:made"})
    return name


def said(folder: Path) -> list[list[object]]:
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def test_ours_are_those_with_a_switch() -> None:
    assert set(OURS) == set(NEEDS)


@pytest.mark.parametrize("name", ["lines", "{home}:LineSink", "{home}:made"])
def test_a_sink_gets_what_ours_get(name: str, home: str, tmp_path: Path) -> None:
    sinks = open_sinks(tmp_path, "run-1", {**NO_SWITCH, "sink": name.format(home=home)})
    sinks.write(10, {"loss{name=total}": 2.0})
    sinks.show(20, "videos/x", tmp_path / "x.gif")
    sinks.close("stopped")
    assert said(tmp_path) == [
        ["open", "run-1", 3],
        ["write", 10, ["loss/total"]],
        ["show", 20, "videos/x"],
        ["close", "stopped"],
    ]


def test_several_are_joined_by_a_plus() -> None:
    assert sink_names(None) == []
    assert sink_names("a+b:c + d") == ["a", "b:c", "d"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("linse", r"sink 'linse': no installed package brings it; did you mean lines\?; name one "),
        ("wandb", r"sink 'wandb' has a switch of its own; write --wandb"),
        ("tensorbord", r"did you mean tensorboard\?"),
        ("not_there_at_all:Sink", "cannot be imported: ModuleNotFoundError"),
        ("{home}:LineSnk", r"has no 'LineSnk' that makes a sink; did you mean LineSink\?"),
        ("{home}:text", "has no 'text' that makes a sink"),
        ("{home}:Half", "Half has no show, close, which a sink needs"),
        ("a b:c", "write package.module:name"),
        ("", "sink must name a sink, or several as a\\+b, got ''"),
        ("+", "got '\\+'; leave it out for none"),
    ],
)
def test_what_is_no_sink_is_refused_in_one_sentence(name: str, text: str, home: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as caught:
        check_sinks([], name.format(home=home))
    assert "\n" not in str(caught.value)
    check_sinks([], f"lines+{home}:made")


def test_a_factory_that_makes_nothing_useful_is_given_up(home: str, tmp_path: Path) -> None:
    sinks = open_sinks(tmp_path, "run-1", {**NO_SWITCH, "sink": "builtins:print"})
    for step in range(5):
        sinks.write(step, {"fps": 1.0})
    sinks.close()
    assert list(sinks.given_up) == ["builtins:print"]


def test_a_run_feeds_it_and_keeps_it_for_a_resume(home: str, tmp_path: Path) -> None:
    assert find_sink("lines")
    run = tmp_path / "run"
    words = [*TINY["tdmpc2:ci"], "--env", "toy:point", "--env-steps", "40", "--metrics-port", "0"]
    for more in (["--sink", f"{home}:LineSink", "--run-dir"], ["--resume"]):
        done = subprocess.run(
            [sys.executable, "-m", "worldloom_dist.launch", *words, *more, str(run)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        words = ["--env-steps", "80"]
    ends = [line for line in said(run) if line[0] in ("open", "close")]
    assert [line[0] for line in ends] == ["open", "close"] * 2
    assert ends[0] == ends[2]
    assert any(line[0] == "write" for line in said(run))
