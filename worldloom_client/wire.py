"""Messages of ``proto/worldloom/gateway/v1/gateway.proto``, and arrays in them.

The message classes are made from the compiled description beside this file (``gateway.binpb``)
when it is imported. There is no generated Python code, which would bind this package to the one
major version of protobuf that it was generated for.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import pkgutil
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from worldloom_client.errors import WireError

__all__ = [
    "MAX_MESSAGE_BYTES",
    "NUMBER_OF",
    "PACKAGE",
    "POOL",
    "SESSION_KEY",
    "SOURCES",
    "ZSTD",
    "Spec",
    "all_finite",
    "check_action",
    "decode_tensor",
    "encode_tensor",
    "fingerprint",
    "has_zstd",
    "message",
    "method",
    "named",
    "specs_of",
    "to_message",
]

PACKAGE = "worldloom.gateway.v1"
SESSION_KEY = "worldloom-session-bin"
"""Metadata key of a session's secret."""
MAX_MESSAGE_BYTES = 32 * 2**20
SOURCES = {"policy": 1, "human": 2, "safety": 3, "script": 4}
"""Names of ``Source`` for people."""
ZLIB = 1
ZSTD = 2
COMPRESS_FROM_BYTES = 4096
MOST_TOLD = 16
"""Numbers of an action that a message repeats."""
DTYPES = {1: "bool", 2: "uint8", 3: "int32", 4: "int64", 5: "float32", 6: "float64"}
NUMPY = {number: np.dtype(name) for number, name in DTYPES.items()}
NUMBER_OF = {dtype: number for number, dtype in NUMPY.items()}


def _pool() -> descriptor_pool.DescriptorPool:
    data = pkgutil.get_data(__package__, "gateway.binpb")
    assert data is not None
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = _pool()


@functools.cache
def message(name: str) -> Any:
    """The class of a message of the package, for example ``ActRequest``."""
    found = POOL.FindMessageTypeByName(f"{PACKAGE}.{name}")
    return message_factory.GetMessageClass(found)


def method(service: str, name: str) -> str:
    """Path of a method, for example of ``PolicyService`` and ``Act``."""
    return f"/{PACKAGE}.{service}/{name}"


Tensor = message("Tensor")
TensorSpec = message("TensorSpec")


