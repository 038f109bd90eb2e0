"""An agent that begins with what one of other tasks learned computes what that one computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden_support import assert_agrees, golden_file
from tests.worldloom.algorithms.tdmpc2.golden_table import FORWARD, golden, tensor
from tests.worldloom.algorithms.tdmpc2.test_tdmpc2_golden_forward import check_networks
from tests.worldloom.algorithms.tdmpc2.test_tdmpc2_official import architecture, official_state
from tests.worldloom.algorithms.tdmpc2.test_tdmpc2_tasks import tasks_env
from tests.worldloom.algorithms.tdmpc2.tiny import random_batch, tiny_config
from worldloom.algorithms.registry import (
    fit_state,
    make_agent,
    make_agent_config,
    one_task_config,
    read_foreign,
)
from worldloom.algorithms.tdmpc2.agent import TDMPC2Agent
from worldloom.algorithms.tdmpc2.draws import PlanDraws
from worldloom.algorithms.tdmpc2.official import (
    MT30_ACTION_DIMS,
    MT30_OBS_DIMS,
    OfficialCheckpoint,
)
from worldloom.algorithms.tdmpc2.planner import plan
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.initial_state import InitialState, TrainedState
from worldloom.core.specs import TASK, ArraySpec, EnvSpec, TaskSpec
from worldloom.envs.task_sets import MT30
from worldloom.envs.tasks import read_tasks
from worldloom.nn.ensemble import ensemble_forward

WALK_OBS = (("orientations", 2), ("height", 1), ("velocity", 2))
"""In the env's own order, which is not the sorted one."""
WALK = TaskSpec(
    name="walk", env="dmc:walker-walk", obs=WALK_OBS, action=(("action", 2),), episode_limit=100
)
SPIN = TaskSpec(
    name="spin",
    env="dmc:pendulum-spin",
    obs=(("orientation", 2), ("velocity", 1)),
    action=(("action", 1),),
    episode_limit=100,
)
HOP = TaskSpec(
    name="hop", env="dmc:hopper-hop", obs=(("obs", 7),), action=(("action", 3),), episode_limit=100
)
SEVERAL = tasks_env(SPIN, WALK, HOP)
WALKER = EnvSpec(
    name="dmc:walker-walk",
    obs={
        "height": ArraySpec(()),
        "orientations": ArraySpec((2,)),
        "velocity": ArraySpec((2,)),
    },
    action={"action": ArraySpec((2,))},
    episode_limit=100,
    may_terminate=False,
    order=("orientations", "height", "velocity"),
)
SPEAKS = np.array([0.3, -1.2, 0.7, 2.0, -0.4], np.float32)
"""A row of the walker, in the env's own order."""


def agent_in(env: EnvSpec, seed: int = 0, **changes: Any) -> TDMPC2Agent:
    agent = make_agent(tiny_config(task_dim=4, **changes), env, seed=seed)
    assert isinstance(agent, TDMPC2Agent)
    return agent


@pytest.fixture
def several() -> TDMPC2Agent:
    """Random weights in every layer, embeddings that are longer than 1, targets of their own."""
    agent = agent_in(SEVERAL, seed=3)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in (agent.model, agent.target):
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        assert agent.model.task_emb is not None
        agent.model.task_emb[1] *= 1.7 / agent.model.task_emb[1].norm()
    return agent


