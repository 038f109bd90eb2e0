from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.check import EnvReport, check_env
from worldloom.envs.config import EnvConfig, EnvLimits


class ImpoliteEnv(gymnasium.Env):
    """Seeds nothing, never ends, never rewards, shows large numbers and a float image."""

    observation_space = gymnasium.spaces.Dict(
        {
            "big": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "film": gymnasium.spaces.Box(0, 1, (32, 32, 3), np.float32),
            "photo": gymnasium.spaces.Box(0, 255, (200, 150, 3), np.uint8),
        }
    )
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        return {
            "big": np.random.default_rng().normal(0, 1e5, 2),
            "film": np.zeros((32, 32, 3), np.float32),
            "photo": np.zeros((200, 150, 3), np.uint8),
        }, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return self.reset()[0], 0.0, False, False, {}


@pytest.fixture(autouse=True)
def _this_file_is_importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("FAULTY_DIR", str(tmp_path))


def text_of(report: EnvReport) -> str:
    return "\n".join(report.lines())


def test_good_env_needs_no_change() -> None:
    report = check_env(EnvConfig(env="gym:Pendulum-v1"), steps=450)
    assert report.is_good
    assert report.findings == []
    assert (report.facts["episodes"], report.facts["ends"]) == (2, "0 terminated, 2 truncated")
    text = text_of(report)
    for part in (
        "good to train on",
        "dense layers over 3 numbers",
        "dreamerv3, tdmpc2",
        "nothing to change",
        "decisions per second",
    ):
        assert part in text


def test_impolite_env_is_told_what_to_change() -> None:
    report = check_env(EnvConfig(env="test_check:ImpoliteEnv"), steps=50)
    assert report.is_good
    text = text_of(report)
    for part in (
        "equal seeds gave different rows",
        "no episode ended in 50 decisions; give the env a limit with --env.time-limit N",
        "every reward was 0",
        "observation 'big' reaches",
        "image 'photo' is 200 x 150",
        "observation 'film' may be an image of floats",
        "convolutions over 3 channels",
        "tdmpc2 takes no discrete actions",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hangs_in_step", "hung: step took longer than 0.5 s; mend the env"),
        ("segfaults", "died: killed by SIGSEGV"),
        ("gives_nan", "not finite"),
    ],
)
def test_broken_env_is_reported_and_not_suffered(name: str, reason: str) -> None:
    limits = EnvLimits(step_timeout_s=0.5, max_failures=1)
    report = check_env(EnvConfig(env=f"faulty_envs:{name}"), steps=50, limits=limits)
    assert not report.is_good
    assert "NOT good to train on" in text_of(report)
    assert reason in text_of(report)


def test_vector_env_is_checked_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "worldloom_dist" / "actors"))
    report = check_env(EnvConfig(env="counting_vectors:next_step"), steps=50)
    assert report.is_good
    assert report.facts["episodes"] > 5


def test_env_that_does_not_exist_or_cannot_be_built_is_wrong_input() -> None:
    with pytest.raises(ConfigurationError, match="did you mean counting"):
        check_env(EnvConfig(env="toy:countin"))
    with pytest.raises(ConfigurationError, match=r"no licence for this simulator .*faulty_envs.py:\d+"):
        check_env(EnvConfig(env="faulty_envs:cannot_be_built"))
    with pytest.raises(ConfigurationError, match="steps must be >= 1"):
        check_env(EnvConfig(env="toy:counting"), steps=0)
