"""What ``ReplayService.Push`` takes, and what it says no to."""

import asyncio
from dataclasses import replace

import grpc
import numpy as np
import pytest

from tests.worldloom_client.live import live
from tests.worldloom_dist.gateway.parts import KEY, VERSION, KeptShard, Rig, contract_of, question
from worldloom.core.specs import ArraySpec
from worldloom_client.wire import SESSION_KEY, encode_tensor, message, method
from worldloom_dist.gateway.refusal import RefusalError
from worldloom_dist.replay.verify_shard import verify_shard


def chunk(rows=3, *, env=0, seq=0, source=4, version=(0, 0), **changes):
    """A chunk of an episode that goes on, from its beginning if it is the first one."""
    columns = {
        "obs": np.zeros((rows, 3), np.float32),
        "action": np.zeros((rows, 2), np.float32),
        "reward": np.zeros(rows, np.float32),
        "is_first": (np.arange(rows) == 0) & (seq == 0),
        "terminated": np.zeros(rows, bool),
        "truncated": np.zeros(rows, bool),
    }
    columns |= changes
    request = message("PushRequest")(env=env, seq=seq, source=source)
    request.version.incarnation, request.version.update = version
    for name, array in columns.items():
        if array is not None:
            request.column[name].CopyFrom(encode_tensor(array))
    return request


async def push(pushing, request):
    return [answer async for answer in pushing.take(request)][-1]


def rig_in(folder, **more):
    contract = more.pop("contract", None) or contract_of()
    return Rig(contract, shard=KeptShard(contract.columns, folder), **more)


async def opened(rig, **more):
    answer = await rig.open(push=True, **more)
    return rig.gateway.pushing(answer.secret)


ODD = np.frombuffer(b"\x02\x00\x00", bool)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (chunk(env=2), "env: got 2, expected 0 to 1"),
        (chunk(source=0), "source: got 0, expected one of 1 (policy), 2 (human)"),
        (chunk(source=7), "source: got 7"),
        (chunk(version=(9, 9)), "version: got 9.9, and the newest weights are 1.7"),
        (chunk(obs=None), "column: got ['action', 'is_first'"),
        (chunk(camera=np.zeros(3, np.float32)), "column: got ['action', 'camera'"),
        (chunk(obs=np.zeros((3, 4), np.float32)), "column 'obs': got float32 [3, 4], expected"),
        (chunk(obs=np.zeros((2, 3), np.float32)), "column 'obs': got float32 [2, 3], expected"),
        (chunk(obs=np.zeros((3, 3), np.int64)), "column 'obs': got int64 [3, 3], expected float32"),
        (chunk(obs=np.full((3, 3), np.nan, np.float32)), "column 'obs': holds numbers that are"),
        (chunk(action=np.full((3, 2), 1.5, np.float32)), "column 'action': got numbers outside"),
        (chunk(5), "column 'is_first': got 5 rows, expected 1 to 4"),
        (chunk(0), "column 'is_first': got 0 rows"),
        (chunk(is_first=np.array(True)), "column 'is_first': got 0 rows"),
        (chunk(is_first=ODD), "column 'is_first': holds bytes other than 0 and 1"),
        (chunk(is_first=np.array([True, False, True])), "got True after the first row"),
        (chunk(terminated=np.array([False, True, False])), "ends before the last row"),
        (chunk(1, truncated=np.array([True])), "begins an episode cannot end it"),
        (chunk(reward=np.ones(3, np.float32)), "column 'reward': got another than 0 where"),
        (chunk(seq=2**63), "seq: got 9223372036854775808"),
        (chunk(seq=2**62 - 1), "seq: got 4611686018427387903, expected at most"),
        (chunk(version=(0, 2**31)), "version.update: got 2147483648, expected at most 2147483647"),
        (chunk(version=(0, 2**63)), "version.update: got 9223372036854775808"),
    ],
)
def test_a_wrong_chunk_is_refused_in_a_sentence_and_changes_nothing(
    request_, says, tmp_path
) -> None:
    async def work():
        rig = rig_in(tmp_path, contract=contract_of(max_rows_per_chunk=4))
        pushing = await opened(rig, num_envs=2)
        refused = await push(pushing, request_)
        good = await push(pushing, chunk())
        return rig, refused, good

    rig, refused, good = asyncio.run(work())
    assert refused.refusal.code == "INVALID_ARGUMENT"
    assert says in refused.refusal.message
    assert len(refused.refusal.message.splitlines()) == 1
    assert len(refused.refusal.message) < 400
    assert (refused.env, refused.stored) == (request_.env, request_.seq)
    assert (good.env, good.stored, good.HasField("refusal")) == (0, 1, False)
    assert len(rig.shard.chunks) == 1


