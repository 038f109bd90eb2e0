"""Sessions: rows, repeated questions, leases, resuming, hold."""

import asyncio
import gc
import tracemalloc
import weakref

import numpy as np
import pytest

from tests.fakes import check_counting_rows
from tests.worldloom_dist.gateway.parts import (
    Player,
    Rig,
    contract_of,
    play,
    question,
)
from worldloom.core.exceptions import StateError
from worldloom.core.sequence import StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import carry_resets_of, notes_of
from worldloom_client.wire import encode_tensor, message, named
from worldloom_dist.gateway import gateway
from worldloom_dist.gateway.questions import read_question
from worldloom_dist.gateway.refusal import RefusalError


def run(work):
    return asyncio.run(work)


def test_every_row_of_two_envs_is_stored_once_and_at_its_place() -> None:
    async def work():
        rig = Rig(contract_of(extras={"count": ArraySpec((), "int64")}))
        opened = await rig.open(num_envs=2)
        players = [Player(0), Player(1)]
        await play(rig, opened.secret, players, 20)
        closed = await rig.gateway.close(opened.secret)
        return rig, opened, closed

    rig, opened, closed = run(work())
    assert [(p.env, p.stored, p.next_step) for p in closed.position] == [(0, 20, 20), (1, 20, 20)]
    for env in (0, 1):
        stream = StreamId(opened.slot, opened.incarnation, env)
        rows = rig.shard.writer.rows(stream)
        assert rows["truncated"][-1] or rows["terminated"][-1]
        rows["truncated"][-1] = False  # broken off there
        check_counting_rows(rows)
        # latents are of the decision that the row holds
        assert rows["count"].tolist() == rows["obs"][:, 1].astype(int).tolist()
    assert rig.gateway.meter.rows == 40
    assert rig.gateway.num_sessions == 0


def test_an_episode_that_breaks_off_ends_with_its_last_observation_as_truncated() -> None:
    async def work():
        rig = Rig()
        opened = await rig.open()
        zero = np.zeros(3)
        for step, first in enumerate([True, False, False, True, False]):
            row = (0, step, zero + step, 0.0, first, False, False)
            await rig.gateway.act(opened.secret, question([row]))
        await rig.gateway.close(opened.secret)
        return rig.shard.writer.rows(StreamId(opened.slot, opened.incarnation, 0))

    rows = run(work())
    assert rows["obs"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert rows["truncated"].tolist() == [False, False, True, False, True]
    assert not rows["terminated"].any()


def test_a_question_that_comes_again_gets_the_same_answer_and_is_decided_once() -> None:
    async def work():
        rig = Rig()
        opened = await rig.open()
        one = question([(0, 0, np.zeros(3), 0.0, True, False, False)])
        rig.decider.gate.clear()
        both = [asyncio.ensure_future(rig.gateway.act(opened.secret, one)) for _ in range(2)]
        await asyncio.sleep(0)
        rig.decider.gate.set()
        answers = [await task for task in both]
        answers.append(await rig.gateway.act(opened.secret, one))
        return rig, answers

    rig, answers = run(work())
    assert rig.decider.requests == 1
    assert len({answer.action[0].data for answer in answers}) == 1


def test_a_question_whose_decision_failed_may_come_again() -> None:
    async def work():
        rig = Rig()
        opened = await rig.open()
        one = question([(0, 0, np.zeros(3), 0.0, True, False, False)])
        rig.decider.failures = [StateError("the server is away")]
        with pytest.raises(RefusalError) as caught:
            await rig.gateway.act(opened.secret, one)
        two = question([(0, 1, np.zeros(3), 0.0, False, False, False)])
        with pytest.raises(RefusalError, match="before step 0 was answered"):
            await rig.gateway.act(opened.secret, two)
        answer = await rig.gateway.act(opened.secret, one)
        return caught.value, answer

    error, answer = run(work())
    assert error.code == "UNAVAILABLE"
    assert "away" in error.message
    assert len(answer.action) == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ((0, 2, 0.0, True, False, False), "step: env 0 got 2, expected 1, or 0 again"),
        ((0, 5, 0.0, False, False, False), "expected 1"),
        ((1, 0, 0.0, True, False, False), "env: got 1, expected 0 to 0"),
        ((0, 1, 1.0, True, False, False), "reward"),
        ((0, 1, 0.0, True, True, False), "is_first"),
        ((0, 1, float("nan"), False, False, False), "reward"),
        ((0, 1, 0.0, 2, False, False), "is_first: got a byte 2"),
    ],
)
def test_a_wrong_question_is_refused_and_changes_nothing(row, says) -> None:
    async def work():
        rig = Rig()
        opened = await rig.open()
        good = question([(0, 0, np.zeros(3), 0.0, True, False, False)])
        await rig.gateway.act(opened.secret, good)
        env, step, *rest = row
        with pytest.raises(RefusalError) as caught:
            await rig.gateway.act(opened.secret, question([(env, step, np.zeros(3), *rest)]))
        next_one = question([(0, 1, np.zeros(3), 0.5, False, True, False)])
        await rig.gateway.act(opened.secret, next_one)
        await rig.gateway.close(opened.secret)
        return caught.value, rig.shard.writer.rows(StreamId(opened.slot, opened.incarnation, 0))

    error, rows = run(work())
    assert error.code == "INVALID_ARGUMENT"
    assert says in error.message
    assert rows["reward"].tolist() == [0.0, 0.5]


