"""Every preset's update and decision can be recorded as a CUDA graph, and how many launches it has.

Traced on a device without values: see ``tests.tracing``.
"""

import pytest
import torch

from tests.tracing import Launches, blank_batch, valueless
from worldloom.algorithms.registry import agent_names, make_agent, make_agent_config, make_policy
from worldloom.core.protocol import CapturableUpdate
from worldloom.core.specs import ArraySpec, EnvSpec

VECTOR = EnvSpec(
    name="vector",
    obs={"obs": ArraySpec((24,))},
    action={"action": ArraySpec((6,))},
    episode_limit=500,
    may_terminate=False,
)
EPISODIC = EnvSpec(
    name="episodic", obs={"obs": ArraySpec((11,))}, action={"action": ArraySpec((3,))}
)
IMAGE = EnvSpec(
    name="image",
    obs={"obs": ArraySpec((64, 64, 3), "uint8")},
    action={"action": ArraySpec((), "int64", (6,))},
    episode_limit=1000,
)
STACK = EnvSpec(
    name="stack",
    obs={"obs": ArraySpec((64, 64, 9), "uint8")},
    action={"action": ArraySpec((6,))},
    episode_limit=500,
)
SHORT = {"batch_size": 3, "batch_length": 5, "imagine_length": 2}
"""Fewer steps are fewer rounds of the same loop."""
CASES = [
    (name, env)
    for name in agent_names()
    for env in (
        VECTOR,
        *((EPISODIC, IMAGE if "dreamer" in name else STACK) if name.endswith(":ci") else ()),
    )
]
UPDATE_BUDGET = {
    ("dreamerv3:size12m", "image"): 3_034,
    ("dreamerv3:size12m", "vector"): 2_892,
    ("tdmpc2:5m", "vector"): 800,
}
"""With the fused kernels, and with what torch launches beyond one per operator; ADR 019 and the
page on deployment quote the first two."""
PLAIN_BUDGET = {
    ("dreamerv3:size12m", "image"): 6_300,
    ("dreamerv3:size12m", "vector"): 6_160,
}
"""Without, one per operator."""
DECISION_BUDGET = {
    ("dreamerv3:size12m", "image"): 90,
    ("dreamerv3:size12m", "vector"): 90,
    ("tdmpc2:5m", "vector"): 1_130,
}


def made(make, name, env, **settings):
    if hasattr(make_agent_config(name), "precision"):
        settings = {"precision": "float32", **settings}
    with torch.device("meta"):
        return make(make_agent_config(name, settings), env, device="meta")


def launches_of_update(monkeypatch, name, env, **settings) -> Launches:
    with valueless(monkeypatch):
        agent = made(make_agent, name, env, **settings)
        assert isinstance(agent, CapturableUpdate)
        batch = blank_batch(agent, env)
        if name.startswith("tdmpc2"):  # its optimizers make their moments in the first update
            agent.train_step(batch)
        with Launches() as launches:
            agent.train_step(batch)
    return launches


def launches_of_decision(monkeypatch, name, env, **settings) -> Launches:
    launches = Launches()

    class Enough(Exception):
        pass

    def watched(decide):
        def run(inputs, *, explore):
            with launches:
                decide(inputs, explore=explore)
            raise Enough

        return run

    with valueless(monkeypatch):
        policy = made(make_policy, name, env, **settings)
        policy.decide_through(watched)
        obs = {key: spec.zeros(4) for key, spec in env.obs.items()}
        is_first = torch.zeros(4, dtype=torch.bool).numpy()
        carry = policy.initial_carry(4)
        carry = {
            k: v if isinstance(v, torch.Tensor) else torch.from_numpy(v) for k, v in carry.items()
        }
        with pytest.raises(Enough):
            policy.act(obs, carry, is_first, explore=True)
    return launches


@pytest.mark.parametrize(("name", "env"), CASES, ids=[f"{n}-{e.name}" for n, e in CASES])
def test_every_presets_update_can_be_recorded(monkeypatch, name, env):
    short = SHORT if "dreamer" in name else {}
    assert launches_of_update(monkeypatch, name, env, **short).total > 100


