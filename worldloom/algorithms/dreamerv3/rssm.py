"""The recurrent state-space model: a block-diagonal GRU over a deterministic state and categorical
latents.

Two ways to run it give the same numbers: single steps (acting, imagination) here, and a fused scan
over a whole sequence with a hand-written derivative in ``scan``. Legend: N rows, B batch, T time, D
deter, h hidden, S categoricals, C classes, Z = S C, G blocks, E token width, A action width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloom.algorithms.dreamerv3.config import LatentSizes
from worldloom.algorithms.dreamerv3.fused_scan import fused_core, fused_sample, fused_scan
from worldloom.algorithms.dreamerv3.scan import CellWeights, observe_scan
from worldloom.nn.dense import BlockLinear, Dense, Linear
from worldloom.nn.distributions import sample_classes, unimix_probs
from worldloom.nn.kernels import has_kernels
from worldloom.nn.rmsnorm import RMSNorm, norm_silu

__all__ = ["RSSM", "Posterior", "State", "limit_action"]


class State(NamedTuple):
    """Latent state of N rows: deter [N, D] and flattened one-hot (or straight-through) stoch [N,
    Z].
    """

    deter: Tensor
    stoch: Tensor


class Posterior(NamedTuple):
    """A filtered sequence: deter [B, T, D], stoch [B, T, Z], posterior logits [B, T, S, C], classes
    [B, T, S] (int64).
    """

    deter: Tensor
    stoch: Tensor
    logits: Tensor
    classes: Tensor

    @property
    def feature(self) -> Tensor:
        """What the heads read, [deter, stoch]. [B, T, D + Z]."""
        return torch.cat([self.deter, self.stoch], -1)


def limit_action(action: Tensor) -> Tensor:
    """Divide by max(1, |a|) elementwise, the divisor without gradient, so that huge raw actions
    stay bounded.
    """
    return action / action.detach().abs().clamp(min=1.0)


class RSSM(nn.Module):
    """Sequence model of DreamerV3 with prior and posterior over ``stoch`` categoricals.

    Args:
        tokens: E, width of the encoder's tokens.
        actions: A, width of the encoded actions.
        sizes: The other sizes.
    """

    def __init__(self, tokens: int, actions: int, sizes: LatentSizes) -> None:
        super().__init__()
        deter = sizes.deter
        hidden = sizes.hidden
        latent = sizes.latent
        blocks = sizes.blocks
        self.sizes = sizes
        self.in_deter = Dense(deter, hidden)
        self.in_stoch = Dense(latent, hidden)
        self.in_action = Dense(actions, hidden)
        self.hid = BlockLinear(deter + blocks * 3 * hidden, deter, blocks)
        self.hid_norm = RMSNorm(deter)
        self.gru = BlockLinear(deter, 3 * deter, blocks)
        self.obs = Dense(deter + tokens, hidden)
        self.obs_logit = Linear(hidden, latent)
        self.prior = nn.ModuleList([Dense(deter, hidden), Dense(hidden, hidden)])
        self.prior_logit = Linear(hidden, latent)

    def initial(self, rows: int) -> State:
        """The state at the start of an episode: zeros."""
        weight = self.obs_logit.weight
        return State(
            weight.new_zeros(rows, self.sizes.deter), weight.new_zeros(rows, self.sizes.latent)
        )

    def cell_weights(self, dtype: torch.dtype) -> CellWeights:
        """The core's weights in compute dtype, laid out for :meth:`core`; prepare once, use for
        every step.
        """
        s = self.sizes
        size = s.deter // s.blocks
        hidden = s.hidden
        kernel = self.hid.kernel.to(dtype)
        inputs = kernel[:, size:].transpose(0, 1).reshape(3 * hidden, s.deter)
        return CellWeights(
            w_deter=self.in_deter.linear.weight.to(dtype),
            b_deter=self.in_deter.linear.bias.to(dtype),
            s_deter=self.in_deter.norm.scale,
            w_stoch=self.in_stoch.linear.weight.to(dtype),
            b_stoch=self.in_stoch.linear.bias.to(dtype),
            s_stoch=self.in_stoch.norm.scale,
            w_hid=kernel[:, :size],
            w_inputs=inputs[: 2 * hidden],
            s_hid=self.hid_norm.scale,
            w_gru=self.gru.kernel.to(dtype),
            b_gru=self.gru.bias.to(dtype),
            w_obs=self.obs.linear.weight[:, : s.deter].to(dtype),
            s_obs=self.obs.norm.scale,
            w_logit=self.obs_logit.weight.to(dtype),
            b_logit=self.obs_logit.bias.to(dtype),
            w_action=inputs[2 * hidden :],
            b_hid=self.hid.bias.to(dtype),
        )

    def action_input(self, w: CellWeights, action: Tensor) -> Tensor:
        """The action's share of the core's hidden layer, for encoded actions [..., A]. [..., D]."""
        hidden: Tensor = self.in_action(limit_action(action))
        return hidden.to(w.w_action.dtype) @ w.w_action + w.b_hid

    def core(self, w: CellWeights, state: State, action_input: Tensor) -> Tensor:
        """One recurrent step. Returns deter' [N, D]."""
        deter = state.deter.to(w.w_hid.dtype)
        stoch = state.stoch.to(w.w_hid.dtype)
        if has_kernels(deter.device) and not torch.is_grad_enabled():
            return fused_core(w, deter, stoch, action_input, self.sizes)
        rows = deter.shape[0]  # len() would fix the number of rows of an exported step
        blocks = self.sizes.blocks
        x_deter = norm_silu(functional.linear(deter, w.w_deter, w.b_deter), w.s_deter)
        x_stoch = norm_silu(functional.linear(stoch, w.w_stoch, w.b_stoch), w.s_stoch)
        hid = torch.addmm(action_input, torch.cat([x_deter, x_stoch], -1), w.w_inputs)
        parts = torch.bmm(deter.view(rows, blocks, -1).transpose(0, 1), w.w_hid)
        hid = norm_silu(hid + parts.transpose(0, 1).reshape(rows, -1), w.s_hid)
        gates = torch.bmm(hid.view(rows, blocks, -1).transpose(0, 1), w.w_gru).transpose(0, 1)
        reset, cand, update = (gates + w.b_gru.view(blocks, -1)).chunk(3, -1)
        cand = torch.tanh(torch.sigmoid(reset) * cand)
        return torch.lerp(deter.view(rows, blocks, -1), cand, torch.sigmoid(update - 1)).reshape(
            rows, -1
        )

    def prior_logits(self, deter: Tensor) -> Tensor:
        """[..., D] -> [..., S, C]."""
        x = deter
        for layer in self.prior:
            x = layer(x)
        return self._grid(self.prior_logit(x))

    def _grid(self, logits: Tensor) -> Tensor:
        """[..., Z] -> [..., S, C]."""
        return logits.reshape(*logits.shape[:-1], self.sizes.stoch, self.sizes.classes)

    def sample(self, logits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Straight-through sample.

        Args:
            logits: [N, S, C].
            draws: [N, S], float32 in [0, 1) (uniform draws) or int64 (the classes themselves,
                teacher forcing).

        Returns:
            Flattened value [N, Z] and classes [N, S].
        """
        if has_kernels(logits.device) and not torch.is_grad_enabled():
            return fused_sample(logits, draws, self.sizes.unimix)
        probs = unimix_probs(logits, self.sizes.unimix)
        classes = sample_classes(probs.detach(), draws) if draws.is_floating_point() else draws
        hard = self.one_hot(classes)
        value = hard + (probs - probs.detach()).flatten(-2) if probs.requires_grad else hard
        return value.to(logits.dtype), classes

    def one_hot(self, classes: Tensor) -> Tensor:
        """Classes [..., S] -> flattened one-hot [..., Z] float32."""
        codes = torch.zeros(*classes.shape, self.sizes.classes, device=classes.device)
        return codes.scatter_(-1, classes.long().unsqueeze(-1), 1.0).flatten(-2)

    def observe_step(
        self,
        w: CellWeights,
        state: State,
        action: Tensor,
        token: Tensor,
        keep: Tensor,
        draws: Tensor,
    ) -> tuple[State, Tensor, Tensor]:
        """One filtering step.

        Args:
            w: From :meth:`cell_weights`.
            state: Previous state.
            action: [N, A] encoded previous action.
            token: [N, E] of the new observation.
            keep: [N, 1] float, 0 where an episode begins: state and action are cleared there.
            draws: As for :meth:`sample`.

        Returns:
            New state, posterior logits [N, S, C], classes [N, S].
        """
        state = State(state.deter * keep, state.stoch * keep)
        deter = self.core(w, state, self.action_input(w, action * keep))
        hidden = self.obs(torch.cat([deter, token.to(deter.dtype)], -1))
        logits = self._grid(self.obs_logit(hidden))
        stoch, classes = self.sample(logits, draws)
        return State(deter, stoch), logits, classes

    def imagine_step(
        self, w: CellWeights, state: State, action: Tensor, draws: Tensor
    ) -> tuple[State, Tensor]:
        """One step without observation: new state and prior logits [N, S, C]."""
        deter = self.core(w, state, self.action_input(w, action))
        logits = self.prior_logits(deter)
        return State(deter, self.sample(logits, draws)[0]), logits

    def observe(
        self,
        w: CellWeights,
        state: State,
        action: Tensor,
        tokens: Tensor,
        is_first: Tensor,
        draws: Tensor,
    ) -> Posterior:
        """Filter a sequence.

        Args:
            w: From :meth:`cell_weights`.
            state: Before the first step; no gradient flows into it.
            action: [B, T, A] encoded previous actions.
            tokens: [B, T, E].
            is_first: [B, T] bool.
            draws: [B, T, S], as for :meth:`sample`.
        """
        keep = (~is_first).to(w.w_hid.dtype).t().unsqueeze(-1)
        action_input = self.action_input(w, action.transpose(0, 1) * keep)
        token_weight = self.obs.linear.weight[:, self.sizes.deter :]
        token_input = functional.linear(tokens.transpose(0, 1), token_weight, self.obs.linear.bias)
        scan = fused_scan if has_kernels(tokens.device) else observe_scan
        out = scan(
            w,
            state.deter,
            state.stoch,
            keep,
            action_input,
            token_input,
            draws.transpose(0, 1),
            self.sizes,
        )
        deter, stoch, logits, classes = (x.transpose(0, 1) for x in out)
        return Posterior(deter, stoch, self._grid(logits), classes)
