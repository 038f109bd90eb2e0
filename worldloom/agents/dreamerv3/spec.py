"""``worldloom.algorithms.dreamerv3.spec`` under its former name, and that of its config."""

from typing import Any

from worldloom.core.lazy import alias_of

_find = alias_of(__name__, "worldloom.algorithms.dreamerv3.spec")


def __getattr__(name: str) -> Any:
    return _find("DreamerV3AgentConfig" if name == "DreamerV3Config" else name)
