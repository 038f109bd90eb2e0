"""Tests see what a caller sees: none reads a private attribute of our classes and modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]

FOREIGN = {
    "_global_node": "Ray's: what a fake of Ray's internals stands in for",
    "_actions": "argparse has no other list of a parser's options",
    "_exit": "os._exit",
    "_replace": "a named tuple's",
    "_config_registry": "part of the interface of 0.1, which is kept",
    "_unsafe_view": "torch's name of an operator",
    "_schema": "torch's description of an operator",
    "_pytree": "torch.utils._pytree",
    "_is_protocol": "typing has no other sign of a Protocol",
    "_C": "torch._C",
    "_disabled_torch_function_impl": "torch._C's",
    "_device_dtype_check_for_fused": "torch.optim's",
    "_dynamo": "torch._dynamo",
}


def private_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each private attribute that is read of something else than itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            name = node.attr
            owner = node.value
            is_own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
            is_super = isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super"
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).rpartition(".")[2] in ("setattr", "getattr", "hasattr")
            and len(node.args) > 1
            and isinstance(node.args[1], ast.Constant)
        ):
            name = str(node.args[1].value)
            is_own = is_super = False
        else:
            continue
        is_private = name.startswith("_") and not name.startswith("__")
        if is_private and not (is_own or is_super):
            yield node.lineno, name


def private_reads(path: Path) -> list[str]:
    return [
        f"{path.relative_to(TESTS)}:{line}: {name}"
        for line, name in private_names(path)
        if name not in FOREIGN
    ]


def test_no_test_reads_a_private_attribute():
    found = [line for path in sorted(TESTS.rglob("*.py")) for line in private_reads(path)]
    assert not found, "\n".join(found)


def test_every_foreign_name_is_still_read():
    read = {name for path in TESTS.rglob("*.py") for _, name in private_names(path)}
    assert sorted(FOREIGN.keys() - read) == []


def test_a_private_read_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "TESTS", tmp_path)
    path = tmp_path / "test_it.py"
    path.write_text(
        "def test(run, monkeypatch):\n"
        "    run._plan\n"
        '    monkeypatch.setattr(run, "_finish", 1)\n'
        "    run.plan, run.__dict__\n"
    )
    assert private_reads(path) == ["test_it.py:2: _plan", "test_it.py:3: _finish"]
