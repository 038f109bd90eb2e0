"""Shell completion of the ``worldloom`` command: a few lines for the shell, which ask the command
itself what may come next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from worldloom.algorithms.registry import agent_names
from worldloom.distributed import distributed

__all__ = ["SHELLS", "completions"]

BASH = """COMP_WORDBREAKS=${COMP_WORDBREAKS//:}
_worldloom() {
    local IFS=$'\\n'
    COMPREPLY=($(worldloom __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _worldloom worldloom
"""
SHELLS = {
    "bash": BASH,
    "zsh": "(( $+functions[compdef] )) || { autoload -U +X compinit && compinit -u }\n"
    "autoload -U +X bashcompinit && bashcompinit\n" + BASH,
    "fish": "complete -c worldloom -f -a "
    "'(worldloom __complete (commandline -opc)[2..] (commandline -ct))'\n",
}
"""Shell -> what it reads at its start: ``source <(worldloom completion bash)``."""
RUN_COMMANDS = ("evaluate", "enjoy", "export", "plot", "push", "report", "serve", "status")


def completions(words: Sequence[str], commands: Sequence[str]) -> list[str]:
    """What the last word may become.

    Args:
        words: After ``worldloom``; the last one is being typed, and may be empty.
        commands: Names of the commands.
    """
    typed = words[-1] if words else ""
    if len(words) < 2:
        found = list(commands)
    elif words[0] == "train":
        found = _of_train(words[-2])
    elif words[0] == "runs" and (typed.startswith("-") or words[-2].startswith("-")):
        found = distributed("runs", "the table of runs").words_after(words[-2])
    elif words[0] == "reproduce" and not typed.startswith("-") and words[-2] == words[0]:
        found = list(distributed("reproduce", "published results").TARGETS)
    elif words[0] in RUN_COMMANDS and not typed.startswith("-"):
        found = [str(path.parent) for path in sorted(Path().glob("runs/*/config.json"))]
    else:
        found = []
    return [name for name in found if name.startswith(typed)]


def _of_train(before: str) -> list[str]:
    if before == "--agent":
        return agent_names()
    if before == "--preset":
        return list(distributed("run.presets", "training").PRESETS)
    names = distributed("run.cli", "training").flag_names()
    return [] if before.startswith("--") else sorted(names)
