"""Who is ended for its memory, and who is not."""

import pytest

from worldloom.core.memory import MemoryBound
from worldloom.envs.memory import MemoryWatch

GB = 10**9
PLENTY = MemoryBound("machine", 100 * GB, 50 * GB)
SHORT = MemoryBound("container", 40 * GB, 1 * GB)


class Machine:
    def __init__(self, bound: MemoryBound, size: float, exact: float | None = None) -> None:
        self.bound = bound
        self.size = size
        self.exact = size if exact is None else exact
        self.slept = 0
        self.on_sleep = lambda: None

    def bounds(self) -> list[MemoryBound]:
        return [self.bound]

    def held(self, pids: list[int], *, is_exact: bool = False) -> int:
        return int((self.exact if is_exact else self.size) * GB)

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        self.on_sleep()

    def watch(self, limit_gb: float | None, sharers: int = 4) -> MemoryWatch:
        limit = None if limit_gb is None else limit_gb * GB
        return MemoryWatch(limit, sharers, bounds=self.bounds, held=self.held, sleep=self.sleep)


def pids() -> list[int]:
    return [1]


def test_a_large_env_lives_while_there_is_memory():
    def never() -> list[int]:
        raise AssertionError("no one has to be measured")

    assert Machine(PLENTY, 45).watch(None).complaint(never) == ""


def test_when_memory_is_short_who_holds_more_than_its_part_is_named():
    said = Machine(SHORT, 6).watch(None).complaint(pids)
    for part in ("6.00 GB", "container's 40.0 GB 1.00", "5.00 GB", "4 envs", "--actors.env-memory"):
        assert part in said


def test_when_memory_is_short_who_holds_its_part_or_less_lives():
    assert Machine(SHORT, 5).watch(None).complaint(pids) == ""
    assert Machine(SHORT, 9, exact=4).watch(None).complaint(pids) == "", "the rest is shared"


def test_who_may_be_ended_by_another_worker_is_waited_for():
    machine = Machine(SHORT, 6)

    def relieved() -> None:
        machine.bound = PLENTY

    machine.on_sleep = relieved
    assert machine.watch(None).complaint(pids) == ""
    assert machine.slept == 1


@pytest.mark.parametrize("bound", [PLENTY, SHORT])
def test_a_limit_of_the_user_holds_always_and_alone(bound):
    said = Machine(bound, 2.5).watch(2.0).complaint(pids)
    assert said == ("it held 2.50 GB of memory, more than the 2 that --actors.env-memory-gb allows")
    assert Machine(bound, 30).watch(31.0).complaint(pids) == ""
    assert Machine(bound, 2.5, exact=1.9).watch(2.0).complaint(pids) == ""
