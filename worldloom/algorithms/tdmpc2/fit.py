"""How the observations, actions and tasks of one agent lie in those of another. No torch model is
read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom.core.specs import TASK, EnvSpec
from worldloom.envs.config import EnvConfig

__all__ = ["NAMED", "Fit", "fit_inputs", "other_settings"]

NAMED = 5
"""Tasks that a sentence names."""
Pairs = Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Fit:
    """How one agent's inputs lie in another's.

    Attributes:
        obs: [O] of our components, their place in the other's vector; -1 where there is none.
        action: [A] likewise.
        tasks: Of our tasks, their numbers in the other's list; None for those that it has not.
        folded: The number of the only task that is kept, which then needs no embedding.
    """

    obs: Tensor
    action: Tensor
    tasks: tuple[int | None, ...] = ()
    folded: int | None = None


def fit_inputs(theirs: EnvSpec, ours: EnvSpec, task: str | None = None) -> Fit:
    """How the inputs of an agent in ``ours`` lie in those of one in ``theirs``.

    Args:
        theirs, ours: Several tasks, or one.
        task: Name of the one that is kept of several; by default the one with our env.

    Raises:
        ConfigurationError: If the two have no task in common, or a task has other spaces.
    """
    if ours.tasks and not theirs.tasks:
        raise ConfigurationError(
            f"it learned one task, {theirs.name}, and this run learns {len(ours.tasks)}; begin "
            "with a run of several tasks, or name one with --env"
        )
    if ours.tasks:
        return _fit_several(theirs, ours)
    images = [[key for key, spec in env.obs.items() if spec.is_image] for env in (theirs, ours)]
    if len(images[0]) != len(images[1]):
        raise ConfigurationError(
            f"it sees {len(images[0])} images, and {ours.name} has {len(images[1])}; name the env "
            "that it was trained in"
        )
    own_obs = [(key, spec.size) for key, spec in ours.obs.items() if not spec.is_image]
    own_action = [(key, spec.size) for key, spec in ours.action.items()]
    folded = None
    if theirs.tasks:
        names = [one.name for one in theirs.tasks]
        folded = names.index(task) if task in names else _find(ours.name, "", ours.settings, theirs)
        if folded is None:
            raise ConfigurationError(_not_among(ours.name, theirs))
        obs, action = theirs.tasks[folded].obs, theirs.tasks[folded].action
    else:
        obs = tuple((key, spec.size) for key, spec in theirs.obs.items() if not spec.is_image)
        action = tuple((key, spec.size) for key, spec in theirs.action.items())
    return Fit(
        _places(obs, own_obs, ours.order, "observations", ours.name),
        _places(action, own_action, (), "actions", ours.name),
        folded=folded,
    )


def _fit_several(theirs: EnvSpec, ours: EnvSpec) -> Fit:
    found = tuple(_find(task.env, task.name, task.settings, theirs) for task in ours.tasks)
    if all(number is None for number in found):
        raise ConfigurationError(_not_among(ours.tasks[0].env, theirs))
    for task, number in zip(ours.tasks, found, strict=True):
        if number is None:
            continue
        other = theirs.tasks[number]
        for what, there, here in (
            ("observations", other.obs_size, task.obs_size),
            ("actions", other.action_size, task.action_size),
        ):
            if there != here:
                raise ConfigurationError(
                    f"its task {other.name!r} has {there} {what}, and {task.name!r} of this run "
                    f"has {here}; leave the task out, or give it the settings of then"
                )
    sizes = [
        [sum(spec.size for key, spec in group.items() if key != TASK) for group in groups]
        for groups in zip((theirs.obs, theirs.action), (ours.obs, ours.action), strict=True)
    ]
    obs, action = ([j if j < there else -1 for j in range(here)] for there, here in sizes)
    return Fit(torch.tensor(obs), torch.tensor(action), tasks=found)


def _find(env: str, name: str, settings: Mapping[str, Any], theirs: EnvSpec) -> int | None:
    """The number of a task in another's list; of several with its env the one of its name, or the
    one with its settings.
    """
    wanted = _canonical(env)
    found = [k for k, task in enumerate(theirs.tasks) if _canonical(task.env) == wanted]
    if len(found) <= 1:
        return found[0] if found else None
    named = [k for k in found if theirs.tasks[k].name == name]
    alike = [k for k in found if not other_settings(theirs.tasks[k].settings, settings)]
    if named or len(alike) == 1:
        return (named or alike)[0]
    told = "; ".join(
        f"{theirs.tasks[k].name}: "
        + (", ".join(other_settings(theirs.tasks[k].settings, settings)) or "the same")
        for k in found
    )
    raise ConfigurationError(
        f"it has several tasks with {env}, and none is called {name or env!r} or alone has the "
        f"settings of this run ({told}); give the env the settings of one of them"
    )


def other_settings(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Settings of an env that are known of both and differ, each as ``NAME VALUE (here VALUE)``."""
    return [
        f"{name} {theirs[name]} (here {ours[name]})"
        for name in theirs
        if name in ours and theirs[name] != ours[name]
    ]


def _canonical(env: str) -> tuple[str, str] | None:
    """How an env is compared with another one; None for one that has no name here."""
    if not env:
        return None
    config = EnvConfig(env=env)
    return config.family, config.name.replace("_", "-").lower()


def _not_among(env: str, theirs: EnvSpec) -> str:
    envs = [task.env or task.name for task in theirs.tasks]
    more = f" and {len(envs) - NAMED} more" if len(envs) > NAMED else ""
    return (
        f"{env} is none of its {len(envs)} tasks{nearest(env, envs)} "
        f"({', '.join(envs[:NAMED])}{more}); name one of them"
    )


def _places(theirs: Pairs, ours: Pairs, order: Sequence[str], what: str, name: str) -> Tensor:
    """Of our components the places in the other's vector.

    Args:
        theirs, ours: Keys and sizes, as they lie in the vectors.
        order: Our keys in the env's own order, where that is another.
        what, name: For the sentence.
    """
    if dict(theirs) != dict(ours):
        is_flat = len(theirs) == 1 or len(ours) == 1
        if not is_flat or sum(dict(theirs).values()) != sum(dict(ours).values()):
            raise ConfigurationError(
                f"{what}: it knows {_said(theirs)}, and {name} has {_said(ours)}; name the env "
                "that it was trained in"
            )
        # one flat vector, in which the env's keys lie in its own order
        if len(theirs) == 1:
            sizes = dict(ours)
            theirs = [(key, sizes[key]) for key in order or sizes]
        else:
            return torch.arange(sum(dict(theirs).values()))
    start = 0
    places: dict[str, range] = {}
    for key, size in theirs:
        places[key] = range(start, start + size)
        start += size
    return torch.tensor([place for key, _ in ours for place in places[key]], dtype=torch.long)


def _said(pairs: Pairs) -> str:
    return ", ".join(f"{key} of {size}" for key, size in pairs) or "none"
