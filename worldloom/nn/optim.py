"""Optimizers that skip a step that is not finite by arithmetic: DreamerV3's (adaptive gradient
clipping, RMS scaling, momentum of the scaled gradient: LaProp, warm-up), and Adam with one limit
for the whole gradient.

No host synchronisation: step count and learning rate are device tensors, so a step can be captured
in a CUDA graph, and a non-finite step is skipped by arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldloom.core.exceptions import CheckpointError
from worldloom.nn.kernels import has_kernels, kernel
from worldloom.nn.snapshot import copy_into

__all__ = ["ClippedAdam", "LaProp", "LaPropConfig", "adam_state", "load_adam_state"]

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of a parameter."""
PROGRAM = 4096
"""Elements of one program of the optimizer's kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaPropConfig:
    """Settings of :class:`LaProp`; the defaults are DreamerV3's."""

    lr: float = 4e-5
    """Learning rate after the warm-up."""
    warmup: int = 1000
    """Updates over which the rate rises linearly from 0; the first update is then a no-op."""
    agc: float = 0.3
    """Largest gradient norm as a fraction of the parameter norm, per tensor; 0 turns
    clipping off.
    """
    pmin: float = 1e-3
    """Smallest parameter norm that clipping assumes."""
    beta1: float = 0.9
    """Decay of the momentum."""
    beta2: float = 0.999
    """Decay of the mean square."""
    eps: float = 1e-20
    """Added to the root mean square."""
    weight_decay: float = 0.0
    """Decoupled decay, applied to kernels (tensors with at least two axes) only."""


