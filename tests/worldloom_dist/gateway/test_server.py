"""Who is let in, and what a stranger is told."""

import contextlib
import queue
import socket
import zlib

import grpc
import numpy as np
import pytest
import zstandard

from tests.worldloom_client.live import live
from tests.worldloom_dist.gateway.certificates import DAY, make_authority, make_signed
from tests.worldloom_dist.gateway.parts import question
from worldloom.core.exceptions import ConfigurationError
from worldloom_client import ClientError, RefusedError, UnavailableError, connect
from worldloom_client.wire import SESSION_KEY, encode_tensor, message, method
from worldloom_dist.gateway import health
from worldloom_dist.gateway import server as server_module
from worldloom_dist.gateway.building import access_of
from worldloom_dist.gateway.health import Request, Response
from worldloom_dist.gateway.server import Access
from worldloom_dist.run.config import GatewayConfig

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = make_authority(folder)
    make_signed(folder, authority, "server")
    make_signed(folder, authority, "robot")
    make_signed(folder, authority, "expired", ends=-DAY / 2)
    make_signed(folder, make_authority(folder, "other"), "stranger")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN + "\n")
    return folder


def call(channel, name, request, secret=b"", **more):
    unary = channel.unary_unary(
        method("PolicyService", name),
        request_serializer=lambda data: data,
        response_deserializer=message(f"{name}Response").FromString,
    )
    data = request if isinstance(request, bytes) else request.SerializeToString()
    metadata = ((SESSION_KEY, secret),) if secret else ()
    return unary(data, metadata=metadata, timeout=10, **more)


def test_tls_and_a_token_let_the_right_ones_in(files) -> None:
    access = Access(
        host="127.0.0.1",
        certificate=files / "server.pem",
        key=files / "server.key",
        token_file=files / "token",
    )
    access.check()
    obs = np.zeros(3, np.float32)
    with live(access) as server:
        with connect(server.address, ca=files / "ca.pem", token=files / "token") as session:
            session.act(obs)
        with connect(server.address, ca=files / "ca.pem", token=TOKEN) as session:
            session.act(obs)
        for token in (None, "cat", TOKEN[:-1]):
            with pytest.raises(RefusedError, match="bearer token is missing or wrong") as caught:
                connect(server.address, ca=files / "ca.pem", token=token, timeout_s=5)
            assert caught.value.code == "UNAUTHENTICATED"
        with pytest.raises(UnavailableError, match="one with TLS needs the setting ca"):
            connect(server.address, timeout_s=0.5)  # plain text to TLS
        with pytest.raises(UnavailableError, match="its certificate was not signed by ca"):
            connect(server.address, ca=files / "other.pem", token=TOKEN, timeout_s=0.5)
        with pytest.raises(ClientError, match=r"ca: .*token holds no certificate in PEM form"):
            connect(server.address, ca=files / "token", token=TOKEN, timeout_s=0.5)
        credentials = grpc.ssl_channel_credentials((files / "ca.pem").read_bytes())
        with grpc.secure_channel(server.address, credentials) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=Request.SerializeToString,
                response_deserializer=Response.FromString,
            )
            assert check(Request(), timeout=10).status == 1  # probes have no token


