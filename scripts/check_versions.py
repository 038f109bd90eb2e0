"""Do the lowest versions that the project allows work, and the newest? Builds a venv, trains
some steps in it, and acts with what was trained.

    python scripts/check_versions.py lowest                       # every lower bound, exactly
    python scripts/check_versions.py newest --python python3.13
    python scripts/check_versions.py lowest --keep torch          # torch as in constraints.txt

A lowest venv holds each direct requirement at its lower bound, and of what these need whatever pip
chooses. torch is some gigabytes in most versions; ``--keep`` takes a package from constraints.txt.
Exit status 0 if everything worked.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "worldloom/pyproject.toml", "worldloom_client/pyproject.toml")
EXTRAS = ("training", "viz", "video", "classic", "parquet", "minari")
SMOKE = """
import gymnasium
import worldloom
from worldloom_dist import evaluate, launch, plot
from worldloom_dist.replay.__main__ import main as data

for agent, env in (("tdmpc2:ci", "Pendulum-v1"), ("dreamerv3:ci", "CartPole-v1")):
    run = "{runs}/" + agent[:3]
    words = ["--preset", "debug", "--runtime", "local", "--run-dir", run, "--tensorboard"]
    words += ["--agent", agent, "--env", "gym:" + env, "--train-ratio", "4"]
    assert launch.main([*words, "--eval-max-steps", "50", "--eval-every", "0"]) == 0
    assert evaluate.main([run, "--episodes", "1", "--videos", "1", "--max-steps", "50"]) == 0
    assert plot.main([run, "-o", run + ".png"]) == 0
    trained, world = worldloom.load_agent(run), gymnasium.make(env)
    obs, _ = world.reset(seed=1)
    assert world.action_space.contains(trained.act(obs))
    for name in ("rows.npz", "rows.parquet"):
        assert data(["export", run, run + name]) == 0
assert launch.main(["--preset", "debug", "--run-dir", "{runs}/ray"]) == 0
"""


def lower_bounds(extras: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and lowest version of every direct requirement."""
    for file in FILES:
        table = tomllib.loads((ROOT / file).read_text())
        project = table["project"]
        lines = list(project.get("dependencies", ()))
        hooks = table.get("tool", {}).get("hatch", {}).get("metadata", {}).get("hooks", {})
        lines += hooks.get("custom", {}).get("dependencies", ())
        for extra in extras:
            lines += project["optional-dependencies"].get(extra, ())
        for line in lines:
            found = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", line)
            if found and not line.startswith("worldloom"):
                yield found[1], found[2]


def constraints(which: str, keep: Sequence[str]) -> list[str]:
    """Lines for pip's ``--constraint``."""
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in pinned if line.split("==")[0] in keep]
    if which == "newest":
        return kept
    return [
        *kept,
        *sorted({f"{name}=={low}" for name, low in lower_bounds(EXTRAS) if name not in keep}),
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=["lowest", "newest"])
    parser.add_argument("--python", default=sys.executable, help="interpreter of the venv")
    parser.add_argument("--keep", nargs="*", default=[], help="packages from constraints.txt")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = constraints(options.which, options.keep)
        (folder / "constraints.txt").write_text("\n".join(lines) + "\n")
        print("\n".join(lines) or "newest of everything", flush=True)
        subprocess.run([options.python, "-m", "venv", str(folder / "venv")], check=True)
        python = folder / "venv/bin/python"
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        what = f"{ROOT}[{','.join(EXTRAS)}]"
        subprocess.run([*pip, "--constraint", str(folder / "constraints.txt"), what], check=True)
        subprocess.run([str(python), "-m", "pip", "list"], check=True)
        code = SMOKE.replace("{runs}", str(folder / "runs"))
        done = subprocess.run([str(python), "-c", code], cwd=folder, timeout=3600)
        print("works" if done.returncode == 0 else "does not work", flush=True)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
