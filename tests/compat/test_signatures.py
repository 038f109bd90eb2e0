"""Every callable of the compatibility table takes the arguments that it took, in their order and
with their defaults.

A signature may have grown: what is new stands behind what was there and has a default.
"""

import importlib
import inspect
from typing import Any

import numpy as np
import pytest

NONE = "None"
SIGNATURES = {
    "worldloom:create_world_model": "model *obs_shape=None *action_dim=None *device='cpu'",
    "worldloom:list_models": "verbose=False",
    "worldloom:get_model_info": "model",
    "worldloom:get_config": "model *obs_shape=None *action_dim=None",
    "worldloom:LatentState": "deterministic=None stochastic=None logits=None mean=None std=None prior_logits=None "
    "posterior_logits=None codebook_indices=None commitment_loss=None latent_type='deterministic'",
    "worldloom:LatentState.to": "self device",
    "worldloom:LatentState.detach": "self",
    "worldloom:LatentState.clone": "self",
    "worldloom:Trajectory": "states actions rewards=None values=None continues=None",
    "worldloom:Trajectory.to_features_tensor": "self",
    "worldloom:Trajectory.to": "self device",
    "worldloom:Trajectory.detach": "self",
    "worldloom:WorldModelConfig.to_dict": "self",
    "worldloom:WorldModelConfig.from_dict": "data",
    "worldloom:WorldModelConfig.save": "self path",
    "worldloom:WorldModelConfig.load": "path",
    "worldloom:DreamerV3Config.from_size": "size",
    "worldloom:TDMPC2Config.from_size": "size",
    "worldloom:WorldModelRegistry.register": "model_type config_class",
    "worldloom:WorldModelRegistry.register_preset": "name settings",
    "worldloom:WorldModelRegistry.from_pretrained": "name_or_path",
    "worldloom:WorldModelRegistry.list_models": "",
    "worldloom:AutoWorldModel.from_pretrained": "name_or_path",
    "worldloom:AutoConfig.from_pretrained": "name_or_path",
    "worldloom:GaussianLatentSpace": "dim min_std=0.1 max_std=2.0",
    "worldloom:CategoricalLatentSpace": "num_categoricals=32 num_classes=32 temperature=1.0 straight_through=True",
    "worldloom:SimNormLatentSpace": "dim=512 simnorm_dim=8",
    "worldloom:LatentSpace.sample": "self params deterministic=False",
    "worldloom:LatentSpace.kl_divergence": "self posterior prior",
    "worldloom.core:ConfigurationError": "message config_name=None",
    "worldloom.core:ShapeMismatchError": "message expected=None got=None",
    "worldloom.core:ModelNotFoundError": "model_name available=()",
    "worldloom.training:Trainer": "model config=None callbacks=None optimizer=None scheduler=None",
    "worldloom.training:Trainer.train": "self data num_steps=None resume_from=None",
    "worldloom.training:Trainer.evaluate": "self data num_batches=10",
    "worldloom.training:Trainer.save_checkpoint": "self path",
    "worldloom.training:Trainer.load_checkpoint": "self path",
    "worldloom.training:Trainer.add_callback": "self callback",
    "worldloom.training:train": "model data total_steps=None batch_size=16 sequence_length=50 learning_rate=0.0003 grad_clip=100.0 "
    "output_dir='./outputs' device='auto'",
    "worldloom.training:TrainingConfig": "total_steps=100000 batch_size=16 sequence_length=50 learning_rate=0.0003 grad_clip=100.0 "
    "weight_decay=0.0 warmup_steps=0 log_interval=100 eval_interval=1000 save_interval=10000 output_dir='./outputs' "
    "device='auto' seed=42 mixed_precision=False num_workers=0 prefetch_factor=2 optimizer='adamw' scheduler='none' "
    "ema_decay=None",
    "worldloom.training:TrainingConfig.to_dict": "self",
    "worldloom.training:TrainingConfig.from_dict": "data",
    "worldloom.training:TrainingConfig.save": "self path",
    "worldloom.training:TrainingConfig.load": "path",
    "worldloom.training:TrainingConfig.resolve_device": "self",
    "worldloom.training:TrainingConfig.with_updates": "self",
    "worldloom.training:ReplayBuffer": f"capacity obs_shape action_dim obs_dtype={np.float32!r}",
    "worldloom.training:ReplayBuffer.add_episode": "self obs actions rewards dones=None",
    "worldloom.training:ReplayBuffer.sample": "self batch_size seq_len device='cpu'",
    "worldloom.training:ReplayBuffer.save": "self path",
    "worldloom.training:ReplayBuffer.load": "path",
    "worldloom.training:ReplayBuffer.from_trajectories": "trajectories capacity=None",
    "worldloom.training:TrajectoryDataset": "buffer seq_len samples_per_epoch=1000",
    "worldloom.training.data:create_random_buffer": "capacity=10000 obs_shape=(3, 64, 64) action_dim=6 num_episodes=100 "
    "episode_length=100 seed=None",
    "worldloom.training.callbacks:LoggingCallback": "log_interval=100 use_wandb=False wandb_project=None wandb_run_name=None",
    "worldloom.training.callbacks:CheckpointCallback": "save_interval=10000 output_dir=None save_best=True max_checkpoints=5",
    "worldloom.training.callbacks:EarlyStoppingCallback": "patience=5000 min_delta=0.0001 monitor='loss'",
    "worldloom.training.callbacks:ProgressCallback": "desc='Training'",
    **{
        f"worldloom.training.callbacks:Callback.on_{name}": "self trainer"
        for name in ("train_begin", "train_end", "epoch_begin")
    },
    **{
        f"worldloom.training.callbacks:Callback.on_{name}": "self trainer"
        for name in ("epoch_end", "step_begin", "step_end")
    },
    **{
        f"worldloom:{kind}.{method}": arguments
        for kind in ("DreamerV3WorldModel", "TDMPC2WorldModel", "MLPWorldModel")
        for method, arguments in {
            "__init__": "self config",
            "encode": "self obs deterministic=False",
            "predict": "self state action deterministic=False",
            "observe": "self state action obs",
            "decode": "self state",
            "imagine": "self initial_state actions deterministic=False",
            "initial_state": "self batch_size device=None",
            "compute_loss": "self batch",
            "save_pretrained": "self path",
            "from_pretrained": "path",
            "enable_gradient_checkpointing": "self",
        }.items()
    },
    "worldloom:TDMPC2WorldModel.predict_q": "self state action",
    "worldloom:TDMPC2WorldModel.predict_reward": "self state action",
    "worldloom:TDMPC2WorldModel.q": "self state action",
    "worldloom.models.dreamer:symlog": "x",
    "worldloom.models.dreamer:symexp": "x",
}
SPLIT = {"tuple": "(3, 64, 64)"}


