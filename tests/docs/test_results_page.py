"""What README and the page of results quote is what the files of the benchmarks say."""

import runpy
from pathlib import Path

import pytest

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


def test_a_result_that_was_run_is_told_from_its_file() -> None:
    said = SCRIPT["said_of_named"]
    head = {"kind": "result", "name": "x", "is_smoke": False, "measured": "evaluation"}
    head |= {"env_steps": 1000}
    run = {"kind": "run", "by": "worldloom", "hours": 1.5, "env_steps": 1000}
    point = {"kind": "comparison", "env_steps": 1000, "authors": None}
    ours = {"mean": 12.34, "std": 1.0, "seeds": {"1": 11.3, "2": 13.3}}
    training = {**point, "measured": "training", "worldloom": {**ours, "mean": 99.0}}
    records = [head, run, {**run, "hours": 2.0}]
    whole = [*records, {**point, "measured": "evaluation", "worldloom": ours}, training]
    assert said(whole) == "12.3 ± 1.0 at 1,000 (evaluation), 2 seeds, 3.5 h"
    part = [head, {**run, "env_steps": 400}, training]
    assert said(part).endswith("; not at its end: 400 of 1,000 env steps")
    assert said(records) == "begun"
    with pytest.raises(AssertionError, match="a smoke run is no result"):
        said([{**head, "is_smoke": True}])
