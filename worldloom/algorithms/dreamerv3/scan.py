"""The filtering loop over a sequence as one autograd function: forward and derivative of the
recurrent cell, fused.

Everything that does not depend on the recurrence (encoder, action and token inputs, prior, heads)
is computed outside for all steps at once. Inside, each step is a short fixed list of matrix
products; the backward loop carries only the gradient that is truly sequential, and weight gradients
are one large product over all steps at the end instead of T small ones.

Legend: T time, B batch, D deter, h hidden, S categoricals, C classes, Z = S C, G blocks, P = D / G.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worldloom.algorithms.dreamerv3.config import DreamerSizes
from worldloom.nn.distributions import sample_classes
from worldloom.nn.rmsnorm import inverse_rms

__all__ = ["CellWeights", "observe_scan"]


class CellWeights(NamedTuple):
    """The recurrent cell's weights in compute dtype; norm scales (``s_``) stay float32.

    ``w_action`` and ``b_hid`` enter the scan only through its precomputed inputs.
    """

    w_deter: Tensor  # [h, D]
    b_deter: Tensor
    s_deter: Tensor
    w_stoch: Tensor  # [h, Z]
    b_stoch: Tensor
    s_stoch: Tensor
    w_hid: Tensor  # [G, P, P] block-diagonal part of the hidden layer
    w_inputs: Tensor  # [2h, D] its dense part for the deter and stoch inputs
    s_hid: Tensor
    w_gru: Tensor  # [G, P, 3P], outputs [reset | candidate | update] within each block
    b_gru: Tensor
    w_obs: Tensor  # [h, D] deter's share of the posterior layer
    s_obs: Tensor
    w_logit: Tensor  # [Z, h]
    b_logit: Tensor
    w_action: Tensor  # [h, D]
    b_hid: Tensor


def observe_scan(
    w: CellWeights,
    deter: Tensor,
    stoch: Tensor,
    keep: Tensor,
    action_input: Tensor,
    token_input: Tensor,
    draws: Tensor,
    sizes: DreamerSizes,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Filter T steps.

    Args:
        w: Weights.
        deter, stoch: [B, D], [B, Z] before the first step; no gradient flows into them.
        keep: [T, B, 1], 0 where the state is cleared before the step.
        action_input: [T, B, D], the action's share of the hidden layer including its bias.
        token_input: [T, B, h], the token's share of the posterior layer including its bias.
        draws: [T, B, S] uniform draws (float) or classes (int64).
        sizes: Of the model.

    Returns:
        deter [T, B, D], straight-through stoch [T, B, Z], logits [T, B, Z] (all in compute dtype),
        classes [T, B, S].
    """
    outputs: tuple[Tensor, Tensor, Tensor, Tensor] = _ObserveScan.apply(  # type: ignore[no-untyped-call]
        deter, stoch, keep, action_input, token_input, draws, sizes, *w
    )
    return outputs


