"""The one observation and the one action of a public world model, from the spaces of an env. No
torch.
"""

from __future__ import annotations

from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import ArraySpec, EnvSpec

__all__ = ["public_spaces"]


def public_spaces(env: EnvSpec) -> dict[str, Any]:
    """Fields of a public config that say what the model reads: ``obs_shape``, ``action_dim``,
    ``action_type``.

    Raises:
        ConfigurationError: If the env has what a public model cannot read: several keys, classes as
            observations, or several choices in one action.
    """
    obs = _only("observation", env.obs, env)
    action = _only("action", env.action, env)
    if obs.num_classes:
        raise ConfigurationError(
            f"the observation of {env.name} is a choice among classes, and a world model of the "
            "public API reads numbers or images; use the agent (worldloom_dist.evaluate)"
        )
    if len(action.num_classes) > 1:
        raise ConfigurationError(
            f"the action of {env.name} has {len(action.num_classes)} discrete components, and a "
            "world model of the public API reads one; use the agent (worldloom_dist.evaluate)"
        )
    return {
        "obs_shape": obs.shape or (1,),
        "action_dim": action.num_classes[0] if action.is_discrete else action.size,
        "action_type": "discrete" if action.is_discrete else "continuous",
    }


def _only(what: str, group: Any, env: EnvSpec) -> ArraySpec:
    if len(group) != 1:
        raise ConfigurationError(
            f"{env.name} has {len(group)} {what} keys ({', '.join(sorted(group))}), and a world "
            "model of the public API reads one; use the agent (worldloom_dist.evaluate)"
        )
    spec: ArraySpec = next(iter(group.values()))
    return spec
