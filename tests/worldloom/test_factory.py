from pathlib import Path

import pytest
import torch

from worldloom import (
    MODEL_ALIASES,
    MODEL_CATALOG,
    create_world_model,
    get_config,
    get_model_info,
    list_models,
)
from worldloom.algorithms.model_registry import WorldModelRegistry
from worldloom.core.exceptions import ConfigurationError, ModelNotFoundError
from worldloom.factory import cache_dir


@pytest.mark.parametrize(
    "name", [n for n in MODEL_CATALOG if n not in ("tdmpc2:317m", "dreamerv3:size200m")]
)
def test_the_catalog_counts_parameters(name: str) -> None:
    with torch.device("meta"):
        config = get_config(name, device="meta")
        model = WorldModelRegistry.model_class(config.model_type)(config)
    assert model.num_parameters == MODEL_CATALOG[name]["params"]


def test_names_and_facts_are_listed() -> None:
    assert list_models() == list(MODEL_CATALOG)
    details = list_models(verbose=True)
    assert isinstance(details, dict)
    assert set(details["tdmpc2:5m"]) == {"description", "params", "type", "default_obs"}
    info = get_model_info("dreamer-large")
    assert (info["model_id"], info["alias"]) == ("dreamerv3:size200m", "dreamer-large")
    assert len(MODEL_ALIASES) == 10


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(
            ("drimer", "Invalid model identifier"),
            ("./nowhere", "Invalid model identifier"),
            ("planet:5m", "Unknown model type"),
        ),
        *(("tdmpc2:6m", "Unknown size '6m'; did you mean"), ("dreamerv3:", "Unknown size")),
        ("r2dreamer:ci", r"is an agent, and no model .* worldloom train --agent r2dreamer:ci or"),
    ],
)
def test_unknown_names_are_value_errors_that_offer_what_exists(name: str, words: str) -> None:
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        create_world_model(name)
    assert isinstance(caught.value, ValueError)


def test_other_errors_have_their_words() -> None:
    with pytest.raises(ValueError, match="Invalid model format"):
        get_config("nothing")
    with pytest.raises(ValueError, match="Unknown model"):
        get_model_info("nothing")
    with pytest.raises(ConfigurationError, match="did you mean latent_dim"):
        create_world_model("tdmpc2:ci", latent_dm=3)
    with pytest.raises(ConfigurationError, match="device"):
        create_world_model("mlp:ci", device="abacus")


def test_defaults_are_those_of_the_quick_start() -> None:
    assert get_config("dreamerv3").action_dim == 4
    assert get_config("dreamer").obs_shape == (3, 64, 64)
    assert create_world_model("mlp").config.obs_shape == (7,)


def test_a_model_kept_in_the_cache_is_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDLOOM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError):
        create_world_model("team/walker")
    create_world_model("mlp:ci", latent_dim=8).save_pretrained(cache_dir() / "team" / "walker")
    assert create_world_model("team/walker").config.latent_dim == 8
    assert get_config("team/walker").latent_dim == 8
    # a path that exists comes first
    create_world_model("mlp:ci", latent_dim=9).save_pretrained("team/walker")
    assert create_world_model("team/walker").config.latent_dim == 9
    monkeypatch.delenv("WORLDLOOM_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "worldloom"


def test_the_config_is_the_one_that_the_model_has(tmp_path: Path) -> None:
    fields = {"obs_shape": (3,), "action_dim": 2}
    for name in ("mlp:ci", "tdmpc2:ci", "dreamerv3:ci"):
        model = create_world_model(name, **fields)
        assert get_config(name, **fields) == model.config
        model.save_pretrained(tmp_path)
        assert (
            get_config(tmp_path, device="auto")
            == create_world_model(tmp_path, device="auto").config
        )
        assert get_config(tmp_path, action_dim=2).device == "cpu"
        said = []
        for make in (get_config, create_world_model):
            with pytest.raises(ConfigurationError, match="saved with 2, got 9") as error:
                make(tmp_path, action_dim=9)
            said.append(str(error.value))
            with pytest.raises(ConfigurationError, match="device must be"):
                make(tmp_path, device=None)  # type: ignore[arg-type]
        assert said[0] == said[1]
