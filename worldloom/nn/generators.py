"""Random numbers from explicit roots: a generator of a device, and initial weights that leave
torch's global generator as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from worldloom.core.seeds import seed_of

__all__ = ["fresh_weights", "seeded_generator"]


def seeded_generator(sequence: np.random.SeedSequence, device: torch.device) -> torch.Generator:
    """A generator on ``device`` seeded from a ``SeedSequence``."""
    return torch.Generator(device).manual_seed(seed_of(sequence))


@contextlib.contextmanager
def fresh_weights(seed: np.random.SeedSequence) -> Iterator[None]:
    """Draw initial weights from ``seed`` and leave torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed))
        yield
