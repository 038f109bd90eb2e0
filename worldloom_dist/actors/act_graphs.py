"""Decisions of an inference server on a GPU, captured once per padded batch size as a CUDA graph
and replayed. Imports torch.

    act(): arrays, carries, draws --copied into--> static inputs
           --replay--> static outputs --copied out--> actions, carries

Only the part of ``act`` that is a pure function of tensors on the device is captured
(``core.protocol.Capturable``). Noise is drawn before it, by the policy's own generator, so a
captured decision draws what an eager one does. Weights are read where they lie: a policy loads new
ones in place, and no graph becomes stale. What cannot be captured runs eagerly, and one line in the
log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from worldloom.core.error_text import first_line
from worldloom.core.protocol import Capturable, Decide, Policy
from worldloom.nn.cuda_graphs import CudaRecorder, Recorder

__all__ = ["DecisionGraphs", "capture_decisions"]

logger = logging.getLogger(__name__)

WARM_UPS = 3
"""Eager runs before a capture, in which libraries make their workspaces and choose their
kernels.
"""


class _Graph:
    """One captured decision: static inputs, and outputs that every replay fills again."""

    def __init__(
        self, decide: Decide, recorder: Recorder, inputs: Mapping[str, Tensor], *, explore: bool
    ) -> None:
        self._recorder = recorder
        self._inputs = {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in inputs.items()
        }
        for _ in range(WARM_UPS):
            recorder.warm(lambda: decide(self._inputs, explore=explore))
        self._outputs: Mapping[str, Tensor] = recorder.capture(
            lambda: decide(self._inputs, explore=explore)
        )

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Decide; the result is the caller's own, because the next replay overwrites what it was
        copied from.
        """
        torch._foreach_copy_(list(self._inputs.values()), [inputs[name] for name in self._inputs])
        self._recorder.replay()
        return {name: tensor.clone() for name, tensor in self._outputs.items()}


class DecisionGraphs:
    """A policy's decision by way of one graph per batch size, each captured when that size comes
    for the first time.

    Args:
        decide: The decision; see :class:`worldloom.core.protocol.Capturable`.
        sizes: Numbers of rows to capture; any other number runs eagerly.
        make_recorder: CUDA, for one graph.
    """

    def __init__(
        self, decide: Decide, sizes: Sequence[int], make_recorder: Callable[[], Recorder]
    ) -> None:
        self._decide = decide
        self._sizes = frozenset(sizes)
        self._make_recorder = make_recorder
        self._graphs: dict[Any, _Graph] = {}
        self._broken: Recorder | None = None

    def __call__(self, inputs: Mapping[str, Tensor], *, explore: bool) -> dict[str, Tensor]:
        """One decision for all rows of ``inputs``."""
        rows = len(next(iter(inputs.values())))
        if self._broken is not None or rows not in self._sizes:
            return self._decide(inputs, explore=explore)
        key = (explore, *((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items()))
        if key not in self._graphs and not self._capture(key, inputs, explore):
            return self._decide(inputs, explore=explore)
        return self._graphs[key].run(inputs)

    def _capture(self, key: Any, inputs: Mapping[str, Tensor], explore: bool) -> bool:
        recorder = self._make_recorder()
        try:
            graph = _Graph(self._decide, recorder, inputs, explore=explore)
        except RuntimeError as error:
            # torch's allocator goes on asking a broken graph what it records, so it must live. A
            # decision draws nothing and hands no memory to another stream, so all else is well.
            self._broken = recorder
            self._graphs.clear()
            # ending a broken recording raises too, on top of what broke it
            reason = first_line(error.__context__ or error)
            logger.warning("decisions run eagerly: capturing one failed (%s)", reason)
            return False
        if not self._graphs:
            logger.info(
                "decisions run as captured CUDA graphs, one per batch size: %s", sorted(self._sizes)
            )
        self._graphs[key] = graph
        return True


def capture_decisions(
    policy: Policy, device: str, sizes: Sequence[int], *, wanted: bool = True
) -> None:
    """Let ``policy`` decide through graphs from now on, where that is possible; see
    :class:`DecisionGraphs`.

    Args:
        policy: On ``device``.
        device: Where it acts; nothing changes on one without graphs.
        sizes: Of the batches that will come.
        wanted: False leaves it eager.
    """
    if not device.startswith("cuda"):
        return
    if not wanted:
        logger.info("decisions run eagerly: actors.cuda_graphs is off")
    elif not isinstance(policy, Capturable):
        logger.warning(
            "decisions run eagerly: %s has no decision that could be captured",
            type(policy).__name__,
        )
    else:
        where = torch.device(device)
        pool = torch.cuda.graph_pool_handle()
        policy.decide_through(
            lambda decide: DecisionGraphs(decide, sizes, lambda: CudaRecorder(where, pool=pool))
        )