def test_a_row_in_mid_episode_needs_an_open_episode() -> None:
    async def work():
        rig = Rig()
        opened = await rig.open()
        row = question([(0, 0, np.zeros(3), 0.0, False, False, False)])
        await rig.gateway.act(opened.secret, row)

    with pytest.raises(RefusalError, match="no open episode"):
        run(work())


def test_what_ran_in_place_of_an_answer_is_stored_with_who_chose_it() -> None:
    async def work():
        rig = Rig()
        opened = await rig.open()
        ran = np.array([0.25, -0.5], np.float32)
        executed = message("Executed")(env=0, action=[encode_tensor(ran)], source=2)
        zero = np.zeros(3)
        await rig.gateway.act(opened.secret, question([(0, 0, zero, 0.0, True, False, False)]))
        await rig.gateway.act(
            opened.secret,
            question([(0, 1, zero, 1.0, False, True, False)], executed=[executed]),
        )
        await rig.gateway.close(opened.secret)
        chunks = rig.shard.writer.chunks[StreamId(opened.slot, opened.incarnation, 0)]
        return rig, ran, chunks

    rig, ran, chunks = run(work())
    (chunk,) = chunks
    assert rig.shard.writer.rows(chunk.stream)["action"][0].tolist() == ran.tolist()
    assert notes_of(chunk.payload) == {"first_step": 0, "sources": [2, 1]}


def test_executed_actions_must_be_actions() -> None:
    async def work(action, source):
        rig = Rig()
        opened = await rig.open()
        zero = np.zeros(3)
        await rig.gateway.act(opened.secret, question([(0, 0, zero, 0.0, True, False, False)]))
        executed = message("Executed")(env=0, action=[encode_tensor(action)], source=source)
        row = (0, 1, zero, 0.0, False, False, False)
        await rig.gateway.act(opened.secret, question([row], executed=[executed]))

    for action, source, says in (
        (np.array([2.0, 0.0], np.float32), 2, r"\[-1, 1\]"),
        (np.zeros(3, np.float32), 2, "expected float32"),
        (np.zeros(2, np.float32), 0, "source: got 0"),
        (np.zeros(2, np.float32), 9, "source: got 9"),
    ):
        with pytest.raises(RefusalError, match=says):
            run(work(action, source))


def test_rows_that_a_client_leaves_out_end_the_episode_and_count_as_done() -> None:
    async def work():
        rig = Rig()
        opened = await rig.open()
        zero = np.zeros(3)
        for step, (first, skip) in enumerate(
            [(True, False), (False, False), (False, True), (False, False), (True, False)]
        ):
            row = (0, step, zero + step, 0.0, first, False, False)
            await rig.gateway.act(opened.secret, question([row], skip_store=skip))
        closed = await rig.gateway.close(opened.secret)
        rows = rig.shard.writer.rows(StreamId(opened.slot, opened.incarnation, 0))
        return rig, closed, rows

    rig, closed, rows = run(work())
    assert rows["obs"][:, 0].tolist() == [0, 1, 4]
    assert rows["truncated"].tolist() == [False, True, False]
    assert closed.position[0].stored == 5
    assert rig.gateway.meter.skipped == 2


