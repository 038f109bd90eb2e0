"""Two ranks are one learner: after the same joint batches they hold what a single rank holds."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ending import ended
from tests.ports import free_port
from tests.worldloom_dist.learner import rank_process
from worldloom.core.process_group import SINGLE_PROCESS
from worldloom_dist.learner.process_group import _buckets

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["tdmpc2", "tdmpc2-tasks", "dreamerv3", "r2dreamer", "mlp"])
def test_two_gloo_ranks_equal_one_rank_with_the_joint_batch(name, tmp_path):
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, rank_process.__file__, str(tmp_path), name]
    processes = [
        subprocess.Popen([*script, str(rank), "2", str(port)], env=environment) for rank in range(2)
    ]
    with ended(*processes):
        alone = rank_process.make(name)
        for number in range(rank_process.UPDATES):
            alone.train_step(rank_process.batch(alone, number))
        expected = rank_process.flat(alone.state_dict())
        assert [process.wait(110) for process in processes] == [0, 0]
    ranks = []
    for rank in range(2):
        with np.load(tmp_path / f"rank{rank}.npz") as file:
            ranks.append(dict(file))
    assert set(ranks[0]) == set(expected)
    for path, value in expected.items():
        assert np.array_equal(ranks[0][path], ranks[1][path]), f"{path} differs between the ranks"
        if value.dtype.kind == "f":
            scale = max(np.abs(value).max(initial=0.0), 1e-3)
            assert np.abs(ranks[0][path] - value).max(initial=0.0) <= 1e-5 * scale, path
        else:
            assert np.array_equal(ranks[0][path], value), (
                f"{path}: ranks draw other numbers than one rank"
            )


def test_buckets_hold_every_parameter_once_from_the_last_to_the_first():
    parameters = [
        torch.zeros(n, dtype=dtype)
        for n, dtype in (
            (10, torch.float32),
            (3, torch.float32),
            (2, torch.float64),
            (900, torch.float32),
        )
    ]
    assert _buckets(parameters, 100) == [[3], [2], [1, 0]]


def test_alone_nothing_changes():
    gradients = [torch.ones(3)]
    SINGLE_PROCESS.averager(gradients)(gradients, [])
    assert gradients[0].tolist() == [1, 1, 1]
    assert SINGLE_PROCESS.gather(gradients[0]) is gradients[0]
