"""What an env shares with the process it lives in, kept as it was: foreign code must not change how
the rest of a run behaves.

An env may replace the handlers of Ctrl-C and SIGTERM, switch off gradients or logging, make errors
of warnings, switch on torch's autocast, or change numpy's and torch's defaults:
all of these belong to the whole process. :class:`Surroundings` remembers them and puts them back,
with a warning that names the env. The working directory and variables of the environment are put
back after a look at an env (:func:`kept`) only, because an env that lives on may need the ones that
it set; so whatever a run opens later has an absolute path.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Surroundings", "kept"]

logger = logging.getLogger(__name__)

OURS = ("worldloom", "worldloom_dist")
"""Loggers whose lines a run is told by."""
READ_BY_OTHERS = (
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "TORCH",
    "PYTORCH_",
    "RAY_",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "PYTHON",
)
"""How the names of variables begin that steer what a run starts later: Ray, its processes, CUDA."""
READ_TOO = frozenset({"PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH"})


class Surroundings:
    """The state of this process (for gradients and numpy's errors: of this thread) that foreign
    code should leave alone.

    ``with surroundings:`` runs foreign code; what it changed is put back at the end, and each kind
    of change warned about once.

    Args:
        env: Name of the env, for the warning.
        is_quick: Watch only what costs nearly nothing to read (gradients, dtypes, logging): for
            single steps, which are many.
    """

    def __init__(self, env: str, *, is_quick: bool = False) -> None:
        self._env = env
        self._is_quick = is_quick
        self._warned: set[str] = set()
        self._former: list[Any] = []
        is_main = threading.current_thread() is threading.main_thread()
        self._parts = [*QUICK] if is_quick else [*(HANDLERS if is_main else ()), *QUICK, *SLOW]
        self._has_torch = False

    def __enter__(self) -> Surroundings:
        if not self._has_torch and hasattr(sys.modules.get("torch"), "set_default_dtype"):
            parts = _of_torch(sys.modules["torch"])
            self._parts += parts[:QUICK_OF_TORCH] if self._is_quick else parts
            self._has_torch = True
        self._former = [part.read() for part in self._parts]
        return self

    def __exit__(self, *_: object) -> None:
        now = [part.read() for part in self._parts]
        if now == self._former:
            return
        for part, before, after in zip(self._parts, self._former, now, strict=True):
            if before != after:
                part.write(before)
                self._warn(part.what)

    def _warn(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning(
                "env %r changed %s, which belongs to the whole process; it was put "
                "back, because the run needs it as it was",
                self._env,
                what,
            )


@dataclass(frozen=True, slots=True)
class _Part:
    """One thing that a process shares: what it is, how to read it, how to put it back."""

    what: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


@contextlib.contextmanager
def kept(env: str) -> Iterator[None]:
    """Run foreign code that is done with afterwards: what the process shares, its working directory
    and those variables of the environment that steer what is started later are as before at the
    end.
    """
    folder = _working_folder()
    variables = _steering()
    try:
        with Surroundings(env):
            yield
    finally:
        if folder is not None and _working_folder() != folder:
            os.chdir(folder)
        for name in _steering().keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)


def _working_folder() -> str | None:
    """None in a folder that someone deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _steering() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(READ_BY_OTHERS) or name in READ_TOO
    }


def _handler(number: signal.Signals) -> _Part:
    def write(handler: Any) -> None:
        """Nothing for a handler that was not set from Python: such a one cannot be set again."""
        if handler is not None:
            signal.signal(number, handler)

    return _Part(f"the handler of {number.name}", lambda: signal.getsignal(number), write)


def _set_root_handlers(handlers: list[logging.Handler]) -> None:
    for handler in [*logging.root.handlers]:
        logging.root.removeHandler(handler)
    for handler in handlers:
        logging.root.addHandler(handler)


def _disabled() -> bool:
    return logging.getLogger("worldloom").disabled or logging.getLogger("worldloom_dist").disabled


