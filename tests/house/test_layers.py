"""Imports go down, never up or sideways; ray stays in ``worldloom_dist.rpc``, ``.runtime`` and
``.submit``.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS: list[set[str]] = [  # low -> high; packages on one layer do not know each other
    {"worldloom_client"},  # alone at the bottom: it is installed without the rest
    {"worldloom.core"},
    {"worldloom.nn", "worldloom.data", "worldloom.envs"},
    {"worldloom.models.pretrained", "worldloom.models.door"},
    {"worldloom.models.base"},
    {"worldloom.models.dreamer", "worldloom.models.tdmpc2", "worldloom.models.mlp"},
    {"worldloom.agents.dreamerv3", "worldloom.agents.tdmpc2"},
    {"worldloom.agents.registry", "worldloom.models.public"},
    {"worldloom.training", "worldloom.evaluation", "worldloom.factory", "worldloom.testing"},
    {"worldloom.commands"},
    {"worldloom.__main__"},
    {
        "worldloom_dist.config",
        "worldloom_dist.ports",
        "worldloom_dist.metric_names",
        "worldloom_dist.run",
    },
    {"worldloom_dist.view", "worldloom_dist.machine", "worldloom_dist.cuda_graphs"},
    {
        "worldloom_dist.bottleneck",
        "worldloom_dist.presets",
        "worldloom_dist.console",
        "worldloom_dist.run_folder",
        "worldloom_dist.stopping",
        "worldloom_dist.run.intervals",
    },
    {
        "worldloom_dist.actors",
        "worldloom_dist.replay",
        "worldloom_dist.learner",
        "worldloom_dist.metrics",
    },
    {"worldloom_dist.plan"},
    {"worldloom_dist.assembly", "worldloom_dist.outcome"},
    {"worldloom_dist.gateway"},
    {"worldloom_dist.local_gateway"},
    {"worldloom_dist.report", "worldloom_dist.local_workers", "worldloom_dist.rehearsal"},
    {"worldloom_dist.run.evaluations"},
    {"worldloom_dist.run.loop", "worldloom_dist.local_evaluation"},
    {"worldloom_dist.rpc"},
    {"worldloom_dist.local", "worldloom_dist.runtime"},
    {"worldloom_dist.cli"},
    {
        "worldloom_dist.launch",
        "worldloom_dist.evaluate",
        "worldloom_dist.check_env",
        "worldloom_dist.replay.__main__",
    },
    {"worldloom_dist.job"},
    {"worldloom_dist.submit"},
    {"worldloom_dist.status", "worldloom_dist.plot", "worldloom_dist.doctor"},
]
RANK = {package: rank for rank, packages in enumerate(LAYERS) for package in packages}
MODULES = sorted(
    p
    for package in ("worldloom", "worldloom_dist", "worldloom_client")
    for p in (ROOT / package).rglob("*.py")
)
RAY_ROOMS = {"worldloom_dist.rpc", "worldloom_dist.runtime", "worldloom_dist.submit"}


def room_of(module: str) -> str | None:
    homes = [package for package in RANK if module == package or module.startswith(package + ".")]
    return max(homes, key=len, default=None)


def imported_names(path: Path) -> Iterator[str]:
    """Absolute names imported anywhere in a file, function bodies and TYPE_CHECKING blocks
    included.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path}:{node.lineno}: relative import; write the absolute name"
            )
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    home = room_of(module)
    assert home or module.count(".") == 0 or path.name == "__init__.py", (
        f"{module} has no layer: add it to LAYERS"
    )
    for name in imported_names(path):
        target = room_of(name)
        if home and target and target != home:
            assert target != "worldloom_client" or module.startswith("worldloom_dist."), (
                f"{module} must not import {name}: only worldloom_dist speaks to clients"
            )
            assert RANK[target] < RANK[home], (
                f"{module} must not import {name} ({target} is not below {home})"
            )
        if name.split(".")[0] == "ray":
            assert home in RAY_ROOMS, f"{module} imports ray; only {sorted(RAY_ROOMS)} may"


def test_the_floor_test_can_fail(tmp_path: Path) -> None:
    assert RANK["worldloom.core"] < RANK["worldloom.data"] < RANK["worldloom_dist.replay"]
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    import ray\n    from worldloom_dist.local import x\n")
    assert list(imported_names(bad)) == ["ray", "worldloom_dist.local.x"]
