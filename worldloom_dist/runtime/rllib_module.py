"""A trained agent as an ``RLModule``, so that RLlib's env runners and evaluation act with it.

    RLModuleSpec(module_class=TrainedModule, model_config={"path": "runs/quick-0001"})

It acts as :func:`worldloom.load_agent` does, for all envs of a runner at once; what it remembers of
each episode is the module's state, which RLlib keeps and resets. It is not trained any further.
Actions are the env's own: set ``config.environment(normalize_actions=False, clip_actions=False)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.files import expanded
from worldloom.envs.spaces import ActionMapper, ObsMapper
from worldloom.training.saved_agents import SavedAgent

__all__ = ["TrainedModule"]

IS_FIRST = "is_first"


class TrainedModule(TorchRLModule):
    """Acts with a checkpoint of a run.

    ``model_config``: ``path``, as :func:`worldloom.load_agent` takes it, ``seed`` of the draws that
    acting makes (default 0), and ``trust_env`` as there (default False).
    """

    def setup(self) -> None:
        """Read the checkpoint; RLlib calls it once in every process that acts.

        Raises:
            ConfigurationError, CheckpointError: If there is no such agent, if it is code that no
                one has agreed to run, or if the env's spaces are not those that it was trained for.
        """
        given: Any = self.model_config
        settings = dict(given or {})
        if "path" not in settings:
            raise ConfigurationError(
                "model_config must name the agent's path, for example "
                f"{{'path': 'runs/quick-0001'}}, got {settings}"
            )
        saved = SavedAgent.read(expanded(settings["path"], "path"))
        saved.check_code(trust_env=settings.get("trust_env") is True)
        observed, acted = saved.spaces()
        for name, found, wanted in (
            ("observation_space", self.observation_space, observed),
            ("action_space", self.action_space, acted),
        ):
            if found is not None and found != wanted:
                raise ConfigurationError(
                    f"{name} must be that of the env it was trained in, {wanted}, got {found}"
                )
        self._observe = ObsMapper(observed)
        if self._observe.specs != dict(saved.env.obs):
            raise ConfigurationError(
                f"{settings['path']} was trained on images that its env resizes, greys or stacks, "
                "which RLlib does not do here; act with worldloom.load_agent"
            )
        self._to_env = ActionMapper(acted)
        self._policy = saved.build(device="cpu", seed=int(settings.get("seed", 0)))

    def get_initial_state(self) -> dict[str, Any]:
        """Of one episode, without a batch axis."""
        carry = self._policy.initial_carry(1)
        state = {key: np.asarray(value)[0] for key, value in carry.items()}
        return {**state, IS_FIRST: np.ones((), np.float32)}

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch, explore=False)

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch, explore=True)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        raise ConfigurationError("a TrainedModule only acts; train it with worldloom train")

    def _act(self, batch: dict[str, Any], *, explore: bool) -> dict[str, Any]:
        carry = {key: np.asarray(value) for key, value in batch[Columns.STATE_IN].items()}
        is_first = carry.pop(IS_FIRST) > 0
        obs = np.asarray(batch[Columns.OBS])[:, 0]  # one step of each episode
        count = len(is_first)
        out = self._policy.act(self._observe(obs, (count,)), carry, is_first, explore=explore)
        actions = np.stack([np.asarray(action) for action in self._to_env.rows(out.action, count)])
        return {
            Columns.ACTIONS: torch.as_tensor(actions)[:, None],
            Columns.STATE_OUT: {
                **{key: torch.as_tensor(value) for key, value in out.carry.items()},
                IS_FIRST: torch.zeros(count),
            },
        }
