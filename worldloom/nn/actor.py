"""The policy head and what its outputs mean: softmax per discrete component, bounded normal per
continuous key.

An encoded action is the concatenation over keys (sorted) of one-hot codes and numbers, as the world
model reads it. No uniform mixture on discrete actions: the official code has none. Legend: A
encoded action width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from worldloom.nn.dense import Head
from worldloom.nn.distributions import (
    bounded_normal,
    categorical_entropy,
    normal_entropy,
    normal_log_prob,
    sample_classes,
)
from worldloom.nn.layout import ActionKey, ActionLayout, one_hot_groups

__all__ = ["Actor"]


class Actor(nn.Module):
    """Policy over every action key.

    Args:
        layout: Action keys.
        inputs: Width of the latent feature.
        units, layers: Of the MLP.
    """

    def __init__(self, layout: ActionLayout, inputs: int, units: int, layers: int) -> None:
        super().__init__()
        self.layout = layout
        outputs: dict[str, int] = {}
        for key in layout.keys:
            names = ("logits",) if key.classes else ("mean", "stddev")
            outputs |= {f"{key.name}/{name}": key.width for name in names}
        self.head = Head(inputs, units, layers, outputs, outscale=0.01)

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """[..., F] -> raw head outputs."""
        outputs: dict[str, Tensor] = self.head(feature)
        return outputs

    @property
    def draw_width(self) -> tuple[int, int]:
        """How many uniform and how many normal draws one action takes."""
        uniform = sum(len(key.classes) for key in self.layout.keys)
        return uniform, sum(key.width for key in self.layout.keys if not key.classes)

    def sample(
        self,
        out: Mapping[str, Tensor],
        uniform: Tensor,
        normal: Tensor,
        straight_through: float = 0.0,
    ) -> Tensor:
        """Encoded actions [..., A] from draws [..., number of uniforms] and [..., number of
        normals].

        With ``straight_through`` the codes of classes pass that share of their gradient on to the
        probabilities, as if they were these (DreamerV2, arXiv:2010.02193v4, Algorithm 1).
        """
        parts = []
        used_uniform = 0
        used_normal = 0
        for key in self.layout.keys:
            if key.classes:
                for group in torch.split(out[f"{key.name}/logits"], list(key.classes), -1):
                    probs = group.softmax(-1)
                    classes = sample_classes(probs, uniform[..., used_uniform])
                    code = one_hot_groups(classes.unsqueeze(-1), (group.shape[-1],))
                    if straight_through:
                        code = code + straight_through * (probs - probs.detach())
                    parts.append(code)
                    used_uniform += 1
            else:
                mean, std = self._normal(out, key)
                parts.append(
                    torch.addcmul(mean, std, normal[..., used_normal : used_normal + key.width])
                )
                used_normal += key.width
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def mode(self, out: Mapping[str, Tensor]) -> Tensor:
        """The most likely encoded action. [..., A]."""
        parts = []
        for key in self.layout.keys:
            if key.classes:
                for group in torch.split(out[f"{key.name}/logits"], list(key.classes), -1):
                    best = group.argmax(-1, keepdim=True)
                    parts.append(one_hot_groups(best, (group.shape[-1],)))
            else:
                parts.append(self._normal(out, key)[0])
        return torch.cat(parts, -1)

    def log_prob(
        self, out: Mapping[str, Tensor], action: Tensor, *, is_discrete_only: bool = False
    ) -> Tensor:
        """Log-probability (density) of encoded actions, summed over keys, or over those keys that
        choose among classes (0 where there is none). [..., A] -> [...].
        """
        total: list[Tensor] = [torch.zeros_like(action[..., 0])] if is_discrete_only else []
        for key, part in zip(
            self.layout.keys,
            torch.split(action, [k.width for k in self.layout.keys], -1),
            strict=True,
        ):
            if key.classes:
                total.append((self._log_probs(out, key) * part).sum(-1))
            elif not is_discrete_only:
                total.append(normal_log_prob(*self._normal(out, key), part))
        return torch.stack(total).sum(0)

    def entropies(self, out: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Entropy per key, summed over components. name -> [...]."""
        result = {}
        for key in self.layout.keys:
            if key.classes:
                groups = torch.split(out[f"{key.name}/logits"], list(key.classes), -1)
                result[key.name] = torch.stack(
                    [categorical_entropy(g.log_softmax(-1)) for g in groups]
                ).sum(0)
            else:
                result[key.name] = normal_entropy(self._normal(out, key)[1])
        return result

    def randomness(self, name: str, entropy: Tensor) -> Tensor:
        """Entropy as a fraction of its range: 0 deterministic, 1 uniform (or widest)."""
        key = next(k for k in self.layout.keys if k.name == name)
        if key.classes:
            low = 0.0
            high = float(np.log(key.classes).sum())
        else:
            low, high = (
                key.width * float(0.5 * np.log(2 * np.pi * std**2) + 0.5) for std in (0.1, 1.0)
            )
        return (entropy - low) / (high - low)

    def to_env(self, host: np.ndarray) -> dict[str, np.ndarray]:
        """Encoded actions [N, A] float32 as the env takes them: ints of the space's dtype, floats
        clipped to [-1, 1].

        Clipping changes nothing for the world model, which limits actions to [-1, 1] itself.
        """
        result = {}
        start = 0
        for key in self.layout.keys:
            part = host[:, start : start + key.width]
            start += key.width
            if key.classes:
                bounds = np.cumsum(key.classes)[:-1]
                part = np.stack([codes.argmax(-1) for codes in np.split(part, bounds, -1)], -1)
            else:
                part = part.clip(-1.0, 1.0)
            result[key.name] = part.astype(key.dtype).reshape(len(host), *key.shape)
        return result

    def _normal(self, out: Mapping[str, Tensor], key: ActionKey) -> tuple[Tensor, Tensor]:
        return bounded_normal(out[f"{key.name}/mean"], out[f"{key.name}/stddev"])

    def _log_probs(self, out: Mapping[str, Tensor], key: ActionKey) -> Tensor:
        groups = torch.split(out[f"{key.name}/logits"], list(key.classes), -1)
        return torch.cat([group.log_softmax(-1) for group in groups], -1)
