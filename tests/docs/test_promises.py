"""Each promise of the pages has the test that fails if it is false (``docs/promises.md``)."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/promises.md").read_text()
ROW = re.compile(r'^\| "(.+)" \| (.+) \|$', re.MULTILINE)
NAME = re.compile(r"`([\w/]+\.py)::(\w+)`")
UNTESTED = re.compile(r"untested: \w.+|no promise: \w.+")
PAGES = ("README.md", "SECURITY.md", "docs/operations.md", "docs/guarantees.md")
SECTIONS = {"README.md": r"\n## ", "SECURITY.md": r"\n\n", "docs/operations.md": r"\n## "}
"""What of a page needs a row, by what separates it."""
NO_PROMISE = ("# ", "See also")
BOLD = re.compile(r"\*\*[^*\n]+\*\*")
TITLES = (
    "**Train world models at scale.**",
    "**Files.**",
    "**Network.**",
    "**Secrets**",
    "**Containers.**",
    "**Reporting.**",
)
"""Bold words that name what follows and promise nothing themselves."""


def flat(text: str) -> str:
    return " ".join(text.split())


def rows_of(page: str) -> list[tuple[str, str]]:
    """Quotes of a page with their tests."""
    section = PAGE.partition(f"\n## {page}\n")[2].partition("\n## ")[0]
    return ROW.findall(section)


@cache
def names_in(path: Path) -> frozenset[str]:
    """Tests of a file that are not skipped whatever happens."""
    tree = ast.parse(path.read_text())
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not any(
            "mark.skip(" in ast.unparse(mark) or "skipif(True" in ast.unparse(mark)
            for mark in node.decorator_list
        )
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_quote_is_on_its_page_and_every_test_exists(page: str) -> None:
    text = flat((ROOT / page).read_text())
    rows = rows_of(page)
    assert rows
    for quote, tests in rows:
        assert flat(quote) in text, f"{page} does not say {quote!r} any more"
        names = NAME.findall(tests)
        assert names or UNTESTED.fullmatch(tests), f"{quote}: name a test, or say why there is none"
        for path, name in names:
            assert name in names_in(ROOT / "tests" / path), f"{path} has no test {name}"


@pytest.mark.parametrize("page", SECTIONS)
def test_every_part_of_a_page_has_a_row(page: str) -> None:
    quotes = [flat(quote) for quote, _ in rows_of(page)]
    for part in re.split(SECTIONS[page], (ROOT / page).read_text()):
        text = flat(part)
        if text.startswith(NO_PROMISE) and page != "README.md":
            continue
        assert any(quote in text for quote in quotes), f"{page} promises unsaid: {text[:100]}"


@pytest.mark.parametrize("page", PAGES)
def test_every_bold_promise_has_a_row(page: str) -> None:
    quotes = " ".join(quote for quote, _ in rows_of(page))
    found = set(BOLD.findall((ROOT / page).read_text())) - set(TITLES)
    assert {bold for bold in found if bold not in quotes} == set()


def test_no_row_is_passed_over() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    heads = [line for line in lines if line.startswith(("| Promise |", "|---"))]
    assert len(lines) - len(heads) == sum(len(rows_of(page)) for page in PAGES)
