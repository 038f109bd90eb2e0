"""Random numbers from explicit roots: a generator of a device, and initial weights that leave
torch's global generator as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from worldloom.core.exceptions import CheckpointError
from worldloom.core.seeds import seed_of

__all__ = ["fresh_weights", "restore_generator", "restore_generators", "seeded_generator"]

logger = logging.getLogger(__name__)

GPU_STATE_BYTES = 16
"""Of a CUDA generator: its seed and how far it is."""


def seeded_generator(sequence: np.random.SeedSequence, device: torch.device) -> torch.Generator:
    """A generator on ``device`` seeded from a ``SeedSequence``."""
    return torch.Generator(device).manual_seed(seed_of(sequence))


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Set a generator to a saved state. The states of a CPU and of a GPU cannot become one another:
    one of the other kind of device seeds the generator, so that equal states go on alike.

    Raises:
        CheckpointError: If it is the state of no generator.
    """
    saved = state.cpu()
    on_cpu = len(torch.Generator().get_state())
    is_of_cpu = saved.numel() == on_cpu
    is_of_gpu = saved.numel() == GPU_STATE_BYTES
    if saved.dtype == torch.uint8 and (is_of_gpu if generator.device.type == "cpu" else is_of_cpu):
        logger.info("random numbers begin again: their state was saved on another kind of device")
        digest = hashlib.sha256(saved.numpy().tobytes()).digest()
        generator.manual_seed(int.from_bytes(digest[:7]))
        return
    try:
        generator.set_state(saved)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"rng: a saved state is that of no generator ({error})") from error


def restore_generators(generators: Sequence[torch.Generator], states: Sequence[Tensor]) -> None:
    """:func:`restore_generator` for the acting generators of a policy.

    Raises:
        CheckpointError: If there are not as many states, or one is that of no generator.
    """
    if len(states) != len(generators):
        raise CheckpointError(f"rng: {len(states)} acting generators saved, {len(generators)} here")
    for generator, saved in zip(generators, states, strict=True):
        restore_generator(generator, saved)


@contextlib.contextmanager
def fresh_weights(seed: np.random.SeedSequence) -> Iterator[None]:
    """Draw initial weights from ``seed`` and leave torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed))  # not those of GPUs as well
        yield
