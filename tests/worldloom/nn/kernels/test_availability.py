"""Kernels are used where they are right, and nowhere else. A module that stands in for Triton's
launches says what a GPU would find.
"""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from worldloom.nn.kernels import availability, definitions, has_kernels
from worldloom.nn.kernels.availability import SWITCH, kernel_problem, try_kernels
from worldloom.nn.kernels.ops import LAUNCHES, SCHEMAS
from worldloom.nn.kernels.trial import cases

CPU = torch.device("cpu")


@pytest.fixture
def launches(monkeypatch):
    """Right ones, on whatever device."""
    fake = SimpleNamespace(**{name: getattr(definitions, name) for name in SCHEMAS})
    monkeypatch.setitem(sys.modules, LAUNCHES, fake)
    return fake


def test_right_kernels_have_no_problem(launches):
    assert kernel_problem(CPU) == ""


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_kernel_that_raises_is_named_by_its_error(launches, name):
    def no_compiler(*args):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    setattr(launches, name, no_compiler)
    assert kernel_problem(CPU) == "RuntimeError: Failed to find C compiler."


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_kernel_with_wrong_numbers_is_found(launches, name, wrong):
    written = next(case.written for case in cases("cpu", torch.float32) if case.name == name)

    def almost(*args):
        getattr(definitions, name)(*args)
        place = next(k for k in written if args[k].is_floating_point())
        args[place][(0,) * args[place].ndim] += wrong

    setattr(launches, name, almost)
    assert kernel_problem(CPU).startswith(f"{name} in torch.float32 is wrong by")


def test_without_triton_there_are_none(monkeypatch):
    monkeypatch.setitem(sys.modules, LAUNCHES, None)
    assert kernel_problem(CPU).startswith("ModuleNotFoundError: ")


def test_one_line_says_why_and_the_trial_is_not_repeated(monkeypatch, caplog):
    tries = []
    monkeypatch.setattr(
        availability, "kernel_problem", lambda device: tries.append(device) or "no driver"
    )
    try_kernels.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not has_kernels(torch.device("cuda:3"))
        assert not has_kernels(torch.device("cuda:3"))
    try_kernels.cache_clear()
    assert tries == [torch.device("cuda:3")]
    assert [record.getMessage() for record in caplog.records] == [
        "fused kernels are not used on cuda:3: no driver; updates run on torch's own operators"
    ]


def test_they_are_used_on_cuda_and_in_traces_unless_switched_off(monkeypatch):
    monkeypatch.setattr(availability, "try_kernels", lambda device: True)
    monkeypatch.delenv(SWITCH, raising=False)
    assert [has_kernels(torch.device(kind)) for kind in ("cpu", "meta", "cuda")] == [
        False,
        True,
        True,
    ]
    monkeypatch.setenv(SWITCH, "off")
    assert not has_kernels(torch.device("cuda"))
    assert not has_kernels(torch.device("meta"))
    monkeypatch.setenv(SWITCH, "of")
    with pytest.raises(ValueError, match="WORLDLOOM_KERNELS must be on or off, got 'of'"):
        has_kernels(torch.device("cuda"))
