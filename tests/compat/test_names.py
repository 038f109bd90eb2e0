"""Code written against the public WorldLoom 0.1 finds every name where it was, with its arguments
and its errors.

Models and replay have tests of their own; here each row of the compatibility table is called once.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import worldloom
from worldloom.core import exceptions

NAMES = {
    "worldloom": "create_world_model list_models get_model_info get_config MODEL_ALIASES MODEL_CATALOG LatentState Trajectory "
    "LatentType DynamicsType WorldModelConfig DreamerV3Config TDMPC2Config WorldModel WorldModelRegistry AutoWorldModel AutoConfig "
    "LatentSpace GaussianLatentSpace CategoricalLatentSpace SimNormLatentSpace DreamerV3WorldModel TDMPC2WorldModel training "
    "__version__",
    "worldloom.factory": "create_world_model list_models get_model_info get_config MODEL_ALIASES MODEL_CATALOG",
    "worldloom.core": "LatentState Trajectory LatentType DynamicsType WorldModelConfig DreamerV3Config TDMPC2Config WorldModel "
    "WorldLoomError ConfigurationError ShapeMismatchError StateError ModelNotFoundError CheckpointError TrainingError BufferError",
    "worldloom.core.protocol": "WorldModel",
    "worldloom.core.exceptions": "WorldLoomError ConfigurationError",
    "worldloom.core.config": "WorldModelConfig DreamerV3Config TDMPC2Config",
    "worldloom.core.latent_space": "LatentSpace GaussianLatentSpace CategoricalLatentSpace SimNormLatentSpace",
    "worldloom.core.state": "LatentState LatentType DynamicsType",
    "worldloom.core.trajectory": "Trajectory",
    "worldloom.core.registry": "TYPE_ALIASES WorldModelRegistry AutoConfig AutoWorldModel",
    "worldloom.models": "DreamerV3WorldModel TDMPC2WorldModel",
    "worldloom.models.dreamer": "DreamerV3WorldModel DreamerV3Config RSSM CNNEncoder MLPEncoder CNNDecoder MLPDecoder RewardHead "
    "ContinueHead symlog symexp",
    "worldloom.models.tdmpc2": "TDMPC2WorldModel TDMPC2Config MLPEncoder Dynamics RewardHead QNetwork QEnsemble PolicyHead",
    "worldloom.training": "train Trainer TrainingConfig ReplayBuffer TrajectoryDataset Callback LoggingCallback CheckpointCallback",
    "worldloom.training.data": "ReplayBuffer TrajectoryDataset create_random_buffer",
    "worldloom.training.callbacks": "Callback CallbackList LoggingCallback CheckpointCallback EarlyStoppingCallback "
    "ProgressCallback",
}


@pytest.mark.parametrize("module", NAMES)
def test_every_name_is_where_it_was(module: str) -> None:
    found = importlib.import_module(module)
    for name in NAMES[module].split():
        assert getattr(found, name) is not None, name
    with pytest.raises(AttributeError):
        found.no_such_name  # noqa: B018


def test_every_listed_export_of_the_top_level_exists() -> None:
    assert worldloom.__all__ == sorted(
        worldloom.__all__, key=lambda n: (not n.isupper(), n[0].islower(), n)
    )
    for name in worldloom.__all__:
        assert getattr(worldloom, name) is not None
    assert set(worldloom.__all__) <= set(dir(worldloom))


def test_errors_are_one_tree_and_fit_the_builtins_of_both_dialects() -> None:
    for name in ("ConfigurationError", "ShapeMismatchError", "BufferError", "ModelNotFoundError"):
        assert issubclass(getattr(exceptions, name), exceptions.WorldLoomError | ValueError)
        assert issubclass(getattr(exceptions, name), ValueError)
    assert str(exceptions.ConfigurationError("wrong", config_name="mine")) == "[mine] wrong"
    error = exceptions.ShapeMismatchError("obs", expected=(3,), got=(4,))
    assert (error.expected, error.got) == ((3,), (4,))
    assert exceptions.ModelNotFoundError("x", ["y"]).available == ("y",)


def test_aliases_mean_what_they_meant() -> None:
    sizes = {
        "small": ("size12m", "5m"),
        "medium": ("size50m", "48m"),
        "large": ("size200m", "317m"),
    }
    for word, (dreamer, tdmpc) in sizes.items():
        assert worldloom.MODEL_ALIASES[f"dreamer-{word}"] == f"dreamerv3:{dreamer}"
        assert worldloom.MODEL_ALIASES[f"tdmpc-{word}"] == f"tdmpc2:{tdmpc}"
    assert {worldloom.MODEL_ALIASES[n] for n in ("dreamer", "dreamerv3")} == {"dreamerv3:size12m"}
    assert {worldloom.MODEL_ALIASES[n] for n in ("tdmpc", "tdmpc2")} == {"tdmpc2:5m"}


def test_config_defaults_and_fields_are_those_of_the_table() -> None:
    base = worldloom.WorldModelConfig()
    assert (base.model_type, base.model_name, base.obs_shape, base.action_dim) == (
        "base",
        "unnamed",
        (3, 64, 64),
        6,
    )
    assert (base.latent_dim, base.deter_dim, base.stoch_dim, base.hidden_dim) == (256, 256, 32, 512)
    assert (base.learning_rate, base.grad_clip, base.device, base.dtype) == (
        3e-4,
        100.0,
        "cuda",
        "float32",
    )
    dreamer = worldloom.DreamerV3Config()
    assert (
        dreamer.stoch_discrete,
        dreamer.stoch_classes,
        dreamer.cnn_depth,
        dreamer.cnn_kernels,
    ) == (32, 32, 48, (4, 4, 4, 4))
    assert (dreamer.kl_free, dreamer.kl_balance, dreamer.use_symlog, dreamer.encoder_type) == (
        1.0,
        0.8,
        True,
        "cnn",
    )
    assert dreamer.loss_scales == {"reconstruction": 1.0, "kl": 0.1, "reward": 1.0, "continue": 1.0}
    assert dreamer.stoch_dim == 32 * 32
    tdmpc = worldloom.TDMPC2Config()
    assert (
        tdmpc.simnorm_dim,
        tdmpc.num_hidden_layers,
        tdmpc.task_dim,
        tdmpc.num_tasks,
        tdmpc.num_q_networks,
    ) == (8, 2, 96, 1, 5)
    assert (
        tdmpc.num_samples,
        tdmpc.num_elites,
        tdmpc.temperature,
        tdmpc.momentum,
        tdmpc.gamma,
    ) == (512, 64, 0.5, 0.1, 0.99)
    assert tdmpc.horizon == 3  # as in the authors' code


def test_states_keep_their_fields_and_methods() -> None:
    names = "deterministic stochastic logits mean std prior_logits posterior_logits codebook_indices commitment_loss"
    names += " latent_type metadata"
    state = worldloom.LatentState(deterministic=torch.zeros(2, 3))
    assert all(hasattr(state, name) for name in names.split())
    assert state.latent_type == "deterministic"
    assert state.metadata == {}
    assert state.to("cpu").detach().clone().features.shape == (2, 3)


def test_documented_spellings_that_failed_work_now() -> None:
    vector = {"obs_shape": (4,), "action_dim": 2}
    model = worldloom.create_world_model("dreamerv3:ci", **vector)
    model.enable_gradient_checkpointing()
    assert (
        worldloom.create_world_model("tdmpc2:ci", num_layers=3, **vector).config.num_hidden_layers
        == 3
    )
    assert "kl_loss" in model.compute_loss(_batch())
    from worldloom.training import ReplayBuffer
    from worldloom.training.callbacks import (
        CheckpointCallback,
        EarlyStoppingCallback,
        LoggingCallback,
    )

    CheckpointCallback(save_dir="x", save_every=5, keep_last=2, monitor="loss")
    LoggingCallback(log_dir="x", log_to_console=False, log_to_tensorboard=False)
    EarlyStoppingCallback(patience=3, monitor="loss", mode="min")
    buffer = ReplayBuffer(capacity=100, obs_shape=(4,), action_dim=2)
    buffer.add_episode(
        obs=np.zeros((5, 4)),
        actions=[[0], [1], [1], [0], [1]],
        rewards=np.ones(5),
        dones=[0, 0, 0, 0, 1],
    )
    assert buffer.num_transitions == 5
    with pytest.raises(ValueError, match="no episode is long enough"):
        buffer.sample(2, 10)


def test_a_default_model_refuses_actions_of_another_width_with_both_numbers() -> None:
    model = worldloom.create_world_model("dreamerv3:ci", action_dim=6)
    with pytest.raises(exceptions.ShapeMismatchError, match=r"action_dim=6.*got \[3, 1, 4\]"):
        model.imagine(model.encode(torch.zeros(1, 3, 64, 64)), torch.zeros(3, 1, 4))


def test_models_take_a_config_alone_and_live_where_it_says() -> None:
    small = {
        "hidden_dim": 16,
        "deter_dim": 16,
        "stoch_discrete": 2,
        "stoch_classes": 4,
        "cnn_depth": 4,
        "obs_shape": (4,),
    }
    model = worldloom.DreamerV3WorldModel(worldloom.DreamerV3Config(**small))
    assert model.device.type in ("cpu", "cuda")
    assert model.predict_reward(model.initial_state(3)).shape == (3,)
    tdmpc = worldloom.TDMPC2WorldModel(
        worldloom.TDMPC2Config(obs_shape=(4,), action_dim=2, latent_dim=16, hidden_dim=16)
    )
    state = tdmpc.encode(torch.zeros(3, 4))
    assert tdmpc.predict_q(state, torch.zeros(3, 2)).shape == (5, 3)
    assert tdmpc.predict_reward(state, torch.zeros(3, 2)).shape == (3,)
    assert set(tdmpc.decode(state)) == {"reward", "q_values", "action"}
    assert {"loss", "consistency", "reward", "td"} <= set(
        tdmpc.compute_loss({k: v for k, v in _batch().items() if k != "continues"})
    )


def test_auto_classes_build_and_load(tmp_path: Path) -> None:
    model = worldloom.AutoWorldModel.from_pretrained("mlp:ci", device="cpu")
    model.save_pretrained(tmp_path)
    assert type(worldloom.AutoWorldModel.from_pretrained(tmp_path)) is type(model)
    assert worldloom.AutoConfig.from_pretrained(tmp_path) == model.config
    assert worldloom.get_config(tmp_path) == model.config
    assert worldloom.WorldModelRegistry._config_registry["dreamer"] is worldloom.DreamerV3Config


def test_config_files_of_0_1_load(tmp_path: Path) -> None:
    text = '{"model_type": "dreamerv3", "model_name": "size12m", "obs_shape": [3, 64, 64], "action_dim": 6, "encoder_type": "cnn",'
    text += ' "deter_dim": 2048, "stoch_discrete": 32, "stoch_classes": 32, "stoch_dim": 1024, "cnn_depth": 48, "device": "cuda"}'
    (tmp_path / "config.json").write_text(text)
    config = worldloom.WorldModelConfig.load(tmp_path / "config.json")
    assert isinstance(config, worldloom.DreamerV3Config)
    assert config.cnn_depth == 48


def test_symlog_and_symexp_are_finite_and_inverse() -> None:
    from worldloom.models.dreamer import symexp, symlog

    x = torch.tensor([-1000.0, -1.0, 0.0, 1.0, 1000.0])
    assert torch.allclose(symexp(symlog(x)), x, rtol=1e-4)


def _batch() -> dict[str, Any]:
    parts = {
        "obs": torch.rand(2, 5, 4),
        "actions": torch.rand(2, 5, 2),
        "rewards": torch.rand(2, 5),
    }
    return parts | {"continues": torch.ones(2, 5)}
