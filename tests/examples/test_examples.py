"""Every example runs at its smallest size, as a reader starts it: by its file."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
CASES = {
    "train_dreamer.py": ["--test", "--output-dir", "out"],
    "train_tdmpc2.py": ["--test", "--output-dir", "out", "--obs-dim", "5", "--action-dim", "2"],
    "train_atari_dreamer.py": ["--test", "--output-dir", "out", "--steps", "1"],
    "train_dreamer_mujoco.py": ["--test", "--output-dir", "out", "--steps", "1"],
    "train_tdmpc2_mujoco.py": ["--test", "--output-dir", "out", "--steps", "1", "--gamma", "0.9"],
    "collect_mujoco.py": ["--test", "--output", "out/data.npz", "--action-noise", "0.3"],
    "collect_atari.py": ["--test", "--output", "out/data.npz"],
    "visualize_imagination.py": ["--test", "--output-dir", "out"],
}
SYSTEM_CASES: dict[str, tuple[list[str], str]] = {
    "rllib_env.py": (
        ["--preset", "debug", "--env-steps", "250", "--metrics-port", "0", "--run-dir", "run"],
        "completed",
    ),
    "tune_sweep.py": (["400"], "best {'train_ratio'"),
}
"""They start Ray: arguments, and a word of what they say at the end."""
MAKES = {
    "collect_mujoco.py": "data.npz",
    "collect_atari.py": "data.npz",
    "visualize_imagination.py": "report.json",
}


SCRIPTS = EXAMPLES.parent / "scripts"


def start(
    name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path = EXAMPLES
) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "offline", raising=False)
    runpy.run_path(str(folder / name), run_name="__main__")


@pytest.mark.parametrize("name", CASES)
def test_an_example_runs_at_its_smallest_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "collect_atari.py" and not importlib.util.find_spec("ale_py"):
        pytest.skip("ale-py is not installed: pip install 'worldloom-dist[atari]'")
    monkeypatch.chdir(tmp_path)
    start(name, CASES[name], monkeypatch)
    assert (tmp_path / "out" / MAKES.get(name, "model/model.pt")).exists()
    if name == "train_atari_dreamer.py":
        assert (tmp_path / "out" / "imagination_rollout.png").exists()


def test_the_demo_pictures_can_be_made_without_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(
        "create_demo_gif.py",
        ["--test", "--skip-gifs", "--output", str(tmp_path)],
        monkeypatch,
        SCRIPTS,
    )
    assert {p.name for p in tmp_path.glob("*.*")} == {"imagination.png", "open_loop.png"}


def test_every_example_is_tried() -> None:
    scripts = {p.name for p in EXAMPLES.glob("*.py")} - {"offline.py"}
    assert scripts == {
        *CASES,
        *SYSTEM_CASES,
        "custom_env.py",
        "ray_serve_policy.py",
        "rllib_evaluate.py",
    }


def in_a_process(folder: Path, *words: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{EXAMPLES}:{EXAMPLES.parent}",
        "RAY_AUTH_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(600)
def test_your_own_env_trains(tmp_path: Path) -> None:
    words = [
        "--preset",
        "debug",
        "--env",
        "custom_env:Thermostat",
        "--runtime",
        "local",
        "--env-steps",
        "200",
        "--eval-every",
        "0",
    ]
    said = in_a_process(
        tmp_path, "-m", "worldloom_dist.launch", *words, "--eval-episodes", "1", "--run-dir", "run"
    )
    assert "completed; everything is in run" in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["env_steps"] >= 200


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SYSTEM_CASES)
def test_an_example_of_the_system_runs_at_its_smallest_size(name: str, tmp_path: Path) -> None:
    arguments, says = SYSTEM_CASES[name]
    assert says in in_a_process(tmp_path, str(EXAMPLES / name), *arguments)


def test_a_missing_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"--data FILE\.npz"):
        start("train_dreamer.py", [], monkeypatch)
    with pytest.raises(SystemExit, match=r"error: .*nothing\.npz"):
        start("train_dreamer.py", ["--data", "nothing.npz"], monkeypatch)


def test_the_notebook_runs_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[str] = []
    inline = types.ModuleType("IPython.display")
    inline.Image = lambda filename: filename  # type: ignore[attr-defined]
    inline.display = shown.append  # type: ignore[attr-defined]
    notebook = types.ModuleType("IPython")
    notebook.version_info = (9, 0)  # type: ignore[attr-defined]  # matplotlib asks
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", inline)
    cells = json.loads((EXAMPLES / "worldloom_quickstart.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    report = names["report"]
    assert 0 < report.reward_mae < 2, "CartPole pays 1 for every step; a head begins near 0"
    assert 0 < report.one_step_error < float("inf")
    assert [Path(name).name for name in shown] == [
        "predictions.png",
        "open_loop.png",
        "imagination.png",
    ]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in shown)
