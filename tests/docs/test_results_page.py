"""What README and the page of results quote is what the files of the benchmarks say."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "docs/write_results.py"))
PAGE = (ROOT / "docs/results.md").read_text()


def test_the_page_is_what_the_files_say() -> None:
    assert SCRIPT["written"](PAGE) == PAGE, "run python docs/write_results.py"


def test_another_number_would_be_seen() -> None:
    assert SCRIPT["written"](PAGE.replace("4.2 s", "1.2 s")) == PAGE
    assert "4.2 s" in PAGE


def test_the_readme_s_sentence_is_what_the_files_say() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert SCRIPT["readme_sentence"]() in readme


def test_its_pictures_are_those_of_the_results() -> None:
    shown = SCRIPT["pictures"](PAGE)
    assert len(shown) >= 3
    for name in shown:
        assert (ROOT / "docs/curves" / name).read_bytes() == (SCRIPT["RESULTS"] / name).read_bytes()
