"""Several tasks in one agent: masks, embeddings, discounts, and the authors' numbers through the
agent's own code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.golden_support import assert_agrees
from tests.worldloom.algorithms.tdmpc2.golden_table import PLANNING, golden, model_of, tensor
from tests.worldloom.algorithms.tdmpc2.test_tdmpc2_golden_plan import calls, draws_of
from tests.worldloom.algorithms.tdmpc2.tiny import random_batch, tiny_config
from worldloom.algorithms.registry import (
    agent_spec,
    make_agent,
    make_agent_config,
    make_policy,
    make_step,
    trained_config,
)
from worldloom.algorithms.tdmpc2.agent import TDMPC2Agent, TDMPC2Policy
from worldloom.algorithms.tdmpc2.spec import resolve, task_discounts
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.protocol import Decide
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import TASK, ArraySpec, EnvSpec, TaskSpec


def task(name: str, *, obs: int = 3, action: int = 2, **changes: Any) -> TaskSpec:
    fields: dict[str, Any] = {"env": f"dmc:{name}", "episode_limit": 100, **changes}
    return TaskSpec(name=name, obs=(("obs", obs),), action=(("action", action),), **fields)


def tasks_env(*tasks: TaskSpec, **changes: Any) -> EnvSpec:
    limits = [one.episode_limit for one in tasks]
    fields: dict[str, Any] = {
        "name": "tasks",
        "episode_limit": None if None in limits else max(limits),  # type: ignore[type-var]
        "may_terminate": any(one.may_terminate for one in tasks),
        **changes,
    }
    return EnvSpec(
        obs={
            "obs": ArraySpec((max(one.obs_size for one in tasks),)),
            TASK: ArraySpec((), "int32"),
        },
        action={"action": ArraySpec((max(one.action_size for one in tasks),))},
        tasks=tasks,
        **fields,
    )


TWO = tasks_env(task("a", obs=3, action=2), task("b", obs=2, action=1))
LIMITS = tasks_env(task("a", episode_limit=40), task("b", episode_limit=200))


def rows(env: EnvSpec, tasks: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Padded observations, one per entry of ``tasks``."""
    obs = np.random.default_rng(seed).normal(size=(len(tasks), *env.obs["obs"].shape))
    for row, index in zip(obs, tasks, strict=True):
        row[env.tasks[index].obs_size :] = 0
    return {"obs": obs.astype(np.float32), TASK: np.array(tasks, np.int32)}


def batch_of(env: EnvSpec, config: Any, tasks: list[int], seed: int = 0) -> SequenceBatch:
    """Windows of noise, each of one task."""
    batch = random_batch(env, config, seed)
    batch.obs[TASK][:] = torch.tensor(tasks, dtype=torch.int32)[:, None]  # type: ignore[index]
    return batch


def make(env: EnvSpec = TWO, **changes: Any) -> TDMPC2Agent:
    agent = make_agent(tiny_config(task_dim=4, **changes), env, seed=1)
    assert isinstance(agent, TDMPC2Agent)
    return agent


