"""TD-MPC2 behind the protocols of ``worldloom.core.protocol``: numpy in and out, torch inside.

The carry is the planner's previous mean, ``prev_mean`` [N, H, A] float32 on the host. Shape legend:
N envs, H horizon, A action components of all action keys side by side, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloom.algorithms.tdmpc2.config import Architecture
from worldloom.algorithms.tdmpc2.draws import PlanDraws, PlanShape, UpdateDraws
from worldloom.algorithms.tdmpc2.foresight import foresight
from worldloom.algorithms.tdmpc2.growing import grown
from worldloom.algorithms.tdmpc2.losses import LossSettings, UpdateBatch
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks, make_critics
from worldloom.algorithms.tdmpc2.planner import PlannerSettings, plan
from worldloom.algorithms.tdmpc2.spec import (
    TDMPC2AgentConfig,
    make_spec,
    resolve,
    task_discounts,
)
from worldloom.algorithms.tdmpc2.update import OptimizerSettings, Updater
from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError, ShapeMismatchError
from worldloom.core.foresight import Foresight
from worldloom.core.process_group import SINGLE_PROCESS, ProcessGroup
from worldloom.core.protocol import ActOutput, Carry, Decide, TrainOutput
from worldloom.core.seeds import seed_of
from worldloom.core.sequence import SequenceBatch, transitions
from worldloom.core.specs import TASK, EnvSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.nn.generators import restore_generator, restore_generators
from worldloom.nn.precision import autocast
from worldloom.nn.product_speed import has_half_products
from worldloom.nn.snapshot import pack, unpack_into
from worldloom.nn.transfer import HostTransfer

__all__ = ["TDMPC2Agent", "TDMPC2Policy", "make_agent", "make_architecture", "make_policy"]

CPU_CHUNK_ELEMENTS = 2**18
"""Activations per plan chunk on a CPU: 1 MB of float32, about what a core's cache holds."""
DEVICE_CHUNK_BYTES = 2**32
"""Bytes of gathered critic parameters per plan chunk on an accelerator."""


def make_architecture(config: TDMPC2AgentConfig, env: EnvSpec) -> Architecture:
    """Sizes of the networks for a resolved config in an env."""
    return Architecture.of(
        config,
        obs={key: spec for key, spec in env.obs.items() if key != _task_key(env)},
        action_dim=sum(spec.size for spec in env.action.values()),
        is_episodic=config.episodic == "on",
        num_tasks=len(env.tasks) or 1,
        task_dim=(config.task_dim or 0) if env.tasks else 0,
    )


