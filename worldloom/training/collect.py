"""Episodes from an environment, as ``ReplayBuffer.add_episode`` takes them, final observations
included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import NOT_NEGATIVE, Bounds, checked
from worldloom.core.protocol import Policy
from worldloom.core.specs import ArraySpec
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import make_env
from worldloom.envs.vector import VectorEnv, sample_actions
from worldloom.training.data import ReplayBuffer

__all__ = ["collect_buffer", "collect_episodes"]

CollectPolicy = Callable[[np.ndarray], np.ndarray] | Policy


def collect_episodes(
    env: VectorEnv,
    episodes: int,
    *,
    policy: CollectPolicy | None = None,
    max_steps: int = 1000,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Play whole episodes in the first env of ``env``.

    Args:
        env: With a single observation and a single action key.
        episodes: How many.
        policy: Observation ``[*obs_shape]`` to action (in [-1, 1], or a class), or a trained agent,
            which then explores as in training; uniformly random by default.
        max_steps: Decisions after which an episode is cut off, as a truncation.
        seed: Of random actions.

    Yields:
        ``obs, actions, rewards, dones, truncated, final_obs``.

    Raises:
        ConfigurationError: If there are several observation or action keys.
    """
    episodes = checked("episodes", episodes, int, NOT_NEGATIVE)
    max_steps = checked("max_steps", max_steps, int, Bounds(1))
    seed = checked("seed", seed, int, NOT_NEGATIVE)
    if len(env.spec.obs) != 1 or len(env.spec.action) != 1:
        keys = sorted(env.spec.obs), sorted(env.spec.action)
        raise ConfigurationError(
            f"collecting needs one observation and one action key, env {env.spec.name!r} has {keys}"
        )
    (obs_key,), (action_key,) = env.spec.obs, env.spec.action
    choose = _chooser(env, policy, obs_key, action_key, np.random.default_rng(seed))
    for _ in range(episodes):
        step = env.reset()
        seen = [step.obs[obs_key][0].copy()]
        actions = []
        rewards: list[float] = []
        while len(rewards) < max_steps:
            chosen = choose(seen[-1], not rewards)
            step = env.step(chosen)
            seen.append(step.obs[obs_key][0].copy())
            actions.append(np.array(chosen[action_key][0]))
            rewards.append(float(step.reward[0]))
            if step.is_last[0]:
                break
        steps = len(rewards)
        ends = np.arange(steps) == steps - 1
        yield {
            "obs": np.stack(seen[:-1]),
            "actions": np.stack(actions),
            "rewards": np.array(rewards, np.float32),
            "dones": ends,
            "truncated": ends & ~bool(step.terminated[0]),
            "final_obs": seen[-1],
        }


def collect_buffer(
    config: EnvConfig,
    episodes: int,
    *,
    policy: CollectPolicy | None = None,
    max_steps: int = 1000,
    seed: int = 0,
) -> ReplayBuffer:
    """Build an env, play episodes in it, and keep them in a buffer of just their size.

    A discrete action becomes a one-hot code of the width of the action space; images are turned
    channels first.
    """
    checked("episodes", episodes, int, Bounds(1))
    checked("max_steps", max_steps, int, Bounds(1))
    env = make_env(config, seed=checked("seed", seed, int, NOT_NEGATIVE))
    try:
        (obs,), (action,) = env.spec.obs.values(), env.spec.action.values()
        is_last = obs.is_image and obs.shape[-1] < obs.shape[0]
        played = [
            _channels_first(e) if is_last else e
            for e in collect_episodes(env, episodes, policy=policy, max_steps=max_steps, seed=seed)
        ]
    finally:
        env.close()
    width = action.num_classes[0] if action.is_discrete else action.size
    steps = sum(len(e["rewards"]) for e in played)
    dtype = np.uint8 if obs.dtype == "uint8" else np.float32
    buffer = ReplayBuffer(max(1, steps), played[0]["obs"].shape[1:], width, dtype, seed=seed)
    for episode in played:
        buffer.add_episode(**episode)
    return buffer


def _chooser(
    env: VectorEnv,
    policy: CollectPolicy | None,
    obs_key: str,
    action_key: str,
    rng: np.random.Generator,
) -> Callable[[np.ndarray, bool], Mapping[str, np.ndarray]]:
    """Observation, and whether it begins an episode, to actions for every env."""
    spec = env.spec.action[action_key]
    count = env.num_envs
    if policy is None:
        return lambda obs, is_first: sample_actions(env.spec, [rng] * count)
    if isinstance(policy, Policy):
        return _agent_chooser(policy, count, obs_key)
    return lambda obs, is_first: {
        action_key: np.broadcast_to(_chosen(policy(obs), spec), (count, *spec.shape)).copy()
    }


def _chosen(action: Any, spec: ArraySpec) -> np.ndarray:
    """What a function chose, in the dtype of the env's actions.

    Raises:
        ConfigurationError: If it is not an action: numbers of the shape, finite, and whole for a
            class.
    """
    array = np.asarray(action)
    fits = (
        array.dtype.kind in "biuf"
        and array.shape in ((), spec.shape, (1, *spec.shape))
        and bool(np.isfinite(array).all())
    )
    if not fits or (spec.is_discrete and bool((array != np.round(array)).any())):
        kind = "a whole number" if spec.is_discrete else "finite numbers"
        raise ConfigurationError(
            f"policy must return {kind} of shape {spec.shape}, got {array!r}; look at "
            "what it returns"
        )
    shaped = array.reshape(spec.shape) if array.ndim else np.broadcast_to(array, spec.shape)
    return shaped.astype(spec.dtype)


def _agent_chooser(
    agent: Policy, count: int, obs_key: str
) -> Callable[[np.ndarray, bool], Mapping[str, np.ndarray]]:
    carry = agent.initial_carry(count)

    def choose(obs: np.ndarray, is_first: bool) -> Mapping[str, np.ndarray]:
        """Act for one env with a batch of equal observations, and remember the carry."""
        nonlocal carry
        out = agent.act(
            {obs_key: np.stack([obs] * count)}, carry, np.full(count, is_first), explore=True
        )
        carry = out.carry
        return out.action

    return choose


def _channels_first(episode: dict[str, Any]) -> dict[str, Any]:
    moved = {
        "obs": np.moveaxis(episode["obs"], -1, 1),
        "final_obs": np.moveaxis(episode["final_obs"], -1, 0),
    }
    return episode | {name: np.ascontiguousarray(value) for name, value in moved.items()}
