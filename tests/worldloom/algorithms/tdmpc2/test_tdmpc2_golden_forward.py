"""Forward passes of the networks against the authors' code, and every checkpoint layout of
theirs.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.golden_support import assert_agrees
from tests.worldloom.algorithms.tdmpc2.golden_table import (
    FORWARD,
    VARIANTS,
    golden,
    model_of,
    official_file,
    tensor,
)
from worldloom.algorithms.tdmpc2.config import Architecture
from worldloom.algorithms.tdmpc2.encoder import Encoder
from worldloom.algorithms.tdmpc2.official import OfficialCheckpoint
from worldloom.core.specs import ArraySpec
from worldloom.nn.ensemble import ensemble_forward
from worldloom.nn.shift_crop import shift_crop

pytestmark = pytest.mark.golden


def check(got: torch.Tensor, arrays: dict[str, np.ndarray], key: str) -> None:
    assert_agrees(got, arrays[key], tolerance=FORWARD, name=key)


def check_networks(checkpoint: OfficialCheckpoint, arrays: dict[str, np.ndarray]) -> None:
    """What every kind of file has: latents, dynamics, reward, critics and policy."""
    model = checkpoint.model
    target = checkpoint.target
    index = tensor(arrays["in_task"]).long() if "in_task" in arrays else None
    task = model.embed(index)
    mask = model.mask(index)
    action = tensor(arrays["in_action"])
    z = model.encode({"obs": tensor(arrays["in_obs"])}, task)
    check(z, arrays, "out_z")
    check(model.next_latent(z, action, task), arrays, "out_next_z")
    joint = model.joint(z, action, task)
    check(model.reward_head(joint), arrays, "out_reward_logits")
    check(model.critic_logits(z, action, task), arrays, "out_q_logits_all")
    check(ensemble_forward(target.stacked, joint), arrays, "out_qtarget_logits_all")
    sample = model.policy(z, tensor(arrays["rng_eps_pi"]), task, mask)
    check(sample.action, arrays, "out_pi_action")
    check(sample.mean.tanh(), arrays, "out_pi_mean")
    check(sample.log_std, arrays, "out_pi_log_std")


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_networks_agree_with_the_authors_code(variant: str) -> None:
    arrays = golden(f"forward_{variant}.npz")
    checkpoint = model_of(variant)
    check_networks(checkpoint, arrays)
    model = checkpoint.model
    bins = checkpoint.model.bins
    index = tensor(arrays["in_task"]).long() if "in_task" in arrays else None
    task = model.embed(index)
    mask = model.mask(index)
    z = tensor(arrays["out_z"])
    action = tensor(arrays["in_action"])
    joint = model.joint(z, action, task)
    check(model.reward(z, action, task).unsqueeze(-1), arrays, "out_reward_value")
    check(model.pi(z if task is None else torch.cat([z, task], -1)), arrays, "out_pi_raw")
    sample = model.policy(z, tensor(arrays["rng_eps_pi"]), task, mask)
    check(-sample.log_prob(), arrays, "out_pi_entropy")
    dims = action.shape[-1] if mask is None else mask.sum(-1, keepdim=True)
    check(-dims * sample.gaussian_log_prob(), arrays, "out_pi_scaled_entropy")
    q = bins.mean(model.critic_logits(z, action, task)).unsqueeze(-1)
    check(q, arrays, "out_q_values_all")
    q_target = bins.mean(ensemble_forward(checkpoint.target.stacked, joint)).unsqueeze(-1)
    for name, values in (("q", q), ("qtarget", q_target)):
        check(values[arrays[f"rng_qidx_{name}_min"]].amin(0), arrays, f"out_{name}_min")
        check(values[arrays[f"rng_qidx_{name}_avg"]].mean(0), arrays, f"out_{name}_avg")
    if "out_termination_logit" in arrays:
        logit = model.termination_logits(z).unsqueeze(-1)
        check(logit, arrays, "out_termination_logit")
        check(logit.sigmoid(), arrays, "out_termination_prob")
    if "out_task_emb_after" in arrays:
        assert model.task_emb is not None
        check(model.task_emb, arrays, "out_task_emb_after")


@torch.no_grad()
@pytest.mark.parametrize(
    "file",
    ["ckpt_oldformat_single.pt", "ckpt_prerelease_single_synthetic.pt", "ckpt_oldformat_mt30.pt"],
)
def test_older_layouts_give_the_outputs_of_the_code_that_wrote_them(file: str) -> None:
    kind = "mt30" if "mt30" in file else "single"
    arrays = golden(f"ckpt_oldformat_{kind}_forward.npz")
    dims = [int(d) for d in arrays["action_dims"]] if "action_dims" in arrays else None
    check_networks(official_file(file, action_dims=dims), arrays)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_of_the_present_layout_equals_its_arrays(variant: str) -> None:
    from_file = official_file(f"model_{variant}.pt")
    from_arrays = model_of(variant)
    for part in ("model", "target"):
        got = getattr(from_file, part).state_dict()
        want = getattr(from_arrays, part).state_dict()
        assert got.keys() == want.keys()
        for name in want:
            assert torch.equal(got[name], want[name]), name


@torch.no_grad()
def test_pixel_encoder_with_shift_agrees_with_the_authors_code() -> None:
    arrays = golden("pixel_encoder.npz")
    images = tensor(arrays["in_img"])
    shift = tensor(arrays["rng_shift_xy"]).reshape(-1, 2).long()
    channels = arrays["param/2.weight"].shape[0]
    latent = arrays["out_z"].shape[1]
    spec = ArraySpec(tuple(images.shape[1:]), "uint8")
    encoder = Encoder(
        Architecture(obs={"obs": spec}, action_dim=1, latent_dim=latent, num_channels=channels)
    )
    names = {
        f"images.0.convs.{i // 2 - 1}.{field}": f"param/{i}.{field}"
        for i in (2, 4, 6, 8)
        for field in ("weight", "bias")
    }
    encoder.load_state_dict({ours: tensor(arrays[theirs]) for ours, theirs in names.items()})
    shifted = shift_crop(images, shift)[0, :3].float()
    assert_agrees(shifted, arrays["out_aug_img0_ch0to2"], tolerance=FORWARD, name="shifted image")
    check(encoder({"obs": images}, shift=shift.unsqueeze(1)), arrays, "out_z")
