"""Every random number of TD-MPC2, drawn ahead, so that planning and losses are pure functions of
their draws.

Shape legend: N envs, H horizon, P policy sequences, S sequences, K elites, I iterations, A action,
B batch, Q critics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from worldloom.nn.shift_crop import SHIFT_PAD

__all__ = ["PlanDraws", "PlanShape", "UpdateDraws", "draw_pairs", "dropout_multiplier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanShape:
    """Sizes of one plan's draws."""

    horizon: int
    policy_samples: int
    samples: int
    elites: int
    iterations: int
    action_dim: int
    num_q: int
    images: int = 0


@dataclass(frozen=True, slots=True)
class PlanDraws:
    """The draws of N plans.

    Attributes:
        policy_noise: [N, H, P, A] standard normal, actions of the policy sequences.
        sample_noise: [N, I, H, S-P, A] standard normal, sampled sequences.
        terminal_noise: [N, I, S, A] standard normal, action of the policy after each sequence.
        pairs: [N, I, 2] two different critics per plan and iteration.
        exponential: [N, K] Exp(1), choice of the elite that acts.
        action_noise: [N, A] standard normal, exploration.
        shift: [N, images, 2] integers in 0..6, or None without images.
    """

    policy_noise: Tensor
    sample_noise: Tensor
    terminal_noise: Tensor
    pairs: Tensor
    exponential: Tensor
    action_noise: Tensor
    shift: Tensor | None = None

    @classmethod
    def draw(cls, num_envs: int, shape: PlanShape, generator: torch.Generator) -> PlanDraws:
        """Draw for ``num_envs`` plans on the generator's device."""

        def normal(*size: int) -> Tensor:
            """Standard normal numbers, a block per env."""
            return torch.randn(num_envs, *size, generator=generator, device=generator.device)

        s = shape
        return cls(
            normal(s.horizon, s.policy_samples, s.action_dim),
            normal(s.iterations, s.horizon, s.samples - s.policy_samples, s.action_dim),
            normal(s.iterations, s.samples, s.action_dim),
            draw_pairs((num_envs, s.iterations), s.num_q, generator),
            normal(s.elites).exponential_(generator=generator),
            normal(s.action_dim),
            _shifts((num_envs, s.images), generator) if s.images else None,
        )

    @classmethod
    def draw_each(cls, shape: PlanShape, generators: Sequence[torch.Generator]) -> PlanDraws:
        """One plan per generator: what env k gets does not depend on the other envs."""
        singles = [cls.draw(1, shape, generator) for generator in generators]
        columns = ([getattr(single, f.name) for single in singles] for f in fields(cls))
        return cls(*(None if values[0] is None else torch.cat(values) for values in columns))  # type: ignore[arg-type]

    @classmethod
    def from_named(cls, tensors: Mapping[str, Tensor], prefix: str) -> PlanDraws:
        """Inverse of :meth:`named`; other names are ignored."""
        return cls(*(tensors.get(prefix + f.name) for f in fields(cls)))  # type: ignore[arg-type]

    def named(self, prefix: str) -> dict[str, Tensor]:
        """The draws there are, by name."""
        named = {prefix + f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def rows(self, start: int, stop: int) -> PlanDraws:
        """The draws of plans ``start..stop``."""
        parts = (getattr(self, f.name) for f in fields(self))
        return PlanDraws(*(None if part is None else part[start:stop] for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class UpdateDraws:
    """The draws of one update.

    Attributes:
        target_noise: [H, B, A] standard normal, actions of the temporal-difference target.
        target_pair: [2] target critics whose minimum is the target.
        policy_noise: [H+1, B, A] standard normal, actions of the policy loss.
        policy_pair: [2] critics whose mean the policy climbs.
        value_dropout: [Q, H*B, M] multiplier in the value loss, or None without dropout.
        policy_dropout: [2, (H+1)*B, M] multiplier in the policy loss, or None.
        shift: [H+1, B, images, 2] integers in 0..6, or None without images.
    """

    target_noise: Tensor
    target_pair: Tensor
    policy_noise: Tensor
    policy_pair: Tensor
    value_dropout: Tensor | None = None
    policy_dropout: Tensor | None = None
    shift: Tensor | None = None

    @classmethod
    def draw(
        cls,
        horizon: int,
        batch: int,
        shape: PlanShape,
        *,
        mlp_dim: int,
        dropout: float,
        generator: torch.Generator,
    ) -> UpdateDraws:
        """Draw for a batch of ``batch`` windows of ``horizon`` decisions on the
        generator's device.
        """

        def normal(steps: int) -> Tensor:
            """Standard normal numbers for the actions of this many steps."""
            return torch.randn(
                steps, batch, shape.action_dim, generator=generator, device=generator.device
            )

        def mask(members: int, steps: int) -> Tensor | None:
            """Dropout multipliers of this many critics; None without dropout."""
            return (
                dropout_multiplier((members, steps * batch, mlp_dim), dropout, generator)
                if dropout
                else None
            )

        return cls(
            normal(horizon),
            draw_pairs((), shape.num_q, generator),
            normal(horizon + 1),
            draw_pairs((), shape.num_q, generator),
            mask(shape.num_q, horizon),
            mask(2, horizon + 1),
            _shifts((horizon + 1, batch, shape.images), generator) if shape.images else None,
        )

    def rows(self, start: int, stop: int) -> UpdateDraws:
        """The draws of windows ``start..stop`` of the batch."""
        batch = self.target_noise.shape[1]

        def kept(mask: Tensor | None) -> Tensor | None:
            """The multipliers of the wanted windows."""
            return (
                None
                if mask is None
                else mask.view(len(mask), -1, batch, mask.shape[-1])[:, :, start:stop].flatten(1, 2)
            )

        return UpdateDraws(
            self.target_noise[:, start:stop],
            self.target_pair,
            self.policy_noise[:, start:stop],
            self.policy_pair,
            kept(self.value_dropout),
            kept(self.policy_dropout),
            None if self.shift is None else self.shift[:, start:stop],
        )


def draw_pairs(lead: tuple[int, ...], num_q: int, generator: torch.Generator) -> Tensor:
    """[*lead, 2] ordered pairs of different indices below ``num_q``, uniform: the first two of a
    random permutation.
    """
    keys = torch.rand(*lead, num_q, generator=generator, device=generator.device)
    return keys.argsort(-1)[..., :2]


def dropout_multiplier(shape: tuple[int, ...], rate: float, generator: torch.Generator) -> Tensor:
    """0 with probability ``rate``, else 1 / (1 - rate).

    Draws the gaps between dropped entries, which are geometric, instead of one number per entry: at
    a rate of 1 % that is a hundredth of the draws. The number of gaps is fixed (mean + 8 standard
    deviations), so no size depends on a draw.
    """
    size = math.prod(shape)
    count = math.ceil(size * rate + 8 * math.sqrt(size * rate) + 8)
    uniform = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    gaps = torch.log1p(-uniform).div_(math.log1p(-rate)).floor_().add_(1).long()
    position = gaps.cumsum(0).sub_(1).clamp_max_(size)  # of integers it is deterministic anywhere
    keep = torch.full((size + 1,), 1 / (1 - rate), device=generator.device)
    return keep.index_fill_(0, position, 0.0)[:size].view(shape)


def _shifts(lead: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(
        0, 2 * SHIFT_PAD + 1, (*lead, 2), generator=generator, device=generator.device
    )
