"""Runs the kernels on a CPU, in Triton's interpreter, and prints how far they are from what they
should compute: a process of its own, because Triton decides about it when it is imported.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from worldloom.algorithms.dreamerv3 import scan
from worldloom.algorithms.dreamerv3.config import LatentSizes
from worldloom.algorithms.dreamerv3.fused_scan import fused_scan
from worldloom.nn.kernels import definitions, launches
from worldloom.nn.kernels.ops import SCHEMAS
from worldloom.nn.kernels.trial import USED, Sizes, cases, difference

SIZES = {
    "odd": Sizes(),
    "even": Sizes(rows=4, blocks=2, block=8, groups=2, classes=4, steps=3, bins=16),
    "wide": Sizes(rows=3, blocks=1, block=1100, groups=3, classes=33, steps=1, bins=255),
    "used": USED,
    "one": Sizes(rows=1, blocks=1, block=1, groups=1, classes=2, steps=1, bins=3),
}
SCAN = LatentSizes(deter=12, hidden=5, stoch=3, classes=5, blocks=3)


def worst_of_each() -> dict[str, float]:
    """Kernel, dtype and sizes -> largest difference from the definition."""
    worst: dict[str, float] = {}
    rows = launches.rows_per_program
    for dtype in (torch.float32, torch.bfloat16):
        for name, sizes in SIZES.items():
            for tall in (1, 4):  # rows per program, which few rows would never have
                launches.rows_per_program = lambda *_, tall=tall: tall
                for case in cases("cpu", dtype, sizes):
                    key = f"{case.name} {str(dtype)[6:]} {name}"
                    found = difference(case, getattr(launches, case.name))
                    worst[key] = max(worst.get(key, 0.0), found)
    launches.rows_per_program = rows
    return worst


def scan_arguments(dtype: torch.dtype, steps: int = 3, rows: int = 2) -> list[torch.Tensor]:
    """Random weights, inputs and draws, with an episode that begins in between."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / max(1, shape[-1]) ** 0.5

    s = SCAN
    size = s.deter // s.blocks
    shapes = {
        "w_deter": (s.hidden, s.deter),
        "w_stoch": (s.hidden, s.latent),
        "w_hid": (s.blocks, size, size),
        "w_inputs": (2 * s.hidden, s.deter),
        "w_gru": (s.blocks, size, 3 * size),
        "b_gru": (3 * s.deter,),
        "w_obs": (s.hidden, s.deter),
        "w_logit": (s.latent, s.hidden),
        "b_logit": (s.latent,),
        "w_action": (s.hidden, s.deter),
        "b_hid": (s.deter,),
        "s_hid": (s.deter,),
    }
    weights = [
        (1 + normal(*shape) if name.startswith("s_") else normal(*shape).to(dtype))
        for name in scan.CellWeights.__annotations__
        for shape in [shapes.get(name, (s.hidden,))]
    ]
    keep = torch.ones(steps, rows, 1, dtype=dtype)
    keep[1, 0] = 0
    inputs = (normal(steps, rows, n).to(dtype) for n in (s.deter, s.hidden))
    start = (normal(rows, s.deter), torch.zeros(rows, s.latent))
    draws = torch.rand(steps, rows, s.stoch, generator=generator)
    return [*weights, *start, keep, *inputs, draws]


def scan_results(run: Callable[..., Any], dtype: torch.dtype) -> list[torch.Tensor]:
    """Outputs and gradients of a small scan."""
    count = len(scan.CellWeights.__annotations__)
    arguments = scan_arguments(dtype)
    for place in (*range(count), count + 3, count + 4):
        arguments[place].requires_grad_()
    outputs = run(scan.CellWeights(*arguments[:count]), *arguments[count:], SCAN)
    generator = torch.Generator().manual_seed(2)
    total = sum(
        (out.float() * torch.randn(out.shape, generator=generator)).sum() for out in outputs[:3]
    )
    wanted = [x for x in arguments if x.requires_grad]
    gradients = torch.autograd.grad(total, wanted, allow_unused=True)
    return [x.detach().double() for x in (*outputs, *gradients) if x is not None]


def scan_difference(dtype: torch.dtype) -> float:
    """Of the whole scan, with kernels and without, relative to the largest of each tensor."""
    plain, found = (scan_results(run, dtype) for run in (scan.observe_scan, fused_scan))
    return max(
        float((one - other).abs().max() / one.abs().max().clamp(min=1e-3))
        for one, other in zip(plain, found, strict=True)
    )


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    found = worst_of_each()
    for name in SCHEMAS:  # from here on the operators are the kernels
        setattr(definitions, name, getattr(launches, name))
    for dtype in (torch.float32, torch.bfloat16):
        found[f"scan {str(dtype)[6:]} whole"] = scan_difference(dtype)
    json.dump(found, sys.stdout)
