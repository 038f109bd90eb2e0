"""What a TD-MPC2 agent takes from one that learned other tasks, or from a file of the authors.

The networks compute what they computed before, up to rounding, for every task that both have: the
columns of the first layers and the rows of the policy's last one are picked as the observations and
actions lie here; of an embedding that is the same in every row, which one task has, the product
with the first layers' columns becomes a part of their bias. Nothing else of a weight is touched.
Shape legend: O observation, A action, L latent, D task embedding, M hidden size, Q critics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from worldloom.algorithms.tdmpc2.agent import TDMPC2Agent
from worldloom.algorithms.tdmpc2.config import SIZES, TDMPC2Sizes
from worldloom.algorithms.tdmpc2.fit import NAMED, Fit, fit_inputs, other_settings
from worldloom.algorithms.tdmpc2.foreign import read_foreign
from worldloom.algorithms.tdmpc2.networks import shortened
from worldloom.algorithms.tdmpc2.spec import TDMPC2AgentConfig, resolve
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.initial_state import InitialState, TrainedState
from worldloom.core.specs import ACTION, OBS, TASK, EnvSpec

__all__ = ["fit_state", "one_task_config", "read_foreign"]

LATENT = "latent"
FIRST_LAYERS: Mapping[str, tuple[str, ...]] = {
    "encoder.state.0": (OBS, TASK),
    "dynamics.0": (LATENT, TASK, ACTION),
    "reward_head.0": (LATENT, TASK, ACTION),
    "pi.0": (LATENT, TASK),
    "critics.0": (LATENT, TASK, ACTION),
    "target.0": (LATENT, TASK, ACTION),
}
"""Layer -> what its inputs are, in their order."""
LAST_OF_POLICY = "pi.2"
TERMINATION = "termination."
OF_VECTORS = ("encoder_dim", "encoder_layers")
OF_IMAGES = ("num_channels",)
NOT_OF_WEIGHTS = ("dropout",)


def fit_state(
    trained: TrainedState, agent: TDMPC2Agent, *, task: str | None = None
) -> InitialState:
    """The state of an agent that begins with what another one learned.

    Args:
        trained: What was learned; several tasks, or one.
        agent: Untrained; it learns some of those tasks, or one of them alone.
        task: Name of the one that is kept of several; by default the one with the agent's env.

    Raises:
        ConfigurationError: If its networks have other sizes, or it has none of the tasks.
        CheckpointError: If the state is damaged.
    """
    _check_sizes(trained, agent)
    fit = fit_inputs(trained.env, agent.env, task)
    try:
        return _begun(trained, agent, fit)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"the state does not fit together ({error!r})") from error


def _begun(trained: TrainedState, agent: TDMPC2Agent, fit: Fit) -> InitialState:
    """The whole state: networks that fit, and the rest as far as it belongs to any tasks."""
    ours = agent.env
    own = agent.state_dict()
    theirs = _flat(trained.state)
    fitted, loaded, skipped, fresh = _fitted(theirs, _flat(own), trained.env, ours, fit)
    if not any(name.startswith("target.") for name in theirs):
        for name in [name for name in fitted if name.startswith("critics.")]:
            fitted["target." + name.removeprefix("critics.")] = fitted[name].clone()
        fresh.append("target critics (copies of the critics)")
    updater = dict(own["updater"])
    scale = trained.state.get("updater", {}).get("scale")
    if scale is None:
        fresh.append("running scale")
    else:
        updater["scale"] = scale
        loaded.append("scale")
    for name in ("model_optimizer", "policy_optimizer"):
        moments = trained.state.get("updater", {}).get(name, {})
        skipped |= {f"{name}.{key}": "moments for other tasks" for key in moments}
    if "rng" in trained.state:
        skipped["rng"] = "random state of another run"
    fresh.append("optimizers")
    state = {
        "model": {name: fitted[name] for name in own["model"]},
        "target": {name: fitted[f"target.{name}"] for name in own["target"]},
        "updater": updater,
        "rng": own["rng"],
    }
    return InitialState(
        state=state,
        loaded=tuple(loaded),
        skipped={**skipped, **trained.skipped},
        fresh=tuple(fresh),
        notes=_notes(trained.env, ours, fit),
    )


def one_task_config(config: TDMPC2AgentConfig, env: EnvSpec) -> TDMPC2AgentConfig:
    """Settings with which an agent of several tasks acts in one of them as it did.

    Args:
        config: Of the agent.
        env: With its tasks.
    """
    iterations = resolve(config, env).iterations  # the padded actions decided it
    return replace(config, iterations=iterations, task_dim=None, episodic="off")


def _check_sizes(trained: TrainedState, agent: TDMPC2Agent) -> None:
    """Refuse networks of other sizes; says which flags give this run theirs."""
    theirs = resolve(trained.config, trained.env)
    ours = agent.config
    architecture = agent.model.architecture
    ignored = {
        *NOT_OF_WEIGHTS,
        *(() if architecture.vector_keys else OF_VECTORS),
        *(() if architecture.image_keys else OF_IMAGES),
    }
    names = [field.name for field in fields(TDMPC2Sizes) if field.name not in ignored]
    if trained.env.tasks and agent.env.tasks:
        names.append("task_dim")
    other = {
        name: (getattr(theirs, name), getattr(ours, name))
        for name in names
        if getattr(theirs, name) != getattr(ours, name)
    }
    if not other:
        return
    said = ", ".join(
        f"{name} is {there} there and {here} here" for name, (there, here) in other.items()
    )
    flags = " ".join(
        f"--agent.{name.replace('_', '-')} {there}" for name, (there, _) in other.items()
    )
    preset = next(
        (
            f" (or --agent tdmpc2:{preset})"
            for preset, sizes in SIZES.items()
            if other.keys() <= sizes.keys()
            and all(getattr(theirs, name) == size for name, size in sizes.items())
        ),
        "",
    )
    raise ConfigurationError(f"its networks have other sizes: {said}; add {flags}{preset}")


def _flat(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of the model, and of the target critics under ``target.``."""
    target = {f"target.{name}": value for name, value in state.get("target", {}).items()}
    return {name: value.detach().cpu() for name, value in {**state["model"], **target}.items()}


