"""A recurrent policy remembers what ran, not what it had answered: its states, and the latents that
are stored, are those of a worker that chose the same actions itself.
"""

import asyncio
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.worldloom_dist.gateway.parts import Rig, question
from worldloom.algorithms.registry import agent_spec, make_agent_config, make_policy
from worldloom.core.sequence import StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom_client.wire import encode_tensor, message, named
from worldloom_dist.gateway.contract import Contract

ACTIONS = {
    "continuous": {"action": ArraySpec((2,))},
    "discrete": {"action": ArraySpec((2,), "int64", (3, 4))},
    "both": {"arm": ArraySpec((2,)), "tool": ArraySpec((), "int64", (3,))},
}
STEPS = 8
OVERRIDDEN = {0: (2, 5), 1: (3,)}
"""Env -> steps at which another action ran."""


def env_of(kind):
    return EnvSpec(name="toy", obs={"obs": ArraySpec((3,))}, action=ACTIONS[kind])


def obs_at(step):
    return np.random.default_rng(step).normal(size=(2, 3)).astype(np.float32)


def instead(env, step, spec):
    """Another action than any policy is likely to choose, per key of one env."""
    rng = np.random.default_rng([env, step])
    found = {}
    for key, array in spec.action.items():
        if array.is_discrete:
            most = np.reshape(array.num_classes, array.shape)
            found[key] = np.asarray(rng.integers(0, most)).astype(array.dtype)
        else:
            found[key] = rng.uniform(-1, 1, array.shape).astype(np.float32)
    return found


@contextmanager
def choosing(policy, step, spec):
    """The policy itself chooses, at this step, what shall run."""
    original = policy.networks.actor.sample
    layout = policy.networks.actor.layout

    def sample(out, uniform, normal):
        chosen = original(out, uniform, normal)
        for env, steps in OVERRIDDEN.items():
            if step in steps:
                own = instead(env, step, spec)
                encoded = layout.encode({k: torch.from_numpy(v[None]) for k, v in own.items()})
                chosen[env] = encoded[0]
        return chosen

    policy.networks.actor.sample = sample
    try:
        yield
    finally:
        del policy.networks.actor.sample


@pytest.mark.parametrize("kind", ACTIONS)
def test_memory_after_another_action_is_that_of_a_worker_which_chose_it(kind) -> None:
    spec = env_of(kind)
    config = make_agent_config("dreamerv3:ci", {})
    policies = [make_policy(config, spec, seed=3) for _ in range(2)]
    columns = spec.columns(agent_spec(config, spec).extras)
    contract = Contract(
        env_spec=spec, env="toy", columns=columns, features=("store", "explore", "zlib")
    )

    async def through_a_gateway():
        rig = Rig(contract, policy=policies[0], chunk_rows=64)
        opened = await rig.open(num_envs=2)
        for step in range(STEPS):
            executed = [
                message("Executed")(
                    env=env,
                    action=[
                        encode_tensor(instead(env, step - 1, spec)[s.name]) for s in contract.action
                    ],
                    source=2,
                )
                for env, steps in OVERRIDDEN.items()
                if step - 1 in steps
            ]
            obs = obs_at(step)
            rows = [(env, step, obs[env], 0.0, step == 0, False, False) for env in (0, 1)]
            response = await rig.gateway.act(opened.secret, question(rows, executed=executed))
            answers = named(contract.action, response.action, (2,), "action")
        await rig.gateway.close(opened.secret)
        streams = [StreamId(opened.slot, opened.incarnation, env) for env in (0, 1)]
        return answers, [rig.shard.writer.rows(stream) for stream in streams]

    answers, stored = asyncio.run(through_a_gateway())
    carry = policies[1].initial_carry(2)
    for step in range(STEPS):
        first = np.full(2, step == 0)
        with choosing(policies[1], step, spec):
            out = policies[1].act({"obs": obs_at(step)}, carry, first, explore=True)
        carry = out.carry
        for name, value in out.extras.items():
            for env in (0, 1):
                assert np.array_equal(stored[env][name][step], value[env]), (name, step, env)
        for key, value in out.action.items():
            column = key if key == "action" else f"action/{key}"
            for env in (0, 1):
                assert np.array_equal(stored[env][column][step], value[env]), (key, step, env)
    for key, value in out.action.items():
        assert np.array_equal(answers[key], value)


def test_a_carry_that_was_lost_is_told_nothing() -> None:
    from worldloom_dist.actors.acting import ActRequest
    from worldloom_dist.actors.inference import InferenceServer

    spec = env_of("continuous")
    config = make_agent_config("dreamerv3:ci", {})
    plain = ActRequest(0, 0, np.arange(2), {"obs": obs_at(0)}, np.zeros(2, bool))
    told = ActRequest(
        0,
        0,
        np.arange(2),
        {"obs": obs_at(0)},
        np.zeros(2, bool),
        executed={"action": np.ones((1, 2), np.float32)},
        executed_rows=np.array([1]),
    )
    replies = [
        InferenceServer(make_policy(config, spec, seed=3)).act_batch([request])[0]
        for request in (plain, told)
    ]
    assert replies[1].carry_reset.tolist() == [True, True]
    for name, value in replies[0].extras.items():
        assert np.array_equal(replies[1].extras[name], value)
