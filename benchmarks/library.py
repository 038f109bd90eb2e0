"""Speed of the library's door: sampling replay, loading a large file, imagining. Prints and writes
results/library.json.

python benchmarks/library.py            # a 256 MB file; --gigabyte writes and loads 1 GB
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from context import context

from worldloom import create_world_model
from worldloom.training import ReplayBuffer
from worldloom.training.data import create_random_buffer

RESULT = Path(__file__).parent / "results" / "library.json"
IMAGE = (3, 64, 64)


def median_ms(function: Callable[[], Any], repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def sampling(dtype: str) -> dict[str, float]:
    """``sample(16, 50)`` of images beside one numpy gather of the same bytes, taken in turns."""
    rng = np.random.default_rng(0)
    buffer = create_random_buffer(4000, IMAGE, 4, num_episodes=40, episode_length=100, seed=0)
    if dtype == "float32":
        images = buffer
        buffer = ReplayBuffer(4000, IMAGE, 4)
        for episode in images.episodes():
            buffer.add_episode(**episode)
    flat = rng.integers(0, 256, (4000, *IMAGE)).astype(dtype)

    def gather() -> np.ndarray:
        return flat[rng.integers(0, 3950, 16)[:, None] + np.arange(50)]

    pairs = [(median_ms(lambda: buffer.sample(16, 50), 5), median_ms(gather, 5)) for _ in range(12)]
    sample_ms, gather_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"sample_ms": sample_ms, "numpy_gather_ms": gather_ms, "ratio": sample_ms / gather_ms}


def _peak_kib() -> int:
    """Largest resident size of this program so far; ``getrusage`` would include the program that
    started it.
    """
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1])


def _load(path: str, queue: Any) -> None:
    before = _peak_kib()
    begin = time.perf_counter()
    buffer = ReplayBuffer.load(path)
    seconds = time.perf_counter() - begin
    queue.put((seconds, (_peak_kib() - before) / 1024, len(buffer)))


def loading(megabytes: int) -> dict[str, float]:
    """Time and growth of resident memory while a file is loaded, in a process of its own."""
    size = int(np.prod(IMAGE))
    steps = megabytes * 2**20 // size
    buffer = ReplayBuffer(steps, IMAGE, 4, np.uint8)
    for start in range(0, steps, 500):
        n = min(500, steps - start)
        buffer.add_episode(
            np.random.default_rng(start).integers(0, 256, (n, *IMAGE), np.uint8),
            np.zeros((n, 4)),
            np.zeros(n),
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        buffer.save(path)
        file_mib = path.stat().st_size / 2**20
        del buffer
        spawn = multiprocessing.get_context("spawn")
        queue = spawn.Queue()
        process = spawn.Process(target=_load, args=(str(path), queue))
        process.start()
        seconds, grown_mib, _ = queue.get()
        process.join()
    return {
        "file_mib": file_mib,
        "load_s": seconds,
        "peak_growth_mib": grown_mib,
        "peak_growth_per_file": grown_mib / file_mib,
    }


@torch.no_grad()
def imagining(batch: int) -> dict[str, float]:
    """Fifteen steps of size12m."""
    model = create_world_model("dreamerv3:size12m", obs_shape=(8,), action_dim=4)
    state = model.initial_state(batch)
    actions = torch.zeros(15, batch, 4)
    model.imagine(state, actions)
    time_ms = median_ms(lambda: model.imagine(state, actions), 3)
    return {"batch": batch, "imagine_15_ms": time_ms, "states_per_s": 15e3 * batch / time_ms}


def main() -> None:
    """Measure all and write it down."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--gigabyte", action="store_true")
    flags.add_argument("--imagine-batch", type=int, default=1024)
    args = flags.parse_args()
    torch.set_num_threads(1)
    result = context() | {
        "sample_uint8": sampling("uint8"),
        "sample_float32": sampling("float32"),
        "load": loading(1024 if args.gigabyte else 256),
        "imagine": imagining(args.imagine_batch),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
