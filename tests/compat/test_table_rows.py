"""What each row of the compatibility table promises of behaviour and errors; names and signatures
are tested beside this file.

The rows are those of code written against the public WorldLoom 0.1: section 1 lists what it has,
section 3 what its documents type.
"""

import enum
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import worldloom
from worldloom import create_world_model
from worldloom.core import exceptions
from worldloom.core.exceptions import (
    ConfigurationError,
    ModelNotFoundError,
    ShapeMismatchError,
    StateError,
)
from worldloom.training import ReplayBuffer, Trainer, TrainingConfig, TrajectoryDataset
from worldloom.training import callbacks as cb
from worldloom.training.data import create_random_buffer

B = 3
T = 6
O = 4
A = 2
PUBLISHED = ["dreamerv3:ci", "tdmpc2:ci"]


def build(name: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    return create_world_model(name, **({"obs_shape": (O,), "action_dim": A} | fields))


def batch(length: int = T) -> dict[str, torch.Tensor]:
    parts = {
        "obs": torch.rand(B, length, O),
        "actions": torch.rand(B, length, A),
        "rewards": torch.rand(B, length),
    }
    return parts | {"continues": torch.ones(B, length)}


def small_trainer(folder: Path, callbacks: list[Any] | None = None, **changes: Any) -> Trainer:
    fields = {
        "total_steps": 3,
        "batch_size": 2,
        "sequence_length": 4,
        "eval_interval": 2,
        "eval_batches": 1,
        "device": "cpu",
    }
    return Trainer(
        build("mlp:ci"),
        TrainingConfig(**(fields | {"output_dir": str(folder)} | changes)),
        callbacks,
    )


@pytest.fixture(scope="module")
def buffer() -> ReplayBuffer:
    return create_random_buffer(200, (O,), A, num_episodes=12, episode_length=12, seed=0)


# -- 1.1 the top level -----------------------------------------------------------------------------


def test_create_world_model_reads_presets_aliases_paths_and_fields(tmp_path: Path) -> None:
    assert create_world_model(model="tdmpc2:ci").config.model_type == "tdmpc2"
    assert build("DreamerV3:ci", kl_free=0.5).config.kl_free == 0.5
    build("tdmpc2:ci", hidden_dim=32).save_pretrained(tmp_path / "m")
    assert create_world_model(str(tmp_path / "m"), device="auto").config.action_dim == A
    with pytest.raises(
        ConfigurationError, match=r"hidden_dim: the model in .* saved with 32, got 64"
    ):
        create_world_model(tmp_path / "m", hidden_dim=64)
    with pytest.raises(ConfigurationError, match="did you mean hidden_dim"):
        build("tdmpc2:ci", hiden_dim=64)
    for name, words in (
        ("nothing", "Invalid model identifier"),
        ("planet:x", "Unknown model type"),
        ("dreamer:x", "Unknown size"),
    ):
        with pytest.raises(ValueError, match=words):
            create_world_model(name)


def test_lists_and_facts_of_models() -> None:
    names = worldloom.list_models()
    assert isinstance(names, list)
    assert {f"dreamerv3:size{n}m" for n in (12, 25, 50, 100, 200)} | {
        f"tdmpc2:{n}m" for n in (5, 19, 48, 317)
    } <= set(names)
    verbose = worldloom.list_models(verbose=True)
    assert isinstance(verbose, dict)
    assert all(
        {"description", "params", "type", "default_obs"} <= set(entry) for entry in verbose.values()
    )
    info = worldloom.get_model_info("tdmpc-medium")
    assert (info["model_id"], info["alias"]) == ("tdmpc2:48m", "tdmpc-medium")
    with pytest.raises(ValueError, match="Unknown model"):
        worldloom.get_model_info("nothing")
    with pytest.raises(ValueError, match="Invalid model format"):
        worldloom.get_config("nothing")
    assert worldloom.get_config("dreamer-large", obs_shape=(7,), action_dim=3).obs_shape == (7,)
    assert set(names) == set(worldloom.MODEL_CATALOG)


def test_kinds_of_latents_and_dynamics_are_lower_case_words() -> None:
    for kind, names in (
        (worldloom.LatentType, "DETERMINISTIC GAUSSIAN CATEGORICAL VQ SIMNORM"),
        (worldloom.DynamicsType, "RSSM MLP TRANSFORMER SSM"),
    ):
        assert issubclass(kind, enum.Enum)
        assert [member.name for member in kind] == names.split()
        assert all(member.value == member.name.lower() for member in kind)


def test_every_setting_of_a_config_does_what_it_says(tmp_path: Path) -> None:
    assert build("mlp:ci", device="cpu").device.type == "cpu"
    half = build("mlp:ci", dtype="bfloat16")
    with half.precision():
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    own = Trainer(
        build("mlp:ci", learning_rate=0.5, grad_clip=7.0),
        TrainingConfig(output_dir=str(tmp_path), device="cpu"),
    )
    assert (own.learning_rate, own.grad_clip) == (0.5, 7.0)
    state = build("mlp:ci", action_type="discrete").encode(torch.zeros(B, O))
    assert (
        build("mlp:ci", action_type="discrete").predict(state, torch.tensor([0, 1, 1])).batch_size
        == B
    )
    config = worldloom.DreamerV3Config(obs_shape=(4,), action_dim=3)
    config.save(tmp_path / "config.json")
    assert worldloom.WorldModelConfig.load(tmp_path / "config.json") == config
    assert worldloom.DreamerV3Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", [*PUBLISHED, "mlp:ci"])
def test_models_are_world_models(name: str) -> None:
    assert isinstance(build(name), worldloom.WorldModel)
    assert not isinstance(torch.nn.Linear(1, 1), worldloom.WorldModel)


def test_registry_and_automatic_classes() -> None:
    types = worldloom.WorldModelRegistry.list_models()
    assert set(worldloom.core.registry.TYPE_ALIASES.values()) <= set(types) & set(
        worldloom.WorldModelRegistry._config_registry
    )
    aliases = worldloom.core.registry.TYPE_ALIASES
    assert set(aliases) == {"dreamer", "dreamerv3", "tdmpc", "tdmpc2"}
    assert [aliases[n] for n in ("dreamer", "dreamerv3", "tdmpc", "tdmpc2")] == [
        "dreamer",
        "dreamer",
        "tdmpc2",
        "tdmpc2",
    ]
    for source in (worldloom.WorldModelRegistry, worldloom.AutoWorldModel):
        assert source.from_pretrained("TDMPC:ci").config.model_type == "tdmpc2"
        with pytest.raises(ValueError, match="Invalid model identifier"):
            source.from_pretrained("no_colon")
    assert worldloom.AutoConfig.from_pretrained("dreamer:size12m").model_type == "dreamer"
    base = worldloom.AutoConfig.from_pretrained("anything:tiny")
    assert (type(base), base.model_name) == (worldloom.WorldModelConfig, "tiny")
    with pytest.raises(ValueError, match="Invalid config identifier"):
        worldloom.AutoConfig.from_pretrained("no_colon")


def test_latent_spaces_keep_their_shapes_and_their_divergence() -> None:
    categorical = worldloom.CategoricalLatentSpace(8, 4)
    gaussian = worldloom.GaussianLatentSpace(16)
    simnorm = worldloom.SimNormLatentSpace(16, 8)
    flat = torch.randn(B, 32)
    assert (
        categorical.sample(flat).shape
        == categorical.sample(flat.view(B, 8, 4), deterministic=True).shape
        == (B, 8, 4)
    )
    other = torch.randn(B, 8, 4)
    assert (
        categorical.kl_divergence(flat.view(B, 8, 4), other, 0.1)
        <= categorical.kl_divergence(flat.view(B, 8, 4), other)
    ).all()
    assert (gaussian.param_dim, gaussian.sample_dim) == (32, 16)
    assert gaussian.kl_divergence(flat, flat).abs().max() < 1e-5
    code = simnorm.sample(torch.randn(B, 16))
    assert torch.allclose(code.view(B, 2, 8).sum(-1), torch.ones(B, 2))
    assert simnorm.kl_divergence(code, code + 1).eq(0).all()
    with pytest.raises(ValueError, match="multiple"):
        worldloom.SimNormLatentSpace(10, 8)


def test_errors_fit_both_dialects() -> None:
    for name in ("ConfigurationError", "ShapeMismatchError", "BufferError", "ModelNotFoundError"):
        assert issubclass(getattr(exceptions, name), ValueError)
        assert issubclass(getattr(exceptions, name), exceptions.WorldLoomError)
    with pytest.raises(ModelNotFoundError) as caught:
        create_world_model("nothing")
    assert "dreamerv3:size12m" in caught.value.available
    with pytest.raises(ConfigurationError, match=r"^\[tiny\] action_dim"):
        worldloom.WorldModelConfig(model_name="tiny", action_dim=0)


# -- 1.2 the models --------------------------------------------------------------------------------


def test_a_dreamer_state_has_both_distributions_and_the_flag_is_honoured() -> None:
    model = build("dreamerv3:ci")
    obs = torch.rand(B, O)
    state = model.encode(obs, deterministic=True)
    assert torch.equal(state.features, model.encode(obs, deterministic=True).features)
    draws = {tuple(model.encode(obs).stochastic.flatten().tolist()) for _ in range(8)}
    assert len(draws) > 1
    seen = model.observe(state, torch.rand(B, A), obs)
    assert seen.prior_logits.shape == seen.posterior_logits.shape
    fresh = model.observe(
        state, torch.rand(B, A), obs, is_first=torch.ones(B, dtype=torch.bool), deterministic=True
    )
    # an episode that begins has no past
    assert torch.allclose(fresh.logits, state.logits, atol=1e-5)
    assert model.initial_state(B).features.eq(0).all()
    assert model.initial_state(B, "cpu").device.type == "cpu"


def test_images_may_be_bytes_and_wrong_axes_are_named() -> None:
    model = create_world_model("dreamerv3:ci", obs_shape=(3, 32, 32))
    assert model.encode(torch.zeros(B, 3, 32, 32, dtype=torch.uint8)).batch_size == B
    with pytest.raises(ShapeMismatchError, match="channels on the last axis"):
        model.encode(torch.zeros(B, 32, 32, 3))


def test_decode_and_imagine_speak_in_natural_units() -> None:
    dreamer = build("dreamerv3:ci")
    tdmpc = build("tdmpc2:ci")
    state = dreamer.encode(torch.rand(B, O))
    with torch.no_grad():
        # all weight on the last bin, which is 20 in symlog space
        dreamer.net.rew.out[0].bias[-1] = 50.0
    decoded = dreamer.decode(state)
    assert (decoded["reward"] > 1e8).all()
    assert {name: tuple(value.shape) for name, value in decoded.items()} == {
        "obs": (B, O),
        "reward": (B, 1),
        "continue": (B, 1),
    }
    assert (decoded["continue"] >= 0).all()
    assert (decoded["continue"] <= 1).all()
    trajectory = dreamer.imagine(initial_state=state, actions=torch.rand(T, B, A))
    assert len(trajectory) == T + 1
    assert (
        trajectory.rewards.shape
        == trajectory.continues.shape
        == trajectory.values.shape
        == (T, B, 1)
    )
    assert torch.allclose(
        trajectory.rewards[-1], dreamer.decode(trajectory.states[-1])["reward"], atol=1e-5
    )
    implicit = tdmpc.decode(tdmpc.encode(torch.rand(B, O)))
    assert {name: tuple(value.shape) for name, value in implicit.items()} == {
        "reward": (B, 1),
        "q_values": (2, B, 1),
        "action": (B, A),
    }
    assert tdmpc.imagine(tdmpc.encode(torch.rand(B, O)), torch.rand(T, B, A)).continues is None


def test_tdmpc2_observes_by_encoding_and_rates_actions() -> None:
    model = build("tdmpc2:ci")
    obs = torch.rand(B, O)
    action = torch.rand(B, A)
    state = model.encode(obs)
    assert state.stochastic is None
    assert torch.equal(model.observe(state, action, obs).features, state.features)
    assert model.predict_q(state, action).shape == (2, B)
    assert torch.equal(model.q(state, action), model.predict_q(state, action))
    assert model.predict_reward(state, action).shape == (B,)
    assert build("tdmpc2:ci", num_tasks=2).predict(state, action, task_id=1).batch_size == B


@pytest.mark.parametrize(
    ("name", "keys"),
    [("dreamerv3:ci", "kl reconstruction reward continue"), ("tdmpc2:ci", "consistency reward td")],
)
def test_losses_have_both_spellings_and_are_scalars(name: str, keys: str) -> None:
    losses = build(name).compute_loss(batch())
    assert {"loss", *keys.split(), *(f"{key}_loss" for key in keys.split())} <= set(losses)
    assert all(isinstance(value, torch.Tensor) and value.ndim == 0 for value in losses.values())


def test_saved_folders_have_both_weight_files_and_documents_config_is_read(tmp_path: Path) -> None:
    build("dreamerv3:ci").save_pretrained(tmp_path)
    assert {"config.json", "model.pt", "model.safetensors"} == {p.name for p in tmp_path.iterdir()}
    facts = json.loads((tmp_path / "config.json").read_text())
    assert facts["model_type"] == "dreamer"
    (tmp_path / "config.json").write_text(json.dumps(facts | {"model_type": "dreamerv3"}))
    assert type(create_world_model(tmp_path)) is worldloom.DreamerV3WorldModel
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    # as the troubleshooting page shows
    build("dreamerv3:ci").load_state_dict(weights, strict=False)


# -- 1.3 training ----------------------------------------------------------------------------------


def test_a_trainer_makes_its_folder_its_files_and_keeps_its_state(
    buffer: ReplayBuffer, tmp_path: Path
) -> None:
    trainer = small_trainer(tmp_path / "new", save_interval=2)
    assert (tmp_path / "new").is_dir()
    assert trainer.train(buffer) is trainer.model
    names = {p.name for p in (tmp_path / "new").glob("*.pt")}
    assert names == {"checkpoint_2.pt", "checkpoint_best.pt", "checkpoint_final.pt"}
    state = trainer.state
    assert (state.global_step, state.should_stop) == (3, False)
    assert state.best_loss < float("inf")
    assert state.metrics["loss"] > 0
    scores = trainer.evaluate(buffer, num_batches=2)
    assert all(isinstance(value, float) for value in scores.values())
    assert trainer.train(buffer, num_steps=1) is trainer.model
    assert trainer.state.global_step == 4
    assert [
        entry["step"]
        for entry in small_trainer(tmp_path, log_interval=1).train(buffer) and trainer.history
    ] == []
    again = small_trainer(tmp_path / "new")
    again.train(buffer, resume_from=str(tmp_path / "new" / "checkpoint_2.pt"))
    assert again.state.global_step == 3


def test_runtime_errors_become_training_errors_and_ctrl_c_is_clean(
    buffer: ReplayBuffer, tmp_path: Path
) -> None:
    class Raises(cb.Callback):
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def on_step_end(self, trainer: Any) -> None:
            raise self.error

    with pytest.raises(exceptions.TrainingError, match="out of memory"):
        small_trainer(tmp_path, [Raises(RuntimeError("out of memory"))]).train(buffer)
    small_trainer(tmp_path, [Raises(KeyboardInterrupt())]).train(buffer)
    assert (tmp_path / "checkpoint_final.pt").exists()


def test_own_callbacks_replace_the_defaults_of_their_class(tmp_path: Path) -> None:
    mine = [cb.LoggingCallback(5), cb.CheckpointCallback(7, str(tmp_path))]
    assert list(small_trainer(tmp_path, mine).callbacks) == mine
    trainer = small_trainer(tmp_path)
    trainer.add_callback(mine[0])
    assert [c for c in trainer.callbacks if isinstance(c, cb.LoggingCallback)] == [mine[0]]


def test_callbacks_take_the_words_of_the_documents(buffer: ReplayBuffer, tmp_path: Path) -> None:
    heard: list[tuple[int, float]] = []

    class Mine(cb.Callback):
        def on_step_end(self, step: int, losses: dict[str, float]) -> None:  # type: ignore[override]
            heard.append((step, losses["loss"]))

    trainer = small_trainer(tmp_path)
    trainer.add_callback(Mine())
    trainer.add_callback(cb.ProgressCallback())
    trainer.add_callback(
        cb.LoggingCallback(
            log_dir=str(tmp_path / "logs"), log_to_console=False, log_to_tensorboard=False
        )
    )
    trainer.add_callback(
        cb.CheckpointCallback(
            save_dir=str(tmp_path / "c"), save_every=1, keep_last=1, save_best=True, monitor="loss"
        )
    )
    trainer.add_callback(
        cb.EarlyStoppingCallback(monitor="loss", patience=5000, min_delta=1e-4, mode="min")
    )
    trainer.train(buffer)
    assert [step for step, _ in heard] == [1, 2, 3]
    assert {p.name for p in (tmp_path / "c").iterdir()} == {
        "checkpoint_3.pt",
        "checkpoint_best.pt",
        "checkpoint_final.pt",
    }


def test_the_buffer_counts_samples_saves_and_refuses(buffer: ReplayBuffer, tmp_path: Path) -> None:
    assert len(buffer) == buffer.num_transitions == 144
    assert buffer.num_episodes == 12
    sample = buffer.sample(batch_size=2, seq_len=5, device="cpu")
    assert {"obs", "actions", "rewards", "continues"} <= set(sample)
    assert sample["obs"].shape == (2, 5, O)
    buffer.save(tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as file:
        assert {"obs", "actions", "rewards", "dones", "obs_shape", "action_dim", "capacity"} <= set(
            file.files
        )
    assert len(ReplayBuffer.load(tmp_path / "b.npz")) == 144
    episode = {
        "obs": np.zeros((5, O)),
        "actions": np.zeros((5, A)),
        "rewards": np.zeros(5),
        "dones": np.zeros(5),
    }
    assert len(ReplayBuffer.from_trajectories([episode], capacity=9)) == 5
    assert ReplayBuffer(9, (O,), A, obs_dtype=np.uint8).obs_dtype == np.uint8
    with pytest.raises(ShapeMismatchError):
        buffer.add_episode(**(episode | {"obs": np.zeros((5, O + 1))}))
    with pytest.raises(exceptions.BufferError, match="no episode is long enough"):
        buffer.sample(2, 50)


def test_datasets_feed_a_loader_and_random_buffers_leave_numpy_alone(buffer: ReplayBuffer) -> None:
    loader = torch.utils.data.DataLoader(
        TrajectoryDataset(buffer, 4, samples_per_epoch=6), batch_size=3
    )
    assert [b["obs"].shape for b in loader] == [(3, 4, O)] * 2
    np.random.seed(3)
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    create_random_buffer(50, (O,), A, 2, 10, seed=1)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


# -- 1.4 and 3: what documents type ----------------------------------------------------------------

EXAMPLES = Path(__file__).parents[2] / "examples"
SHARED = (
    "--data --test --size --steps --batch-size --seq-len --lr --output-dir --resume "
    "--device --wandb"
)
FLAGS = {
    "train_dreamer.py": "",
    "train_tdmpc2.py": "--obs-dim --action-dim",
    "train_atari_dreamer.py": "--deter-dim --hidden-dim --cnn-depth",
    "train_dreamer_mujoco.py": "",
    "train_tdmpc2_mujoco.py": "--latent-dim --hidden-dim --gamma",
    "collect_atari.py": "--env --episodes --output --no-preprocess --size",
    "collect_mujoco.py": "--env --episodes --output --max-steps --action-noise --list-envs",
    "visualize_imagination.py": "--model --data --horizon --output-dir --all",
    "../scripts/create_demo_gif.py": "--output --skip-gifs",
}


@pytest.mark.parametrize("name", FLAGS)
def test_every_script_has_its_flags(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import runpy
    import sys

    path = EXAMPLES / name
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "offline", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(
        flag in shown
        for flag in f"{SHARED if name.startswith('train') else ''} {FLAGS[name]}".split()
    )


def test_extras_keep_their_names() -> None:
    import tomllib

    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
    names = {"dev", "training", "env", "atari", "mujoco", "viz", "logging", "docs", "all"}
    assert names <= set(project["optional-dependencies"])


def test_documented_configs_are_understood() -> None:
    from worldloom.models.dreamer import DreamerV3Config
    from worldloom.models.tdmpc2 import TDMPC2Config

    sizes: dict[str, Any] = {
        "deter_dim": 2048,
        "stoch_dim": 1024,
        "num_categories": 32,
        "cnn_depth": 48,
        "mlp_layers": 5,
    }
    config = DreamerV3Config(
        obs_shape=(3, 64, 64), action_dim=18, hidden_dim=640, kl_balance=0.8, kl_free=1.0, **sizes
    )
    assert (config.stoch_dim, config.stoch_discrete, config.mlp_layers) == (1024, 32, 5)
    planner: dict[str, Any] = {"num_q": 5, "mlp_layers": 2}
    assert (
        TDMPC2Config(
            obs_shape=(39,), action_dim=6, latent_dim=512, hidden_dim=512, **planner
        ).num_q_networks
        == 5
    )
    deep = build("dreamerv3:ci", num_layers=5)
    assert deep.num_parameters > build("dreamerv3:ci").num_parameters
    assert (
        worldloom.get_config("dreamerv3:size12m", obs_shape=(4,), action_dim=2).encoder_type
        == "mlp"
    )


def test_the_cartpole_tutorial_stores_its_integer_actions_with_a_notice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    buffer = ReplayBuffer(capacity=100, obs_shape=(4,), action_dim=2)
    with caplog.at_level(logging.INFO):
        buffer.add_episode(
            np.zeros((3, 4)), np.array([[0], [1], [1]]), np.ones(3), np.array([False, False, True])
        )
    assert "one-hot" in caplog.text
    assert buffer.sample(1, 3)["actions"][0].argmax(-1).tolist() == [0, 1, 1]


def test_a_width_that_does_not_fit_names_both_numbers() -> None:
    model = build("dreamerv3:ci", action_dim=6)
    with pytest.raises(ShapeMismatchError, match=r"action_dim=6.*got \[3, 3, 4\]"):
        model.imagine(model.encode(torch.zeros(B, O)), torch.zeros(3, B, 4))


def test_weights_of_0_1_are_refused_with_the_way_out(tmp_path: Path) -> None:
    build("dreamerv3:ci").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    facts = json.loads((tmp_path / "config.json").read_text())
    facts.pop("files")
    (tmp_path / "config.json").write_text(json.dumps(facts))
    torch.save({"rssm.gru.weight_ih": torch.zeros(2, 2)}, tmp_path / "model.pt")
    with (
        warnings.catch_warnings(),
        pytest.raises(exceptions.CheckpointError, match=r"0\.1.*train again"),
    ):
        create_world_model(tmp_path)


def test_symexp_is_finite_and_a_state_without_parts_is_refused() -> None:
    from worldloom.models.dreamer import symexp, symlog

    x = torch.tensor([-1000.0, -88.0, 0.0, 88.0, 1000.0])
    assert torch.isfinite(symexp(x)).all()
    assert torch.isfinite(symlog(x * 1e30)).all()
    with pytest.raises(StateError):
        worldloom.LatentState()