@pytest.mark.parametrize(("name", "env"), CASES, ids=[f"{n}-{e.name}" for n, e in CASES])
def test_every_presets_decision_can_be_recorded(monkeypatch, name, env):
    launches = launches_of_decision(monkeypatch, name, env)
    assert 20 < launches.total <= DECISION_BUDGET.get((name, env.name), 10_000)


@pytest.mark.parametrize("acting", ["cem", "random-shooting", "mcts"])
def test_every_search_of_the_mlp_agent_can_be_recorded(monkeypatch, acting):
    env = IMAGE if acting == "mcts" else STACK
    settings = {"acting": acting, "uncertainty_bonus": 1.0}
    assert launches_of_decision(monkeypatch, "mlp:ci", env, **settings).total > 100


def test_a_curious_update_of_the_mlp_agent_can_be_recorded(monkeypatch):
    assert launches_of_update(monkeypatch, "mlp:ci", IMAGE, uncertainty_bonus=1.0).total > 100


@pytest.mark.parametrize(
    ("name", "env"),
    [(n, e) for n in ("dreamerv3:size12m",) for e in (VECTOR, IMAGE)] + [("tdmpc2:5m", VECTOR)],
)
def test_an_update_keeps_to_its_budget_of_launches(monkeypatch, name, env):
    launches = launches_of_update(monkeypatch, name, env)
    most = launches.count.most_common(8)
    assert launches.estimate <= UPDATE_BUDGET[name, env.name], f"mostly {most}"


@pytest.mark.parametrize("env", [VECTOR, IMAGE], ids=lambda env: env.name)
def test_an_update_without_kernels_keeps_to_its_budget_of_launches(monkeypatch, env):
    monkeypatch.setenv("WORLDLOOM_KERNELS", "off")
    launches = launches_of_update(monkeypatch, "dreamerv3:size12m", env)
    most = launches.count.most_common(8)
    assert launches.total <= PLAIN_BUDGET["dreamerv3:size12m", env.name], f"mostly {most}"


def test_the_estimate_counts_what_one_operator_hides():
    weight, out = torch.ones(3, 3, device="meta"), torch.ones(3, 3, device="meta")
    small = [torch.ones(2, device="meta") for _ in range(49)]

    def on_lists(name, *lists):
        getattr(torch, f"_foreach_{name}_")(*lists)

    with Launches() as launches:
        torch.addmm(weight[0], weight, weight)
        out.addmm_(weight, weight)
        assert launches.estimate == 2
        torch.addmm(out, weight, weight)  # copies what it adds to
        assert launches.estimate == 4
        on_lists("add", small, small)  # 64 at a time
        assert launches.estimate == 5
        on_lists("lerp", small, small, small)  # 48 at a time
        assert launches.estimate == 7
        on_lists("div", small, [s[0] for s in small])  # of other shapes: one by one
        assert launches.estimate == 7 + 49


@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("dreamerv3:ci", VECTOR),
        ("dreamerv3:ci", IMAGE),
        ("r2dreamer:ci", IMAGE),
        ("tdmpc2:ci", EPISODIC),
        ("tdmpc2:ci", STACK),
    ],
)
def test_deterministic_mode_meets_no_operator_that_torch_refuses(monkeypatch, name, env):
    torch.use_deterministic_algorithms(True)
    try:
        launches_of_update(monkeypatch, name, env, **(SHORT if "dreamer" in name else {}))
        launches_of_decision(monkeypatch, name, env)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x: x * float(x.sum()), "item"),
        (lambda x: x[x[:, 0] > 0], "nonzero"),
        (lambda x: x + torch.zeros(1).to("meta"), "touches"),
        (lambda x: x.cumsum(0), "deterministic"),
    ],
)
def test_the_trace_can_fail(wrong, says):
    torch.use_deterministic_algorithms(True)
    try:
        with Launches(), pytest.raises((AssertionError, RuntimeError), match=says):
            wrong(torch.ones(2, 2, device="meta"))
    finally:
        torch.use_deterministic_algorithms(False)
