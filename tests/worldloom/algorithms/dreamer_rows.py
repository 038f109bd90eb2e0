"""The rows that a public Dreamer model learns from."""

from __future__ import annotations

from typing import Any
from unittest import mock


def rows_learned_from(model: Any, batch: Any) -> Any:
    """The rows which ``compute_loss`` hands to the network."""
    with mock.patch.object(model.net, "losses", wraps=model.net.losses) as losses:
        model.compute_loss(batch)
    return losses.call_args.args[0]
