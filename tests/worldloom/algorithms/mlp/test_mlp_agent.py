"""What the ``mlp`` agent is beside the contract that ``check_agent`` tries: settings, snapshots,
its public face, and that it goes on exactly.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tests.worldloom.algorithms.mlp.tiny import (
    VECTOR,
    make_env,
    random_windows,
    tiny_agent,
    tiny_config,
)
from worldloom import create_world_model
from worldloom.algorithms.mlp.agent import MLPAgent
from worldloom.algorithms.mlp.model import Networks
from worldloom.algorithms.mlp.spec import PRESETS, resolve
from worldloom.algorithms.mlp.trained import public_config, public_weights
from worldloom.algorithms.mlp.world_model import MLPWorldModel
from worldloom.algorithms.registry import agent_spec, make_agent, make_agent_config, make_policy
from worldloom.core.exceptions import CheckpointError, ConfigurationError, ShapeMismatchError
from worldloom.core.protocol import Agent, Policy
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.testing.noise import random_obs

MODES = ("actor-critic", "cem", "random-shooting", "mcts")


def first(count: int, value: bool = True) -> np.ndarray:
    return np.full(count, value)


def test_agent_and_policy_fulfil_the_protocols() -> None:
    assert isinstance(make_agent(tiny_config(), make_env()), Agent)
    assert isinstance(make_policy(tiny_config(), make_env()), Policy)


@pytest.mark.parametrize("acting", MODES)
def test_a_policy_acts_exactly_as_the_agent_and_holds_no_more_than_it_reads(acting: str) -> None:
    env = make_env(discrete=3)
    agent = tiny_agent(env, acting=acting)
    policy = make_policy(tiny_config(acting=acting), env, seed=7)
    agent.train_step(random_windows(agent))
    snapshot = agent.policy_weights()
    names = {
        entry.name.split(".")[0] + "." + entry.name.split(".")[1] for entry in snapshot.entries
    }
    assert not any("decoder" in name or name.startswith("slow") for name in names)
    assert ("model.dynamics" in names) == (acting != "actor-critic")
    policy.load_weights(snapshot)
    policy.load_rng_state(agent.rng_state())
    for explore in (True, False):
        outs = [
            actor.act(random_obs(env, 4, 0), {}, first(4), explore=explore)
            for actor in (agent, policy)
        ]
        np.testing.assert_array_equal(outs[0].action["action"], outs[1].action["action"])


@pytest.mark.parametrize("acting", MODES)
def test_with_num_envs_an_env_does_not_depend_on_the_others(acting: str) -> None:
    env = make_env(discrete=3)
    obs = random_obs(env, 3, 0)["obs"]
    mixed = np.concatenate([obs[:2], -obs[2:]])
    found = []
    for seen in (obs, mixed):
        policy = make_policy(tiny_config(acting=acting), env, seed=3, num_envs=3)
        found.append(
            [
                policy.act({"obs": seen}, {}, first(3), explore=True).action["action"]
                for _ in range(5)
            ]
        )
    np.testing.assert_array_equal(np.array(found[0])[:, :2], np.array(found[1])[:, :2])
    with pytest.raises(ShapeMismatchError, match="num_envs"):
        policy.act({"obs": obs[:2]}, {}, first(2), explore=True)


def test_a_loaded_agent_takes_bit_equal_next_steps() -> None:
    agent = tiny_agent(uncertainty_bonus=0.5)
    other = tiny_agent(seed=2, uncertainty_bonus=0.5)
    for seed in range(3):
        agent.train_step(random_windows(agent, seed))
    other.load_state_dict(agent.state_dict())
    for seed in range(3, 6):
        batch = random_windows(agent, seed)
        metrics = [each.train_step(batch).metrics for each in (agent, other)]
        one, two = ({k: float(v) for k, v in m.items()} for m in metrics)
        assert one == two
    assert np.array_equal(agent.policy_weights().buffer, other.policy_weights().buffer)
    for part, named in agent.state_dict()["optimizers"].items():
        for name, moments in named.items():
            for key, value in moments.items():
                assert torch.equal(value, other.state_dict()["optimizers"][part][name][key])


def test_a_nonfinite_batch_changes_nothing_and_is_counted() -> None:
    agent = tiny_agent()
    agent.train_step(random_windows(agent))
    before = agent.state_dict()
    bad = random_windows(agent, 1)
    bad.obs["obs"][0, 1] = float("nan")
    assert float(agent.train_step(bad).nonfinite) == 1
    after = agent.state_dict()
    for name, value in before["networks"].items():
        assert torch.equal(value, after["networks"][name]), name
    for one, two in zip(before["spread"], after["spread"], strict=True):
        assert torch.equal(one, two)
    assert float(agent.train_step(random_windows(agent, 2)).nonfinite) == 0


def test_a_state_of_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"'actor\.head\.mlp"):
        tiny_agent().load_state_dict(tiny_agent(policy_dim=16).state_dict())
    agent = tiny_agent()
    state = {part: value for part, value in agent.state_dict().items() if part != "optimizers"}
    with pytest.raises(CheckpointError, match="optimizers"):
        agent.load_state_dict(state)


def test_an_observation_that_is_not_a_number_does_not_reach_the_env() -> None:
    env = make_env()
    obs = random_obs(env, 2, 0)
    obs["obs"][1] = np.nan
    for acting in MODES[:3]:
        out = tiny_agent(env, acting=acting).act(obs, {}, first(2), explore=True)
        assert np.isfinite(out.action["action"]).all()


def test_without_exploration_the_actor_repeats_itself_and_with_it_draws() -> None:
    agent = tiny_agent()
    obs = random_obs(agent.env, 2, 0)
    found = {
        explore: [agent.act(obs, {}, first(2), explore=explore).action["action"] for _ in range(2)]
        for explore in (True, False)
    }
    np.testing.assert_array_equal(*found[False])
    assert not np.array_equal(*found[True])


# -- settings -------------------------------------------------------------------------------------


def test_the_guide_s_numbers_are_the_defaults() -> None:
    config = make_agent_config("mlp:small")
    want = {
        "latent_dim": 128,
        "hidden_dim": 256,
        "learning_rate": 1e-3,
        "weight_decay": 1e-6,
        "grad_clip": 1.0,
        "reconstruction_scale": 1.0,
        "dynamics_scale": 1.0,
        "reward_scale": 1.0,
    }
    assert {name: getattr(config, name) for name in want} == want
    assert make_agent_config("mlp:base").ensemble_size == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"acting": "mppi"}, r"agent\.acting must be one of"),
        ({"num_elites": 40}, r"agent\.num_elites must be <= num_samples \(12\), got 40"),
        ({"num_policy_samples": 13}, r"agent\.num_policy_samples must be <= num_samples"),
        ({"ensemble_size": 1, "uncertainty_bonus": 1.0}, "set ensemble_size to 2 or more"),
        ({"return_rate": 0.0}, r"agent\.return_rate must be a number in \(0, 1\], got 0"),
        ({"horizon": 0}, r"agent\.horizon must be an integer >= 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        tiny_config(**settings)


def test_a_tree_needs_few_discrete_actions() -> None:
    config = tiny_config(acting="mcts")
    with pytest.raises(ConfigurationError, match="action 'action' is continuous"):
        agent_spec(config, make_env())
    many = EnvSpec(
        name="toy:many", obs=VECTOR, action={"action": ArraySpec((9,), "int64", (2,) * 9)}
    )
    with pytest.raises(ConfigurationError, match="at most 256 joint actions, and there are 512"):
        agent_spec(config, many)


def test_the_discount_follows_the_episode_limit() -> None:
    env = make_env()
    for limit, want in ((None, 0.99), (200, 0.975), (1000, 0.99), (20, 0.95)):
        limited = dataclasses.replace(env, episode_limit=limit)
        assert resolve(tiny_config(), limited).discount == pytest.approx(want)
    assert resolve(tiny_config(discount=0.8), env).discount == 0.8


def test_the_spec_counts_updates_per_decision() -> None:
    spec = agent_spec(tiny_config(updates_per_decision=0.5), make_env())
    assert spec.train_ratio == 0.5 * spec.sampling.trained_positions == 8
    assert spec.sampling.window_rows == 5
    assert spec.acting == "light"
    assert agent_spec(tiny_config(acting="cem"), make_env()).acting == "planner"


# -- the public face ------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [0, 3])
def test_the_public_model_predicts_what_the_agent_s_members_do(discrete: int) -> None:
    env = make_env(discrete=discrete)
    agent = tiny_agent(env)
    agent.train_step(random_windows(agent))
    config = public_config(agent.config, env, "cpu")
    model = MLPWorldModel(config)
    model.load_state_dict(public_weights(agent.state_dict()))
    obs = torch.rand(5, 3)
    latent = agent.networks.model.encode({"obs": obs})
    state = model.encode(obs)
    torch.testing.assert_close(state.features, latent.repeat(1, 3))
    action = torch.eye(3)[[0, 1, 2, 0, 1]] if discrete else torch.rand(5, 2) * 2 - 1
    following = agent.networks.model.next(latent, action)
    after = model.predict_next(state, action)
    torch.testing.assert_close(after.features, following.transpose(0, 1).flatten(1))
    reward, logit = agent.networks.model.arrival(following)
    torch.testing.assert_close(model.predict_reward(after), reward.mean(0)[:, None])
    torch.testing.assert_close(model.predict_done(after), logit.sigmoid().mean(0)[:, None])
    scaled = agent.networks.model.decoder(latent).detach()
    torch.testing.assert_close(
        model.decode(state)["obs"], agent.networks.model.obs_moments.restored(scaled)
    )


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_name_means_one_network(name: str) -> None:
    env = make_env()
    config = PRESETS[name]()
    with torch.device("meta"):
        public: Any = create_world_model(
            f"mlp:{name}",
            obs_shape=(3,),
            action_dim=2,
            device="meta",
            ensemble_size=config.ensemble_size,
        )
        state = {"networks": Networks(config, env).state_dict()}
    ours = {key: tuple(value.shape) for key, value in public_weights(state).items()}
    assert ours == {key: tuple(value.shape) for key, value in public.state_dict().items()}


def test_images_are_refused_by_the_public_face() -> None:
    env = make_env({"obs": ArraySpec((64, 64, 3), "uint8")})
    with pytest.raises(ConfigurationError, match="convolutions"):
        public_config(tiny_config(), env, "cpu")


def test_images_of_any_size_are_trained_at_a_quarter_of_it() -> None:
    env = make_env({"camera": ArraySpec((48, 36, 3), "uint8"), "joints": ArraySpec((2,))})
    agent = MLPAgent(tiny_config(), env)
    assert agent.networks.model.pixels == 12 * 12 * 3
    losses = [
        float(agent.train_step(random_windows(agent)).metrics["loss/reconstruction"])
        for _ in range(30)
    ]
    # the first update is made before numbers have units
    assert losses[-1] < losses[1]


def test_the_metrics_have_one_total() -> None:
    agent = tiny_agent()
    metrics = agent.train_step(random_windows(agent)).metrics
    scales = agent.scales
    names = ("reconstruction", "prediction", "dynamics", "reward", "done")
    want = sum(getattr(scales, name) * float(metrics[f"loss/{name}"]) for name in names)
    want += float(metrics["loss/actor"]) + float(metrics["loss/critic"])
    assert float(metrics["loss/total"]) == pytest.approx(want, rel=1e-5)
