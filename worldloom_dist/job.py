"""What runs on the cluster when a job was submitted: ``python -m worldloom_dist.job --job-id ID --
LAUNCH FLAGS``.

A job is a launch that joins the cluster it runs on, keeps its run folder outside the uploaded files
(which Ray deletes), goes on with the run that is there when the job is tried again, and says its
summary in one marked line of the log, because the log is what the submitting machine can read.
Needs no ray itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.files import expanded
from worldloom.core.json_text import to_json
from worldloom_dist.launch import main as launch_here
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.runtime.jobs import SUMMARY_MARK, check_job_id

__all__ = ["job_words", "main"]

RUNS_VARIABLE = "WORLDLOOM_RUNS"


def job_words(words: Sequence[str], job_id: str) -> list[str]:
    """The flags of the launch inside a job: what was given, and what makes a retry go on with the
    same run.

    The run folder is ``$WORLDLOOM_RUNS/JOB_ID`` (``~/worldloom-runs/JOB_ID`` without the variable)
    unless one is named.
    """
    given = {word.partition("=")[0].replace("_", "-") for word in words}
    added = []
    if "--resume" not in given:
        if "--run-dir" not in given:
            runs = expanded(os.environ.get(RUNS_VARIABLE) or "~/worldloom-runs", RUNS_VARIABLE)
            if not runs.is_absolute():
                raise ConfigurationError(
                    f"{RUNS_VARIABLE} must be an absolute path, got {runs}: Ray deletes the folder "
                    "that a job works in"
                )
            added += ["--run-dir", str(runs / job_id)]
        if "--if-exists" not in given:
            added += ["--if-exists", "resume"]
    if "--address" not in given:
        added += ["--address", "auto"]
    return [*words, *added]


def main(
    words: Sequence[str] | None = None, launch: Callable[[Sequence[str]], int] | None = None
) -> int:
    """Run the launch of a job; returns its exit status.

    Args:
        words: The command line.
        launch: The launcher's ``main``; tests put another one here.
    """
    parser = argparse.ArgumentParser(
        prog="python -m worldloom_dist.job", description="The launch inside a submitted job."
    )
    parser.add_argument("--job-id", required=True, help="names the run folder")
    parser.add_argument("flags", nargs="*", help="flags of worldloom_dist.launch, after --")
    words = list(sys.argv[1:] if words is None else words)
    cut = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:cut])
    try:
        flags = job_words(words[cut + 1 :], check_job_id(options.job_id))
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    status = (launch or launch_here)(flags)
    folder = _value(flags, "--resume") or _value(flags, "--run-dir")
    if folder is not None:
        _say_summary(Path(folder))
    return status


def _value(flags: Sequence[str], name: str) -> str | None:
    for index, word in enumerate(flags):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") == name:
            return value if equals else next(iter(flags[index + 1 :]), None)
    return None


def _say_summary(folder: Path) -> None:
    try:
        found: dict[str, Any] = RunFolder(folder).read_json("summary.json")
    except ConfigurationError:
        return  # the launch has refused it, and said so
    if found:
        sys.stdout.write(
            SUMMARY_MARK + to_json({"run_dir": str(folder.absolute()), "summary": found}) + "\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
