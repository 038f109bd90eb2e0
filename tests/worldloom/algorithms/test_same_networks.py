"""One implementation under both faces: what an agent trains is what the public model holds, and
both read time the same way.
"""

from typing import Any

import numpy as np
import pytest
import torch

from tests.worldloom.algorithms.dreamer_rows import rows_learned_from
from worldloom import create_world_model
from worldloom.algorithms.dreamerv3.context import window_batch
from worldloom.algorithms.dreamerv3.networks import Networks
from worldloom.algorithms.model_registry import WorldModelRegistry
from worldloom.algorithms.registry import agent_names, make_agent, make_agent_config
from worldloom.algorithms.tdmpc2.agent import make_architecture
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks
from worldloom.algorithms.tdmpc2.spec import resolve
from worldloom.core.sequence import SequenceBatch, rows_from_gym
from worldloom.core.specs import ArraySpec, EnvSpec

O = 5
A = 2
STEPS = 6
ENV = EnvSpec(name="toy", obs={"obs": ArraySpec((O,))}, action={"action": ArraySpec((A,))})


def dreamer_pair() -> tuple[Any, Any]:
    agent = make_agent(make_agent_config("dreamerv3:ci"), ENV, seed=3)
    model = create_world_model("dreamerv3:ci", obs_shape=(O,), action_dim=A)
    model.net.load_state_dict(agent.all_networks.model.state_dict())  # type: ignore[attr-defined]
    return agent, model


def episode() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    parts = {
        "obs": rng.standard_normal((STEPS + 1, O), np.float32),
        "action": rng.uniform(-1, 1, (STEPS, A)).astype(np.float32),
    }
    return parts | {"reward": rng.standard_normal(STEPS).astype(np.float32)}


def test_an_agent_s_dreamer_is_the_public_one_and_reads_an_episode_alike() -> None:
    agent, model = dreamer_pair()
    e = episode()
    end = np.arange(STEPS) == STEPS - 1
    rows = rows_from_gym({"obs": e["obs"]}, {"action": e["action"]}, e["reward"], end, ~end & False)
    batch = SequenceBatch.from_columns(
        {name: torch.from_numpy(values)[None] for name, values in rows.items()}
    )
    theirs = window_batch(batch, agent.all_networks.model, 0)
    public = {
        "obs": e["obs"][None, :-1],
        "actions": e["action"][None],
        "rewards": e["reward"][None],
    }
    public |= {"continues": 1.0 - end[None].astype(np.float32), "last_obs": e["obs"][None, -1]}
    ours = rows_learned_from(model, public)
    assert torch.equal(ours.reward, theirs.reward)
    assert torch.equal(ours.terminated, theirs.terminated)
    assert torch.equal(ours.is_first, theirs.is_first)
    assert torch.equal(ours.obs["obs"], theirs.obs["obs"])
    assert torch.equal(ours.action[:, 1:], theirs.action[:, 1:])
    draws = torch.rand(1, STEPS + 1, model.config.stoch_discrete)
    wanted = agent.all_networks.model.losses(theirs, draws, free_nats=1.0, cont_scale=1.0).losses
    found = model.net.losses(ours, draws, free_nats=1.0, cont_scale=1.0).losses
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_the_public_dreamer_loss_is_the_sum_of_the_agent_s() -> None:
    _, model = dreamer_pair()
    e = episode()
    public = {
        "obs": e["obs"][None, :-1],
        "actions": e["action"][None],
        "rewards": e["reward"][None],
    }
    public |= {"continues": np.ones((1, STEPS), np.float32), "last_obs": e["obs"][None, -1]}
    torch.manual_seed(5)
    found = model.compute_loss(public)
    rows = rows_learned_from(model, public)
    torch.manual_seed(5)
    raw = model.net.losses(
        rows, torch.rand(1, STEPS + 1, model.config.stoch_discrete), free_nats=1.0, cont_scale=1.0
    ).losses
    arrivals = raw["rew"][:, 1:].mean() + raw["con"][:, 1:].mean()
    total = raw["obs/obs"].mean() + 1.0 * raw["dyn"].mean() + 0.1 * raw["rep"].mean() + arrivals
    assert torch.allclose(found["loss"], total, rtol=1e-5)


def test_an_agent_s_tdmpc2_is_the_public_one() -> None:
    agent = make_agent(make_agent_config("tdmpc2:ci", {"episodic": "off"}), ENV, seed=3)
    model = create_world_model("tdmpc2:ci", obs_shape=(O,), action_dim=A)
    model.net.load_state_dict(agent.model.state_dict())  # type: ignore[attr-defined]
    obs = torch.rand(3, O)
    assert torch.equal(model.encode(obs).features, agent.model.encode({"obs": obs}))  # type: ignore[attr-defined]


IMAGE = EnvSpec(
    name="toy",
    obs={"obs": ArraySpec((64, 64, 3), "uint8")},
    action={"action": ArraySpec((A,))},
)


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("env", [ENV, IMAGE], ids=["vector", "image"])
@pytest.mark.parametrize(
    "name", [n for n in agent_names() if n.startswith(("dreamerv3", "tdmpc2"))]
)
def test_a_preset_name_means_one_network(name: str, env: EnvSpec) -> None:
    """What an agent trains beside its behaviour, ``actor`` and critics of DreamerV3, has the names,
    shapes and count of the public model's ``net``. The members of ``mlp`` share their encoder and
    decoder; ``test_mlp_agent`` compares them. ``r2dreamer`` has no public model.
    """
    config: Any = make_agent_config(name)
    with torch.device("meta"):
        if name.startswith("dreamerv3"):
            theirs: torch.nn.Module = Networks(config, env).model
        else:
            theirs = TDMPC2Networks(make_architecture(resolve(config, env), env))
        public = create_world_model(
            name, obs_shape=env.obs["obs"].shape, action_dim=A, device="meta", **matching(name)
        )
    assert shapes_of(public.net) == shapes_of(theirs)
    assert public.config.model_name == name.partition(":")[2]
    if name.startswith("tdmpc2"):
        assert shapes_of(public.target) == shapes_of(public.net.critics)


def matching(name: str) -> dict[str, Any]:
    """What an env that may terminate adds to a network of TD-MPC2."""
    return {"episodic": True} if name.startswith("tdmpc2") else {}


def test_every_public_preset_of_an_agent_s_algorithm_is_one_of_the_agent() -> None:
    sizes = WorldModelRegistry.list_models()
    public = {f"dreamerv3:{size}" for size in sizes["dreamer"]}
    public |= {f"tdmpc2:{size}" for size in sizes["tdmpc2"]}
    public |= {f"mlp:{size}" for size in sizes["mlp"]}
    assert public == {name for name in agent_names() if not name.startswith("r2dreamer")}