def opinionated(policy: Any) -> None:
    """Give reward and critics outputs, which are zero at first, so that plans differ in value."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draws))


@pytest.mark.golden
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_agent_plans_as_the_authors_do_in_several_tasks(number: int) -> None:
    meta = golden("mt_meta.npz")
    reference = model_of("mt").model
    sizes = reference.architecture
    tasks = [
        task(f"t{i}", obs=11, action=int(size), episode_limit=int(limit))
        for i, (size, limit) in enumerate(
            zip(meta["action_dims"], meta["episode_lengths"], strict=True)
        )
    ]
    env = tasks_env(*tasks)
    config = tiny_config(
        **{
            name: getattr(sizes, name)
            for name in ("latent_dim", "encoder_dim", "mlp_dim", "num_q", "num_bins", "task_dim")
        },
        iterations=3,
        num_samples=64,
        num_elites=8,
        num_policy_samples=6,
    )
    np.testing.assert_allclose(task_discounts(config, env), meta["discount"], rtol=1e-6)
    policy = make_policy(config, env)
    assert isinstance(policy, TDMPC2Policy)
    np.testing.assert_array_equal(policy.model.action_masks, reference.action_masks)
    policy.model.load_state_dict(reference.state_dict())
    call = calls(golden("plan_mt.npz"))[number]
    inputs = {
        "obs/obs": tensor(call["in_obs"])[None],
        TASK: tensor(call["in_task"]).int()[None],
        "prev_mean": tensor(call["in_prev_mean"])[None],
        "goes_on": torch.tensor([not call["in_t0"]]),
        **draws_of(call).named("draws/"),
    }
    decisions: list[Decide] = []
    policy.decide_through(lambda decide: decisions.append(decide) or decide)  # type: ignore[func-returns-value]
    found = decisions[0](inputs, explore=not call["in_eval_mode"])["action_and_mean"][0]
    assert_agrees(found[0], call["out_action"], tolerance=PLANNING, name="action")
    assert_agrees(found[1:], call["out_mean"], tolerance=PLANNING, name="mean")


def test_components_that_a_task_does_not_have_are_zero_and_change_nothing() -> None:
    policy = make()
    opinionated(policy)
    obs = rows(TWO, [1, 0, 1])
    first = np.ones(3, bool)
    acted = policy.act(obs, policy.initial_carry(3), first, explore=True)
    assert acted.action["action"][[0, 2], 1].tolist() == [0, 0]
    assert acted.action["action"][1, 1] != 0
    assert not acted.carry["prev_mean"][[0, 2], :, 1].any()

    other = make()
    opinionated(other)
    with torch.no_grad():
        for layer in (other.model.dynamics[0], other.model.reward_head[0]):
            layer.weight[:, -1] += 1
        other.model.critics.stacked[0].weight[..., -1] += 1
        other.model.encoder.state[0].weight[:, 2] += 1
    again = other.act(obs, other.initial_carry(3), first, explore=True)
    np.testing.assert_array_equal(again.action["action"][[0, 2]], acted.action["action"][[0, 2]])
    assert not np.array_equal(again.action["action"][1], acted.action["action"][1])


def test_envs_of_one_batch_decide_as_each_alone() -> None:
    config = tiny_config(task_dim=4)
    both = make_policy(config, LIMITS, seed=1, num_envs=2)
    states = both.rng_state()["acting"]
    opinionated(both)
    obs = rows(LIMITS, [0, 1])
    first = np.ones(2, bool)
    acted = both.act(obs, both.initial_carry(2), first, explore=True).action["action"]
    for env in range(2):
        alone = make_policy(config, LIMITS, seed=1, num_envs=1)
        opinionated(alone)
        alone.load_rng_state({"acting": [states[env]]})
        single = alone.act(
            {key: value[env : env + 1] for key, value in obs.items()},
            alone.initial_carry(1),
            first[:1],
            explore=True,
        )
        np.testing.assert_allclose(single.action["action"][0], acted[env], atol=1e-5)


def test_each_task_has_the_discount_of_its_episodes() -> None:
    assert task_discounts(tiny_config(), LIMITS) == (0.95, 0.975)
    assert task_discounts(tiny_config(discount=0.9), LIMITS) == (0.9, 0.9)
    gym = tasks_env(task("a", env="gym:A", episode_limit=2000), task("b", episode_limit=2000))
    assert task_discounts(tiny_config(), gym) == (0.99, 0.995)


def test_an_update_moves_the_embeddings_of_its_own_tasks_only() -> None:
    agent = make()
    table = agent.model.task_emb
    assert table is not None
    with torch.no_grad():
        table.mul_(1.7 / table.norm(dim=1, keepdim=True))
    before = table.detach().clone()
    agent.train_step(batch_of(TWO, agent.config, [0] * 5))
    assert torch.equal(table[1], before[1])
    assert table[0].norm() < 1.01
    assert not torch.equal(table[0], before[0] / before[0].norm())
    agent.train_step(batch_of(TWO, agent.config, [0, 1, 0, 1, 1], seed=1))
    assert table[1].norm() < 1.01


def test_a_shortened_embedding_stays_as_it_is() -> None:
    model = make(tasks_env(*(task(f"t{i}") for i in range(200)))).model
    table = model.task_emb
    assert table is not None
    with torch.no_grad():
        table.normal_(generator=torch.Generator().manual_seed(0))
    every = torch.arange(200)
    model.shorten(every)
    once = table.detach().clone()
    for index in range(0, 200, 7):
        model.shorten(torch.tensor([index, index]))
    assert torch.equal(table, once)
    assert float(once.norm(dim=1).max()) <= 1 + 1e-6


def test_the_target_has_the_discount_of_each_window() -> None:
    values = {}
    for denom in (5.0, 2.0):  # of the second task only: the first is at its minimum
        agent = make(LIMITS, discount_denom=denom, dropout=0.0)
        opinionated(agent)
        agent.target.load_state_dict(agent.model.critics.state_dict())
        output = agent.train_step(batch_of(LIMITS, agent.config, [0, 1, 0, 1, 0]))
        values[denom] = output.priorities
    same = torch.isclose(values[5.0], values[2.0], rtol=1e-6)
    assert same.tolist() == [True, False, True, False, True]


def test_settings_follow_the_tasks() -> None:
    env = tasks_env(
        task("a", episode_limit=500),
        task("b", episode_limit=None),
        task("c", episode_limit=1000, joined=70_000),
    )
    resolved = resolve(make_agent_config("tdmpc2:5m"), env)  # type: ignore[arg-type]
    assert resolved.prefill_agent_steps == resolved.pretrain_updates == 5 * (500 + 500)
    assert (resolved.task_dim, resolved.rho, resolved.episodic) == (64, 0.5, "off")
    assert resolve(resolved, env) == resolved
    many = tasks_env(*(task(f"t{i}") for i in range(31)))
    assert resolve(make_agent_config("tdmpc2:5m"), many).task_dim == 96  # type: ignore[arg-type]
    assert resolve(make_agent_config("tdmpc2:1m"), env).task_dim == 96  # type: ignore[arg-type]
    gym = tasks_env(task("a", env="Pendulum-v1"), task("b", env="mujoco:Ant-v5"))
    assert resolve(make_agent_config("tdmpc2:5m"), gym).rho == 0.7  # type: ignore[arg-type]
    grown = tasks_env(task("a", env="Pendulum-v1"), task("b", env="dmc:cup-catch", joined=9))
    assert resolve(make_agent_config("tdmpc2:5m"), grown).rho == 0.7  # type: ignore[arg-type]


def test_only_an_agent_that_says_so_knows_tasks() -> None:
    assert agent_spec(make_agent_config("tdmpc2:ci"), TWO).knows_tasks
    assert not agent_spec(make_agent_config("tdmpc2:ci"), TWO).can_compile
    for name in ("dreamerv3:ci", "mlp:ci"):
        assert not agent_spec(make_agent_config(name), TWO).knows_tasks


def test_what_needs_one_task_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"agent\.episodic on is for one task"):
        make(episodic="on")
    with pytest.raises(ConfigurationError, match=r"is for one task, and tasks has 2 \(a, b\)"):
        make_step("tdmpc2:ci", make_policy(tiny_config(), TWO), planner=False)
    with pytest.raises(ConfigurationError, match=r"is for one task, and tasks has 2 \(a, b\)"):
        trained_config(tiny_config(), TWO, "cpu")


def test_state_goes_round_and_another_number_of_tasks_is_refused() -> None:
    agent = make()
    agent.train_step(batch_of(TWO, agent.config, [0, 1, 0, 1, 0]))
    other = make(tasks_env(*TWO.tasks))
    other.load_state_dict(agent.state_dict())
    for name, value in agent.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_a_state_of_the_first_tasks_is_made_to_fit() -> None:
    few = make()
    for seed in range(2):
        few.train_step(batch_of(TWO, few.config, [0, 1, 0, 1, 0], seed))
    state = few.state_dict()
    three = tasks_env(*TWO.tasks, task("c", obs=3, action=1))
    many = make(three)
    assert many.model.task_emb is not None
    fresh = many.model.task_emb[2].detach().clone()
    many.load_state_dict(state)
    for name, value in few.model.state_dict().items():
        other = many.model.state_dict()[name]
        assert torch.equal(
            value, other[: len(value)] if name in ("task_emb", "action_masks") else other
        )
    assert torch.equal(many.model.task_emb[2], fresh)
    assert many.model.action_masks.tolist() == [[1, 1], [1, 0], [1, 0]]  # type: ignore[union-attr]
    before = state["updater"]["model_optimizer"]
    after = many.state_dict()["updater"]["model_optimizer"]
    for name, moments in before.items():
        for kind, value in moments.items():
            mine = after[name][kind]
            assert torch.equal(
                value, mine[: len(value)] if value.ndim and name == "task_emb" else mine
            )
    assert not after["task_emb"]["exp_avg"][2].any()
    assert not after["task_emb"]["exp_avg_sq"][2].any()
    many.train_step(batch_of(three, many.config, [0, 2, 1, 2, 0]))
    obs = rows(TWO, [0, 1])
    first = np.ones(2, bool)
    few.load_rng_state(state["rng"])
    fit = make(three)
    fit.load_state_dict(state)
    acted = [one.act(obs, one.initial_carry(2), first, explore=True) for one in (few, fit)]
    np.testing.assert_array_equal(acted[0].action["action"], acted[1].action["action"])


def test_a_state_of_moved_or_more_tasks_is_refused() -> None:
    state = make().state_dict()
    moved = make(tasks_env(TWO.tasks[1], TWO.tasks[0]))
    with pytest.raises(CheckpointError, match="task number 0 has other components"):
        moved.load_state_dict(state)
    three = make(tasks_env(*TWO.tasks, task("c")))
    with pytest.raises(CheckpointError, match="'action_masks' has shape"):
        make().load_state_dict(three.state_dict())
    wider = make(tasks_env(*TWO.tasks, task("c", action=3)))
    with pytest.raises(CheckpointError, match="has shape"):
        wider.load_state_dict(state)


def test_looking_ahead_leaves_the_weights_that_train_as_they_are() -> None:
    agent = make()
    with torch.no_grad():
        agent.model.task_emb.mul_(1.7 / agent.model.task_emb.norm(dim=1, keepdim=True))
    before = {name: value.clone() for name, value in agent.model.state_dict().items()}
    batch = batch_of(TWO, agent.config, [0, 1, 0, 1, 0])
    ahead = agent.predict_ahead(batch, 1)
    for name, value in agent.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    agent.model.shorten(torch.tensor([0, 1]))
    assert agent.model.task_emb.norm(dim=1).max() < 1.01
    again = agent.predict_ahead(batch, 1)
    np.testing.assert_array_equal(ahead.value, again.value)
    np.testing.assert_array_equal(ahead.reward, again.reward)
