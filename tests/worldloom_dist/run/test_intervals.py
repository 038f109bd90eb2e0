import asyncio

from worldloom_dist.run.intervals import Interval, Throttle


def test_many_calls_in_a_moment_become_two_and_the_last_state_is_told() -> None:
    async def play() -> None:
        told: list[int] = []
        calls: list[int] = []
        spaced = Throttle(lambda: told.append(len(calls)), 0.5)
        for _ in range(19):
            calls.append(1)
            spaced()
        assert told == [1]
        while len(told) < 2:
            await asyncio.sleep(0.005)
        assert told == [1, 19]

    asyncio.run(play())


def test_without_an_interval_every_call_is_made() -> None:
    told: list[int] = []
    spaced = Throttle(lambda: told.append(1), 0.0)
    for _ in range(3):
        spaced()
    assert told == [1, 1, 1]


def test_an_interval_begins_again_where_something_was_due_at_once() -> None:
    long = Interval(1000.0)
    assert not long.is_due()
    assert long.is_due(at_once=True)
    assert not long.is_due()
