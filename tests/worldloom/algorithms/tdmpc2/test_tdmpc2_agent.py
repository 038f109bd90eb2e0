"""The TD-MPC2 agent keeps the promises of ``core.protocol``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.worldloom.algorithms.tdmpc2.tiny import (
    MIXED,
    OBS_KINDS,
    VECTOR,
    make_env,
    random_batch,
    random_obs,
    tiny_config,
)
from worldloom.algorithms.registry import agent_spec, make_agent, make_policy
from worldloom.algorithms.tdmpc2.agent import TDMPC2Agent
from worldloom.algorithms.tdmpc2.losses import cloning_loss
from worldloom.core.exceptions import CheckpointError, ShapeMismatchError
from worldloom.core.protocol import Agent, Policy
from worldloom.core.specs import ArraySpec, EnvSpec


def first(count: int, value: bool = True) -> np.ndarray:
    return np.full(count, value)


def build(env: EnvSpec, seed: int = 0, **changes: Any) -> TDMPC2Agent:
    agent = make_agent(tiny_config(**changes), env, seed=seed)
    assert isinstance(agent, TDMPC2Agent)
    return agent


def test_agent_and_policy_fulfil_the_protocols() -> None:
    env = make_env()
    config = tiny_config()
    assert isinstance(make_agent(config, env), Agent)
    assert isinstance(make_policy(config, env), Policy)


@pytest.mark.parametrize("kind", list(OBS_KINDS))
@pytest.mark.parametrize("episodic", ["on", "off"])
def test_every_kind_of_observation_acts_and_trains(kind: str, episodic: str) -> None:
    env = make_env(OBS_KINDS[kind])
    agent = build(env, episodic=episodic)
    out = agent.act(random_obs(env, 3), agent.initial_carry(3), first(3), explore=True)
    assert out.action["action"].shape == (3, 2)
    assert out.action["action"].dtype == np.float32
    assert np.abs(out.action["action"]).max() <= 1
    assert out.carry["prev_mean"].shape == (3, 3, 2)
    before = {name: value.clone() for name, value in agent.model.state_dict().items()}
    for seed in range(2):  # heads that start at zero pass no gradient down in the first step
        result = agent.train_step(random_batch(env, agent.config, seed))
    assert float(result.nonfinite) == 0
    assert all(
        isinstance(value, torch.Tensor) and value.dim() == 0 for value in result.metrics.values()
    )
    same = [
        name for name, value in agent.model.state_dict().items() if torch.equal(value, before[name])
    ]
    assert same == []


def test_several_action_keys_of_any_rank_are_split_again() -> None:
    env = make_env(action={"grip": ArraySpec(()), "move": ArraySpec((2, 2))})
    agent = build(env)
    out = agent.act(random_obs(env, 2), agent.initial_carry(2), first(2), explore=True)
    assert {key: value.shape for key, value in out.action.items()} == {
        "grip": (2,),
        "move": (2, 2, 2),
    }
    agent.train_step(random_batch(env, agent.config))


def test_is_first_resets_the_carry_inside_act() -> None:
    env = make_env()
    stale = {"prev_mean": np.full((2, 3, 2), 0.9, np.float32)}
    fresh = build(env).initial_carry(2)
    obs = random_obs(env, 2)
    reset = build(env).act(obs, stale, first(2), explore=True)
    started = build(env).act(obs, fresh, first(2), explore=True)
    warm = build(env).act(obs, stale, first(2, False), explore=True)
    np.testing.assert_array_equal(reset.action["action"], started.action["action"])
    assert not np.array_equal(warm.action["action"], started.action["action"])
    assert np.all(stale["prev_mean"] == np.float32(0.9))


def test_with_num_envs_an_env_does_not_depend_on_the_others() -> None:
    env = make_env(MIXED)
    config = tiny_config()
    obs = random_obs(env, 3)
    other = random_obs(env, 3, seed=1)
    mixed = {key: np.concatenate([obs[key][:2], other[key][2:]]) for key in obs}
    results = []
    for seen in (obs, mixed):
        policy = make_policy(config, env, seed=3, num_envs=3)
        carry = policy.initial_carry(3)
        for step in range(2):
            out = policy.act(seen, carry, first(3, step == 0), explore=True)
            carry = out.carry
        results.append(out.action["action"])
    np.testing.assert_array_equal(results[0][:2], results[1][:2])
    assert not np.array_equal(results[0][2], results[1][2])
    with pytest.raises(ShapeMismatchError, match="num_envs"):
        policy.act(random_obs(env, 2), policy.initial_carry(2), first(2), explore=True)


def test_policy_acts_exactly_as_the_agent_under_equal_weights() -> None:
    env = make_env()
    agent = build(env, seed=5)
    policy = make_policy(tiny_config(), env, seed=5)
    for round_ in range(2):
        obs = random_obs(env, 2, seed=round_)
        outs = [
            actor.act(obs, actor.initial_carry(2), first(2), explore=True)
            for actor in (agent, policy)
        ]
        np.testing.assert_array_equal(outs[0].action["action"], outs[1].action["action"])
        for seed in range(3):
            agent.train_step(random_batch(env, agent.config, seed))
        policy.load_weights(agent.policy_weights())


def test_policy_weights_are_a_copy_without_targets_and_optimizers() -> None:
    env = make_env()
    agent = build(env)
    snapshot = agent.policy_weights()
    assert {e.name for e in snapshot.entries} == set(agent.model.state_dict())
    before = {name: value.copy() for name, value in snapshot.arrays().items()}
    agent.train_step(random_batch(env, agent.config))
    after = agent.policy_weights().arrays()
    assert all(np.array_equal(snapshot.arrays()[name], before[name]) for name in before)
    assert not np.array_equal(after["dynamics.0.weight"], before["dynamics.0.weight"])


def test_weights_of_another_size_are_refused() -> None:
    policy = make_policy(tiny_config(), make_env())
    with pytest.raises(CheckpointError, match="shape"):
        policy.load_weights(build(make_env(), mlp_dim=24).policy_weights())


def test_without_exploration_only_the_noise_is_dropped() -> None:
    env = make_env()
    obs = random_obs(env, 2)
    runs = [
        build(env).act(obs, build(env).initial_carry(2), first(2), explore=explore)
        for explore in (True, False)
    ]
    np.testing.assert_array_equal(runs[0].carry["prev_mean"], runs[1].carry["prev_mean"])
    assert not np.array_equal(runs[0].action["action"], runs[1].action["action"])


def test_training_is_deterministic() -> None:
    env = make_env(MIXED)
    one = build(env, seed=1)
    two = build(env, seed=1)
    for seed in range(2):
        batch = random_batch(env, one.config, seed)
        losses = [float(agent.train_step(batch).metrics["total_loss"]) for agent in (one, two)]
        assert losses[0] == losses[1]
    assert np.array_equal(one.policy_weights().buffer, two.policy_weights().buffer)


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_loaded_agent_takes_bit_equal_next_steps(steps_before: int) -> None:
    env = make_env()
    agent = build(env, seed=1, episodic="on")
    other = build(env, seed=2, episodic="on")
    obs = random_obs(env, 2)
    for seed in range(steps_before):
        agent.train_step(random_batch(env, agent.config, seed))
        agent.act(obs, agent.initial_carry(2), first(2), explore=True)
        other.train_step(random_batch(env, agent.config, seed))
    other.load_state_dict(agent.state_dict())
    for seed in range(10, 12):
        batch = random_batch(env, agent.config, seed)
        metrics = [each.train_step(batch).metrics for each in (agent, other)]
        assert {k: float(v) for k, v in metrics[0].items()} == {
            k: float(v) for k, v in metrics[1].items()
        }
    assert np.array_equal(agent.policy_weights().buffer, other.policy_weights().buffer)
    outs = [each.act(obs, each.initial_carry(2), first(2), explore=True) for each in (agent, other)]
    np.testing.assert_array_equal(outs[0].action["action"], outs[1].action["action"])


def test_a_saved_state_does_not_change_with_the_agent() -> None:
    env = make_env()
    agent = build(env)
    agent.train_step(random_batch(env, agent.config))
    state = agent.state_dict()
    kept = (
        state["model"]["pi.0.weight"].clone(),
        state["updater"]["model_optimizer"]["dynamics.0.weight"]["exp_avg"].clone(),
    )
    agent.train_step(random_batch(env, agent.config, 1))
    assert torch.equal(state["model"]["pi.0.weight"], kept[0])
    assert torch.equal(state["updater"]["model_optimizer"]["dynamics.0.weight"]["exp_avg"], kept[1])


def test_a_state_of_another_architecture_is_refused_by_name() -> None:
    env = make_env()
    with pytest.raises(CheckpointError, match=r"model: tensor 'critics\.0\.bias'"):
        build(env).load_state_dict(build(env, mlp_dim=24).state_dict())
    agent = build(env)
    state = {part: value for part, value in agent.state_dict().items() if part != "updater"}
    with pytest.raises(CheckpointError, match="updater"):
        agent.load_state_dict(state)


def test_read_only_host_arrays_are_accepted() -> None:
    env = make_env()
    agent = build(env)
    obs = random_obs(env, 2)
    carry = agent.initial_carry(2)
    for array in (*obs.values(), *carry.values()):
        array.flags.writeable = False
    out = agent.act(obs, carry, first(2), explore=True)
    assert not (carry["prev_mean"] != 0).any()
    assert (out.carry["prev_mean"] != 0).any()
    host = random_batch(env, agent.config).map(lambda t: t.numpy())
    host.reward.flags.writeable = False
    assert float(agent.train_step(host).nonfinite) == 0


def test_a_nonfinite_batch_changes_nothing_and_is_counted() -> None:
    env = make_env()
    agent = build(env)
    good = random_batch(env, agent.config)
    agent.train_step(good)
    state = agent.state_dict()
    bad = random_batch(env, agent.config, 1)
    bad.reward[0, 2] = float("nan")
    result = agent.train_step(bad)
    assert float(result.nonfinite) == 1
    after = agent.state_dict()
    for part in ("model", "target"):
        for name, value in state[part].items():
            assert torch.equal(after[part][name], value), name
    for optimizer in ("model_optimizer", "policy_optimizer"):
        for name, moments in state["updater"][optimizer].items():
            for key, value in moments.items():
                assert torch.equal(after["updater"][optimizer][name][key], value), (name, key)
    assert torch.equal(after["updater"]["scale"], state["updater"]["scale"])
    assert float(agent.train_step(good).nonfinite) == 0


def test_an_observation_that_is_not_a_number_poisons_neither_the_carry_nor_other_envs() -> None:
    env = make_env()
    obs = random_obs(env, 2)
    bad = random_obs(env, 2)
    bad["obs"][1] = np.nan
    runs = []
    for first_obs in (obs, bad):
        agent = build(env)
        out = agent.act(first_obs, agent.initial_carry(2), first(2), explore=True)
        assert np.isfinite(out.action["action"]).all()
        runs.append((out, agent.act(obs, out.carry, first(2, False), explore=True)))
    assert np.isfinite(runs[1][1].carry["prev_mean"]).all()
    for one, other in zip(*runs, strict=True):
        np.testing.assert_allclose(one.action["action"][0], other.action["action"][0], rtol=1e-5)


def test_the_spec_counts_one_update_per_decision() -> None:
    spec = agent_spec(tiny_config(updates_per_decision=1.0), make_env(VECTOR))
    assert spec.train_ratio == spec.sampling.trained_positions == 15
    assert spec.sampling.window_rows == 4


@pytest.mark.parametrize("kind", list(OBS_KINDS))
@pytest.mark.parametrize("episodic", ["on", "off"])
def test_half_precision_trains_close_to_single_and_keeps_its_weights_in_single(
    kind: str, episodic: str
) -> None:
    env = make_env(OBS_KINDS[kind])
    losses: dict[str, list[float]] = {}
    for precision in ("float32", "bfloat16", "auto"):
        agent = build(env, episodic=episodic, precision=precision)
        outs = [agent.train_step(random_batch(env, agent.config, seed)) for seed in range(3)]
        assert all(float(out.nonfinite) == 0 for out in outs)
        assert all(p.dtype == torch.float32 for p in agent.model.parameters())
        losses[precision] = [float(out.metrics["total_loss"]) for out in outs]
        agent.act(random_obs(env, 1), agent.initial_carry(1), first(1), explore=True)
    assert losses["auto"] == losses["float32"], "auto is single precision on a CPU"
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_a_plan_in_half_precision_is_near_the_one_in_single() -> None:
    """With the same weights and draws, the means of the next distribution differ by less than 0.1
    of their range of 2 on average: single elites may change places.
    """
    env = make_env(VECTOR)
    trained = build(env, precision="float32")
    for seed in range(5):
        trained.train_step(random_batch(env, trained.config, seed))
    obs = random_obs(env, 4)
    found = {}
    for precision in ("float32", "bfloat16", "auto"):
        agent = build(env, precision=precision)
        agent.load_weights(trained.policy_weights())
        out = agent.act(obs, agent.initial_carry(4), first(4), explore=False)
        assert out.carry["prev_mean"].dtype == np.float32
        found[precision] = out.carry["prev_mean"]
    assert np.array_equal(found["auto"], found["float32"])
    assert not np.array_equal(found["bfloat16"], found["float32"])
    assert np.abs(found["bfloat16"] - found["float32"]).mean() < 0.1


def test_behaviour_cloning_of_weight_zero_changes_no_bit_and_a_larger_one_nears_the_data() -> None:
    env = make_env()
    batches = [random_batch(env, tiny_config(), seed) for seed in range(3)]
    plain, zero, cloning = build(env), build(env, bc_weight=0.0), build(env, bc_weight=50.0)
    for batch in batches:
        without = plain.train_step(batch)
        same = zero.train_step(batch)
        assert set(without.metrics) == set(same.metrics)
        assert "bc_loss" not in same.metrics
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, zero.model.state_dict()[name]), name
    losses = [float(cloning.train_step(batches[0]).metrics["bc_loss"]) for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    assert losses[-1] > 0


def test_cloning_is_the_mean_squared_distance_of_the_mode_from_the_actions() -> None:
    rng = np.random.default_rng(0)
    mean = torch.from_numpy(rng.normal(size=(3, 4, 2)))
    action = torch.from_numpy(rng.uniform(-1, 1, (2, 4, 2)))
    by_hand = 0.0
    for t in range(2):
        for b in range(4):
            for a in range(2):
                error = np.tanh(mean[t, b, a].item()) - action[t, b, a].item()
                by_hand += 0.5**t * error**2 / (2 * 4 * 2)
    assert cloning_loss(mean, action, None, 0.5).item() == pytest.approx(by_hand)
    mask = torch.tensor([1.0, 0.0], dtype=mean.dtype)
    first_only = cloning_loss(mean[..., :1], action[..., :1], None, 0.5)
    assert cloning_loss(mean, action, mask, 0.5).item() == pytest.approx(first_only.item())
