"""Small implementations of ``worldloom_dist.ports`` and of a policy, for tests. They check
everything that they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from worldloom.core.exceptions import BufferError, CheckpointError, StateError
from worldloom.core.metrics import Histogram, Last, Max, Mean, MetricMap, Sum, merge_into
from worldloom.core.protocol import ActOutput, Carry
from worldloom.core.sequence import (
    NO_POLICY,
    Chunk,
    PolicyVersion,
    Rows,
    StreamId,
    agent_steps,
    check_sequence,
)
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.data.codec import decode_rows
from worldloom.data.windows import SampledWindows
from worldloom_dist.metrics.names import METRICS, split_key
from worldloom_dist.ports import SampleRequest


class FakeReplayWriter:
    """Keeps the rows of every stream; refuses a chunk that breaks any promise of ``Chunk``.

    Args:
        columns: Columns of a row.
        failures: Popped one per call: an exception raised before the chunk is stored, or None.
    """

    def __init__(
        self, columns: Mapping[str, ArraySpec], failures: Sequence[Exception | None] = ()
    ) -> None:
        self.columns = columns
        self.failures = list(failures)
        self.chunks: dict[StreamId, list[Chunk]] = {}
        self.duplicate_rows = 0
        self.lose_acks = 0
        self._checked: dict[StreamId, Rows] = {}

    def append(self, chunk: Chunk) -> None:
        if self.failures:
            failure = self.failures.pop(0)
            if failure is not None:
                raise failure
        known = self.chunks.setdefault(chunk.stream, [])
        if chunk.seq < len(known):
            assert known[chunk.seq] == chunk, "a repeated chunk must be the same chunk"
            self.duplicate_rows += chunk.num_rows
            return
        assert chunk.seq == len(known), (
            f"stream {chunk.stream}: chunk {chunk.seq} after {len(known) - 1}"
        )
        rows = decode_rows(chunk.payload, self.columns)
        assert check_sequence(rows, self.columns) == chunk.num_rows > 0
        assert agent_steps(rows["is_first"]) == chunk.num_agent_steps
        assert not rows["is_first"][1:].any(), "a chunk must end where an episode ends"
        if known:
            assert known[-1].version <= chunk.version, "versions must not fall"
        known.append(chunk)
        if self.lose_acks:
            self.lose_acks -= 1
            raise ConnectionError("acknowledgement lost on purpose")

    def rows(self, stream: StreamId) -> Rows:
        """Every row of a stream, checked as one sequence."""
        parts = [decode_rows(chunk.payload, self.columns) for chunk in self.chunks[stream]]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in self.columns}
        check_sequence(rows, self.columns)
        return rows

    @property
    def num_rows(self) -> int:
        """Rows of all streams."""
        return sum(chunk.num_rows for chunks in self.chunks.values() for chunk in chunks)


class FakeReplayReader:
    """Serves windows that begin anywhere in the rows of a :class:`FakeReplayWriter`; one shard."""

    def __init__(self, writer: FakeReplayWriter, window_rows: int) -> None:
        self.writer = writer
        self.window_rows = window_rows
        self.written_back: list[tuple[np.ndarray, Mapping[str, np.ndarray]]] = []

    def sample(self, request: SampleRequest) -> SampledWindows:
        assert request.windows >= 1
        assert all(isinstance(part, int) for part in request.seed)
        streams = {stream: self.writer.rows(stream) for stream in sorted(self.writer.chunks)}
        starts = [
            (stream, at)
            for stream, rows in streams.items()
            for at in range(len(rows["reward"]) - self.window_rows + 1)
        ]
        if not starts:
            raise BufferError(f"no window of {self.window_rows} rows is stored yet")
        rng = np.random.default_rng(request.seed)
        picks = [starts[int(index)] for index in rng.integers(len(starts), size=request.windows)]
        first_id = dict(
            zip(
                streams,
                np.cumsum([0, *(len(r["reward"]) for r in streams.values())])[:-1],
                strict=True,
            )
        )
        columns = {
            name: np.stack(
                [streams[stream][name][at : at + self.window_rows] for stream, at in picks]
            )
            for name in self.writer.columns
        }
        ids = np.stack(
            [first_id[stream] + np.arange(at, at + self.window_rows) for stream, at in picks]
        )
        zeros = np.zeros(request.windows, np.int64)
        return SampledWindows(columns, ids, zeros, zeros, np.zeros(request.windows))

    def write_back(self, windows: SampledWindows, refreshed: Mapping[str, np.ndarray]) -> None:
        for name, value in refreshed.items():
            spec = self.writer.columns[name]
            count, length = value.shape[:2]
            assert (count, value.shape[2:]) == (len(windows.row_ids), spec.shape), name
            assert 1 <= length <= windows.row_ids.shape[1], name
        self.written_back.append((windows.row_ids, refreshed))


class FakeWeights:
    """Both ends of the weights' way: a sink that checks, a source that may fail.

    Attributes:
        failures: Popped one per ``fetch``: an exception to raise, or None.
    """

    def __init__(self) -> None:
        self.published: list[WeightsSnapshot] = []
        self.failures: list[Exception | None] = []
        self.fetches = 0

    def publish(self, snapshot: WeightsSnapshot) -> None:
        assert not snapshot.buffer.flags.writeable, (
            "a snapshot must not change after it was published"
        )
        assert all(entry.stop - entry.start >= 0 for entry in snapshot.entries)
        if snapshot.version <= self.version():
            raise StateError(f"version {snapshot.version} is not above {self.version()}")
        self.published.append(snapshot)

    def version(self) -> PolicyVersion:
        return self.published[-1].version if self.published else NO_POLICY

    def fetch(self) -> WeightsSnapshot:
        self.fetches += 1
        if self.failures:
            failure = self.failures.pop(0)
            if failure is not None:
                raise failure
        if not self.published:
            raise StateError("nothing has been published yet")
        return self.published[-1]


class FakeMetricSink:
    """Merges what it gets; refuses keys that the table of metrics does not have."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int], MetricMap] = {}
        self.facts: list[Mapping[str, Any]] = []

    def emit(
        self, role: str, index: int, values: MetricMap, facts: Mapping[str, Any] | None = None
    ) -> None:
        for key, value in values.items():
            assert split_key(key)[0] in METRICS, f"metric {key!r} is not in the table"
            assert isinstance(value, Mean | Sum | Max | Last | Histogram), key
        merge_into(self.values.setdefault((role, index), {}), values)
        if facts:
            self.facts.append(facts)


