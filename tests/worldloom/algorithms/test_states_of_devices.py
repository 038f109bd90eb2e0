"""A state that was saved on a GPU is loaded on a CPU: random numbers begin again, all else goes
on.
"""

import copy

import numpy as np
import pytest
import torch

from worldloom.algorithms.registry import make_agent, make_agent_config
from worldloom.core.exceptions import CheckpointError
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.nn.generators import fresh_weights, restore_generator
from worldloom.testing.trees import check_same

ENV = EnvSpec(name="e", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((2,))})
OF_A_GPU = torch.arange(16, dtype=torch.uint8)


def of_a_gpu(state):
    """The same, as an agent on a GPU would have saved it."""
    found = copy.deepcopy(state)
    found["rng"]["acting"] = [OF_A_GPU for _ in found["rng"]["acting"]]
    found["rng"]["train"] = OF_A_GPU
    return found


@pytest.mark.parametrize("name", ["tdmpc2:ci", "dreamerv3:ci", "mlp:ci"])
def test_the_state_of_a_gpu_s_agent_is_loaded_on_a_cpu(name):
    first, second = (make_agent(make_agent_config(name), ENV, seed=seed) for seed in (1, 2))
    state = of_a_gpu(first.state_dict())
    first.load_state_dict(state)
    second.load_state_dict(state)
    check_same("the state of two that go on alike", first.state_dict(), second.state_dict())


def test_what_is_the_state_of_no_generator_is_refused():
    generator = torch.Generator()
    for wrong in (torch.zeros(3, dtype=torch.uint8), torch.zeros(16), torch.zeros(5056)):
        with pytest.raises(CheckpointError, match="that of no generator"):
            restore_generator(generator, wrong)
    kept = torch.Generator().manual_seed(3).get_state()
    restore_generator(generator, kept)
    assert torch.equal(generator.get_state(), kept)


def test_initial_weights_leave_the_generators_of_gpus_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("reseeded"))
    before = torch.get_rng_state()
    with fresh_weights(np.random.SeedSequence(1)):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
