"""Acting: encode, then ask the actor or search in imagination; numpy in and out.

Nothing is remembered between steps, so the carry is empty. Legend: N envs, A encoded action.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from worldloom.algorithms.mlp.model import Networks
from worldloom.algorithms.mlp.planner import Search, make_search
from worldloom.algorithms.mlp.spec import MLPAgentConfig, make_spec, resolve
from worldloom.core.exceptions import ShapeMismatchError
from worldloom.core.protocol import ActOutput, Carry, Decide
from worldloom.core.specs import EnvSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.nn.generators import fresh_weights, restore_generators, seeded_generator
from worldloom.nn.snapshot import pack, unpack_into
from worldloom.nn.transfer import HostTransfer

__all__ = ["MLPPolicy"]


class MLPPolicy:
    """Acts with its networks; see :class:`worldloom.core.protocol.Policy`.

    Args:
        config, env: As given to the registry.
        device: Where it acts.
        seed: Root of the initial weights and of the draws.
        num_envs: One generator per env when given, else a single one.
    """

    def __init__(
        self,
        config: MLPAgentConfig,
        env: EnvSpec,
        *,
        device: str = "cpu",
        seed: int = 0,
        num_envs: int | None = None,
    ) -> None:
        self.spec = make_spec(config, env)
        self.config = config = resolve(config, env)
        self.env = env
        self.device = torch.device(device)
        self.discount = config.discount or 1.0
        init, acting, self._train_seed = np.random.SeedSequence(seed).spawn(3)
        with fresh_weights(init):
            networks = Networks(config, env)
        self.networks = networks.to(self.device)
        self._is_per_env = num_envs is not None
        seeds = [acting] if num_envs is None else acting.spawn(num_envs)
        self._generators = [seeded_generator(s, self.device) for s in seeds]
        self.search: Search = make_search(config, self.networks, self.device)
        self.transfer = HostTransfer(self.device) if self.device.type == "cuda" else None
        self._decide: Decide = self._choose

    def initial_carry(self, num_envs: int) -> Carry:
        """Nothing."""
        return {}

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, np.ndarray], carry: Carry, is_first: np.ndarray, *, explore: bool
    ) -> ActOutput:
        """Choose one action per env; see :meth:`worldloom.core.protocol.Policy.act`.

        With ``explore`` the actor's actions are drawn, and those of a search are drawn among its
        best; without, the most likely or the best one is taken.
        """
        uniform, normal = self._draw(len(is_first))
        given = {f"obs/{name}": obs[name] for name in self.networks.model.obs.names}
        inputs = self._tensors(given) | {"uniform": uniform, "normal": normal}
        action = self._decide(inputs, explore=explore)["action"]
        return ActOutput(self.networks.actor.to_env(self._array(action)), {})

    def decide_through(self, wrap: Callable[[Decide], Decide]) -> None:
        """See :class:`worldloom.core.protocol.Capturable`."""
        self._decide = wrap(self._decide)

    @torch.no_grad()
    def _choose(self, inputs: Mapping[str, Tensor], *, explore: bool) -> dict[str, Tensor]:
        """The decision: encoded ``action`` [N, A] from tensors on this device, and nothing else."""
        model = self.networks.model
        latent = model.encode({name: inputs[f"obs/{name}"] for name in model.obs.names})
        action = self.search(
            self.networks, latent, inputs["uniform"], inputs["normal"], explore=explore
        )
        # an observation that is not a number spoils its own row alone
        return {"action": torch.nan_to_num(action)}

    def deciding_by(self, search: Search) -> Self:
        """The same policy, networks and generators included, that decides by ``search``."""
        other = copy.copy(self)
        other.search = search
        other._decide = other._choose
        return other

    def load_weights(self, snapshot: WeightsSnapshot) -> None:
        """Act with these weights from now on."""
        unpack_into(snapshot, dict(self.policy_tensors()))

    def policy_weights(self) -> WeightsSnapshot:
        """A copy of what ``act`` reads."""
        return pack(self.policy_tensors())

    def policy_tensors(self) -> Mapping[str, Tensor]:
        """What :meth:`policy_weights` copies, as it is."""
        return self.networks.acting(is_planner=self.config.is_planner)

    def rng_state(self) -> dict[str, Any]:
        """State of every acting generator."""
        return {"acting": [generator.get_state() for generator in self._generators]}

    def load_rng_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`rng_state`."""
        restore_generators(self._generators, state["acting"])

    def _draw(self, rows: int) -> tuple[Tensor, Tensor]:
        """Uniform and normal draws of one decision. [N, U], [N, M]."""
        widths = (self.search.num_uniform, self.search.num_normal)
        if self._is_per_env and rows != len(self._generators):
            raise ShapeMismatchError(
                "rows of act() for a policy made with num_envs", len(self._generators), rows
            )
        count = 1 if self._is_per_env else rows
        parts = [
            (
                torch.rand(count, widths[0], generator=g, device=self.device),
                torch.randn(count, widths[1], generator=g, device=self.device),
            )
            for g in self._generators
        ]
        uniform, normal = zip(*parts, strict=True)
        return torch.cat(uniform), torch.cat(normal)

    def _tensors(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        if self.transfer is not None:
            return self.transfer.to_device(arrays)
        return {name: self._tensor(array) for name, array in arrays.items()}

    def _array(self, tensor: Tensor) -> np.ndarray:
        if self.transfer is not None:
            return self.transfer.to_host({"": tensor})[""]
        found: np.ndarray = tensor.numpy()
        return found

    def _tensor(self, array: Any) -> Tensor:
        """A tensor on this device; host arrays are copied, because rows may be read-only."""
        if isinstance(array, Tensor):
            return array.to(self.device)
        return torch.tensor(np.asarray(array)).to(self.device)
