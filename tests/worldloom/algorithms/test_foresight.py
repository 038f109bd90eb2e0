"""What agents say of windows whose outcome is known: one contract, every algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from worldloom.algorithms.registry import make_agent, make_agent_config
from worldloom.core.protocol import Agent, PredictsAhead
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.testing.noise import random_windows
from worldloom.testing.trees import check_same

WINDOWS = 3
SEEN = 4
AHEAD = 6
BOX = {"action": ArraySpec((2,))}
CHOICE = {"action": ArraySpec((), "int64", (3,))}
VECTORS = {"position": ArraySpec((3,)), "speed": ArraySpec((2,))}
PICTURE = {"image": ArraySpec((64, 64, 3), "uint8")}
CASES = [
    ("dreamerv3:ci", VECTORS, CHOICE),
    ("dreamerv3:ci", PICTURE | VECTORS | {"mode": ArraySpec((), "int64", (4,))}, BOX),
    ("dreamerv3:ci", {"image": ArraySpec((3, 64, 48), "uint8")}, BOX),
    ("r2dreamer:ci", PICTURE | VECTORS, CHOICE),
    ("tdmpc2:ci", VECTORS, BOX),
    ("tdmpc2:ci", PICTURE, BOX),
    ("mlp:ci", VECTORS, CHOICE),
    ("mlp:ci", PICTURE | VECTORS, BOX),
]


def agent_of(name: str, obs: dict[str, ArraySpec], action: dict[str, ArraySpec]) -> Any:
    env = EnvSpec(name="test", obs=obs, action=action, episode_limit=50, may_terminate=True)
    return make_agent(make_agent_config(name), env, seed=1), env


def windows_of(env: EnvSpec, seed: int = 0) -> SequenceBatch:
    return random_windows(env, WINDOWS, SEEN + AHEAD, seed)


@pytest.mark.parametrize(("name", "obs", "action"), CASES)
def test_predictions_have_their_shapes_and_disturb_nothing(
    name: str, obs: dict[str, ArraySpec], action: dict[str, ArraySpec]
) -> None:
    agent, env = agent_of(name, obs, action)
    batch = windows_of(env)
    assert isinstance(agent, Agent)
    assert isinstance(agent, PredictsAhead)
    before = agent.state_dict()
    torch_state = torch.get_rng_state()
    first = agent.predict_ahead(batch, SEEN)
    again = agent.predict_ahead(batch, SEEN)
    check_same("state", before, agent.state_dict())
    assert torch.equal(torch_state, torch.get_rng_state())
    lead = (WINDOWS, AHEAD)
    for predicted, seen in [first.latent, *first.obs.values(), *first.pixels.values()]:
        assert predicted.shape == seen.shape
        assert predicted.shape[:2] == lead
    assert first.reward.shape == first.disagreement.shape == lead
    assert first.value.shape == (WINDOWS, SEEN + AHEAD)
    assert 0 < first.discount < 1
    assert np.all(first.disagreement >= 0)
    # fresh critics of TD-MPC2 agree: all of them say 0
    assert np.all(first.disagreement.max(0) > 0) or name.startswith("tdmpc2")
    assert np.isfinite(first.disagreement).all()
    if first.goes_on is not None:
        assert first.goes_on.shape == lead
        assert np.all((first.goes_on >= 0) & (first.goes_on <= 1))
    np.testing.assert_array_equal(first.latent[0], again.latent[0])
    np.testing.assert_array_equal(first.reward, again.reward)


@pytest.mark.parametrize(("name", "obs", "action"), CASES)
def test_what_comes_later_changes_no_prediction_but_actions_do(
    name: str, obs: dict[str, ArraySpec], action: dict[str, ArraySpec]
) -> None:
    agent, env = agent_of(name, obs, action)
    batch = windows_of(env)
    other = windows_of(env, seed=1)

    def mixed(mine: np.ndarray, theirs: np.ndarray, rows: slice) -> np.ndarray:
        both = mine.copy()
        both[:, rows] = theirs[:, rows]
        return both

    later = slice(SEEN, None)
    seen_otherwise = SequenceBatch(
        {key: mixed(batch.obs[key], other.obs[key], later) for key in env.obs},
        batch.action,
        mixed(batch.reward, other.reward, later),
        batch.is_first,
        batch.terminated,
        batch.truncated,
    )
    first = agent.predict_ahead(batch, SEEN)
    second = agent.predict_ahead(seen_otherwise, SEEN)
    np.testing.assert_array_equal(first.latent[0], second.latent[0])
    assert not np.allclose(first.latent[1], second.latent[1])
    # the action in the last row that is seen leads into the first imagined one, that in row k into
    # row k + 1; the one in the last row of all leads nowhere
    place = SEEN + 1
    done_otherwise = SequenceBatch(
        batch.obs,
        {
            key: mixed(batch.action[key], other.action[key], slice(place, place + 1))
            for key in env.action
        },
        batch.reward,
        batch.is_first,
        batch.terminated,
        batch.truncated,
    )
    third = agent.predict_ahead(done_otherwise, SEEN)
    ahead = place - SEEN + 1
    np.testing.assert_array_equal(first.latent[0][:, :ahead], third.latent[0][:, :ahead])
    assert not np.allclose(first.latent[0][:, ahead], third.latent[0][:, ahead])
