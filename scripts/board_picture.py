"""Draw the Grafana board from a Prometheus, without Grafana: the same rows, panels and queries, by
matplotlib.

python scripts/board_picture.py --prometheus http://127.0.0.1:9090 --run-id quick-0001-abcdef --last
10m -o docs/board.png
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BOARD = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards" / "worldloom.json"
UNITS = {"percentunit": (100.0, "%"), "bytes": (1e-6, "MB"), "Bps": (1e-3, "kB/s"), "s": (1.0, "s")}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def rows(board: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Title and panels of each row of the board."""
    title = ""
    panels = []
    for panel in board["panels"]:
        if panel["type"] != "row":
            panels.append(panel)
            continue
        if panels:
            yield title, panels
        title = panel["title"]
        panels = []
    yield title, panels


def substitute(expr: str, run_id: str, interval: str = "1m") -> str:
    """A panel's expression with Grafana's variables filled in."""
    return expr.replace("$__rate_interval", interval).replace("$run_id", run_id.replace(".", "[.]"))


def ask(prometheus: str, endpoint: str, **parameters: Any) -> Any:
    """The ``data`` of an answer of Prometheus' HTTP API.

    Raises:
        ValueError: If Prometheus refuses the question; with its words.
    """
    url = f"{prometheus}/api/v1/{endpoint}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        with error:
            raise ValueError(
                f"{parameters.get('query', endpoint)}: {error.read().decode()}"
            ) from error


def legend(template: str, labels: dict[str, str], run_id: str) -> str:
    """A curve's name; the run is in the picture's title."""
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)
    return text.replace(run_id, "").strip()


def draw(
    axes: Any, panel: dict[str, Any], prometheus: str, run_id: str, begin: float, end: float
) -> None:
    """One panel."""
    factor, unit = UNITS.get(panel["fieldConfig"]["defaults"]["unit"], (1.0, ""))
    for target in panel["targets"]:
        query = substitute(target["expr"], run_id, "30s")
        step = max(2.0, (end - begin) / 250)
        for series in ask(prometheus, "query_range", query=query, start=begin, end=end, step=step)[
            "result"
        ]:
            times, values = zip(*((float(t), float(v)) for t, v in series["values"]), strict=True)
            name = legend(target["legendFormat"], series["metric"], run_id)
            axes.plot(
                [(t - begin) / 60 for t in times],
                [v * factor for v in values],
                linewidth=1,
                label=name or None,
            )
    axes.set_title(panel["title"] + (f" ({unit})" if unit else ""), fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    names = axes.get_legend_handles_labels()[1]
    if names:
        axes.legend(fontsize=6, ncols=2 if len(names) > 5 else 1, framealpha=0.6)


def picture(
    prometheus: str, run_id: str, begin: float, end: float, path: Path, only: list[str]
) -> None:
    """All rows of the board, or some of them, one below the other."""
    from matplotlib.figure import Figure

    lines = []
    for title, panels in rows(json.loads(BOARD.read_text())):
        if not only or title in only:
            heights = sorted({panel["gridPos"]["y"] for panel in panels})
            lines += [
                (title if y == heights[0] else "", [p for p in panels if p["gridPos"]["y"] == y])
                for y in heights
            ]
    figure = Figure(figsize=(16, 2.7 * len(lines)), layout="constrained")
    parts = figure.subfigures(len(lines), 1, squeeze=False)
    for part, (title, panels) in zip(parts[:, 0], lines, strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for axes, panel in zip(
            part.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            draw(axes, panel, prometheus, run_id, begin, end)
            axes.set_xlabel("minutes", fontsize=7)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Ask, draw, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prometheus", default="http://127.0.0.1:9090", help="its address (default: %(default)s)"
    )
    parser.add_argument("--run-id", required=True, help="as in config.json of the run")
    parser.add_argument(
        "--last",
        default="30m",
        help="how far back, for example 90s, 10m, 2h (default: %(default)s)",
    )
    parser.add_argument(
        "--end", type=float, default=None, help="unix time at which the picture ends (default: now)"
    )
    parser.add_argument(
        "--row", action="append", default=[], help="draw this row only; may be repeated"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("board.png"))
    options = parser.parse_args()
    end = options.end or time.time()
    begin = end - float(options.last[:-1]) * SECONDS[options.last[-1]]
    picture(options.prometheus, options.run_id, begin, end, options.output, options.row)


if __name__ == "__main__":
    main()