def test_the_largest_numbers_that_a_client_may_give_are_found_again(tmp_path) -> None:
    async def work():
        rig = rig_in(tmp_path)
        stored = await push(await opened(rig), chunk(seq=2**62 - 2, version=(0, 2**31 - 1)))
        return rig, stored

    rig, stored = asyncio.run(work())
    assert stored.stored == 2**62 - 1
    shard = rig.shard.shard
    shard.mark_lost(replace(shard.row_counters(), inserted=5))  # writes where streams stand
    shard.close()
    again = KeptShard(rig.shard.columns, tmp_path).shard
    assert again.next_seq(rig.shard.chunks[0].stream) == 2**62 - 1
    again.close()


def test_discrete_actions_are_checked_row_by_row(tmp_path) -> None:
    base = contract_of()
    spec = replace(base.env_spec, action={"action": ArraySpec((), "int64", (3,))})
    contract = replace(base, env_spec=spec, columns=spec.columns())

    async def work(value):
        pushing = await opened(rig_in(tmp_path / str(value), contract=contract))
        return await push(pushing, chunk(action=np.array([0, value, 1])))

    assert "expected 0 to 2" in asyncio.run(work(3)).refusal.message
    assert "expected 0 to 2" in asyncio.run(work(-1)).refusal.message
    assert not asyncio.run(work(2)).HasField("refusal")


def test_an_episode_that_ended_does_not_go_on(tmp_path) -> None:
    async def work():
        pushing = await opened(rig_in(tmp_path))
        await push(pushing, chunk(truncated=np.array([False, False, True])))
        wrong = await push(pushing, chunk(seq=1))
        again = await push(pushing, chunk(truncated=np.array([False, False, True])))
        after_gap = await push(pushing, chunk(seq=2))
        return wrong, again, after_gap

    wrong, again, after_gap = asyncio.run(work())
    assert "chunk 1 goes on with an episode that ended in chunk 0" in wrong.refusal.message
    assert again.stored == 1
    assert after_gap.stored == 3


@pytest.mark.parametrize("is_restarted", [False, True])
def test_an_episode_that_ended_in_an_earlier_call_does_not_go_on(tmp_path, is_restarted) -> None:
    middle = np.zeros(3, bool)

    async def work():
        rig = rig_in(tmp_path)
        secret = (await rig.open(push=True)).secret
        await push(rig.gateway.pushing(secret), chunk(terminated=np.array([False, False, True])))
        if is_restarted:
            rig.shard.shard.close()
            rig.shard.shard = KeptShard(rig.shard.columns, tmp_path).shard
        wrong = await push(rig.gateway.pushing(secret), chunk(seq=1, is_first=middle))
        again = rig.gateway.pushing(secret)
        begun = await push(again, chunk(seq=1, is_first=np.array([True, False, False])))
        goes_on = await push(rig.gateway.pushing(secret), chunk(seq=2, is_first=middle))
        rig.shard.shard.close()
        return rig, wrong, begun, goes_on

    rig, wrong, begun, goes_on = asyncio.run(work())
    assert wrong.refusal.code == "INVALID_ARGUMENT"
    assert "chunk 1 goes on with an episode that ended in chunk 0" in wrong.refusal.message
    assert (wrong.stored, begun.stored, goes_on.stored) == (1, 2, 3)
    assert rig.shard.shard.row_counters().inserted == 9
    assert verify_shard(tmp_path).problems == []


