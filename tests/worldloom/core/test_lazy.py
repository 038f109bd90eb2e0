"""Names and modules of a package that load when they are used."""

import subprocess
import sys

import pytest

import worldloom.core

FORMER = (
    "core.config",
    "core.registry",
    "models.base",
    "models.dreamer.world_model",
    "models.mlp.planning",
    "models.tdmpc2.world_model",
    "training",
)


@pytest.mark.parametrize("name", FORMER)
def test_a_module_is_reached_by_its_package_alone(name: str) -> None:
    code = f"import worldloom; print(worldloom.{name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [f"worldloom.{name}"], done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(worldloom.core, "no_such_module")
    assert not hasattr(worldloom.core, "__wrapped__")
