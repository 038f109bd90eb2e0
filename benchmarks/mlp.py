"""How fast the ``mlp`` agent is, whether it learns, and whether curiosity pays.

    python benchmarks/mlp.py speed                  # an update, and acts of 16 envs in each way
    python benchmarks/mlp.py learn                  # Pendulum and CartPole, seeds 0-4, 4,000 steps
    python benchmarks/mlp.py learn --seeds 0 --tasks gym:CartPole-v1
    python benchmarks/mlp.py explore                # a corridor with one reward, bonus and none

Each writes ``benchmarks/results/mlp_NAME.json``; ``learn`` also the curves, ``mlp_curves.png``. One
thread each, one run after the other unless ``--jobs`` says more (returns are the same, seconds
are not). ``learn`` writes after every run. With ``--tasks`` or
``--seeds`` it keeps the other runs that the file has, each with the context that it was made in, so
that the whole can be made in parts; without, it begins a new file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from context import context
from learning import train_all, trained, write

from worldloom.algorithms.mlp.agent import MLPAgent
from worldloom.algorithms.registry import make_agent, make_agent_config
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.testing.noise import random_batch, random_obs

RESULTS = Path(__file__).resolve().parent / "results"
ENVS = 16
MODES = ("actor-critic", "random-shooting", "cem", "mcts")
TASKS = ("gym:Pendulum-v1", "gym:CartPole-v1")
SEEDS = (0, 1, 2, 3, 4)
OBS = {"obs": ArraySpec((4,))}
BOX = {"action": ArraySpec((1,))}
CHOICE = {"action": ArraySpec((), "int64", (2,))}


def milliseconds(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Wall and CPU time of one call: median, and the least."""
    function()
    wall = []
    cpu = []
    for _ in range(repeats):
        started = time.perf_counter()
        used = time.process_time()
        function()
        wall.append((time.perf_counter() - started) * 1e3)
        cpu.append((time.process_time() - used) * 1e3)
    return {
        "wall_ms_median": round(statistics.median(wall), 3),
        "wall_ms_min": round(min(wall), 3),
        "cpu_ms_median": round(statistics.median(cpu), 3),
    }


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """One update, and one act of 16 envs in each way to act, on one thread."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for preset in options.presets:
        rows: dict[str, Any] = {}
        for mode in MODES:
            env = EnvSpec(name="toy:x", obs=OBS, action=CHOICE if mode == "mcts" else BOX)
            agent: Any = make_agent(make_agent_config(f"mlp:{preset}", {"acting": mode}), env)
            obs = random_obs(env, ENVS, 0)
            first = np.zeros(ENVS, bool)

            def act(agent: Any = agent, obs: Any = obs, first: Any = first) -> object:
                return agent.act(obs, {}, first, explore=True)

            rows[f"act_{mode}"] = milliseconds(act, options.repeats)
            if mode == "actor-critic":
                batch = random_batch(agent.spec, env, 0, "cpu", {})

                def update(agent: Any = agent, batch: Any = batch) -> object:
                    return agent.train_step(batch)

                rows["update"] = milliseconds(update, options.repeats)
        for name, row in rows.items():
            print(f"mlp:{preset:8} {name:22} {row['wall_ms_median']:9.2f} ms", flush=True)
        found[preset] = rows
    return {"envs": ENVS, "threads": 1, "presets": found}


def train(task: str, seed: int, env_steps: int) -> dict[str, Any]:
    """Train one seed through the command line; its evaluations and how long it took."""
    words = f"--env {task} --agent mlp:small --runtime local --seed {seed}"
    words += f" --env-steps {env_steps} --eval-every {env_steps // 4} --eval-episodes 20"
    words += " --learner.threads 1"
    return {"task": task, "seed": seed, **trained(f"{task} seed {seed}", words.split())}


def learn(options: argparse.Namespace) -> dict[str, Any]:
    """All tasks and seeds, and their curves; written after every run."""

    def one(task: str, seed: int) -> dict[str, Any]:
        return {**train(task, seed, options.env_steps), "env_steps": options.env_steps}

    return train_all(one, RESULTS / "mlp_learn.json", "mlp:small", options, TASKS, SEEDS)


# -- a corridor with one reward -------------------------------------------------------------------


class Corridor:
    """Walk from one end of a corridor to the other, where the only reward is; both ends stop.

    Args:
        length: Steps from end to end.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.place = 0

    @property
    def env(self) -> EnvSpec:
        """Its spaces: the place in [-1, 1]; left or right."""
        return EnvSpec(
            name="toy:corridor",
            obs={"obs": ArraySpec((1,))},
            action=CHOICE,
            episode_limit=2 * self.length,
            may_terminate=False,
        )

    def see(self) -> np.ndarray:
        """The observation [1, 1]."""
        return np.array([[2 * self.place / self.length - 1]], np.float32)

    def step(self, action: int) -> float:
        """Walk; the reward."""
        self.place = int(np.clip(self.place + (1 if action else -1), 0, self.length))
        return float(self.place == self.length)