def words(text: str) -> list[str]:
    """Arguments of a line; the one default with blanks in it stays whole."""
    return [
        word.replace("~", " ")
        for word in text.replace(SPLIT["tuple"], "(3,~64,~64)")
        .replace("<class '", "<class~'")
        .split()
    ]


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_callable_takes_what_it_took(name: str) -> None:
    module, _, path = name.partition(":")
    target: Any = importlib.import_module(module)
    for part in path.split("."):
        target = getattr(target, part)
    ours = list(inspect.signature(target).parameters.values())
    theirs = words(SIGNATURES[name])
    for place, wanted in enumerate(theirs):
        argument, _, default = wanted.partition("=")
        keyword_only = argument.startswith("*")
        argument = argument.removeprefix("*")
        found = next((p for p in ours if p.name == argument), None)
        assert found is not None, f"{name} lacks {argument}"
        if not keyword_only:
            assert found.kind is found.POSITIONAL_OR_KEYWORD
            assert ours[place].name == argument, f"{name}: {argument} moved"
        if default:
            number = number_of(default)
            got = str(found.default) if isinstance(found.default, str) else found.default
            is_equal = number is not None and got == number
            assert repr(got) == default or is_equal, f"{name}: {argument}"
    known = {word.partition("=")[0].removeprefix("*") for word in theirs}
    for extra in (p for p in ours if p.name not in known):
        is_open = extra.kind in (extra.VAR_KEYWORD, extra.VAR_POSITIONAL)
        assert is_open or extra.default is not extra.empty, (
            f"{name}: {extra.name} is new and has no default"
        )


def number_of(text: str) -> float | None:
    """A number written in another way; None for what is none."""
    try:
        return float(text)
    except ValueError:
        return None


def test_open_keywords_are_where_they_were() -> None:
    import worldloom
    from worldloom.training import TrainingConfig, train

    for function in (
        worldloom.create_world_model,
        worldloom.get_config,
        train,
        TrainingConfig().with_updates,
    ):
        assert any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