def test_of_who_has_no_token_no_message_is_read(files) -> None:
    with (
        live(Access(token_file=files / "token")) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        for service, name in (
            ("PolicyService", "Describe"),
            ("PolicyService", "Act"),
            ("PolicyService", "ActStream"),
            ("ReplayService", "Push"),
        ):
            nothing = queue.SimpleQueue()  # it opens the call, and sends no message
            call = channel.stream_stream(method(service, name))
            answers = call(iter(nothing.get, None), timeout=10)
            with pytest.raises(grpc.RpcError) as caught:
                next(answers)
            nothing.put(None)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, name


def test_a_connection_that_says_nothing_is_ended(files, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_MS", 100)
    access = Access(certificate=files / "server.pem", key=files / "server.key")
    for more in (Access(), access):
        with (
            live(more) as server,
            socket.create_connection(("127.0.0.1", server.thread.port), 20) as silent,
            contextlib.suppress(ConnectionResetError),
        ):
            while silent.recv(4096):
                pass


def test_one_call_too_many_for_health_ends_the_oldest(monkeypatch) -> None:
    monkeypatch.setattr(health, "MOST_CALLS", 3)
    codec = {
        "request_serializer": Request.SerializeToString,
        "response_deserializer": Response.FromString,
    }
    with live() as server, grpc.insecure_channel(server.address) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch", **codec)
        check = channel.unary_unary("/grpc.health.v1.Health/Check", **codec)
        stall = channel.stream_stream("/grpc.health.v1.Health/Check", **codec)
        calls = [watch(Request(), timeout=30) for _ in range(2)]
        assert [next(call).status for call in calls] == [1, 1]
        nothing = queue.SimpleQueue()  # a check that never says of what
        calls.append(stall(iter(nothing.get, None), timeout=30))
        for _ in range(3):
            assert check(Request(), timeout=10).status == 1, "who asks at once is answered"
            calls.append(watch(Request(), timeout=30))
            assert next(calls[-1]).status == 1
        for call in calls[:3]:
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        nothing.put(None)
        for call in calls:
            call.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            check(Request(service="none"), timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_client_with_tls_is_told_of_a_gateway_without(files) -> None:
    with live() as server, pytest.raises(UnavailableError, match="it speaks no TLS: leave ca out"):
        connect(server.address, ca=files / "ca.pem", timeout_s=0.5)


def test_a_certificate_that_has_expired_is_called_that(files) -> None:
    access = Access(certificate=files / "expired.pem", key=files / "expired.key")
    with live(access) as server, pytest.raises(UnavailableError, match=r"\(its .* has expired\)"):
        connect(server.address, ca=files / "ca.pem", timeout_s=0.5)


def test_clients_may_have_to_show_a_certificate(files) -> None:
    access = Access(
        certificate=files / "server.pem", key=files / "server.key", client_ca=files / "ca.pem"
    )
    obs = np.zeros(3, np.float32)
    own = {"certificate": files / "robot.pem", "key": files / "robot.key"}
    wrong = {"certificate": files / "stranger.pem", "key": files / "stranger.key"}
    with live(access) as server:
        with connect(server.address, ca=files / "ca.pem", **own) as session:
            session.act(obs)
        for more in ({}, wrong):
            with pytest.raises(UnavailableError):
                connect(server.address, ca=files / "ca.pem", timeout_s=0.5, **more)


def test_what_is_not_safe_is_refused_before_anything_starts(files, tmp_path) -> None:
    open_token = tmp_path / "token"
    open_token.write_text(TOKEN)
    open_token.chmod(0o644)
    short = tmp_path / "short"
    short.touch(mode=0o600)
    short.write_text("abc")
    tls = {"certificate": files / "server.pem", "key": files / "server.key"}
    for more, says in (
        ({"host": "0.0.0.0"}, "can be reached from other machines"),
        ({"host": "192.168.1.1", **tls}, "token-file"),
        ({"host": "gateway.example.com", "token_file": files / "token"}, "tls-cert"),
        ({"host": "::", "token_file": files / "token"}, "tls-cert"),
        ({"certificate": files / "server.pem"}, "go together"),
        ({"client_ca": files / "ca.pem"}, "only over TLS"),
        ({"token_file": tmp_path / "nothing"}, "cannot be read"),
        ({"token_file": open_token}, "can be read by others"),
        ({"token_file": short}, "at least 16"),
        ({"certificate": open_token, "key": files / "server.key"}, "no certificate in PEM form"),
        ({"certificate": files / "server.pem", "key": files / "server.pem"}, "private key"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            Access(**more).check()
    for host in ("127.0.0.1", "::1", "localhost"):
        Access(host=host).check()


@pytest.mark.parametrize("field", ["tls_cert", "tls_key", "token_file", "client_ca"])
def test_an_empty_file_name_opens_no_door(field) -> None:
    with pytest.raises(ConfigurationError, match=rf"gateway\.{field}: got an empty name"):
        access_of(GatewayConfig(**{field: ""}))
    assert access_of(GatewayConfig()) == Access()


def test_strangers_are_told_a_code_and_a_sentence() -> None:
    with live() as server, grpc.insecure_channel(server.address) as channel:
        opened = call(
            channel,
            "Open",
            message("OpenRequest")(client="test", num_envs=1, explore=True, store=True),
        )
        good = question([(0, 0, np.zeros(3), 0.0, True, False, False)])
        nan = question([(0, 0, np.full(3, np.nan), 0.0, True, False, False)])
        wrong_shape = question([(0, 0, np.zeros(4), 0.0, True, False, False)])
        wrong_type = message("ActRequest")()
        wrong_type.CopyFrom(good)
        wrong_type.obs[0].CopyFrom(encode_tensor(np.zeros((1, 3), np.int64)))
        two = message("ActRequest")()
        two.CopyFrom(good)
        two.obs.add().CopyFrom(good.obs[0])
        bomb = message("ActRequest")()
        bomb.CopyFrom(good)
        bomb.obs[0].encoding = 1
        bomb.obs[0].data = zlib.compress(bytes(10**7))
        other_bomb = message("ActRequest")()
        other_bomb.CopyFrom(good)
        other_bomb.obs[0].encoding = 2
        other_bomb.obs[0].data = zstandard.ZstdCompressor().compress(bytes(10**7))
        no_frame = message("ActRequest")()
        no_frame.CopyFrom(other_bomb)
        no_frame.obs[0].data = b"no frame"
        for name, request, secret, code, says in (
            ("Act", good, b"", "UNAUTHENTICATED", "no secret came"),
            ("Act", good, b"x" * 70, "UNAUTHENTICATED", "not given out by this run"),
            ("Act", good, b"x" * 10_000, "UNAUTHENTICATED", "not given out"),
            ("Act", b"\xff\xff\xff", opened.secret, "INVALID_ARGUMENT", "are no ActRequest"),
            ("Act", nan, opened.secret, "INVALID_ARGUMENT", "obs 'obs': holds numbers that"),
            ("Act", wrong_shape, opened.secret, "INVALID_ARGUMENT", "got float32 [1, 4], expected"),
            ("Act", wrong_type, opened.secret, "INVALID_ARGUMENT", "got int64 [1, 3], expected"),
            ("Act", two, opened.secret, "INVALID_ARGUMENT", "got 2 arrays, expected 1: obs"),
            ("Act", other_bomb, opened.secret, "INVALID_ARGUMENT", "says 10000000 bytes, expected"),
            ("Act", no_frame, opened.secret, "INVALID_ARGUMENT", "does not decompress"),
            ("Act", bomb, opened.secret, "INVALID_ARGUMENT", "decompresses to another size"),
            ("Open", b"\x08", b"", "INVALID_ARGUMENT", "are no OpenRequest"),
            ("Close", b"", b"y" * 50, "UNAUTHENTICATED", "not given out"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(channel, name, request, secret)
            assert caught.value.code().name == code, (name, code)
            details = caught.value.details()
            assert says in details
            assert "Traceback" not in details
            assert len(details.splitlines()) == 1
        assert len(call(channel, "Act", good, opened.secret).action) == 1
        call(channel, "Close", b"", opened.secret)
        with pytest.raises(grpc.RpcError, match="it was closed"):
            call(channel, "Act", good, opened.secret)
        large = bytes(40 * 2**20)
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "Act", large, opened.secret)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_port_that_is_taken_is_named() -> None:
    from tests.worldloom_client.live import Live

    with (
        live() as server,
        pytest.raises(ConfigurationError, match=r"nothing can listen at 127\.0\.0\.1"),
    ):
        Live(port=server.thread.port)
