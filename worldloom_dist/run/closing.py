"""The last lines of a run: what came out, and the commands that go on with this very run."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldloom.core.json_text import read_object
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.folder import RunFolder

__all__ = ["closing_lines", "evaluation_text", "program", "result_line", "resume_command"]

NAMED = 10
"""Tasks of an evaluation that are told one by one."""


def program() -> str:
    """What to type for the command of this very installation: its environment need not be active
    (``make demo`` activates none).
    """
    python = Path(sys.executable)
    script = python.with_name("worldloom")
    if not script.exists():
        return f"{_typed(python, 'python')} -m worldloom"
    return _typed(script, "worldloom")


def _typed(file: Path, name: str) -> str:
    """Its name alone where the shell would find that very file, else its path from here."""
    found = shutil.which(name)
    if found is not None and Path(found).absolute() == file.absolute():
        return name
    here = Path.cwd()
    is_near = file.is_relative_to(here) and here != Path(here.anchor)
    return shlex.quote(str(file.relative_to(here) if is_near else file))


def resume_command(folder: Path) -> str:
    """The command that goes on with a run, as it is typed here."""
    return f"{program()} train --resume {shlex.quote(str(folder))}"


def closing_lines(config: RunConfig, shown: Path, folder: RunFolder) -> list[str]:
    """Result and commands of a run that is complete.

    Args:
        config: Of the run.
        shown: The folder as the user knows it.
        folder: The same, absolute.
    """
    summary = folder.read_json("summary.json")
    run = shlex.quote(str(shown))
    lines = [
        line
        for line in (
            result_line(summary.get("eval") or {}),
            _best(shown, folder, "score" if "score" in (summary.get("eval") or {}) else "return"),
            _video(shown, summary),
        )
        if line
    ]
    task = next((f" --task {name}" for name in config.env.tasks), "")
    commands = (
        []
        if config.env.is_none
        else [("evaluate", f"evaluate {run}"), ("watch", f"enjoy {run}{task}")]
    )
    commands += [("plot", f"plot {run}"), ("report", f"report {run}")]
    more = (
        f"--train-steps {2 * config.train_steps}"
        if config.env.is_none
        else f"--env-steps {2 * config.env_steps}"
    )
    shown_commands = [f"{label:<9}{program()} {command}" for label, command in commands]
    return [*lines, *shown_commands, f"{'go on':<9}{resume_command(shown)} {more}"]


def result_line(evaluation: Mapping[str, Any]) -> str:
    """What an evaluation came to, for people; empty where there was none."""
    text = evaluation_text(evaluation)
    return "" if not text else f"{'score' if 'score' in evaluation else 'return':<9}{text}"


def evaluation_text(evaluation: Mapping[str, Any]) -> str:
    """What an evaluation came to: ``12.3 +- 4.5 over 10 episodes``; of several tasks the score
    first, and the tasks, the lowest first.
    """
    mean, spread = evaluation.get("return_mean"), evaluation.get("return_std")
    if mean is None:
        return ""
    deviation = "" if spread is None else f" +- {spread:.1f}"
    text = f"{mean:.1f}{deviation} over {evaluation.get('episodes', 0)} episodes"
    tasks = evaluation.get("tasks") or {}
    if not tasks:
        return text
    if "score" in evaluation:
        text = f"{evaluation['score']:.1f}, return {text}"
    known = {name: part.get("score", part["return_mean"]) for name, part in tasks.items()}
    order = sorted(known, key=lambda name: known[name])
    named = [f"{name} {tasks[name]['return_mean']:.1f}" for name in order[:NAMED]]
    more = [f"and {len(order) - NAMED} more"] if len(order) > NAMED else []
    return f"{text}: {', '.join([*named, *more])}"


def _video(shown: Path, summary: Mapping[str, Any]) -> str:
    """The video of the last evaluation."""
    videos = (summary.get("eval") or {}).get("videos") or []
    return f"video    {shown / 'videos' / videos[0]}" if videos else ""


def _best(shown: Path, folder: RunFolder, measure: str) -> str:
    """Where the best checkpoint is, and how good."""
    manifest = folder.checkpoints / "best" / "manifest.json"
    try:
        facts = read_object(manifest)["facts"]
        score = float(facts["score"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or kept elsewhere
        return ""
    return f"best     {shown / 'checkpoints' / 'best'}: {measure} {score:.1f}"
