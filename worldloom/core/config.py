"""``worldloom.algorithms.configs`` under the name that documents use."""

from worldloom.core.lazy import alias_of

__getattr__ = alias_of(__name__, "worldloom.algorithms.configs", "worldloom.core.config_base")