@dataclass(frozen=True, slots=True)
class Spec:
    """One array of an observation or an action.

    Args:
        name: Its key.
        shape: Of one env.
        dtype: As numpy names it.
        num_classes: Choices of each component of a discrete action; empty for a continuous one,
            which lies in [-1, 1].
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    num_classes: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the array of one env."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "num_classes": list(self.num_classes),
        }


def to_message(spec: Spec) -> Any:
    """A spec as it travels."""
    return TensorSpec(
        name=spec.name,
        dtype=NUMBER_OF[np.dtype(spec.dtype)],
        shape=spec.shape,
        num_classes=spec.num_classes,
    )


def specs_of(messages: Iterable[Any]) -> list[Spec]:
    """Specs that came.

    Raises:
        WireError: If one has a dtype that this version does not know.
    """
    return [
        Spec(m.name, tuple(m.shape), _dtype(m.dtype, m.name).name, tuple(m.num_classes))
        for m in messages
    ]


def fingerprint(obs: Sequence[Spec], action: Sequence[Spec]) -> str:
    """Names, dtypes, shapes and choices as text, one line for each array."""
    lines = []
    for group, specs in (("obs", obs), ("action", action)):
        for spec in specs:
            choices = f" of {list(spec.num_classes)}" if spec.num_classes else ""
            lines.append(f"{group} {spec.name!r} = {spec.dtype}{list(spec.shape)}{choices}")
    return "\n".join(lines)


def encode_tensor(array: np.ndarray, *, compress: Literal["", "zlib", "zstd"] = "") -> Any:
    """An array as it travels.

    Args:
        array: Any shape; one of the dtypes of the wire.
        compress: How, where that is worth it (from 4 KiB on). ``zstd`` needs the package
            ``zstandard``.

    Raises:
        WireError: If the wire does not know the dtype.
    """
    number = NUMBER_OF.get(array.dtype)
    if number is None:
        raise WireError(
            f"dtype {array.dtype} cannot be sent; allowed: {', '.join(DTYPES.values())}"
        )
    shape = array.shape
    array = np.ascontiguousarray(array)  # of no axis it makes one
    encoding = 0
    if compress and array.nbytes >= COMPRESS_FROM_BYTES:
        raw = array.reshape(-1).view(np.uint8).data
        data = zlib.compress(raw, 1) if compress == "zlib" else _zstd().compress(raw)
        encoding = ZLIB if compress == "zlib" else ZSTD
    else:
        data = array.tobytes()
    return Tensor(dtype=number, shape=shape, data=data, encoding=encoding)


def decode_tensor(tensor: Any, spec: Spec, lead: tuple[int, ...], what: str) -> np.ndarray:
    """An array that came, if it is what the spec promises. Nothing is allocated before its size is
    known to be right, however it was compressed.

    Args:
        tensor: The message.
        spec: What it must be.
        lead: Leading axes before ``spec.shape``.
        what: Its name for error messages, for example ``obs 'camera'``.

    Returns:
        ``[*lead, *spec.shape]``, read-only.

    Raises:
        WireError: Names what came and what was expected.
    """
    shape = (*lead, *spec.shape)
    dtype = _dtype(tensor.dtype, what)
    is_alike = len(tensor.shape) == len(shape) and tuple(tensor.shape) == shape
    if dtype != spec.dtype or not is_alike:
        got = f"{dtype} {list(tensor.shape[:8])}"
        raise WireError(f"{what}: got {got}, expected {spec.dtype} {list(shape)}")
    size = math.prod(shape) * dtype.itemsize
    data = tensor.data
    if tensor.encoding == ZLIB:
        data = _inflate(data, size, what)
    elif tensor.encoding == ZSTD:
        data = _unpack_zstd(data, size, what)
    elif tensor.encoding != 0:
        raise WireError(
            f"{what}: encoding {tensor.encoding} is not known; use 0 (raw), 1 (zlib) or 2 (zstd)"
        )
    if len(data) != size:
        told = f"{size} for {spec.dtype} {list(shape)}"
        raise WireError(f"{what}: got {len(data)} bytes, expected {told}")
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise WireError(f"{what}: holds bytes other than 0 and 1, expected bool")
    array = np.frombuffer(data, dtype).reshape(shape)
    if dtype.kind == "f" and not all_finite(array):
        raise WireError(f"{what}: holds numbers that are not finite, expected finite ones")
    return array


def all_finite(array: np.ndarray) -> bool:
    """True when no element of a float array is NaN or infinite.

    A sum of squares is finite only if every element is, and takes a fifth of the time; squares of
    large elements overflow, so only a look at every element can say no.
    """
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def _dtype(number: int, what: str) -> np.dtype[Any]:
    dtype = NUMPY.get(number)
    if dtype is None:
        raise WireError(f"{what}: dtype number {number} is not known to this version")
    return dtype


@functools.cache
def has_zstd() -> bool:
    """True where ``zstandard`` is installed."""
    return importlib.util.find_spec("zstandard") is not None


_local = threading.local()


def _zstd() -> Any:
    """One per thread: the objects are costly to build and not safe to share."""
    if not hasattr(_local, "compressor"):
        import zstandard

        _local.compressor = zstandard.ZstdCompressor(level=1)
    return _local.compressor


def _unzstd() -> Any:
    """As :func:`_zstd`."""
    if not hasattr(_local, "decompressor"):
        import zstandard

        _local.decompressor = zstandard.ZstdDecompressor()
    return _local.decompressor


def _unpack_zstd(data: bytes, size: int, what: str) -> bytes:
    if not has_zstd():
        raise WireError(f"{what}: zstd cannot be read without the package zstandard; use 1 (zlib)")
    import zstandard

    try:
        promised = zstandard.frame_content_size(data)
        if promised != size:
            raise WireError(f"{what}: the zstd frame says {promised} bytes, expected {size}")
        found: bytes = _unzstd().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"{what}: does not decompress ({error})") from error
    return found


def _inflate(data: bytes, size: int, what: str) -> bytes:
    worker = zlib.decompressobj()
    try:
        found = worker.decompress(data, size + 1)
    except zlib.error as error:
        raise WireError(f"{what}: does not decompress ({error})") from error
    if len(found) != size or not worker.eof:
        raise WireError(f"{what}: decompresses to another size than the {size} bytes expected")
    if worker.unused_data:
        raise WireError(f"{what}: has {len(worker.unused_data)} bytes after the compressed ones")
    return found


def check_action(action: np.ndarray, spec: Spec, what: str) -> None:
    """Look at actions ``[..., *spec.shape]`` of the right dtype.

    Raises:
        WireError: If one is none of the policy's.
    """
    if spec.num_classes:
        most = _most(spec)
        if action.ndim == 0:
            is_one = 0 <= int(action) < spec.num_classes[0]
        else:
            is_one = bool(((action >= 0) & (action <= most)).all())
        if not is_one:
            got = action.tolist() if action.size < MOST_TOLD else "others"
            raise WireError(f"{what}: got {got}, expected 0 to {most.tolist()}")
    elif np.dtype(spec.dtype).kind == "f" and action.size and not _is_bounded(action):
        raise WireError(f"{what}: got numbers outside of [-1, 1], where actions are")


@functools.lru_cache(maxsize=64)
def _most(spec: Spec) -> np.ndarray:
    """The largest number of each component of a discrete action."""
    return np.array(spec.num_classes).reshape(spec.shape) - 1


def _is_bounded(action: np.ndarray) -> bool:
    return math.isfinite(float(action.sum())) and float(np.abs(action).max()) <= 1.0


def named(
    specs: Sequence[Spec], tensors: Sequence[Any], lead: tuple[int, ...], what: str
) -> Mapping[str, np.ndarray]:
    """Arrays by key, of tensors in the order of the specs.

    Raises:
        WireError: If there are too many or too few, or one is not as promised.
    """
    if len(tensors) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise WireError(f"{what}: got {len(tensors)} arrays, expected {len(specs)}: {names}")
    return {
        spec.name: decode_tensor(tensor, spec, lead, f"{what} {spec.name!r}")
        for spec, tensor in zip(specs, tensors, strict=True)
    }
