"""Weights that travel as bfloat16 act like float32 ones, within bounds."""

import numpy as np
import pytest

from tests.worldloom_dist.learner import rank_process
from worldloom.algorithms.registry import make_agent_config, make_policy
from worldloom.nn.snapshot import to_bfloat16
from worldloom_dist.learner.learner import Learner
from worldloom_dist.learner.weight_store import WeightStore

ENVS = 64


@pytest.mark.parametrize("name", ["tdmpc2", "dreamerv3"])
def test_a_policy_acts_on_bfloat16_weights_as_on_float32_ones(name):
    agent = rank_process.make(name)
    store = WeightStore()
    for number in range(2):
        agent.train_step(rank_process.batch(agent, number))
    Learner(agent, store, weights_dtype="bfloat16").publish()
    full = agent.policy_weights()
    half = store.fetch()
    assert half.nbytes <= 0.51 * full.nbytes
    assert half.version == store.version()
    preset, settings = rank_process.AGENTS[name]
    obs = {"obs": np.random.default_rng(0).normal(size=(ENVS, 3)).astype("float32")}
    actions = []
    for weights in (full, half):
        policy = make_policy(make_agent_config(preset, settings), rank_process.ENV, seed=5)
        policy.load_weights(weights)
        first = np.ones(ENVS, bool)
        actions.append(
            policy.act(obs, policy.initial_carry(ENVS), first, explore=True).action["action"]
        )
    apart = np.abs(actions[0] - actions[1])
    assert 0 < apart.mean() <= 0.02, "the same draws, so nearly the same actions"
    assert np.quantile(apart, 0.95) <= 0.05


def test_only_floats_become_smaller():
    full = rank_process.make("tdmpc2").policy_weights()
    twice = to_bfloat16(to_bfloat16(full))
    assert [entry.dtype for entry in twice.entries] == [
        "BF16" if e.dtype == "F32" else e.dtype for e in full.entries
    ]
