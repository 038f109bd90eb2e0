"""Acting: encode, one filtering step, one action per env; numpy in and out.

The carry is ``deter`` [N, D], ``stoch`` [N, Z] one-hot and ``action`` [N, A] encoded, float32:
numpy on a CPU, tensors on an accelerator. Actions are always sampled, in evaluation too, as the
official code does. Legend: N envs, S categoricals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from worldloom.algorithms.dreamerv3.context import pack_latents
from worldloom.algorithms.dreamerv3.encoder import Encoder
from worldloom.algorithms.dreamerv3.model import compute_dtype
from worldloom.algorithms.dreamerv3.rssm import RSSM, State
from worldloom.algorithms.dreamerv3.scan import CellWeights
from worldloom.algorithms.dreamerv3.spec import DreamerAgentConfig
from worldloom.core.exceptions import ShapeMismatchError
from worldloom.core.protocol import ActOutput, Carry, Decide
from worldloom.core.specs import EnvSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.nn.actor import Actor
from worldloom.nn.generators import restore_generators
from worldloom.nn.layout import ActionLayout, ObsLayout
from worldloom.nn.precision import autocast
from worldloom.nn.snapshot import pack, unpack_into
from worldloom.nn.transfer import HostTransfer

__all__ = ["ActingNetworks", "DreamerV3Policy", "decide"]


class ActingNetworks(NamedTuple):
    """What acting reads: encoder, dynamics without prior, actor."""

    actor: Actor
    enc: Encoder
    dyn: RSSM

    @classmethod
    def build(cls, config: DreamerAgentConfig, env: EnvSpec) -> ActingNetworks:
        """Draw fresh ones from torch's global generator, in the order in which the whole agent
        draws them.
        """
        sizes = config
        layout = ActionLayout.from_specs(env.action)
        actor = Actor(layout, sizes.feature, sizes.units, config.actor_layers)
        enc = Encoder(ObsLayout.from_specs(env.obs), sizes)
        return cls(actor, enc, RSSM(enc.width, layout.width, sizes))

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter that acting reads, by name."""
        modules: dict[str, nn.Module] = {"actor": self.actor, "enc": self.enc, "dyn": self.dyn}
        named = {
            f"{prefix}.{name}": p
            for prefix, module in modules.items()
            for name, p in module.named_parameters()
        }
        return {name: p.detach() for name, p in named.items() if not name.startswith("dyn.prior")}


