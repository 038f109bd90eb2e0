"""Agents that have learned play as well without torch: exported, in an environment that has numpy,
onnxruntime and gymnasium alone.
"""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

import worldloom
from tests.worldloom.export.playing import (
    graph_of,
    returns_in_torch,
    returns_without_torch,
    without_torch,
)
from worldloom.commands import main
from worldloom.export import export_policy

EPISODES = 20
TRAINED = {
    "dreamerv3:ci": ("gym:CartPole-v1", "2000", False),
    "tdmpc2:ci": ("gym:Pendulum-v1", "3000", True),
}
"""Agent -> env, env steps, and whether it plans."""


def agent_returns(run: Path) -> list[float]:
    """The same episodes with the agent itself, which has draws of its own."""
    agent = worldloom.load_agent(run, seed=1)
    assert agent.path.parent.parent == run
    spec = {"dv3": "CartPole-v1", "td2": "Pendulum-v1"}[run.name]
    env = gymnasium.make(spec)
    found = []
    for episode in range(EPISODES):
        obs, _ = env.reset(seed=episode)
        agent.reset()
        total, is_over = 0.0, False
        while not is_over:
            obs, reward, terminated, truncated, _ = env.step(agent.act(obs))
            total += float(reward)
            is_over = terminated or truncated
        found.append(total)
    return found


@pytest.mark.learn
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TRAINED)
def test_an_exported_agent_plays_as_well_without_torch(name: str, tmp_path: Path) -> None:
    """Episode by episode the same return as the graph in torch with the same draws, but for two of
    twenty, where a rounding changed a decision; and a mean that no more than three standard errors
    part from that of the agent, which draws otherwise.
    """
    env, steps, planner = TRAINED[name]
    run = tmp_path / ("td2" if planner else "dv3")
    words = f"--preset quick --runtime local --metrics-port 0 --agent {name} --env {env}".split()
    words += ["--env-steps", steps, "--eval-every", "0", "--run-dir", str(run)]
    assert main(["train", *words]) == 0
    policy = tmp_path / "policy"
    export_policy(run, policy, planner=planner)
    found = returns_without_torch(policy, without_torch(tmp_path / "python"), EPISODES)
    wanted = returns_in_torch(graph_of(run, planner=planner), policy, EPISODES)
    alike = np.isclose(found, wanted, rtol=0.01, atol=1.0)
    assert alike.sum() >= EPISODES - 2, (found, wanted)
    own = agent_returns(run)
    error = np.hypot(np.std(found), np.std(own)) / np.sqrt(EPISODES)
    assert abs(np.mean(found) - np.mean(own)) <= 3 * error + 0.01 * abs(np.mean(own)), (found, own)
