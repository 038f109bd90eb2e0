"""The plain latent world model of the guide, alone or as an ensemble of K independent ones.

The state of an ensemble is the latents of its members side by side; predictions are the members'
mean, and their disagreement about the next observation is the uncertainty. Legend: B batch, T time,
K members, L latent, A action, O flat observation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from worldloom.algorithms.base import TRAINING_FIELDS, BaseWorldModel, place_of
from worldloom.algorithms.mlp.config import MLPConfig
from worldloom.algorithms.mlp.networks import Member
from worldloom.core.config_base import MODEL_CLASSES
from worldloom.core.exceptions import ShapeMismatchError, StateError
from worldloom.core.fields import Bounds, checked
from worldloom.core.state import LatentState, Predictions

__all__ = ["MLPWorldModel"]

Latent = TypeVar("Latent", Tensor, LatentState)


class MLPWorldModel(BaseWorldModel):
    """Encoder, latent dynamics, reward, termination and decoder, all MLPs.

    Args:
        config: Settings; ``ensemble_size`` above 1 makes an ensemble.

    Example:
        >>> model = MLPWorldModel(MLPConfig.from_size("ci", ensemble_size=3, device="cpu"))
        >>> state = model.predict_next(model.encode(torch.zeros(4, 7)), torch.zeros(4, 3))
        >>> model.decode(state)["obs"].shape, model.uncertainty(state, torch.zeros(4, 3)).shape
        (torch.Size([4, 7]), torch.Size([4, 1]))
    """

    tunable = TRAINING_FIELDS | {
        "reconstruction_scale",
        "dynamics_scale",
        "reward_scale",
        "continue_scale",
    }

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        self.members = nn.ModuleList(Member(config) for _ in range(config.ensemble_size))
        self.to(place_of(config.device))

    # -- the protocol ------------------------------------------------------------------------------

    def encode(self, obs: Tensor, deterministic: bool = False) -> LatentState:
        """Latent of observations ``[B, *obs_shape]``; always deterministic. Images are read in [0,
        1].
        """
        flat = self._flat(self._obs(obs))
        with self.precision():
            return LatentState(
                deterministic=torch.cat(
                    [member.encoder(flat) for member in self._members], -1
                ).float()
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
        """Latent of ``obs``: the model has no memory; arguments are checked all the same."""
        self._action(action, state.batch_size)
        return self.encode(self._obs(obs, state.batch_size))

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None
    ) -> LatentState:
        """Zeros."""
        batch_size = checked("batch_size", batch_size, int, Bounds(1))
        width = self.config.latent_dim * len(self.members)
        return LatentState(
            deterministic=torch.zeros(batch_size, width, device=device or self.device)
        )

    def decode(self, state: LatentState | Tensor) -> Predictions:
        """``obs`` ``[B, *obs_shape]``, ``reward`` on arrival and ``continue`` ``[B, 1]``; an
        ensemble adds ``disagreement``.
        """
        with self.precision():
            latents = self._split(state)
            # [K, B, O]
            decoded = torch.stack(
                [m.decoder(z) for m, z in zip(self._members, latents, strict=True)]
            ).float()
            obs = decoded.mean(0).reshape(-1, *self.config.obs_shape)
            result = Predictions(
                {
                    "obs": obs,
                    "reward": self.predict_reward(state),
                    "continue": 1 - self.predict_done(state),
                }
            )
        if len(self.members) > 1:
            result["disagreement"] = decoded.var(0, unbiased=False).mean(-1, keepdim=True)
        return result

    # -- the names of the guide --------------------------------------------------------------------

    def predict_next(self, latent: Latent, action: Tensor) -> Latent:
        """Latent after ``action``; a tensor gives a tensor, a state a state."""
        rows = len(latent) if isinstance(latent, Tensor) else latent.batch_size
        checked = self._action(action, rows)
        with self.precision():
            pairs = zip(self._members, self._split(latent), strict=True)
            joint = torch.cat([member.next(z, checked)[0] for member, z in pairs], -1).float()
        return joint if isinstance(latent, Tensor) else LatentState(deterministic=joint)

    def natural_obs(self, obs: Tensor) -> Tensor:
        """See :meth:`BaseWorldModel.natural_obs`; uint8 vectors are read and decoded as 0..255."""
        is_vector = len(self.config.obs_shape) == 1
        return obs.float() if is_vector else super().natural_obs(obs)

    def predict_reward(self, latent: LatentState | Tensor) -> Tensor:
        """Expected reward on arrival. ``[B, 1]``."""
        pairs = zip(self._members, self._split(latent), strict=True)
        return torch.stack([member.reward(z) for member, z in pairs]).mean(0).float()

    def predict_done(self, latent: LatentState | Tensor) -> Tensor:
        """Probability that the episode has ended on arrival. ``[B, 1]``."""
        pairs = zip(self._members, self._split(latent), strict=True)
        return torch.stack([torch.sigmoid(member.done(z).float()) for member, z in pairs]).mean(0)

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the next observation's latent, ``[B, K L]`` each.

        Raises:
            StateError: If the model was created without ``predict_variance=True``.
        """
        if not self.config.predict_variance:
            raise StateError(
                "this model predicts no variance; create it with predict_variance=True"
            )
        state = self.encode(obs)
        checked = self._action(action, state.batch_size)
        pairs = [m.next(z, checked) for m, z in zip(self._members, self._split(state), strict=True)]
        return torch.cat([mean for mean, _ in pairs], -1), torch.cat(
            [v.exp() for _, v in pairs if v is not None], -1
        )

    def uncertainty(self, state: LatentState | Tensor, action: Tensor) -> Tensor:
        """How unsure the model is about what ``action`` leads to, ``[B, 1]``: a bonus for
        exploration.

        The variance of the members' next observations; for a single model with a variance head, the
        mean predicted variance.

        Raises:
            StateError: If the model is neither an ensemble nor predicts a variance.
        """
        if len(self.members) > 1:
            following = self.predict_next(self._joint(state), action)
            return self.decode(following)["disagreement"]
        if not self.config.predict_variance:
            raise StateError(
                "this single model knows no uncertainty; create it with "
                "ensemble_size >= 2 or predict_variance=True"
            )
        (latent,) = self._split(state)
        _, log_var = self._members[0].next(latent, self._action(action, len(latent)))
        assert log_var is not None  # predict_variance says so
        return log_var.exp().mean(-1, keepdim=True)

    # -- training ----------------------------------------------------------------------------------

    def compute_loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """World-model losses; changes nothing. See ``DreamerV3WorldModel.compute_loss`` for the
        batch.

        Returns:
            0-d ``loss`` and its parts ``reconstruction, dynamics, reward, continue``, each also as
            ``..._loss``.
        """
        data = self._batch(batch)
        obs = self._flat(data["obs"], 2)
        ended = (data["continues"] < 0.5).float()
        live = 1 - ended
        blind = torch.ones_like(data["rewards"])
        if "last_obs" in data:
            obs = torch.cat([obs, self._flat(data["last_obs"])[:, None]], 1)
            mask = data["last_obs_mask"].float()
            blind = torch.cat([blind, mask[:, None]], 1)
            live = torch.cat([live[:, :-1], mask[:, None]], 1)
        with self.precision():
            per_member = [
                m.losses(obs, data["actions"], data["rewards"], ended, live, blind)
                for m in self._members
            ]
        means = [torch.stack(values).mean() for values in zip(*per_member, strict=True)]
        parts = dict(zip(("reconstruction", "dynamics", "reward", "continue"), means, strict=True))
        total = torch.stack(
            [getattr(self.config, f"{name}_scale") * value for name, value in parts.items()]
        ).sum()
        return {"loss": total, **parts, **{f"{name}_loss": value for name, value in parts.items()}}

    # -- inside ------------------------------------------------------------------------------------

    @property
    def _members(self) -> list[Member]:
        return [member for member in self.members if isinstance(member, Member)]

    def _flat(self, obs: Tensor, lead: int = 1) -> Tensor:
        return self.natural_obs(obs.flatten(lead))

    def _joint(self, latent: LatentState | Tensor) -> Tensor:
        """All members' latents side by side."""
        return latent if isinstance(latent, Tensor) else self._state(latent).features

    def _split(self, latent: LatentState | Tensor) -> tuple[Tensor, ...]:
        """The members' latents [B, L]."""
        joint = self._joint(latent)
        want = self.config.latent_dim * len(self.members)
        if joint.shape[-1] != want:
            raise ShapeMismatchError("width of a state of this model", want, joint.shape[-1])
        return torch.split(joint, self.config.latent_dim, -1)

    def _step(self, state: LatentState, action: Tensor, deterministic: bool) -> LatentState:
        return self.predict_next(state, action)

    def _outcome(
        self, states: list[LatentState], actions: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        joint = torch.stack([state.features for state in states[1:]])  # [T, B, K L]
        flat = joint.flatten(0, 1)
        shape = (*joint.shape[:2], 1)
        return self.predict_reward(flat).view(shape), None, 1 - self.predict_done(flat).view(shape)

    def _checkpointed(self) -> Iterable[nn.Module]:
        return [
            part
            for member in self._members
            for part in (member.encoder, member.dynamics, member.decoder)
        ]


MODEL_CLASSES.update(mlp=MLPWorldModel)
