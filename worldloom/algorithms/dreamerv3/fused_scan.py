"""The filtering loop with fused kernels: what ``scan`` computes, in 12 launches a step forward and
13 backward, seven of either matrix products.

A product writes where the kernel behind it reads, and the kernel adds biases, inputs and gradients
on its way. Values that both directions need lie as the products want them: those of blocks in
[G, T, B, ...], so that a step is a view and all steps are one batch.

Legend: as in ``scan``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldloom.algorithms.dreamerv3.config import LatentSizes
from worldloom.algorithms.dreamerv3.scan import CellWeights
from worldloom.nn.kernels import kernel
from worldloom.nn.rmsnorm import RMS_EPS

__all__ = ["fused_core", "fused_sample", "fused_scan"]


class _Core(NamedTuple):
    """What the recurrent core computes on its way, of one step (without T) or of all of them."""

    pre_x: Tensor  # [2, T, B, h] before the norms, of deter and stoch
    x: Tensor  # [T, B, 2h] behind them
    pre_hid: Tensor  # [T, B, D]
    hid: Tensor  # [G, T, B, P]
    gates: Tensor  # [G, T, B, 3P] without bias

    @classmethod
    def empty(cls, w: CellWeights, sizes: LatentSizes, *lead: int) -> _Core:
        """Room for ``lead`` = [T, B] or [B]."""
        hidden, size = w.w_obs.shape
        blocks, each = sizes.blocks, size // sizes.blocks
        return cls(
            w.w_hid.new_empty(2, *lead, hidden),
            w.w_hid.new_empty(*lead, 2 * hidden),
            w.w_hid.new_empty(*lead, size),
            w.w_hid.new_empty(blocks, *lead, each),
            w.w_hid.new_empty(blocks, *lead, 3 * each),
        )

    def at(self, t: int) -> _Core:
        """Views of one step."""
        return _Core(self.pre_x[:, t], self.x[t], self.pre_hid[t], self.hid[:, t], self.gates[:, t])

    def step(
        self,
        w: CellWeights,
        scales: Tensor,
        deter: Tensor,
        stoch: Tensor,
        action_input: Tensor,
        after: Tensor,
        keep: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> None:
        """Of one step, into these views.

        Args:
            w: Weights.
            scales: [2, h] of the norms of deter and stoch.
            deter, stoch: [B, D], [B, Z] in compute dtype.
            action_input: [B, D].
            after: [B, D], written with the new state.
            keep, masked: [B, 1], [B, D]: ``masked`` is written with ``keep`` times the new state.
        """
        torch.addmm(w.b_deter, deter, w.w_deter.t(), out=self.pre_x[0])
        torch.addmm(w.b_stoch, stoch, w.w_stoch.t(), out=self.pre_x[1])
        _norm(self.pre_x, scales, _halves(self.x))
        torch.mm(self.x, w.w_inputs, out=self.pre_hid)
        by_block = torch.bmm(_blocks(deter, len(self.hid)), w.w_hid)
        _norm(self.pre_hid[None], w.s_hid[None], self.hid, action_input, by_block)
        torch.bmm(self.hid, w.w_gru, out=self.gates)
        kernel("gru_gates")(self.gates, w.b_gru, deter, after, keep, masked)


@torch.no_grad()
def fused_core(
    w: CellWeights, deter: Tensor, stoch: Tensor, action_input: Tensor, sizes: LatentSizes
) -> Tensor:
    """See :meth:`RSSM.core`, for [N, D] and [N, Z] in compute dtype; without derivative."""
    core = _Core.empty(w, sizes, len(deter))
    after = torch.empty_like(deter)
    core.step(w, torch.stack([w.s_deter, w.s_stoch]), deter, stoch, action_input, after)
    return after


@torch.no_grad()
def fused_sample(logits: Tensor, draws: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    """See :meth:`RSSM.sample`, for logits [N, S, C]; without derivative."""
    hard = logits.new_empty(len(logits), logits.shape[1] * logits.shape[2])
    classes = torch.empty_like(draws, dtype=torch.int64)
    kernel("sample_one_hot")(logits, draws, unimix, hard, classes, None, None)
    return hard, classes


def fused_scan(
    w: CellWeights,
    deter: Tensor,
    stoch: Tensor,
    keep: Tensor,
    action_input: Tensor,
    token_input: Tensor,
    draws: Tensor,
    sizes: LatentSizes,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`worldloom.algorithms.dreamerv3.scan.observe_scan`."""
    outputs: tuple[Tensor, Tensor, Tensor, Tensor] = _FusedScan.apply(  # type: ignore[no-untyped-call]
        deter, stoch, keep, action_input, token_input, draws, sizes, *w
    )
    return outputs