class _Joint(NamedTuple):
    """Moments of all tensors end to end, and which program of a kernel has which of their
    elements; see ``worldloom.nn.kernels.definitions.laprop``.
    """

    shapes: list[torch.Size]
    mean_square: Tensor
    momentum: Tensor
    part: Tensor
    start: Tensor
    stop: Tensor

    @classmethod
    def of(cls, params: Sequence[Tensor]) -> _Joint:
        """Of zeros."""
        rows = []
        begin = 0
        for part, p in enumerate(params):
            end = begin + p.numel()
            rows += [(part, i, min(i + PROGRAM, end)) for i in range(begin, end, PROGRAM)]
            begin = end
        device = params[0].device
        moments = (torch.zeros(begin, device=device) for _ in range(2))
        table = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
        return cls([p.shape for p in params], *moments, *table)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of ``flat``, one per tensor."""
        parts = torch.split(flat, [shape.numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class LaProp:
    """Optimizes a fixed list of tensors in place, one whole-tensor step each.

    t = 1, 2, ...:
        g <- g / max(1, |g| / (agc max(pmin, |p|)))          Frobenius norms of the whole tensor
        v <- beta2 v + (1 - beta2) g^2;   u = g / (sqrt(v / (1 - beta2^t)) + eps)
        m <- beta1 m + (1 - beta1) u
        p <- p - lr min(1, (t - 1) / warmup) (m / (1 - beta1^t) + weight_decay p)

    >>> p = torch.tensor([1.0, -1.0])
    >>> LaProp([p], LaPropConfig(lr=0.1, warmup=0)).step([torch.tensor([0.5, -0.5])])
    >>> p
    tensor([ 0.9000, -0.9000])
    """

    def __init__(self, params: Sequence[Tensor], config: LaPropConfig) -> None:
        self.params = [p.detach() for p in params]
        self.config = config
        device = self.params[0].device
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self._joint = _Joint.of(self.params) if has_kernels(device) else None
        if self._joint is not None:
            self.mean_square = self._joint.split(self._joint.mean_square)
            self.momentum = self._joint.split(self._joint.momentum)
        else:
            self.mean_square = [torch.zeros_like(p) for p in self.params]
            self.momentum = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], accept: Tensor | None = None) -> None:
        """Apply one update.

        Args:
            grads: One per parameter; consumed (overwritten).
            accept: 0-d bool; when False, parameters and state stay exactly as they are, even if
                gradients are NaN.
        """
        c = self.config
        grads = list(grads)
        accept = torch.ones_like(self.count, dtype=torch.bool) if accept is None else accept
        on = accept.to(torch.float32)
        t = self.count + 1
        square_fix = (1 - c.beta2**t).rsqrt().float()
        mean_fix = (1 - c.beta1**t).reciprocal().float()
        if self._joint is None:
            step = self._listed_step(grads, on, square_fix, mean_fix)
        else:
            step = self._joint_step(self._joint, grads, on, square_fix, mean_fix)
        if c.weight_decay:
            kernels = [i for i, p in enumerate(self.params) if p.ndim > 1]
            torch._foreach_add_(
                [step[i] for i in kernels], [self.params[i] for i in kernels], alpha=c.weight_decay
            )
        warm = (
            torch.clamp(self.count / c.warmup, max=1.0) if c.warmup else torch.ones_like(self.count)
        )
        torch._foreach_mul_(step, (-c.lr * warm).float() * on)
        torch._foreach_add_(self.params, step)
        self.count.add_(on)

    def _listed_step(
        self, grads: list[Tensor], on: Tensor, square_fix: Tensor, mean_fix: Tensor
    ) -> list[Tensor]:
        """Both moments, tensor by tensor; returns the corrected momentum."""
        c = self.config
        if c.agc:
            torch._foreach_div_(grads, self._ratios(grads))
        refuse = on == 0
        for g in grads:
            g.masked_fill_(refuse, 0.0)
        squares = torch._foreach_mul(grads, grads)
        torch._foreach_lerp_(self.mean_square, squares, [on * (1 - c.beta2)] * len(grads))
        torch._foreach_copy_(squares, self.mean_square)
        torch._foreach_sqrt_(squares)
        torch._foreach_mul_(squares, square_fix)
        torch._foreach_add_(squares, c.eps)
        torch._foreach_div_(grads, squares)
        torch._foreach_lerp_(self.momentum, grads, [on * (1 - c.beta1)] * len(grads))
        return list(torch._foreach_mul(self.momentum, mean_fix))

    def _joint_step(
        self,
        joint: _Joint,
        grads: list[Tensor],
        on: Tensor,
        square_fix: Tensor,
        mean_fix: Tensor,
    ) -> list[Tensor]:
        """The same of all tensors in one kernel."""
        c = self.config
        flat = torch.cat([g.reshape(-1) for g in grads])
        ratios = torch.stack(self._ratios(grads)) if c.agc else on.new_ones(len(grads))
        rates = torch.stack([on, on * (1 - c.beta2), on * (1 - c.beta1), square_fix, mean_fix])
        moments = (joint.mean_square, joint.momentum)
        table = (joint.part, joint.start, joint.stop)
        kernel("laprop")(flat, *moments, ratios, *table, rates, c.eps, PROGRAM)
        return joint.split(flat)

    def _ratios(self, grads: list[Tensor]) -> list[Tensor]:
        """What clipping divides each gradient by, at least 1."""
        limits = torch._foreach_norm(self.params)
        torch._foreach_clamp_min_(limits, self.config.pmin)
        torch._foreach_mul_(limits, self.config.agc)
        ratios = torch._foreach_norm(grads)
        torch._foreach_div_(ratios, limits)
        torch._foreach_clamp_min_(ratios, 1.0)
        return list(ratios)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the step count and both moments, in parameter order."""
        return {
            "count": self.count.clone(),
            "mean_square": [t.clone() for t in self.mean_square],
            "momentum": [t.clone() for t in self.momentum],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; shapes must fit."""
        copy_into("optimizer count", [self.count], [state["count"]])
        for name in ("mean_square", "momentum"):
            copy_into(f"optimizer {name}", getattr(self, name), state[name])


class ClippedAdam:
    """Adam on named parameters, whose gradient as a whole is clipped first.

    Args:
        named: Name -> parameter.
        lr, weight_decay, eps: As for ``torch.optim.Adam``; the decay is added to the gradient.
        grad_clip: Largest norm of the whole gradient.
    """

    def __init__(
        self,
        named: Mapping[str, Tensor],
        *,
        lr: float,
        grad_clip: float,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self.named = dict(named)
        self.grad_clip = grad_clip
        is_cuda = next(iter(self.named.values())).device.type == "cuda"
        self._adam = torch.optim.Adam(
            self.named.values(),
            lr=lr,
            eps=eps,
            weight_decay=weight_decay,
            fused=True,
            capturable=is_cuda,
        )

    def step(self, gradients: Sequence[Tensor], norm: Tensor, bad: Tensor) -> None:
        """One update, or none.

        Args:
            gradients: One per parameter, in order.
            norm: 0-d norm of all of them, see ``torch.nn.utils.get_total_norm``.
            bad: 0-d, 1.0 where nothing may change.
        """
        parameters = list(self.named.values())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.contiguous()
        torch.nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm)
        self._adam.found_inf = bad  # type: ignore[attr-defined]
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Copies of the moments, by name."""
        return adam_state(self._adam, self.named)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        load_adam_state(self._adam, self.named, state)


def adam_state(
    optimizer: torch.optim.Adam, named: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Copies of the moments of ``named`` parameters, by name; empty before the first step."""
    return {
        name: {key: value.detach().clone() for key, value in optimizer.state[p].items()}
        for name, p in named.items()
        if p in optimizer.state
    }


def load_adam_state(
    optimizer: torch.optim.Adam, named: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Inverse of :func:`adam_state`.

    Raises:
        CheckpointError: If a parameter's moments are missing or have another shape.
    """
    if state and state.keys() != named.keys():
        first = sorted(state.keys() ^ named.keys())[0]
        raise CheckpointError(
            f"optimizer: parameter {first!r} is on one side only; this state belongs "
            "to another architecture"
        )
    for name, moments in state.items():
        parameter = named[name]
        for key in MOMENTS:
            expected = () if key == "step" else tuple(parameter.shape)
            value = moments[key]
            if tuple(value.shape) != expected:
                raise CheckpointError(
                    f"optimizer: {key} of parameter {name!r} has shape {tuple(value.shape)} in the "
                    f"state, {expected} here"
                )
    optimizer.state.clear()
    for name, moments in state.items():
        parameter = named[name]
        optimizer.state[parameter] = {
            key: value.to(parameter.device, copy=True) for key, value in moments.items()
        }
