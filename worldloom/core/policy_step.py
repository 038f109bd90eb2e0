"""One decision of a trained policy as a pure function of tensors: what is exported.

An algorithm that can be exported has a function ``make_step(policy, *, planner)`` in its module
``export`` (a small agent in its one module), which returns the policy that acts as the step does,
and the step. Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from worldloom.core.specs import ArraySpec

__all__ = ["PolicyStep"]


class PolicyStep(Protocol):
    """A ``torch.nn.Module`` that decides once, for N envs, without exploration.

    It draws nothing and keeps nothing: what a decision draws comes in as ``uniform`` and
    ``normal``, what it remembers as ``carry``.
    """

    @property
    def carry(self) -> Mapping[str, ArraySpec]:
        """What is remembered between decisions, per row; zeros at the start of an episode."""

    @property
    def uniform(self) -> int:
        """How many uniform draws of [0, 1) one row takes."""

    @property
    def normal(self) -> int:
        """How many standard normal draws one row takes."""

    def __call__(
        self,
        obs: Mapping[str, Any],
        carry: Mapping[str, Any],
        is_first: Any,
        uniform: Any,
        normal: Any,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Decide.

        Args:
            obs: Per key ``[N, ...]``, as the agent's spec of the env has it.
            carry: Per name ``[N, ...]``, float32.
            is_first: ``[N]`` bool; the carry is cleared where it is True.
            uniform: ``[N, uniform]`` float32.
            normal: ``[N, normal]`` float32.

        Returns:
            Actions per key ``[N, ...]``: continuous ones in [-1, 1], discrete ones counted from 0;
            and the next carry.
        """

    def noise(self, inputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """``uniform`` and ``normal`` with which the step makes the decision that the policy made
        from these inputs (see :class:`worldloom.core.protocol.Capturable`).
        """
