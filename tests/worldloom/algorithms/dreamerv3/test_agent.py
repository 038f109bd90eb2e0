"""The agent trains and acts in every kind of space, and keeps the promises of the protocol."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.worldloom.algorithms.dreamerv3.dreamer_cases import (
    ACTION_SPACES,
    OBS_SPACES,
    act_once,
    env_of,
    random_batch,
    tiny,
)
from worldloom.algorithms.dreamerv3.report import PANEL, STRIDE, curves
from worldloom.algorithms.dreamerv3.spec import LATENT_DETER, LATENT_STOCH
from worldloom.algorithms.registry import make_agent, make_agent_config, make_policy
from worldloom.core.exceptions import CheckpointError, ConfigurationError, ShapeMismatchError
from worldloom.core.pixel_text import GAP, HEIGHT, text_size
from worldloom.core.protocol import Agent, Policy
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.training.tree_files import load_tree, save_tree

SPACES = [(obs, "Discrete") for obs in OBS_SPACES] + [
    ("vector", action) for action in ACTION_SPACES if action != "Discrete"
]


@pytest.mark.parametrize(("obs", "action"), SPACES)
def test_it_trains_and_acts_in_every_space(obs: str, action: str) -> None:
    env = env_of(obs, action)
    agent = make_agent(tiny(), env)
    before = {n: p.clone() for n, p in agent.all_networks.trained().items()}
    for seed in range(2):
        out = agent.train_step(random_batch(agent, env, seed))
        assert float(out.nonfinite) == 0
        assert all(np.isfinite(float(value)) for value in out.metrics.values())
    after = agent.all_networks.trained()
    still = [name for name, p in after.items() if torch.equal(p, before[name])]
    assert not still
    out = act_once(agent, env)
    for name, spec in env.action.items():
        value = out.action[name]
        assert (value.shape, value.dtype) == ((3, *spec.shape), np.dtype(spec.dtype))
        limit = np.array(spec.num_classes).reshape(spec.shape) - 1 if spec.num_classes else 1.0
        assert np.all(value <= limit)
        assert np.all(value >= (0 if spec.num_classes else -1))
    for name, spec in agent.spec.extras.items():
        assert (out.extras[name].shape, out.extras[name].dtype) == (
            (3, *spec.shape),
            np.dtype(spec.dtype),
        )


def test_agent_and_policy_fulfil_the_protocols() -> None:
    assert isinstance(make_agent(tiny(), env_of()), Agent)
    assert isinstance(make_policy(tiny(), env_of()), Policy)


def test_refreshed_latents_cover_the_trained_rows() -> None:
    env = env_of()
    agent = make_agent(tiny(), env)
    refreshed = agent.train_step(random_batch(agent, env)).refreshed
    assert refreshed[LATENT_DETER].shape == (2, 6, 32)
    assert refreshed[LATENT_DETER].dtype == torch.uint16
    assert refreshed[LATENT_STOCH].shape == (2, 6, 4)
    assert refreshed[LATENT_STOCH].dtype == torch.uint8


def test_training_starts_from_the_stored_latent() -> None:
    env = env_of()
    totals = []
    for value in (0.0, 0.9):
        agent = make_agent(tiny(), env)
        batch = random_batch(agent, env)
        stored = torch.full(batch.extras[LATENT_DETER].shape, value)
        extras = {**batch.extras, LATENT_DETER: stored.bfloat16().view(torch.uint16)}
        totals.append(float(agent.train_step(replace(batch, extras=extras)).metrics["loss/total"]))
    assert totals[0] != totals[1]


def test_without_replay_context_nothing_is_stored_or_written_back() -> None:
    env = env_of("image HWC", "Box")
    agent = make_agent(tiny(replay_context=0), env)
    assert not agent.spec.extras
    assert not agent.spec.writes_back
    assert agent.spec.sampling.window_rows == 6
    assert agent.train_step(random_batch(agent, env)).refreshed is None
    assert not act_once(agent, env).extras


def test_equal_seeds_give_equal_weights_to_agent_and_policy() -> None:
    env = env_of("two images and a vector", "Dict")
    agent = make_agent(tiny(), env, seed=3)
    policy = make_policy(tiny(), env, seed=3)
    ours = agent.policy_weights()
    theirs = policy.policy_weights()
    assert ours.entries == theirs.entries
    np.testing.assert_array_equal(ours.buffer, theirs.buffer)
    assert not np.array_equal(ours.buffer, make_policy(tiny(), env, seed=4).policy_weights().buffer)


def test_policy_acts_as_the_agent_under_its_weights() -> None:
    env = env_of("vector", "Box")
    agent = make_agent(tiny(), env, seed=1)
    policy = make_policy(tiny(), env, seed=1)
    for seed in range(3):
        agent.train_step(random_batch(agent, env, seed))
    stale = act_once(policy, env).action["action"]
    policy.load_weights(agent.policy_weights())
    policy.load_rng_state(agent.rng_state())
    fresh = act_once(policy, env).action["action"]
    np.testing.assert_array_equal(fresh, act_once(agent, env).action["action"])
    assert not np.array_equal(stale, fresh)


def test_weights_without_decoder_heads_and_prior() -> None:
    names = {entry.name for entry in make_agent(tiny(), env_of()).policy_weights().entries}
    assert {name.partition(".")[0] for name in names} == {"actor", "enc", "dyn"}
    assert not any("prior" in name for name in names)


def test_is_first_resets_the_carry_inside_act() -> None:
    env = env_of("vector", "Box")
    policy = make_policy(tiny(), env)
    dirty = {key: np.full_like(value, 0.7) for key, value in policy.initial_carry(3).items()}
    state = policy.rng_state()
    clean = act_once(policy, env).carry
    policy.load_rng_state(state)
    reset = act_once(policy, env, carry=dirty).carry
    policy.load_rng_state(state)
    kept = act_once(policy, env, carry=dirty, first=False).carry
    np.testing.assert_array_equal(clean["deter"], reset["deter"])
    assert not np.array_equal(clean["deter"], kept["deter"])
    assert np.all(dirty["deter"] == np.float32(0.7))


def test_with_num_envs_an_env_does_not_depend_on_the_others() -> None:
    env = env_of("vector", "Box")
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (3, 5)).astype(np.float32)
    actions = []
    for changed in (obs, np.concatenate([obs[:2], obs[2:] + 1])):
        policy = make_policy(tiny(), env, num_envs=3)
        actions.append(
            policy.act(
                {"obs": changed}, policy.initial_carry(3), np.ones(3, bool), explore=True
            ).action["action"]
        )
    np.testing.assert_array_equal(actions[0][:2], actions[1][:2])
    assert not np.array_equal(actions[0][2], actions[1][2])
    with pytest.raises(ShapeMismatchError, match="num_envs"):
        act_once(policy, env, num_envs=2)


def test_saved_state_continues_bit_for_bit(tmp_path) -> None:
    env = env_of("image HWC", "Box")
    agent = make_agent(tiny(), env)
    agent.train_step(random_batch(agent, env, 0))
    save_tree(tmp_path / "state", agent.state_dict())
    other = make_agent(tiny(), env, seed=9)
    other.load_state_dict(load_tree(tmp_path / "state"))
    for seed in (1, 2):
        first, second = (a.train_step(random_batch(a, env, seed)).metrics for a in (agent, other))
        assert {k: float(v) for k, v in first.items()} == {k: float(v) for k, v in second.items()}
    for (name, ours), theirs in zip(
        agent.all_networks.state_dict().items(),
        other.all_networks.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(ours, theirs), name
    np.testing.assert_array_equal(
        act_once(agent, env).action["action"], act_once(other, env).action["action"]
    )


def test_state_of_another_architecture_is_refused_by_name() -> None:
    state = make_agent(tiny(), env_of()).state_dict()
    with pytest.raises(CheckpointError, match=r"model\.rew\.mlp|actor|critic"):
        make_agent(tiny(units=16), env_of()).load_state_dict(state)
    with pytest.raises(CheckpointError, match="optimizer"):
        make_agent(tiny(), env_of()).load_state_dict(
            {k: v for k, v in state.items() if k != "optimizer"}
        )


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_nonfinite_update_changes_nothing_but_the_draws(poison: float) -> None:
    env = env_of()
    agent = make_agent(tiny(), env)
    agent.train_step(random_batch(agent, env, 0))
    before = agent.state_dict()
    batch = random_batch(agent, env, 1)
    batch.obs["obs"][0, 3, 0] = poison
    out = agent.train_step(batch)
    assert float(out.nonfinite) == 1
    after = agent.state_dict()
    assert all(torch.equal(before["networks"][k], v) for k, v in after["networks"].items())
    for part in ("mean_square", "momentum"):
        assert all(
            torch.equal(a, b)
            for a, b in zip(before["optimizer"][part], after["optimizer"][part], strict=True)
        )
    assert torch.equal(before["optimizer"]["count"], after["optimizer"]["count"])
    assert all(
        torch.equal(a, b) for a, b in zip(before["normalizer"], after["normalizer"], strict=True)
    )
    assert float(agent.train_step(random_batch(agent, env, 2)).nonfinite) == 0


def test_half_precision_trains_close_to_single() -> None:
    env = env_of("image HWC", "Box")
    losses = {}
    for precision in ("float32", "bfloat16"):
        agent = make_agent(tiny(precision=precision), env)
        out = agent.train_step(random_batch(agent, env))
        assert all(p.dtype == torch.float32 for p in agent.all_networks.trained().values())
        losses[precision] = float(out.metrics["loss/total"])
        act_once(agent, env)
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_one_wrong_batch_is_refused_with_the_rows_it_needs() -> None:
    env = env_of()
    agent = make_agent(tiny(), env)
    batch = random_batch(agent, env)
    with pytest.raises(ShapeMismatchError, match="latent/deter"):
        agent.train_step(replace(batch, extras={}))
    short = batch.map(lambda x: x[:, :2])
    with pytest.raises(ShapeMismatchError, match="rows per window"):
        agent.train_step(short)


def test_images_too_small_and_spaces_without_keys_are_refused() -> None:
    action = {"action": ArraySpec((1,))}
    small = EnvSpec(name="small", obs={"obs": ArraySpec((16, 64, 3), "uint8")}, action=action)
    with pytest.raises(ConfigurationError, match="image_size"):
        make_agent(tiny(), small)
    with pytest.raises(ConfigurationError, match="observation"):
        make_agent(tiny(), EnvSpec(name="blind", obs={}, action=action))


def test_wrong_settings_are_all_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_agent_config("dreamerv3:ci", {"lr": 0.0, "replay_context": 2})
    assert "agent.lr must be a number > 0, got 0.0" in str(caught.value)
    assert "agent.replay_context must be an integer in [0, 1], got 2" in str(caught.value)


def test_report_shows_truth_model_and_error_with_context_marked() -> None:
    env = env_of("two images and a vector", "Dict")
    agent = make_agent(tiny(), env)
    batch = random_batch(agent, env)
    state = agent.state_dict()
    videos = agent.report(batch)
    top, left = HEIGHT + 2 * GAP, text_size("truth")[1] + 2 * GAP
    assert [len(videos[name]) for name in ("camera", "depth", "joints")] == [4, 4, 1]
    assert videos["depth"].shape[1] == top + 120
    assert videos["joints"].shape[1] == top + 5 * PANEL
    assert videos["camera"].dtype == np.uint8
    labelled = videos["camera"]
    assert labelled[0, :top].any()
    assert not np.array_equal(labelled[0, :top], labelled[3, :top]), "it says the step"
    assert labelled[0, top:, :left].any(), "rows have names"
    camera = labelled[:, top:, left : left + 96]
    assert camera.shape == (4, 96, 96, 3)
    np.testing.assert_array_equal(camera[:, :32, :48], batch.obs["camera"][0, 1:5])
    assert [tuple(frame[32, 0]) for frame in camera] == [(0, 255, 0)] * 2 + [(255, 0, 0)] * 2
    assert all(np.array_equal(frames, videos[name]) for name, frames in agent.report(batch).items())
    assert torch.equal(state["rng"]["train"], agent.state_dict()["rng"]["train"])


def test_curves_lie_on_each_other_where_the_prediction_is_right() -> None:
    truth = np.random.default_rng(0).normal(size=(2, 6, 3))
    right = curves(truth, truth, 3)
    wrong = curves(truth, -truth, 3)
    assert right.shape == wrong.shape == (1, 3 * PANEL, 2 * 6 * STRIDE, 3)
    assert not (right[..., :] == 255).all(-1).any()  # white only shows beside the prediction
    assert (wrong[..., :] == 255).all(-1).any()
    holes = np.where(truth > 1, -np.inf, truth)
    np.testing.assert_array_equal(
        curves(holes, truth, 3), curves(np.where(truth > 1, 0.0, truth), truth, 3)
    )
    assert [tuple(right[0, 0, x]) for x in (0, 3 * STRIDE - 1, 3 * STRIDE)] == [
        (0, 255, 0),
        (0, 255, 0),
        (255, 0, 0),
    ]


def test_classes_are_not_drawn() -> None:
    env = env_of("discrete")
    agent = make_agent(tiny(), env)
    assert agent.report(random_batch(agent, env)) == {}
