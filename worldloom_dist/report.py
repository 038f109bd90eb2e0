"""``python -m worldloom_dist.report RUN_DIR -o report.html``: the page of a run as one file, with
its numbers and videos inside, to be kept, mailed or opened without a network.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import NOT_NEGATIVE, checked
from worldloom.core.files import inside, write_text
from worldloom.core.json_text import to_json
from worldloom.core.plain_files import read_plain
from worldloom.core.program import called, interruptible
from worldloom_dist.page.app import page_html
from worldloom_dist.page.state import RunState
from worldloom_dist.page.videos import TYPES
from worldloom_dist.run.listing import newest_run
from worldloom_dist.run.view import reading_run

__all__ = ["main", "report_html"]

PLACE = '<script id="state" type="application/json">'
MOST_VIDEOS = 4
MOST_VIDEO_BYTES = 32 * 1024 * 1024
"""Of all videos in one file together."""


def report_html(run_dir: Path, *, videos: int = MOST_VIDEOS) -> str:
    """The page of a run with everything that it shows inside.

    Args:
        run_dir: A run folder, of a run in any state.
        videos: How many videos at most, the newest of every kind first; those beyond 32 MiB in all
            are left out, and counted on the page, as is one that is gone or cannot be read.

    Raises:
        ConfigurationError: If the folder holds no run, or one that cannot be read.
    """
    checked("videos", videos, int, NOT_NEGATIVE)
    with reading_run(run_dir):
        state = RunState(run_dir, most_videos=None).read()
    inside = []
    left = MOST_VIDEO_BYTES
    for video in state["videos"][:videos]:
        if video["size_bytes"] <= left and (found := _inlined(video, run_dir / "videos")):
            left -= video["size_bytes"]
            inside.append(found)
    state |= {"videos": inside, "videos_left_out": len(state["videos"]) - len(inside)}
    text = to_json(state).replace("<", "\\u003c")  # nothing in it may end the script
    head, place, tail = page_html().partition(PLACE)
    return head + place + text + tail


def _inlined(video: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    path = folder / video["file"]
    try:
        data = base64.b64encode(read_plain(path, video["size_bytes"])).decode()
    except OSError:  # a run deletes old ones while it is read
        return None
    return {**video, "url": f"data:{TYPES[path.suffix.lower()]};base64,{data}"}


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=called("report"),
        description="The page of a run as one HTML file that needs nothing else.",
    )
    parser.add_argument(
        "run_dir", type=Path, nargs="?", help="finished or not (default: the newest)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=None, help="(default: report.html in the run folder)"
    )
    parser.add_argument(
        "--videos",
        type=int,
        default=MOST_VIDEOS,
        help="videos and pictures in it at most (default: %(default)s)",
    )
    options = parser.parse_args(words)
    try:
        run_dir = options.run_dir or newest_run()
        path = options.output or inside(run_dir, "report.html")
        write_text(path, report_html(run_dir, videos=options.videos))
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"error: output: {path} cannot be written ({error.strerror or error})\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
