"""A CPU's products are measured once, and remembered."""

import json

import pytest

from worldloom.nn import product_speed as module
from worldloom.nn.product_speed import ProductSpeed, measured_speed, product_speed

SHAPES = [(8, 16, 16)]


@pytest.fixture
def measured(monkeypatch):
    """How often was measured."""
    calls = []

    def measure(shapes):
        calls.append(list(shapes))
        return ProductSpeed(4.0, 2.0)

    monkeypatch.setattr(module, "measured_speed", measure)
    return calls


def test_the_faster_precision_is_taken_only_where_it_is_worth_it():
    assert ProductSpeed(2.0, 1.0).precision == "bfloat16"
    assert ProductSpeed(1.0, 2.0).precision == "float32"
    assert ProductSpeed(1.05, 1.0).precision == "float32", "too little for 16 bits"
    assert ProductSpeed(2.0, 1.0).share == 0.5


def test_a_measurement_takes_a_moment_and_sets_the_threads_back():
    import torch

    threads = torch.get_num_threads()
    found = measured_speed(SHAPES)
    assert found.float32_ms > 0
    assert found.bfloat16_ms > 0
    assert torch.get_num_threads() == threads


def test_what_was_measured_is_remembered_by_cpu_torch_and_layers(tmp_path, measured, monkeypatch):
    memory = tmp_path / "below" / "precision.json"
    assert product_speed(SHAPES, memory) == ProductSpeed(4.0, 2.0)
    assert product_speed(SHAPES, memory) == ProductSpeed(4.0, 2.0)
    assert len(measured) == 1
    product_speed([(8, 16, 32)], memory)
    assert len(measured) == 2
    monkeypatch.setattr(module, "cpu_name", lambda: "another one")
    product_speed(SHAPES, memory)
    assert len(measured) == 3
    assert len(json.loads(memory.read_text())) == 3


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}'])
def test_a_memory_that_cannot_be_read_is_measured_again(tmp_path, measured, text):
    memory = tmp_path / "precision.json"
    memory.write_text(text)
    assert product_speed(SHAPES, memory).precision == "bfloat16"
    assert len(measured) == 1


@pytest.mark.parametrize("value", [None, {}, {"float32_ms": 0.0, "bfloat16_ms": 1.0}, {"x": "y"}])
def test_an_entry_that_makes_no_sense_is_measured_again(tmp_path, measured, value):
    memory = tmp_path / "precision.json"
    product_speed(SHAPES, memory)
    (key,) = json.loads(memory.read_text())
    memory.write_text(json.dumps({key: value}))
    assert product_speed(SHAPES, memory) == ProductSpeed(4.0, 2.0)
    assert len(measured) == 2


def test_a_memory_that_cannot_be_written_costs_a_measurement_each(tmp_path, measured):
    (tmp_path / "file").write_text("mine")
    for _ in range(2):
        assert product_speed(SHAPES, tmp_path / "file/below.json").precision == "bfloat16"
    assert len(measured) == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx512f"}, False), (set(), False), ({"avx512_bf16"}, True), ({"amx_bf16", "avx2"}, True)],
)
def test_the_instruction_is_asked_of_the_kernel(monkeypatch, flags, expected):
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset(flags))
    assert module.has_half_products() is expected
