"""Complete updates against the authors' code: losses, gradients, norms, and every parameter
afterwards.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden_support import assert_agrees
from tests.worldloom.algorithms.tdmpc2.golden_table import (
    DISCOUNT,
    ENCODER_LR_SCALE,
    FORWARD,
    GRAD_CLIP,
    GRADIENT,
    GRADIENT_FLOOR,
    LEARNING_RATE,
    PARAMETER_FLOOR,
    RHO,
    TAU,
    VANISHING_GRADIENT,
    golden,
    model_of,
    new_name,
    tensor,
)
from worldloom.algorithms.tdmpc2.draws import UpdateDraws
from worldloom.algorithms.tdmpc2.losses import (
    LossSettings,
    UpdateBatch,
    model_loss,
    policy_loss,
    td_target,
)
from worldloom.algorithms.tdmpc2.update import OptimizerSettings, Updater

pytestmark = pytest.mark.golden

Arrays = dict[str, np.ndarray]


def batch_of(arrays: Arrays) -> UpdateBatch:
    task = tensor(arrays["in_task"]).long() if "in_task" in arrays else None
    reward, terminated = (tensor(arrays[key]).squeeze(-1) for key in ("in_reward", "in_terminated"))
    return UpdateBatch(
        {"obs": tensor(arrays["in_obs"])}, tensor(arrays["in_action"]), reward, terminated, task
    )


def draws_of(arrays: Arrays) -> UpdateDraws:
    pairs = {name: tensor(arrays[f"rng_qidx_{name}"]).long() for name in ("td", "pi")}
    return UpdateDraws(
        tensor(arrays["rng_eps_td"]), pairs["td"], tensor(arrays["rng_eps_pi"]), pairs["pi"]
    )


def make_updater(variant: str) -> Updater:
    kind = variant.partition("_")[0]
    checkpoint = model_of(kind)
    discount = tensor(golden("mt_meta.npz")["discount"]).float() if kind == "mt" else DISCOUNT
    optimizers = OptimizerSettings(
        learning_rate=LEARNING_RATE,
        encoder_lr_scale=ENCODER_LR_SCALE,
        grad_clip=GRAD_CLIP[variant],
        tau=TAU,
        leaks_task_gradient=True,
    )
    return Updater(
        checkpoint.model, checkpoint.target, LossSettings(discount=discount, rho=RHO), optimizers
    )


def check_intermediates(
    updater: Updater, batch: UpdateBatch, draws: UpdateDraws, arrays: Arrays
) -> None:
    model = updater.model
    target = updater.target
    next_z, td = td_target(model, target, batch, draws, updater.losses)
    z = model_loss(model, target, batch, draws, updater.losses).z.detach()
    found = {"mid_next_z": next_z, "mid_td_targets": td.unsqueeze(-1), "mid_zs": z}
    with torch.no_grad():
        task = model.embed(batch.task)
        found["mid_reward_logits"] = model.reward_head(model.joint(z[:-1], batch.action, task))
        joint = model.joint(z[:-1], batch.action, task).flatten(0, 1)
        found["mid_q_logits"] = model.critics(joint).view(arrays["mid_q_logits"].shape)
        if model.termination is not None:
            found["mid_termination_logits"] = model.termination_logits(z[1:]).unsqueeze(-1)
    for name, value in found.items():
        assert_agrees(value, arrays[name], tolerance=FORWARD, name=name)


def check_gradients(
    total: Tensor, named: dict[str, Tensor], arrays: Arrays, group: str, extra: Tensor | None = None
) -> None:
    gradients = dict(
        zip(named, torch.autograd.grad(total, list(named.values()), retain_graph=True), strict=True)
    )
    if extra is not None:
        gradients["task_emb"] = gradients["task_emb"] + extra
    wanted = {
        new_name(k.removeprefix(group + "/")): v
        for k, v in arrays.items()
        if k.startswith(group + "/")
    }
    assert wanted.keys() == gradients.keys()
    for name, want in wanted.items():
        assert_agrees(
            gradients[name], want, tolerance=GRADIENT, floor=GRADIENT_FLOOR, name=f"{group}/{name}"
        )


def check_parameters(updater: Updater, arrays: Arrays) -> None:
    got = dict(updater.model.state_dict()) | {
        f"target.{k}": v for k, v in updater.target.state_dict().items()
    }
    for key, want in arrays.items():
        name = new_name(key.removeprefix("after/"))
        if not key.startswith("after/") or name.startswith("log_std_"):
            continue
        gradient = arrays.get(
            key.replace("after/", "grad_model/"), arrays.get(key.replace("after/", "grad_pi/"))
        )
        bound = np.full(want.shape, PARAMETER_FLOOR)
        if gradient is not None:
            bound[np.abs(gradient) < VANISHING_GRADIENT] = 2 * LEARNING_RATE
        assert np.all(np.abs(got[name].numpy() - want) <= bound), key


@pytest.mark.parametrize("variant", list(GRAD_CLIP))
def test_consecutive_updates_agree_with_the_authors_code(variant: str) -> None:
    arrays = golden(f"update_{variant}.npz")
    updater = make_updater(variant)
    for number in sorted({key.partition("/")[0] for key in arrays}):
        own = {
            key.partition("/")[2]: value
            for key, value in arrays.items()
            if key.startswith(number + "/")
        }
        if "in_obs" not in own:  # this variant reuses the inputs of update_single
            own = {
                k[3:]: v
                for k, v in golden("update_single.npz").items()
                if k.startswith(("u1/in_", "u1/rng_"))
            } | own
        batch = batch_of(own)
        draws = draws_of(own)
        if "mid_zs" in own:
            check_intermediates(updater, batch, draws, own)
        assert_agrees(
            updater.scale.reshape(1), own["scale_before"], tolerance=FORWARD, name="scale_before"
        )
        if any(key.startswith("grad_model/") for key in own):
            loss = model_loss(updater.model, updater.target, batch, draws, updater.losses)
            check_gradients(loss.total, updater.model_parameters, own, "grad_model", updater.leaked)

        z, metrics, bad, _ = updater.step_model(batch, draws)
        if any(key.startswith("grad_pi/") for key in own):
            policy = policy_loss(
                updater.model, z, updater.scale, batch.task, draws, updater.losses, TAU
            )
            check_gradients(policy.total, updater.policy_parameters, own, "grad_pi")
        policy_metrics, bad = updater.step_policy(z, batch.task, draws, bad)
        updater.move_targets(bad)

        metrics |= policy_metrics
        if updater.model.termination is None:
            metrics["termination_loss"] = torch.zeros(())  # the authors report a constant zero
        assert float(bad) == 0.0
        for key in (key for key in own if key.startswith("info_")):
            assert_agrees(
                metrics[key.removeprefix("info_")], own[key], tolerance=GRADIENT, name=key
            )
        assert_agrees(
            metrics["grad_norm"], own["grad_norm_model"], tolerance=GRADIENT, name="grad_norm"
        )
        assert_agrees(
            metrics["pi_grad_norm"], own["grad_norm_pi"], tolerance=GRADIENT, name="pi_grad_norm"
        )
        assert_agrees(
            updater.scale.reshape(1), own["scale_after"], tolerance=FORWARD, name="scale_after"
        )
        if "leaked_task_emb_grad" in own:
            assert updater.leaked is not None
            want = own["leaked_task_emb_grad"]
            assert_agrees(
                updater.leaked, want, tolerance=GRADIENT, floor=GRADIENT_FLOOR, name="leak"
            )
        check_parameters(updater, own)
