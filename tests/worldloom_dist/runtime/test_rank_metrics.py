"""With several learner ranks, every loss shown is the mean over them, and what they do together
counts once.
"""

import numpy as np
import pytest
import torch

from tests.worldloom_dist.learner import rank_process
from worldloom.core.metrics import Last, Sum
from worldloom.data.windows import SampledWindows
from worldloom_dist.learner.learner import Learner
from worldloom_dist.learner.weight_store import WeightStore
from worldloom_dist.metrics.hub import MetricsHub
from worldloom_dist.metrics.names import METRICS, split_key
from worldloom_dist.runtime.learner_roles import of_another_rank


def windows(agent, rank: int) -> SampledWindows:
    sampling = agent.spec.sampling
    rng = np.random.default_rng(rank)
    lead = (sampling.batch_size, sampling.window_rows)
    columns = {}
    for name, spec in rank_process.ENV.columns(agent.spec.extras).items():
        values = rng.normal(size=(*lead, *spec.shape))
        columns[name] = (
            values.astype(spec.dtype)
            if spec.dtype.startswith("float")
            else np.zeros(values.shape, spec.dtype)
        )
    zeros = np.zeros(lead[0], np.int64)
    return SampledWindows(columns, np.zeros(lead, np.int64), zeros, zeros, zeros.astype(float))


@pytest.mark.parametrize("name", ["tdmpc2", "dreamerv3"])
def test_losses_are_the_mean_of_the_ranks_and_counters_are_not_doubled(name):
    hub = MetricsHub("run")
    drained = []
    for rank in range(2):
        torch.manual_seed(0)
        learner = Learner(rank_process.make(name), WeightStore())
        learner.train(windows(learner.agent, rank))
        metrics = learner.drain_metrics()
        drained.append(metrics)
        hub.emit("learner", rank, metrics if rank == 0 else of_another_rank(metrics))
    shown = hub.snapshot()
    gauges = [key for key, value in drained[0].items() if isinstance(value, Last)]
    assert any(key.startswith("loss{") for key in gauges)
    for key in gauges:
        assert METRICS[split_key(key)[0]].across == "mean", key
        assert shown[key] == pytest.approx((drained[0][key].value + drained[1][key].value) / 2), key
    assert any(shown[key] != drained[0][key].value for key in gauges)
    assert shown["learner_updates_total"] == 1
    assert shown["learner_replayed_steps_total"] == drained[0]["learner_replayed_steps_total"].value
    phases = [
        key
        for key, value in drained[0].items()
        if key.startswith("learner_seconds_total") and isinstance(value, Sum)
    ]
    for key in phases:
        assert shown[key] == pytest.approx(drained[0][key].value + drained[1][key].value), key
