"""Lock-step runs in a test's own folder, and how to compare two of them."""

import numpy as np
import torch

from worldloom.training.checkpoints import CheckpointStore
from worldloom_dist.lockstep.runtime import LocalRuntime
from worldloom_dist.run.cli import parse
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.loop import Run
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.report import Report
from worldloom_dist.run.signals import StopFlag


def start(folder, *words) -> Run:
    plan = resolve(parse([*words]))
    run_folder = RunFolder(folder)
    settings = (plan.config, plan.env_spec.to_dict(), {})
    run_folder.hold()
    run_folder.open(*settings)
    return run_of(plan, run_folder, on_restored=lambda: run_folder.describe(*settings))


def run_of(plan, folder, port=0, stop=None, **more) -> Run:
    report = Report(plan, folder, folder.read_json("summary.json"))
    stop = stop or StopFlag()
    runtime = LocalRuntime(plan, folder, report, port, stop)
    return Run(plan, folder, report, runtime, stop, **more)


def completed(folder, *words):
    """A run to its end, for a fixture that outlives a test; returns its folder."""
    before = torch.get_num_threads()
    assert start(folder, *words).run() == "completed"
    torch.set_num_threads(before)
    return folder


def restored_threads():
    """A fixture's body: a lock-step run in this process sets how many threads torch has."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def newest_state(folder) -> dict:
    return CheckpointStore(folder / "checkpoints").newest()[1]


def flat(tree, path="") -> dict:
    if isinstance(tree, dict):
        return {
            key: value
            for name, part in tree.items()
            for key, value in flat(part, f"{path}/{name}").items()
        }
    if isinstance(tree, list | tuple):
        return {
            key: value
            for index, part in enumerate(tree)
            for key, value in flat(part, f"{path}/{index}").items()
        }
    return {path: tree}


def assert_equal_trees(one, two) -> None:
    one = flat(one)
    two = flat(two)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, two[name]), name
        elif isinstance(value, np.ndarray):
            assert np.array_equal(value, two[name], equal_nan=value.dtype.kind == "f"), name
        else:
            assert value == two[name], name


def write_pendulum_rows(path) -> str:
    """Ten episodes of twenty steps in the spaces of Pendulum, drawn at random."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(-3, 3, 200)
    ends = np.arange(200) % 20 == 19
    np.savez(
        path,
        obs=np.stack([np.cos(angle), np.sin(angle), angle], axis=1).astype(np.float32),
        actions=rng.uniform(-1, 1, (200, 1)).astype(np.float32),
        rewards=-np.abs(angle).astype(np.float32),
        dones=ends,
        truncated=ends,
    )
    return str(path)