def explored(bonus: float, seed: int, *, preset: str, length: int, steps: int) -> dict[str, Any]:
    """How far an agent comes that begins at one end of a corridor, and when it first meets the
    reward.

    Args:
        bonus: Its ``uncertainty_bonus``.
        seed: Of the agent and of the windows that it trains on.
        preset: ``mlp:PRESET``.
        length: Of the corridor; a random walk of an episode's ``2 length`` steps hardly passes it.
        steps: Agent steps, each with half an update.
    """
    corridor = Corridor(length)
    settings: Mapping[str, Any] = {"uncertainty_bonus": bonus, "batch_size": 16, "horizon": 8}
    agent: Any = make_agent(make_agent_config(f"mlp:{preset}", settings), corridor.env, seed=seed)
    assert isinstance(agent, MLPAgent)
    rng = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {"obs": [], "action": [], "reward": [], "is_first": []}
    furthest = 0
    first_reward = None
    reward = 0.0
    for step in range(steps):
        t = step % (2 * length + 1)
        if t == 0:
            corridor.place = 0
        obs = corridor.see()
        out = agent.act({"obs": obs}, {}, np.array([t == 0]), explore=True)
        action = int(out.action["action"][0])
        for name, value in (("obs", obs[0]), ("action", action), ("is_first", t == 0)):
            rows[name].append(value)
        rows["reward"].append(0.0 if t == 0 else reward)
        if t == 2 * length:  # the episode's last row: its action leads nowhere
            continue
        reward = corridor.step(action)
        furthest = max(furthest, corridor.place)
        if reward and first_reward is None:
            first_reward = step
        if step > 2 * length and step % 2:
            agent.train_step(_windows(agent, rows, rng))
    return {"seed": seed, "bonus": bonus, "furthest": furthest, "first_reward": first_reward}


def _windows(agent: MLPAgent, rows: Mapping[str, list[Any]], rng: Any) -> SequenceBatch:
    sampling = agent.spec.sampling
    start = rng.integers(0, len(rows["obs"]) - sampling.window_rows + 1, sampling.batch_size)
    index = start[:, None] + np.arange(sampling.window_rows)
    columns = {name: np.array(values)[index] for name, values in rows.items()}
    none = np.zeros(index.shape, bool)
    columns |= {"terminated": none, "truncated": none}
    columns["reward"] = columns["reward"].astype(np.float32)
    return SequenceBatch.from_columns(columns).map(torch.from_numpy)


def explore(options: argparse.Namespace) -> dict[str, Any]:
    """The corridor with the bonus and without, all seeds."""
    torch.set_num_threads(1)
    sizes: Any = {"preset": "ci", "length": options.length, "steps": options.steps}
    runs = []
    for bonus in (0.0, options.bonus):
        for seed in options.seeds:
            runs.append(explored(bonus, seed, **sizes))
        own = [run for run in runs if run["bonus"] == bonus]
        met = [run["first_reward"] for run in own if run["first_reward"] is not None]
        print(
            f"bonus {bonus}: {len(met)} of {len(own)} seeds met the reward (first at step {met}); "
            f"furthest places {[run['furthest'] for run in own]} of {options.length}",
            flush=True,
        )
    return {**sizes, "runs": runs}


def main() -> None:
    """Read the line, measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("speed")
    one.add_argument("--presets", nargs="+", default=["ci", "small"])
    one.add_argument("--repeats", type=int, default=20)
    one.set_defaults(measure=speed)
    one = commands.add_parser("learn")
    one.add_argument("--tasks", nargs="+", help=f"default: {' '.join(TASKS)}")
    one.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2 3 4")
    one.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    one.add_argument("--env-steps", type=int, default=4000)
    one.set_defaults(measure=learn)
    one = commands.add_parser("explore")
    one.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    one.add_argument("--bonus", type=float, default=1.0)
    one.add_argument("--length", type=int, default=40)
    one.add_argument("--steps", type=int, default=1500)
    one.set_defaults(measure=explore)
    options = parser.parse_args()
    options.before = context()
    result = {**options.before, **options.measure(options)}
    write(RESULTS / f"mlp_{options.command}.json", result)


if __name__ == "__main__":
    main()
