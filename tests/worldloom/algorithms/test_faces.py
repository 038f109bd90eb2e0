"""What holds for every public world model; each case is a model at its smallest size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worldloom.algorithms.dreamer_rows import rows_learned_from
from worldloom import WorldModel, create_world_model
from worldloom.algorithms.base import imagined_returns
from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    ShapeMismatchError,
    StateError,
)

B = 4
T = 6
O = 5
A = 2
NAMES = ["dreamerv3:ci", "tdmpc2:ci", "mlp:ci"]
IMAGE = (3, 32, 32)


def build(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return create_world_model(name, **({"obs_shape": (O,), "action_dim": A} | changes))


def batch(shape: tuple[int, ...] = (O,), **changes: Tensor) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    parts = {
        "obs": torch.rand(B, T, *shape, generator=g),
        "actions": torch.rand(B, T, A, generator=g),
    }
    return (
        parts | {"rewards": torch.rand(B, T, generator=g), "continues": torch.ones(B, T)} | changes
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_the_documented_shapes(name: str) -> None:
    model = build(name)
    assert isinstance(model, WorldModel)
    state = model.encode(torch.zeros(B, O))
    action = torch.zeros(B, A)
    assert model.predict(state, action).features.shape == state.features.shape
    assert model.observe(state, action, torch.zeros(B, O)).features.shape == state.features.shape
    decoded = model.decode(state)
    assert decoded["reward"].shape == (B, 1)
    assert "obs" not in decoded or decoded["obs"].shape == (B, O)
    trajectory = model.imagine(model.initial_state(B), torch.zeros(T, B, A))
    assert trajectory.rewards.shape == (T, B, 1)
    assert trajectory.continues is None or (
        trajectory.continues.shape == (T, B, 1) and 0 <= trajectory.continues.min() <= 1
    )
    assert (len(trajectory), trajectory.to_features_tensor().shape[0]) == (T + 1, T + 1)
    assert model.imagine(
        state, lambda s: torch.zeros(s.batch_size, A), horizon=3
    ).actions.shape == (3, B, A)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_scalars_that_reach_every_parameter_and_change_nothing(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = model.compute_loss(
        batch(last_obs=torch.zeros(B, O), last_obs_mask=torch.tensor([True, False, True, True]))
    )
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())
    assert torch.equal(losses["reward"], losses["reward_loss"])
    losses["loss"].backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_calls_repeat(name: str) -> None:
    model = build(name)
    obs = torch.rand(B, O)
    first, second = (model.encode(obs, deterministic=True) for _ in range(2))
    assert torch.equal(first.features, second.features)
    action = torch.rand(B, A)
    dreams = [model.predict(first, action, deterministic=True).features for _ in range(2)]
    assert torch.equal(*dreams)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_predicts_the_same(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path / "m")
    assert {"config.json", "model.pt", "model.safetensors"} == {
        p.name for p in (tmp_path / "m").iterdir()
    }
    for lost in (None, "model.safetensors"):
        if lost:
            (tmp_path / "m" / lost).unlink()
        again = create_world_model(tmp_path / "m")
        obs = torch.rand(B, O)
        assert torch.equal(
            model.encode(obs, deterministic=True).features,
            again.encode(obs, deterministic=True).features,
        )
    assert create_world_model(tmp_path / "m", action_dim=A).config == model.config
    with pytest.raises(
        ConfigurationError, match=r"action_dim: the model in .* saved with 2, got 9"
    ):
        create_world_model(tmp_path / "m", action_dim=9)


def _truncate(folder: Path) -> None:
    data = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(data[: len(data) // 2])


def _flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def _pickle_bomb(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    facts = json.loads((folder / "config.json").read_text())
    del facts["files"]
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "model.pt").write_bytes(
        b"cos\nsystem\n(S'touch " + str(folder / "ran").encode() + b"'\ntR."
    )


def _oversize(folder: Path) -> None:
    with (folder / "model.pt").open("ab") as file:
        file.write(b"\0" * (1 << 20))


def _swap(folder: Path) -> None:
    other = build("mlp:ci", latent_dim=8)
    other.save_pretrained(folder / "other")
    for name in ("model.pt", "model.safetensors"):
        (folder / name).write_bytes((folder / "other" / name).read_bytes())
    facts = json.loads((folder / "config.json").read_text())
    facts["files"] = json.loads((folder / "other" / "config.json").read_text())["files"]
    (folder / "config.json").write_text(json.dumps(facts))


def _old(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"rssm.gru.weight": torch.zeros(2)}, folder / "model.pt")
    facts = json.loads((folder / "config.json").read_text())
    del facts["files"]
    (folder / "config.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *(
            (_truncate, "truncated"),
            (_flip, "corrupt"),
            (_pickle_bomb, "holds more than tensors"),
            (_oversize, "oversized"),
        ),
        *((_swap, "another model"), (_old, "train again")),
    ],
)
def test_damaged_files_say_what_is_wrong_and_never_run(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    build("mlp:ci").save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        create_world_model(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_refused_with_both_shapes(name: str) -> None:
    model = build(name)
    state = model.encode(torch.zeros(B, O))
    with pytest.raises(ShapeMismatchError, match="no batch axis"):
        model.encode(torch.zeros(O))
    with pytest.raises(ShapeMismatchError, match=r"action_dim=2.*got \[4, 3\]"):
        model.predict(state, torch.zeros(B, 3))
    with pytest.raises(ShapeMismatchError, match="NaN"):
        model.encode(torch.full((B, O), float("nan")))
    with pytest.raises(ShapeMismatchError, match="keys of a batch"):
        model.compute_loss({"obs": torch.zeros(B, T, O)})
    with pytest.raises(ShapeMismatchError, match="rewards of a batch"):
        model.compute_loss(batch(rewards=torch.zeros(B, T + 1)))
    with pytest.raises(ShapeMismatchError, match=r"dtype of last_obs .*uint8.*float32"):
        model.compute_loss(
            batch(obs=torch.zeros(B, T, O, dtype=torch.uint8), last_obs=torch.zeros(B, O))
        )
    with pytest.raises(StateError, match="LatentState"):
        model.predict(torch.zeros(B, 3), torch.zeros(B, A))
    with pytest.raises(ConfigurationError, match="built into the networks"):
        model.reconfigure(action_dim=3)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_leaves_gradients_equal(name: str) -> None:
    gradients = []
    for is_on in (False, True):
        model = build(name)
        if is_on:
            model.enable_gradient_checkpointing()
        torch.manual_seed(3)
        model.compute_loss(batch())["loss"].backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_computes_and_keeps_float32_weights(name: str) -> None:
    model = build(name, dtype="bfloat16")
    model.compute_loss(batch())["loss"].backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_images_are_uint8_or_floats_and_their_axes_are_checked() -> None:
    model = build("dreamerv3:ci", obs_shape=IMAGE)
    bytes_ = torch.randint(0, 256, (B, *IMAGE), dtype=torch.uint8)
    a = model.encode(bytes_, deterministic=True)
    b = model.encode(bytes_ / 255.0, deterministic=True)
    assert torch.allclose(a.logits, b.logits, atol=1e-4)
    decoded = model.decode(a)["obs"]
    assert decoded.shape == (B, *IMAGE)
    assert 0 <= decoded.min() <= decoded.max() <= 1
    with pytest.raises(ShapeMismatchError, match="as uint8"):
        model.encode(bytes_.float())
    with pytest.raises(ShapeMismatchError, match=r"permute\(0, 3, 1, 2\)"):
        model.encode(torch.zeros(B, 32, 32, 3))


def test_dreamer_aligns_rewards_with_the_row_they_arrive_in() -> None:
    model = build("dreamerv3:ci")
    data = batch(
        continues=torch.tensor([[1, 1, 0, 1, 1, 0]] * B).float(), last_obs=torch.zeros(B, O)
    )
    rows = rows_learned_from(model, data)
    assert torch.equal(rows.reward[:, 1:], data["rewards"])
    assert torch.equal(rows.action[:, 1:], data["actions"])
    assert rows.is_first[0].tolist() == [True, False, False, True, False, False, False]
    assert rows.terminated[0].tolist() == [False, False, False, False, False, False, True]


def test_discrete_actions_may_be_integers() -> None:
    model = build("dreamerv3:ci", action_type="discrete")
    state = model.encode(torch.zeros(B, O))
    one_hot = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 0]), A).float()
    torch.manual_seed(0)
    a = model.predict(state, torch.tensor([0, 1, 1, 0]), deterministic=True)
    assert torch.equal(a.features, model.predict(state, one_hot, deterministic=True).features)
    square = batch(actions=torch.randint(0, A, (B, T)))
    # as many steps as choices: no shape tells them apart
    square = {name: value[:, :A] for name, value in square.items()}
    assert model.compute_loss(square)["loss"].requires_grad
    assert model.imagine(state, torch.zeros(3, B, dtype=torch.long)).actions.shape == (3, B, A)
    with pytest.raises(ShapeMismatchError, match=r"integers in 0\.\.1"):
        model.predict(state, torch.full((B,), 2))
    with pytest.raises(ConfigurationError, match="use dreamerv3"):
        build("tdmpc2:ci", action_type="discrete")


def test_tdmpc2_learns_rewards_from_single_steps() -> None:
    model = build("tdmpc2:ci")
    single = {name: value[:, :1] for name, value in batch().items()}
    losses = model.compute_loss(single)
    assert losses["loss"] > 0
    assert losses["consistency"] == losses["td"] == 0
    model.after_update(losses)
    assert model.compute_loss(single | {"last_obs": torch.zeros(B, O)})["td"] > 0


def test_tdmpc2_plans_and_values_actions() -> None:
    model = build("tdmpc2:ci", episodic=True, use_decoder=True)
    state = model.encode(torch.rand(B, O))
    action, mean = model.plan(state)
    assert action.abs().max() <= 1
    assert model.plan(state, mean)[0].shape == (B, A)
    assert torch.equal(model.q(state, action), model.predict_q(state, action))
    assert model.predict_q(state, action).shape == (2, B)
    decoded = model.decode(state)
    assert {"obs", "reward", "continue", "q_values", "action"} == set(decoded)
    assert model.imagine(state, torch.zeros(3, B, A)).values.shape == (3, B, 1)
    losses = model.compute_loss(batch())
    target = model.target[0].weight.clone()
    torch.nn.init.ones_(model.net.critics[0].weight)
    model.after_update(losses)
    assert not torch.equal(target, model.target[0].weight)


def test_tdmpc2_knows_tasks() -> None:
    model = build("tdmpc2:ci", num_tasks=3)
    obs = torch.rand(B, O)
    assert not torch.equal(
        model.encode(obs, task_id=0).features, model.encode(obs, task_id=2).features
    )
    with pytest.raises(ShapeMismatchError, match="task_id"):
        model.encode(obs, task_id=3)


def test_values_without_critics_are_the_rewards_ahead() -> None:
    reward = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    cont = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)
    assert imagined_returns(reward, None, 0.5).flatten().tolist() == [3.0, 4.0, 4.0]
    assert imagined_returns(reward, cont, 0.5).flatten().tolist() == [2.5, 3.0, 4.0]


@pytest.mark.parametrize("name", NAMES)
def test_every_trajectory_has_values(name: str) -> None:
    model = build(name)
    dreamt = model.imagine(model.initial_state(B), torch.rand(T, B, A))
    assert dreamt.values.shape == (T, B, 1)
    if name != "tdmpc2:ci":
        assert torch.allclose(dreamt.values[-1], dreamt.rewards[-1])


def test_a_model_of_another_kind_names_itself_when_it_is_fed_images() -> None:
    with pytest.raises(
        ShapeMismatchError,
        match=r"obs of this model \(tdmpc2 ci, created with obs_shape=\(5,\)\).*64, 64",
    ):
        build("tdmpc2:ci").encode(torch.zeros(1, 3, 64, 64))
