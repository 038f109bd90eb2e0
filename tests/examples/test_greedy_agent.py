"""``examples/greedy_agent``: an installed package brings an agent, found by its entry point."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.running import PATIENCE, launched

SOURCE = Path(__file__).parents[2] / "examples" / "greedy_agent"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has installed it."""
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*command, "--no-build-isolation", "--target", str(place / "packages"), str(SOURCE)],
        capture_output=True,
        text=True,
        timeout=100 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return place / "packages"


def run(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100 * PATIENCE,
    )


def test_it_is_listed_with_its_package(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "-m", "worldloom", "list", "agents")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "greedy greedy-agent 0.1 --agent greedy:small|wide" in lines


def test_it_keeps_the_contract(site: Path, tmp_path: Path) -> None:
    code = "from worldloom.testing import check_agent; check_agent('greedy:wide', bootstraps=False)"
    done = run(site, tmp_path, "-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--agent", "greedy:smal"], "did you mean greedy:small?"),
        (["--agent", "greedyy:small"], "did you mean greedy:small?"),
        (["--agent", "greedy:small", "--agent.width", "0"], "agent.width must be >= 1, got 0"),
        (["--agent", "greedy:small", "--env", "gym:CartPole-v1"], "continuous spaces only"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    words: list[str], text: str, site: Path, tmp_path: Path
) -> None:
    local = ["--runtime", "local", "--env-steps", "10"]
    done = run(site, tmp_path, "-m", "worldloom_dist.launch", *words, *local)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.ray
@pytest.mark.timeout(300 * PATIENCE)
def test_it_trains_through_ray_and_plays(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = (
        "--preset debug --agent greedy:small --env toy:point --env-steps 600 --train-ratio 64 "
        "--eval-episodes 5 --metrics-port 0 --run-dir"
    )
    with launched(folder, *words.split(), str(folder), env={"PYTHONPATH": str(site)}) as started:
        assert started.finish(240) == 0, started.output.read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["train_steps"] > 100
    assert statistics.mean(summary["eval"]["returns"]) > 5, "random actions get about 1"
    played = run(site, tmp_path, "-m", "worldloom_dist.evaluate", str(folder), "--episodes", "1")
    assert played.returncode == 0, "an installed package is asked no consent: " + played.stderr
