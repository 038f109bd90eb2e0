"""What of Ray's internals is used is there in this version, and is not missed in another."""

import ast
import inspect
from pathlib import Path

import pytest
import ray
from ray._private import state, worker
from ray._private.node import Node

import worldloom_dist
from worldloom_dist.runtime import ray_internals
from worldloom_dist.runtime.ray_internals import draining_nodes, is_known, own_servers


def test_this_ray_has_what_is_used_of_it() -> None:
    assert is_known(ray.__version__)
    assert {"check_alive", "allow_graceful"} <= inspect.signature(
        Node.kill_all_processes
    ).parameters.keys()
    assert "self.all_processes" in inspect.getsource(Node.__init__)
    assert list(inspect.signature(state.GlobalState.get_draining_nodes).parameters) == ["self"]
    assert hasattr(worker, "_global_node")


@pytest.mark.parametrize(
    ("version", "known"),
    [
        ("2.55.0", True),
        ("2.60.1rc0", True),
        ("2.54.9", False),
        ("3.0.0", False),
        ("nightly", False),
    ],
)
def test_only_versions_that_the_project_allows_are_known(version: str, known: bool) -> None:
    assert is_known(version) == known


def test_the_known_versions_are_those_of_the_project() -> None:
    text = (Path(worldloom_dist.__file__).parents[1] / "pyproject.toml").read_text()
    first = ".".join(map(str, ray_internals.FIRST_KNOWN))
    assert f'"ray[default,rllib]>={first},<{ray_internals.FIRST_UNKNOWN[0]}"' in text


def test_an_unknown_ray_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "__version__", "3.1.0")
    node = object()
    monkeypatch.setattr(worker, "_global_node", node)
    monkeypatch.setattr(state.state, "get_draining_nodes", pytest.fail)
    assert own_servers() == []
    assert draining_nodes() == set()


def test_internals_that_changed_cost_nothing_but_their_use(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ray_internals.say_once.cache_clear()
    monkeypatch.setattr(worker, "_global_node", object())
    monkeypatch.delattr(state.GlobalState, "get_draining_nodes")
    with caplog.at_level("INFO", ray_internals.__name__):
        assert own_servers() == []
        assert draining_nodes() == draining_nodes() == set()
    assert caplog.text.count("Ray's internals are not used (AttributeError") == 2


def test_no_other_module_reaches_into_ray() -> None:
    package = Path(worldloom_dist.__file__).parent
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        if path != Path(ray_internals.__file__)
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ray._"))
        or (isinstance(node, ast.Import) and any(a.name.startswith("ray._") for a in node.names))
        or (isinstance(node, ast.Attribute) and ast.unparse(node).startswith("ray._"))
    ]
    assert not found
