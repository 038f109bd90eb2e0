"""One decision of R2-Dreamer as a function that can be exported: that of DreamerV3."""

from worldloom.algorithms.dreamerv3.export import make_step

__all__ = ["make_step"]