def test_a_client_is_asked_to_wait_while_replay_wants_no_rows_and_then_refused() -> None:
    async def work():
        rig = Rig(contract_of(held_chunks=2, refused_chunks=3))
        opened = await rig.open()
        rig.shard.permits.clear()
        holds = []
        rows = [(0, step, np.zeros(3), 0.0, step == 0, False, False) for step in range(15)]
        for row in rows[:14]:
            answer = await rig.gateway.act(opened.secret, question([row]))
            holds.append(answer.hold.ToMilliseconds())
        with pytest.raises(RefusalError) as caught:
            await rig.gateway.act(opened.secret, question([rows[14]]))
        empty = await rig.gateway.act(opened.secret, message("ActRequest")())
        rig.shard.permits.set()
        await asyncio.sleep(0.01)
        free = await rig.gateway.act(opened.secret, message("ActRequest")())
        return holds, caught.value, empty, free

    holds, error, empty, free = run(work())
    assert holds[:9] == [0] * 9
    assert holds[10] > 0
    assert error.code == "RESOURCE_EXHAUSTED"
    assert len(holds) == 14
    assert empty.hold.ToMilliseconds() > 0
    assert free.hold.ToMilliseconds() == 0


def test_a_silent_client_loses_its_session_and_may_resume_it() -> None:
    now = [0.0]

    async def work():
        rig = Rig(clock=lambda: now[0])
        opened = await rig.open()
        player = Player()
        await play(rig, opened.secret, [player], 3)
        now[0] = 9.0
        rig.gateway.tend()
        assert rig.gateway.num_sessions == 1
        now[0] = 20.0
        rig.gateway.tend()
        assert rig.gateway.num_sessions == 0
        with pytest.raises(RefusalError) as caught:
            await play(rig, opened.secret, [player], 1)
        await asyncio.sleep(0.01)
        again = await rig.open(resume=opened.secret)
        await play(rig, again.secret, [player], 20)
        await rig.gateway.close(again.secret)
        return rig, opened, caught.value, again

    rig, opened, error, again = run(work())
    assert error.code == "NOT_FOUND"
    assert "its lease of 10 s is over" in error.message
    assert (again.position[0].stored, again.position[0].next_step) == (3, 3)
    one = rig.shard.writer.rows(StreamId(opened.slot, opened.incarnation, 0))
    two = rig.shard.writer.rows(StreamId(again.slot, again.incarnation, 0))
    assert len(one["reward"]) == 3
    assert one["truncated"][-1]
    one["truncated"][-1] = two["truncated"][-1] = two["terminated"][-1] = False
    both = {name: np.concatenate([one[name], two[name]]) for name in one}
    # the answer to the row that ended the old stream was carried out, and is stored there
    check_counting_rows({**both, "terminated": both["terminated"], "truncated": both["truncated"]})
    first = rig.shard.writer.chunks[StreamId(again.slot, again.incarnation, 0)][0]
    assert carry_resets_of(first.payload) == [0]


def test_another_gateway_goes_on_exactly_after_what_is_stored() -> None:
    async def work():
        one = Rig()
        opened = await one.open()
        player = Player()
        asked = []
        for _ in range(11):  # four rows each in two chunks, and three that die with the gateway
            asked.append((player.row(), None))
            response = await one.gateway.act(opened.secret, question([player.row()]))
            action = named(one.contract.action, response.action, (1,), "action")["action"][0]
            asked[-1] = (player.row(), action)
            player.move(action)
        await asyncio.sleep(0.01)
        two = Rig(shard=one.shard, index=1)
        again = await two.open(resume=opened.secret)
        position = again.position[0]
        for step in range(position.next_step, 11):
            row, _ = asked[step]
            executed = []
            if not row[4]:
                ran = asked[step - 1][1]
                executed = [message("Executed")(env=0, action=[encode_tensor(ran)], source=1)]
            await two.gateway.act(again.secret, question([row], executed=executed))
        ran = asked[10][1]
        executed = [message("Executed")(env=0, action=[encode_tensor(ran)], source=1)]
        await two.gateway.act(
            again.secret,
            question([player.row()], executed=[] if player.row()[4] else executed),
        )
        await two.gateway.close(again.secret)
        # the old one comes back to life: its rows are refused
        await play(one, opened.secret, [player], 8)
        one.gateway.tend()
        return one, opened, again, position

    one, opened, again, position = run(work())
    assert (position.stored, position.next_step) == (8, 8) or position.stored >= 8
    first = one.shard.writer.rows(StreamId(opened.slot, opened.incarnation, 0))
    second = one.shard.writer.rows(StreamId(again.slot, again.incarnation, 0))
    second["truncated"][-1] = second["terminated"][-1] = False
    both = {name: np.concatenate([first[name], second[name]]) for name in first}
    assert len(both["reward"]) == 12
    check = {name: value[:11] for name, value in both.items()}
    check_counting_rows(check)
    assert one.gateway.num_sessions == 0


