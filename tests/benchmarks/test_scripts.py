"""A benchmark reads its line before it measures, and a result says what measured it."""

import ast
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = [path for path in sorted(BENCHMARKS.glob("*.py")) if "__main__" in path.read_text()]
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_reads_its_line(script: Path) -> None:
    """Without a parser, ``--help`` measures, and overwrites a result."""
    names = {
        node.attr
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert "ArgumentParser" in names
    assert "parse_args" in names


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.stem)
def test_a_result_comes_from_a_measurement(result: Path) -> None:
    assert "--help" not in str(json.loads(result.read_text()).get("command", ""))
