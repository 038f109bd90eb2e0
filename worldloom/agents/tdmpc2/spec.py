"""``worldloom.algorithms.tdmpc2.spec`` under its former name."""

from worldloom.core.lazy import alias_of

__getattr__ = alias_of(__name__, "worldloom.algorithms.tdmpc2.spec")
