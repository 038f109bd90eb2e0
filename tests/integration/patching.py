"""Patch modules of a process that is not ours, when it imports them: for a ``sitecustomize``, which
Python imports at its start.
"""

import importlib.abc
import importlib.machinery
import sys

__all__ = ["patch_when_imported"]


class _Patching(importlib.abc.MetaPathFinder):
    """Finds modules as usual, and patches those of ``places`` once they have been executed."""

    def __init__(self, places):
        self._places = places

    def find_spec(self, name, path=None, target=None):
        if name not in self._places:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self._places[name](module)

        spec.loader.exec_module = exec_module
        return spec


def patch_when_imported(places):
    """Call ``places[name]`` with each module of such a name when it has been imported."""
    sys.meta_path.insert(0, _Patching(places))