def decide(
    networks: ActingNetworks, cell: CellWeights, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One decision, a pure function of tensors.

    Args:
        networks: On one device.
        cell: Of their dynamics.
        inputs: ``obs/KEY`` per observation key; ``deter``, ``stoch``, ``action`` of the carry;
            ``is_first`` [N]; the draws ``posterior`` [N, S], ``uniform`` and ``normal``.

    Returns:
        ``deter`` and ``stoch`` (float32), the encoded ``action``, and ``classes`` [N, S].
    """
    token = networks.enc({name: inputs[f"obs/{name}"] for name in networks.enc.layout.names})
    keep = 1.0 - inputs["is_first"].float().unsqueeze(-1)
    state = State(inputs["deter"], inputs["stoch"])
    state, _, classes = networks.dyn.observe_step(
        cell, state, inputs["action"], token, keep, inputs["posterior"]
    )
    action = networks.actor.sample(
        networks.actor(torch.cat(state, -1)), inputs["uniform"], inputs["normal"]
    )
    return {
        "deter": state.deter.float(),
        "stoch": state.stoch.float(),
        "action": action,
        "classes": classes,
    }


class DreamerV3Policy:
    """Acts with its networks; see :class:`worldloom.core.protocol.Policy`.

    Args:
        config, env: As given to the registry.
        networks: On ``device``.
        device: Where it acts.
        generators: One, or one per env.
    """

    def __init__(
        self,
        config: DreamerAgentConfig,
        env: EnvSpec,
        networks: ActingNetworks,
        device: torch.device,
        generators: list[torch.Generator],
        *,
        is_per_env: bool,
    ) -> None:
        self.config = config
        self.env = env
        self.device = device
        self.networks = networks
        self._generators = generators
        self._is_per_env = is_per_env
        self.cell: CellWeights | None = None
        self._is_stale = False
        self.transfer = HostTransfer(device) if device.type == "cuda" else None
        self._decide: Decide = self._step

    def initial_carry(self, num_envs: int) -> Carry:
        """Zeros: the state at the start of an episode, without a previous action."""
        state = self.networks.dyn.initial(num_envs)
        action = torch.zeros(num_envs, self.networks.actor.layout.width, device=self.device)
        return {
            "deter": self._out(state.deter),
            "stoch": self._out(state.stoch),
            "action": self._out(action),
        }

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, np.ndarray], carry: Carry, is_first: np.ndarray, *, explore: bool
    ) -> ActOutput:
        """Sample one action per env; see :meth:`worldloom.core.protocol.Policy.act`. ``explore``
        changes nothing.
        """
        posterior, uniform, normal = self._draw(len(is_first))
        given = {f"obs/{name}": obs[name] for name in self.networks.enc.layout.names}
        given |= {name: carry[name] for name in ("deter", "stoch", "action")}
        inputs = self._tensors(given | {"is_first": is_first})
        inputs |= {"posterior": posterior, "uniform": uniform, "normal": normal}
        with autocast(self.device, self.config.precision):
            self._weights()  # made outside of the decision, because a captured one only reads them
        out = self._decide(inputs, explore=explore)
        latents = pack_latents(out["deter"], out["classes"]) if self.config.replay_context else {}
        extras = self._arrays(latents | {"action": out["action"].float()})
        after = {name: self._out(out[name]) for name in ("deter", "stoch", "action")}
        return ActOutput(self.networks.actor.to_env(extras.pop("action")), after, extras)

    @torch.no_grad()
    def after_executed(self, carry: Carry, action: Mapping[str, np.ndarray]) -> Carry:
        """See :class:`worldloom.core.protocol.RemembersActions`."""
        given = {name: self._tensor(value) for name, value in action.items()}
        return {**carry, "action": self._out(self.networks.actor.layout.encode(given))}

    def decide_through(self, wrap: Callable[[Decide], Decide]) -> None:
        """See :class:`worldloom.core.protocol.Capturable`."""
        self._decide = wrap(self._decide)

    @torch.no_grad()
    def _step(self, inputs: Mapping[str, Tensor], *, explore: bool) -> dict[str, Tensor]:
        """The decision: next state (float32), encoded action and classes [N, S] from tensors on
        this device, and nothing else.
        """
        with autocast(self.device, self.config.precision):
            return decide(self.networks, self._weights(), inputs)

    def load_weights(self, snapshot: WeightsSnapshot) -> None:
        """Act with these weights from now on."""
        unpack_into(snapshot, self.networks.tensors())
        self.refresh()

    def policy_weights(self) -> WeightsSnapshot:
        """A copy of what ``act`` reads."""
        return pack(self.policy_tensors())

    def policy_tensors(self) -> Mapping[str, Tensor]:
        """What :meth:`policy_weights` copies, as it is."""
        return self.networks.tensors()

    def refresh(self) -> None:
        """Prepare again, before the next decision, what is prepared from the weights; call it after
        they changed in place.
        """
        self._is_stale = True

    def rng_state(self) -> dict[str, Any]:
        """State of every acting generator."""
        return {"acting": [generator.get_state() for generator in self._generators]}

    def load_rng_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`rng_state`."""
        restore_generators(self._generators, state["acting"])

    def _weights(self) -> CellWeights:
        """The cell's weights, at the same addresses for ever."""
        if self.cell is None:
            self.cell = self.networks.dyn.cell_weights(compute_dtype(self.device))
        elif self._is_stale:
            for held, fresh in zip(
                self.cell, self.networks.dyn.cell_weights(compute_dtype(self.device)), strict=True
            ):
                # else it is a part of the weights themselves
                if held.data_ptr() != fresh.data_ptr():
                    held.copy_(fresh)
        self._is_stale = False
        return self.cell

    def _draw(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws of one step: posterior [N, S], uniform and normal draws of the actions."""
        stoch = self.config.stoch
        uniform, normal = self.networks.actor.draw_width
        if self._is_per_env and rows != len(self._generators):
            raise ShapeMismatchError(
                "rows of act() for a policy made with num_envs", len(self._generators), rows
            )
        if not self._is_per_env:
            flat = torch.rand(
                rows, stoch + uniform, generator=self._generators[0], device=self.device
            )
            return flat[:, :stoch], flat[:, stoch:], self._normal(rows, normal, self._generators[0])
        draws = [
            torch.rand(stoch + uniform, generator=g, device=self.device) for g in self._generators
        ]
        noise = [self._normal(1, normal, g) for g in self._generators]
        flat = torch.stack(draws)
        return flat[:, :stoch], flat[:, stoch:], torch.cat(noise)

    def _normal(self, rows: int, width: int, generator: torch.Generator) -> Tensor:
        if not width:
            return torch.empty(rows, 0, device=self.device)
        return torch.randn(rows, width, generator=generator, device=self.device)

    def _tensors(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        if self.transfer is not None:
            given = {
                name: value.to(self.device) if isinstance(value, Tensor) else value
                for name, value in arrays.items()
            }
            return self.transfer.to_device(given)
        return {name: self._tensor(array) for name, array in arrays.items()}

    def _arrays(self, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        if self.transfer is not None:
            return self.transfer.to_host(tensors)
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}

    def _tensor(self, array: Any) -> Tensor:
        """A tensor on this device, sharing memory with a host array where that is writable; nothing
        here is written to.
        """
        if isinstance(array, Tensor):
            return array.to(self.device)
        array = np.asarray(array)
        tensor = torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)
        return tensor.to(self.device)

    def _out(self, tensor: Tensor) -> Any:
        return tensor.numpy() if self.device.type == "cpu" else tensor
