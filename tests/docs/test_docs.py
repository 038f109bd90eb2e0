"""The pages are true: every block runs, every name exists, and what is generated is current."""

import importlib
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "adr" not in p.parts)
OURS = [p for p in PAGES if p.parent != DOCS or p.name == "index.md"]
"""Pages of the library; those beside them belong to the system and have tests of their own."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: str(p.relative_to(DOCS)))
def test_the_python_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)


def test_blocks_have_a_language_that_is_checked() -> None:
    kinds = {kind for page in OURS for kind, _ in BLOCK.findall(page.read_text())}
    assert kinds <= {"python", "bash"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = [line for page in OURS for code in blocks(page, "bash") for line in code.splitlines()]
    for line in lines:
        found = re.fullmatch(r'pip install -e "\.(?:\[(\w+)\])?"', line)
        script = re.match(r"python (examples/\w+\.py)", line)
        assert (found and (found[1] is None or found[1] in extras)) or (script and (ROOT / script[1]).exists()), line


def test_every_module_that_is_documented_exists() -> None:
    named = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]
    assert len(named) >= 20
    for name in named:
        assert importlib.import_module(name).__doc__


def test_links_and_navigation_lead_somewhere() -> None:
    nav = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert set(OURS) <= {DOCS / name for name in nav} <= set(PAGES)
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+\.md)", page.read_text()):
            assert (page.parent / target).resolve().exists(), f"{page}: {target}"


def test_the_configuration_page_is_current() -> None:
    script = runpy.run_path(str(DOCS / "write_config.py"))
    assert (DOCS / "reference" / "config.md").read_text() == script["page"](), "run python docs/write_config.py"
