"""DreamerV3 behind the protocols of ``worldloom.core.protocol``: one update of everything, and the
policy that acts.

Nothing in ``train_step`` waits for the device: draws, step count, learning rate and the verdict
about non-finite numbers stay there, so the whole update can be captured as a graph. Legend: B
batch, T trained steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from worldloom.algorithms.dreamerv3.context import pack_latents, window_batch
from worldloom.algorithms.dreamerv3.foresight import foresight
from worldloom.algorithms.dreamerv3.model import WorldModel
from worldloom.algorithms.dreamerv3.networks import Draws, LossOutput, Networks
from worldloom.algorithms.dreamerv3.policy import ActingNetworks, DreamerV3Policy
from worldloom.algorithms.dreamerv3.report import open_loop_videos
from worldloom.algorithms.dreamerv3.spec import (
    LATENT_DETER,
    DreamerAgentConfig,
    DreamerV3AgentConfig,
    make_spec,
)
from worldloom.core.damage import reading
from worldloom.core.exceptions import ShapeMismatchError
from worldloom.core.foresight import Foresight
from worldloom.core.process_group import SINGLE_PROCESS, ProcessGroup
from worldloom.core.protocol import TrainOutput
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import EnvSpec
from worldloom.nn.generators import fresh_weights, restore_generator, seeded_generator
from worldloom.nn.optim import LaProp, LaPropConfig
from worldloom.nn.precision import autocast
from worldloom.nn.snapshot import check_shapes, copy_into

__all__ = ["DreamerAgent", "DreamerV3Agent", "make_agent", "make_policy"]


class DreamerAgent(DreamerV3Policy):
    """Trains and acts, whatever its model's representation is learnt from; see
    :class:`worldloom.core.protocol.Agent`.

    Args:
        config, env: As given to the registry.
        device: Where it lives.
        seed: Root of the initial weights and of every draw.
    """

    kind_of_networks: ClassVar[type[Networks]] = Networks
    """An heir may have others."""

    def __init__(
        self, config: DreamerAgentConfig, env: EnvSpec, *, device: str = "cpu", seed: int = 0
    ) -> None:
        self.spec = make_spec(config, env)
        place = torch.device(device)
        init, acting, training = np.random.SeedSequence(seed).spawn(3)
        with fresh_weights(init):
            self.all_networks = self.kind_of_networks(config, env)
        self.all_networks.to(place)
        model = self.all_networks.model
        networks = ActingNetworks(self.all_networks.actor, model.enc, model.dyn)
        super().__init__(
            config, env, networks, place, [seeded_generator(acting, place)], is_per_env=False
        )
        self._params = self.all_networks.trained()
        self.optimizer = LaProp(list(self._params.values()), optimizer_config(config))
        self.normalizer = self.all_networks.normalizer.initial(place)
        self._train_generator = seeded_generator(training, place)
        self.join(SINGLE_PROCESS)

    def join(self, ranks: ProcessGroup) -> None:
        """See :meth:`worldloom.core.protocol.Agent.join`."""
        self._ranks = self.all_networks.ranks = ranks
        self._average = ranks.averager(list(self._params.values()))

    def train_step(self, batch: SequenceBatch) -> TrainOutput:
        """One update of world model, actor, critic and slow critic from windows of
        ``spec.sampling.window_rows`` rows.
        """
        self._check(batch)
        config = self.config
        rows = window_batch(
            batch, self.all_networks.model, config.replay_context, burn_in=config.burn_in
        )
        with autocast(self.device, self.config.precision):
            out = self.all_networks.loss(rows, self._own_draws(*rows.reward.shape), self.normalizer)
        accept, norm = self._apply(out)
        refreshed = (
            pack_latents(out.posterior.deter, out.posterior.classes)
            if self.config.replay_context
            else None
        )
        metrics = out.metrics | {"loss/total": out.total.detach(), "grad_norm/all": norm}
        return TrainOutput(metrics, (~accept).float(), refreshed)

    def draw(self, batch: int, length: int) -> Draws:
        """All randomness of one update."""
        rows = batch * length
        horizon = self.config.imagine_length
        stoch = self.config.stoch
        uniform, normal = self.networks.actor.draw_width

        def rand(*shape: int) -> Tensor:
            """Uniform numbers from the training generator."""
            return torch.rand(*shape, generator=self._train_generator, device=self.device)

        posterior = rand(batch, length, stoch)
        prior = rand(horizon, rows, stoch)
        noise = torch.randn(
            horizon + 1, rows, normal, generator=self._train_generator, device=self.device
        )
        return Draws(posterior, prior, rand(horizon + 1, rows, uniform), noise)

    def _own_draws(self, batch: int, length: int) -> Draws:
        """The joint batch's draws, cut to this rank's windows."""
        ranks = self._ranks
        draws = self.draw(batch * ranks.size, length)
        return (
            draws if ranks.size == 1 else draws.rows(ranks.rank * batch, (ranks.rank + 1) * batch)
        )

    def predict_ahead(self, batch: SequenceBatch, warm_up: int) -> Foresight:
        """See :meth:`worldloom.core.protocol.PredictsAhead.predict_ahead`."""
        rows = window_batch(batch.map(self._tensor), self.all_networks.model, 0)
        with autocast(self.device, self.config.precision):
            return foresight(self.all_networks, self.env.obs, rows, warm_up)

    def generators(self) -> list[torch.Generator]:
        """See :meth:`worldloom.core.protocol.CapturableUpdate.generators`."""
        return [*self._generators, self._train_generator]

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizer, return normaliser and random state; tensors are copies."""
        return {
            "networks": {
                name: value.clone() for name, value in self.all_networks.state_dict().items()
            },
            "optimizer": self.optimizer.state_dict(),
            "normalizer": [value.clone() for value in self.normalizer],
            "rng": self.rng_state() | {"train": self._train_generator.get_state()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        with reading("agent state", "a part is missing or of another kind"):
            check_shapes(self.all_networks.state_dict(), state["networks"])
            self.all_networks.load_state_dict(state["networks"])
            self.optimizer.load_state_dict(state["optimizer"])
            copy_into("agent state: normalizer", self.normalizer, state["normalizer"])
            self.load_rng_state(state["rng"])
            restore_generator(self._train_generator, state["rng"]["train"])
        self.refresh()

    @torch.no_grad()
    def _update(self, out: LossOutput, grads: list[Tensor], accept: Tensor) -> None:
        self.optimizer.step(grads, accept)
        self.all_networks.update_slow_critic(self.config.slow_rate * accept.float())
        for new, old in zip(out.normalizer, self.normalizer, strict=True):
            # in place, as everything here: a captured update replays on the same memory
            old.copy_(torch.where(accept, new, old))
        self.refresh()

    def _apply(self, out: LossOutput) -> tuple[Tensor, Tensor]:
        """Differentiate and update. Returns whether the update was accepted (0-d bool) and the
        global gradient norm.
        """
        grads = list(torch.autograd.grad(out.total, list(self._params.values())))
        total = out.total.detach().clone()
        self._average(grads, [total])
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        accept = torch.isfinite(total) & torch.isfinite(norm)
        self._update(out, grads, accept)
        return accept, norm

    def _check(self, batch: SequenceBatch) -> None:
        rows = batch.reward.shape[1]
        if rows < self.config.replay_context + 2:
            raise ShapeMismatchError(
                "rows per window of train_step", f">= {self.config.replay_context + 2}", rows
            )
        if self.config.replay_context and LATENT_DETER not in batch.extras:
            raise ShapeMismatchError(
                "extras of train_step with replay_context=1",
                sorted(self.spec.extras),
                sorted(batch.extras),
            )


class DreamerV3Agent(DreamerAgent):
    """A :class:`DreamerAgent` whose model decodes, and shows what it predicts."""

    config: DreamerV3AgentConfig

    @torch.no_grad()
    def report(self, batch: SequenceBatch) -> dict[str, np.ndarray]:
        """Open-loop predictions; see
        :func:`worldloom.algorithms.dreamerv3.report.open_loop_videos`. Equal calls draw
        equal samples.
        """
        model = self.all_networks.model
        assert isinstance(model, WorldModel)
        rows = window_batch(batch.map(self._tensor), model, self.config.replay_context)
        length = min(self.config.report_length, rows.reward.shape[1])
        with autocast(self.device, self.config.precision):
            return open_loop_videos(
                model, rows, length, torch.Generator(self.device).manual_seed(0)
            )


def optimizer_config(config: DreamerAgentConfig) -> LaPropConfig:
    """The optimizer's part of the settings."""
    names = ("lr", "warmup", "agc", "pmin", "beta1", "beta2", "eps", "weight_decay")
    return LaPropConfig(**{name: getattr(config, name) for name in names})


def make_agent(
    config: DreamerV3AgentConfig, env: EnvSpec, *, device: str = "cpu", seed: int = 0
) -> DreamerV3Agent:
    """See :func:`worldloom.algorithms.registry.make_agent`."""
    return DreamerV3Agent(config, env, device=device, seed=seed)


def make_policy(
    config: DreamerAgentConfig,
    env: EnvSpec,
    *,
    device: str = "cpu",
    seed: int = 0,
    num_envs: int | None = None,
) -> DreamerV3Policy:
    """See :func:`worldloom.algorithms.registry.make_policy`."""
    make_spec(config, env)
    place = torch.device(device)
    init, acting, _ = np.random.SeedSequence(seed).spawn(3)
    with fresh_weights(init):
        networks = ActingNetworks.build(config, env)
    for module in networks:
        module.to(place)
    generators = [
        seeded_generator(s, place)
        for s in ([acting] if num_envs is None else acting.spawn(num_envs))
    ]
    return DreamerV3Policy(
        config, env, networks, place, generators, is_per_env=num_envs is not None
    )
