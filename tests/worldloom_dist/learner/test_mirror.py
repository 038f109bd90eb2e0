"""The state in shared memory: what a standby finds of a learner that was killed, at whatever
moment.
"""

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from worldloom_dist.learner.mirror import PAGE, MirrorReader, StateMirror
from worldloom_dist.ports import MirrorPlace

ROOT = Path(__file__).parents[3]
ROOM = 1 << 30


def state_of(number: int, size: int = 1000) -> dict:
    """A state in which every tensor says the same number."""
    return {
        "agent": {
            "model": {"w": torch.full((size, 3), float(number)), "b": torch.full((7,), number)},
            "optimizer": {0: {"step": torch.tensor(float(number))}, 1: (None, float("inf"))},
            "rng": torch.full((5,), number % 256, dtype=torch.uint8),
            "flags": torch.tensor([True, False]),
            "empty": torch.zeros(0, 4),
            "array": np.full(3, number),
        },
        "train_steps": number,
        "replayed_steps": 16 * number,
    }


def check(state: dict, number: int) -> None:
    agent = state["agent"]
    assert state["train_steps"] == number
    assert (agent["model"]["w"] == number).all()
    assert (agent["model"]["b"] == number).all()
    assert agent["model"]["b"].dtype == torch.int64
    assert agent["optimizer"][0]["step"] == number
    assert agent["optimizer"][1] == (None, float("inf"))
    assert (agent["rng"] == number % 256).all()
    assert agent["flags"].tolist() == [True, False]
    assert agent["empty"].shape == (0, 4)
    assert (agent["array"] == number).all()


@pytest.fixture
def mirror():
    found = StateMirror(ROOM)
    yield found
    found.close()


class Trained:
    """A learner that is asked for its state."""

    def __init__(self) -> None:
        self.replayed_steps = 0
        self.asked = 0

    def state_dict(self) -> dict:
        self.asked += 1
        return state_of(self.replayed_steps // 16)


def test_a_state_comes_back_whole(mirror):
    for number in range(1, 6):
        mirror.write(state_of(number))
        reader = MirrorReader(mirror.place)
        check(reader.newest(), number)
        assert reader.trained == 16 * number
        reader.close()


def test_nothing_is_there_before_the_first_state(mirror):
    assert mirror.place is None
    with pytest.raises(OSError, match="No such file"):
        MirrorReader(MirrorPlace(os.getpid(), 10**6, 1))
    with open(__file__, "rb") as other, pytest.raises(OSError, match="is no mirror"):
        MirrorReader(MirrorPlace(os.getpid(), other.fileno(), 1))


def test_what_was_read_stays_when_the_memory_is_written_again(mirror):
    mirror.write(state_of(1))
    reader = MirrorReader(mirror.place)
    first = reader.newest()
    for number in (2, 3):
        mirror.write(state_of(number))
    check(first, 1)
    check(reader.newest(), 3)


def test_a_state_that_grows_gets_more_memory_at_another_place(mirror):
    mirror.write(state_of(1, size=10))
    place = mirror.place
    before = MirrorReader(place)
    mirror.write(state_of(2, size=100_000))
    assert place != mirror.place
    check(before.newest(), 1)
    check(MirrorReader(mirror.place).newest(), 2)


@pytest.mark.parametrize("place", ["text", "tensors"])
def test_a_damaged_state_is_passed_over_for_the_one_before(mirror, caplog, place):
    mirror.write(state_of(1))
    mirror.write(state_of(2))
    with open(f"/proc/{os.getpid()}/fd/{mirror.place.descriptor}", "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    half = PAGE + (len(memory) - PAGE) // 2
    newest = PAGE  # the second state is in slot 0 again
    at = newest + (30 if place == "text" else (half - newest) // 2)
    memory[at] ^= 0xFF
    reader = MirrorReader(mirror.place)
    check(reader.newest(), 1)
    assert "a mirrored state is passed over: its checksum is wrong" in caplog.text
    memory[half + 30] ^= 0xFF
    assert reader.newest() is None
    memory.close()


def test_a_state_that_is_too_large_is_not_mirrored_and_said_once(caplog):
    small = StateMirror(limit_bytes=100_000)
    learner = Trained()
    learner.state_dict = lambda: state_of(1, size=100_000)
    assert small.follow(learner) > 0
    assert small.follow(learner) == 0
    assert small.place is None
    assert caplog.text.count("is not mirrored") == 1


def test_a_copy_is_made_when_the_last_one_has_cost_its_share(mirror, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    learner = Trained()

    def slowly() -> dict:
        learner.asked += 1
        now[0] += 0.01
        return state_of(learner.replayed_steps // 16)

    learner.state_dict = slowly
    made = 0.0
    for update in range(1000):
        learner.replayed_steps = 16 * (update + 1)
        now[0] += 0.02
        made += mirror.follow(learner)
        assert MirrorReader(mirror.place).trained == 16 * (update + 1)
    assert 20 <= learner.asked <= 33
    assert made / (now[0] - 100.0) <= 0.02


KILLED = """
import sys
sys.path.insert(0, {root!r})
from tests.worldloom_dist.learner.test_mirror import ROOM, state_of
from worldloom_dist.learner.mirror import StateMirror
mirror = StateMirror(ROOM)
number = 0
while True:
    number += 1
    mirror.write(state_of(number, size=200_000))
    if number == 1:
        print(*mirror.place, flush=True)
"""


def test_a_learner_that_is_killed_while_it_copies_leaves_a_whole_state():
    program = KILLED.format(root=str(ROOT))
    for kill in range(4):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        try:
            place = MirrorPlace(*map(int, process.stdout.readline().split()))
            reader = MirrorReader(place)
            before = reader.trained
            while reader.trained < before + 16 * (2 + kill):
                time.sleep(0.0003 * (kill + 1))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            process.stdout.close()
        found = reader.newest()
        check(found, found["train_steps"])
        assert reader.trained - found["replayed_steps"] in (0, 16)
