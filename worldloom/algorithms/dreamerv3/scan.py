"""The filtering loop over a sequence as one autograd function: forward and derivative of the
recurrent cell, fused.

Everything that does not depend on the recurrence (encoder, action and token inputs, prior, heads)
is computed outside for all steps at once. Inside, each step is a short fixed list of matrix
products; the backward loop carries only the gradient that is truly sequential, and weight gradients
are one large product over all steps at the end instead of T small ones.

Legend: T time, B batch, D deter, h hidden, S categoricals, C classes, Z = S C, G blocks, P = D / G.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldloom.algorithms.dreamerv3.config import LatentSizes
from worldloom.nn.distributions import sample_classes
from worldloom.nn.rmsnorm import (
    fused_norm_gradient,
    has_fused_norm,
    inverse_rms,
    norm_silu,
)

__all__ = ["CellWeights", "observe_scan"]

aten = torch.ops.aten


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
    sizes: LatentSizes,
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


class _NormTape:
    """RMSNorm + SiLU of all steps, prepared for the backward loop: everything but the incoming
    gradient is known.
    """

    def __init__(self, x: Tensor, scale: Tensor) -> None:
        self.inverse = inverse_rms(x)
        self.scale = scale
        self.dtype = x.dtype
        self.inputs = x.float()
        self.is_fused = has_fused_norm(x.device)
        self.normed = self.inputs * self.inverse
        z = self.normed * scale
        sigmoid = torch.sigmoid(z)
        self.output = (z * sigmoid).to(x.dtype)
        self.slope = sigmoid * (1 + z * (1 - sigmoid))
        self.grads = torch.empty_like(self.normed)
        self._inputs_fused: list[Tensor] = []
        self._input_grads = x.new_empty(0) if self.is_fused else torch.empty_like(x)

    def step(self, t: int, grad: Tensor) -> Tensor:
        """Gradient of step t's input [rows, D] from that of its output, in any layout of these;
        remembers it, and what the scale's gradient needs. Steps come from the last to the first.
        """
        dz = self.grads[t]
        by_blocks = dz.view(grad.shape)
        if grad.dtype == torch.float32:
            torch.mul(grad, self.slope[t].view(grad.shape), out=by_blocks)
        else:
            by_blocks.copy_(grad).mul_(self.slope[t].view(grad.shape))
        if self.is_fused:
            inverse = self.inverse[t]
            d_x, _ = fused_norm_gradient(dz, self.inputs[t], inverse, self.scale, (True, False))
            self._inputs_fused.append(d_x.to(self.dtype))
            return self._inputs_fused[-1]
        weighted = dz * self.scale
        normed = self.normed[t]
        shared = (weighted * normed).mean(-1, keepdim=True)
        weighted.addcmul_(normed, shared, value=-1.0).mul_(self.inverse[t])
        return self._input_grads[t].copy_(weighted)

    def input_grads(self) -> Tensor:
        """What :meth:`step` returned for every step."""
        return torch.stack(self._inputs_fused[::-1]) if self.is_fused else self._input_grads

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

    def step(self, t: int, g_deter: Tensor, old: Tensor, out: Sequence[Tensor]) -> Tensor:
        """Gradients of step t's pre-activations into ``out`` (reset, candidate, update: each of
        every step), from that of the new state; returns the share of the candidate.
        """
        reset, cand, mixed, update = (gate[t] for gate in self)
        kept = g_deter * update
        if has_fused_norm(kept.device):  # where a launch costs something
            g_mixed = aten.tanh_backward(kept, mixed)
            aten.sigmoid_backward(g_mixed * cand, reset, grad_input=out[0][t])
            torch.mul(g_mixed, reset, out=out[1][t])
            aten.sigmoid_backward(g_deter * (mixed - old), update, grad_input=out[2][t])
            return kept
        g_mixed = kept * (1 - mixed * mixed)
        torch.mul(g_mixed * cand, reset * (1 - reset), out=out[0][t])
        torch.mul(g_mixed, reset, out=out[1][t])
        torch.mul(kept * (mixed - old), 1 - update, out=out[2][t])
        return kept


def _through_softmax(grad: Tensor, soft: Tensor, share: float, direct: Tensor, out: Tensor) -> None:
    """``out`` [rows, Z] = ``direct`` + the gradient of the logits whose softmax, of which ``share``
    is mixed in, has gradient ``grad`` (like ``soft``: [rows, S, C], float32).
    """
    if has_fused_norm(grad.device):
        inner = aten._softmax_backward_data(grad, soft, -1, soft.dtype)
        torch.add(direct, inner.view_as(direct).to(direct.dtype), alpha=share, out=out)
        return
    grad = grad * share
    inner = (grad * soft).sum(-1, keepdim=True)
    torch.add(direct, grad.sub_(inner).mul_(soft).view_as(direct).to(direct.dtype), out=out)


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
        sizes: LatentSizes,
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
        hard = buffer(sizes.latent).zero_()
        logits = buffer(sizes.latent)
        classes = torch.empty(*draws.shape, dtype=torch.int64, device=deter.device)
        unimix = sizes.unimix
        mix = (1.0 - unimix, unimix / sizes.classes)
        even = torch.full((), 1.0 / sizes.classes, device=deter.device)
        is_fused = has_fused_norm(deter.device)
        bias_gru = w.b_gru.view(sizes.blocks, 1, -1)
        for t in range(steps):
            torch.mul(deter, keep[t], out=before[t])
            torch.mul(stoch, keep[t], out=before_stoch[t])
            torch.addmm(w.b_deter, before[t], w.w_deter.t(), out=pre_deter[t])
            torch.addmm(w.b_stoch, before_stoch[t], w.w_stoch.t(), out=pre_stoch[t])
            x = torch.cat(
                [norm_silu(pre_deter[t], w.s_deter), norm_silu(pre_stoch[t], w.s_stoch)], -1
            )
            torch.addmm(action_input[t], x, w.w_inputs, out=pre_hid[t])
            by_block = torch.bmm(_blocks(before[t], sizes.blocks), w.w_hid).transpose(0, 1)
            pre_hid[t].view(by_block.shape).add_(by_block)
            hid = norm_silu(pre_hid[t], w.s_hid)
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
            torch.addmm(w.b_logit, norm_silu(pre_obs[t], w.s_obs), w.w_logit.t(), out=logits[t])
            if draws.is_floating_point():
                soft = logits[t].float().view(rows, sizes.stoch, sizes.classes).softmax(-1)
                probs = soft.lerp_(even, unimix) if is_fused else soft.mul_(mix[0]).add_(mix[1])
                classes[t] = sample_classes(probs, draws[t])
            else:
                classes[t] = draws[t]
            grid = hard[t].view(rows, sizes.stoch, sizes.classes)
            grid.scatter_(-1, classes[t].unsqueeze(-1), 1.0)
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
        sizes: LatentSizes = ctx.sizes
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
        g_gates = torch.empty_like(pre_gates)
        gate_out = g_gates.chunk(3, -1)
        hidden = w.w_deter.shape[0]
        next_deter: Tensor = torch.zeros_like(after[0])
        next_stoch: Tensor = torch.zeros_like(before_stoch[0])
        for t in reversed(range(steps)):
            # straight-through: the value's gradient reaches the mixed probabilities, then the
            # softmax
            g_hard = (grads[1][t] + next_stoch).float().view_as(soft[t])
            _through_softmax(g_hard, soft[t], 1.0 - sizes.unimix, grads[2][t], g_logits[t])
            g_obs_t = obs.step(t, g_logits[t] @ w.w_logit)
            g_deter = torch.addmm(grads[0][t] + next_deter, g_obs_t, w.w_obs).view_as(
                gates.mixed[t]
            )
            old = before[t].view_as(g_deter)
            kept = gates.step(t, g_deter, old, gate_out)
            g_blocks = torch.bmm(g_gates[t].transpose(0, 1), w.w_gru.transpose(1, 2))
            g_hid_t = hid.step(t, g_blocks.transpose(0, 1))
            g_inputs = g_hid_t @ w.w_inputs.t()
            g_deter_t = x_deter.step(t, g_inputs[:, :hidden])
            g_stoch_t = x_stoch.step(t, g_inputs[:, hidden:])
            g_old = g_deter - kept
            g_blocks = torch.bmm(_blocks(g_hid_t, sizes.blocks), w.w_hid.transpose(1, 2))
            g_old += g_blocks.transpose(0, 1)
            next_deter = g_old.view(rows, -1).addmm_(g_deter_t, w.w_deter).mul_(keep[t])
            next_stoch = (g_stoch_t @ w.w_stoch).mul_(keep[t])
        g_deter_in, g_stoch_in, g_hid, g_obs = (
            tape.input_grads() for tape in (x_deter, x_stoch, hid, obs)
        )
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
