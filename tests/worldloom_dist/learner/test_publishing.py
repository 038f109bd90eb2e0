"""Weights that leave a GPU late are those of their version, byte for byte what a publish on the
spot would have sent.
"""

import threading
import time

import numpy as np
import pytest
import torch

from tests.worldloom_dist.learner import rank_process
from worldloom.core.exceptions import StateError
from worldloom.core.sequence import PolicyVersion
from worldloom.nn.snapshot import to_bfloat16
from worldloom_dist.learner.learner import Learner
from worldloom_dist.learner.publishing import Publisher
from worldloom_dist.learner.weight_store import WeightStore


class Late:
    """A copy stream that delivers when it is told to."""

    def __init__(self):
        self.may_deliver = threading.Event()

    def begin(self, flat):
        def receive():
            assert self.may_deliver.wait(10)
            return flat.numpy().copy()

        return receive


def wait_for(condition):
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["tdmpc2", "dreamerv3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_late_version_is_what_it_was_when_it_was_ordered(name, dtype):
    agent = rank_process.make(name)
    store = WeightStore()
    download = Late()
    learner = Learner(agent, store, weights_dtype=dtype)
    learner.publisher = Publisher(
        store, download, torch.bfloat16 if dtype == "bfloat16" else torch.float32
    )
    expected = agent.policy_weights() if dtype == "float32" else to_bfloat16(agent.policy_weights())
    version = learner.publish()
    # changes the weights in place while their copy is on its way
    agent.train_step(rank_process.batch(agent, 0))
    assert store.version() < version
    assert "weights_published_total" not in learner.drain_metrics()
    download.may_deliver.set()
    wait_for(lambda: store.version() == version)
    got = store.fetch()
    assert (got.entries, got.version) == (expected.entries, version)
    assert np.array_equal(got.buffer, expected.buffer)
    wait_for(lambda: learner.drain_metrics().get("weights_published_total"))


def test_versions_arrive_in_order_and_one_that_the_store_refuses_costs_only_itself(caplog):
    store = WeightStore()
    download = Late()
    agent = rank_process.make("tdmpc2")
    download.may_deliver.set()
    publisher = Publisher(store, download)
    store.publish(agent.policy_weights().with_version(PolicyVersion(1, 2)))
    for update in (1, 3, 4):
        publisher.publish(agent.policy_tensors(), PolicyVersion(1, update))
    wait_for(lambda: store.version() == PolicyVersion(1, 4))
    wait_for(lambda: publisher.done.qsize() == 2)
    assert "weights 1.1 were not published" in caplog.text
    with pytest.raises(StateError):
        store.publish(agent.policy_weights().with_version(PolicyVersion(1, 4)))


def test_on_a_cpu_the_store_has_the_version_when_publish_returns():
    learner = Learner(rank_process.make("tdmpc2"), store := WeightStore())
    assert learner.publish() == store.version()
    assert learner.drain_metrics()["weights_published_total"].value == 1


def test_lock_step_waits_until_the_store_has_a_version():
    """Or the decisions of the next round, and an evaluation, would be made with older weights."""
    store = WeightStore()
    download = Late()
    learner = Learner(rank_process.make("tdmpc2"), store)
    learner.publisher = Publisher(store, download)
    threading.Timer(0.05, download.may_deliver.set).start()
    assert learner.publish(waits=True) == store.version()


def test_a_version_that_lock_step_waits_for_and_the_store_refuses_ends_the_wait_with_why():
    store = WeightStore()
    download = Late()
    download.may_deliver.set()
    learner = Learner(rank_process.make("tdmpc2"), store)
    learner.publisher = Publisher(store, download)
    learner.publish(waits=True)
    with pytest.raises(StateError, match="versions only rise"):
        learner.publish(waits=True)
