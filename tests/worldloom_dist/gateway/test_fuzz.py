"""Whatever comes over the wire: no crash, no growth, no traceback to the client."""

import random

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worldloom_client.live import live
from tests.worldloom_dist.gateway.parts import KeptShard, contract_of, question
from tests.worldloom_dist.gateway.test_pushing import chunk
from worldloom.core.sequence import check_sequence
from worldloom.data.codec import decode_rows
from worldloom_client.errors import WireError
from worldloom_client.wire import SESSION_KEY, Spec, decode_tensor, encode_tensor, message, method
from worldloom_dist.gateway.questions import read_question
from worldloom_dist.gateway.refusal import RefusalError

CODES = {
    "INVALID_ARGUMENT",
    "UNAUTHENTICATED",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
}
NAMES = ("Describe", "Open", "Act", "Close")
GROWTH_BYTES = 60e6


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Some bytes of a message changed, left out, or doubled."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        kind = rng.randrange(4)
        place = rng.randrange(len(found) + 1)
        if kind == 0 and place < len(found):
            found[place] = rng.randrange(256)
        elif kind == 1:
            del found[place : place + rng.randint(1, 6)]
        elif kind == 2:
            found[place:place] = rng.randbytes(rng.randint(1, 6))
        else:
            found += found[place : place + rng.randint(1, 20)]
    return bytes(found)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.integers(0, 2**32 - 1))
def test_the_decoder_of_questions_refuses_or_reads(data, seed) -> None:
    contract = contract_of_counting()
    good = question([(0, 0, np.zeros(3), 0.0, True, False, False)]).SerializeToString()
    for candidate in (data, good + data, mutated(random.Random(seed), good)):
        refusal = None
        try:
            read_question(message("ActRequest").FromString(candidate), contract, 2)
        except DecodeError:
            continue
        except RefusalError as error:
            refusal = error
        if refusal is not None:
            assert refusal.code == "INVALID_ARGUMENT"
            assert len(refusal.message) < 2000


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.integers(0, 8),
    st.lists(st.integers(0, 2**32 - 1), max_size=5),
    st.binary(max_size=64),
    st.integers(0, 3),
)
def test_the_decoder_of_arrays_refuses_or_gives_what_was_promised(
    dtype, shape, data, encoding
) -> None:
    spec = Spec("obs", (3,))
    tensor = message("Tensor")(shape=shape, data=data)
    tensor.dtype = dtype
    tensor.encoding = encoding
    try:
        array = decode_tensor(tensor, spec, (1,), "obs 'obs'")
    except WireError:
        return
    assert array.shape == (1, 3)
    assert np.isfinite(array).all()


CONTRACT = []


def contract_of_counting():
    if not CONTRACT:
        CONTRACT.append(contract_of())
    return CONTRACT[0]


def bombard(count: int, seed: int) -> None:
    rng = random.Random(seed)
    with live() as server, grpc.insecure_channel(server.address) as channel:

        def send(name, data, secret):
            unary = channel.unary_unary(
                method("PolicyService", name),
                request_serializer=lambda data: data,
                response_deserializer=lambda data: data,
            )
            metadata = ((SESSION_KEY, secret),) if secret else ()
            try:
                return unary(data, metadata=metadata, timeout=30)
            except grpc.RpcError as error:
                said = (error.code().name, error.details())
            assert said[0] in CODES, said
            assert "Traceback" not in said[1]
            return None

        opening = message("OpenRequest")(client="fuzz", num_envs=2, explore=True, store=True)
        opened = message("OpenResponse").FromString(send("Open", opening.SerializeToString(), b""))
        good = question([(0, 0, np.zeros(3), 0.0, True, False, False)])
        executed = message("Executed")(
            env=0, action=[encode_tensor(np.zeros(2, np.float32))], source=2
        )
        next_one = question([(0, 1, np.zeros(3), 0.5, False, False, False)], executed=[executed])
        bodies = {
            "Describe": [b""],
            "Open": [opening.SerializeToString()],
            "Act": [good.SerializeToString(), next_one.SerializeToString()],
            "Close": [b""],
        }
        secrets = [b"", opened.secret, mutated(rng, opened.secret)]
        process = psutil.Process()
        before = 0
        for number in range(count):
            name = rng.choice(NAMES)
            data = mutated(rng, rng.choice(bodies[name]) or b"\x00")
            if rng.random() < 0.1:
                data = rng.randbytes(rng.randint(0, 300))
            secret = rng.choice(secrets)
            if name == "Close" and secret == opened.secret:
                secret = b""
            send(name, data, secret)
            if number == count // 4:
                before = process.memory_info().rss
        assert process.memory_info().rss - before < GROWTH_BYTES
        fresh = message("OpenResponse").FromString(
            send("Open", opening.SerializeToString(), b"") or b""
        )
        assert fresh.secret, "refused sessions keep no place"
        assert send("Act", good.SerializeToString(), fresh.secret)
        assert send("Describe", b"", b"")


def bombard_with_chunks(count: int, seed: int, folder) -> None:
    rng = random.Random(seed)
    shard = KeptShard(contract_of().columns, folder)
    refused = taken = 0
    codes = set()
    with live(shard=shard) as server, grpc.insecure_channel(server.address) as channel:
        opening = message("OpenRequest")(client="fuzz", num_envs=2, push=True)
        unary = channel.unary_unary(
            method("PolicyService", "Open"),
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message("OpenResponse").FromString,
        )
        secret = unary(opening, timeout=30).secret
        call = channel.stream_stream(
            method("ReplayService", "Push"),
            response_deserializer=message("PushResponse").FromString,
        )
        whole = [chunk(seq=seq, env=seq % 2).SerializeToString() for seq in range(4)]
        while refused + taken < count:
            data = [mutated(rng, rng.choice(whole)) for _ in range(50)]
            try:
                for answer in call(iter(data), metadata=((SESSION_KEY, secret),), timeout=60):
                    refused += answer.HasField("refusal")
                    taken += not answer.HasField("refusal")
                    assert answer.refusal.code in ("", "INVALID_ARGUMENT")
                    assert len(answer.refusal.message) < 2000
            except grpc.RpcError as error:  # one that cannot be parsed ends its call
                codes.add(error.code().name)
                refused += 1
        good = list(call(iter(whole), metadata=((SESSION_KEY, secret),), timeout=60))
    assert codes <= {"INVALID_ARGUMENT"}
    assert refused > count / 4
    assert not any(answer.HasField("refusal") for answer in good)
    for stored in shard.chunks:
        assert check_sequence(decode_rows(stored.payload, shard.columns), shard.columns)


def test_a_live_server_survives_strange_messages() -> None:
    bombard(1500, 0)


def test_a_live_server_survives_strange_chunks(tmp_path) -> None:
    bombard_with_chunks(1000, 0, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_live_server_survives_a_hundred_thousand_strange_messages() -> None:
    bombard(100_000, 1)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_live_server_survives_fifty_thousand_strange_chunks(tmp_path) -> None:
    bombard_with_chunks(50_000, 1, tmp_path)
