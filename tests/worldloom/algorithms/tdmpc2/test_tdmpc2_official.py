"""Files that are not what they say get a CheckpointError, and never run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldloom.algorithms.tdmpc2.config import Architecture
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks, make_critics
from worldloom.algorithms.tdmpc2.official import (
    MT30_ACTION_DIMS,
    MT80_ACTION_DIMS,
    from_official_state,
    load_official,
)
from worldloom.core.exceptions import CheckpointError
from worldloom.core.specs import ArraySpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.nn.snapshot import pack, unpack_into

OFFICIAL_PREFIX = {
    "reward_head": "_reward",
    "critics": "_Qs.params",
    "task_emb": "_task_emb.weight",
}


def architecture(**changes: object) -> Architecture:
    sizes = {
        "latent_dim": 16,
        "encoder_dim": 16,
        "mlp_dim": 16,
        "num_q": 2,
        "num_bins": 5,
        "action_dim": 2,
    }
    return Architecture(obs={"obs": ArraySpec((3,))}, **(sizes | changes))  # type: ignore[arg-type]


def official_state(sizes: Architecture, *, with_targets: bool = True) -> dict[str, torch.Tensor]:
    """A state dict in the authors' present layout with our random weights."""
    model = TDMPC2Networks(sizes).reset_parameters(torch.Generator().manual_seed(0))
    state = {}
    for name, value in model.state_dict().items():
        part, dot, rest = name.partition(".")
        state[OFFICIAL_PREFIX.get(part, "_" + part) + dot + rest] = value
    if with_targets:
        target = make_critics(sizes)
        target.reset_parameters(torch.Generator().manual_seed(1))
        state |= {f"_target_Qs_params.{name}": value for name, value in target.state_dict().items()}
    return state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def test_missing_targets_become_a_copy_of_the_critics() -> None:
    loaded = from_official_state(official_state(architecture(), with_targets=False))
    want = loaded.model.critics.state_dict()
    for name, value in loaded.target.state_dict().items():
        assert torch.equal(value, want[name])
        assert value.data_ptr() != want[name].data_ptr()


def test_masks_of_old_multi_task_files_follow_from_the_task_set() -> None:
    state = official_state(architecture(num_tasks=30, task_dim=4, action_dim=6))
    del state["_action_masks"]
    mask = from_official_state(state).model.action_masks
    assert isinstance(mask, torch.Tensor)
    assert mask.sum(1).tolist() == list(MT30_ACTION_DIMS)
    assert (len(MT30_ACTION_DIMS), len(MT80_ACTION_DIMS)) == (30, 80)


def test_an_unknown_task_set_without_masks_asks_for_action_dims() -> None:
    state = official_state(architecture(num_tasks=3, task_dim=4))
    del state["_action_masks"]
    with pytest.raises(CheckpointError, match="pass action_dims"):
        from_official_state(state)
    mask = from_official_state(state, action_dims=[1, 2, 2]).model.action_masks
    assert isinstance(mask, torch.Tensor)
    assert mask.tolist() == [[1, 0], [1, 1], [1, 1]]


class Hostile:
    """Unpickling this would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_hostile_file_is_refused_without_running_it(path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for content in ({"model": Hostile(marker)}, Hostile(marker)):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"holds more than tensors .*mkdir") as caught:
            load_official(path)
        assert "weights_only" not in str(caught.value), "no advice to run it"
    path.write_bytes(pickle.dumps(Hostile(marker)))
    with pytest.raises(CheckpointError) as caught:
        load_official(path)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()


def test_a_truncated_file_is_refused_at_every_length(path: Path) -> None:
    torch.save({"model": official_state(architecture())}, path)
    whole = path.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError):
            load_official(path)


def test_wrong_contents_are_refused_with_their_reason(path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a readable"):
        load_official(path.with_name("absent.pt"))
    good = official_state(architecture())
    cases = {
        "holds a list": [1, 2],
        "entry 'layer.weight' is not part": {"layer.weight": torch.zeros(2)},
        "is a str, not a tensor": {"model": good | {"_pi.0.weight": "text"}},
        "not a TD-MPC2 model": {"model": {}},
        "tensor 'pi.1.weight' has shape": {"model": good | {"_pi.1.weight": torch.zeros(16, 15)}},
        "tensor 'dynamics.1.bias' has shape None": {
            "model": {k: v for k, v in good.items() if k != "_dynamics.1.bias"}
        },
        "tensor 'pi.7.weight' has shape": {"model": good | {"_pi.7.weight": torch.zeros(2, 2)}},
        "latent_dim must be a multiple": {
            "model": good | {"_dynamics.2.weight": torch.zeros(15, 16)}
        },
    }
    for message, content in cases.items():
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            load_official(path)


def test_weights_survive_safetensors_and_snapshots(tmp_path: Path) -> None:
    model = from_official_state(official_state(architecture(is_episodic=True))).model
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = TDMPC2Networks(model.architecture)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    third = TDMPC2Networks(model.architecture)
    unpack_into(WeightsSnapshot.from_bytes(pack(model.state_dict()).to_bytes()), third.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
        assert torch.equal(third.state_dict()[name], value)


def test_an_image_model_is_recognised() -> None:
    sizes = Architecture(
        obs={"obs": ArraySpec((9, 64, 64), "uint8")},
        action_dim=2,
        latent_dim=128,
        num_channels=8,
        mlp_dim=16,
        num_q=2,
    )
    state = {}
    for name, value in official_state(sizes).items():
        index = name.removeprefix("_encoder.images.0.convs.")
        state[f"_encoder.rgb.{2 * int(index[0]) + 2}{index[1:]}" if index != name else name] = value
    loaded = from_official_state(state).model
    assert loaded.architecture.image_keys == ("obs",)
    assert torch.equal(loaded.encoder.images[0].convs[3].weight, state["_encoder.rgb.8.weight"])  # type: ignore[union-attr, index]
