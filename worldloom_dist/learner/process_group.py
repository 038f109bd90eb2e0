"""Learner ranks over ``torch.distributed``: gloo on CPUs, NCCL on GPUs. Implements
:class:`worldloom.core.process_group.ProcessGroup`.

    backward --gradient ready (hook)--> its bucket
             --full, and all earlier ones sent--> asynchronous all-reduce
    after backward: wait for what is still on its way, divide, copy back

Buckets are filled from the last parameter to the first, the order in which backward finishes them,
and are always sent in the same order, so the ranks cannot disagree about it. A bucket on its way
does not stop backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from worldloom.core.process_group import Average

__all__ = ["BucketAverage", "TorchProcessGroup", "open_store"]

BUCKET_BYTES = 8 * 2**20


def open_store(
    host: str, port: int, size: int, *, is_host: bool, timeout_s: float = 180.0
) -> TCPStore:
    """The rendezvous of a group; the host passes port 0 and tells the others the port it got."""
    return TCPStore(host, port, size, is_host, timedelta(seconds=timeout_s), wait_for_workers=False)


class TorchProcessGroup:
    """One of several ranks: the process it is made in. One group per process.

    Args:
        store: Where the ranks meet.
        rank, size: Which one, of how many.
        device: Where gradients live; decides the transport.
        timeout_s: Silence of another rank after which a collective call fails.
        bucket_bytes: Gradients that travel together.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        device: str = "cpu",
        timeout_s: float = 120.0,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.rank = rank
        self.size = size
        self._bucket_bytes = bucket_bytes
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
        )

    def averager(self, parameters: Sequence[Tensor]) -> Average:
        """See :meth:`worldloom.core.process_group.ProcessGroup.averager`."""
        return BucketAverage(parameters, self.size, self._bucket_bytes)

    def gather(self, values: Tensor) -> Tensor:
        """See :meth:`worldloom.core.process_group.ProcessGroup.gather`."""
        mine = values.detach().contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.cat(parts)

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether a rank has raised it. All ranks get the same answer, so they can
        decide together.
        """
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def broadcast(self, value: Any) -> Any:
        """See :meth:`worldloom.core.process_group.ProcessGroup.broadcast`."""
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


class BucketAverage:
    """Averages one list of gradients over all ranks; see the module.

    Args:
        parameters: Leaves whose gradients ``torch.autograd.grad`` computes, in this order.
        size: ProcessGroup.
        bucket_bytes: Gradients that travel together.

    Attributes:
        sent_early: Buckets of the last update that were sent before backward had ended.
    """

    def __init__(self, parameters: Sequence[Tensor], size: int, bucket_bytes: int) -> None:
        self._size = size
        self._buckets = _buckets(parameters, bucket_bytes)
        self._flat = [
            torch.empty(sum(parameters[i].numel() for i in b), **_like(parameters[b[0]]))
            for b in self._buckets
        ]
        self._views: dict[int, Tensor] = {}
        self._home: dict[int, int] = {}
        for number, (bucket, flat) in enumerate(zip(self._buckets, self._flat, strict=True)):
            parts = torch.split(flat, [parameters[i].numel() for i in bucket])
            self._views |= {
                i: part.view(parameters[i].shape) for i, part in zip(bucket, parts, strict=True)
            }
            self._home |= dict.fromkeys(bucket, number)
        self._missing = [set(bucket) for bucket in self._buckets]
        self._work: list[Any] = []
        self.sent_early = 0
        for index, parameter in enumerate(parameters):
            parameter.register_hook(partial(self._arrived, index))  # type: ignore[no-untyped-call]

    def __call__(self, gradients: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Replace ``gradients`` and ``others`` (0-d) by their means over all ranks."""
        self.sent_early = len(self._work)
        for index in sorted(set().union(*self._missing), reverse=True):
            self._arrived(index, gradients[index])
        small = torch.stack([value.float() for value in others]) if others else None
        if small is not None:
            self._work.append(dist.all_reduce(small, async_op=True))
        for work in self._work:
            work.wait()
        torch._foreach_div_(self._flat, float(self._size))
        torch._foreach_copy_(list(gradients), [self._views[i] for i in range(len(gradients))])
        if small is not None:
            for target, value in zip(others, small / self._size, strict=True):
                target.copy_(value)
        self._missing = [set(bucket) for bucket in self._buckets]
        self._work = []

    @torch.no_grad()
    def _arrived(self, index: int, gradient: Tensor) -> None:
        """Take one gradient; send every bucket that is complete now and has no unsent one before
        it.
        """
        missing = self._missing[self._home[index]]
        if index not in missing:
            # a second backward pass through the same parameters, which no one asked to average
            return
        self._views[index].copy_(gradient)
        missing.discard(index)
        while len(self._work) < len(self._buckets) and not self._missing[len(self._work)]:
            self._work.append(dist.all_reduce(self._flat[len(self._work)], async_op=True))


def _buckets(parameters: Sequence[Tensor], limit: int) -> list[list[int]]:
    """Indices of the parameters, from the last to the first, cut where a bucket is full or the kind
    of tensor changes.
    """
    buckets: list[list[int]] = []
    room = 0
    for index in range(len(parameters) - 1, -1, -1):
        tensor = parameters[index]
        if (
            not buckets
            or tensor.nbytes > room
            or _like(tensor) != _like(parameters[buckets[-1][0]])
        ):
            buckets.append([])
            room = limit
        buckets[-1].append(index)
        room -= tensor.nbytes
    return buckets


def _like(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "device": tensor.device}
