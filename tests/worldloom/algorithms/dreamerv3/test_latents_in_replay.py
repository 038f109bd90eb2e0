"""Latents that acting emits are stored, refreshed by training, and read back as the next window's
start state.
"""

from __future__ import annotations

import numpy as np
import torch

from tests.worldloom.algorithms.dreamerv3.dreamer_cases import env_of, random_array, tiny
from worldloom.algorithms.dreamerv3.agent import DreamerV3Agent
from worldloom.algorithms.dreamerv3.context import stored_state, window_batch
from worldloom.algorithms.dreamerv3.spec import LATENT_DETER, LATENT_STOCH
from worldloom.algorithms.registry import make_agent
from worldloom.core.sequence import Rows, SequenceBatch, StreamId
from worldloom.core.specs import EnvSpec
from worldloom.data.sequence_buffer import SequenceBuffer


def acted_rows(agent: DreamerV3Agent, env: EnvSpec, length: int) -> tuple[Rows, list[np.ndarray]]:
    """Rows of one env as a worker stores them, and the deterministic states that acting carried."""
    rng = np.random.default_rng(0)
    carry = agent.initial_carry(1)
    steps = []
    deters = []
    for t in range(length):
        obs = {name: random_array(spec, rng, 1) for name, spec in env.obs.items()}
        out = agent.act(obs, carry, np.array([t == 0]), explore=True)
        carry = out.carry
        deters.append(out.carry["deter"][0])
        flags = {
            "is_first": np.array([t == 0]),
            "terminated": np.zeros(1, bool),
            "truncated": np.zeros(1, bool),
        }
        steps.append(
            {**obs, **out.action, "reward": np.zeros(1, np.float32), **flags, **out.extras}
        )
    return {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}, deters


def test_latents_make_the_whole_round_through_replay() -> None:
    env = env_of("vector", "Box")
    agent = make_agent(tiny(batch_size=1, stoch=32, classes=4, lr=0.01), env)
    columns = env.columns(agent.spec.extras)
    sampling = agent.spec.sampling
    buffer = SequenceBuffer(
        columns, sampling, capacity_rows=sampling.window_rows, mutable=tuple(agent.spec.extras)
    )
    rows, deters = acted_rows(agent, env, sampling.window_rows)
    assert {name: (array.shape[1:], str(array.dtype)) for name, array in rows.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in columns.items()
    }
    buffer.append(StreamId(0, 0, 0), 0, rows)
    windows = buffer.sample(1, np.random.default_rng(0))
    batch = SequenceBatch.from_columns(windows.columns, windows.row_ids).map(torch.from_numpy)

    start = stored_state(batch, agent.all_networks.model)
    torch.testing.assert_close(start.deter[0], torch.from_numpy(deters[0]), rtol=1e-2, atol=1e-3)
    assert torch.equal(
        start.stoch.reshape(32, 4).argmax(-1), batch.extras[LATENT_STOCH][0, 0].long()
    )
    assert window_batch(batch, agent.all_networks.model, 1).start.deter.equal(start.deter)

    refreshed = {name: value.numpy() for name, value in agent.train_step(batch).refreshed.items()}
    assert buffer.write_back(windows.row_ids[:, 1:], refreshed) == (6, 0)
    again = buffer.sample(1, np.random.default_rng(0)).columns
    for name in (LATENT_DETER, LATENT_STOCH):
        np.testing.assert_array_equal(again[name][:, 1:], refreshed[name])
        np.testing.assert_array_equal(again[name][:, 0], windows.columns[name][:, 0])
    assert not np.array_equal(again[LATENT_STOCH], windows.columns[LATENT_STOCH])

    buffer.append(StreamId(0, 0, 0), 1, {name: array[-3:] for name, array in rows.items()})
    assert buffer.write_back(windows.row_ids[:, 1:], refreshed) == (4, 2)


def test_filtering_what_was_acted_gives_the_states_of_acting() -> None:
    env = env_of("vector", "Box")
    agent = make_agent(tiny(batch_size=1), env)
    rows, deters = acted_rows(agent, env, 7)
    batch = SequenceBatch.from_columns({name: array[None] for name, array in rows.items()}).map(
        torch.from_numpy
    )
    window = window_batch(batch, agent.all_networks.model, 1)
    draws = batch.extras[LATENT_STOCH][:, 1:].long()
    with torch.no_grad():
        posterior = agent.all_networks.model.observe(
            agent.all_networks.model.weights(), window, draws
        )
    np.testing.assert_allclose(
        posterior.deter[0].numpy(), np.stack(deters[1:]), rtol=1e-2, atol=5e-3
    )


def test_a_row_without_a_latent_starts_from_what_the_model_makes_of_it() -> None:
    """As the policy would have, had it begun there; rows that have one keep it, bit for bit."""
    env = env_of("vector", "Box")
    agent = make_agent(tiny(batch_size=3, burn_in=True), env)
    model = agent.all_networks.model
    with torch.no_grad():  # biases are zero at first, and then a deter is, too
        model.dyn.gru.bias.normal_()
    agent.refresh()
    rows, _ = acted_rows(agent, env, 7)
    windows = {name: np.stack([array] * 3) for name, array in rows.items()}
    for name in (LATENT_DETER, LATENT_STOCH):
        windows[name][1] = 0
    windows["is_first"][:, 0] = False
    batch = SequenceBatch.from_columns(windows).map(torch.from_numpy)
    stored = stored_state(batch, model)
    assert torch.equal(window_batch(batch, model, 1).start.deter, stored.deter)
    start = window_batch(batch, model, 1, burn_in=True).start
    for one, old in zip(start, stored, strict=True):
        assert torch.equal(one[[0, 2]], old[[0, 2]])
    obs = {name: array[:1] for name, array in rows.items() if name.startswith("obs")}
    begun = agent.act(obs, agent.initial_carry(1), np.ones(1, bool), explore=False)
    np.testing.assert_allclose(start.deter[1].numpy(), begun.carry["deter"][0], atol=1e-6)
    assert start.deter[1].any()
    assert start.stoch[1].reshape(-1, agent.config.classes).sum(-1).eq(1).all()
    state = torch.random.get_rng_state()
    window_batch(batch, model, 1, burn_in=True)
    assert torch.equal(state, torch.random.get_rng_state()), "nothing is drawn"
    assert torch.isfinite(agent.train_step(batch).metrics["loss/total"])
