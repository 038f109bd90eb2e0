"""Checkpoints of the TD-MPC2 authors (github.com/nicklashansen/tdmpc2, MIT licence): four file
layouts, read without pickle code.

present      ``_Qs.params.0.weight`` .. and ``_target_Qs_params.``; a duplicate
             ``_detach_Qs_params.``; two non-tensors per prefix
legacy       critics are flat lists, ``_Qs.params.0`` .. ``.9``; most published files
pre-release  like legacy, but every network numbers its LayerNorms and activations too; some
published single-task files
incomplete   any of these without target critics, which are then copied from the critics (acting
             does not read them)

Multi-task files of the older layouts have no action masks; they follow from the action sizes of the
30 or 80 tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike

import torch
from torch import Tensor

from worldloom.algorithms.tdmpc2.config import Architecture
from worldloom.algorithms.tdmpc2.encoder import IMAGE_SIZE
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks, make_critics
from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.specs import OBS, ArraySpec
from worldloom.nn.ensemble import EnsembleMLP
from worldloom.nn.tensor_files import read_tensors

__all__ = [
    "META_WORLD_SIZES",
    "META_WORLD_TASKS",
    "MT30_ACTION_DIMS",
    "MT30_OBS_DIMS",
    "MT80_ACTION_DIMS",
    "OfficialCheckpoint",
    "from_official_state",
    "load_official",
    "read_official",
]

MT30_ACTION_DIMS = (
    *(6, 6, 6, 6, 2, 2, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 5, 4, 4),
    *(6, 6, 6, 6, 6, 6, 4, 3, 3, 2, 1),
)
"""Action components of the 30 DeepMind Control tasks, in the authors' order."""
MT30_OBS_DIMS = (
    *(24, 24, 24, 17, 6, 6, 6, 3, 5, 5, 5, 5, 8, 9, 12, 12, 24, 15, 15),
    *(24, 24, 17, 17, 17, 17, 15, 8, 8, 8, 3),
)
"""Components of their observations."""
META_WORLD_TASKS = tuple(
    "assembly basketball button-press-topdown button-press-topdown-wall button-press "
    "button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-open "
    "door-close drawer-close drawer-open faucet-open faucet-close hammer handle-press-side "
    "handle-press handle-pull-side handle-pull lever-pull peg-insert-side peg-unplug-side "
    "pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-side plate-slide-back "
    "plate-slide-back-side push-back push push-wall reach reach-wall shelf-place soccer "
    "stick-push stick-pull sweep-into sweep window-open window-close bin-picking box-close "
    "door-lock door-unlock hand-insert".split()
)
"""The 50 Meta-World tasks of the set of 80, which follow the 30."""
META_WORLD_SIZES = (39, 4)
"""Components of their observations and actions."""
MT80_ACTION_DIMS = (*MT30_ACTION_DIMS, *(META_WORLD_SIZES[1],) * len(META_WORLD_TASKS))
"""Action components of the 80 tasks, in the authors' order."""

NON_TENSORS = ("__batch_size", "__device")
LEFT_OUT: Mapping[str, str] = {
    "_detach_Qs_params.": "a second copy of the critics",
    "log_std_": "constants, which are settings here",
}
"""Beginning of an entry's name -> why it is left out."""
PARTS = {
    "_encoder.state": "encoder.state",
    "_dynamics": "dynamics",
    "_reward": "reward_head",
    "_termination": "termination",
    "_pi": "pi",
    "_Qs.params": "critics",
    "_target_Qs_params": "target",
    "_target_Qs.params": "target",
}
FLAT_FIELDS = ("weight", "bias", "ln.weight", "ln.bias")
PRE_RELEASE_LAYERS = {"0": "0.", "1": "0.ln.", "3": "1.", "4": "1.ln.", "6": "2."}
PRE_RELEASE = {
    "_encoder.state": {"1": "0.", "2": "0.ln.", "4": "1.", "5": "1.ln."},
    "_dynamics": {**{f"0.{old}": new for old, new in PRE_RELEASE_LAYERS.items()}, "1": "2.ln."},
    "_reward": PRE_RELEASE_LAYERS,
    "_pi": PRE_RELEASE_LAYERS,
}


