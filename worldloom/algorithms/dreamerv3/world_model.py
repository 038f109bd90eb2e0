"""DreamerV3's world model as the public API has it: the networks and losses of
``worldloom.models.dreamer``, gym-aligned batches.

A batch has (obs[t], action[t], reward and continuation of that action) as a Gymnasium user stores
them; inside, rewards and ends belong to the row they arrive in. An arrival without an observation
(the last one of a batch or, where none was recorded, of an episode) is trained from the prior, so
that no reward and no end is lost. Legend: B batch, T time, R rows (T, or T + 1 with a last
observation), S categoricals, C classes, N arrivals without observation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloom.algorithms.base import TRAINING_FIELDS, BaseWorldModel, place_of
from worldloom.algorithms.dreamerv3.config import DreamerV3Config
from worldloom.algorithms.dreamerv3.model import ModelBatch, WorldModel
from worldloom.algorithms.dreamerv3.rssm import State
from worldloom.algorithms.dreamerv3.scan import CellWeights
from worldloom.algorithms.inputs import tensor_of
from worldloom.core.config_base import MODEL_CLASSES
from worldloom.core.exceptions import ShapeMismatchError
from worldloom.core.fields import Bounds, checked
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.core.state import LatentState, Predictions
from worldloom.core.state_kinds import LatentType
from worldloom.nn.distributions import binary_loss, two_hot, two_hot_loss

__all__ = ["DreamerV3WorldModel", "dreamer_env"]

KEY = "obs"


def dreamer_env(config: DreamerV3Config) -> EnvSpec:
    """The one observation and the one action as the networks read them; discrete actions come as
    one-hot codes.
    """
    dtype = "uint8" if config.encoder_type == "cnn" else "float32"
    shape = config.obs_shape if dtype == "uint8" else (config.obs_size,)
    return EnvSpec(
        name="offline",
        obs={KEY: ArraySpec(shape, dtype)},
        action={"action": ArraySpec((config.action_dim,))},
    )


class DreamerV3WorldModel(BaseWorldModel):
    """Encoder, recurrent state-space model, decoder, reward and continuation head.

    Images are uint8, or floats in [0, 1]; vectors are numbers of any size.

    Args:
        config: Settings.

    Example:
        >>> config = DreamerV3Config.from_size("ci", obs_shape=(3,), action_dim=2, device="cpu")
        >>> model = DreamerV3WorldModel(config)
        >>> trajectory = model.imagine(model.encode(torch.zeros(4, 3)), torch.zeros(5, 4, 2))
        >>> trajectory.rewards.shape, trajectory.continues.shape
        (torch.Size([5, 4, 1]), torch.Size([5, 4, 1]))
    """

    tunable = TRAINING_FIELDS | {"kl_free", "kl_balance", "loss_scales"}
    discount = DreamerV3Config.discount

    def __init__(self, config: DreamerV3Config) -> None:
        super().__init__(config)
        self.discount = config.discount
        self.net = WorldModel(dreamer_env(config), config.sizes(), mlp_layers=config.mlp_layers)
        self.to(place_of(config.device))

    # -- single steps ------------------------------------------------------------------------------

    def encode(self, obs: Tensor, deterministic: bool = False) -> LatentState:
        """Posterior of observations ``[B, *obs_shape]`` at the start of an episode;
        ``deterministic`` takes the mode.
        """
        checked = self._obs(obs)
        rows = len(checked)
        action = torch.zeros(rows, self.config.action_dim, device=self.device)
        first = torch.ones(rows, dtype=torch.bool, device=self.device)
        with self.precision():
            return self._posterior(
                self.net.dyn.initial(rows), action, checked, first, deterministic
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
        """Posterior after ``action`` ``[B, A]`` and ``obs``; ``is_first`` ``[B]`` starts an
        episode in its rows.
        """
        rows = state.batch_size
        checked = self._obs(obs, rows)
        action = self._action(action, rows)
        first = tensor_of(
            "is_first", torch.zeros(rows, dtype=torch.bool) if is_first is None else is_first
        ).bool()
        if tuple(first.shape) != (rows,):
            raise ShapeMismatchError("is_first", [rows], list(first.shape))
        with self.precision():
            return self._posterior(
                self._inner(self._state(state)),
                action,
                checked,
                first.to(self.device),
                deterministic,
            )

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None
    ) -> LatentState:
        """Zeros: the state before an episode."""
        state = self._outer(
            self.net.dyn.initial(checked("batch_size", batch_size, int, Bounds(1))), {}
        )
        return state.to(device) if device is not None else state

    def decode(self, state: LatentState) -> Predictions:
        """``obs`` ``[B, *obs_shape]`` (images in [0, 1]), ``reward`` ``[B, 1]`` on arrival,
        ``continue`` ``[B, 1]`` probability.
        """
        inner = self._inner(self._state(state))
        with self.precision():
            feature = torch.cat([inner.deter, inner.stoch], -1)
            obs = self.net.dec(inner.deter, inner.stoch)[KEY]
            reward = self.net.reward(feature)
            cont = self._goes_on(feature)
        return Predictions(
            {
                "obs": self._public_obs(obs),
                "reward": reward[:, None].float(),
                "continue": cont[:, None],
            }
        )

    def natural_obs(self, obs: Tensor) -> Tensor:
        """See :meth:`BaseWorldModel.natural_obs`; uint8 vectors are decoded as 0..255."""
        return obs.float() if self.config.encoder_type == "mlp" else super().natural_obs(obs)

    def predict_reward(self, state: LatentState) -> Tensor:
        """Expected reward on arrival in ``state``. ``[B]``."""
        return self.net.reward(self._state(state).features)

    def _posterior(
        self, state: State, action: Tensor, obs: Tensor, is_first: Tensor, deterministic: bool
    ) -> LatentState:
        dyn = self.net.dyn
        w = self.net.weights()
        token = self.net.enc({KEY: self._private_obs(obs)})
        keep = (~is_first).to(token.dtype)[:, None]
        draws = torch.rand(len(obs), self.net.sizes.stoch, device=self.device)
        new, logits, _ = dyn.observe_step(w, state, action, token, keep, draws)
        if deterministic:
            new = State(new.deter, dyn.sample(logits, logits.argmax(-1))[0])
        prior = dyn.prior_logits(new.deter)
        return self._outer(
            new, {"logits": logits, "posterior_logits": logits, "prior_logits": prior}
        )

    def _step(self, state: LatentState, action: Tensor, deterministic: bool) -> LatentState:
        return self._stepper()(state, action, deterministic)

    def _stepper(self) -> Callable[[LatentState, Tensor, bool], LatentState]:
        """See :meth:`BaseWorldModel._stepper`; the core's weights are laid out once for
        all steps.
        """
        return functools.partial(self._step_with, self.net.weights())

    def _step_with(
        self, w: CellWeights, state: LatentState, action: Tensor, deterministic: bool
    ) -> LatentState:
        dyn = self.net.dyn
        draws = torch.rand(len(action), self.net.sizes.stoch, device=self.device)
        new, logits = dyn.imagine_step(w, self._inner(state), action, draws)
        if deterministic:
            new = State(new.deter, dyn.sample(logits, logits.argmax(-1))[0])
        return self._outer(new, {"logits": logits, "prior_logits": logits})

    def _outcome(
        self, states: list[LatentState], actions: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        feature = torch.stack([state.features for state in states[1:]])
        return (
            self.net.reward(feature)[..., None].float(),
            None,
            self._goes_on(feature)[..., None],
        )

    def _goes_on(self, feature: Tensor) -> Tensor:
        """Probability [...] that the episode goes on after arrival, without the discount that its
        head may hold.
        """
        scale: float = self.config.continue_scale
        return (self.net.cont(feature).float() / scale).clamp(max=1.0)

    # -- between the public and the private form ---------------------------------------------------

    def _outer(self, state: State, logits: Mapping[str, Tensor]) -> LatentState:
        stoch = state.stoch.reshape(len(state.stoch), self.net.sizes.stoch, self.net.sizes.classes)
        return LatentState(
            deterministic=state.deter,
            stochastic=stoch,
            latent_type=LatentType.CATEGORICAL,
            **logits,  # type: ignore[arg-type]
        )

    def _inner(self, state: LatentState) -> State:
        sizes = self.net.sizes
        deter = state.deterministic
        stoch = state.stochastic
        want = (sizes.deter, sizes.latent)
        got = (
            None if deter is None else deter.shape[-1],
            None if stoch is None else stoch.flatten(1).shape[-1],
        )
        if deter is None or stoch is None or got != want:
            raise ShapeMismatchError(
                "widths (deterministic, stochastic) of a state of this model", want, got
            )
        return State(deter, stoch.flatten(1))

    def _private_obs(self, obs: Tensor) -> Tensor:
        """[N, *obs_shape] as the layout reads it: floats of an image in units of uint8, vectors
        flat.
        """
        if self.config.encoder_type == "mlp":
            return obs.flatten(1)
        return obs if obs.dtype == torch.uint8 else obs * 255.0

    def _public_obs(self, obs: Tensor) -> Tensor:
        """[N, ...] of the decoder as [N, *obs_shape]."""
        shape = self.config.obs_shape
        if self.config.encoder_type == "mlp":
            return obs.float().reshape(-1, *shape)
        key = self.net.obs_layout.images[0]
        size = tuple(shape[1:]) if key.channels_first else tuple(shape[:2])
        full = (
            obs
            if obs.shape[2:] == size
            else functional.interpolate(obs, size=size, mode="bilinear")
        )
        return (full if key.channels_first else full.movedim(1, -1)).float()

    # -- training ----------------------------------------------------------------------------------

    def compute_loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """World-model losses; changes nothing.

        Args:
            batch: ``obs`` ``[B, T, *obs_shape]``, ``actions`` ``[B, T, A]``, ``rewards`` and
                ``continues`` ``[B, T]`` of those actions; optionally ``last_obs`` ``[B,
                *obs_shape]``, what the last action led to, and ``last_obs_mask`` ``[B]``, where it
                is known. Behind an action with ``continues`` 0 the next observation begins another
                episode.

        Returns:
            0-d ``loss`` and its parts ``kl, reconstruction, reward, continue`` before scaling, each
            also as ``..._loss``.
        """
        data = self._batch(batch)
        with self.precision():
            parts = self._losses(data)
        scales = self.config.loss_scales
        total = torch.stack([scales[name] * value for name, value in parts.items()]).sum()
        return {"loss": total, **parts, **{f"{name}_loss": value for name, value in parts.items()}}

    def _losses(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        c = self.config
        rows = self._rows(data)
        draws = torch.rand(*rows.reward.shape, self.net.sizes.stoch, device=self.device)
        out = self.net.losses(rows, draws, free_nats=c.kl_free, cont_scale=c.continue_scale)
        seen = torch.ones_like(rows.reward)
        if "last_obs_mask" in data:
            seen[:, -1] = data["last_obs_mask"].float()
        arrives = seen * (~rows.is_first).float()  # rows whose reward and end are known
        kl = c.kl_balance * out.losses["dyn"] + (1 - c.kl_balance) * out.losses["rep"]
        reward = (out.losses["rew"] * arrives).sum()
        cont = (out.losses["con"] * arrives).sum()
        count = arrives.sum()
        blind_reward, blind_cont, blind_count = self._blind_losses(data, rows, out.posterior)
        count = (count + blind_count).clamp(min=1.0)
        return {
            "kl": _mean(kl, seen),
            "reconstruction": _mean(out.losses[f"obs/{KEY}"], seen),
            "reward": (reward + blind_reward) / count,
            "continue": (cont + blind_cont) / count,
        }

    def _rows(self, data: dict[str, Tensor]) -> ModelBatch:
        """The batch as rows that hold what arrived in them."""
        obs = data["obs"]
        action = data["actions"]
        reward = data["rewards"]
        ended = data["continues"] < 0.5
        if "last_obs" in data:
            obs = torch.cat([obs, data["last_obs"][:, None]], 1)
        count = obs.shape[1] - 1
        blank = torch.zeros_like(action[:, :1])
        previous = torch.cat([blank, action[:, :count]], 1)
        arrival = torch.cat([torch.zeros_like(reward[:, :1]), reward[:, :count]], 1)
        terminated = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :count]], 1)
        first = torch.zeros_like(terminated)
        first[:, 0] = True
        inner = data["obs"].shape[1]
        # after a recorded end the next observation begins an episode
        first[:, 1:inner] = terminated[:, 1:inner]
        flat = self._private_obs(obs.flatten(0, 1))
        start = self.net.dyn.initial(len(obs))
        flat = flat.reshape(*obs.shape[:2], *flat.shape[1:])
        return ModelBatch(
            {KEY: flat},
            previous,
            arrival,
            first,
            torch.zeros_like(first),
            terminated & ~first,
            start,
        )

    def _blind_losses(
        self, data: dict[str, Tensor], rows: ModelBatch, post: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of reward and continuation loss over arrivals without an observation, and their
        number.
        """
        steps = data["rewards"].shape[1]
        blind = torch.zeros_like(data["rewards"], dtype=torch.bool)
        blind[:, :-1] = rows.is_first[:, 1:steps]
        blind[:, -1] = ~data["last_obs_mask"] if "last_obs_mask" in data else True
        batch, time = blind.nonzero(as_tuple=True)
        zero = torch.zeros((), device=self.device)
        if not len(batch):
            return zero, zero, zero
        start = State(post.deter[batch, time], post.stoch[batch, time])
        draws = torch.rand(len(batch), self.net.sizes.stoch, device=self.device)
        state, _ = self.net.dyn.imagine_step(
            self.net.weights(), start, data["actions"][batch, time], draws
        )
        feature = torch.cat([state.deter, state.stoch], -1)
        reward = two_hot_loss(
            self.net.rew(feature)["logits"], [two_hot(data["rewards"][batch, time], self.net.bins)]
        )
        cont = binary_loss(
            self.net.con(feature)["logit"].squeeze(-1),
            (data["continues"][batch, time] >= 0.5).float() * self.config.continue_scale,
        )
        return reward.sum(), cont.sum(), zero + len(batch)

    @property
    def _reads_images(self) -> bool:
        return bool(self.config.encoder_type == "cnn")

    def _checkpointed(self) -> Iterable[nn.Module]:
        parts = (self.net.enc.mlp, self.net.enc.cnn, self.net.dec.vec, self.net.dec.image)
        return [part for part in parts if part is not None]


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1.0)


MODEL_CLASSES.update(dreamer=DreamerV3WorldModel, dreamerv3=DreamerV3WorldModel)