def test_rows_keep_their_version_and_source_and_have_empty_latents(tmp_path) -> None:
    from worldloom.data.codec import decode_rows, notes_of

    contract = contract_of(extras={"count": ArraySpec((2,), "int64")})

    async def work():
        rig = rig_in(tmp_path, contract=contract)
        pushing = await opened(rig)
        await push(pushing, chunk(version=(1, 7), source=2))
        await push(pushing, chunk(seq=1, version=(1, 6), source=1))
        return rig

    rig = asyncio.run(work())
    first, second = rig.shard.chunks
    assert first.version == VERSION
    assert notes_of(first.payload) == {"sources": [2, 2, 2]}
    assert notes_of(second.payload) == {}
    assert not decode_rows(first.payload, contract.columns)["count"].any()


def test_weights_that_no_question_has_shown_yet_are_looked_for(tmp_path) -> None:
    async def work():
        rig = rig_in(tmp_path, version=(0, 0))
        return await push(await opened(rig), chunk(version=(1, 7)))

    assert not asyncio.run(work()).HasField("refusal")


def test_a_client_hears_while_its_chunk_waits_and_a_call_that_ends_stores_nothing_twice(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("worldloom_dist.gateway.pushing.TOLD_EVERY_S", 0.01)

    async def work():
        rig = rig_in(tmp_path)
        answer = await rig.open(push=True)
        rig.shard.permits.clear()
        told = []
        async for waiting in rig.gateway.pushing(answer.secret).take(chunk()):
            told.append(waiting)
            if len(told) == 3:
                break
        await asyncio.sleep(0)
        rig.shard.permits.set()
        stored = await push(rig.gateway.pushing(answer.secret), chunk())
        return rig, told, stored

    rig, told, stored = asyncio.run(work())
    assert all(one.stored == 0 and one.hold.ToMilliseconds() == 10 for one in told)
    assert stored.stored == 1
    assert len(rig.shard.chunks) == 1


def test_sessions_that_act_and_that_push_are_told_apart(tmp_path) -> None:
    async def work():
        rig = rig_in(tmp_path)
        acting = await rig.open()
        pushing = await rig.open(push=True)
        found = []
        for call in (
            lambda: rig.gateway.pushing(acting.secret),
            lambda: rig.gateway.pushing(b""),
            lambda: rig.gateway.pushing(b"x" * 70),
            lambda: rig.gateway.session(pushing.secret),
        ):
            with pytest.raises(RefusalError) as caught:
                call()
            found.append((caught.value.code, caught.value.message))
        for more in ({"push": True, "resume": acting.secret}, {"resume": pushing.secret}):
            with pytest.raises(RefusalError) as caught:
                await rig.open(**more)
            found.append((caught.value.code, caught.value.message))
        with pytest.raises(RefusalError) as caught:
            await Rig(append=None).open(push=True)
        found.append((caught.value.code, caught.value.message))
        return rig, acting, pushing, found

    rig, acting, pushing, found = asyncio.run(work())
    assert [code for code, _ in found] == [
        "FAILED_PRECONDITION",
        "UNAUTHENTICATED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
    ]
    assert "push = true" in found[0][1]
    assert "push = false" in found[3][1]
    assert rig.gateway.num_sessions == 1  # one that pushes is only a name
    assert (acting.slot, acting.incarnation) != (pushing.slot, pushing.incarnation)


def test_streams_of_pushing_sessions_are_never_those_of_others(tmp_path) -> None:
    async def work():
        rig = rig_in(tmp_path)
        other = Rig(shard=rig.shard, index=1)
        found = []
        for number in range(6):
            for one in (rig, other):
                answer = await one.open(push=number % 2 == 0)
                found.append((answer.slot, answer.incarnation))
        return found

    found = asyncio.run(work())
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("push", [True, False])
def test_no_session_gets_a_name_of_the_next_process(tmp_path, monkeypatch, push) -> None:
    monkeypatch.setattr("worldloom_dist.gateway.gateway.SESSION_BITS", 2)

    async def work():
        rig = rig_in(tmp_path)
        found = [(await rig.open(push=push)).incarnation for _ in range(3)]
        with pytest.raises(RefusalError) as caught:
            await rig.open(push=push)
        return found, caught.value.code

    found, code = asyncio.run(work())
    assert found == [5, 6, 7]
    assert code == "RESOURCE_EXHAUSTED"


def test_the_bound_of_a_chunk_is_described_where_chunks_are_taken(tmp_path) -> None:
    contract = contract_of(max_rows_per_chunk=32)
    assert contract.describe(VERSION).limits.max_rows_per_chunk == 32
    contract = replace(contract, features=("explore",))
    assert contract.describe(VERSION).limits.max_rows_per_chunk == 0


def test_the_live_server_says_no_with_a_status(tmp_path) -> None:
    shard = KeptShard(contract_of().columns, tmp_path)
    with live(shard=shard) as server, grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(
            method("ReplayService", "Push"),
            response_deserializer=message("PushResponse").FromString,
        )
        for secret, data, code in (
            (b"", b"", "UNAUTHENTICATED"),
            (b"y" * 80, b"", "UNAUTHENTICATED"),
            (None, b"\xff\xff", "INVALID_ARGUMENT"),
            (None, bytes(40 * 2**20), "RESOURCE_EXHAUSTED"),
        ):
            if secret is None:
                opening = message("OpenRequest")(client="test", num_envs=1, push=True)
                unary = channel.unary_unary(
                    method("PolicyService", "Open"),
                    request_serializer=lambda request: request.SerializeToString(),
                    response_deserializer=message("OpenResponse").FromString,
                )
                secret = unary(opening, timeout=10).secret
            with pytest.raises(grpc.RpcError) as caught:
                list(call(iter([data]), metadata=((SESSION_KEY, secret),), timeout=10))
            assert caught.value.code().name == code
            assert "Traceback" not in caught.value.details()
        assert KEY not in caught.value.details().encode()


def test_a_row_of_an_episode_that_was_not_seen_to_begin_may_only_be_left_out() -> None:
    async def work():
        rig = Rig()
        answer = await rig.open()
        row = question([(0, 0, np.zeros(3), 1.0, False, False, False)])
        with pytest.raises(RefusalError, match="no open episode"):
            await rig.gateway.act(answer.secret, row)
        row = question([(0, 0, np.zeros(3), 1.0, False, False, False)], skip_store=True)
        await rig.gateway.act(answer.secret, row)
        row = question([(0, 1, np.zeros(3), 0.0, True, False, False)])
        await rig.gateway.act(answer.secret, row)
        await rig.gateway.close(answer.secret)
        return rig

    rig = asyncio.run(work())
    assert rig.shard.writer.num_rows == 1
    assert rig.gateway.meter.skipped == 1


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_bytes_after_a_compressed_array_are_refused(kind, tmp_path) -> None:
    async def work(tail):
        pushing = await opened(rig_in(tmp_path / tail.hex(), contract=pictures()))
        return await push(pushing, compressed(kind, tail=tail))

    assert "column 'obs'" in asyncio.run(work(b"\x01")).refusal.message
    assert asyncio.run(work(b"")).stored == 1


def test_pictures_that_come_compressed_are_stored_as_they_came(tmp_path) -> None:
    from worldloom.data.codec import decode_rows

    contract = pictures()

    async def work():
        rig = rig_in(tmp_path, contract=contract)
        request = compressed("zstd")
        await push(await opened(rig), request)
        return rig.shard.chunks[0].payload, request.column["obs"].data

    payload, frame = asyncio.run(work())
    assert frame in payload
    assert np.array_equal(decode_rows(payload, contract.columns)["obs"], PICTURES)


PICTURES = np.repeat(np.arange(3, dtype=np.uint8), 64 * 64 * 3).reshape(3, 64, 64, 3)


def pictures():
    base = contract_of()
    spec = replace(base.env_spec, obs={"obs": ArraySpec((64, 64, 3), "uint8")})
    return replace(base, env_spec=spec, columns=spec.columns())


def compressed(kind, tail=b""):
    request = chunk(obs=None)
    request.column["obs"].CopyFrom(encode_tensor(PICTURES, compress=kind))
    request.column["obs"].data += tail
    return request
