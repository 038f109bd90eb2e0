"""One update of everything: model, critics, policy, targets and running scale, without a single
wait for the device.

A step whose loss or gradient is not finite changes nothing: the optimizers get ``found_inf``, which
their fused kernels read on the device, and the targets stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldloom.algorithms.tdmpc2.draws import UpdateDraws
from worldloom.algorithms.tdmpc2.losses import LossSettings, UpdateBatch, model_loss, policy_loss
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks
from worldloom.core.process_group import SINGLE_PROCESS, ProcessGroup
from worldloom.nn.ensemble import EnsembleMLP
from worldloom.nn.optim import adam_state, load_adam_state
from worldloom.nn.precision import autocast
from worldloom.nn.snapshot import copy_into

__all__ = ["ModelStep", "OptimizerSettings", "Updater"]

POLICY_ADAM_EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """Step sizes and limits.

    Args:
        learning_rate: Step size of Adam.
        encoder_lr_scale: Factor on the encoder's step size.
        grad_clip: Largest global gradient norm, for the model and for the policy.
        tau: Speed of the target critics and of the running scale.
        leaks_task_gradient: Add the policy loss's gradient of the task embedding to the next model
            gradient, as the authors' present code does; the code that made their published results
            did not.
    """

    learning_rate: float = 3e-4
    encoder_lr_scale: float = 0.3
    grad_clip: float = 20.0
    tau: float = 0.01
    leaks_task_gradient: bool = False


class ModelStep(NamedTuple):
    """What a step of model and critics leaves: latents [H+1, B, L] of the rollout without gradient,
    metrics, 1.0 (0-d) if it was skipped, value loss [B] of each window.
    """

    z: Tensor
    metrics: dict[str, Tensor]
    bad: Tensor
    td_error: Tensor


class Updater:
    """Owns what training needs beside the model: optimizers, running scale, and the step itself.

    Args:
        model: Trained in place.
        target: Slow copy of the critics, moved in place.
        losses, optimizers: Hyper-parameters.
        precision: Of the forward passes; see :func:`worldloom.nn.precision.autocast`.
    """

    def __init__(
        self,
        model: TDMPC2Networks,
        target: EnsembleMLP,
        losses: LossSettings,
        optimizers: OptimizerSettings,
        *,
        precision: str = "float32",
    ) -> None:
        self.model = model
        self.target = target.requires_grad_(False)
        self.losses = losses
        self.settings = optimizers
        self.precision = precision
        named = dict(model.named_parameters())
        self.policy_parameters = {name: p for name, p in named.items() if name.startswith("pi.")}
        self.model_parameters = {
            name: p for name, p in named.items() if name not in self.policy_parameters
        }
        self.device = device = next(model.parameters()).device
        common: dict[str, Any] = {"fused": True, "capturable": device.type == "cuda"}
        encoder = [p for name, p in self.model_parameters.items() if name.startswith("encoder.")]
        others = [p for name, p in self.model_parameters.items() if not name.startswith("encoder.")]
        rate = optimizers.learning_rate
        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": rate * optimizers.encoder_lr_scale},
            {"params": others},
        ]
        self.model_optimizer = torch.optim.Adam(groups, lr=rate, **common)
        self.policy_optimizer = torch.optim.Adam(
            self.policy_parameters.values(), lr=rate, eps=POLICY_ADAM_EPS, **common
        )
        self.scale = torch.ones((), device=device)
        embedding = model.task_emb if optimizers.leaks_task_gradient else None
        self.leaked = (
            None if embedding is None else torch.zeros_like(embedding, requires_grad=False)
        )
        self.join(SINGLE_PROCESS)

    def join(self, ranks: ProcessGroup) -> None:
        """Average gradients over ``ranks`` and take the running scale from the values of all of
        them.
        """
        self._gather = ranks.gather
        self._average_model = ranks.averager(list(self.model_parameters.values()))
        self._average_policy = ranks.averager(list(self.policy_parameters.values()))

    def step(
        self, batch: UpdateBatch, draws: UpdateDraws
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """One update; returns metrics (0-d tensors), ``nonfinite`` (0-d, 1.0 when something was
        skipped), and the value loss [B] of each window.
        """
        model = self.step_model(batch, draws)
        policy_metrics, policy_bad = self.step_policy(
            model.z, batch.task, draws, model.bad, batch.action
        )
        self.move_targets(model.bad)
        return model.metrics | policy_metrics, policy_bad, model.td_error

    def step_model(self, batch: UpdateBatch, draws: UpdateDraws) -> ModelStep:
        """Step model and critics."""
        self._shorten(batch.task)
        with autocast(self.device, self.precision):
            loss = model_loss(self.model, self.target, batch, draws, self.losses)
        parameters = list(self.model_parameters.values())
        # as the fused optimizer reads them
        gradients = [g.contiguous() for g in torch.autograd.grad(loss.total, parameters)]
        total = loss.total.detach().clone()
        self._average_model(gradients, [total])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if (
            self.leaked is not None
            and self.model.task_emb is not None
            and self.model.task_emb.grad is not None
        ):
            self.model.task_emb.grad = self.model.task_emb.grad + self.leaked
        norm, bad = self._apply(self.model_optimizer, parameters, total.isfinite())
        return ModelStep(loss.z.detach(), loss.metrics | {"grad_norm": norm}, bad, loss.td_error)

    def step_policy(
        self,
        z: Tensor,
        task: Tensor | None,
        draws: UpdateDraws,
        model_bad: Tensor,
        action: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Step the policy prior on latents [H+1, B, L], and on the actions [H, B, A] that were
        recorded there; returns metrics and 1.0 if it was skipped (or the model was).
        """
        self._shorten(task)  # the optimizer has moved them
        with autocast(self.device, self.precision):
            loss = policy_loss(
                self.model,
                z,
                self.scale,
                task,
                draws,
                self.losses,
                self.settings.tau,
                self._gather,
                action=action,
            )
        parameters = list(self.policy_parameters.values())
        wanted = [*parameters]
        if self.leaked is not None and self.model.task_emb is not None:
            wanted.append(self.model.task_emb)
        gradients = [g.contiguous() for g in torch.autograd.grad(loss.total, wanted)]
        total = loss.total.detach().clone()
        self._average_policy(gradients[: len(parameters)], [total])
        for parameter, gradient in zip(parameters, gradients, strict=False):
            parameter.grad = gradient
        norm, bad = self._apply(
            self.policy_optimizer, parameters, total.isfinite() & (model_bad == 0)
        )
        if self.leaked is not None:
            self.leaked.copy_(torch.where(bad == 0, gradients[-1], 0.0))
        self.scale.copy_(torch.where(bad == 0, loss.scale, self.scale))
        return loss.metrics | {"pi_grad_norm": norm}, bad

    def _shorten(self, task: Tensor | None) -> None:
        """Shorten the embeddings of the joint batch's tasks, the same ones on all learner ranks."""
        if task is not None:
            self.model.shorten(self._gather(task))

    def _apply(
        self, optimizer: torch.optim.Adam, parameters: list[Any], is_good: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Clip and step; returns the norm before clipping and 1.0 if the step was skipped."""
        gradients = [p.grad for p in parameters]
        norm = torch.nn.utils.get_total_norm(gradients)
        bad = (~(norm.isfinite() & is_good)).float()
        torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.grad_clip, norm)
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm, bad

    @torch.no_grad()
    def move_targets(self, model_bad: Tensor) -> None:
        """Move the target critics, unless ``model_bad`` (0-d) is 1."""
        weight = self.settings.tau * (1 - model_bad)
        for slow, fast in zip(
            self.target.parameters(), self.model.critics.parameters(), strict=True
        ):
            slow.lerp_(fast, weight)

    def state_dict(self) -> dict[str, Any]:
        """Optimizer moments by parameter name, running scale, leaked gradient; tensors are
        copies.
        """
        state: dict[str, Any] = {
            "model_optimizer": adam_state(self.model_optimizer, self.model_parameters),
            "policy_optimizer": adam_state(self.policy_optimizer, self.policy_parameters),
            "scale": self.scale.clone(),
        }
        return state if self.leaked is None else state | {"leaked": self.leaked.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            CheckpointError: If a parameter's moments are missing or have another shape.
        """
        load_adam_state(self.model_optimizer, self.model_parameters, state["model_optimizer"])
        load_adam_state(self.policy_optimizer, self.policy_parameters, state["policy_optimizer"])
        copy_into("running scale", [self.scale], [state["scale"]])
        if self.leaked is not None:
            copy_into("leaked gradients", [self.leaked], [state["leaked"]])
