"""Every line of the threat model that closes something names a test that exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/threat-model.md").read_text()
LINES = [line for line in PAGE.splitlines() if line.startswith("| ") and " Test |" not in line]


def test_every_line_that_closes_something_names_a_test() -> None:
    assert len(LINES) > 20
    for line in LINES:
        _, _, _, closed, test, _ = map(str.strip, line.split("|"))
        assert re.fullmatch(r"`tests/[\w/]+\.py::\w+`", test) or closed == test == "-", line


def test_every_test_that_is_named_exists() -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE):
        functions = [
            node.name
            for node in ast.walk(ast.parse((ROOT / path).read_text()))
            if isinstance(node, ast.FunctionDef)
        ]
        assert name in functions, f"{path} has no {name}"
