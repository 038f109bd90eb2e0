from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from worldloom.algorithms.registry import ALGORITHMS
from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.check import EnvReport, check_env
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.toy import CountingEnv


class ImpoliteEnv(gymnasium.Env):
    """Seeds nothing, never ends, never rewards, shows large numbers and a float image."""

    observation_space = gymnasium.spaces.Dict(
        {
            "big": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "video": gymnasium.spaces.Box(0, 1, (32, 32, 3), np.float32),
            "photo": gymnasium.spaces.Box(0, 255, (200, 150, 3), np.uint8),
        }
    )
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        return {
            "big": np.random.default_rng().normal(0, 1e5, 2),
            "video": np.zeros((32, 32, 3), np.float32),
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
        f"agents that can act here: {', '.join(ALGORITHMS)}\n",
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
        "observation 'video' may be an image of floats",
        "convolutions over 3 channels",
        "dreamerv3, mlp, r2dreamer (tdmpc2 takes no discrete actions)",
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
    limits = EnvLimits(step_timeout_s=0.5 if name.startswith("hangs") else 60.0, max_failures=1)
    report = check_env(EnvConfig(env=f"faulty_envs:{name}"), steps=50, limits=limits)
    assert not report.is_good
    assert "NOT good to train on" in text_of(report)
    assert reason in text_of(report)


class DriftingEnv(CountingEnv):
    """Leaves its bounds in the course of an episode."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        return super().reset(**kwargs)[0] * 0, {}


class OutsideAtResetEnv(CountingEnv):
    observation_space = gymnasium.spaces.Box(5, 9, (3,), np.float32)


class FloatClassesEnv(CountingEnv):
    observation_space = gymnasium.spaces.MultiDiscrete([99, 99, 99])

    def _observe(self, action: float) -> np.ndarray:
        return super()._observe(0.0)


class StuckEnv(CountingEnv):
    action_space = gymnasium.spaces.Box(np.float32([5.0, -1.0]), np.float32([np.inf, 1.0]))


class HalfOpenEnv(CountingEnv):
    action_space = gymnasium.spaces.Box(0.0, np.inf, (2,))


class VastEnv(CountingEnv):
    action_space = gymnasium.spaces.Box(-1e30, 1e30, (2,))


class FarBoundsEnv(CountingEnv):
    action_space = gymnasium.spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,))


class IdleEnv(CountingEnv):
    action_space = gymnasium.spaces.Dict(
        {"go": CountingEnv.action_space, "idle": gymnasium.spaces.Box(3, 3, (2,))}
    )

    def step(self, action: Any) -> Any:
        return super().step(action["go"])


class KeysEnv(CountingEnv):
    observation_space = gymnasium.spaces.Dict({"seen": CountingEnv.observation_space})  # type: ignore[assignment]

    def _observe(self, action: float) -> Any:
        return {"seen": super()._observe(action), "hidden": 1.0}


class RichEnv(CountingEnv):
    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, reward * 1e30, *rest


class WholeNumbersEnv(CountingEnv):
    observation_space = gymnasium.spaces.Box(0, 99, (3,), np.int64)


class VoxelEnv(CountingEnv):
    observation_space = gymnasium.spaces.Box(0, 255, (9, 9, 9, 9), np.uint8)

    def _observe(self, action: float) -> np.ndarray:
        return np.full((9, 9, 9, 9), self._step, np.uint8)


class AtariEnv(CountingEnv):
    _frameskip = 4


class SmallImageEnv(CountingEnv):
    observation_space = gymnasium.spaces.Box(0, 255, (7, 7, 3), np.uint8)

    def _observe(self, action: float) -> np.ndarray:
        return np.full((7, 7, 3), self._step, np.uint8)


class FloatImageEnv(SmallImageEnv):
    observation_space = gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)

    def _observe(self, action: float) -> np.ndarray:
        return np.full((32, 32, 3), 0.5, np.float32)


class TorchEnv(gymnasium.Env):
    """Answers in tensors, as simulators on an accelerator do."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def look(self) -> Any:
        return torch.from_numpy(self.np_random.uniform(-1, 1, 3).astype(np.float32))

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict]:
        self.t += 1
        return self.look(), torch.tensor(1.0), torch.tensor(self.t == 5), torch.tensor(False), {}