@dataclass(frozen=True, slots=True)
class OfficialCheckpoint:
    """What a file holds: the model (its ``architecture`` is inferred from the shapes) and the
    target critics.

    Attributes:
        model: All of its parameters.
        target: Copies of the critics where the file has none of its own.
        has_target: True where it has.
        has_masks: True where the file has action masks; otherwise those of a multi-task model
            follow from its tasks.
        skipped: Entries of the file that were left out -> why.
    """

    model: TDMPC2Networks
    target: EnsembleMLP
    has_target: bool = True
    has_masks: bool = True
    skipped: Mapping[str, str] = field(default_factory=dict)


def load_official(
    path: str | PathLike[str],
    *,
    action_dims: Sequence[int] | None = None,
    simnorm_dim: int = 8,
    bin_low: float = -10.0,
    bin_high: float = 10.0,
) -> OfficialCheckpoint:
    """Read one of the authors' ``.pt`` files. Nothing in the file is executed.

    Args:
        path: The file.
        action_dims: Action components of each task, for multi-task files without masks that are not
            mt30 or mt80.
        simnorm_dim, bin_low, bin_high: What shapes cannot tell; the defaults are those of all
            published files.

    Raises:
        CheckpointError: If the file is missing, truncated, hostile, or not a TD-MPC2 model.
    """
    state = read_official(path)
    try:
        with reading("not a TD-MPC2 model", "its tensors do not fit together"):
            return from_official_state(
                state,
                action_dims=action_dims,
                simnorm_dim=simnorm_dim,
                bin_low=bin_low,
                bin_high=bin_high,
            )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_official(path: str | PathLike[str]) -> Mapping[str, object]:
    """The entries of one of the authors' files, as they are named there.

    Raises:
        CheckpointError: If the file is missing, truncated or hostile, or holds something else.
    """
    content = read_tensors(path)
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a TD-MPC2 state dict")
    return state


def from_official_state(
    state: Mapping[str, object],
    *,
    action_dims: Sequence[int] | None = None,
    simnorm_dim: int = 8,
    bin_low: float = -10.0,
    bin_high: float = 10.0,
) -> OfficialCheckpoint:
    """As :func:`load_official`, for a state dict in memory."""
    tensors = _tensors(state)
    named = _rename(tensors)
    target = {
        name.removeprefix("target."): t for name, t in named.items() if name.startswith("target.")
    }
    own = {name: t for name, t in named.items() if not name.startswith("target.")}
    try:
        architecture = _infer(own, tensors, simnorm_dim, bin_low, bin_high)
    except (KeyError, IndexError, ValueError, RuntimeError, ConfigurationError) as error:
        raise CheckpointError(
            f"not a TD-MPC2 model: {error} is missing or has an unusual shape"
        ) from error
    has_masks = "action_masks" in own
    if architecture.num_tasks > 1 and not has_masks:
        own["action_masks"] = _masks(architecture, action_dims)
    with torch.device("meta"):
        model = TDMPC2Networks(architecture)
        critics = make_critics(architecture)
    own_critics = {
        name.removeprefix("critics."): t for name, t in own.items() if name.startswith("critics.")
    }
    _assign(model, own)
    _assign(critics, target or {name: t.clone() for name, t in own_critics.items()})
    return OfficialCheckpoint(
        model,
        critics.requires_grad_(False),
        has_target=bool(target),
        has_masks=has_masks,
        skipped=_skipped(state),
    )


def _skipped(state: Mapping[str, object]) -> dict[str, str]:
    """Every entry that becomes no tensor of the model -> why."""
    found = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            found[str(name)] = "no tensors"
            continue
        why = [text for prefix, text in LEFT_OUT.items() if str(name).startswith(prefix)]
        if why:
            found[str(name)] = why[0]
    return found


