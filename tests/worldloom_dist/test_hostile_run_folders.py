"""JSON files of a run folder in which a value is of another kind, size or depth: their readers give
one sentence, or what the file says.
"""

import contextlib
import copy
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.worldloom_dist.local_runs import start
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.exceptions import WorldLoomError
from worldloom.training.saved_agents import SavedAgent
from worldloom_dist.evaluate import find_checkpoint, without_replay
from worldloom_dist.plot.runs import read_run as read_plotted
from worldloom_dist.replay.verify import verify_run
from worldloom_dist.report import report_html
from worldloom_dist.run.builders import build_store
from worldloom_dist.run.cli import read_config
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.listing import read_entry
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.report import Report

ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, -(10**30), 1e308, 0.5, -0.0),
    *(
        "",
        "x",
        "x" * 5000,
        "\0",
        "\ud800",
        "../../etc/passwd",
        "nan",
        [],
        {},
        [[]],
        [None],
        {"": 0},
    ),
    *(float("inf"), float("-inf"), float("nan")),
]


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [path, *(place for key, part in items for place in places(part, (*path, key)))]


def changed(value: Any, rng: random.Random) -> Any:
    """A copy in which one value is replaced, left out, added or nested."""
    found = copy.deepcopy(value)
    *way, last = rng.choice([place for place in places(found) if place])
    home = found
    for key in way:
        home = home[key]
    kind = rng.randrange(4)
    if kind == 0:
        del home[last]
    elif kind == 1 and isinstance(home, dict):
        home[rng.choice(["x", "", "name", "env", str(last) + "_"])] = rng.choice(ODD)
    elif kind == 2:
        home[last] = nested(rng.choice([1, 50, 500]))
    else:
        home[last] = rng.choice(ODD)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    words = [*TINY["tdmpc2:ci"], "--env", "toy:point", "--workers", "1", "--env-steps", "30"]
    start(folder, *words).run()
    RunFolder(folder).write_incarnations({"learner": 1, "worker-0": 3, "shard-0": 1})
    return folder


def read_run(folder: Path) -> None:
    """What evaluate, status, a listing and a resume read."""
    config = read_config(folder)
    plan = resolve(without_replay(config))
    found = RunFolder(folder)
    found.check_readable()
    found.env_spec()
    Report(plan, found, found.read_json("summary.json"))
    find_checkpoint(build_store(plan, folder), "newest")


def read_agent(folder: Path) -> None:
    saved = SavedAgent.read(folder)
    saved.env_config()
    saved.build(device="cpu", seed=0)


def read_listing(folder: Path) -> None:
    read_entry(folder, "run")


@pytest.mark.parametrize(
    ("name", "read", "count"),
    [
        ("config.json", read_run, 300),
        ("config.json", read_agent, 60),
        ("summary.json", read_run, 200),
        ("incarnations.json", read_run, 100),
        ("config.json", read_listing, 100),
        ("summary.json", read_listing, 100),
        pytest.param("config.json", read_run, 5000, marks=pytest.mark.long),
        pytest.param("config.json", read_agent, 1500, marks=pytest.mark.long),
        pytest.param("summary.json", read_run, 4000, marks=pytest.mark.long),
    ],
)
def test_a_strange_value_in_a_file_of_a_run_is_told_in_one_sentence(
    run: Path, tmp_path: Path, name: str, read: Any, count: int
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    good = json.loads((run / name).read_text())
    raw: dict[str, int] = {}
    for seed in range(count):
        rng = random.Random(seed)
        (folder / name).write_text(json.dumps(changed(good, rng)))
        try:
            read(folder)
        except WorldLoomError as error:
            if "\n" in str(error):
                raw[f"several lines: {error}"[:150]] = seed
        except Exception as error:  # what this test is for: any other error is a fault
            raw[f"{type(error).__name__}: {error}"[:150]] = seed
    assert not raw, f"{len(raw)} kinds of raw errors, each with a seed: {raw}"


def read_page(folder: Path) -> None:
    report_html(folder)


def read_curves(folder: Path) -> None:
    read_plotted(folder)


def verify_folder(folder: Path) -> None:
    verify_run(folder)


def read_newest(folder: Path) -> None:
    found = build_store(resolve(read_config(folder)), folder).newest()
    assert found is None or found[1]["learner"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
@pytest.mark.parametrize(
    "read", [read_run, read_agent, read_listing, read_page, read_curves, read_newest, verify_folder]
)
def test_what_is_no_file_is_told_in_one_sentence_and_never_waited_for(
    run: Path, tmp_path: Path, read: Any, kind: str
) -> None:
    names = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    assert any(name.endswith(".wal") for name in names)
    for number, name in enumerate(names):
        folder = shutil.copytree(run, tmp_path / f"{number}")
        path = folder / name
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(path.name if kind == "loop" else "/dev/zero")
        with contextlib.suppress(WorldLoomError, OSError, ValueError):  # as its command tells them
            read(folder)