def _fitted(
    theirs: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    their_env: EnvSpec,
    our_env: EnvSpec,
    fit: Fit,
) -> tuple[dict[str, Tensor], list[str], dict[str, str], list[str]]:
    """Tensors of our shapes; names of those that were taken, that were not, and of what is new."""
    fitted = _first_layers(theirs, their_env, fit)
    for kind in ("weight", "bias"):
        name = f"{LAST_OF_POLICY}.{kind}"
        fitted[name] = _rows_of_both_halves(theirs[name], own[name], fit.action)
    skipped = {}
    if "action_masks" in theirs:
        skipped["action_masks"] = "they follow from the tasks"
    if "action_masks" in own:
        fitted["action_masks"] = own["action_masks"]
    table = theirs.get("task_emb")
    if table is not None and our_env.tasks:
        kept = [own["task_emb"][i] if k is None else table[k] for i, k in enumerate(fit.tasks)]
        fitted["task_emb"] = torch.stack(kept)
    new_tasks = [t for t, k in zip(our_env.tasks, fit.tasks, strict=True) if k is None]
    fresh = [f"task embedding of {task.name}" for task in new_tasks]
    for name, value in theirs.items():
        if name.startswith(TERMINATION) and name not in own:
            skipped[name] = "this run learns no termination"
        elif name not in skipped and name != "task_emb":
            fitted.setdefault(name, value)
    if not any(name.startswith(TERMINATION) for name in theirs):
        mine = {name: value for name, value in own.items() if name.startswith(TERMINATION)}
        fitted |= mine
        fresh += ["termination"] if mine else []
    _check_shapes(fitted, own)
    return fitted, [name for name in theirs if name not in skipped], skipped, fresh


