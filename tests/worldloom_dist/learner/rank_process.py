"""One rank of several, as a process: trains an agent on its share of joint batches and saves what
it became.

python rank_process.py FOLDER AGENT RANK SIZE PORT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldloom.algorithms.registry import make_agent, make_agent_config
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import TASK, ArraySpec, EnvSpec, TaskSpec
from worldloom_dist.learner.process_group import BucketAverage, TorchProcessGroup, open_store

UPDATES = 3
"""Few: after rounding differences, DreamerV3 draws another class sooner or later, and from there on
the two runs part.
"""
ENV = EnvSpec(name="test", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((2,))})
TDMPC2: dict[str, Any] = {
    "latent_dim": 16,
    "encoder_dim": 16,
    "mlp_dim": 16,
    "num_q": 3,
    "num_bins": 11,
    "batch_size": 8,
    "horizon": 3,
    "dropout": 0.1,
    "num_samples": 12,
    "num_elites": 4,
    "num_policy_samples": 3,
    "episodic": "on",
}
# A large eps: with the published 1e-20 the optimizer makes a full step out of a gradient that is
# nothing but rounding.
DREAMER: dict[str, Any] = {
    "deter": 32,
    "hidden": 8,
    "stoch": 4,
    "classes": 4,
    "units": 8,
    "depth": 2,
    "blocks": 4,
    "bins": 41,
    "batch_size": 8,
    "batch_length": 6,
    "imagine_length": 3,
    "warmup": 0,
    "lr": 1e-3,
    "free_nats": 0.0,
    "eps": 1e-3,
}
MLP: dict[str, Any] = {
    "latent_dim": 8,
    "hidden_dim": 12,
    "policy_dim": 8,
    "bins": 21,
    "batch_size": 8,
    "batch_length": 3,
    "horizon": 3,
}
TASKS = EnvSpec(
    name="tasks",
    obs={"obs": ArraySpec((3,)), TASK: ArraySpec((), "int32")},
    action={"action": ArraySpec((2,))},
    tasks=tuple(
        TaskSpec(name=f"t{i}", env=f"toy:t{i}", obs=(("obs", 3),), action=(("action", 2),))
        for i in range(3)
    ),
)
ENVS = {"tdmpc2-tasks": TASKS}
EMBEDDING_NORM = 1.7
"""Above the norm 1 to which the embeddings of a batch are shortened."""
AGENTS = {
    "tdmpc2": ("tdmpc2:ci", TDMPC2),
    "tdmpc2-tasks": ("tdmpc2:ci", TDMPC2 | {"episodic": "off", "task_dim": 4}),
    "dreamerv3": ("dreamerv3:ci", DREAMER),
    "mlp": ("mlp:ci", MLP),
    "r2dreamer": ("r2dreamer:ci", DREAMER),
}


def make(name: str) -> Any:
    preset, settings = AGENTS[name]
    agent = make_agent(make_agent_config(preset, settings), ENVS.get(name, ENV), seed=3)
    if name in ENVS:
        with torch.no_grad():
            table = agent.model.task_emb
            table.mul_(EMBEDDING_NORM / table.norm(dim=1, keepdim=True))
    return agent


def batch(agent: Any, number: int, rank: int = 0, size: int = 1) -> SequenceBatch:
    """This rank's windows of joint batch ``number``; with several tasks its windows are of one
    that no other rank has.
    """
    sampling = agent.spec.sampling
    rng = np.random.default_rng(number)
    lead = (sampling.batch_size, sampling.window_rows)
    columns = {}
    for name, spec in agent.env.columns(agent.spec.extras).items():
        values = rng.normal(size=(*lead, *spec.shape))
        columns[name] = (
            values.astype(spec.dtype)
            if spec.dtype.startswith("float")
            else np.zeros(values.shape, spec.dtype)
        )
    columns["terminated"][:, -1] = rng.random(lead[0]) < 0.5
    if agent.env.task_column:
        columns[agent.env.task_column][lead[0] // 2 :] = 1
    share = lead[0] // size
    return SequenceBatch.from_columns(
        {k: torch.tensor(v[rank * share : (rank + 1) * share]) for k, v in columns.items()}
    )


def flat(tree: Any, path: str = "") -> dict[str, np.ndarray]:
    """Every tensor of a nested state, by path."""
    if isinstance(tree, dict):
        return {
            k: v for key, value in tree.items() for k, v in flat(value, f"{path}/{key}").items()
        }
    if isinstance(tree, list | tuple):
        return {k: v for i, value in enumerate(tree) for k, v in flat(value, f"{path}/{i}").items()}
    return {path: np.asarray(tree)}


def main(folder: Path, name: str, rank: int, size: int, port: int) -> None:
    torch.set_num_threads(1)
    agent = make(name)
    ranks = TorchProcessGroup(
        open_store("127.0.0.1", port, size, is_host=rank == 0),
        rank,
        size,
        bucket_bytes=4096,
        timeout_s=60.0,
    )
    agent.join(ranks)
    averages = [
        value for part in (agent, getattr(agent, "updater", agent)) for value in vars(part).values()
    ]
    averages += list(getattr(agent, "averages", {}).values())
    averages = [value for value in averages if isinstance(value, BucketAverage)]
    for number in range(UPDATES):
        agent.train_step(batch(agent, number, rank, size))
    assert averages
    assert all(average.sent_early >= 1 for average in averages), (
        "no gradient travelled while backward ran"
    )
    assert ranks.any(rank == 1, False, True) == [size > 1, False, True]
    assert ranks.broadcast({"rank": rank}) == {"rank": 0}
    np.savez(folder / f"rank{rank}.npz", **flat(agent.state_dict()))
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
