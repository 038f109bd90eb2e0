"""Rules of the code that a machine can keep: exports, errors, help texts, light imports."""

import ast
import dataclasses
import importlib
import importlib.util
import pickle
import pkgutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import worldloom
import worldloom_client
import worldloom_dist
from worldloom.core import exceptions

ROOT = Path(__file__).parents[2]
NAMES = sorted(
    info.name
    for package in (worldloom, worldloom_dist, worldloom_client)
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
)
SAMPLES = {
    "ConfigurationError": ("workers must be >= 1", "run"),
    "ShapeMismatchError": ("obs", (3,), (4,)),
    "ModelNotFoundError": ("tdmpc", ("tdmpc2",)),
    "MissingDependencyError": ("atari envs", "ale-py", "atari"),
}


def source(name: str) -> Path:
    path = ROOT / (name.replace(".", "/") + ".py")
    return path if path.exists() else ROOT / name.replace(".", "/") / "__init__.py"


@pytest.mark.parametrize("name", NAMES)
def test_every_public_module_lists_what_it_exports(name: str) -> None:
    tree = ast.parse(source(name).read_text())
    exported = [
        n.value
        for n in tree.body
        if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
    ]
    defines = [
        n
        for n in tree.body
        if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
    ]
    if not exported:
        assert not defines, f"{name} defines {defines[0].name} and has no __all__"
        return
    listed = ast.literal_eval(exported[0])
    assert listed == sorted(
        listed, key=lambda n: (not n.isupper(), n[0].islower(), n)
    ) or listed == sorted(listed), name
    assert len(set(listed)) == len(listed), name


@pytest.mark.parametrize("name", exceptions.__all__)
def test_every_error_survives_pickling(name: str) -> None:
    kind = getattr(exceptions, name)
    if not isinstance(kind, type):
        return
    error = kind(*SAMPLES.get(name, ("something went wrong",)))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert isinstance(again, exceptions.WorldLoomError)


def test_durations_of_one_name_have_one_value() -> None:
    """A constant that two modules give different values is two ideas under one name; how long roles
    wait for each other is told in ``worldloom_dist.runtime.deadlines`` alone.
    """
    values: dict[str, dict[str, str]] = {}
    for name in NAMES:
        for node in ast.parse(source(name).read_text()).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Name) and target.id.endswith(("_S", "_MS")):
                values.setdefault(target.id, {})[name] = ast.unparse(node.value)
    torn = {name: found for name, found in values.items() if len(set(found.values())) > 1}
    assert not torn


def config_classes() -> list[type]:
    from worldloom.algorithms.registry import ALGORITHMS, agent_names, make_agent_config
    from worldloom_dist.run.config import RunConfig

    found = [
        RunConfig,
        *(t for t in typing.get_type_hints(RunConfig).values() if dataclasses.is_dataclass(t)),
    ]
    first = {name.partition(":")[0]: name for name in agent_names()}
    return found + [type(make_agent_config(first[algorithm])) for algorithm in ALGORITHMS]


def test_every_config_field_has_a_line_of_help() -> None:
    owners = {owner for kind in config_classes() for owner in kind.__mro__}
    for kind in filter(dataclasses.is_dataclass, owners):
        tree = ast.parse(source(kind.__module__).read_text())
        body = next(
            n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind.__name__
        ).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and node.target.id != "name":
                has_help = (
                    isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                    and isinstance(after.value.value, str)
                )
                assert has_help, f"{kind.__name__}.{node.target.id} has no help string below it"


def modules_after(code: str) -> set[str]:
    script = code + "\nimport sys; print(' '.join(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(out.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import worldloom",
        "import worldloom_dist.run.cli, worldloom_dist.run.presets; "
        "worldloom_dist.run.cli.parse(['--workers', '3'])",
        "import worldloom.data.sequence_buffer, worldloom.envs.factory, "
        "worldloom.algorithms.registry, worldloom.algorithms.configs",
        "import worldloom_dist.actors.rollout_worker, worldloom_dist.actors.acting, "
        "worldloom_dist.replay.shard",
        "import worldloom_dist.run.builders, worldloom_dist.run.report, "
        "worldloom_dist.launch, worldloom_dist.metrics.hub",
    ],
)
def test_light_rooms_import_neither_torch_nor_ray(code: str) -> None:
    assert not {"torch", "ray"} & modules_after(code)


def test_roles_that_do_not_compute_import_no_torch() -> None:
    code = "import " + ", ".join(
        f"worldloom_dist.runtime.{kind}_role" for kind in ("worker", "coordinator", "shard", "hub")
    )
    assert "torch" not in modules_after(code)
    assert "torch" not in modules_after("import worldloom_dist.runtime.driver")


NEEDS_TRITON = (
    "worldloom.nn.kernels.launches",
    "worldloom.nn.kernels.triton_cell",
    "worldloom.nn.kernels.triton_losses",
)
"""Imported on a GPU alone; torch brings Triton for CUDA only."""


def test_every_module_imports() -> None:
    for name in NAMES:
        if name in NEEDS_TRITON and importlib.util.find_spec("triton") is None:
            continue
        importlib.import_module(name)
