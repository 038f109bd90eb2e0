"""Where training batches come from: replay, a dataset, or any iterable; every batch of replay is a
function of seed and number.

Threads that draw ahead therefore change nothing, and a resumed run draws what the uninterrupted one
would have drawn.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from worldloom.core.exceptions import BufferError, ConfigurationError, TrainingError
from worldloom.training.config import TrainingConfig
from worldloom.training.data import TrajectoryDataset

__all__ = ["BatchSource", "Batches", "make_source", "prefetched"]

Batch = dict[str, Tensor]
TRAIN = 0
HELD_OUT = 1
"""Streams of draws below the root seed."""


@runtime_checkable
class Batches(Protocol):
    """What replay can do; anything like it may be trained from."""

    def sample(
        self,
        batch_size: int,
        seq_len: int,
        device: Any = "cpu",
        *,
        rng: Any = None,
        held_out: Any = None,
    ) -> Batch:
        """A batch of windows."""

    def has_windows(self, seq_len: int, held_out: Any = None) -> bool:
        """True when there is a window of this length."""


class BatchSource(Protocol):
    """Batches by number."""

    def train(self, number: int) -> Batch:
        """Training batch ``number``."""

    def held_out(self, number: int) -> Batch:
        """Evaluation batch ``number``."""


class ReplaySource:
    """Windows of a replay buffer; every n-th episode is held out where that leaves windows on both
    sides.
    """

    def __init__(self, buffer: Batches, config: TrainingConfig, evaluation: Batches | None) -> None:
        self.buffer = buffer
        self.config = config
        every = config.eval_episodes_every
        length = config.sequence_length
        splits = evaluation is None and every > 0
        splits = splits and all(buffer.has_windows(length, (every, side)) for side in (True, False))
        self.split = every if splits else 0
        self.evaluation = evaluation or buffer
        if not buffer.has_windows(length):
            buffer.sample(1, length)  # raises, and says how long the episodes are

    def _draw(
        self, buffer: Batches, stream: int, number: int, held_out: tuple[int, bool] | None
    ) -> Batch:
        c = self.config
        rng = np.random.default_rng([c.seed, stream, number])
        return buffer.sample(c.batch_size, c.sequence_length, rng=rng, held_out=held_out)

    def train(self, number: int) -> Batch:
        """See :class:`BatchSource`."""
        return self._draw(self.buffer, TRAIN, number, (self.split, False) if self.split else None)

    def held_out(self, number: int) -> Batch:
        """See :class:`BatchSource`."""
        return self._draw(
            self.evaluation, HELD_OUT, number, (self.split, True) if self.split else None
        )


class Cursor:
    """Batches of an iterable by number; it is begun again when it ends, and when an earlier batch
    is asked for.

    Each pass begins with generators seeded by its number, so a loader that shuffles gives the same
    order in a resumed run. A resumed run passes over the batches of its present pass that were used
    already.

    Args:
        data: Gives batches as dicts, as often as it is iterated.
        seed: Root of the order of every pass.
        stream: Which one of the streams below that seed.
    """

    def __init__(self, data: Iterable[Any], seed: int, stream: int) -> None:
        self._data = _with_own_iterator(data)
        self._seed = [seed, stream]
        self._batches: Iterator[Any] = iter(())
        self._passes = 0
        self._next = 0

    def at(self, number: int) -> Batch:
        """Batch ``number``, counted over all passes.

        Raises:
            TrainingError: If the iterable is empty or gives something else than dicts.
        """
        if isinstance(self._data, Sequence) and len(self._data):
            return self._checked(self._data[number % len(self._data)])
        if number < self._next:
            self._passes = self._next = 0
            self._batches = iter(())
        if number > self._next:
            self._pass_over(number)
        return self._draw()

    def _pass_over(self, number: int) -> None:
        """Go to a batch without handing out those before it; whole passes are left out where their
        length is known.
        """
        try:
            length = len(self._data) if isinstance(self._data, Sized) else 0
        except TypeError:  # a loader of a stream has no length
            length = 0
        if length and number - self._next >= length:
            self._passes = number // length
            self._next = self._passes * length
            self._batches = iter(())
        with torch.random.fork_rng():
            while self._next < number:
                self._draw()

    def _draw(self) -> Batch:
        self._next += 1
        batch = next(self._batches, None)
        return self._begin() if batch is None else self._checked(batch)

    def _begin(self) -> Batch:
        """Begin a pass; its first batch."""
        with torch.random.fork_rng():
            _seed_order(
                self._data,
                int(np.random.default_rng([*self._seed, self._passes]).integers(1 << 62)),
            )
            self._batches = iter(self._data)
            first = next(self._batches, None)  # a loader chooses its order here
        self._passes += 1
        return self._checked(first)

    def _checked(self, batch: Any) -> Batch:
        if not isinstance(batch, Mapping):
            raise TrainingError(
                f"training data must give batches as dicts, got {type(batch).__name__}"
            )
        return dict(batch)


def _seed_order(data: Iterable[Any], seed: int) -> None:
    """Decide the order of the coming pass of a loader that shuffles, by torch's generator or by one
    of its own.
    """
    torch.manual_seed(seed)
    if not isinstance(data, DataLoader):
        return
    for generator in (data.generator, getattr(data.sampler, "generator", None)):
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
    # workers that persist keep their seed; one that a new loader would draw here
    if data._iterator is not None:
        torch.empty((), dtype=torch.int64).random_(generator=data.generator)


def _with_own_iterator(data: Iterable[Any]) -> Iterable[Any]:
    """A loader whose workers persist has one iterator for all who iterate it: a copy has another
    one.
    """
    if not (isinstance(data, DataLoader) and data.persistent_workers):
        return data
    own = copy.copy(data)
    own._iterator = None
    return own


class IterableSource:
    """Batches in the order in which an iterable gives them; every evaluation reads the same first
    ones.
    """

    def __init__(self, data: Iterable[Any], evaluation: Iterable[Any] | None, seed: int) -> None:
        self._train = Cursor(data, seed, TRAIN)
        self._held_out = Cursor(data if evaluation is None else evaluation, seed, HELD_OUT)

    def train(self, number: int) -> Batch:
        """See :class:`BatchSource`."""
        return self._train.at(number)

    def held_out(self, number: int) -> Batch:
        """See :class:`BatchSource`."""
        return self._held_out.at(number)


def make_source(data: Any, config: TrainingConfig, evaluation: Any = None) -> BatchSource:
    """Whatever a user trains from as numbered batches.

    Args:
        data: A replay buffer, a torch dataset of windows, a loader, a list of batches, or one
            batch.
        config: Sizes and seed.
        evaluation: Likewise, for held-out batches; by default part of ``data``.

    Raises:
        BufferError: If no episode is long enough.
        ConfigurationError: If it is something else.
    """
    if isinstance(data, str | PathLike):
        raise ConfigurationError(
            f"data must be a ReplayBuffer or batches, got the path {str(data)!r}; use "
            "ReplayBuffer.load(path)"
        )
    if isinstance(evaluation, Mapping):
        evaluation = [evaluation]
    is_replay = isinstance(data, Batches | TrajectoryDataset)
    fits = evaluation is None or (
        isinstance(evaluation, Batches) if is_replay else _is_repeatable(evaluation)
    )
    if not fits:
        wanted = (
            "a ReplayBuffer, as data is" if is_replay else "a list or loader of batches, as data is"
        )
        raise ConfigurationError(f"eval_data must be {wanted}, got {type(evaluation).__name__}")
    if isinstance(data, Batches):
        return ReplaySource(data, config, evaluation)
    if isinstance(data, Mapping):
        return IterableSource([data], evaluation, config.seed)
    if isinstance(data, TrajectoryDataset):
        return ReplaySource(
            data.buffer, config.with_updates(sequence_length=data.seq_len), evaluation
        )
    if isinstance(data, Dataset):
        if not isinstance(data, IterableDataset):
            _check_length(data)
        data = DataLoader(data, batch_size=config.batch_size, shuffle=False)
    if not _is_repeatable(data):
        kind = type(data).__name__
        raise ConfigurationError(
            f"data must be a ReplayBuffer, a dataset, or a list or loader of batches, got {kind}"
        )
    return IterableSource(data, evaluation, config.seed)


def _check_length(data: Dataset[Any]) -> None:
    """A map-style dataset has a length, which is not 0."""
    try:
        length = len(data)  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigurationError(
            f"data: {type(data).__name__} has no len(); give it __len__, or make it an "
            "IterableDataset"
        ) from error
    if not length:
        raise BufferError("the dataset is empty; add episodes first")


def _is_repeatable(data: Any) -> bool:
    return (
        isinstance(data, Iterable)
        and not isinstance(data, Iterator | str | bytes)
        and not isinstance(data, Batches)
    )


def prefetched(
    draw: Callable[[int], Batch], numbers: range, workers: int, ahead: int
) -> Generator[Batch, None, None]:
    """Batches in order, drawn by ``workers`` threads up to ``workers * ahead`` before they are
    needed; 0 draws on demand.
    """
    if not workers:
        yield from map(draw, numbers)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    waiting: deque[Future[Batch]] = deque()
    try:
        for number in numbers:
            waiting.append(pool.submit(draw, number))
            if len(waiting) > workers * ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