def split_keys(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Observations of the walker per key, from rows in the env's own order."""
    return {"height": rows[:, 2], "orientations": rows[:, :2], "velocity": rows[:, 3:]}


def learned(agent: TDMPC2Agent) -> TrainedState:
    return TrainedState(state=agent.state_dict(), env=agent.env, config=agent.config)


def begun(trained: TrainedState, env: EnvSpec, **changes: Any) -> tuple[TDMPC2Agent, InitialState]:
    agent = agent_in(env, seed=5, **changes)
    found = fit_state(agent.config, trained, agent)
    agent.load_state_dict(found.state)
    return agent, found


def networks(
    agent: TDMPC2Agent, obs: Mapping[str, torch.Tensor], action: torch.Tensor, index: int | None
) -> dict[str, torch.Tensor]:
    """What every network says of one row."""
    model = agent.model
    number = None if index is None else torch.tensor([index])
    task = model.embed(number)
    mask = model.mask(number)
    z = model.encode(obs, task)
    sample = model.policy(z, torch.zeros(1, action.shape[-1]), task, mask)
    return {
        "z": z,
        "next": model.next_latent(z, action, task),
        "reward": model.reward_head(model.joint(z, action, task)),
        "critics": model.critic_logits(z, action, task),
        "target": ensemble_forward(agent.target.stacked, model.joint(z, action, task)),
        "mean": sample.mean[:, :2],
        "log_std": sample.log_std[:, :2],
    }


@torch.no_grad()
def test_one_task_of_several_computes_what_they_computed(several: TDMPC2Agent) -> None:
    alone, found = begun(learned(several), WALKER)
    row = torch.zeros(1, 7)
    row[0, :5] = torch.from_numpy(SPEAKS)
    keys = split_keys(torch.from_numpy(SPEAKS)[None])
    before = networks(several, {"obs": row}, torch.tensor([[0.4, -0.8, 0.0]]), 1)
    after = networks(alone, keys, torch.tensor([[0.4, -0.8]]), None)
    for name, want in before.items():
        assert torch.allclose(after[name], want, atol=1e-5), name
    other = networks(several, {"obs": row}, torch.tensor([[0.4, -0.8, 0.0]]), 2)
    assert not torch.allclose(other["z"], after["z"], atol=1e-3)
    assert found.notes == (
        "tasks: walk of its 3, whose embedding is a part of the first layers now",
    )
    with torch.enable_grad():
        trained = alone.train_step(random_batch(alone.env, alone.config))
    assert not trained.nonfinite


@torch.no_grad()
def test_one_task_of_several_plans_as_they_planned(several: TDMPC2Agent) -> None:
    alone, _ = begun(learned(several), WALKER)
    row = torch.zeros(1, 7)
    row[0, :5] = torch.from_numpy(SPEAKS)
    index = torch.tensor([1])
    draws = PlanDraws.draw(1, several.plan_shape, torch.Generator().manual_seed(0))
    fewer = dataclasses.replace(
        draws,
        policy_noise=draws.policy_noise[..., :2],
        sample_noise=draws.sample_noise[..., :2],
        terminal_noise=draws.terminal_noise[..., :2],
        action_noise=draws.action_noise[..., :2],
    )
    task = several.model.embed(index)
    z = several.model.encode({"obs": row}, task)
    mean = torch.zeros(1, several.plan_shape.horizon, 3)
    before = plan(
        several.model,
        z,
        mean,
        draws,
        several.planner,
        several.discount[index],  # type: ignore[index]
        explore=False,
        task=task,
        mask=several.model.mask(index),
    )
    own_z = alone.model.encode(split_keys(row[:, :5]))
    after = plan(
        alone.model,
        own_z,
        mean[..., :2],
        fewer,
        alone.planner,
        alone.discount,
        explore=False,
    )
    assert torch.allclose(after.action, before.action[:, :2], atol=1e-4)
    assert after.action.abs().max() > 0.01


@torch.no_grad()
def test_other_tasks_in_another_order_act_as_before(several: TDMPC2Agent) -> None:
    new = TaskSpec(name="new", env="toy:point", obs=(("obs", 4),), action=(("action", 2),))
    env = tasks_env(WALK, new, SPIN)
    fewer, found = begun(learned(several), env)
    assert fewer.env.obs["obs"].shape == (5,)
    for name, place in (("walk", 0), ("spin", 2)):
        there = [task.name for task in SEVERAL.tasks].index(name)
        task = SEVERAL.tasks[there]
        row = torch.zeros(1, 7)
        row[0, : task.obs_size] = torch.arange(1.0, 1 + task.obs_size)
        action = torch.zeros(1, 3)
        action[0, : task.action_size] = 0.5
        want = networks(several, {"obs": row}, action, there)
        got = networks(fewer, {"obs": row[:, :5]}, action[:, :2], place)
        for part, value in want.items():
            assert torch.allclose(got[part], value, atol=1e-5), (name, part)
    assert torch.equal(fewer.model.action_masks, torch.from_numpy(env.action_mask()))
    assert found.fresh == ("task embedding of new", "optimizers")
    assert found.notes == ("tasks: 2 of its 3, without hop",)


@torch.no_grad()
def test_tasks_with_more_observations_and_actions_leave_the_old_ones_as_they_were(
    several: TDMPC2Agent,
) -> None:
    few, _ = begun(learned(several), tasks_env(SPIN, WALK))
    more, _ = begun(learned(few), SEVERAL)
    row = torch.zeros(1, 7)
    row[0, :3] = 1.5
    action = torch.tensor([[0.5, 0.0, 0.0]])
    want = networks(several, {"obs": row}, action, 0)
    got = networks(more, {"obs": row}, action, 0)
    for part, value in want.items():
        assert torch.allclose(got[part], value, atol=1e-5), part


def test_every_entry_is_either_loaded_or_left_out_with_a_reason(several: TDMPC2Agent) -> None:
    windows = random_batch(SEVERAL, several.config)
    windows.obs[TASK][:] = 0  # type: ignore[index]
    several.train_step(windows)
    trained = learned(several)
    _, found = begun(trained, WALKER)
    state = trained.state
    names = {
        *state["model"],
        *(f"target.{name}" for name in state["target"]),
        *(f"model_optimizer.{name}" for name in state["updater"]["model_optimizer"]),
        *(f"policy_optimizer.{name}" for name in state["updater"]["policy_optimizer"]),
        "scale",
        "rng",
    }
    assert sorted([*found.loaded, *found.skipped]) == sorted(names)
    assert found.fresh == ("optimizers",)
    first, left_out, new, note = found.lines("runs/mt")
    assert first.startswith(f"runs/mt: {len(found.loaded)} of {len(names)} entries loaded (")
    assert left_out.startswith("left out: 1 action_masks (they follow from the tasks), ")
    assert (new, note) == ("new: optimizers", found.notes[0])


def test_what_cannot_begin_is_refused_in_one_sentence(several: TDMPC2Agent) -> None:
    trained = learned(several)
    single = TrainedState(
        state=agent_in(WALKER).state_dict(), env=WALKER, config=agent_in(WALKER).config
    )
    elsewhere = EnvSpec(
        name="dmc:walker-wlak", obs=WALKER.obs, action=WALKER.action, episode_limit=100
    )
    wide = TaskSpec(name="walk", env=WALK.env, obs=(("obs", 6),), action=WALK.action)
    cases = [
        (single, SEVERAL, {}, "learned one task, dmc:walker-walk, and this run learns 3"),
        (trained, elsewhere, {}, "none of its 3 tasks; did you mean dmc:walker-walk"),
        (trained, tasks_env(wide, SPIN), {}, "its task 'walk' has 5 observations, and .* has 6"),
        (
            trained,
            WALKER,
            {"latent_dim": 32},
            "latent_dim is 16 there and 32 here; add --agent.latent-dim 16",
        ),
        (trained, WALKER, {"simnorm_dim": 4}, "simnorm_dim is 8 there and 4 here"),
    ]
    for given, env, changes, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            begun(given, env, **changes)
    damaged = TrainedState(
        state={**trained.state, "model": {"pi.2.weight": torch.zeros(2)}},
        env=SEVERAL,
        config=several.config,
    )
    with pytest.raises(CheckpointError, match="does not fit together"):
        begun(damaged, WALKER)


def golden_config(**changes: Any) -> Any:
    sizes = {"latent_dim": 32, "encoder_dim": 32, "mlp_dim": 32, "num_q": 3, "num_bins": 21}
    return tiny_config(**sizes, **changes)


@torch.no_grad()
@pytest.mark.golden
@pytest.mark.parametrize(
    ("file", "arrays", "count"),
    [
        ("ckpt_oldformat_mt30.pt", "ckpt_oldformat_mt30_forward.npz", 61),
        ("model_mt.pt", "forward_mt.npz", 80),
        ("ckpt_oldformat_single.pt", "ckpt_oldformat_single_forward.npz", 60),
        ("ckpt_prerelease_single_synthetic.pt", "ckpt_oldformat_single_forward.npz", 60),
        ("model_single.pt", "forward_single.npz", 78),
    ],
)
def test_the_authors_files_act_as_with_the_authors_code(file: str, arrays: str, count: int) -> None:
    expected = golden(arrays)
    env = EnvSpec(
        name="dmc:x",
        obs={"obs": ArraySpec((11,))},
        action={"action": ArraySpec((3,))},
        may_terminate=False,
    )
    if "in_task" in expected:
        known = expected if "action_dims" in expected else golden("mt_meta.npz")
        dims = known["action_dims"]
        tasks = [
            TaskSpec(name=f"t{k}", env=f"dmc:{k}", obs=(("obs", 11),), action=(("action", int(a)),))
            for k, a in enumerate(dims)
        ]
        env = tasks_env(*tasks)
    config = golden_config(task_dim=12)
    trained = read_foreign(config, golden_file("tdmpc2", file), env)
    agent = make_agent(config, env)
    assert isinstance(agent, TDMPC2Agent)
    found = fit_state(config, trained, agent)
    assert len(found.loaded) + len(found.skipped) == count
    agent.load_state_dict(found.state)
    check_networks(OfficialCheckpoint(agent.model, agent.target), expected)


@torch.no_grad()
@pytest.mark.golden
def test_an_authors_file_of_one_task_fits_an_env_with_keys() -> None:
    env = EnvSpec(
        name="dmc:x",
        obs={"a": ArraySpec((4,)), "b": ArraySpec(()), "c": ArraySpec((6,))},
        action={"action": ArraySpec((3,))},
        may_terminate=False,
        order=("c", "a", "b"),
    )
    config = golden_config()
    trained = read_foreign(config, golden_file("tdmpc2", "model_single.pt"), env)
    agent = make_agent(config, env)
    assert isinstance(agent, TDMPC2Agent)
    agent.load_state_dict(fit_state(config, trained, agent).state)
    expected = golden("forward_single.npz")
    row = tensor(expected["in_obs"])
    z = agent.model.encode({"c": row[:, :6], "a": row[:, 6:10], "b": row[:, 10]})
    assert_agrees(z, expected["out_z"], tolerance=FORWARD, name="out_z")


def authors_file(folder: Path, **changes: Any) -> Path:
    """A file of the authors' set of 30, of tiny networks."""
    sizes = dataclasses.replace(
        architecture(num_tasks=30, task_dim=4, action_dim=6, **changes),
        obs={"obs": ArraySpec((24,))},
    )
    state = official_state(sizes)
    del state["_action_masks"]
    path = folder / "mt30.pt"
    torch.save({"model": state}, path)
    return path


def test_a_file_of_the_authors_set_knows_its_tasks_by_name(tmp_path: Path) -> None:
    path = authors_file(tmp_path)
    walk = EnvSpec(
        name="dmc:walker_walk",
        obs={
            "height": ArraySpec(()),
            "orientations": ArraySpec((14,)),
            "velocity": ArraySpec((9,)),
        },
        action={"action": ArraySpec((6,))},
        may_terminate=False,
        order=("orientations", "height", "velocity"),
    )
    config = tiny_config(num_q=2, num_bins=5)
    trained = read_foreign(config, path, walk)
    assert tuple(task.name for task in trained.env.tasks) == MT30
    assert tuple(task.action_size for task in trained.env.tasks) == MT30_ACTION_DIMS
    agent = make_agent(config, walk)
    found = fit_state(config, trained, agent)
    agent.load_state_dict(found.state)
    assert found.notes[0].startswith("tasks: walker-walk of its 30")
    assert found.fresh == ("running scale", "optimizers")
    weight = found.state["model"]["encoder.state.0.weight"]
    theirs = trained.state["model"]["encoder.state.0.weight"]
    assert torch.equal(weight[:, 0], theirs[:, 14])
    assert torch.equal(weight[:, 1:15], theirs[:, :14])
    assert torch.equal(weight[:, 15:], theirs[:, 15:24])
    one = EnvSpec(name="dmc:humanoid-walk", obs=walk.obs, action=walk.action)
    other = make_agent(config, one)
    again = read_foreign(config, path, one)
    with pytest.raises(ConfigurationError, match="dmc:humanoid-walk is none of its 30 tasks"):
        fit_state(config, again, other)


def set_env(count: int) -> EnvSpec:
    """The authors' tasks, with their sizes."""
    sizes = zip(MT30[:count], MT30_OBS_DIMS[:count], MT30_ACTION_DIMS[:count], strict=True)
    return tasks_env(
        *(
            TaskSpec(name=name, env=f"dmc:{name}", obs=(("obs", o),), action=(("action", a),))
            for name, o, a in sizes
        )
    )


def test_a_run_of_the_authors_set_takes_every_embedding(tmp_path: Path) -> None:
    config = tiny_config(num_q=2, num_bins=5, task_dim=4)
    assert list(read_tasks("mt:dmc30")) == list(MT30)
    for count, tasks in ((30, list(range(30))), (19, list(range(19)))):
        env = set_env(count)
        trained = read_foreign(config, authors_file(tmp_path), env)
        agent = make_agent(config, env)
        found = fit_state(config, trained, agent)
        agent.load_state_dict(found.state)
        table = trained.state["model"]["task_emb"]
        assert torch.equal(found.state["model"]["task_emb"], table[tasks])
        assert not [what for what in found.fresh if "embedding" in what]
    assert found.notes[0].startswith("tasks: 19 of its 30, without walker-walk-backwards, ")
    assert found.notes[0].endswith(" and 6 more")


def test_a_file_of_80_tasks_gives_those_of_dm_control_and_no_other(tmp_path: Path) -> None:
    sizes = dataclasses.replace(
        architecture(num_tasks=80, task_dim=4, action_dim=6), obs={"obs": ArraySpec((39,))}
    )
    path = tmp_path / "mt80.pt"
    torch.save({"model": official_state(sizes)}, path)
    config = tiny_config(num_q=2, num_bins=5, task_dim=4)
    env = set_env(3)
    agent = make_agent(config, env)
    found = fit_state(config, read_foreign(config, path, env), agent)
    agent.load_state_dict(found.state)
    assert found.skipped == {"action_masks": "they follow from the tasks"}
    assert found.notes[0].startswith("tasks: 3 of its 80, without cheetah-run, ")
    other = EnvSpec(name="module:metaworld_hammer", obs=WALKER.obs, action=WALKER.action)
    trained = read_foreign(config, path, other)
    alone = make_agent(config, other)
    with pytest.raises(ConfigurationError, match="is none of its 80 tasks"):
        fit_state(config, trained, alone)


def test_networks_of_a_preset_are_called_by_its_name() -> None:
    agent = make_agent(make_agent_config("tdmpc2:ci"), WALKER)
    large = make_agent_config("tdmpc2:5m")
    trained = TrainedState(state={}, env=SEVERAL, config=large)
    with pytest.raises(ConfigurationError) as caught:
        fit_state(large, trained, agent)
    assert "--agent.latent-dim 512" in str(caught.value)
    assert str(caught.value).endswith("(or --agent tdmpc2:5m)")


def test_a_file_without_targets_and_of_unknown_tasks_says_so(tmp_path: Path) -> None:
    sizes = architecture(num_tasks=2, task_dim=4)
    path = tmp_path / "two.pt"
    torch.save({"model": official_state(sizes, with_targets=False)}, path)
    config = tiny_config(num_q=2, num_bins=5, task_dim=4)
    small = [
        TaskSpec(name=n, env=f"toy:{n}", obs=(("obs", 3),), action=(("action", 2),)) for n in "ab"
    ]
    env = tasks_env(*small)
    agent = make_agent(config, env)
    found = fit_state(config, read_foreign(config, path, env), agent)
    agent.load_state_dict(found.state)
    assert found.fresh[0] == "target critics (copies of the critics)"
    for name, value in found.state["target"].items():
        assert torch.equal(value, found.state["model"][f"critics.{name}"])
    with pytest.raises(ConfigurationError, match=r"has 2 tasks .* does not say"):
        read_foreign(config, path, WALKER)
    with pytest.raises(ConfigurationError, match="has 3 observations, and task 'walk' has 5"):
        read_foreign(config, path, tasks_env(WALK, SPIN))
    for message, content in (
        ("holds a list", [1]),
        ("entry 'x' is not part of a TD-MPC2 model", {"x": torch.zeros(1)}),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            read_foreign(config, path, env)


def test_of_several_tasks_with_one_env_settings_say_which() -> None:
    slow, fast = (
        dataclasses.replace(WALK, name=name, settings={"action_repeat": repeat, "time_limit": 9})
        for name, repeat in (("slow", 1), ("fast", 4))
    )
    trained = learned(agent_in(tasks_env(slow, fast, HOP)))
    single = dataclasses.replace(WALKER, settings={"action_repeat": 4, "time_limit": 9})
    assert begun(trained, single)[1].notes[0].startswith("tasks: fast of its 3")
    assert len(begun(trained, single)[1].notes) == 1
    other = dataclasses.replace(WALKER, settings={"action_repeat": 2, "time_limit": 9})
    said = r"slow: action_repeat 1 \(here 2\); fast: .*give the env the settings of one of them"
    with pytest.raises(ConfigurationError, match=said):
        begun(trained, other)
    renamed = [dataclasses.replace(task, name=f"my-{task.name}") for task in (fast, slow)]
    found = begun(trained, tasks_env(*renamed))[1]
    assert found.notes == ("tasks: 2 of its 3, without hop",)


def test_settings_that_differ_are_told_and_a_task_that_is_taken_twice_counts_once() -> None:
    walk = dataclasses.replace(WALK, settings={"action_repeat": 2, "grayscale": False})
    trained = learned(agent_in(tasks_env(walk, HOP)))
    ours = [
        dataclasses.replace(walk, name=f"w{repeat}", settings={"action_repeat": repeat})
        for repeat in (2, 1)
    ]
    assert begun(trained, tasks_env(*ours))[1].notes == (
        "tasks: 1 of its 2, without hop",
        "tasks: w1 was learned with action_repeat 2 (here 1)",
    )
    single = dataclasses.replace(WALKER, settings={"action_repeat": 1})
    assert begun(trained, single)[1].notes[1:] == (
        "tasks: walk was learned with action_repeat 2 (here 1)",
    )


def test_a_file_of_several_tasks_begins_a_run_that_learns_termination(tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    torch.save({"model": official_state(architecture(num_tasks=2, task_dim=4))}, path)
    pair = [
        TaskSpec(name=n, env=f"toy:{n}", obs=(("obs", 3),), action=(("action", 2),)) for n in "ab"
    ]
    config = tiny_config(num_q=2, num_bins=5, episodic="on")
    single = EnvSpec(name="toy:a", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((2,))})
    agent = make_agent(config, single)
    found = fit_state(config, read_foreign(config, path, tasks_env(*pair)), agent)
    agent.load_state_dict(found.state)
    assert "termination" in found.fresh


def test_settings_of_one_task_plan_as_with_several() -> None:
    many = tuple(
        TaskSpec(name=n, env=f"toy:{n}", obs=(("obs", 3),), action=(("action", a),))
        for n, a in (("a", 2), ("b", 21))
    )
    config = one_task_config(tiny_config(iterations=None, task_dim=4), tasks_env(*many))
    assert (config.iterations, config.task_dim, config.episodic) == (8, None, "off")  # type: ignore[attr-defined]
