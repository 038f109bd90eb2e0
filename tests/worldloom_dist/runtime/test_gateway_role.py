"""What a gateway makes of the refusals of a shard."""

import pytest

from worldloom.core.exceptions import StateError
from worldloom_dist.ports import EpisodeOverError, FencedError
from worldloom_dist.runtime.gateway_role import refusal_of


@pytest.mark.parametrize(
    ("said", "kind", "why"),
    [
        ("EpisodeOverError: it has ended", EpisodeOverError, "it has ended"),
        ("FencedError: it goes on elsewhere", FencedError, "it goes on elsewhere"),
        ("OSError: the disk is full", StateError, "OSError: the disk is full"),
    ],
)
@pytest.mark.parametrize("is_over_ray", [False, True])
def test_refusals_keep_their_kind_on_the_way_from_a_shard(said, kind, why, is_over_ray) -> None:
    error = StateError(said)
    if is_over_ray:
        error = StateError("Traceback")
        error.cause = kind(why)

    found = refusal_of(error)
    if kind is StateError and is_over_ray:
        assert found is error
    else:
        assert (type(found), str(found)) == (kind, why)