class TDMPC2Policy:
    """Plans with a copy of the weights; see :class:`worldloom.core.protocol.Policy`.

    Args:
        config, env: As given to the registry.
        device: Where it plans.
        seed: Root of the initial weights and of the draws.
        num_envs: One generator per env when given, else a single one.
    """

    def __init__(
        self,
        config: TDMPC2AgentConfig,
        env: EnvSpec,
        *,
        device: str = "cpu",
        seed: int = 0,
        num_envs: int | None = None,
    ) -> None:
        self.spec = make_spec(config, env)
        self.env = env
        self.device = torch.device(device)
        self.config = config = resolve(config, env)
        architecture = make_architecture(config, env)
        init, acting, self._train_seed = np.random.SeedSequence(seed).spawn(3)
        model = TDMPC2Networks(architecture).reset_parameters(_generator(init, torch.device("cpu")))
        if env.tasks:
            model.action_masks.copy_(torch.from_numpy(env.action_mask()))  # type: ignore[operator]
        self.model = model.to(self.device)
        self._obs_keys = tuple(architecture.obs)
        seeds = [acting] if num_envs is None else acting.spawn(num_envs)
        self._is_per_env = num_envs is not None
        self._generators = [_generator(s, self.device) for s in seeds]
        self.plan_shape = PlanShape(
            horizon=config.horizon,
            policy_samples=config.num_policy_samples,
            samples=config.num_samples,
            elites=config.num_elites,
            iterations=config.iterations or 1,
            action_dim=architecture.action_dim,
            num_q=architecture.num_q,
            images=len(architecture.image_keys),
        )
        self.planner = PlannerSettings(
            min_std=config.min_std, max_std=config.max_std, temperature=config.temperature
        )
        is_half = self.device.type == "cpu" and has_half_products()
        self.plan_precision = config.precision if is_half else "float32"
        self.discount: float | Tensor = config.discount or 1.0
        if env.tasks:
            self.discount = torch.tensor(task_discounts(config, env), device=self.device)
        self.transfer = HostTransfer(self.device) if self.device.type == "cuda" else None
        self._decide: Decide = self._plan

    def initial_carry(self, num_envs: int) -> Carry:
        """Zero means."""
        return {
            "prev_mean": np.zeros(
                (num_envs, self.plan_shape.horizon, self.plan_shape.action_dim), np.float32
            )
        }

    def act(
        self, obs: Mapping[str, np.ndarray], carry: Carry, is_first: np.ndarray, *, explore: bool
    ) -> ActOutput:
        """Plan one action per env; see :meth:`worldloom.core.protocol.Policy.act`."""
        draws = self._draw(len(is_first))
        with torch.inference_mode():
            given = {"prev_mean": carry["prev_mean"], "goes_on": ~np.asarray(is_first, bool)}
            given |= {f"obs/{key}": obs[key] for key in self._obs_keys}
            if self.env.tasks:
                given[TASK] = obs[TASK]
            inputs = self._tensors(given) | draws.named("draws/")
            both = self._array(self._decide(inputs, explore=explore)["action_and_mean"])
        return ActOutput(
            self._split_action(both[:, 0]), {"prev_mean": np.ascontiguousarray(both[:, 1:])}
        )

    def decide_through(self, wrap: Callable[[Decide], Decide]) -> None:
        """See :class:`worldloom.core.protocol.Capturable`."""
        self._decide = wrap(self._decide)

    def _plan(self, inputs: Mapping[str, Tensor], *, explore: bool) -> dict[str, Tensor]:
        """The decision: ``action_and_mean`` [N, 1+H, A] from tensors on this device, and nothing
        else.
        """
        with autocast(self.device, self.plan_precision):
            return self._planned(inputs, explore=explore)

    def _planned(self, inputs: Mapping[str, Tensor], *, explore: bool) -> dict[str, Tensor]:
        draws = PlanDraws.from_named(inputs, "draws/")
        index = inputs[TASK].long() if self.env.tasks else None
        task = self.model.embed(index)
        mask = self.model.mask(index)
        discount = self.discount
        if isinstance(discount, Tensor):
            discount = discount[index]
        obs = {key: inputs[f"obs/{key}"] for key in self._obs_keys}
        z = self.model.encode(obs, task, draws.shift)
        previous = inputs["prev_mean"] * inputs["goes_on"][:, None, None]
        mean = torch.cat([previous[:, 1:], torch.zeros_like(previous[:, :1])], 1)
        plans = [
            plan(
                self.model,
                z[i:j],
                mean[i:j],
                draws.rows(i, j),
                self.planner,
                _rows(discount, i, j),
                explore=explore,
                task=_rows(task, i, j),
                mask=_rows(mask, i, j),
            )
            for i, j in self._chunks(len(previous))
        ]
        return {
            "action_and_mean": torch.cat(
                [torch.cat([p.action.unsqueeze(1), p.mean], 1) for p in plans]
            )
        }

    def load_weights(self, snapshot: WeightsSnapshot) -> None:
        """Act with these weights from now on; they are copied to where the present ones lie."""
        unpack_into(snapshot, self.model.state_dict())

    def rng_state(self) -> dict[str, Any]:
        """State of every acting generator."""
        return {"acting": [generator.get_state() for generator in self._generators]}

    def load_rng_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`rng_state`."""
        restore_generators(self._generators, state["acting"])

    def _draw(self, num_envs: int) -> PlanDraws:
        if not self._is_per_env:
            return PlanDraws.draw(num_envs, self.plan_shape, self._generators[0])
        if num_envs != len(self._generators):
            raise ShapeMismatchError(
                "rows of act() for a policy made with num_envs", len(self._generators), num_envs
            )
        return PlanDraws.draw_each(self.plan_shape, self._generators)

    def _chunks(self, num_envs: int) -> list[tuple[int, int]]:
        """Envs per call of the planner: few enough for the cache of a CPU, or for the memory of an
        accelerator.
        """
        if self.device.type == "cpu":
            size = CPU_CHUNK_ELEMENTS // (self.config.num_samples * self.config.mlp_dim)
        else:
            pair = 2 * sum(p[0].numel() * p.element_size() for p in self.model.critics.parameters())
            size = DEVICE_CHUNK_BYTES // pair
        size = max(size, 1)
        return [(i, min(i + size, num_envs)) for i in range(0, num_envs, size)]

    def _split_action(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        sizes = [spec.size for spec in self.env.action.values()]
        parts = np.split(flat, np.cumsum(sizes)[:-1], axis=1)
        return {
            key: np.ascontiguousarray(part.reshape(len(flat), *spec.shape), np.float32)
            for (key, spec), part in zip(self.env.action.items(), parts, strict=True)
        }

    def _tensors(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        if self.transfer is not None:
            return self.transfer.to_device(arrays)
        return {name: self._tensor(array) for name, array in arrays.items()}

    def _array(self, tensor: Tensor) -> np.ndarray:
        if self.transfer is not None:
            return self.transfer.to_host({"": tensor})[""]
        found: np.ndarray = tensor.cpu().numpy()
        return found

    def _tensor(self, array: Any) -> Tensor:
        """A tensor on this device; host arrays are copied, because rows may be read-only."""
        if isinstance(array, Tensor):
            return array.to(self.device)
        return torch.tensor(np.asarray(array)).to(self.device)


class TDMPC2Agent(TDMPC2Policy):
    """Trains and acts; see :class:`worldloom.core.protocol.Agent`.

    Args:
        config, env, device, seed: As for :class:`TDMPC2Policy`.
    """

    def __init__(
        self, config: TDMPC2AgentConfig, env: EnvSpec, *, device: str = "cpu", seed: int = 0
    ) -> None:
        super().__init__(config, env, device=device, seed=seed)
        config = self.config
        self.target = make_critics(self.model.architecture).to(self.device)
        self.target.load_state_dict(self.model.critics.state_dict())
        losses = LossSettings(
            discount=self.discount,
            rho=config.rho or 1.0,
            consistency_coef=config.consistency_coef,
            reward_coef=config.reward_coef,
            value_coef=config.value_coef,
            termination_coef=config.termination_coef,
            entropy_coef=config.entropy_coef,
            bc_weight=config.bc_weight,
        )
        optimizers = OptimizerSettings(
            learning_rate=config.learning_rate,
            encoder_lr_scale=config.encoder_lr_scale,
            grad_clip=config.grad_clip,
            tau=config.tau,
        )
        self.updater = Updater(
            self.model, self.target, losses, optimizers, precision=config.precision
        )
        self._train_generator = _generator(self._train_seed, self.device)
        self._ranks: ProcessGroup = SINGLE_PROCESS

    def join(self, ranks: ProcessGroup) -> None:
        """See :meth:`worldloom.core.protocol.Agent.join`."""
        self._ranks = ranks
        self.updater.join(ranks)

    def train_step(self, batch: SequenceBatch) -> TrainOutput:
        """One update from windows of H+1 rows inside one episode."""
        update = self._update_batch(batch)
        horizon, size = update.reward.shape
        draws = UpdateDraws.draw(
            horizon,
            size * self._ranks.size,
            self.plan_shape,
            mlp_dim=self.config.mlp_dim,
            dropout=self.config.dropout,
            generator=self._train_generator,
        )
        if self._ranks.size > 1:
            draws = draws.rows(self._ranks.rank * size, (self._ranks.rank + 1) * size)
        metrics, nonfinite, td_error = self.updater.step(update, draws)
        return TrainOutput(metrics, nonfinite, priorities=td_error)

    def policy_weights(self) -> WeightsSnapshot:
        """A copy of the model; the policy prior, reward, dynamics and critics all take part in
        planning.
        """
        return pack(self.policy_tensors())

    def policy_tensors(self) -> Mapping[str, Tensor]:
        """What :meth:`policy_weights` copies, as it is."""
        return self.model.state_dict()

    def predict_ahead(self, batch: SequenceBatch, warm_up: int) -> Foresight:
        """See :meth:`worldloom.core.protocol.PredictsAhead.predict_ahead`."""
        rows = self._update_batch(batch)
        discount = self.discount
        if isinstance(discount, Tensor):  # that of the first window's task
            assert rows.task is not None
            discount = discount[rows.task[0]]
        return foresight(self.model, rows, warm_up, float(discount))

    def generators(self) -> list[torch.Generator]:
        """See :meth:`worldloom.core.protocol.CapturableUpdate.generators`."""
        return [*self._generators, self._train_generator]

    def state_dict(self) -> dict[str, Any]:
        """Model, targets, optimizers, running scale and random state; tensors are copies."""
        return {
            "model": {name: value.clone() for name, value in self.model.state_dict().items()},
            "target": {name: value.clone() for name, value in self.target.state_dict().items()},
            "updater": self.updater.state_dict(),
            "rng": self.rng_state() | {"train": self._train_generator.get_state()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; a state of the first of several tasks is made to fit."""
        with reading("agent state", "a part is missing or of another kind"):
            state = grown(state, self.model.state_dict())
            _check_shapes("model", self.model.state_dict(), state["model"])
            _check_shapes("target", self.target.state_dict(), state["target"])
            self.updater.load_state_dict(state["updater"])
            self.model.load_state_dict(state["model"])
            self.target.load_state_dict(state["target"])
            self.load_rng_state(state["rng"])
            restore_generator(self._train_generator, state["rng"]["train"])

    def _update_batch(self, batch: SequenceBatch) -> UpdateBatch:
        """Windows [B, T, ...] as time-first transitions; the one place where the axes are
        swapped.
        """
        obs, action, reward, terminated = transitions(batch.map(self._tensor))
        length = reward.shape[1]
        actions = [action[key].reshape(*reward.shape, -1).float() for key in self.env.action]
        if length < 1:
            raise ShapeMismatchError(
                "rows per window of train_step", f">= {self.spec.sampling.window_rows}", length + 1
            )
        return UpdateBatch(
            {key: obs[key].transpose(0, 1) for key in self._obs_keys},
            torch.cat(actions, -1).transpose(0, 1),
            reward.float().transpose(0, 1),
            terminated.float().transpose(0, 1),
            # a window lies inside one episode, and an episode inside one task
            task=obs[TASK][:, 0].long() if self.env.tasks else None,
        )


