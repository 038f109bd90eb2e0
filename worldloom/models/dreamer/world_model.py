"""``worldloom.algorithms.dreamerv3.model`` under its former name."""

from worldloom.core.lazy import alias_of

__getattr__ = alias_of(
    __name__, "worldloom.algorithms.dreamerv3.model", "worldloom.algorithms.dreamerv3.world_model"
)