class OtherActionsEnv(TorchEnv):
    """Offers more choices from its first episode on."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.action_space = gymnasium.spaces.Discrete(5)
        return super().reset(seed=seed)


@pytest.mark.parametrize(
    ("name", "is_good", "text"),
    [
        (
            "DriftingEnv",
            True,
            "observation 'obs' was 2 where its bounds are [-1, 1]; agents do not need bounds",
        ),
        ("OutsideAtResetEnv", True, "observation 'obs' was 0 where its bounds are [5, 9]"),
        ("FloatClassesEnv", False, "observation 'obs' is float32 and its space says int64"),
        (
            "VastEnv",
            True,
            "so the least that an agent can change (about 1e-7 of [-1, 1]) is 1e+23 "
            "there; scale the action",
        ),
        (
            "FarBoundsEnv",
            True,
            "has the bounds [-3.40282e+38, 3.40282e+38], and an agent acts in [-1, "
            "1], which is scaled",
        ),
        ("RichEnv", True, "rewards reach 8e+30; scale them inside the env"),
        (
            "IdleEnv",
            True,
            "action 'idle' has equal low and high bounds, so it changes nothing; leave it out",
        ),
        (
            "KeysEnv",
            True,
            "observations have the keys ['hidden'], which their space lacks, so "
            "agents do not see them",
        ),
        ("WholeNumbersEnv", True, "observation 'obs' is float32 and its space says int64"),
        (
            "VoxelEnv",
            True,
            "observation 'obs' is uint8 of shape 9 x 9 x 9 x 9, in which no image is recognised",
        ),
        ("HalfOpenEnv", True, "so only [0, 1] is used; give the Box two finite bounds"),
        (
            "SmallImageEnv",
            False,
            "image 'obs' is 7 x 7, and agents take 32 x 32 or more; --env.image-size "
            "64 enlarges it",
        ),
        ("FloatImageEnv", False, "image 'obs' is float32 and its space says uint8"),
        ("TorchEnv", True, "nothing to change"),
        (
            "OtherActionsEnv",
            False,
            "action_space was Discrete(2) when the env was made, and is Discrete(5) after a reset",
        ),
    ],
)
def test_spaces_that_do_not_fit_are_reported(name: str, is_good: bool, text: str) -> None:
    report = check_env(EnvConfig(env=f"test_check:{name}"), steps=30)
    assert report.is_good == is_good
    assert text in text_of(report)


def test_repeats_of_repeats_are_advised_against() -> None:
    report = check_env(EnvConfig(env="test_check:AtariEnv", action_repeat=4), steps=30)
    assert report.is_good
    assert "so a decision takes 16 frames; leave env.action_repeat out" in text_of(report)


def test_action_without_a_choice_is_wrong_input() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"has the bounds \[5, inf\].* so every action becomes 5; give the Box two finite",
    ):
        check_env(EnvConfig(env="test_check:StuckEnv"), steps=30)


class BrokenVector(gymnasium.vector.VectorWrapper):
    """Misbehaves in the third step."""

    def __init__(self, failure: str) -> None:
        super().__init__(gymnasium.vector.SyncVectorEnv([CountingEnv]))
        self._failure = failure
        self._steps = 0

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        obs, reward, *rest = self.env.step(actions)
        self._steps += 1
        if self._steps == 3 and self._failure == "raises":
            raise ValueError("the simulator exploded")
        return obs, reward[:, None] if self._failure == "column" else reward, *rest  # type: ignore[return-value]


def raising_vector() -> BrokenVector:
    return BrokenVector("raises")


def column_vector() -> BrokenVector:
    return BrokenVector("column")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("raising_vector", "ValueError: the simulator exploded"),
        (
            "column_vector",
            "reward of vector env 'test_check:column_vector': expected (1,), got (1, 1)",
        ),
    ],
)
@pytest.mark.parametrize("steps", [5, 50])  # so that it fails in the first look, or in the second
def test_broken_vector_env_is_reported(name: str, text: str, steps: int) -> None:
    report = check_env(EnvConfig(env=f"test_check:{name}"), steps=steps)
    assert not report.is_good
    assert text in text_of(report)


def test_vector_env_is_checked_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "worldloom_dist" / "actors"))
    report = check_env(EnvConfig(env="counting_vectors:next_step"), steps=50)
    assert report.is_good
    assert report.facts["episodes"] > 5


def test_env_that_does_not_exist_or_cannot_be_built_is_wrong_input() -> None:
    with pytest.raises(ConfigurationError, match="did you mean counting"):
        check_env(EnvConfig(env="toy:countin"))
    with pytest.raises(
        ConfigurationError, match=r"no licence for this simulator .*faulty_envs.py:\d+"
    ):
        check_env(EnvConfig(env="faulty_envs:cannot_be_built"))
    with pytest.raises(ConfigurationError, match="steps must be >= 1"):
        check_env(EnvConfig(env="toy:counting"), steps=0)
    with pytest.raises(ConfigurationError, match="seed must be >= 0, got -1"):
        check_env(EnvConfig(env="toy:counting"), seed=-1)
