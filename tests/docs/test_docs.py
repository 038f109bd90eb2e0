"""The pages are true: every block runs, every name exists, and what is generated is current."""

import importlib
import inspect
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OURS = [
    p
    for p in PAGES
    if (p.parent != DOCS or p.name == "index.md") and not {"adr", "extending", "guide"} & {*p.parts}
]
"""Pages of the library; those beside them belong to the system and have tests of their own."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)

HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if blocks(p, "python") and p.parent.name != "guide"],
    ids=lambda p: str(p.relative_to(DOCS)),
)
def test_the_python_blocks_of_a_page_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # a page may set it; it is put back after the page
    monkeypatch.setenv("WORLDLOOM_CACHE_DIR", str(tmp_path / "cache"))
    names: dict[str, Any] = {"__name__": "page"}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)


def test_blocks_have_a_language_that_is_checked() -> None:
    kinds = {kind for page in OURS for kind, _ in BLOCK.findall(page.read_text())}
    assert kinds <= {"python", "bash"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    lines = [line for page in OURS for code in blocks(page, "bash") for line in code.splitlines()]
    for line in lines:
        found = re.fullmatch(r'pip install -e "\.(?:\[(\w+)\])?"', line)
        script = re.match(r"python (examples/\w+\.py)", line)
        assert (found and (found[1] is None or found[1] in extras)) or (
            script and (ROOT / script[1]).exists()
        ), line


def test_every_module_that_is_documented_exists() -> None:
    named = [
        name
        for page in PAGES
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    assert len(named) >= 20
    for name in named:
        assert importlib.import_module(name).__doc__


def test_links_and_navigation_lead_somewhere() -> None:
    nav = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {DOCS / name for name in nav} == set(PAGES)
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+\.md)", page.read_text()):
            assert (page.parent / target).resolve().exists(), f"{page}: {target}"


def test_a_nav_entry_is_a_page_and_an_anchor_is_a_heading() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text()):
            home = (page.parent / target).resolve() if target else page
            slugs = [
                re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-")
                for h in HEADING.findall(home.read_text())
            ]
            assert anchor in slugs, f"{page}: {target}#{anchor}"


def documented_functions() -> Iterator[tuple[str, Any]]:
    """Every function and class of the modules that the API pages show, with its qualified name."""
    modules = {
        name
        for page in PAGES
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    }
    for module in (importlib.import_module(name) for name in sorted(modules)):
        for kind in (getattr(module, name) for name in getattr(module, "__all__", ())):
            if getattr(kind, "__module__", "").startswith("worldloom"):
                members = (
                    [m for m in vars(kind).values() if inspect.isfunction(m)]
                    if inspect.isclass(kind)
                    else []
                )
                yield from (
                    (f"{module.__name__}.{m.__qualname__}", m)
                    for m in [kind, *members]
                    if callable(m)
                )


def test_documented_arguments_are_those_of_the_signature() -> None:
    checked = 0
    for name, function in documented_functions():
        section = re.search(
            r"^ *Args:\n((?: +.*\n?)+)", inspect.getdoc(function) or "", re.MULTILINE
        )
        if not section:
            continue
        listed = re.findall(r"^    (?! )(\*{0,2}[\w, ]+): ", section[1], re.MULTILINE)
        taken = inspect.signature(function).parameters
        wrong = [word for word in listed if word.lstrip("*") not in taken]
        assert not wrong, f"{name}: the site cannot match {wrong}"
        checked += 1
    assert checked >= 15


def test_the_reference_pages_are_current() -> None:
    script = runpy.run_path(str(DOCS / "write_config.py"))
    for name, write in script["PAGES"].items():
        found = (DOCS / "reference" / name).read_text()
        assert found == write(), f"{name} is old: run python docs/write_config.py"
