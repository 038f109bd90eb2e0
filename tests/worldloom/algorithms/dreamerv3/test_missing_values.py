"""A key without a value (-inf among numbers, -1 among classes) reads as zeros and is not
reconstructed.
"""

import pytest
import torch

from worldloom.algorithms.dreamerv3.decoder import vector_loss
from worldloom.nn.layout import ActionKey, VectorKey

NUMBERS = (VectorKey("speed", 2), torch.tensor([[1.0, -2.0], [3.0, -torch.inf]]))
CLASSES = (VectorKey("gear", 2, (3, 2)), torch.tensor([[2, 1], [-1, 0]]))
FLAGS = (VectorKey("lamps", 2, (2, 2)), torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8))


@pytest.mark.parametrize(("key", "value"), [NUMBERS, CLASSES])
def test_a_missing_observation_reads_as_zeros_and_costs_nothing(key, value):
    code = key.encode(value)
    assert code[0].any()
    assert not code[1].any()
    raw = torch.randn(2, key.width, requires_grad=True)
    loss = vector_loss(key, raw, value)
    assert loss[0] > 0
    assert loss[1] == 0
    (slope,) = torch.autograd.grad(loss.sum(), raw)
    assert torch.isfinite(slope).all()
    assert not slope[1].any()


def test_unsigned_integers_are_never_missing():
    key, value = FLAGS
    assert key.encode(value).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert (vector_loss(key, torch.zeros(2, 4), value) > 0).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (ActionKey("arm", (2,), "float32", ()), torch.tensor([[0.5, 0.5], [-torch.inf, 0.5]])),
        (ActionKey("button", (), "int64", (3,)), torch.tensor([1, -1])),
    ],
)
def test_a_missing_action_reads_as_zeros(key, value):
    code = key.encode(value)
    assert code[0].any()
    assert not code[1].any()
