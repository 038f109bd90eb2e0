"""Where a client finds its gateways."""

import traceback

import pytest

from worldloom_client.channel import credentials
from worldloom_client.errors import ClientError
from worldloom_client.settings import Settings, addresses_of


@pytest.mark.parametrize(
    "address",
    ["nowhere", "host:", ":50051", "host:0", "host:65536", "host:x", "::1:50051", "a/b:5"],
)
def test_an_address_that_is_none_is_refused_before_anything_is_tried(address) -> None:
    with pytest.raises(ClientError, match=r"address: got '.*', expected HOST:PORT"):
        addresses_of(f"127.0.0.1:50051,{address}")


def test_addresses_are_tried_in_their_order() -> None:
    assert addresses_of("b:50051, [::1]:7,") == ["b:50051", "[::1]:7"]
    with pytest.raises(ClientError, match="name at least one HOST:PORT"):
        addresses_of(" , ")


@pytest.mark.parametrize(
    "text", ["# mine\nsecretsecret", "secretsecr\u00e9t", "\xff\x00secret", ""]
)
def test_a_token_that_cannot_travel_is_refused_without_being_repeated(tmp_path, text) -> None:
    file = tmp_path / "token"
    file.write_bytes(text.encode("latin-1"))
    for token in (file, str(file), text):
        with pytest.raises(ClientError, match="token: it must be one line") as caught:
            credentials(Settings(token=token))
        assert "secret" not in str(caught.value)


def test_a_token_that_is_taken_for_the_name_of_a_file_is_not_repeated() -> None:
    with pytest.raises(ClientError, match="put such a token into a file") as caught:
        credentials(Settings(token="se/cret+secret=="))
    assert "cret" not in "".join(traceback.format_exception(caught.value)[-2:])
    assert caught.value.__suppress_context__
