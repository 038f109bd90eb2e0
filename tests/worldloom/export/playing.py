"""Exported policies play: by their runner without torch, and by the same runner in torch."""

import dataclasses
import importlib.util
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from worldloom.algorithms.registry import make_step
from worldloom.export.graph import PolicyGraph
from worldloom.training.saved_agents import SavedAgent


def runner_of(folder: Path) -> Any:
    """The module that was written beside the policy."""
    spec = importlib.util.spec_from_file_location("run_policy", folder / "run_policy.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def graph_of(path: Path, *, planner: bool = False, samples: int | None = None) -> PolicyGraph:
    saved = SavedAgent.read(path)
    if samples is not None:
        saved = dataclasses.replace(saved, agent={**saved.agent, "num_samples": samples})
    policy = saved.build(device="cpu", seed=0)
    _, step = make_step(str(saved.agent["name"]), policy, planner=planner)
    return PolicyGraph(step, saved.env, saved.spaces(), saved.env_config())


def without_torch(folder: Path) -> Path:
    """The Python of an environment that has what ``run_policy.py`` needs and nothing else."""
    venv.create(folder, with_pip=False, symlinks=True)
    target = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    needed = (
        *("numpy", "numpy.libs", "onnxruntime", "flatbuffers", "google", "packaging"),
        *("gymnasium", "cloudpickle", "typing_extensions.py", "farama_notifications"),
    )
    homes = [Path(entry) for entry in [sysconfig.get_path("purelib"), *sys.path] if entry]
    for name in needed:
        found = next((home / name for home in homes if (home / name).exists()), None)
        if found is not None:
            (target / name).symlink_to(found)
    return folder / "bin/python"


def returns_without_torch(policy: Path, python: Path, episodes: int) -> list[float]:
    absent = "import importlib.util as u; assert not u.find_spec('torch')"
    absent += "; assert not u.find_spec('worldloom')"
    subprocess.run([python, "-I", "-c", absent], check=True, cwd=policy)
    told = subprocess.run(
        [python, "-I", "run_policy.py", str(episodes)],
        check=True,
        cwd=policy,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return [float(line.rpartition(" ")[2]) for line in told.stdout.splitlines()]


def returns_in_torch(graph: PolicyGraph, policy: Path, episodes: int) -> list[float]:
    """The same episodes with the graph in torch, and the same draws."""
    runner = runner_of(policy)

    class InTorch(runner.Policy):  # type: ignore[name-defined, misc]
        """The runner with another session."""

        def __init__(self) -> None:
            super().__init__(policy)
            self.session = self

        def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            found = graph.run(feed)
            return [found[name] for name in names]

    acting = InTorch()
    made = acting.contract["env"]["gymnasium"]
    env = gymnasium.make(made["id"], **made["kwargs"])
    found = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode)
        acting.reset()
        total, is_over = 0.0, False
        while not is_over:
            action = acting.act(obs)
            for _ in range(acting.contract["control"]["action_repeat"]):
                obs, reward, terminated, truncated, _ = env.step(action)
                total += float(reward)
                is_over = terminated or truncated
                if is_over:
                    break
        found.append(total)
    return found