def _first_layers(theirs: Mapping[str, Tensor], env: EnvSpec, fit: Fit) -> dict[str, Tensor]:
    """Layers that read observations, actions or tasks, for ours."""
    table = theirs["task_emb"] if env.tasks else None
    short = None if table is None or fit.folded is None else shortened(table)[fit.folded]
    sizes = {
        OBS: sum(s.size for k, s in env.obs.items() if k != TASK and not s.is_image),
        ACTION: sum(spec.size for spec in env.action.values()),
        LATENT: theirs["dynamics.2.bias"].numel(),
        TASK: 0 if table is None else table.shape[1],
    }
    fitted: dict[str, Tensor] = {}
    for layer, inputs in FIRST_LAYERS.items():
        if f"{layer}.weight" not in theirs:
            continue
        weight = theirs[f"{layer}.weight"]
        bias = theirs[f"{layer}.bias"]
        pieces = torch.split(weight, [sizes[part] for part in inputs], -1)
        parts = dict(zip(inputs, pieces, strict=True))
        if short is not None:
            bias = bias + parts.pop(TASK) @ short
        for part, places in ((OBS, fit.obs), (ACTION, fit.action)):
            if part in parts:
                parts[part] = _columns(parts[part], places)
        fitted[f"{layer}.weight"] = torch.cat(list(parts.values()), -1)
        fitted[f"{layer}.bias"] = bias
    return fitted


def _check_shapes(fitted: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Every tensor must be ours now, and none be left."""
    for name in sorted(fitted.keys() | own.keys()):
        there, here = (tuple(side[name].shape) if name in side else None for side in (fitted, own))
        has_no_target = name.startswith("target.") and there is None
        if there != here and not has_no_target:
            raise CheckpointError(f"tensor {name!r} has shape {there} there and {here} in this run")


def _columns(weight: Tensor, places: Tensor) -> Tensor:
    """Columns of the last axis; zeros where there is none."""
    nothing = weight.new_zeros((*weight.shape[:-1], 1))
    return torch.cat([weight, nothing], -1)[..., places]


def _rows_of_both_halves(theirs: Tensor, own: Tensor, places: Tensor) -> Tensor:
    """Rows of the policy's output, means first and then deviations; ours where there is none."""
    halves = [
        torch.stack([fresh[i] if k < 0 else known[k] for i, k in enumerate(places.tolist())])
        for known, fresh in zip(theirs.chunk(2), own.chunk(2), strict=True)
    ]
    return torch.cat(halves)


def _notes(theirs: EnvSpec, ours: EnvSpec, fit: Fit) -> tuple[str, ...]:
    if fit.folded is not None:
        task = theirs.tasks[fit.folded]
        return (
            f"tasks: {task.name} of its {len(theirs.tasks)}, whose embedding is a part of the "
            "first layers now",
            *_changed(task.name, task.settings, ours.settings),
        )
    pairs = [(k, task) for k, task in zip(fit.tasks, ours.tasks, strict=True) if k is not None]
    known = {k for k, _ in pairs}
    if not known:
        return ()
    rest = [task.name for k, task in enumerate(theirs.tasks) if k not in known]
    more = f" and {len(rest) - NAMED} more" if len(rest) > NAMED else ""
    without = f", without {', '.join(rest[:NAMED])}{more}" if rest else ""
    changed = [_changed(task.name, theirs.tasks[k].settings, task.settings) for k, task in pairs]
    return (f"tasks: {len(known)} of its {len(theirs.tasks)}{without}", *sum(changed, ()))


def _changed(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, ...]:
    """What a task was learned with, where that is otherwise now; values and models may mislead."""
    other = other_settings(theirs, ours)
    return (f"tasks: {name} was learned with {', '.join(other)}",) if other else ()
