"""Examples in docstrings of the library's door run."""

import doctest
import importlib

import pytest

MODULES = [
    "worldloom.algorithms.model_registry",
    "worldloom.algorithms.mlp.world_model",
    "worldloom.algorithms.dreamerv3.world_model",
    "worldloom.algorithms.tdmpc2.world_model",
    "worldloom.training.data",
    "worldloom.training.trainer",
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