def _blocks(x: Tensor, blocks: int) -> Tensor:
    """[..., D] -> [G, rows, P] without a copy of the data."""
    return x.reshape(-1, blocks, x.shape[-1] // blocks).transpose(0, 1)


def _unblock(x: Tensor) -> Tensor:
    """[G, rows, P] -> [rows, G P]."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _norm_silu(x: Tensor, scale: Tensor) -> Tensor:
    return functional.silu((x.float() * inverse_rms(x)).mul_(scale), inplace=True).to(x.dtype)


class _NormTape:
    """RMSNorm + SiLU of all steps, prepared for the backward loop: everything but the incoming
    gradient is known.
    """

    def __init__(self, x: Tensor, scale: Tensor) -> None:
        self.inverse = inverse_rms(x)
        self.scale = scale
        self.dtype = x.dtype
        self.normed = x.float() * self.inverse
        z = self.normed * scale
        sigmoid = torch.sigmoid(z)
        self.output = (z * sigmoid).to(x.dtype)
        self.slope = sigmoid * (1 + z * (1 - sigmoid))
        self.grads = torch.empty_like(self.normed)

    def step(self, t: int, grad: Tensor) -> Tensor:
        """Gradient of step t's input from that of its output; remembers what the scale's gradient
        needs.
        """
        dz = (
            torch.mul(grad, self.slope[t], out=self.grads[t])
            if grad.dtype == torch.float32
            else self._cast(t, grad)
        )
        weighted = dz * self.scale
        normed = self.normed[t]
        shared = (weighted * normed).mean(-1, keepdim=True)
        return weighted.addcmul_(normed, shared, value=-1.0).mul_(self.inverse[t]).to(self.dtype)

    def _cast(self, t: int, grad: Tensor) -> Tensor:
        return self.grads[t].copy_(grad).mul_(self.slope[t])

    def scale_grad(self) -> Tensor:
        """Gradient of the scale, over all steps."""
        return (self.grads * self.normed).flatten(0, 1).sum(0)


class _Gates(NamedTuple):
    """Activated gates in block layout [..., G, P]."""

    reset: Tensor
    cand: Tensor
    mixed: Tensor
    update: Tensor

    @classmethod
    def of(cls, pre: Tensor) -> _Gates:
        """Activate the pre-activations ``[..., G, 3 P]``; the update gate begins nearly closed."""
        reset, cand, update = pre.chunk(3, -1)
        reset = torch.sigmoid(reset)
        return cls(reset, cand, torch.tanh(reset * cand), torch.sigmoid(update - 1))


class _ObserveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        deter: Tensor,
        stoch: Tensor,
        keep: Tensor,
        action_input: Tensor,
        token_input: Tensor,
        draws: Tensor,
        sizes: DreamerSizes,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Observe step by step, and keep the pre-activations of every step."""
        w = CellWeights(*weights)
        dtype, (steps, rows) = w.w_hid.dtype, draws.shape[:2]

        def buffer(*shape: int) -> Tensor:
            """An empty tensor for a value of every step."""
            return torch.empty(steps, rows, *shape, dtype=dtype, device=deter.device)

        hidden, size = w.w_obs.shape
        before = buffer(size)
        before_stoch = buffer(sizes.latent)
        pre_deter = buffer(hidden)
        pre_stoch = buffer(hidden)
        pre_hid = buffer(size)
        pre_gates = buffer(sizes.blocks, 3 * size // sizes.blocks)
        pre_obs = buffer(hidden)
        after = buffer(size)
        hard = buffer(sizes.latent)
        logits = buffer(sizes.latent)
        classes = torch.empty(*draws.shape, dtype=torch.int64, device=deter.device)
        mix = (1.0 - sizes.unimix, sizes.unimix / sizes.classes)
        bias_gru = w.b_gru.view(sizes.blocks, 1, -1)
        for t in range(steps):
            torch.mul(deter, keep[t], out=before[t])
            torch.mul(stoch, keep[t], out=before_stoch[t])
            torch.addmm(w.b_deter, before[t], w.w_deter.t(), out=pre_deter[t])
            torch.addmm(w.b_stoch, before_stoch[t], w.w_stoch.t(), out=pre_stoch[t])
            x = torch.cat(
                [_norm_silu(pre_deter[t], w.s_deter), _norm_silu(pre_stoch[t], w.s_stoch)], -1
            )
            torch.addmm(action_input[t], x, w.w_inputs, out=pre_hid[t])
            pre_hid[t].add_(_unblock(torch.bmm(_blocks(before[t], sizes.blocks), w.w_hid)))
            hid = _norm_silu(pre_hid[t], w.s_hid)
            pre_gates[t].copy_(
                torch.baddbmm(bias_gru, _blocks(hid, sizes.blocks), w.w_gru).transpose(0, 1)
            )
            gates = _Gates.of(pre_gates[t])
            torch.lerp(
                before[t].view_as(gates.mixed),
                gates.mixed,
                gates.update,
                out=after[t].view_as(gates.mixed),
            )
            deter = after[t]
            torch.addmm(token_input[t], deter, w.w_obs.t(), out=pre_obs[t])
            torch.addmm(w.b_logit, _norm_silu(pre_obs[t], w.s_obs), w.w_logit.t(), out=logits[t])
            if draws.is_floating_point():
                soft = logits[t].float().view(rows, sizes.stoch, sizes.classes).softmax(-1)
                classes[t] = sample_classes(soft.mul_(mix[0]).add_(mix[1]), draws[t])
            else:
                classes[t] = draws[t]
            grid = hard[t].view(rows, sizes.stoch, sizes.classes)
            grid.zero_().scatter_(-1, classes[t].unsqueeze(-1), 1.0)
            stoch = hard[t]
        ctx.sizes = sizes
        ctx.save_for_backward(
            keep,
            before,
            before_stoch,
            pre_deter,
            pre_stoch,
            pre_hid,
            pre_gates,
            pre_obs,
            after,
            logits,
            *weights,
        )
        ctx.mark_non_differentiable(classes)
        ctx.set_materialize_grads(True)
        return after, hard, logits, classes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Walk the steps backwards; weights get their gradients at the end, from all steps
        at once.
        """
        sizes: DreamerSizes = ctx.sizes
        (
            keep,
            before,
            before_stoch,
            pre_deter,
            pre_stoch,
            pre_hid,
            pre_gates,
            pre_obs,
            after,
            logits,
            *weights,
        ) = ctx.saved_tensors
        w = CellWeights(*weights)
        steps, rows = keep.shape[:2]
        x_deter = _NormTape(pre_deter, w.s_deter)
        x_stoch = _NormTape(pre_stoch, w.s_stoch)
        hid = _NormTape(pre_hid, w.s_hid)
        obs = _NormTape(pre_obs, w.s_obs)
        gates = _Gates.of(pre_gates)
        soft = logits.float().view(steps, rows, sizes.stoch, sizes.classes).softmax(-1)
        g_logits = torch.empty_like(logits)
        g_obs = torch.empty_like(pre_obs)
        g_hid = torch.empty_like(pre_hid)
        g_gates = torch.empty_like(pre_gates)
        g_deter_in = torch.empty_like(pre_deter)
        g_stoch_in = torch.empty_like(pre_stoch)
        gate_out = g_gates.chunk(3, -1)
        hidden = w.w_deter.shape[0]
        next_deter: Tensor = torch.zeros_like(after[0])
        next_stoch: Tensor = torch.zeros_like(before_stoch[0])
        for t in reversed(range(steps)):
            # straight-through: the value's gradient reaches the mixed probabilities, then the
            # softmax
            g_probs = (grads[1][t] + next_stoch).float().view_as(soft[t]) * (1.0 - sizes.unimix)
            inner = (g_probs * soft[t]).sum(-1, keepdim=True)
            torch.add(
                grads[2][t],
                g_probs.sub_(inner).mul_(soft[t]).view(rows, -1).to(logits.dtype),
                out=g_logits[t],
            )
            g_obs[t] = obs.step(t, g_logits[t] @ w.w_logit)
            g_deter = torch.addmm(grads[0][t] + next_deter, g_obs[t], w.w_obs).view_as(
                gates.mixed[t]
            )
            update = gates.update[t]
            mixed = gates.mixed[t]
            reset = gates.reset[t]
            old = before[t].view_as(mixed)
            kept = g_deter * update
            g_mixed = kept * (1 - mixed * mixed)
            torch.mul(g_mixed * gates.cand[t], reset * (1 - reset), out=gate_out[0][t])
            torch.mul(g_mixed, reset, out=gate_out[1][t])
            torch.mul(kept * (mixed - old), 1 - update, out=gate_out[2][t])
            g_y = _unblock(torch.bmm(g_gates[t].transpose(0, 1), w.w_gru.transpose(1, 2)))
            g_hid[t] = hid.step(t, g_y)
            g_inputs = g_hid[t] @ w.w_inputs.t()
            g_deter_in[t] = x_deter.step(t, g_inputs[:, :hidden])
            g_stoch_in[t] = x_stoch.step(t, g_inputs[:, hidden:])
            g_old = (g_deter - kept).reshape(rows, -1)
            g_old += _unblock(torch.bmm(_blocks(g_hid[t], sizes.blocks), w.w_hid.transpose(1, 2)))
            next_deter = g_old.addmm_(g_deter_in[t], w.w_deter).mul_(keep[t])
            next_stoch = (g_stoch_in[t] @ w.w_stoch).mul_(keep[t])
        g_flat = [
            g.flatten(0, 1)
            for g in (g_deter_in, g_stoch_in, g_hid, g_gates.flatten(2), g_obs, g_logits)
        ]
        f_deter, f_stoch, f_hid, f_gates, f_obs, f_logits = g_flat
        inputs = torch.cat([x_deter.output, x_stoch.output], -1).flatten(0, 1)
        blocked = [_blocks(x, sizes.blocks).transpose(1, 2) for x in (before, hid.output)]
        weight_grads = (
            f_deter.t() @ before.flatten(0, 1),
            f_deter.sum(0),
            x_deter.scale_grad(),
            f_stoch.t() @ before_stoch.flatten(0, 1),
            f_stoch.sum(0),
            x_stoch.scale_grad(),
            torch.bmm(blocked[0], _blocks(f_hid, sizes.blocks)),
            inputs.t() @ f_hid,
            hid.scale_grad(),
            torch.bmm(blocked[1], _blocks(f_gates, sizes.blocks)),
            f_gates.sum(0),
            f_obs.t() @ after.flatten(0, 1),
            obs.scale_grad(),
            f_logits.t() @ obs.output.flatten(0, 1),
            f_logits.sum(0),
        )
        return None, None, None, g_hid, g_obs, None, None, *weight_grads, None, None
