"""Which files does a row pass through from the env to the learner's batch? Found by running, not by
reading: an env gives one reward and one picture that occur nowhere else, and every function of ours
that has one of them among its arguments, its variables or in what it returns counts.

They are looked for in numbers, arrays, tensors, bytes and what holds these; not in ``self``, whose
methods would all count, whatever they do.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
MARKED_REWARD = 8573.390625
"""Exact in float32, and its bytes hold no zero, so that they are found nowhere by chance."""
MARKED_STEP = 3
MARKED_PIXEL = 201
"""All pixels of the picture."""
ENV = "tests.worldloom_dist.marked_env:Marked"
MOST_ITEMS = 64
MOST_BYTES = 1 << 22
DEPTH = 5


def holds_mark(value: Any, depth: int = DEPTH) -> bool:
    """True if the marked reward is in a value."""
    numpy = sys.modules.get("numpy")
    torch = sys.modules.get("torch")
    if isinstance(value, float):
        return value == MARKED_REWARD
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        if value.dtype.kind == "f":
            return bool((value == MARKED_REWARD).any())
        if value.dtype == "uint8" and value.ndim > 2 and value.size:
            return bool((value == MARKED_PIXEL).all(axis=(-3, -2, -1)).any())
        small = value.nbytes <= MOST_BYTES and value.dtype.kind in "Vu"
        return small and _mark_bytes() in value.tobytes()
    tensor = getattr(torch, "Tensor", None)  # torch may be half imported
    if tensor is not None and isinstance(value, tensor):
        return value.dtype in (torch.float32, torch.uint8) and holds_mark(value.detach().numpy())
    if getattr(value, "encoding", "") == "zstd":
        return True  # of the columns only pictures are compressed
    if isinstance(value, bytes | bytearray | memoryview):
        return len(value) <= MOST_BYTES and _mark_bytes() in bytes(value)
    if not depth:
        return False
    if isinstance(value, dict):
        items = list(value.values())
    elif isinstance(value, list | tuple | set | deque):
        items = list(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    elif type(value).__name__ == "PickleBuffer":
        items = [value.raw()]
    else:
        return False
    return any(holds_mark(item, depth - 1) for item in items[:MOST_ITEMS])


def _mark_bytes() -> bytes:
    import struct

    return struct.pack("<f", MARKED_REWARD)


class Tracer:
    """Watches every thread of this process that begins from now on, and this one.

    Args:
        packages: Names of ours, the folders below the root that are watched.
        report: A file to which each path is appended when it is found; None keeps them here only.

    Attributes:
        files: Those with the reward, as paths below the root.
    """

    def __init__(
        self, packages: tuple[str, ...] = ("worldloom", "worldloom_dist"), report: str = ""
    ) -> None:
        self.files: set[str] = set()
        self._prefixes = tuple(str(ROOT / name) + os.sep for name in packages)
        self._report = report
        self._inside = threading.local()

    def start(self) -> None:
        """Begin to watch."""
        threading.setprofile(self)
        sys.setprofile(self)

    def stop(self) -> None:
        """Watch this thread no more, and none that begins from now on."""
        sys.setprofile(None)
        threading.setprofile(None)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """What Python calls whenever a function is called or returns."""
        if event == "return":
            self._look(frame, argument)
        elif event == "call" and frame.f_back and self._name(frame) in self.files:
            self._look(frame.f_back, None)  # a loop that calls it may never return

    def _name(self, frame: FrameType) -> str:
        file = frame.f_code.co_filename
        return str(Path(file).relative_to(ROOT)) if file.startswith(self._prefixes) else ""

    def _look(self, frame: FrameType, result: Any) -> None:
        name = self._name(frame)
        if not name or name in self.files or getattr(self._inside, "busy", False):
            return
        self._inside.busy = True
        try:
            local = {k: v for k, v in frame.f_locals.items() if k not in ("self", "cls")}
            if holds_mark(result) or holds_mark(local):
                self.files.add(name)
                if self._report:
                    with open(self._report, "a") as file:
                        file.write(f"{name}\n")
        finally:
            self._inside.busy = False


def trace_on_ray() -> list[str]:
    """The files that a row passes through in a small run on Ray, which takes half a minute."""
    from tests.worldloom_dist.tiny_runs import TINY

    tiny = " ".join(TINY["tdmpc2:ci"]).replace("--runtime local ", "").split()
    words = [*tiny, "--env", ENV, "--workers", "1", "--env-steps", "150"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "WORLDLOOM_TRACE": str(folder / "files"),
            "PYTHONPATH": f"{ROOT / 'tests/integration/traced'}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
        }
        launch = [sys.executable, "-m", "worldloom_dist.launch", *words]
        subprocess.run(
            [*launch, "--run-dir", str(folder / "run")], env=environment, cwd=ROOT, check=True
        )
        lines = (folder / "files").read_text().splitlines()
    return sorted(set(lines))


if __name__ == "__main__":
    sys.stdout.write("\n".join(trace_on_ray()) + "\n")