class FakePolicy:
    """Counts its decisions since the last reset, per env, in a numpy carry; acts by that count and
    one weight.

    Continuous actions are ``weight + 0.01 * count`` (with a little noise when exploring), folded
    into [-1, 1]; discrete ones are the count modulo the number of classes. Extras hold the count.
    """

    def __init__(
        self, spec: EnvSpec, extras: Mapping[str, ArraySpec] | None = None, seed: int = 0
    ) -> None:
        self.spec = spec
        self.extras = dict(extras or {})
        self.weight = 0.0
        self.rng = np.random.default_rng(seed)
        self.calls: list[int] = []
        self.on_act: Callable[[Mapping[str, np.ndarray], np.ndarray], None] | None = None

    def initial_carry(self, num_envs: int) -> Carry:
        return {"count": np.zeros(num_envs, np.int64), "noise": np.zeros((num_envs, 2), np.float32)}

    def act(
        self, obs: Mapping[str, np.ndarray], carry: Carry, is_first: np.ndarray, *, explore: bool
    ) -> ActOutput:
        count = len(is_first)
        assert is_first.dtype == bool
        assert set(obs) == set(self.spec.obs)
        for key, spec in self.spec.obs.items():
            assert obs[key].shape == (count, *spec.shape), key
            assert obs[key].dtype == spec.dtype, key
        assert carry["count"].shape == (count,)
        self.calls.append(count)
        if self.on_act is not None:
            self.on_act(obs, is_first)
        steps = np.where(is_first, 0, carry["count"])
        noise = self.rng.normal(0, 0.001, (count, 2)).astype(np.float32) * explore
        action = {key: self._choose(spec, steps, noise) for key, spec in self.spec.action.items()}
        extras = {
            name: np.broadcast_to(_lead(steps, spec), (count, *spec.shape)).astype(spec.dtype)
            for name, spec in self.extras.items()
        }
        return ActOutput(action, {"count": steps + 1, "noise": noise}, extras)

    def load_weights(self, snapshot: WeightsSnapshot) -> None:
        arrays = snapshot.arrays()
        if set(arrays) != {"weight"}:
            raise CheckpointError(f"weights {sorted(arrays)} do not fit this policy")
        self.weight = float(arrays["weight"][0])

    def rng_state(self) -> dict[str, Any]:
        return {"numpy": self.rng.bit_generator.state}

    def load_rng_state(self, state: Mapping[str, Any]) -> None:
        self.rng.bit_generator.state = state["numpy"]

    def _choose(self, spec: ArraySpec, steps: np.ndarray, noise: np.ndarray) -> np.ndarray:
        shape = (len(steps), *spec.shape)
        if spec.is_discrete:
            classes = np.reshape(spec.num_classes, spec.shape)
            return np.broadcast_to(_lead(steps, spec) % classes, shape).astype(spec.dtype)
        value = self.weight + 0.01 * steps + noise[:, 0]
        folded = (value + 1) % 2 - 1
        return np.broadcast_to(_lead(folded, spec), shape).astype(spec.dtype)


def snapshot_of(weight: float, version: PolicyVersion) -> WeightsSnapshot:
    """Weights that :class:`FakePolicy` understands."""
    return WeightsSnapshot.from_arrays({"weight": np.full(1, weight, np.float32)}, version)


def check_counting_rows(rows: Rows) -> None:
    """Prove by ``toy:counting``'s own counters that no row of a stream is lost, doubled or shifted.

    Args:
        rows: The rows of one stream from its first row on, without env failures.
    """
    from worldloom.envs.toy import CountingEnv

    expected: list[tuple[int, int]] = []
    episode = 0
    while len(expected) < len(rows["reward"]):
        length = CountingEnv.LENGTHS[episode % len(CountingEnv.LENGTHS)]
        expected += [(episode, step) for step in range(length + 1)]
        episode += 1
    for t, (episode, step) in enumerate(expected[: len(rows["reward"])]):
        length = CountingEnv.LENGTHS[episode % len(CountingEnv.LENGTHS)]
        assert rows["obs"][t, :2].tolist() == [episode, step], f"row {t}"
        assert rows["reward"][t] == step, f"row {t}"
        assert rows["is_first"][t] == (step == 0), f"row {t}"
        assert rows["terminated"][t] == (step == length and episode % 2 == 0), f"row {t}"
        assert rows["truncated"][t] == (step == length and episode % 2 == 1), f"row {t}"
        acted = 0.0 if step == 0 else rows["action"][t - 1, 0]
        assert rows["obs"][t, 2] == np.float32(acted), (
            f"row {t}: the action that led here is not the one stored before it"
        )


def _lead(values: np.ndarray, spec: ArraySpec) -> np.ndarray:
    return values.reshape((len(values),) + (1,) * len(spec.shape))
