"""Where a client finds its gateways."""

import pytest

from worldloom_client.errors import ClientError
from worldloom_client.settings import addresses_of


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
