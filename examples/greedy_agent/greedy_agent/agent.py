"""Learn the reward of (observation, action), then act by the best of K random actions.

Legend: N envs, K candidates, A numbers of an action, B transitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from greedy_agent.spec import GreedyConfig, make_spec
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.process_group import ProcessGroup
from worldloom.core.protocol import ActOutput, TrainOutput
from worldloom.core.sequence import SequenceBatch, transitions
from worldloom.core.specs import EnvSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.nn.optim import LaProp, LaPropConfig
from worldloom.nn.snapshot import pack, unpack_into

__all__ = ["Greedy", "make_agent", "make_policy"]


class Greedy:
    """Trains and acts: the protocol ``worldloom.core.protocol.Agent``.

    Args:
        config: Settings.
        env: What it sees and does.
        device: Where it lives.
        seed: Root of its weights and draws.
    """

    def __init__(
        self, config: GreedyConfig, env: EnvSpec, device: str = "cpu", seed: int = 0
    ) -> None:
        self.config = config
        self.env = env
        self.spec = make_spec(config, env)
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.num_actions = sum(spec.size for spec in env.action.values())
        inputs = sum(spec.size for spec in env.obs.values()) + self.num_actions
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Linear(inputs, config.width), nn.SiLU(), nn.Linear(config.width, 1)
            ).to(self.device)
        self.optimizer = LaProp(list(self.net.parameters()), LaPropConfig(lr=config.lr, warmup=0))

    # -- acting ------------------------------------------------------------------------------------

    def initial_carry(self, num_envs: int) -> Mapping[str, Any]:
        """Nothing is remembered between steps."""
        return {}

    @torch.no_grad()
    def act(
        self,
        obs: Mapping[str, np.ndarray],
        carry: Mapping[str, Any],
        is_first: np.ndarray,
        *,
        explore: bool,
    ) -> ActOutput:
        """The best of K random actions per env; noise is added while exploring."""
        seen = self._flat({key: obs[key] for key in self.env.obs}, lead=1)
        rows = len(seen)
        size = (rows, self.config.candidates, self.num_actions)
        action = 2 * torch.rand(size, generator=self.generator, device=self.device) - 1
        pairs = torch.cat([seen[:, None].expand(-1, size[1], -1), action], -1)
        best = self.net(pairs).squeeze(-1).argmax(1)  # [N]
        chosen = action[torch.arange(rows, device=self.device), best]  # [N, A]
        if explore:
            noise = torch.randn(chosen.shape, generator=self.generator, device=self.device)
            chosen = (chosen + self.config.noise * noise).clamp(-1, 1)
        parts = torch.split(chosen, [spec.size for spec in self.env.action.values()], 1)
        actions = {
            key: part.reshape(rows, *spec.shape).cpu().numpy()
            for (key, spec), part in zip(self.env.action.items(), parts, strict=True)
        }
        return ActOutput(actions, carry)

    # -- training ----------------------------------------------------------------------------------

    def train_step(self, batch: SequenceBatch) -> TrainOutput:
        """One step on the squared error of the reward; a loss that is not finite changes nothing,
        and nothing here waits for the device to know.
        """
        obs, action, reward, _ = transitions(batch)
        seen = self._flat({key: obs[key][:, :-1] for key in self.env.obs}, lead=2)
        did = self._flat({key: action[key] for key in self.env.action}, lead=2)
        guess = self.net(torch.cat([seen, did], -1)).squeeze(-1)
        loss = (guess - torch.as_tensor(reward, device=self.device)).square().mean()
        accept = torch.isfinite(loss)
        grads = torch.autograd.grad(loss, list(self.net.parameters()))
        self.optimizer.step(list(grads), accept)
        return TrainOutput({"reward_loss": loss.detach()}, (~accept).float())

    def join(self, ranks: ProcessGroup) -> None:
        """One rank only."""
        if ranks.size > 1:
            raise ConfigurationError(
                f"learners: greedy trains as one rank, got {ranks.size}; use --learners 1"
            )

    def policy_weights(self) -> WeightsSnapshot:
        """A copy of what acting reads."""
        return pack(dict(self.net.state_dict()))

    def load_weights(self, snapshot: WeightsSnapshot) -> None:
        """Act with these from now on."""
        unpack_into(snapshot, dict(self.net.state_dict()))

    # -- going on exactly --------------------------------------------------------------------------

    def rng_state(self) -> dict[str, Any]:
        """Where its random numbers go on."""
        return {"generator": self.generator.get_state()}

    def load_rng_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`rng_state`."""
        self.generator.set_state(state["generator"])

    def state_dict(self) -> dict[str, Any]:
        """Copies: a checkpoint is written while training goes on."""
        return {
            "net": {name: value.clone() for name, value in self.net.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.load_rng_state(state["rng"])

    def _flat(self, arrays: Mapping[str, Any], lead: int) -> Tensor:
        """[..., numbers] of arrays with ``lead`` leading axes."""
        parts = [torch.as_tensor(value, device=self.device) for value in arrays.values()]
        return torch.cat([part.reshape(*part.shape[:lead], -1).float() for part in parts], -1)


def make_agent(config: GreedyConfig, env: EnvSpec, *, device: str = "cpu", seed: int = 0) -> Greedy:
    """The agent that trains."""
    return Greedy(config, env, device, seed)


def make_policy(
    config: GreedyConfig,
    env: EnvSpec,
    *,
    device: str = "cpu",
    seed: int = 0,
    num_envs: int | None = None,
) -> Greedy:
    """The same, where it only acts."""
    return Greedy(config, env, device, seed)