def _set_disabled(was_disabled: bool) -> None:
    """Undo what ``logging.config`` does to every logger that it was not told of."""
    for name, found in logging.root.manager.loggerDict.items():
        if isinstance(found, logging.Logger) and name.split(".")[0] in OURS:
            found.disabled = was_disabled


def _levels() -> list[int]:
    return [logger.level for logger in LOGGERS]


def _set_levels(levels: list[int]) -> None:
    for logger, level in zip(LOGGERS, levels, strict=True):
        logger.setLevel(level)


def _errors() -> list[Any]:
    return [entry for entry in warnings.filters if entry[0] == "error"]


def _set_errors(former: list[Any]) -> None:
    """Drop the filters that came since; the others stay in their order."""
    kept_filters = [entry for entry in warnings.filters if entry[0] != "error" or entry in former]
    warnings.resetwarnings()  # tells the machinery that filters have changed
    warnings.filters[:] = kept_filters  # type: ignore[index]


def _of_torch(torch: Any) -> list[_Part]:
    def set_device(device: Any) -> None:
        """The CPU is what torch takes without a default; naming it would slow down every call."""
        torch.set_default_device(None if device.type == "cpu" else device)

    return [
        _Part("whether torch computes gradients", torch.is_grad_enabled, torch.set_grad_enabled),
        _Part("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        _autocast(torch),
        _Part("torch's default device", torch.get_default_device, set_device),
        _Part("how many threads torch uses", torch.get_num_threads, torch.set_num_threads),
        _Part(
            "the precision of torch's matrix products",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        _Part(
            "whether torch's algorithms are deterministic",
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda former: torch.use_deterministic_algorithms(former[0], warn_only=former[1]),
        ),
        _Part(
            "whether torch looks for anomalies",
            torch.is_anomaly_enabled,
            torch.autograd.set_detect_anomaly,
        ),
    ]


def _autocast(torch: Any) -> _Part:
    """Autocast has a depth beside its switches: left too deep, it never again forgets the weights
    that it has cast, and training under autocast computes with old ones.
    """
    deeper = torch.autocast_increment_nesting
    shallower = torch.autocast_decrement_nesting
    is_enabled = torch.is_autocast_enabled
    dtype_of = torch.get_autocast_dtype
    is_remembering = torch.is_autocast_cache_enabled

    def read() -> tuple[Any, ...]:
        """Depth, whether casts are remembered, and switch and dtype on CPU and CUDA."""
        deeper()
        return (
            shallower(),
            is_remembering(),
            is_enabled("cpu"),
            dtype_of("cpu"),
            is_enabled("cuda"),
            dtype_of("cuda"),
        )

    def write(former: tuple[Any, ...]) -> None:
        """Put all of it back."""
        depth, remembers, *switches = former
        now = read()[0]
        for _ in range(now - depth):
            shallower()
        for _ in range(depth - now):
            deeper()
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(remembers)
        for device, is_on, dtype in (("cpu", *switches[:2]), ("cuda", *switches[2:])):
            torch.set_autocast_enabled(device, is_on)
            torch.set_autocast_dtype(device, dtype)

    return _Part("torch's autocast", read, write)


QUICK_OF_TORCH = 3
"""How many of these parts cost nearly nothing."""
LOGGERS = [logging.root, *(logging.getLogger(name) for name in OURS)]
HANDLERS = [
    _handler(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
]
QUICK = [
    _Part("logging.disable", lambda: logging.root.manager.disable, logging.disable),
    _Part("the levels of loggers", _levels, _set_levels),
    _Part("the handlers of the root logger", lambda: [*logging.root.handlers], _set_root_handlers),
]
SLOW = [
    _Part("which loggers are disabled", _disabled, _set_disabled),
    _Part("which warnings are errors", _errors, _set_errors),
    _Part("how deep calls may go", sys.getrecursionlimit, sys.setrecursionlimit),
    _Part("numpy.seterr", np.geterr, lambda former: np.seterr(**former)),
]
