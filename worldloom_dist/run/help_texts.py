"""What ``train --help`` says above and below the flags."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from worldloom_dist.run.presets import PRESETS

__all__ = ["description", "footer"]

WIDTH = 79


def description(words: Sequence[str]) -> str:
    """What a run is without its flags, and whose defaults the flags are listed with.

    Args:
        words: The other words of the command line.
    """
    whose = (
        f"the run {' '.join(words)}"
        if words
        else "the demo; --env ENV --agent AGENT --help lists those of another run"
    )
    return (
        "Train a world model agent with distributed actors, replay and learner. Without any flag "
        "it is the quick demo; a run that names --env or --agent and no --preset takes what its "
        "suite and agent were published with. --seeds 1-5 makes a run for each seed, --parallel 2 "
        f"two at a time.\n\nDefaults are those of {whose}."
    )


def footer() -> str:
    """The presets, a line or two each, and where an agent's own settings are listed."""
    named = [name for name in PRESETS if not name.endswith("-smoke")]
    width = max(map(len, named)) + 2
    lines = [
        textwrap.fill(
            f"  {name:<{width}}{PRESETS[name].summary}", WIDTH, subsequent_indent=" " * (width + 2)
        )
        for name in named
    ]
    return (
        "\nPresets (NAME-smoke ends in minutes; A+B puts preset B upon A):\n"
        + "\n".join(lines)
        + "\n\n--agent NAME --help lists the settings of that agent, for example dreamerv3:ci.\n"
    )
