"""From a window of replay rows to what the losses read: previous actions, inferred ends, and the
state to start from.

A window has ``context`` leading rows (0 or 1). With one context row, only its stored latent and its
action are used, and no episode start is forced at the first trained row; without, the window starts
from zeros. A context row that no policy of the run acted (it came from a file, or from a client
that pushed it) has no latent until an update has written one: it starts from what the model makes
of its observation. Legend: B batch, T trained steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worldloom.algorithms.dreamerv3.model import LatentModel, ModelBatch
from worldloom.algorithms.dreamerv3.rssm import State
from worldloom.algorithms.dreamerv3.spec import LATENT_DETER, LATENT_STOCH
from worldloom.core.sequence import SequenceBatch

__all__ = [
    "burnt_in",
    "encode_actions",
    "pack_latents",
    "split_context",
    "stored_state",
    "window_batch",
]


def split_context(
    batch: SequenceBatch,
    model: LatentModel,
    start: State,
    *,
    carried: State | None = None,
    follows: Tensor | None = None,
) -> ModelBatch:
    """Drop the context row.

    Args:
        batch: [B, T+1] rows.
        model: Gives the layout of actions.
        start: Stored state of the context row.
        carried, follows: Optionally a state and [B] bool: where True, the window continues another
            one that was filtered just before, and starts from the carried state instead.
    """
    if carried is not None and follows is not None:
        start = State(
            *(
                torch.where(follows.unsqueeze(-1), new, old)
                for new, old in zip(carried, start, strict=True)
            )
        )
    previous = {key: value[:, :-1] for key, value in batch.action.items()}
    last = batch.terminated | batch.truncated
    last[:, :-1] |= batch.is_first[:, 1:]
    return ModelBatch(
        obs={key: value[:, 1:] for key, value in batch.obs.items()},
        action=encode_actions(model, previous),
        reward=batch.reward[:, 1:],
        is_first=batch.is_first[:, 1:],
        is_last=last[:, 1:],
        terminated=batch.terminated[:, 1:],
        start=start,
    )


def window_batch(
    batch: SequenceBatch, model: LatentModel, context: int, *, burn_in: bool = False
) -> ModelBatch:
    """A window as :class:`ModelBatch`; with ``context`` 0 it starts as if an episode began at its
    first row, with ``burn_in`` from :func:`burnt_in` where its first row has no latent.
    """
    if context:
        stored = stored_state(batch, model)
        return split_context(batch, model, burnt_in(batch, model, stored) if burn_in else stored)
    previous = {
        key: torch.cat([value[:, :1], value[:, :-1]], 1) for key, value in batch.action.items()
    }
    first = batch.is_first.clone()
    first[:, 0] = True
    last = batch.terminated | batch.truncated
    last[:, :-1] |= batch.is_first[:, 1:]
    action = encode_actions(model, previous)
    start = model.dyn.initial(len(batch.reward))
    return ModelBatch(batch.obs, action, batch.reward, first, last, batch.terminated, start)


def encode_actions(model: LatentModel, action: Mapping[str, Tensor]) -> Tensor:
    """Raw actions [B, T, ...] per key to encoded ones [B, T, A]."""
    lead = next(iter(action.values())).shape[:2]
    return model.action_layout.encode({k: v.flatten(0, 1) for k, v in action.items()}).reshape(
        *lead, -1
    )


def stored_state(batch: SequenceBatch, model: LatentModel) -> State:
    """The latent that replay holds for the first row of each window."""
    deter = batch.extras[LATENT_DETER][:, 0].contiguous().view(torch.bfloat16).float()
    return State(deter, model.dyn.one_hot(batch.extras[LATENT_STOCH][:, 0]))


@torch.no_grad()
def burnt_in(batch: SequenceBatch, model: LatentModel, stored: State) -> State:
    """The state to start from where replay holds none for the first row: as if an episode began
    there, with the likeliest classes. Draws nothing, so that other windows are as they were; made
    for all windows, one row of each, because a look at which need it would wait for the device.

    Args:
        batch: [B, T+1] rows. A row without a latent has zeros for it, classes included; an
            untrained model makes a deter of zeros too, and draws its classes.
        model: Makes the states.
        stored: Of :func:`stored_state`.
    """
    bits = batch.extras[LATENT_DETER][:, 0].contiguous().view(torch.int16)
    classes = batch.extras[LATENT_STOCH][:, 0]
    is_blank = ((bits == 0).all(-1) & (classes == 0).all(-1)).unsqueeze(-1)  # [B, 1]
    rows = len(is_blank)
    token = model.tokens({key: value[:, :1] for key, value in batch.obs.items()})[:, 0]
    start = model.dyn.initial(rows)
    action = token.new_zeros(rows, model.action_layout.width)
    draws = torch.zeros(rows, model.sizes.stoch, dtype=torch.int64, device=token.device)
    made, logits, _ = model.dyn.observe_step(
        model.weights(), start, action, token, token.new_zeros(rows, 1), draws
    )
    new = State(made.deter.to(stored.deter.dtype), model.dyn.one_hot(logits.argmax(-1)))
    return State(*(torch.where(is_blank, one, old) for one, old in zip(new, stored, strict=True)))


def pack_latents(deter: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Latents as replay stores them: deter as bfloat16 bits (uint16), one byte per categorical."""
    bits = deter.detach().to(torch.bfloat16).contiguous().view(torch.uint16)
    return {LATENT_DETER: bits, LATENT_STOCH: classes.to(torch.uint8)}