def make_agent(
    config: TDMPC2AgentConfig, env: EnvSpec, *, device: str = "cpu", seed: int = 0
) -> TDMPC2Agent:
    """See :func:`worldloom.algorithms.registry.make_agent`."""
    return TDMPC2Agent(config, env, device=device, seed=seed)


def make_policy(
    config: TDMPC2AgentConfig,
    env: EnvSpec,
    *,
    device: str = "cpu",
    seed: int = 0,
    num_envs: int | None = None,
) -> TDMPC2Policy:
    """See :func:`worldloom.algorithms.registry.make_policy`."""
    return TDMPC2Policy(config, env, device=device, seed=seed, num_envs=num_envs)


def _task_key(env: EnvSpec) -> str | None:
    """The observation key that names the task and is no part of what is seen."""
    return TASK if env.tasks else None


def _rows(value: Any, start: int, stop: int) -> Any:
    """Rows of a tensor; anything else is the same for all rows."""
    return value[start:stop] if isinstance(value, Tensor) else value


def _generator(seed: np.random.SeedSequence, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(seed))


def _check_shapes(part: str, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for name in sorted(mine.keys() | theirs.keys()):
        shapes = [tuple(side[name].shape) if name in side else None for side in (theirs, mine)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{part}: tensor {name!r} has shape {shapes[0]} in the state, "
                f"{shapes[1]} in this agent"
            )
