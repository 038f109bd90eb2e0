"""R2-Dreamer as an agent: DreamerV3's parts, another loss of the representation, no decoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.worldloom.algorithms.dreamerv3 import dreamer_cases
from tests.worldloom.algorithms.dreamerv3.dreamer_cases import env_of
from tests.worldloom.algorithms.r2dreamer.r2_cases import grads_of, tiny, tiny_agent, windows
from worldloom.algorithms.dreamerv3.context import window_batch
from worldloom.algorithms.registry import (
    agent_names,
    agent_spec,
    architecture_changes,
    make_agent,
    make_agent_config,
    trained_config,
)
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.protocol import Reporting
from worldloom.core.specs import ArraySpec

# -- what it is made of ---------------------------------------------------------------------------


@pytest.mark.parametrize("obs", ["vector", "image HWC", "two images and a vector"])
def test_a_projector_stands_in_place_of_the_decoder(obs: str) -> None:
    agent = tiny_agent(obs)
    ours = {name: tuple(p.shape) for name, p in agent.all_networks.trained().items()}
    dreamer = make_agent(dreamer_cases.tiny(), env_of(obs, "Box"), seed=3)
    theirs = {name: tuple(p.shape) for name, p in dreamer.all_networks.trained().items()}  # type: ignore[attr-defined]
    config = agent.config
    tokens = agent.all_networks.model.enc.width
    assert set(ours) - set(theirs) == {"model.projector.weight"}
    assert all(name.startswith("model.dec.") for name in set(theirs) - set(ours))
    assert all(ours[name] == theirs[name] for name in set(ours) & set(theirs))
    assert ours["model.projector.weight"] == (tokens, config.feature)


def test_equal_seeds_act_as_dreamerv3_does() -> None:
    agent = tiny_agent()
    dreamer: Any = make_agent(dreamer_cases.tiny(), env_of("vector", "Box"), seed=3)
    theirs = dreamer.policy_tensors()
    for name, value in agent.policy_tensors().items():
        assert value.equal(theirs[name]), name


def test_it_draws_no_predictions() -> None:
    assert not isinstance(tiny_agent(), Reporting)


def test_presets_are_dreamerv3_s_sizes() -> None:
    sizes = {n.partition(":")[2] for n in agent_names() if n.startswith("r2dreamer:")}
    assert sizes == {n.partition(":")[2] for n in agent_names() if n.startswith("dreamerv3:")}
    for size in sizes:
        ours = dataclasses.asdict(make_agent_config(f"r2dreamer:{size}"))  # type: ignore[call-overload]
        theirs = dataclasses.asdict(make_agent_config(f"dreamerv3:{size}"))  # type: ignore[call-overload]
        assert set(theirs) - set(ours) == {"scale_obs", "space_blocks", "report_length"}
        assert set(ours) - set(theirs) == {"scale_barlow", "redundancy_weight"}
        shared = set(ours) & set(theirs) - {"name"}
        assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_the_authors_numbers_are_the_defaults() -> None:
    config: Any = make_agent_config("r2dreamer")
    assert config.name == "r2dreamer:size12m"
    assert (config.scale_barlow, config.redundancy_weight) == (0.05, 5e-4)
    assert (config.scale_dyn, config.scale_rep, config.scale_repval) == (1.0, 0.1, 0.3)
    assert (config.deter, config.hidden, config.classes, config.depth) == (2048, 256, 16, 16)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scale_barlow": -1}, r"agent\.scale_barlow must be a number >= 0, got -1"),
        ({"redundancy_weight": "x"}, r"agent\.redundancy_weight must be a number"),
        ({"scale_obs": 1.0}, r"agent\.scale_obs: r2dreamer has no such setting"),
        ({"deter": 30}, r"deter must be divisible by blocks \(4\), got 30"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        tiny(**settings)


def test_a_resumed_run_keeps_its_sizes() -> None:
    assert architecture_changes(tiny(), tiny(lr=1e-2, scale_barlow=1.0)) == []
    assert architecture_changes(tiny(), tiny(units=16)) == [
        "agent.units: the run was made with 8, not 16"
    ]
    with pytest.raises(CheckpointError):
        tiny_agent().load_state_dict(tiny_agent(units=16).state_dict())


def test_the_public_api_of_models_says_that_it_has_none() -> None:
    with pytest.raises(ConfigurationError, match=r"'r2dreamer:ci' has no world model .*load_agent"):
        trained_config(tiny(), env_of(), "cpu")


def test_an_env_without_actions_is_refused_by_its_name() -> None:
    env = dataclasses.replace(env_of(), action={})
    with pytest.raises(ConfigurationError, match="one action key for r2dreamer"):
        agent_spec(tiny(), env)


def test_an_update_with_images_does_without_the_decoder_s_work() -> None:
    env = dataclasses.replace(env_of(), obs={"obs": ArraySpec((64, 64, 3), "uint8")})
    flops = {}
    for name in ("dreamerv3", "r2dreamer"):
        config = make_agent_config(f"{name}:size1m", {"batch_size": 2, "batch_length": 8})
        agent: Any = make_agent(config, env)
        batch = windows(agent)
        with FlopCounterMode(display=False) as counter:
            agent.train_step(batch)
        flops[name] = counter.get_total_flops()
    assert flops["r2dreamer"] <= 0.85 * flops["dreamerv3"], flops


# -- what it learns from --------------------------------------------------------------------------


def test_the_representation_teaches_the_encoder_through_the_posterior_alone() -> None:
    agent = tiny_agent("image HWC")
    model = agent.all_networks.model
    batch = window_batch(windows(agent), model, agent.config.replay_context)
    tokens = model.tokens(batch.obs)
    draws = agent.draw(*batch.reward.shape)
    posterior = model.observe(model.weights(), batch, draws.posterior, tokens)
    losses = model.representation_losses(batch, tokens, posterior)
    assert list(losses) == ["barlow/invariance", "barlow/redundancy"]
    total = torch.stack(list(losses.values())).sum()
    reached = {name for name, grad in grads_of(total, agent).items() if grad is not None}
    parts = {".".join(name.split(".")[:2]) for name in reached}
    assert parts == {"model.enc", "model.dyn", "model.projector"}
    assert not any(name.startswith("model.dyn.prior") for name in reached)

    leaf = model.tokens(batch.obs).detach().requires_grad_()
    fixed = type(posterior)(*(value.detach() for value in posterior))
    direct = torch.stack(list(model.representation_losses(batch, leaf, fixed).values())).sum()
    assert torch.autograd.grad(direct, leaf, allow_unused=True)[0] is None
    assert torch.autograd.grad(direct, model.projector.weight)[0].abs().sum() > 0  # type: ignore[union-attr]


def test_the_total_is_the_weighted_sum_of_the_losses() -> None:
    agent = tiny_agent(scale_barlow=0.25, redundancy_weight=0.5)
    batch = window_batch(windows(agent), agent.all_networks.model, agent.config.replay_context)
    out = agent.all_networks.loss(batch, agent.draw(*batch.reward.shape), agent.normalizer)
    weights = {"rep": 0.1, "repval": 0.3, "barlow/invariance": 0.25, "barlow/redundancy": 0.25}
    want = sum(weights.get(name, 1.0) * loss.mean() for name, loss in out.losses.items())
    torch.testing.assert_close(out.total, torch.as_tensor(want))
    assert set(out.losses) == {
        *("dyn", "rep", "rew", "con", "policy", "value", "repval"),
        *("barlow/invariance", "barlow/redundancy"),
    }


def test_the_redundancy_weight_is_the_factor_of_the_redundancy() -> None:
    found = []
    for weight in (1.0, 5e-4):
        agent = tiny_agent(redundancy_weight=weight)
        out = agent.train_step(windows(agent))
        found.append((out.metrics["loss/barlow/invariance"], out.metrics["loss/barlow/redundancy"]))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1] * 5e-4, found[1][1])


def test_training_on_one_batch_makes_latents_and_tokens_agree() -> None:
    agent = tiny_agent("image HWC", batch_size=4, batch_length=8)
    batch = windows(agent)
    losses = [float(agent.train_step(batch).metrics["loss/barlow/invariance"]) for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.isfinite().all() for p in agent.all_networks.trained().values())


def test_half_precision_gives_nearly_the_same_losses() -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        agent = tiny_agent("image HWC", precision=precision)
        out = agent.train_step(windows(agent))
        assert not out.nonfinite
        found[precision] = {
            name: float(value) for name, value in out.metrics.items() if "barlow" in name
        }
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.05)
