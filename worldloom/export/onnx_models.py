"""ONNX models: run by onnxruntime, and with smaller weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

__all__ = ["quantized", "runner_of"]

SMALLEST = 1024
"""Elements of a tensor that is worth to be stored as bfloat16."""


def runner_of(path: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """A model as a function from arrays by name to arrays by name, by one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call of the model."""
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


def quantized(source: Path, target: Path, precision: str) -> None:
    """Write a model again with smaller weights.

    Args:
        source: A float32 model.
        target: Where the other one goes.
        precision: ``int8`` computes products with one matrix of weights in 8 bits, with activations
            that are scaled as they come (onnxruntime's dynamic quantization); ``bf16`` stores
            weights as bfloat16 and computes in float32.
    """
    if precision == "bf16":
        _store_bfloat16(source, target)
        return
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source).graph
    plain = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    left_out = [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] not in plain
    ]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on steps that are not needed here
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=left_out,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)


def _store_bfloat16(source: Path, target: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    kept = []
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALLEST:
            kept.append(tensor)
            continue
        bits = _bfloat16_bits(numpy_helper.to_array(tensor))
        name = tensor.name + "/bfloat16"
        kept.append(
            helper.make_tensor(name, TensorProto.BFLOAT16, tensor.dims, bits.tobytes(), raw=True)
        )
        casts.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)


def _bfloat16_bits(value: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, of two equally near ones to the even."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    rounded: np.ndarray = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype(np.uint16)
