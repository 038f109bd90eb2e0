from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from worldloom.core.foresight import Foresight
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec
from worldloom.evaluation.trust import (
    IMAGINED_ROWS,
    SEEN_ROWS,
    Probes,
    action_facts,
    model_facts,
)

ROWS = SEEN_ROWS + IMAGINED_ROWS
DISCOUNT = 0.9
LENGTH = 30
"""Rows of each episode."""
BOX = {"action": ArraySpec((2,))}


def probes(*, terminated: bool) -> Probes:
    """Two episodes whose observation and reward are known functions of the row's place."""
    rewards = [np.sin(np.arange(LENGTH) + episode) for episode in range(2)]
    for one in rewards:
        one[0] = 0.0
    episode = np.array([0, 0, 1, 1])
    offset = np.array([0, LENGTH - ROWS, 0, LENGTH - ROWS])
    place = offset[:, None] + np.arange(ROWS)
    reward = np.stack([rewards[e][p] for e, p in zip(episode, place, strict=True)])
    ends = (place == LENGTH - 1) & terminated
    obs = np.stack([np.cos(place + episode[:, None]), 100 * reward], -1).astype(np.float32)
    batch = SequenceBatch(
        {"obs": obs},
        {"action": np.zeros((4, ROWS, 2), np.float32)},
        reward,
        place == 0,
        ends,
        (place == LENGTH - 1) & (not terminated),
    )
    actions = {"action": np.tile(np.float32([[1.0, 0.0]]), (8, 1))}
    return Probes(batch, episode, offset, rewards, [terminated] * 2, actions)


def true_values(given: Probes, end: float) -> np.ndarray:
    """The discounted rewards to come after every row of every window."""
    found = np.zeros((4, ROWS))
    for b, (episode, offset) in enumerate(zip(given.episode, given.offset, strict=True)):
        for row in range(ROWS):
            later = given.rewards[episode][offset + row + 1 :]
            found[b, row] = (later * DISCOUNT ** np.arange(len(later))).sum()
            found[b, row] += end * DISCOUNT ** len(later)
    return found


class Model:
    """An agent that knows what came, but for what a test changes."""

    def __init__(self, given: Probes, end: float = 0.0, **changed: Any) -> None:
        obs = given.batch.obs["obs"][:, SEEN_ROWS:]
        self.foresight = Foresight(
            **{
                "latent": (obs, obs),
                "obs": {"obs": (obs, obs)},
                "reward": given.batch.reward[:, SEEN_ROWS:],
                "goes_on": 1.0 - given.batch.terminated[:, SEEN_ROWS:],
                "value": true_values(given, end),
                "discount": DISCOUNT,
                "disagreement": np.zeros((4, IMAGINED_ROWS)),
                **changed,
            }
        )

    def predict_ahead(self, batch: SequenceBatch, warm_up: int) -> Foresight:
        assert warm_up == SEEN_ROWS
        return self.foresight


@pytest.mark.parametrize("terminated", [True, False])
def test_a_model_that_knows_what_comes_has_no_error(terminated: bool) -> None:
    given = probes(terminated=terminated)
    facts = model_facts(Model(given), given, BOX)
    for errors in facts["error"].values():
        assert list(errors) == ["1", "2", "4", "8", "15"]
        assert max(errors.values()) == 0.0
    assert facts["windows"] == 4
    assert facts["reward_bias"] == facts["continue_gap"] == 0.0
    assert facts["value_bias"] == pytest.approx(0.0, abs=1e-9)
    assert facts["value_error"] == pytest.approx(0.0, abs=1e-9)
    assert facts["value_correlation"] == pytest.approx(1.0)


def test_an_episode_that_was_truncated_goes_on_with_the_value_of_its_last_row() -> None:
    cut = probes(terminated=False)
    over = probes(terminated=True)
    assert model_facts(Model(cut, end=7.0), cut, BOX)["value_error"] == pytest.approx(0, abs=1e-9)
    assert model_facts(Model(over, end=7.0), over, BOX)["value_bias"] > 0.1