def test_an_open_that_comes_again_is_the_same_session() -> None:
    async def work():
        rig = Rig()
        key = b"0123456789abcdef"
        one, two = await asyncio.gather(
            rig.open(idempotency_key=key), rig.open(idempotency_key=key)
        )
        three = await rig.open(idempotency_key=key)
        other = await rig.open()
        return rig, one, two, three, other

    rig, one, two, three, other = run(work())
    assert one.secret == two.secret == three.secret != other.secret
    assert rig.gateway.num_sessions == 2


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ({"num_envs": 0}, "INVALID_ARGUMENT", "num_envs: got 0, expected 1 to 256"),
        ({"num_envs": 2**31}, "INVALID_ARGUMENT", "num_envs"),
        ({"client": "a b"}, "INVALID_ARGUMENT", "client: got 'a b'"),
        ({"idempotency_key": b"short"}, "INVALID_ARGUMENT", "idempotency_key: got 5 bytes"),
        ({"resume": b"x" * 60}, "UNAUTHENTICATED", "not given out by this run"),
        ({"resume": b"x" * 2**20}, "UNAUTHENTICATED", "not given out by this run"),
        (
            {"fingerprint": "obs 'obs' = float32[4]\naction 'action' = float32[2]"},
            "FAILED_PRECONDITION",
            "obs 'obs' = float32[4], and this policy has float32[3]",
        ),
    ],
)
def test_what_cannot_be_opened_is_refused(more, code, says) -> None:
    async def work():
        rig = Rig()
        if says.startswith("obs"):
            with pytest.raises(RefusalError) as caught:
                await rig.open(**more)
            return caught.value
        with pytest.raises(RefusalError) as caught:
            await rig.open(**more)
        return caught.value

    error = run(work())
    assert error.code == code
    if "float32" in says:
        assert "float32[4]" in error.message
        assert "float32[3]" in error.message
    else:
        assert says in error.message


def test_there_are_only_so_many_sessions() -> None:
    async def work():
        rig = Rig(contract_of(max_sessions=2))
        opened = await rig.open()
        await rig.open()
        with pytest.raises(RefusalError) as caught:
            await rig.open()
        await rig.gateway.close(opened.secret)
        await rig.open()
        return caught.value

    assert run(work()).code == "RESOURCE_EXHAUSTED"


def test_a_secret_of_no_one_and_of_another_run_are_told_apart() -> None:
    async def work(secret):
        rig = Rig()
        await rig.gateway.act(secret, message("ActRequest")())

    for secret, code in ((b"", "UNAUTHENTICATED"), (b"z" * 80, "UNAUTHENTICATED")):
        with pytest.raises(RefusalError) as caught:
            run(work(secret))
        assert caught.value.code == code


def test_a_slot_is_used_again_under_another_incarnation() -> None:
    async def work():
        rig = Rig()
        one = await rig.open()
        await rig.gateway.close(one.secret)
        two = await rig.open()
        return one, two

    one, two = run(work())
    assert one.slot == two.slot
    assert two.incarnation > one.incarnation


def test_draining_stores_what_is_open() -> None:
    async def work():
        rig = Rig()
        opened = await rig.open()
        await play(rig, opened.secret, [Player()], 3)
        left = await rig.gateway.drain(5.0)
        with pytest.raises(RefusalError, match="this gateway ends"):
            await rig.open()
        return rig, left

    rig, left = run(work())
    assert left == 0
    assert rig.shard.writer.num_rows == 3


