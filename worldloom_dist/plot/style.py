"""How pictures of runs look: colours, ticks, numbers.

The colours are those of Okabe and Ito, which people tell apart who see fewer of them; on dark paper
lighter ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom_dist.run.curves import AXES

__all__ = ["STYLES", "Style", "check_drawing", "dress", "rules"]

NICE = (1, 2, 2.5, 5, 10)
"""What ticks are multiples of, times a power of ten."""


@dataclass(frozen=True)
class Style:
    """Colours of a picture."""

    paper: str
    ink: str
    soft: str
    grid: str
    series: tuple[str, ...]


STYLES: Mapping[str, Style] = {
    "light": Style(
        "#ffffff",
        "#1d2127",
        "#626b76",
        "#e6e7e3",
        ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a87700", "#56b4e9", "#000000"),
    ),
    "dark": Style(
        "#14171b",
        "#e8eaed",
        "#9aa3ad",
        "#2b3138",
        ("#56b4e9", "#f0954a", "#2fc39a", "#d994c6", "#e5c15c", "#b8d8f0", "#ffffff"),
    ),
}


def check_drawing(path: Path, *, needs_folder: bool = True) -> None:
    """Refuse a picture that cannot be drawn, before anything is read or computed.

    Args:
        path: The picture.
        needs_folder: False where its folder is looked at later.

    Raises:
        MissingDependencyError: If matplotlib is missing.
        ConfigurationError: If there is no such format, or no folder to write to.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise MissingDependencyError("a plot", "matplotlib", "viz") from error
    kinds = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix.lower().lstrip(".") not in kinds:
        raise ConfigurationError(
            f"output: {path} cannot be written, its ending must be one of {', '.join(kinds)}"
        )
    if needs_folder and not path.absolute().parent.is_dir():
        raise ConfigurationError(
            f"output: {path} cannot be written, because there is no folder {path.parent}"
        )


def dress(axes: Any, axis: str, *, has_label: bool = True, most_ticks: int = 6) -> None:
    """Few ticks at round numbers, as people read them: 100k, 1,500, 2e-6; time in minutes, hours or
    days.

    Args:
        axes: Of matplotlib, with everything drawn.
        axis: What its curves are over.
        has_label: Whether that is said below.
        most_ticks: Below, at most about this many: a narrow panel has room for few.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.margins(x=0.02)
    unit, label = 1.0, AXES[axis].label
    low, high = axes.get_xlim()
    if axis == "time":
        unit, label = _time_unit(high)
    locator = MaxNLocator(most_ticks, steps=NICE)
    ticks = [tick * unit for tick in locator.tick_values(low / unit, high / unit)]
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v / unit, high / unit)))
    if has_label:
        axes.set_xlabel(label)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=NICE))
        largest = max(map(abs, axes.get_ylim()))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, largest)))


def _time_unit(hours: float) -> tuple[float, str]:
    return (1 / 60, "minutes") if hours < 2 else (1.0, "hours") if hours < 72 else (24.0, "days")


def number(value: float, largest: float = 0.0) -> str:
    """A tick's number, short: ``1.25M``, ``40k``, ``1,500``, ``0.25``, ``2e-6``; in the unit that
    the largest number of its axis takes.
    """
    if value == 0:
        return "0"
    size = max(abs(value), abs(largest))
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= factor * (10 if unit == "k" else 1):
            return f"{value / factor:.4g}{unit}".replace("-", "\u2212")
    if size < 1e-3:
        digits, power = f"{value:.2e}".split("e")
        text = f"{float(digits):g}e{int(power)}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "\u2212")


def rules(look: Style) -> dict[str, Any]:
    """Of matplotlib, for one picture; text stays text in vector formats."""
    return {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": look.grid,
        "axes.edgecolor": look.soft,
        "axes.labelcolor": look.soft,
        "xtick.color": look.soft,
        "ytick.color": look.soft,
        "text.color": look.ink,
        "axes.titlecolor": look.ink,
        "figure.facecolor": look.paper,
        "axes.facecolor": look.paper,
        "savefig.facecolor": look.paper,
        "legend.facecolor": look.paper,
        "legend.edgecolor": look.grid,
        "legend.fontsize": 8,
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
    }