class _FusedScan(torch.autograd.Function):
    """The same arguments and results as ``scan._ObserveScan``."""

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
        """Observe step by step. Each step leaves the next one's masked state behind; the last
        one's leads nowhere.
        """
        w = CellWeights(*weights)
        steps, rows = draws.shape[:2]
        hidden, size = w.w_obs.shape
        core = _Core.empty(w, sizes, steps, rows)
        before, before_stoch = (w.w_hid.new_empty(steps + 1, rows, n) for n in (size, sizes.latent))
        after, hard, logits = (
            w.w_hid.new_empty(steps, rows, n) for n in (size, sizes.latent, sizes.latent)
        )
        pre_obs, obs = (w.w_hid.new_empty(steps, rows, hidden) for _ in range(2))
        classes = torch.empty(*draws.shape, dtype=torch.int64, device=deter.device)
        scales = torch.stack([w.s_deter, w.s_stoch])
        keep, draws, action_input, token_input = (
            x.contiguous() for x in (keep, draws, action_input, token_input)
        )
        torch.mul(deter, keep[0], out=before[0])
        torch.mul(stoch, keep[0], out=before_stoch[0])
        for t in range(steps):
            keep_next = keep[min(t + 1, steps - 1)]
            core.at(t).step(
                w,
                scales,
                before[t],
                before_stoch[t],
                action_input[t],
                after[t],
                keep_next,
                before[t + 1],
            )
            torch.mm(after[t], w.w_obs.t(), out=pre_obs[t])
            _norm(pre_obs[t, None], w.s_obs[None], obs[t, None], token_input[t])
            torch.addmm(w.b_logit, obs[t], w.w_logit.t(), out=logits[t])
            kernel("sample_one_hot")(
                _grid(logits[t], sizes),
                draws[t],
                sizes.unimix,
                hard[t],
                classes[t],
                keep_next,
                before_stoch[t + 1],
            )
        ctx.sizes = sizes
        states = (before[:steps], before_stoch[:steps], after)
        ctx.save_for_backward(keep, scales, *states, pre_obs, obs, logits, *core, *weights)
        ctx.mark_non_differentiable(classes)
        return after, hard, logits, classes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Walk the steps backwards; weights get their gradients at the end, from all steps
        at once.
        """
        sizes: LatentSizes = ctx.sizes
        keep, scales, before, before_stoch, after, pre_obs, obs, logits, *rest = ctx.saved_tensors
        core = _Core(*rest[: len(_Core._fields)])
        w = CellWeights(*rest[len(_Core._fields) :])
        g_after, g_hard, g_direct = (grad.contiguous() for grad in grads[:3])
        g_logits, g_obs = torch.empty_like(logits), torch.empty_like(pre_obs)
        g_core = _Core(*(torch.empty_like(x) for x in core))
        d_obs, d_hid, d_x = (
            torch.zeros(k, *x.shape[-2:], device=x.device)
            for k, x in ((1, pre_obs), (1, core.pre_hid), (2, core.pre_x))
        )
        carry = g_after[-1].to(torch.float32, copy=True)
        next_stoch: Tensor | None = None
        keep_next: Tensor | None = None
        for t in reversed(range(len(keep))):
            now, g_now = core.at(t), g_core.at(t)
            # straight-through: the value's gradient reaches the mixed probabilities, then the
            # softmax
            kernel("one_hot_gradient")(
                _grid(logits[t], sizes),
                g_hard[t],
                next_stoch,
                keep_next,
                g_direct[t],
                sizes.unimix,
                g_logits[t],
            )
            g_out = torch.mm(g_logits[t], w.w_logit)[None]
            _norm_gradient(g_out, pre_obs[t, None], w.s_obs[None], g_obs[t, None], d_obs)
            g_deter = torch.mm(g_obs[t], w.w_obs)
            kernel("gru_gates_gradient")(now.gates, w.b_gru, before[t], g_deter, carry, g_now.gates)
            g_out = torch.bmm(g_now.gates, w.w_gru.transpose(1, 2))
            _norm_gradient(g_out, now.pre_hid[None], w.s_hid[None], g_now.pre_hid[None], d_hid)
            g_out = _halves(torch.mm(g_now.pre_hid, w.w_inputs.t()))
            _norm_gradient(g_out, now.pre_x, scales, g_now.pre_x, d_x)
            if t:  # nothing before the first step has a gradient
                by_block = torch.bmm(_blocks(g_now.pre_hid, sizes.blocks), w.w_hid.transpose(1, 2))
                g_deter = torch.mm(g_now.pre_x[0], w.w_deter)
                kernel("state_gradient")(carry, by_block, g_deter, keep[t], g_after[t - 1])
                next_stoch = torch.mm(g_now.pre_x[1], w.w_stoch)
                keep_next = keep[t]
        f_deter, f_stoch = g_core.pre_x.flatten(1, 2)
        f_hid, f_obs, f_logits = (x.flatten(0, 1) for x in (g_core.pre_hid, g_obs, g_logits))
        f_gates = g_core.gates.flatten(1, 2)
        b_deter, b_stoch = g_core.pre_x.sum((1, 2))
        s_deter, s_stoch = d_x.sum(1)
        weight_grads = (
            f_deter.t() @ before.flatten(0, 1),
            b_deter,
            s_deter,
            f_stoch.t() @ before_stoch.flatten(0, 1),
            b_stoch,
            s_stoch,
            torch.bmm(
                _blocks(before.flatten(0, 1), sizes.blocks).transpose(1, 2),
                _blocks(f_hid, sizes.blocks),
            ),
            core.x.flatten(0, 1).t() @ f_hid,
            d_hid.sum((0, 1)),
            torch.bmm(core.hid.flatten(1, 2).transpose(1, 2), f_gates),
            f_gates.sum(1).flatten(),
            f_obs.t() @ after.flatten(0, 1),
            d_obs.sum((0, 1)),
            f_logits.t() @ obs.flatten(0, 1),
            f_logits.sum(0),
        )
        return None, None, None, g_core.pre_hid, g_obs, None, None, *weight_grads, None, None


def _norm(
    x: Tensor,
    scale: Tensor,
    out: Tensor,
    add: Tensor | None = None,
    blocks: Tensor | None = None,
) -> None:
    """RMSNorm + SiLU of ``x + add + blocks``, which stays in ``x``."""
    kernel("norm_silu")(x, scale, out, add, blocks, RMS_EPS)


def _norm_gradient(grad: Tensor, x: Tensor, scale: Tensor, d_x: Tensor, d_scale: Tensor) -> None:
    """Its gradient; that of the scale adds up over the steps, row by row."""
    kernel("norm_silu_gradient")(grad, x, scale, d_x, d_scale, RMS_EPS, True)


def _halves(x: Tensor) -> Tensor:
    """[B, 2h] -> [2, B, h]."""
    return x.view(len(x), 2, -1).transpose(0, 1)


def _blocks(x: Tensor, blocks: int) -> Tensor:
    """[N, D] -> [G, N, P]."""
    return x.view(len(x), blocks, -1).transpose(0, 1)


def _grid(x: Tensor, sizes: LatentSizes) -> Tensor:
    """[N, Z] -> [N, S, C]."""
    return x.view(-1, sizes.stoch, sizes.classes)
