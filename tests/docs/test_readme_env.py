"""The environment of one's own that the README shows is fit to train on, and is trained on."""

import re
from pathlib import Path

import pytest

from worldloom.envs.check import check_env
from worldloom.envs.config import EnvConfig
from worldloom_dist.launch import main

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    block = next(
        code
        for code in re.findall(
            r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE
        )
        if "class " in code
    )
    (tmp_path / "my_env.py").write_text(block)
    assert len(block.strip().splitlines()) <= 18, "ten lines of code and the space around them"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return "my_env:Thermostat"


def test_the_readmes_own_env_is_good_to_train_on(env: str) -> None:
    report = check_env(EnvConfig(env=env), steps=200)
    assert report.is_good, report.lines()
    assert report.facts["episodes"] == 3, "resets take a step each"


def test_the_readmes_own_env_is_trained_on(env: str, tmp_path: Path) -> None:
    words = [
        "--preset",
        "debug",
        "--env",
        env,
        "--runtime",
        "local",
        "--env-steps",
        "110",
        "--eval-episodes",
        "0",
    ]
    assert main([*words, "--run-dir", "run"]) == 0
    assert "completed" in (tmp_path / "run" / "summary.json").read_text()
