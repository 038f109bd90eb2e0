from collections.abc import Callable

import numpy as np
import pytest

from tests.fakes import FakeReplayWriter
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.sequence import NO_POLICY, Chunk, PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom_dist.actors.stream_writer import StreamWriter

SPEC = EnvSpec(name="toy", obs={"obs": ArraySpec((2,))}, action={"action": ArraySpec((1,))})
COLUMNS = SPEC.columns()
STREAM = StreamId(3, 1, 0)
V1 = PolicyVersion(1, 1)
V2 = PolicyVersion(1, 2)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def row(number: int, *, first: bool = False, last: bool = False) -> dict[str, np.ndarray]:
    """A row of two envs; the second one is ours."""
    return {
        "obs": np.array([[-1, -1], [number, 0]], np.float32),
        "action": np.array([[-1], [number]], np.float32),
        "reward": np.array([9, 0 if first else number], np.float32),
        "is_first": np.array([False, first]),
        "terminated": np.array([False, last]),
        "truncated": np.array([False, False]),
    }


def make(writer: FakeReplayWriter, clock: Clock | None = None, **settings: float) -> StreamWriter:
    return StreamWriter(
        STREAM, COLUMNS, writer, clock=clock or Clock(), **{"chunk_rows": 4, **settings}
    )  # type: ignore[arg-type]


def add(stream: StreamWriter, columns: dict[str, np.ndarray], version: PolicyVersion) -> None:
    is_last = bool(columns["terminated"][1] | columns["truncated"][1])
    stream.add(columns, 1, version, is_first=bool(columns["is_first"][1]), is_last=is_last)


def numbers(writer: FakeReplayWriter) -> list[list[int]]:
    """Row numbers by chunk."""
    lengths = np.cumsum([chunk.num_rows for chunk in writer.chunks[STREAM]])[:-1]
    return [
        part.astype(int).tolist() for part in np.split(writer.rows(STREAM)["obs"][:, 0], lengths)
    ]


def test_chunk_is_sent_when_it_is_full() -> None:
    sink = FakeReplayWriter(COLUMNS)
    stream = make(sink)
    for number in range(10):
        add(stream, row(number, first=number == 0), V1)
    assert numbers(sink) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (stream.open_rows, stream.acked_rows) == (2, 8)
    stream.flush()
    stream.flush()
    assert numbers(sink) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [chunk.seq for chunk in sink.chunks[STREAM]] == [0, 1, 2]
    assert [chunk.num_agent_steps for chunk in sink.chunks[STREAM]] == [3, 4, 2]


def test_chunk_ends_with_the_episode_and_before_a_reset_row() -> None:
    sink = FakeReplayWriter(COLUMNS)
    stream = make(sink)
    add(stream, row(0, first=True), V1)
    add(stream, row(1, last=True), V1)
    add(stream, row(2, first=True), V1)
    add(stream, row(3), V1)
    add(stream, row(4, first=True), V1)
    stream.flush()
    assert numbers(sink) == [[0, 1], [2, 3], [4]]


def test_chunk_is_split_where_the_version_changes() -> None:
    sink = FakeReplayWriter(COLUMNS)
    stream = make(sink)
    for number, version in enumerate([NO_POLICY, NO_POLICY, V1, V2, V2]):
        add(stream, row(number, first=number == 0), version)
    stream.flush()
    assert numbers(sink) == [[0, 1], [2], [3, 4]]
    assert [chunk.version for chunk in sink.chunks[STREAM]] == [NO_POLICY, V1, V2]


def test_old_chunk_is_sent_though_it_is_not_full() -> None:
    sink = FakeReplayWriter(COLUMNS)
    clock = Clock()
    stream = make(sink, clock, max_age_s=1.0)
    add(stream, row(0, first=True), V1)
    clock.now = 0.9
    stream.flush_if_old()
    assert stream.open_rows == 1
    clock.now = 1.0
    stream.flush_if_old()
    assert numbers(sink) == [[0]]
    add(stream, row(1), V1)
    clock.now = 2.1
    add(stream, row(2), V1)
    assert numbers(sink) == [[0], [1, 2]]


def test_chunk_that_was_not_acknowledged_is_sent_again_before_anything_newer() -> None:
    sink = FakeReplayWriter(
        COLUMNS, failures=[ConnectionError("gone"), ConnectionError("still gone")]
    )
    stream = make(sink, chunk_rows=2)
    add(stream, row(0, first=True), V1)
    with pytest.raises(ConnectionError, match="gone"):
        add(stream, row(1), V1)
    with pytest.raises(ConnectionError, match="still gone"):
        add(stream, row(2), V1)
    assert stream.open_rows == 2
    add(stream, row(2), V1)
    stream.flush()
    assert numbers(sink) == [[0, 1], [2]]


