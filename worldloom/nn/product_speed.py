"""Whether this CPU makes its matrix products faster in bfloat16: asked of the kernel first, then
measured for a moment, and remembered.

A CPU may have the instruction (``avx512_bf16``, AMX; ``bf16`` on ARM) and still be slower with it,
because two float32 products are made in the time of one, or because the layers are so small that
the casts cost more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worldloom.core.cpu import cpu_flags, cpu_name
from worldloom.core.files import write_json
from worldloom.core.json_text import read_object

__all__ = ["ProductSpeed", "has_half_products", "measured_speed", "product_speed"]

INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"})
"""Kernel's names of what multiplies in bfloat16."""
WORTH = 1.1
"""float32 stays unless bfloat16 is this many times as fast: it costs 16 bits of every number."""
ROUNDS = 5
SECONDS_PER_SHAPE = 0.5
Shape = tuple[int, int, int]
"""Rows, inputs and outputs of a linear layer."""


@dataclass(frozen=True, slots=True)
class ProductSpeed:
    """Milliseconds of CPU that the products of some layers take, forward and backward, casts of
    what flows between them included.
    """

    float32_ms: float
    bfloat16_ms: float

    @property
    def precision(self) -> str:
        """What to compute in."""
        return "bfloat16" if self.float32_ms >= WORTH * self.bfloat16_ms else "float32"

    @property
    def share(self) -> float:
        """Time in bfloat16 over that in float32."""
        return self.bfloat16_ms / self.float32_ms


def has_half_products() -> bool:
    """True where the CPU has an instruction for it."""
    return bool(INSTRUCTIONS & cpu_flags())


def product_speed(shapes: Sequence[Shape], memory: Path) -> ProductSpeed:
    """As measured now or before on this kind of CPU, with this torch and these layers.

    Args:
        shapes: Of the layers that take most of the time.
        memory: JSON file of what was measured before. One that cannot be read counts as empty, and
            where it cannot be written the next one measures again.
    """
    flags = "+".join(sorted(INSTRUCTIONS & cpu_flags()))
    layers = " ".join("x".join(map(str, shape)) for shape in shapes)
    key = f"{cpu_name()}; {flags}; torch {torch.__version__}; {layers}"
    known = _read(memory)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        found = ProductSpeed(*(float(known[key][n]) for n in ("float32_ms", "bfloat16_ms")))
        if found.float32_ms > 0 and found.bfloat16_ms > 0:
            return found
    found = measured_speed(shapes)
    facts = {"float32_ms": round(found.float32_ms, 4), "bfloat16_ms": round(found.bfloat16_ms, 4)}
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, {**_read(memory), key: facts})
    return found


def measured_speed(shapes: Sequence[Shape]) -> ProductSpeed:
    """Measure on one thread, in turns, and take the fastest turn of each."""
    sums = [0.0, 0.0]
    with _one_thread():
        for shape in shapes:
            for place, milliseconds in enumerate(_fastest(*shape)):
                sums[place] += milliseconds
    return ProductSpeed(*sums)


def _fastest(rows: int, inputs: int, outputs: int) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    half = weight.bfloat16()
    best = [float("inf"), float("inf")]
    until = time.monotonic() + SECONDS_PER_SHAPE
    for turn in range(ROUNDS):
        for place, (w, dtype) in enumerate(((weight, torch.float32), (half, torch.bfloat16))):
            began = time.thread_time()
            _products(x, w, dtype)
            best[place] = min(best[place], 1e3 * (time.thread_time() - began))
        if turn and time.monotonic() > until:
            break
    return best[0], best[1]


@torch.no_grad()
def _products(x: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
    """A layer's product and the two of its derivative, from and to float32."""
    cast = x.to(dtype)
    grad = functional.linear(cast, weight).float().to(dtype)
    (grad @ weight).float()
    (grad.t() @ cast).float()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read(memory: Path) -> Mapping[str, Any]:
    try:
        return read_object(memory) if memory.exists() else {}
    except (OSError, ValueError):
        return {}
