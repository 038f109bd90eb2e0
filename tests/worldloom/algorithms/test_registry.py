"""Agents from outside are found by name, and what they lack is said in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest_packages import install
from worldloom.algorithms.registry import (
    agent_names,
    guest_agents,
    make_agent_config,
    outside_module,
)
from worldloom.core.exceptions import ConfigurationError, ModelNotFoundError
from worldloom.core.guests import AGENTS

GOOD = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    name: str = ""
    width: int = 8

PRESETS, DEFAULT_PRESET = {"small": Config}, "small"
ENV_DEFAULTS, ARCHITECTURE = {}, frozenset({"width"})

def make_spec(config, env): ...
def make_agent(config, env, **how): ...
def make_policy(config, env, **how): ...
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_module_is_an_agent_by_its_dotted_name(home: Path) -> None:
    (home / "outside_agent.py").write_text(GOOD)
    config = make_agent_config("outside_agent", {"width": 16})
    assert (config.name, vars(config)["width"]) == ("outside_agent:small", 16)
    with pytest.raises(ModelNotFoundError, match=r"did you mean outside_agent:small\?"):
        make_agent_config("outside_agent:smal")
    with pytest.raises(
        ConfigurationError, match=r"agent.witdh: .* did you mean --agent.width\?|wid"
    ):
        make_agent_config("outside_agent:small", {"witdh": 1})


def test_an_entry_point_gives_it_a_short_name(home: Path) -> None:
    (home / "outside_named.py").write_text(GOOD)
    install(home, "my-pack", AGENTS, {"short": "outside_named"})
    assert make_agent_config("short:small").name == "short:small"
    assert "short:small" in agent_names()
    assert "short:small" not in agent_names(with_guests=False)
    assert outside_module("short:small") is None
    assert outside_module("outside_named:small") == "outside_named"
    with pytest.raises(ModelNotFoundError, match=r"did you mean short:small\?"):
        make_agent_config("shrt:small")
    with pytest.raises(ModelNotFoundError, match=r"did you mean short:small\?"):
        make_agent_config("short:smal")


def test_an_entry_point_that_leads_nowhere_is_told_and_hides_no_other(home: Path) -> None:
    (home / "outside_fine.py").write_text(GOOD)
    (home / "outside_quits.py").write_text("import sys; sys.exit(3)")
    (home / "outside_odd.py").write_text(GOOD.replace('{"small": Config}', "3"))
    points = {
        "fine": "outside_fine",
        "gone": "outside_not_there",
        "inner": "outside_fine:Config",
        "mlp": "outside_fine",
        "odd": "outside_odd",
        "quits": "outside_quits",
    }
    install(home, "my-pack", AGENTS, points)
    found = {one.guest.name: one for one in guest_agents()}
    assert found["fine"].presets == ("fine:small",)
    assert found["fine"].guest.package == "my-pack 1.2"
    problems = {name: one.problem for name, one in found.items()}
    assert problems["fine"] == ""
    assert problems["gone"].startswith("agent 'gone' cannot be imported: ModuleNotFoundError")
    assert problems["mlp"] == "agent 'mlp' is one of ours; ask for it as outside_fine:PRESET"
    assert problems["inner"] == (
        "agent 'inner': its entry point in my-pack 1.2 is 'outside_fine:Config', and an agent is a "
        "whole module; declare it as 'outside_fine'"
    )
    assert problems["odd"] == "agent 'odd': TypeError: 'int' object is not iterable"
    assert problems["quits"] == "agent 'quits' cannot be imported: SystemExit: 3"
    assert type(make_agent_config("mlp:ci")).__module__ == "worldloom.algorithms.mlp.spec"
    assert [name for name in agent_names() if name not in agent_names(with_guests=False)] == [
        "fine:small"
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("outside_bare", "", "outside_bare has no PRESETS, DEFAULT_PRESET"),
        ("outside_broken", "import not_there_at_all", "cannot be imported: ModuleNotFoundError"),
        ("outside_raises", "1 / 0", "cannot be imported: ZeroDivisionError"),
        ("outside_unnamed", GOOD.replace('name: str = ""', "size: int = 1"), "a field name: str"),
        ("outside_missing", None, "no algorithm and no module 'outside_missing'"),
    ],
)
def test_what_an_agent_lacks_is_one_sentence(
    name: str, text: str | None, said: str, home: Path
) -> None:
    if text is not None:
        (home / f"{name}.py").write_text(text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        make_agent_config(f"{name}:small")
    assert "\n" not in str(caught.value)