def test_lost_acknowledgement_repeats_the_same_chunk() -> None:
    sink = FakeReplayWriter(COLUMNS)
    sink.lose_acks = 1
    stream = make(sink, chunk_rows=2)
    add(stream, row(0, first=True), V1)
    with pytest.raises(ConnectionError):
        add(stream, row(1), V1)
    stream.flush()
    assert (sink.num_rows, sink.duplicate_rows, stream.acked_rows) == (2, 2, 2)


def test_stream_goes_on_after_a_restore() -> None:
    sink = FakeReplayWriter(COLUMNS)
    stream = make(sink)
    add(stream, row(0, first=True), V1)
    stream.flush()
    again = make(sink)
    again.set_state(stream.state())
    add(again, row(1), V1)
    again.flush()
    assert numbers(sink) == [[0], [1]]


def test_chunk_must_have_room_for_a_row() -> None:
    with pytest.raises(ConfigurationError, match=r"actors.chunk_rows must be >= 1, got 0"):
        make(FakeReplayWriter(COLUMNS), chunk_rows=0)


class LaterWriter:
    """Acknowledges when it is waited for; notes what happens, and refuses two chunks of a stream on
    their way.
    """

    def __init__(self, sink: FakeReplayWriter, clock: Clock) -> None:
        self.sink = sink
        self.clock = clock
        self.happened: list[str] = []
        self.is_open = False

    def append(self, chunk: Chunk) -> Callable[[], None]:
        assert not self.is_open, "the chunk before it is not acknowledged"
        self.is_open = True
        self.happened.append(f"sent {chunk.seq}")

        def wait() -> None:
            self.is_open = False
            self.clock.now += 0.25
            self.sink.append(chunk)
            self.happened.append(f"acknowledged {chunk.seq}")

        return wait


def make_later(*failures: Exception | None) -> tuple[LaterWriter, StreamWriter]:
    clock = Clock()
    later = LaterWriter(FakeReplayWriter(COLUMNS, failures), clock)
    return later, StreamWriter(STREAM, COLUMNS, later, clock=clock, chunk_rows=2, max_age_s=1e9)


def test_rows_are_added_while_a_chunk_is_on_its_way_and_the_next_chunk_waits_for_it() -> None:
    later, stream = make_later()
    for number in range(3):
        add(stream, row(number, first=number == 0), V1)
    assert later.happened == ["sent 0"]
    assert (stream.open_rows, stream.acked_rows, stream.blocked_s) == (3, 0, 0.0)
    add(stream, row(3), V1)
    assert later.happened == ["sent 0", "acknowledged 0", "sent 1"]
    assert (stream.open_rows, stream.acked_rows, stream.blocked_s) == (2, 2, 0.25)
    add(stream, row(4), V1)
    stream.flush()
    assert later.happened[2:] == ["sent 1", "acknowledged 1", "sent 2", "acknowledged 2"]
    assert (stream.open_rows, stream.acked_rows, stream.blocked_s) == (0, 5, 0.75)
    assert numbers(later.sink) == [[0, 1], [2, 3], [4]]


def test_chunk_whose_acknowledgement_fails_is_sent_again_before_anything_newer() -> None:
    later, stream = make_later(ConnectionError("gone"), ConnectionError("still gone"))
    for number in range(3):
        add(stream, row(number, first=number == 0), V1)
    with pytest.raises(ConnectionError, match="gone"):
        add(stream, row(3), V1)
    with pytest.raises(ConnectionError, match="still gone"):
        stream.flush()
    assert stream.open_rows == 4
    stream.flush()
    assert later.happened == [
        "sent 0",
        "sent 0",
        "sent 0",
        "acknowledged 0",
        "sent 1",
        "acknowledged 1",
    ]
    assert numbers(later.sink) == [[0, 1], [2, 3]]


def test_restored_stream_forgets_what_was_on_its_way() -> None:
    later, stream = make_later()
    state = stream.state()
    add(stream, row(0, first=True), V1)
    add(stream, row(1), V1)
    stream.set_state(state)
    later.is_open = False
    stream.flush()
    assert (later.happened, stream.open_rows) == (["sent 0"], 0)
