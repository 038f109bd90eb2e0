"""Imports go down, never up, sideways or in a circle, also those that stand in the code as text.

ray stays in ``worldloom_dist.rpc``, ``.runtime`` and ``.submit``, and in the suite of RLlib's envs.
"""

import ast
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS: list[set[str]] = [  # low -> high; packages of one layer do not know each other
    {"worldloom_client"},  # knows nothing of ours, and nothing but the gateway knows it
    {"worldloom.core"},
    {"worldloom.nn", "worldloom.data", "worldloom.envs"},
    {
        "worldloom.algorithms.dreamerv3.config",
        "worldloom.algorithms.tdmpc2.config",
        "worldloom.algorithms.mlp.config",
    },
    {"worldloom.algorithms.configs"},
    {
        "worldloom.algorithms.pretrained",
        "worldloom.algorithms.inputs",
        "worldloom.algorithms.single_space",
    },
    {"worldloom.algorithms.base"},
    {
        "worldloom.algorithms.dreamerv3",
        "worldloom.algorithms.tdmpc2",
        "worldloom.algorithms.mlp",
    },
    {"worldloom.algorithms.r2dreamer"},  # an heir of dreamerv3
    {"worldloom.algorithms.finding"},
    {"worldloom.algorithms.registry", "worldloom.algorithms.model_registry"},
    {"worldloom.training", "worldloom.evaluation", "worldloom.testing"},
    {"worldloom.distributed", "worldloom.hub.fetching"},
    {"worldloom.export"},
    {"worldloom.hub"},
    {"worldloom.factory", "worldloom.agent", "worldloom.completion"},
    {"worldloom.catalogue"},
    {"worldloom.commands"},
    {"worldloom.__main__"},
    {
        "worldloom_dist.run.config",
        "worldloom_dist.ports",
        "worldloom_dist.metrics.media",
        "worldloom_dist.metrics.names",
        "worldloom_dist.run",
    },
    {
        "worldloom_dist.run.view",
        "worldloom_dist.run.machine",
        "worldloom_dist.run.versions",
        "worldloom_dist.run.text_table",
        "worldloom_dist.run.slurm",
        "worldloom.nn.cuda_graphs",
    },
    {
        "worldloom_dist.run.bottleneck",
        "worldloom_dist.run.counts",
        "worldloom_dist.run.console",
        "worldloom_dist.run.folder",
        "worldloom_dist.run.signals",
        "worldloom_dist.run.intervals",
        "worldloom_dist.run.curves",
        "worldloom_dist.run.line",
        "worldloom_dist.run.settings",
    },
    {
        "worldloom_dist.run.benchmarks",
        "worldloom_dist.run.claim",
        "worldloom_dist.run.listing",
        "worldloom_dist.run.standby",
    },
    {"worldloom_dist.run.presets"},
    {"worldloom_dist.page"},
    {
        "worldloom_dist.actors",
        "worldloom_dist.replay",
        "worldloom_dist.learner",
        "worldloom_dist.metrics",
    },
    {
        "worldloom_dist.run.plan",
        "worldloom_dist.run.closing",
        "worldloom_dist.run.drawing",
        "worldloom_dist.run.precision",
    },
    {
        "worldloom_dist.run.held_out",
        "worldloom_dist.run.initial_agent",
        "worldloom_dist.run.tasks",
    },
    {
        "worldloom_dist.run.binding_watch",
        "worldloom_dist.run.builders",
        "worldloom_dist.run.outcome",
        "worldloom_dist.run.pace",
        "worldloom_dist.run.resuming",
    },
    {"worldloom_dist.gateway"},
    {
        "worldloom_dist.run.report",
        "worldloom_dist.lockstep.workers",
        "worldloom_dist.lockstep.gateway",
        "worldloom_dist.run.rehearsal",
        "worldloom_dist.run.model_check",
    },
    {"worldloom_dist.run.evaluations", "worldloom_dist.run.checks"},
    {"worldloom_dist.run.announcing"},
    {"worldloom_dist.run.loop", "worldloom_dist.lockstep.evaluator"},
    {"worldloom_dist.rpc"},
    {"worldloom_dist.interfaces"},
    {"worldloom_dist.lockstep.runtime", "worldloom_dist.runtime"},
    {
        "worldloom_dist.run.agent_help",
        "worldloom_dist.run.flag_hints",
        "worldloom_dist.run.help_texts",
    },
    {"worldloom_dist.run.cli"},
    {"worldloom_dist.seeds"},
    {
        "worldloom_dist.run.slurm_command",
        "worldloom_dist.launch",
        "worldloom_dist.evaluate",
        "worldloom_dist.check_env",
        "worldloom_dist.replay.__main__",
    },
    {"worldloom_dist.serve"},
    {"worldloom_dist.job", "worldloom_dist.enjoy"},
    {"worldloom_dist.submit"},
    {
        "worldloom_dist.status",
        "worldloom_dist.runs",
        "worldloom_dist.plot",
        "worldloom_dist.report",
        "worldloom_dist.doctor",
    },
    {"worldloom_dist.reproduce"},
]
RANK = {package: rank for rank, packages in enumerate(LAYERS) for package in packages}
ALIASES = {
    *("worldloom", "worldloom.core", "worldloom.core.config", "worldloom.core.registry"),
    *("worldloom.models", "worldloom.agents"),
}
"""Public and former names of what lives elsewhere (the first two as packages, without their
modules): above everything, and for users only.
"""
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("worldloom", "worldloom_dist", "worldloom_client")
    for path in sorted((ROOT / package).rglob("*.py"))
}
RAY_PACKAGES = {
    "worldloom.envs.suites.rllib",
    "worldloom_dist.rpc",
    "worldloom_dist.runtime",
    "worldloom_dist.submit",
}
DOTTED = re.compile(r"worldloom(_dist)?(\.\w+)+(:\w+)?")
LAZY_TABLE = "_HOMES"
"""Name of the tables of ``worldloom.core.lazy``: module below ``worldloom`` -> names."""


