"""The networks of TD-MPC2 in one module; no optimizer, no target networks, no planning.

Parameter names are the authors' without the leading underscore (``dynamics.0.ln.weight``), critics
stacked on axis 0. Shape legend: [...] any leading axes, L latent, A action, D task embedding, Q
critics, K bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.algorithms.tdmpc2.config import Architecture
from worldloom.algorithms.tdmpc2.encoder import Encoder
from worldloom.nn.ensemble import EnsembleMLP, ensemble_forward
from worldloom.nn.normed import MLP
from worldloom.nn.symlog_bins import SymlogBins

__all__ = ["PolicySample", "TDMPC2Networks", "make_critics", "shortened"]

LOG_SQRT_2PI = 0.9189385175704956
SQUASH_EPS = 1e-6
NORM_EPS = 1e-7
NORM_SLACK = 1e-6
"""An embedding that was shortened may be this much longer than 1 by rounding."""


class PolicySample(NamedTuple):
    """One draw of the squashed Gaussian policy.

    Attributes:
        action: [..., A] in (-1, 1).
        mean: [..., A] of the Gaussian, before squashing.
        log_std: [..., A] of the Gaussian.
        noise: [..., A] the standard normal draw.
    """

    action: Tensor
    mean: Tensor
    log_std: Tensor
    noise: Tensor

    def gaussian_log_prob(self) -> Tensor:
        """[..., 1] log density of the draw before squashing."""
        return (-0.5 * self.noise.square() - self.log_std - LOG_SQRT_2PI).sum(-1, keepdim=True)

    def log_prob(self) -> Tensor:
        """[..., 1] log density of the squashed action."""
        squash = torch.log(F.relu(1 - self.action.square()) + SQUASH_EPS)
        return self.gaussian_log_prob() - squash.sum(-1, keepdim=True)


def make_critics(architecture: Architecture) -> EnsembleMLP:
    """An ensemble of the size of the model's critics (for the critics and for their target
    copy).
    """
    a = architecture
    bins = SymlogBins(count=a.num_bins, low=a.bin_low, high=a.bin_high)
    return EnsembleMLP(a.num_q, a.joint_dim, (a.mlp_dim, a.mlp_dim), bins.num_logits)


def shortened(table: Tensor) -> Tensor:
    """Embeddings [T, D], at most of length 1: as the networks read them."""
    norm = table.norm(dim=1, keepdim=True)
    return torch.where(norm > 1 + NORM_SLACK, table / (norm + NORM_EPS), table)


class TDMPC2Networks(nn.Module):
    """Everything that acting reads: encoder, dynamics, reward, termination, policy prior, critics,
    task embedding.

    Args:
        architecture: Sizes.

    Parameters are uninitialised until :meth:`reset_parameters`, so that a model can be built on the
    meta device.

    Example:
        >>> from worldloom.core.specs import ArraySpec
        >>> obs = {"obs": ArraySpec((3,))}
        >>> sizes = Architecture(obs, action_dim=1, latent_dim=16, mlp_dim=16, encoder_dim=16)
        >>> model = TDMPC2Networks(sizes).reset_parameters(torch.Generator().manual_seed(0))
        >>> z = model.encode({"obs": torch.zeros(2, 3)})
        >>> model.next_latent(z, torch.zeros(2, 1)).shape, model.reward(z, torch.zeros(2, 1)).shape
        (torch.Size([2, 16]), torch.Size([2]))
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.bins = SymlogBins(count=a.num_bins, low=a.bin_low, high=a.bin_high)
        hidden = (a.mlp_dim, a.mlp_dim)
        state = a.latent_dim + a.task_dim
        self.encoder = Encoder(a)
        self.dynamics = MLP(a.joint_dim, hidden, a.latent_dim, simnorm_dim=a.simnorm_dim)
        self.reward_head = MLP(a.joint_dim, hidden, self.bins.num_logits, is_zero=True)
        self.termination = MLP(a.latent_dim, hidden, 1) if a.is_episodic else None
        self.pi = MLP(state, hidden, 2 * a.action_dim)
        self.critics = make_critics(a)
        self.task_emb = nn.Parameter(torch.empty(a.num_tasks, a.task_dim)) if a.task_dim else None
        mask = torch.ones(a.num_tasks, a.action_dim)
        self.register_buffer("action_masks", mask if a.task_dim else None)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> TDMPC2Networks:
        """Draw all parameters as the authors do: weights N(0, 0.02^2), reward and critic outputs
        zero; returns self.
        """
        self.encoder.reset_parameters(generator)
        for network in (self.dynamics, self.reward_head, self.termination, self.pi):
            for layer in network or ():
                layer.reset_parameters(generator)  # type: ignore[operator]
        self.critics.reset_parameters(generator)
        if self.task_emb is not None:
            self.task_emb.uniform_(-0.02, 0.02, generator=generator)
        return self

    def embed(self, task: Tensor | None) -> Tensor | None:
        """Embedding [..., D] of integer tasks [...], which are shortened first."""
        if task is None or self.task_emb is None:
            return None
        self.shorten(task)
        return F.embedding(task, self.task_emb)

    def embed_copy(self, task: Tensor | None) -> Tensor | None:
        """As :meth:`embed`, and the weights stay as they are: for who only looks at them while they
        train.
        """
        if task is None or self.task_emb is None:
            return None
        return F.embedding(task, shortened(self.task_emb))

    @torch.no_grad()
    def shorten(self, task: Tensor | None) -> None:
        """Shorten the embeddings of integer tasks [...] to length 1 in place where they are longer,
        as the authors do whenever they are read (``max_norm`` of torch, which sorts on the host).

        A shortened one stays as it is: several learner ranks that read other tasks keep one table.
        """
        table = self.task_emb
        if task is None or table is None:
            return
        used = torch.zeros(len(table), dtype=torch.bool, device=table.device)
        used.index_fill_(0, task.reshape(-1), True)
        table.copy_(torch.where(used[:, None], shortened(table), table))

    def mask(self, task: Tensor | None) -> Tensor | None:
        """0/1 mask [..., A] of the action components that the tasks use."""
        if task is None or not isinstance(self.action_masks, Tensor):
            return None
        return self.action_masks[task]

    def encode(
        self, obs: Mapping[str, Tensor], task: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """[..., L] latents; ``task`` is an embedding, ``shift`` the image shifts [...,
        images, 2].
        """
        result: Tensor = self.encoder(obs, task, shift)
        return result

    def joint(self, z: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """Latent, task embedding and action side by side, in the order of the authors'
        checkpoints.
        """
        parts = (
            [z, action] if task is None else [z, task.expand(*z.shape[:-1], task.shape[-1]), action]
        )
        return torch.cat(parts, -1)

    def next_latent(self, z: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """[..., L] latent after ``action``."""
        result: Tensor = self.dynamics(self.joint(z, action, task))
        return result

    def reward(self, z: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """[...] reward of ``action``, in reward units."""
        return self.bins.mean(self.reward_head(self.joint(z, action, task)))

    def termination_logits(self, z: Tensor) -> Tensor:
        """[...] logit that the episode has terminated on arrival in ``z``."""
        assert self.termination is not None  # callers ask is_episodic first
        result: Tensor = self.termination(z).squeeze(-1)
        return result

    def critic_logits(self, z: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """[Q, R, K] logits of all critics for [R, L] latents, without dropout."""
        return ensemble_forward(self.critics.stacked, self.joint(z, action, task))

    def policy(
        self, z: Tensor, noise: Tensor, task: Tensor | None = None, mask: Tensor | None = None
    ) -> PolicySample:
        """Draw actions.

        Args:
            z: [..., L].
            noise: [..., A] standard normal draws; may have more leading axes than ``z``, which then
                broadcasts.
            task: Task embedding that broadcasts to [..., D], or None.
            mask: 0/1 mask that broadcasts to [..., A], or None; masked components are exactly zero.
        """
        a = self.architecture
        x = z if task is None else torch.cat([z, task.expand(*z.shape[:-1], task.shape[-1])], -1)
        mean, raw = self.pi(x).chunk(2, -1)
        log_std = a.log_std_min + 0.5 * (a.log_std_max - a.log_std_min) * (torch.tanh(raw) + 1)
        if mask is not None:
            mean = mean * mask
            log_std = log_std * mask
            noise = noise * mask
        return PolicySample(torch.tanh(mean + noise * log_std.exp()), mean, log_std, noise)