def _tensors(state: Mapping[str, object]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[str(name)] = value
        elif not str(name).endswith(NON_TENSORS):
            raise CheckpointError(f"entry {name!r} is a {type(value).__name__}, not a tensor")
    return tensors


def _rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameter names (target critics under ``target.``) for any of the layouts."""
    is_pre_release = "_dynamics.0.0.weight" in tensors
    named = {}
    for name, tensor in tensors.items():
        new = _new_name(name, is_pre_release)
        if new is not None:
            named[new] = tensor
    return named


def _new_name(name: str, is_pre_release: bool) -> str | None:
    if name.startswith(tuple(LEFT_OUT)):
        return None
    if name in ("_task_emb.weight", "_action_masks"):
        return {"_task_emb.weight": "task_emb", "_action_masks": "action_masks"}[name]
    image = re.fullmatch(r"_encoder\.rgb\.([2468])\.(weight|bias)", name)
    if image:
        return f"encoder.images.0.convs.{int(image[1]) // 2 - 1}.{image[2]}"
    for prefix, part in PARTS.items():
        if not name.startswith(prefix + "."):
            continue
        rest = name[len(prefix) + 1 :]
        if rest.isdigit():
            layer, field = divmod(int(rest), len(FLAT_FIELDS))
            return f"{part}.{layer}.{FLAT_FIELDS[field]}"
        if is_pre_release and prefix in PRE_RELEASE:
            layer_name, _, field_name = rest.rpartition(".")
            if layer_name not in PRE_RELEASE[prefix]:
                raise CheckpointError(f"entry {name!r} is not part of the pre-release layout")
            return f"{part}.{PRE_RELEASE[prefix][layer_name]}{field_name}"
        return f"{part}.{rest}"
    raise CheckpointError(f"entry {name!r} is not part of a TD-MPC2 model")


def _infer(
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    simnorm_dim: int,
    bin_low: float,
    bin_high: float,
) -> Architecture:
    tasks, task_dim = own["task_emb"].shape if "task_emb" in own else (1, 0)
    mlp_dim = own["dynamics.0.weight"].shape[0]
    layers = len({name.split(".")[2] for name in own if name.startswith("encoder.state.")})
    obs = {}
    encoder_dim = mlp_dim
    channels = 32
    if layers:
        encoder_dim, inputs = own["encoder.state.0.weight"].shape
        obs[OBS] = ArraySpec((inputs - task_dim,))
    else:
        channels, inputs, *_ = own["encoder.images.0.convs.0.weight"].shape
        obs[OBS] = ArraySpec((inputs, IMAGE_SIZE, IMAGE_SIZE), "uint8")
    low = float(tensors.get("log_std_min", torch.tensor(-10.0)))
    return Architecture(
        obs=obs,
        action_dim=own["pi.2.weight"].shape[0] // 2,
        latent_dim=own["dynamics.2.weight"].shape[0],
        encoder_dim=encoder_dim,
        encoder_layers=max(layers, 2),
        mlp_dim=mlp_dim,
        num_channels=channels,
        num_q=own["critics.0.weight"].shape[0],
        num_bins=own["reward_head.2.weight"].shape[0],
        bin_low=bin_low,
        bin_high=bin_high,
        simnorm_dim=simnorm_dim,
        log_std_min=low,
        log_std_max=low + float(tensors.get("log_std_dif", torch.tensor(12.0))),
        is_episodic="termination.0.weight" in own,
        num_tasks=tasks,
        task_dim=task_dim,
    )


def _masks(architecture: Architecture, action_dims: Sequence[int] | None) -> Tensor:
    known = {len(dims): dims for dims in (MT30_ACTION_DIMS, MT80_ACTION_DIMS)}
    dims = action_dims if action_dims is not None else known.get(architecture.num_tasks, ())
    if len(dims) != architecture.num_tasks or max(dims) > architecture.action_dim:
        raise CheckpointError(
            f"the file has {architecture.num_tasks} tasks and no action masks; pass "
            "action_dims with one number per task, "
            f"each at most {architecture.action_dim}"
        )
    return (torch.arange(architecture.action_dim) < torch.tensor(list(dims)).unsqueeze(1)).float()


def _assign(module: torch.nn.Module, named: Mapping[str, Tensor]) -> None:
    """Fill a module on the meta device; names and shapes must agree exactly."""
    expected = module.state_dict()
    for name in sorted(expected.keys() | named.keys()):
        got = tuple(named[name].shape) if name in named else None
        want = tuple(expected[name].shape) if name in expected else None
        if got != want:
            raise CheckpointError(
                f"tensor {name!r} has shape {got} in the file, the model needs {want}"
            )
    copies = {
        name: tensor.detach().to(torch.float32, copy=True).contiguous()
        for name, tensor in named.items()
    }
    module.load_state_dict(copies, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
