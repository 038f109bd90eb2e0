"""What an agent's ``predict_ahead`` gives, and that it leaves the agent as it was."""

from __future__ import annotations

import numpy as np

from worldloom.core.foresight import Foresight
from worldloom.core.protocol import PredictsAhead
from worldloom.core.specs import EnvSpec
from worldloom.testing.contract import expect
from worldloom.testing.noise import random_windows
from worldloom.testing.trees import check_same

__all__ = ["check_predictions"]

WINDOWS = 2
SEEN = 3
AHEAD = 4


def check_predictions(agent: PredictsAhead, env: EnvSpec) -> None:
    """Refuse predictions of other shapes, of what comes later, or that change the agent.

    Args:
        agent: Whose.
        env: Its spaces.

    Raises:
        ContractError: Names the first promise that is not kept.
    """
    batch = random_windows(env, WINDOWS, SEEN + AHEAD, 0)
    before = agent.state_dict()  # type: ignore[attr-defined]
    found = agent.predict_ahead(batch, SEEN)
    expect(isinstance(found, Foresight), "predict_ahead", "a Foresight", type(found).__name__)
    check_same("state after predict_ahead", before, agent.state_dict())  # type: ignore[attr-defined]
    lead = (WINDOWS, AHEAD)
    pairs = {"latent": found.latent}
    pairs |= {f"obs[{key!r}]": pair for key, pair in found.obs.items()}
    pairs |= {f"pixels[{key!r}]": pair for key, pair in found.pixels.items()}
    for name, (predicted, seen) in pairs.items():
        expect(predicted.shape[:2] == lead, f"{name} of Foresight", lead, predicted.shape[:2])
        expect(seen.shape == predicted.shape, f"{name} seen", predicted.shape, seen.shape)
    for name in ("reward", "disagreement"):
        shape = getattr(found, name).shape
        expect(shape == lead, f"{name} of Foresight", lead, shape)
    rows = (WINDOWS, SEEN + AHEAD)
    expect(found.value.shape == rows, "value of Foresight", rows, found.value.shape)
    later = random_windows(env, WINDOWS, SEEN + AHEAD, 1)
    for key, value in batch.obs.items():
        value[:, SEEN:] = later.obs[key][:, SEEN:]
    again = agent.predict_ahead(batch, SEEN)
    expect(
        np.array_equal(found.latent[0], again.latent[0], equal_nan=True),
        "what is imagined when later observations differ",
        "the same",
        "another",
    )
