import contextlib

import pytest
import torch

from worldloom.nn.precision import autocast


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "float32", None),
        ("cpu", "auto", None),
        ("cpu", "default", None),
        ("cpu", "bfloat16", ("cpu", torch.bfloat16)),
        ("cuda", "float32", None),
        ("cuda", "auto", ("cuda", torch.bfloat16)),
        ("cuda", "default", ("cuda", torch.bfloat16)),
        ("cuda", "bfloat16", ("cuda", torch.bfloat16)),
    ],
)
def test_auto_is_half_precision_on_cuda_only(monkeypatch, device, precision, expected):
    entered = []
    monkeypatch.setattr(
        torch, "autocast", lambda *what: entered.append(what) or contextlib.nullcontext()
    )
    with autocast(torch.device(device), precision):
        assert entered == ([] if expected is None else [expected])


def test_half_precision_is_of_products_and_not_of_what_they_multiply():
    weight = torch.eye(2)
    with autocast(torch.device("cpu"), "bfloat16"):
        assert (weight @ weight).dtype == torch.bfloat16
    assert (weight @ weight).dtype == weight.dtype == torch.float32