def package_of(module: str) -> str | None:
    homes = [p for p in RANK if module == p or module.startswith(p + ".")]
    return max(homes, key=len, default=None)


def is_alias(module: str) -> bool:
    return module in ALIASES or module.startswith(("worldloom.models.", "worldloom.agents."))


def module_of(name: str, known: Mapping[str, Path]) -> str | None:
    """The module that an imported name is, or lives in."""
    name = name.partition(":")[0]
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Absolute names imported anywhere in a file, function bodies and TYPE_CHECKING blocks
    included.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the absolute name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names_in_text(tree: ast.AST) -> Iterator[str]:
    """Modules that a file names as text: ``import_module("...")``, ``"module:attribute"``, the
    values of tables, and the keys of a lazy table.
    """
    programs = set(started_programs(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if DOTTED.fullmatch(node.value) and node not in programs:
                yield node.value
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == LAZY_TABLE:
            assert isinstance(node.value, ast.Dict), "a lazy table is a dict display"
            for key in node.value.keys:
                assert isinstance(key, ast.Constant)
                yield f"worldloom.{key.value}"


def started_programs(tree: ast.AST) -> Iterator[ast.expr]:
    """Modules that a file starts as processes, ``python -m MODULE``: not imported here."""
    for node in ast.walk(tree):
        for word, after in itertools.pairwise(getattr(node, "elts", ())):
            if isinstance(word, ast.Constant) and word.value == "-m":
                yield after


def without_type_checking(tree: ast.Module) -> ast.Module:
    """The file without what only a type checker reads."""
    body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING")
    ]
    return ast.Module(body, [])


def mistakes_of(module: str, tree: ast.Module, known: Mapping[str, Path]) -> list[str]:
    """What is wrong with the imports of a file, a sentence each."""
    if is_alias(module):
        return []
    home = package_of(module)
    if home is None:
        is_package = "." not in module or known[module].name == "__init__.py"
        return [] if is_package else [f"{module} has no layer: add it to LAYERS"]
    wrong = []
    for name in [*imported_names(tree), *names_in_text(tree)]:
        target = module_of(name, known)
        package = package_of(target or name)
        if name.split(".")[0] == "ray" and not RAY_PACKAGES & {home, module}:
            wrong.append(f"{module} imports ray; only {sorted(RAY_PACKAGES)} may")
        elif target is not None and is_alias(target) and name not in ALIASES:
            if target != "worldloom":
                wrong.append(f"{module} must not import {name}: {target} is an alias for users")
        elif package == "worldloom_client" and module.startswith("worldloom."):
            wrong.append(f"{module} must not import {name}: the library knows no clients")
        elif package is not None and package != home and RANK[package] >= RANK[home]:
            wrong.append(f"{module} must not import {name} ({package} is not below {home})")
    return wrong


def circles(trees: Mapping[str, ast.Module], known: Mapping[str, Path]) -> list[list[str]]:
    """Groups of modules that import each other, in whatever way and however late; aliases, which
    nothing imports, left out.
    """
    edges = {}
    for module, tree in trees.items():
        tree = without_type_checking(tree)
        names = [*imported_names(tree), *names_in_text(tree)]
        found = {module_of(name, known) for name in names}
        edges[module] = {m for m in found if m and m != module and not is_alias(m)}
    return [group for group in strong_components(edges) if len(group) > 1]


def strong_components(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that reach each other."""
    reach = {module: set(others) for module, others in edges.items()}
    changed = True
    while changed:
        changed = False
        for module, others in reach.items():
            further = others.union(*(reach.get(other, set()) for other in others))
            changed |= further != others
            reach[module] = further
    groups = {
        tuple(sorted({module, *(o for o in others if module in reach.get(o, ()))}))
        for module, others in reach.items()
        if module in others
    }
    return [list(group) for group in sorted(groups)]


TREES = {module: ast.parse(path.read_text()) for module, path in SOURCES.items()}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module: str) -> None:
    assert not mistakes_of(module, TREES[module], SOURCES)


def test_no_modules_import_each_other() -> None:
    assert not circles(TREES, SOURCES)


@pytest.mark.parametrize("module", [module for module in SOURCES if is_alias(module)])
def test_an_alias_holds_nothing_of_its_own(module: str) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.If, ast.Assign, ast.Expr)
    for node in TREES[module].body:
        is_hook = isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__")
        assert isinstance(node, allowed) or is_hook, f"{module}:{node.lineno}"


UP_IN_TEXT = """
import importlib

def __getattr__(name):
    return getattr(importlib.import_module("worldloom.training.trainer"), name)
"""
UP_IN_A_TABLE = '_HOMES = {"training.trainer": ("Trainer",)}'
UP_AS_ATTRIBUTE = 'MODELS = {"mine": "worldloom.factory:create_world_model"}'
THROUGH_AN_ALIAS = "from worldloom.models.base import BaseWorldModel"
PLAIN = "def f():\n    import ray\n    from worldloom_dist.lockstep.runtime import x\n"


@pytest.mark.parametrize(
    "code", [UP_IN_TEXT, UP_IN_A_TABLE, UP_AS_ATTRIBUTE, THROUGH_AN_ALIAS, PLAIN]
)
def test_the_layer_test_can_fail(code: str) -> None:
    assert RANK["worldloom.core"] < RANK["worldloom.data"] < RANK["worldloom_dist.replay"]
    assert mistakes_of("worldloom.core.files", ast.parse(code), SOURCES)
    assert not mistakes_of("worldloom.core.files", ast.parse("import json"), SOURCES)


def test_the_circle_test_can_fail() -> None:
    codes = {
        "worldloom.core.a": "def f():\n    import worldloom.core.b\n",
        "worldloom.core.b": 'HOME = "worldloom.core.c:C"',
        "worldloom.core.c": "from worldloom.core.a import f",
        "worldloom.core.d": "import worldloom.core.a",
    }
    known = {module: Path(module) for module in codes}
    found = circles({module: ast.parse(code) for module, code in codes.items()}, known)
    assert found == [["worldloom.core.a", "worldloom.core.b", "worldloom.core.c"]]
