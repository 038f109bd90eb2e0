import dataclasses
import json
import pickle
from pathlib import Path

import pytest

from worldloom import (
    AutoConfig,
    DreamerV3Config,
    TDMPC2Config,
    WorldModelConfig,
    WorldModelRegistry,
)
from worldloom.algorithms.model_registry import TYPE_ALIASES, UnknownModelError
from worldloom.core.exceptions import CheckpointError, ConfigurationError


@pytest.mark.parametrize("name", ["dreamerv3:ci", "tdmpc2:5m", "mlp:small"])
def test_a_config_survives_its_file(name: str, tmp_path: Path) -> None:
    config = WorldModelRegistry.config(name, obs_shape=(5,), action_dim=2)
    config.save(tmp_path / "config.json")
    again = WorldModelConfig.load(tmp_path)
    assert again == config
    assert type(again) is type(config)


@pytest.mark.parametrize(
    "field",
    [
        *(
            {"obs_shape": ()},
            {"obs_shape": (0,)},
            {"action_dim": 0},
            {"hidden_dim": -1},
            {"learning_rate": 0},
        ),
        *({"grad_clip": -1}, {"action_type": "none"}, {"dtype": "float8"}),
    ],
)
def test_wrong_fields_are_named(field: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(field))):
        WorldModelConfig(**field)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "field",
    [
        *(
            {"stoch_discrete": 0},
            {"deter_dim": 0},
            {"encoder_type": "rnn"},
            {"encoder_type": "cnn"},
            {"kl_free": -1},
        ),
        *(
            {"kl_balance": 2},
            {"cnn_kernels": (3, 3)},
            {"loss_scales": {"kl": 1.0}},
            {"use_symlog": False},
            {"mlp_layers": 0},
        ),
    ],
)
def test_wrong_dreamer_fields_are_named(field: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(field))):
        DreamerV3Config(obs_shape=(4,), **field)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "field",
    [
        {"latent_dim": 30},
        {"num_elites": 600},
        {"temperature": 0},
        {"momentum": 2},
        {"gamma": 0},
        {"horizon": 0},
        {"num_q_networks": 1},
    ],
)
def test_wrong_tdmpc2_fields_are_named(field: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(field))):
        TDMPC2Config(**field)  # type: ignore[arg-type]


def test_documented_synonyms_are_understood_and_near_misses_offered() -> None:
    dreamer = DreamerV3Config(num_categories=8, mlp_layers=3, stoch_dim=4, obs_shape=(4,))  # type: ignore[call-arg]
    assert (dreamer.stoch_discrete, dreamer.stoch_classes, dreamer.stoch_dim) == (4, 8, 32)
    assert TDMPC2Config(num_q=3, mlp_layers=4).num_hidden_layers == 4  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="did you mean latent_dim"):
        TDMPC2Config(latent_dmi=3)  # type: ignore[call-arg]


def test_sizes_are_the_official_ones() -> None:
    small = DreamerV3Config.from_size("size12m")
    assert (small.deter_dim, small.hidden_dim, small.stoch_classes, small.cnn_depth) == (
        2048,
        256,
        16,
        16,
    )
    assert small.loss_scales["kl"] * small.kl_balance == pytest.approx(1.0)
    assert small.loss_scales["kl"] * (1 - small.kl_balance) == pytest.approx(0.1)
    assert TDMPC2Config.from_size("5m").latent_dim == 512


def test_names_resolve_and_unknown_ones_offer_the_nearest() -> None:
    assert set(TYPE_ALIASES) == {"dreamerv3", "dreamer", "tdmpc2", "tdmpc"}
    assert AutoConfig.from_pretrained("nothing:tiny").model_name == "tiny"
    with pytest.raises(ValueError, match="Invalid config identifier"):
        AutoConfig.from_pretrained("nothing")
    with pytest.raises(
        UnknownModelError, match="Unknown size 'size13m'; did you mean size1"
    ) as caught:
        WorldModelRegistry.config("Dreamer:size13m")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(UnknownModelError, match="Unknown model type"):
        WorldModelRegistry.config("planet:small")


def test_a_registered_model_and_preset_can_be_built() -> None:
    @WorldModelRegistry.register("Own", WorldModelConfig)
    class Own:
        def __init__(self, config: WorldModelConfig) -> None:
            self.config = config

    try:
        WorldModelRegistry.register_preset("own:wide", {"latent_dim": 9})
        assert WorldModelRegistry.from_pretrained("OWN:wide", action_dim=2).config.latent_dim == 9
        assert WorldModelRegistry.list_models()["own"] == ["wide"]
    finally:
        WorldModelRegistry.unregister("own")
    with pytest.raises(ConfigurationError, match="built in"):
        WorldModelRegistry.unregister("mlp")


def test_a_damaged_config_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a readable"):
        WorldModelConfig.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(CheckpointError, match="JSON object"):
        WorldModelConfig.load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({"stoch_dim": 1024, "num_categories": 32}, 32),  # the size of the whole stochastic part
        ({"stoch_dim": 32, "stoch_classes": 32}, 32),  # the number of categoricals
        ({"stoch_dim": 4, "num_categories": 8}, 4),
        ({"stoch_dim": 1024, "stoch_discrete": 16}, 16),
        ({"stoch_discrete": 7}, 7),
        ({"stoch_discrete": 1}, 1),
    ],
)
def test_stoch_dim_is_read_as_documents_write_it(fields: dict[str, int], number: int) -> None:
    config = DreamerV3Config(**fields)  # type: ignore[arg-type]
    assert (config.stoch_discrete, config.stoch_dim) == (number, number * config.stoch_classes)
    assert config.replaced(hidden_dim=99).stoch_discrete == number
    assert WorldModelRegistry.config("dreamerv3:ci", **fields).stoch_discrete == number  # type: ignore[attr-defined]


def test_the_text_of_a_saved_config_is_a_config(tmp_path: Path) -> None:
    config = WorldModelRegistry.config("dreamerv3:ci", obs_shape=(4,))
    (tmp_path / "config.json").write_text(
        json.dumps(config.to_dict() | {"format": "worldloom-0.2", "files": {}})
    )
    assert DreamerV3Config(**json.loads((tmp_path / "config.json").read_text())) == config


def test_a_registered_kind_is_loaded_as_itself(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class OwnConfig(WorldModelConfig):
        model_type: str = "mine"
        extra: int = 3

    OwnConfig(extra=5).save(tmp_path)
    assert OwnConfig.load(tmp_path) == OwnConfig(extra=5)
    WorldModelRegistry.register("mine", OwnConfig)(object)
    try:
        assert WorldModelConfig.load(tmp_path) == OwnConfig(extra=5)
    finally:
        WorldModelRegistry.unregister("mine")
