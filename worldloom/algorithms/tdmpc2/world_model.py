"""TD-MPC2's world model as the public API has it: the networks, losses and planner that the agent
uses, gym-aligned batches.

Offline training follows the agent: latent consistency, reward, value and, through its own loss, the
policy prior that the value targets bootstrap from. The policy's gradient touches the policy only,
so one optimizer serves all. Legend: B batch, T time, H horizon, A action, L latent, Q critics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from worldloom.algorithms.base import TRAINING_FIELDS, BaseWorldModel, place_of, torch_generator
from worldloom.algorithms.inputs import index_of
from worldloom.algorithms.tdmpc2.config import Architecture, TDMPC2Config
from worldloom.algorithms.tdmpc2.draws import PlanDraws, PlanShape, UpdateDraws
from worldloom.algorithms.tdmpc2.losses import LossSettings, UpdateBatch, model_loss, policy_loss
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks, make_critics
from worldloom.algorithms.tdmpc2.planner import PlannerSettings, plan
from worldloom.core.config_base import MODEL_CLASSES
from worldloom.core.exceptions import ConfigurationError, ShapeMismatchError
from worldloom.core.fields import Bounds, checked
from worldloom.core.specs import ArraySpec
from worldloom.core.state import LatentState, Predictions
from worldloom.core.state_kinds import LatentType
from worldloom.nn.functional import symexp, symlog
from worldloom.nn.normed import MLP

__all__ = ["TDMPC2WorldModel", "tdmpc2_architecture"]

KEY = "obs"
TAU = 0.01
ENCODER_LR_SCALE = 0.3
POLICY_SAMPLES = 24
ITERATIONS = 6
MIN_STD = 0.05
MAX_STD = 2.0


def tdmpc2_architecture(config: TDMPC2Config) -> Architecture:
    """Sizes of the networks."""
    is_multitask = config.num_tasks > 1
    return Architecture.of(
        config.sizes(),
        obs={KEY: ArraySpec(config.obs_shape, "uint8" if config.is_image else "float32")},
        action_dim=config.action_dim,
        is_episodic=config.episodic,
        num_tasks=config.num_tasks,
        task_dim=config.task_dim if is_multitask else 0,
    )


class TDMPC2WorldModel(BaseWorldModel):
    """Encoder, latent dynamics, reward, critics and policy prior; an implicit model, without
    reconstruction by default.

    Args:
        config: Settings.

    Raises:
        ConfigurationError: If actions are discrete.

    Example:
        >>> config = TDMPC2Config.from_size("ci", obs_shape=(3,), action_dim=2, device="cpu")
        >>> model = TDMPC2WorldModel(config)
        >>> trajectory = model.imagine(model.encode(torch.zeros(4, 3)), torch.zeros(5, 4, 2))
        >>> trajectory.rewards.shape, trajectory.continues is None
        (torch.Size([5, 4, 1]), True)
    """

    tunable = TRAINING_FIELDS | {
        "gamma",
        "horizon",
        "num_samples",
        "num_elites",
        "temperature",
        "momentum",
    }
    scale: Tensor

    def __init__(self, config: TDMPC2Config) -> None:
        super().__init__(config)
        if config.action_type == "discrete":
            raise ConfigurationError(
                "action_type must be continuous for tdmpc2, got 'discrete'; use dreamerv3",
                config.model_name,
            )
        self.net = TDMPC2Networks(tdmpc2_architecture(config)).reset_parameters()
        self.target = make_critics(self.net.architecture).requires_grad_(False)
        self.target.load_state_dict(self.net.critics.state_dict())
        self.register_buffer("scale", torch.ones(()))
        self.decoder: MLP | None = None
        if config.use_decoder:
            self.decoder = MLP(config.latent_dim, (config.hidden_dim,), config.obs_size)
            for layer in self.decoder:
                layer.reset_parameters()  # type: ignore[operator]
        self.to(place_of(config.device))

    # -- single steps ------------------------------------------------------------------------------

    def encode(
        self, obs: Tensor, deterministic: bool = False, task_id: Tensor | int | None = None
    ) -> LatentState:
        """Latent of observations ``[B, *obs_shape]``; always deterministic. ``task_id`` is an
        integer or ``[B]``.
        """
        checked = self._obs(obs)
        with self.precision():
            z = self.net.encode(
                {KEY: self._private_obs(checked)}, self._task(task_id, len(checked))
            ).float()
        return LatentState(
            deterministic=z,
            latent_type=LatentType.SIMNORM,
            metadata={} if task_id is None else {"task_id": task_id},
        )

    def observe(
        self,
        state: LatentState,
        action: Tensor,
        obs: Tensor,
        is_first: Tensor | None = None,
        *,
        deterministic: bool = False,
    ) -> LatentState:
        """Latent of ``obs``: the model has no memory, so the past does not matter; arguments are
        checked all the same.
        """
        self._action(action, state.batch_size)
        checked = self._obs(obs, state.batch_size)
        return self.encode(checked, deterministic, state.metadata.get("task_id"))

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None
    ) -> LatentState:
        """The latent without knowledge: every simplex uniform."""
        batch_size = checked("batch_size", batch_size, int, Bounds(1))
        z = torch.full(
            (batch_size, self.config.latent_dim),
            1.0 / self.config.simnorm_dim,
            device=device or self.device,
        )
        return LatentState(deterministic=z, latent_type=LatentType.SIMNORM)

    def predict(
        self,
        state: LatentState,
        action: Tensor,
        deterministic: bool = False,
        task_id: Tensor | int | None = None,
    ) -> LatentState:
        """Latent after ``action`` ``[B, A]``."""
        if task_id is not None:
            state = LatentState(
                deterministic=state.deterministic,
                latent_type=state.latent_type,
                metadata={"task_id": task_id},
            )
        return super().predict(state, action, deterministic)

    def decode(self, state: LatentState) -> Predictions:
        """``reward`` ``[B, 1]`` and ``q_values`` ``[Q, B, 1]`` of the policy's mean ``action``
        ``[B, A]``.

        ``continue`` ``[B, 1]`` is there when the model is episodic, ``obs`` when it has a decoder.
        """
        z, task = self._latent(state)
        with self.precision():
            mask = self._mask(state)
            action = torch.tanh(
                self.net.policy(
                    z, torch.zeros(len(z), self.config.action_dim, device=z.device), task, mask
                ).mean
            )
            result = Predictions(
                {
                    "reward": self.net.reward(z, action, task)[:, None].float(),
                    "action": action.float(),
                }
            )
            result["q_values"] = self.net.bins.mean(self.net.critic_logits(z, action, task))[
                ..., None
            ].float()
            if self.net.termination is not None:
                result["continue"] = (
                    1 - torch.sigmoid(self.net.termination_logits(z))[:, None].float()
                )
            if self.decoder is not None:
                result["obs"] = symexp(self.decoder(z)).reshape(-1, *self.config.obs_shape).float()
        return result

    def predict_reward(self, state: LatentState, action: Tensor) -> Tensor:
        """Reward of ``action`` in ``state``. ``[B]``."""
        z, task = self._latent(state)
        return self.net.reward(z, self._action(action, len(z)), task)

    def predict_q(self, state: LatentState, action: Tensor) -> Tensor:
        """Return of ``action`` in ``state`` according to every critic. ``[Q, B]``."""
        z, task = self._latent(state)
        return self.net.bins.mean(self.net.critic_logits(z, self._action(action, len(z)), task))

    def q(self, state: LatentState, action: Tensor) -> Tensor:
        """As :meth:`predict_q`."""
        return self.predict_q(state, action)

    @torch.no_grad()
    def plan(
        self,
        state: LatentState,
        previous_mean: Tensor | None = None,
        *,
        explore: bool = False,
        iterations: int = ITERATIONS,
    ) -> tuple[Tensor, Tensor]:
        """Search for the best actions with MPPI.

        Args:
            state: B latents.
            previous_mean: ``[B, H, A]`` from the last call in the same episodes, for a warm start.
            explore: Add noise.
            iterations: Of the search.

        Returns:
            Actions ``[B, A]`` in [-1, 1], and the mean for the next call.
        """
        c, (z, task) = self.config, self._latent(state)
        first = z.new_zeros(len(z), c.horizon, c.action_dim)
        iterations = checked("iterations", iterations, int, Bounds(1))
        if previous_mean is not None:
            if previous_mean.shape != first.shape:
                raise ShapeMismatchError(
                    "previous_mean", list(first.shape), list(previous_mean.shape)
                )
            first[:, :-1] = previous_mean[:, 1:]
        shape = PlanShape(
            horizon=c.horizon,
            policy_samples=min(POLICY_SAMPLES, c.num_samples - 1),
            samples=c.num_samples,
            elites=c.num_elites,
            iterations=iterations,
            action_dim=c.action_dim,
            num_q=c.num_q_networks,
        )
        draws = PlanDraws.draw(len(z), shape, torch_generator(self.device))
        settings = PlannerSettings(min_std=MIN_STD, max_std=MAX_STD, temperature=c.temperature)
        found = plan(
            self.net,
            z,
            first,
            draws,
            settings,
            c.gamma,
            explore=explore,
            task=task,
            mask=self._mask(state),
        )
        return found.action, torch.lerp(found.mean, first, c.momentum)

    def _step(self, state: LatentState, action: Tensor, deterministic: bool) -> LatentState:
        z, task = self._latent(state)
        following = self.net.next_latent(z, action, task).float()
        return LatentState(
            deterministic=following, latent_type=LatentType.SIMNORM, metadata=dict(state.metadata)
        )

    def _outcome(
        self, states: list[LatentState], actions: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        z = torch.stack([state.features for state in states[:-1]])  # [T, B, L]
        task = self._task(states[0].metadata.get("task_id"), z.shape[1])
        rewards = self.net.reward(z, actions, task)[..., None].float()
        logits = self.net.critic_logits(
            z.flatten(0, 1), actions.flatten(0, 1), None if task is None else task.repeat(len(z), 1)
        )
        values = self.net.bins.mean(logits).mean(0).view(rewards.shape).float()
        if self.net.termination is None:
            return rewards, values, None
        after = torch.stack([state.features for state in states[1:]])
        return (
            rewards,
            values,
            1 - torch.sigmoid(self.net.termination_logits(after))[..., None].float(),
        )

    # -- between the public and the private form ---------------------------------------------------

    def _latent(self, state: LatentState) -> tuple[Tensor, Tensor | None]:
        """Latent [B, L] and task embedding [B, D] of a state."""
        z = self._state(state).features
        if z.shape[-1] != self.config.latent_dim:
            raise ShapeMismatchError(
                "width of a state of this model", self.config.latent_dim, z.shape[-1]
            )
        return z, self._task(state.metadata.get("task_id"), len(z))

    def _task_index(self, task_id: Tensor | int | None, rows: int) -> Tensor | None:
        if self.config.num_tasks == 1:
            return None
        return index_of(
            "task_id", 0 if task_id is None else task_id, rows, self.config.num_tasks
        ).to(self.device)

    def _task(self, task_id: Tensor | int | None, rows: int) -> Tensor | None:
        return self.net.embed(self._task_index(task_id, rows))

    def _mask(self, state: LatentState) -> Tensor | None:
        return self.net.mask(self._task_index(state.metadata.get("task_id"), state.batch_size))

    def _private_obs(self, obs: Tensor) -> Tensor:
        return obs * 255.0 if self.config.is_image and obs.dtype != torch.uint8 else obs

    # -- training ----------------------------------------------------------------------------------

    def compute_loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """World-model losses; changes nothing.

        Args:
            batch: ``obs`` ``[B, T, *obs_shape]``, ``actions`` ``[B, T, A]``, ``rewards`` ``[B, T]``
                and optionally ``continues`` ``[B, T]`` of those actions, each row inside one
                episode; optionally ``last_obs`` ``[B, *obs_shape]``, what the last action led to,
                with ``last_obs_mask`` ``[B]``, and ``task_id`` ``[B]``.

        Returns:
            0-d ``loss`` and its parts ``consistency, reward, td, policy`` before scaling, each also
            as ``..._loss``, and ``policy_scale``, the running scale that the next update uses.
        """
        data = self._batch(batch, needs_continues=False)
        task = self._task_index(batch.get("task_id"), len(data["obs"]))
        with self.precision():
            return self._losses(data, task)

    def _losses(self, data: dict[str, Tensor], task: Tensor | None) -> dict[str, Tensor]:
        windows = self._windows(data, task)
        c, (horizon, size) = self.config, windows.reward.shape
        settings = LossSettings(discount=c.gamma)
        draws = self._draw(horizon, size)
        model = model_loss(self.net, self.target, windows, draws, settings)
        policy = policy_loss(
            self.net,
            model.z.detach(),
            self.scale,
            windows.task,
            draws,
            settings,
            TAU,
            trains_tasks=False,
        )
        total = model.total + policy.total
        m = model.metrics
        parts = {
            "consistency": m["consistency_loss"],
            "reward": m["reward_loss"],
            "td": m["value_loss"],
            "policy": policy.total.detach(),
        }
        if "termination_loss" in m:
            parts["continue"] = m["termination_loss"]
        if self.decoder is not None:
            parts["reconstruction"] = self._reconstruction(data, task)
            total = total + parts["reconstruction"]
        return {
            "loss": total,
            **parts,
            **{f"{name}_loss": v for name, v in parts.items()},
            "policy_scale": policy.scale,
        }

    def _draw(self, horizon: int, size: int) -> UpdateDraws:
        """All randomness of one loss; critics drop out only in training mode."""
        a = self.net.architecture
        counts: dict[str, Any] = {"policy_samples": 0, "samples": 1, "elites": 1, "iterations": 1}
        shape = PlanShape(
            horizon=horizon,
            action_dim=a.action_dim,
            num_q=a.num_q,
            images=len(a.image_keys),
            **counts,
        )
        dropout = a.dropout if self.training else 0.0
        source = torch_generator(self.device)
        return UpdateDraws.draw(
            horizon, size, shape, mlp_dim=a.mlp_dim, dropout=dropout, generator=source
        )

    def _windows(self, data: dict[str, Tensor], task: Tensor | None) -> UpdateBatch:
        """The batch cut into windows of the config's horizon, time first; the last two may overlap.

        Where no observation was recorded after the last action, a blank stands for it.
        """
        obs = data["obs"]
        size, steps = data["rewards"].shape
        last = data.get("last_obs", torch.zeros_like(obs[:, 0]))
        mask = data.get("last_obs_mask", torch.zeros(size, dtype=torch.bool, device=self.device))
        obs = torch.cat([obs, last[:, None]], 1)
        seen = torch.ones_like(data["rewards"])
        seen[:, -1] = mask.float()
        horizon = min(self.config.horizon, steps)
        starts = list(range(0, steps - horizon + 1, horizon))
        starts += [steps - horizon] if starts[-1] != steps - horizon else []

        def cut(values: Tensor, length: int) -> Tensor:
            """``length`` steps from every start, time first."""
            # [windows * B, length, ...]
            parts = torch.cat([values[:, s : s + length] for s in starts])
            return parts.transpose(0, 1)

        return UpdateBatch(
            {KEY: self._private_obs(cut(obs, horizon + 1))},
            cut(data["actions"], horizon),
            cut(data["rewards"], horizon),
            (cut(data["continues"], horizon) < 0.5).float(),
            None if task is None else task.repeat(len(starts)),
            None if bool(mask.all()) else cut(seen, horizon),
        )

    def _reconstruction(self, data: dict[str, Tensor], task: Tensor | None) -> Tensor:
        """Squared error in symlog space of a decoder that reads latents without moving them;
        ``task`` [B].
        """
        assert self.decoder is not None  # the caller asks
        steps = data["obs"].shape[1]
        flat = data["obs"].flatten(0, 1)
        of_rows = None if task is None else task.repeat_interleave(steps)
        with torch.no_grad():
            z = self.net.encode({KEY: self._private_obs(flat)}, self.net.embed(of_rows))
        target = self.natural_obs(flat)
        predicted: Tensor = self.decoder(z)
        return (predicted - symlog(target.flatten(1))).square().mean()

    def parameter_groups(self, config: Any) -> list[dict[str, Any]]:
        """The encoder learns more slowly than the rest, as published."""
        encoder = list(self.net.encoder.parameters())
        slow = {id(p) for p in encoder}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in slow]
        rate = config.learning_rate
        decay = config.weight_decay
        return [
            {"params": encoder, "lr": rate * ENCODER_LR_SCALE, "weight_decay": decay},
            {"params": others, "lr": rate, "weight_decay": decay},
        ]

    @torch.no_grad()
    def after_update(self, losses: Mapping[str, Tensor]) -> None:
        """Move the target critics and the running scale."""
        for slow, fast in zip(self.target.parameters(), self.net.critics.parameters(), strict=True):
            slow.lerp_(fast, TAU)
        self.scale.copy_(losses["policy_scale"])

    @property
    def _reads_images(self) -> bool:
        return bool(self.config.is_image)

    def _checkpointed(self) -> Iterable[nn.Module]:
        return (self.net.encoder, self.net.dynamics, self.net.reward_head)


MODEL_CLASSES.update(tdmpc2=TDMPC2WorldModel, tdmpc=TDMPC2WorldModel)
