"""From a graph to a program of ``torch.export``, and from that to an ONNX model; what cannot go
says which operation stands in the way.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom.export.graph import PolicyGraph

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["load_program", "needs_onnx", "program_of", "save_onnx", "save_program"]

OPSET = 18
OP = re.compile(r"(?:torch\.ops\.)?\b(aten|prims|prim|torchvision|quantized)(?:::|\.)(\w+)")
FOREIGN_OP = re.compile(r"torch\.ops\.(\w+)\.(\w+)")
NO_FORM = re.compile(r"OpOverload\(op='([\w.:]+)'")
BRANCH = "a branch on a value that is known only when it runs (aten._local_scalar_dense)"


def program_of(graph: PolicyGraph, agent: str) -> tuple[ExportedProgram, bool]:
    """Trace a graph.

    Args:
        graph: What to trace.
        agent: Its name, for messages.

    Returns:
        The program, and whether it takes any number of rows; else it takes one.

    Raises:
        ConfigurationError: If it cannot be traced; names the operation.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes = {"inputs": {port.name: {0: batch} for port in graph.inputs}}
    with _quietly():
        try:
            return torch.export.export(graph, (graph.example(2),), dynamic_shapes=shapes), True
        except Exception:  # the edge: an exporter may raise anything; one row may still go
            pass
        try:
            return torch.export.export(graph, (graph.example(1),)), False
        except Exception as error:  # the edge: an exporter may raise anything
            raise _refusal(agent, error) from error


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program as PyTorch reads it (``torch.export.load``)."""
    with _quietly():
        torch.export.save(program, path)


def load_program(path: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """A program as a function from arrays by name to arrays by name."""
    with _quietly():
        module = torch.export.load(path).module()

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call of the program."""
        with torch.inference_mode():
            found = module({name: torch.tensor(inputs[name]) for name in sorted(inputs)})
        return {name: value.numpy() for name, value in found.items()}

    return run


def needs_onnx() -> None:
    """Refuse where the packages are missing.

    Raises:
        MissingDependencyError: Says which line installs them.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            with _quietly():
                __import__(package)
        except ImportError as error:
            raise MissingDependencyError("export to ONNX", package, "export") from error


def save_onnx(program: ExportedProgram, graph: PolicyGraph, agent: str, path: Path) -> None:
    """Translate a program to ONNX and write it.

    Raises:
        ConfigurationError: If an operation has no ONNX form; names it.
    """
    with _quietly():
        try:
            made: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[port.name for port in graph.inputs],
                output_names=[port.name for port in graph.outputs],
                verbose=False,
            )
        except Exception as error:  # the edge: an exporter may raise anything
            raise _refusal(agent, error) from error
        made.save(path)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Exporters talk to a terminal, to loggers and by warnings; what matters is said by us."""
    talkative = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", "onnx")]
    before = [logger.level for logger in talkative]
    for logger in talkative:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(talkative, before, strict=True):
            logger.setLevel(level)


def _refusal(agent: str, error: BaseException) -> ConfigurationError:
    what = _operation(error)
    reason = f"because of {what}" if what else f"({first_line(_innermost(error))})"
    return ConfigurationError(
        f"agent {agent!r} cannot be exported, {reason}; write its decision without it, or export "
        "the weights alone: --format safetensors"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen = set[int]()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _innermost(error: BaseException) -> BaseException:
    return list(_chain(error))[-1]


def _operation(error: BaseException) -> str:
    """The operation that an exporter's error names; empty when it names none."""
    texts = [str(one) for one in _chain(error)]
    for text in texts:
        if "data-dependent" in text:
            return BRANCH
    for pattern in (NO_FORM, FOREIGN_OP, OP):
        for text in reversed(texts):
            if found := pattern.search(text):
                return "the operation " + ".".join(found.groups()).replace("::", ".")
    return ""
