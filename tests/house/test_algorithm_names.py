"""The distributed system knows agents by what they say of themselves, never by their names: only
tables of presets and of published results, and two defaults, name one.
"""

import ast
from pathlib import Path

import worldloom_dist
from worldloom.algorithms.registry import ALGORITHMS

ROOT = Path(worldloom_dist.__file__).parent
TABLES = {
    "check_env.py": "with which agent an env of discrete actions is tried",
    "reproduce/peers.py": "how the authors' code is run",
    "reproduce/targets.py": "published results",
    "reproduce/tdmpc2_authors.py": "how the authors' code is run",
    "run/benchmarks.py": "presets",
    "run/config.py": "the demo's agent",
}


def names_in(path):
    """Constants that are an algorithm's name, or ``algorithm:preset``; sentences do not count."""
    constants = {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return sorted(c for c in constants if c.partition(":")[0] in ALGORITHMS and " " not in c)


def test_only_tables_and_defaults_name_an_algorithm():
    found = {
        str(path.relative_to(ROOT)): names
        for path in sorted(ROOT.rglob("*.py"))
        if (names := names_in(path))
    }
    assert found.keys() == TABLES.keys(), found
