"""What README and the guide tell people to type works, in the order in which they would type it: a
block that is not run says why in the page.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from worldloom.commands import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/guide").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>\w+)\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
PRINTED = re.compile(r"^print\(.*\)  # (\S+\(.*\))$", re.MULTILINE)
"""Lines that say what they print, as it is printed."""
KINDS = {"python", "bash", "text"}
SMALL = {
    "--runtime": "local",
    "--workers": "1",
    "--eval-episodes": "1",
    "--eval-max-steps": "20",
    "--metrics-port": "0",
}
"""Flags that make a run of a page end in seconds; what they name is not what the page is about."""
TDMPC2 = {"--env-steps": "130", "--agent.prefill-agent-steps": "100"}
DREAMER = {
    "--env-steps": "130",
    "--train-ratio": "8",
    "--agent.batch-size": "2",
    "--agent.batch-length": "16",
}
RESUMED_STEPS = "180"


def blocks(page: Path) -> list[tuple[str, str, str]]:
    found = BLOCK.finditer(page.read_text())
    return [(match["kind"], match["code"], match["why"] or "") for match in found]


def replaced(words: list[str], settings: dict[str, str]) -> list[str]:
    """The words with these flags instead of their own."""
    kept = list(words)
    for flag in settings:
        if flag in kept:
            at = kept.index(flag)
            del kept[at : at + 2]
    return [*kept, *(word for pair in settings.items() for word in pair)]


def small(words: list[str]) -> list[str]:
    """A command of a page, cut to seconds."""
    if words[0] == "train" and "--help" not in words:
        settings = dict(SMALL)
        if "--resume" in words:
            settings["--env-steps"] = RESUMED_STEPS
        elif "none" in words:
            settings["--train-steps"] = "20"
        else:
            dreams = any("dreamerv3" in word for word in words)
            settings |= DREAMER if dreams else TDMPC2
        return replaced(words, settings)
    if words[0] == "evaluate":
        return replaced(words, {"--episodes": "1", "--max-steps": "20"})
    if words[0] == "export":
        return replaced(words, {"--decisions": "20"})
    if words[0] == "enjoy":
        return [
            *replaced([word for word in words if word != "--video"], {"--episodes": "1"}),
            "--video",
        ]
    return words


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that the pages go on from."""
    folder = tmp_path_factory.mktemp("guide")
    words = ["train", "--env", "gym:Pendulum-v1", "--agent", "tdmpc2:ci"]
    run = folder / "runs/quick-0001"
    assert main([*small(words), "--run-dir", str(run), "--eval-every", "100"]) == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("DISPLAY", raising=False)
    return tmp_path


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_works(
    page: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for kind, code, why in blocks(page):
        if kind == "python":
            (folder / "my_env.py").write_text(code) if "class Thermostat" in code else None
            capsys.readouterr()
            exec(compile(code, page.name, "exec"), names)
            said = PRINTED.findall(code)
            assert not said or capsys.readouterr().out.splitlines()[-len(said) :] == said
        elif kind == "bash" and not why:
            for line in filter(None, code.splitlines()):
                run_line(line, folder)
                capsys.readouterr()


def run_line(line: str, folder: Path) -> None:
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        return
    assert program == "worldloom", f"{line!r} is not run: say why above its block"
    newest = max((folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    words = [str(newest) if word == "RUN" else word for word in small(words)]
    elsewhere = [entry for entry in sys.path if entry and Path(entry) != folder]
    with mock.patch.object(sys, "path", elsewhere):  # as a console script begins
        try:
            status = main(words)
        except SystemExit as ended:  # --help
            status = int(ended.code or 0)
    assert status == 0, line


def test_every_block_has_a_kind_that_is_known() -> None:
    kinds = {kind for page in PAGES for kind, _, _ in blocks(page)}
    assert kinds <= KINDS
    assert "bash" in kinds


LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)[^)]*\)")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/llms.txt"])
def test_every_link_to_a_file_leads_somewhere(name: str) -> None:
    page = ROOT / name
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_index_for_machines_names_every_page_of_the_guide() -> None:
    named = (ROOT / "docs/llms.txt").read_text()
    pages = [path for path in PAGES if path.parent.name == "guide"]
    assert [path.name for path in pages if f"guide/{path.name}" not in named] == []
