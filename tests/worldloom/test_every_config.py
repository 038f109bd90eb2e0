"""What any settings class of the library accepts can be saved and comes back equal; the rest is
refused when it is made.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom.algorithms.configs import DreamerV3Config, MLPConfig, TDMPC2Config, WorldModelConfig
from worldloom.algorithms.dreamerv3.spec import DreamerV3AgentConfig
from worldloom.algorithms.registry import make_agent_config
from worldloom.algorithms.tdmpc2.spec import TDMPC2AgentConfig
from worldloom.core.exceptions import ConfigurationError
from worldloom.training.config import TrainingConfig

CLASSES = (
    *(WorldModelConfig, DreamerV3Config, TDMPC2Config, MLPConfig, TrainingConfig),
    *(DreamerV3AgentConfig, TDMPC2AgentConfig),
)
FIELDS = [(kind, field.name) for kind in CLASSES for field in dataclasses.fields(kind)]
PLAIN = (int, float, bool, str, type(None))


class Word(str):
    """A text that is not exactly a str."""

    __slots__ = ()


class Level(enum.IntEnum):
    """An integer that is not exactly an int."""

    TWO = 2


numbers = st.one_of(
    st.integers(-3, 2000),
    st.floats(),
    st.sampled_from([2**70, 10**400, 0.5, 1e-4, True, False, Level.TWO]),
)
texts = st.sampled_from(["auto", "cpu", "float32", "cosine", "mlp", "on", "", "naïve"])
disguises = st.one_of(
    numbers,
    st.integers(-3, 2000).map(np.int64),
    st.integers(0, 200).map(np.uint8),
    st.floats(width=32).map(np.float32),
    st.booleans().map(np.bool_),
    st.integers(-3, 2000).map(np.array),
    st.integers(1, 2000).map(torch.tensor),
    texts,
    texts.map(Word),
    texts.map(np.str_),
    st.sampled_from(
        [
            Path("a/b"),
            Path("~/c"),
            torch.device("cpu"),
            torch.float16,
            None,
            b"x",
            {1},
            object(),
            1j,
        ]
    ),
    st.lists(st.one_of(numbers, numbers.map(np.array)), max_size=4).map(tuple),
    st.lists(st.integers(1, 9), max_size=4).map(np.array),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.dictionaries(
        st.sampled_from(["kl", "reward", Word("x")]),
        st.one_of(numbers, texts.map(Word)),
        max_size=2,
    ),
    st.fixed_dictionaries(dict.fromkeys(("reconstruction", "kl", "reward", "continue"), numbers)),
)


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(type(k) is str and is_plain(v) for k, v in value.items())
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return type(value) in PLAIN


def made_or_refused(kind: Any, name: str, value: Any) -> Any:
    try:
        return kind(**{name: value})
    except ConfigurationError as error:
        return str(error)


@pytest.mark.parametrize(
    ("kind", "name"),
    FIELDS,
    ids=lambda v: getattr(v, "__module__", "") + getattr(v, "__name__", str(v)),
)
@settings(max_examples=15, derandomize=True, deadline=None, database=None)
@given(value=disguises)
def test_what_is_accepted_is_plain_and_comes_back_equal(kind: Any, name: str, value: Any) -> None:
    config = made_or_refused(kind, name, value)
    if isinstance(config, str):
        assert ("must" in config and name in config) or "latent_dim must be a multiple" in config
        return
    data = config.to_dict() if hasattr(config, "to_dict") else dataclasses.asdict(config)
    assert all(is_plain(getattr(config, f.name)) for f in dataclasses.fields(config))
    text = json.dumps(data, allow_nan=False)
    assert kind(**json.loads(text)) == config


def test_what_an_environment_hands_over_is_taken() -> None:
    config = MLPConfig(
        action_dim=np.int64(4),
        obs_shape=np.array([3, 8]),
        learning_rate=np.float32(0.5),
        device=torch.device("cpu"),
    )
    assert (config.action_dim, config.obs_shape, config.learning_rate, config.device) == (
        4,
        (3, 8),
        0.5,
        "cpu",
    )
    assert MLPConfig(obs_shape=np.int32(5)).obs_shape == (5,)
    training = TrainingConfig(
        output_dir=Path("out"),
        total_steps=np.int32(7),
        model_overrides={"kl_free": np.float64(1.5)},
    )
    assert (training.output_dir, training.total_steps, training.model_overrides) == (
        "out",
        7,
        {"kl_free": 1.5},
    )
    assert make_agent_config("tdmpc2:ci", {"batch_size": np.int64(9)}).batch_size == 9  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "wrong", "sentence"),
    [
        (
            MLPConfig,
            {"action_dim": (2,)},
            "action_dim must be an integer >= 1, got (2,); pass the number itself, 2",
        ),
        (
            MLPConfig,
            {"action_dim": "2"},
            "action_dim must be an integer >= 1, got '2'; write 2 without quotes",
        ),
        (MLPConfig, {"action_dim": True}, "action_dim must be an integer >= 1, got True"),
        (MLPConfig, {"action_dim": -1}, "action_dim must be an integer >= 1, got -1"),
        (
            MLPConfig,
            {"device": None},
            "device must be a text, got None; leave it out for the default",
        ),
        (
            MLPConfig,
            {"model_type": "dreamer"},
            "model_type of a MLPConfig must be one of mlp, got 'dreamer'",
        ),
        (
            MLPConfig,
            {"obs_shape": (0,)},
            "obs_shape must be a tuple whose entries are each an integer >= 1, got (0,)",
        ),
        (
            DreamerV3Config,
            {"kl_free": float("nan")},
            "kl_free must be a finite number >= 0, got nan",
        ),
        (TDMPC2Config, {"gamma": 0}, "gamma must be a number in (0, 1], got 0"),
        (TrainingConfig, {"warmup_steps": 0.1}, "warmup_steps must be an integer >= 0, got 0.1"),
        (
            TrainingConfig,
            {"total_steps": 1e6},
            "total_steps must be an integer >= 1, got 1000000.0; write 1000000",
        ),
        (
            TrainingConfig,
            {"learning_rate": float("inf")},
            "learning_rate must be a finite number > 0, got inf",
        ),
        (
            TrainingConfig,
            {"eval_episodes_every": 1},
            "eval_episodes_every must be 0 (hold out none) or >= 2, got 1",
        ),
        (TrainingConfig, {"seed": -1}, "seed must be an integer >= 0, got -1"),
        (
            TDMPC2AgentConfig,
            {"tau": float("nan")},
            "agent.tau must be a finite number in (0, 1], got nan",
        ),
        (TDMPC2AgentConfig, {"min_std": 3.0}, "agent.min_std must be <= max_std (2.0), got 3.0"),
        (
            DreamerV3AgentConfig,
            {"return_low": 0.99},
            "agent.return_low must be <= return_high (0.95), got 0.99",
        ),
    ],
)
def test_what_is_refused_is_named_with_what_is_allowed(
    kind: Any, wrong: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kind(**wrong)
    assert sentence in str(caught.value)
