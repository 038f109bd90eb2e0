"""Agents from outside are found by name, and what they lack is said in one sentence."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from worldloom.algorithms.registry import make_agent_config
from worldloom.core.exceptions import ConfigurationError, ModelNotFoundError

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


def test_an_entry_point_gives_it_a_short_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "outside_named.py").write_text(GOOD)
    point = importlib.metadata.EntryPoint("short", "outside_named", "worldloom.agents")
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group, name: [point] if (group, name) == ("worldloom.agents", "short") else [],
    )
    assert make_agent_config("short:small").name == "short:small"


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
