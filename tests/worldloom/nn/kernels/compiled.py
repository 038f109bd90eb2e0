"""Compiles every kernel to machine code of GPUs that are not here, and prints its bytes: a process
of its own, see ``interpreted``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from worldloom.nn.kernels import launches, triton_cell, triton_losses
from worldloom.nn.kernels.trial import cases

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}


class Compiled:
    """In a kernel's place: compiles it for the arguments it is called with."""

    def __init__(self, kernel: Any, found: dict[str, int]) -> None:
        self.kernel = kernel
        self.found = found

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *args: Any, num_warps: int, **constants: Any) -> None:
        names = [p.name for p in self.kernel.params if not p.is_constexpr]
        signature = dict(zip(names, map(type_of, args), strict=True))
        signature |= dict.fromkeys(constants, "constexpr")
        for number in (80, 90):
            source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants)
            done = compile_kernel(
                source, target=GPUTarget("cuda", number, 32), options={"num_warps": num_warps}
            )
            self.found[f"sm_{number} {self.kernel.__name__} {signature}"] = len(done.asm["cubin"])


def type_of(value: Any) -> str:
    """As Triton writes it."""
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


if __name__ == "__main__":
    found: dict[str, int] = {}
    for module in (triton_cell, triton_losses):
        for name in module.__all__:
            setattr(module, name, Compiled(getattr(module, name), found))
    for case in cases("cpu", torch.bfloat16):
        getattr(launches, case.name)(*case.args)
    json.dump(found, sys.stdout)
