"""Weights travel without loss and are refused when damaged; metric values merge in any grouping."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as safetensors_load

from worldloom.core.exceptions import CheckpointError
from worldloom.core.metrics import Histogram, HistogramBuilder, Last, Max, Mean, Sum, merge_into
from worldloom.core.sequence import PolicyVersion
from worldloom.core.weights import WeightsSnapshot
from worldloom.nn.snapshot import pack, unpack_into


def tensors() -> dict[str, torch.Tensor]:
    return {
        "w": torch.linspace(-1, 1, 6).reshape(2, 3),
        "steps": torch.tensor(7),
        "odd": torch.ones(3, dtype=torch.uint8),
    }


def test_weights_come_back_through_bytes():
    snapshot = pack(tensors()).with_version(PolicyVersion(2, 5))
    again = WeightsSnapshot.from_bytes(snapshot.to_bytes())
    assert again.version == (2, 5)
    target = {name: torch.zeros_like(value) for name, value in tensors().items()}
    unpack_into(again, target)
    assert all(torch.equal(target[name], value) for name, value in tensors().items())


def test_bfloat16_halves_the_bytes_and_stays_close():
    full = pack({"w": tensors()["w"]})
    half = pack({"w": tensors()["w"]}, dtype="bfloat16")
    assert half.nbytes * 2 == full.nbytes
    target = {"w": torch.zeros(2, 3)}
    unpack_into(half, target)
    assert torch.allclose(target["w"], tensors()["w"], atol=2**-8)


def test_the_bytes_are_a_safetensors_file():
    loaded = safetensors_load(pack(tensors()).to_bytes())
    assert np.array_equal(loaded["w"], tensors()["w"].numpy())


def test_a_snapshot_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        pack(tensors()).arrays()["w"][0] = 1


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("w"),
        lambda t: t.update(w=torch.zeros(3, 3)),
        lambda t: t.update(new=torch.zeros(1)),
    ],
)
def test_weights_that_do_not_fit_are_refused_whole(change):
    target = {name: torch.zeros_like(value) for name, value in tensors().items()}
    change(target)
    before = {name: value.clone() for name, value in target.items()}
    with pytest.raises(CheckpointError, match="tensor"):
        unpack_into(pack(tensors()), target)
    assert all(torch.equal(target[name], value) for name, value in before.items())


@pytest.mark.parametrize("cut", [0, 4, 20, -3])
def test_damaged_bytes_are_refused(cut):
    data = pack(tensors()).to_bytes()
    with pytest.raises(CheckpointError):
        WeightsSnapshot.from_bytes(data[:cut])


METRICS = {
    Mean: st.builds(Mean, st.integers(-100, 100), st.integers(1, 5)),
    Sum: st.builds(Sum, st.integers(-100, 100)),
    Max: st.builds(Max, st.integers(-100, 100)),
    Last: st.builds(Last, st.integers(), st.integers(0, 3)),
    Histogram: st.lists(st.integers(0, 20), max_size=5).map(
        lambda values: Histogram.of((1.0, 5.0, 10.0), *values)
    ),
}


@pytest.mark.parametrize("kind", METRICS)
@settings(max_examples=50, derandomize=True, deadline=None)
@given(data=st.data())
def test_merging_is_associative(kind, data):
    a, b, c = (data.draw(METRICS[kind]) for _ in range(3))
    assert a.merge(b).merge(c) == a.merge(b.merge(c))


def test_values_are_what_they_say():
    assert Mean(6, 3).merge(Mean(2, 1)).value == 2
    histogram = Histogram.of((1.0, 10.0), 0.5, 1.0, 7.0, 99.0)
    assert (histogram.counts, histogram.count, histogram.value) == ((2, 1, 1), 4, 107.5 / 4)
    assert (histogram.quantile(0.5), histogram.quantile(0.99)) == (1.0, 10.0)
    assert math.isnan(Mean(0, 0).value)
    target = {"n": Sum(1)}
    merge_into(target, {"n": Sum(2), "m": Max(3)})
    assert target == {"n": Sum(3), "m": Max(3)}
    with pytest.raises(TypeError, match="'n' was a Sum"):
        merge_into(target, {"n": Max(1)})


def test_a_tally_gives_the_histogram_of_its_values_and_starts_anew():
    tally = HistogramBuilder((1.0, 5.0))
    for value in (0.5, 5.0, 7.0):
        tally.add(value)
    assert tally.take() == Histogram.of((1.0, 5.0), 0.5, 5.0, 7.0)
    assert tally.take().count == 0
