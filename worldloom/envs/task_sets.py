"""Lists of tasks that have a name of their own: ``mt:NAME``."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["MT30", "TASK_SETS"]

MT30 = (
    "walker-stand",
    "walker-walk",
    "walker-run",
    "cheetah-run",
    "reacher-easy",
    "reacher-hard",
    "acrobot-swingup",
    "pendulum-swingup",
    "cartpole-balance",
    "cartpole-balance-sparse",
    "cartpole-swingup",
    "cartpole-swingup-sparse",
    "cup-catch",
    "finger-spin",
    "finger-turn-easy",
    "finger-turn-hard",
    "fish-swim",
    "hopper-stand",
    "hopper-hop",
    "walker-walk-backwards",
    "walker-run-backwards",
    "cheetah-run-backwards",
    "cheetah-run-front",
    "cheetah-run-back",
    "cheetah-jump",
    "hopper-hop-backwards",
    "reacher-three-easy",
    "reacher-three-hard",
    "cup-spin",
    "pendulum-spin",
)
"""The 30 tasks of TD-MPC2's authors (arXiv:2310.16828v2) in the DeepMind Control Suite, in their
order; dm_control has the first 19 itself, and ``suites.dmc_tasks`` the others.
"""
OWN_OF_DM_CONTROL = 19
ONE_PER_DOMAIN = (
    "walker-walk",
    "cheetah-run",
    "reacher-easy",
    "acrobot-swingup",
    "pendulum-swingup",
    "cartpole-swingup",
    "cup-catch",
    "finger-spin",
    "fish-swim",
    "hopper-hop",
)
"""A choice of ours: one task of each domain that is among the authors' 30."""
TASK_SETS: Mapping[str, tuple[str, ...]] = {
    "dmc10": tuple(f"dmc:{name}" for name in ONE_PER_DOMAIN),
    "dmc19": tuple(f"dmc:{name}" for name in MT30[:OWN_OF_DM_CONTROL]),
    "dmc30": tuple(f"dmc:{name}" for name in MT30),
}
"""Name of a set -> its envs, in an order that never changes: a task's number is its place."""
