"""One update of everything: the model on real windows, the actor on imagined steps, the critic on
imagined and real ones.

Nothing in ``train_step`` waits for the device. Legend: B windows, T transitions, K members, H
imagined steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from worldloom.algorithms.mlp.foresight import foresight
from worldloom.algorithms.mlp.losses import (
    LossScales,
    ModelLoss,
    WindowBatch,
    actor_loss,
    critic_loss,
    imagine,
    model_loss,
    real_critic_loss,
)
from worldloom.algorithms.mlp.policy import MLPPolicy
from worldloom.algorithms.mlp.spec import MLPAgentConfig
from worldloom.core.damage import reading
from worldloom.core.exceptions import ShapeMismatchError
from worldloom.core.foresight import Foresight
from worldloom.core.process_group import SINGLE_PROCESS, ProcessGroup
from worldloom.core.protocol import TrainOutput
from worldloom.core.sequence import SequenceBatch, transitions
from worldloom.core.specs import EnvSpec
from worldloom.nn.generators import restore_generator, seeded_generator
from worldloom.nn.optim import ClippedAdam
from worldloom.nn.returns import ReturnNormalizer
from worldloom.nn.running_moments import RunningMoments
from worldloom.nn.snapshot import check_shapes, copy_into

__all__ = ["MLPAgent", "make_agent", "make_policy"]

Gradients = dict[str, list[Tensor]]


class MLPAgent(MLPPolicy):
    """Trains and acts; see :class:`worldloom.core.protocol.Agent`.

    Args:
        config, env, device, seed: As for :class:`MLPPolicy`.
    """

    def __init__(
        self, config: MLPAgentConfig, env: EnvSpec, *, device: str = "cpu", seed: int = 0
    ) -> None:
        super().__init__(config, env, device=device, seed=seed)
        config = self.config
        self.scales = LossScales(
            reconstruction=config.reconstruction_scale,
            prediction=config.prediction_scale,
            dynamics=config.dynamics_scale,
            reward=config.reward_scale,
            done=config.done_scale,
            discount=self.discount,
            lam=config.lam,
            uncertainty_bonus=config.uncertainty_bonus,
            straight_through=config.straight_through,
        )
        rates = {
            "model": config.learning_rate,
            "actor": config.policy_learning_rate,
            "critic": config.value_learning_rate,
        }
        self.optimizers = {
            part: ClippedAdam(
                named,
                lr=rates[part],
                grad_clip=config.grad_clip,
                weight_decay=config.weight_decay if part == "model" else 0.0,
            )
            for part, named in self.networks.groups()
        }
        self.spread = ReturnNormalizer(rate=config.return_rate, debias=True)
        self.spread_state = self.spread.initial(self.device)
        self.train_generator = seeded_generator(self._train_seed, self.device)
        self.join(SINGLE_PROCESS)

    def join(self, ranks: ProcessGroup) -> None:
        """See :meth:`worldloom.core.protocol.Agent.join`."""
        self._ranks = ranks
        self.averages = {
            part: ranks.averager(list(optimizer.named.values()))
            for part, optimizer in self.optimizers.items()
        }

    def train_step(self, batch: SequenceBatch) -> TrainOutput:
        """One update of model, actor, critic and slow critic from windows of
        ``spec.sampling.window_rows`` rows.
        """
        data = self.window_batch(batch)
        moments = self._moments(data)
        model = model_loss(self.networks.model, data, self.scales)
        gradients = {"model": self._gradients("model", model.total)}
        totals = {"model": model.total}
        behaviour, metrics, spread = self._behaviour(model, data)
        for part, total in behaviour.items():
            gradients[part] = self._gradients(part, total)
            totals[part] = total
        metrics |= {f"loss/{part}": total.detach() for part, total in behaviour.items()}
        metrics["loss/total"] = torch.stack(list(totals.values())).sum().detach()
        bad, norms = self._apply(gradients, totals)
        with torch.no_grad():
            for running, averages in moments:
                running.move(averages, bad)
            for held, new in zip(self.spread_state, spread, strict=True):
                held.copy_(torch.where(bad > 0, held, new))
            rate = self.config.slow_rate * (1 - bad)
            pairs = zip(
                self.networks.slow.parameters(), self.networks.critic.parameters(), strict=True
            )
            for slow, fast in pairs:
                slow.lerp_(fast, rate)
        return TrainOutput(model.metrics | metrics | norms, bad)

    def _moments(self, data: WindowBatch) -> list[tuple[RunningMoments, Tensor]]:
        """Running moments of observations and rewards, and their averages after this batch."""
        model = self.networks.model
        values = (
            (model.obs_moments, data.vector.flatten(0, 1)),
            (model.reward_moments, data.reward.flatten()[:, None]),
        )
        return [(held, held.moved(self._ranks.gather(value))) for held, value in values]

    def _behaviour(
        self, model: ModelLoss, data: WindowBatch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[Tensor, ...]]:
        """Losses of actor and critic, metrics, and the new spread of returns.

        Member k imagines from row k of every window, or from row k mod T+1.
        """
        config = self.config
        rows = [k % len(model.latent) for k in range(config.ensemble_size)]
        start = torch.stack([model.latent[row] for row in rows])
        draws = self.own_draws(start.shape[1])
        dreamt = imagine(self.networks, start, *draws, self.scales)
        start_weight = torch.cat([data.goes_on[row] for row in rows])
        _, scale = self.spread.offset_scale(self.spread_state)
        actor = actor_loss(
            self.networks,
            dreamt,
            start_weight,
            self.scales,
            scale,
            config.entropy_scale,
            config.mean_scale,
        )
        spread = self.spread.update(self.spread_state, self._ranks.gather(actor.returns.T))
        imagined = critic_loss(
            self.networks, dreamt.latent[:-1].detach(), actor.returns, actor.weight
        )
        real = real_critic_loss(self.networks, model.latent, data, self.scales)
        metrics = actor.metrics | {
            "loss/critic_imagined": imagined.detach(),
            "loss/critic_real": real.detach(),
            "return_scale": scale,
        }
        losses = {"actor": actor.total, "critic": imagined + config.real_value_scale * real}
        return losses, metrics, spread

    def own_draws(self, windows: int) -> tuple[Tensor, Tensor]:
        """Uniform and normal draws [H, K B, ...] of the imagined actions: those of the joint batch,
        cut to this rank's windows.
        """
        ranks = self._ranks
        lead = (self.config.horizon, self.config.ensemble_size, windows * ranks.size)
        uniform, normal = self.networks.actor.draw_width
        place: dict[str, Any] = {"generator": self.train_generator, "device": self.device}
        both = (torch.rand(*lead, uniform, **place), torch.randn(*lead, normal, **place))
        own = slice(ranks.rank * windows, (ranks.rank + 1) * windows)
        first, second = (draws[:, :, own].flatten(1, 2) for draws in both)
        return first, second

    def _gradients(self, part: str, total: Tensor) -> list[Tensor]:
        parameters = list(self.optimizers[part].named.values())
        return list(torch.autograd.grad(total, parameters))

    def _apply(
        self, gradients: Gradients, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Step every optimizer, or none where a loss or gradient is not finite. Returns 1.0 (0-d)
        if the update was skipped, and the norms before clipping.
        """
        norms = {}
        is_good = torch.ones((), dtype=torch.bool, device=self.device)
        for part, found in gradients.items():
            total = totals[part].detach().clone()
            self.averages[part](found, [total])
            norms[part] = torch.nn.utils.get_total_norm(found)
            is_good = is_good & total.isfinite() & norms[part].isfinite()
        bad = (~is_good).float()
        for part, found in gradients.items():
            self.optimizers[part].step(found, norms[part], bad)
        return bad, {f"grad_norm/{part}": norm for part, norm in norms.items()}

    def predict_ahead(self, batch: SequenceBatch, warm_up: int) -> Foresight:
        """See :meth:`worldloom.core.protocol.PredictsAhead.predict_ahead`."""
        return foresight(self.networks, self.window_batch(batch), warm_up, self.discount)

    def generators(self) -> list[torch.Generator]:
        """See :meth:`worldloom.core.protocol.CapturableUpdate.generators`."""
        return [*self._generators, self.train_generator]

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizers, spread of returns and random state; tensors are copies."""
        state = self.networks.state_dict()
        return {
            "networks": {name: value.clone() for name, value in state.items()},
            "optimizers": {part: o.state_dict() for part, o in self.optimizers.items()},
            "spread": [value.clone() for value in self.spread_state],
            "rng": self.rng_state() | {"train": self.train_generator.get_state()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        with reading("agent state", "a part is missing or of another kind"):
            check_shapes(self.networks.state_dict(), state["networks"])
            for part, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][part])
            self.networks.load_state_dict(state["networks"])
            copy_into("agent state: spread", self.spread_state, state["spread"])
            self.load_rng_state(state["rng"])
            restore_generator(self.train_generator, state["rng"]["train"])

    def window_batch(self, batch: SequenceBatch) -> WindowBatch:
        """Windows [B, T+1, ...] as the losses take them; the one place where the axes are
        swapped.
        """
        rows = batch.reward.shape[1]
        if rows < 2:
            raise ShapeMismatchError("rows per window of train_step", ">= 2", rows)
        batch = batch.map(self._tensor)
        obs, action, reward, terminated = transitions(batch)
        model = self.networks.model
        flat = {name: obs[name].transpose(0, 1).flatten(0, 1) for name in model.obs.names}
        vector, image = model.parts(flat)
        lead = (rows, len(batch.reward))
        done = {name: value.transpose(0, 1).flatten(0, 1) for name, value in action.items()}
        encoded = self.networks.actions.encode(done)
        return WindowBatch(
            vector.view(*lead, -1),
            None if image is None else image.view(*lead, *image.shape[1:]),
            encoded.view(rows - 1, lead[1], -1),
            reward.transpose(0, 1).float(),
            terminated.transpose(0, 1).float(),
            (~batch.is_first[:, 1:]).transpose(0, 1).float(),
            (~batch.terminated).transpose(0, 1).float(),
        )


def make_agent(
    config: MLPAgentConfig, env: EnvSpec, *, device: str = "cpu", seed: int = 0
) -> MLPAgent:
    """See :func:`worldloom.algorithms.registry.make_agent`."""
    return MLPAgent(config, env, device=device, seed=seed)


def make_policy(
    config: MLPAgentConfig,
    env: EnvSpec,
    *,
    device: str = "cpu",
    seed: int = 0,
    num_envs: int | None = None,
) -> MLPPolicy:
    """See :func:`worldloom.algorithms.registry.make_policy`."""
    return MLPPolicy(config, env, device=device, seed=seed, num_envs=num_envs)
