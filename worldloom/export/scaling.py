"""From the env's own numbers to what an agent reads, and from its actions to what the env takes,
as functions that can be exported.

What becomes of each array is decided in ``worldloom.envs.leaves``; here it is computed by torch.
Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from worldloom.core.exceptions import CheckpointError
from worldloom.core.images import find_image_layout
from worldloom.core.specs import ACTION, OBS, ArraySpec
from worldloom.envs.config import NEUTRAL, EnvConfig
from worldloom.envs.leaves import Choice, ObsLeaf, Rescale, action_leaf, obs_leaf
from worldloom.envs.spaces import walk
from worldloom.export.pictures import Picture

__all__ = ["FRAMES", "ActionWriter", "ObsReader", "graph_dtype"]

FRAMES = "frames/"
"""Before the key of an image, the name of what is kept of its stack."""
WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "int64", "float16": "float32"}
"""Types of env arrays that exporters do not compute with -> the one that holds their numbers."""


def graph_dtype(native: Any) -> str:
    """The type in an exported policy of an env's array."""
    name = str(np.dtype(native).name)
    return WIDER.get(name, name)


class ObsReader(nn.Module):
    """Observations as the env gives them -> as the agent reads them.

    Args:
        space: Of one env.
        config: Resolved settings of the env.
        wanted: What the agent observes.

    Attributes:
        leaves: Key -> its path, its space, and what it becomes.
        carry: Images that are kept from decision to decision.

    Raises:
        CheckpointError: If the space does not become what the agent observes.
    """

    def __init__(self, space: Any, config: EnvConfig, wanted: Mapping[str, ArraySpec]) -> None:
        super().__init__()
        found = {key: (leaf, obs_leaf(key, path, leaf)) for key, path, leaf in walk(space, OBS)}
        self.leaves: dict[str, tuple[Any, ObsLeaf]] = {
            key: pair for key, pair in sorted(found.items()) if pair[1].spec.size
        }
        if config.ale_vector:  # images come as the agent takes them
            config = EnvConfig.from_settings("none", NEUTRAL)
        self.pictures = nn.ModuleDict()
        self.carry: dict[str, ArraySpec] = {}
        becomes = {}
        for index, (key, (_, leaf)) in enumerate(self.leaves.items()):
            becomes[key] = leaf.spec
            layout = find_image_layout(leaf.native_shape) if leaf.spec.is_image else None
            if layout is not None:
                picture = Picture(layout, config)
                self.pictures[str(index)] = picture  # names of modules have no dots
                becomes[key] = picture.spec
                if picture.stacked > 1:
                    shape = (picture.stacked, *picture.frame.shape)
                    self.carry[FRAMES + key] = ArraySpec(shape, "uint8")
        if becomes != dict(wanted):
            raise CheckpointError(
                f"the agent observes {dict(wanted)}, and the env's space {space} becomes "
                f"{becomes}; the two are of different runs"
            )

    def forward(
        self, obs: Mapping[str, Tensor], carry: Mapping[str, Tensor], is_first: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Per key ``[N, *native]`` -> per key ``[N, ...]`` as the agent reads it, and the carry."""
        found = {}
        after = {}
        for index, (key, (space, _)) in enumerate(self.leaves.items()):
            name = str(index)
            if name in self.pictures:
                found[key], kept = self.pictures[name](obs[key], carry.get(FRAMES + key), is_first)
                if kept is not None:
                    after[FRAMES + key] = kept
            elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
                found[key] = _one_hot(obs[key], space)
            else:
                found[key] = obs[key].float()
        return found, after


def _one_hot(value: Tensor, space: Any) -> Tensor:
    """Classes [N, ...] -> one-hot codes of all components side by side."""
    counts = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec).ravel()
    start = np.broadcast_to(np.asarray(space.start).ravel(), counts.shape)
    index = value.reshape(-1, len(counts)).long() - torch.from_numpy(start.astype(np.int64))
    codes = [
        (index[:, place, None] == torch.arange(int(count))).float()
        for place, count in enumerate(counts)
    ]
    return torch.cat(codes, -1)


class ActionWriter(nn.Module):
    """Actions of the agent -> as the env takes them.

    Args:
        space: Of one env.

    Attributes:
        leaves: Key -> its path and its space.
    """

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.leaves: dict[str, tuple[Any, Any]] = {}
        for key, path, leaf in walk(space, ACTION):
            found = action_leaf(key, path, leaf)
            if found.spec.size:
                self.leaves[key] = (leaf, found)

    def forward(self, action: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per key ``[N, ...]`` in [-1, 1], or counted from 0 -> ``[N, *native]``."""
        return {
            key: self._native(leaf.convert, action[key]) for key, (_, leaf) in self.leaves.items()
        }

    def _native(self, convert: Any, value: Tensor) -> Tensor:
        dtype = getattr(torch, graph_dtype(convert.dtype))
        if isinstance(convert, Choice):
            shifted = value.long() + torch.from_numpy(np.asarray(convert.start, np.int64))
            return shifted.to(dtype)
        assert isinstance(convert, Rescale)
        unit = value.clamp(-1.0, 1.0)
        low, high = _tensors(convert.low, convert.high)
        scale, shift = _tensors(convert.scale, convert.shift)
        inside = torch.minimum(torch.maximum(unit.double() * scale + shift, low), high)
        if not dtype.is_floating_point:
            inside = torch.round(inside)
        native = inside.to(dtype)
        ends = (convert.native_low, convert.native_high)
        lowest, highest = (torch.from_numpy(np.array(end)).to(dtype) for end in ends)
        bounded = torch.from_numpy(np.array(convert.bounded))
        native = torch.where(bounded & (unit == 1.0), highest, native)
        return torch.where(bounded & (unit == -1.0), lowest, native)


def _tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(np.array(array, np.float64)) for array in arrays]