def test_a_slot_is_free_when_no_question_of_its_session_is_open() -> None:
    """A client hangs up while the policy still decides for it; the next one gets a slot of its
    own, and what waited is told.
    """

    async def work():
        rig = Rig()
        opened = await rig.open()
        rig.decider.gate.clear()
        one = question([(0, 0, np.zeros(3), 0.0, True, False, False)])
        asked = asyncio.ensure_future(rig.gateway.act(opened.secret, one))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(rig.gateway.close(opened.secret))
        await asyncio.sleep(0.01)
        other = await rig.open()
        rig.decider.gate.set()
        await asyncio.wait_for(asyncio.gather(asked, closing, return_exceptions=True), 10)
        third = await rig.open()
        return opened.slot, other.slot, third.slot

    first, second, third = run(work())
    assert second != first
    assert third == first


def test_who_waits_is_told_when_a_decision_is_given_up() -> None:
    async def work():
        rig = Rig()
        opened = await rig.open()
        one = question([(0, 0, np.zeros(3), 0.0, True, False, False)])
        rig.decider.failures = [asyncio.CancelledError()]
        with pytest.raises(RefusalError) as caught:
            await asyncio.wait_for(rig.gateway.act(opened.secret, one), 10)
        again = await asyncio.wait_for(rig.gateway.act(opened.secret, one), 10)
        return caught.value.code, len(again.action)

    assert run(work()) == ("UNAVAILABLE", 1)


def test_rows_of_sessions_that_were_closed_are_counted_until_they_are_stored(monkeypatch) -> None:
    monkeypatch.setattr(gateway, "DRAIN_S", 0.0)

    async def work():
        rig = Rig(contract_of(max_sessions=3))
        rig.shard.permits.clear()
        for _ in range(3):
            opened = await rig.open()
            await play(rig, opened.secret, [Player()], 6)
            await rig.gateway.close(opened.secret)
        assert rig.gateway.num_sessions == 0
        assert rig.gateway.unstored == 18
        with pytest.raises(RefusalError, match="all 3 are open, or have rows that wait") as caught:
            await rig.open()
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert await rig.gateway.drain(0.0) == 18
        rig.shard.permits.set()
        assert await rig.gateway.drain() == 0
        assert rig.gateway.unstored == 0

    run(work())


def test_a_session_that_goes_on_elsewhere_names_no_step_without_one_after_it() -> None:
    async def work():
        first = Rig()
        opened = await first.open()
        await first.gateway.close(opened.secret)
        rig = Rig(shard=first.shard, index=1)
        secret = (await rig.open(resume=opened.secret)).secret
        for step in (2**62 + 1, 2**64 - 1):
            with pytest.raises(RefusalError, match=f"step: env 0 got {step}, expected at most"):
                await rig.gateway.act(
                    secret, question([(0, step, np.zeros(3), 0.0, True, False, False)])
                )
        last = question([(0, 2**62, np.zeros(3), 0.0, True, False, False)])
        assert len((await rig.gateway.act(secret, last)).action) == 1
        closed = await rig.gateway.close(secret)
        assert [position.next_step for position in closed.position] == [2**62 + 1]

    run(work())


@pytest.mark.parametrize("where", ["env", "shape"])
def test_a_question_with_a_million_numbers_too_many_is_refused_without_a_copy(where) -> None:
    contract = contract_of()
    asked = question([(0, 0, np.zeros(3), 0.0, True, False, False)])
    numbers = asked.env if where == "env" else asked.obs[0].shape
    numbers.extend([1] * 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(RefusalError, match="expected"):
            read_question(asked, contract, 1)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [100, 10_000])
def test_nothing_is_kept_of_an_open_that_was_refused(size) -> None:
    async def work():
        rig = Rig()
        with pytest.raises(RefusalError) as caught:
            await rig.open(resume=bytes(size), idempotency_key=bytes(16))
        assert caught.value.code == "UNAUTHENTICATED"
        refusal = weakref.ref(caught.value)
        del caught
        await asyncio.sleep(0)  # the loop holds what it hands over until this step ends
        gc.collect()
        assert refusal() is None  # its traceback holds the request
        assert (await rig.open(idempotency_key=bytes(16))).secret

    run(work())