def test_predicting_the_mean_is_an_error_of_one_whatever_the_unit() -> None:
    given = probes(terminated=True)
    obs = given.batch.obs["obs"][:, SEEN_ROWS:]
    mean = np.broadcast_to(obs.mean((0, 1)), obs.shape)
    reward = np.full((4, IMAGINED_ROWS), given.batch.reward[:, SEEN_ROWS:].mean())
    facts = model_facts(Model(given, obs={"obs": (mean, obs)}, reward=reward), given, BOX)
    for what in ("obs", "reward"):
        assert np.mean([facts["error"][what][k] for k in ("1", "2", "4", "8", "15")]) < 1.8
        squared = np.square(
            (mean if what == "obs" else reward[..., None])
            - (obs if what == "obs" else given.batch.reward[:, SEEN_ROWS:, None])
        )
        variance = (
            (obs if what == "obs" else given.batch.reward[:, SEEN_ROWS:, None])
            .reshape(4 * IMAGINED_ROWS, -1)
            .var(0)
        )
        assert (squared.mean((0, 1)) / variance) == pytest.approx(1.0, rel=1e-5)
        assert facts["error"][what]["4"] == pytest.approx(
            float((squared[:, 3] / variance).mean()), rel=1e-6
        )


def test_a_model_that_expects_too_much_says_by_how_much() -> None:
    given = probes(terminated=True)
    more = Model(
        given,
        reward=given.batch.reward[:, SEEN_ROWS:] + 0.25,
        value=true_values(given, 0.0) + 3.0,
        goes_on=np.ones((4, IMAGINED_ROWS)),
    )
    facts = model_facts(more, given, BOX)
    assert facts["reward_bias"] == pytest.approx(0.25)
    assert facts["value_bias"] == pytest.approx(3.0)
    assert facts["continue_gap"] == pytest.approx(2 / (4 * IMAGINED_ROWS))


def test_numbers_that_are_none_are_named_and_left_out() -> None:
    given = probes(terminated=True)
    obs = given.batch.obs["obs"][:, SEEN_ROWS:]
    wild = obs.copy()
    wild[:, 7] = np.nan
    facts = model_facts(Model(given, latent=(wild, obs)), given, BOX)
    assert facts["not_finite"] == ["error.latent.8"]
    assert list(facts["error"]["latent"]) == ["1", "2", "4", "15"]


def test_numbers_of_a_latent_have_one_unit() -> None:
    given = probes(terminated=True)
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(4, IMAGINED_ROWS, 2)) * [1.0, 1e-3]
    wrong = seen + np.array([0.0, 0.01])
    facts = model_facts(Model(given, latent=(wrong, seen)), given, BOX)
    assert facts["error"]["latent"]["1"] == pytest.approx(1e-4 / seen.var((0, 1)).sum())
    facts = model_facts(Model(given, obs={"obs": (wrong, seen)}), given, BOX)
    assert facts["error"]["obs"]["1"] == pytest.approx(1e-4 / seen.var((0, 1))[1] / 2)
    facts = model_facts(Model(given, obs={}, pixels={"image": (wrong, seen)}), given, BOX)
    assert facts["error"]["obs"]["1"] == pytest.approx(1e-4 / seen.var((0, 1)).sum())


def test_what_never_changes_is_not_judged() -> None:
    given = probes(terminated=True)
    still = np.ones((4, IMAGINED_ROWS, 3))
    facts = model_facts(Model(given, latent=(still, still)), given, BOX)
    assert "latent" not in facts["error"]


def test_an_agent_that_does_not_predict_says_nothing() -> None:
    assert model_facts(object(), probes(terminated=True), BOX) == {}


def test_coverage_counts_parts_of_the_range_and_ends_of_it() -> None:
    specs = {
        "move": ArraySpec((2,)),
        "choice": ArraySpec((), "int64", (4,)),
    }
    move = np.array([[-1.0, 0.0], [1.0, 0.01], [0.05, 0.02], [-0.95, 0.0]])
    facts = action_facts({"move": move, "choice": np.array([0, 1, 1, 0])}, specs)
    assert facts["action_coverage"] == pytest.approx(np.mean([3 / 10, 1 / 10, 2 / 4]))
    assert facts["action_saturation"] == pytest.approx(2 / 8)
