"""Episodes from an environment, as ``ReplayBuffer.add_episode`` takes them, final observations
included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from worldloom.algorithms.single_space import public_spaces
from worldloom.core.exceptions import ConfigurationError, EnvFailureError
from worldloom.core.fields import NOT_NEGATIVE, Bounds, checked
from worldloom.core.protocol import Policy
from worldloom.core.specs import ArraySpec
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import make_env
from worldloom.envs.vector import EnvStep, VectorEnv, sample_actions
from worldloom.training.data import ReplayBuffer

__all__ = ["collect_buffer", "collect_episodes"]

CollectPolicy = Callable[[np.ndarray], np.ndarray] | Policy
Chooser = Callable[[np.ndarray, bool], Mapping[str, np.ndarray]]
"""Observation, and whether it begins an episode, to actions for every env."""


def collect_episodes(
    env: VectorEnv,
    episodes: int,
    *,
    policy: CollectPolicy | None = None,
    max_steps: int = 1000,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Play whole episodes in the first env of ``env``.

    Where that env fails and is built again in the middle of an episode, what was played until then
    is an episode that was cut off, as by a time limit.

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
        EnvFailureError: If the env fails too often to be built again.
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
    count = 0
    first: EnvStep | None = None
    while count < episodes:
        first = _first_row(env) if first is None else first
        episode, first = _play(env, choose, first, max_steps)
        if episode is not None:
            count += 1
            yield episode


def collect_buffer(
    config: EnvConfig,
    episodes: int,
    *,
    policy: CollectPolicy | None = None,
    max_steps: int = 1000,
    seed: int = 0,
) -> ReplayBuffer:
    """Build an env, play episodes in it, and keep them in a buffer of just their size.

    A discrete action becomes a one-hot code of the width of the action space, one of several axes a
    row of its numbers; images are turned channels first, an observation that is a single number is
    an array of one.

    Raises:
        ConfigurationError: If the env has what a public model cannot read, for example several
            choices in one action; before anything is played.
    """
    checked("episodes", episodes, int, Bounds(1))
    checked("max_steps", max_steps, int, Bounds(1))
    env = make_env(config, seed=checked("seed", seed, int, NOT_NEGATIVE))
    try:
        width = public_spaces(env.spec)["action_dim"]
        (obs,), (action,) = env.spec.obs.values(), env.spec.action.values()
        played = [
            _as_stored(episode, obs, action, width)
            for episode in collect_episodes(
                env, episodes, policy=policy, max_steps=max_steps, seed=seed
            )
        ]
    finally:
        env.close()
    steps = sum(len(e["rewards"]) for e in played)
    dtype = np.uint8 if obs.dtype == "uint8" else np.float32
    buffer = ReplayBuffer(max(1, steps), played[0]["obs"].shape[1:], width, dtype, seed=seed)
    for episode in played:
        buffer.add_episode(**episode)
    return buffer


def _play(
    env: VectorEnv, choose: Chooser, first: EnvStep, max_steps: int
) -> tuple[dict[str, Any] | None, EnvStep | None]:
    """One episode, None if nothing of it was played; and the first row of the next one, where the
    env was built again and so has begun it.
    """
    (obs_key,), (action_key,) = env.spec.obs, env.spec.action
    seen = [first.obs[obs_key][0].copy()]
    actions = []
    rewards: list[float] = []
    following: EnvStep | None = None
    is_terminal = False
    while len(rewards) < max_steps:
        chosen = choose(seen[-1], not rewards)
        row = _live_row(env, env.step(chosen), chosen)
        if row.is_first[0]:  # no one knows what the action did
            following = row
            break
        seen.append(row.obs[obs_key][0].copy())
        actions.append(np.array(chosen[action_key][0]))
        rewards.append(float(row.reward[0]))
        if row.is_last[0]:
            is_terminal = bool(row.terminated[0])
            break
    if not rewards:
        return None, following
    ends = np.arange(len(rewards)) == len(rewards) - 1
    return {
        "obs": np.stack(seen[:-1]),
        "actions": np.stack(actions),
        "rewards": np.array(rewards, np.float32),
        "dones": ends,
        "truncated": ends & (not is_terminal),
        "final_obs": seen[-1],
    }, following


def _first_row(env: VectorEnv) -> EnvStep:
    """The first row of a new episode of the first env."""
    zeros = {key: spec.zeros(env.num_envs) for key, spec in env.spec.action.items()}
    return _live_row(env, env.reset(), zeros)


def _live_row(env: VectorEnv, row: EnvStep, chosen: Mapping[str, np.ndarray]) -> EnvStep:
    """``row``, or the next one that the first env has: until then the other envs go on.

    Raises:
        EnvFailureError: If there will be none.
    """
    while not row.live[0]:
        for fault in env.drain_faults():
            if fault.env == 0 and fault.is_quarantined:
                raise EnvFailureError(
                    f"env 0 of {env.spec.name!r}, in which episodes are played, failed too often; "
                    f"it {fault.kind}: {fault.detail}"
                )
        row = env.step(chosen)
    return row


def _chooser(
    env: VectorEnv,
    policy: CollectPolicy | None,
    obs_key: str,
    action_key: str,
    rng: np.random.Generator,
) -> Chooser:
    """What acts for every env."""
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


def _agent_chooser(agent: Policy, count: int, obs_key: str) -> Chooser:
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


def _as_stored(
    episode: dict[str, Any], obs: ArraySpec, action: ArraySpec, width: int
) -> dict[str, Any]:
    """An episode as a buffer of one observation and one row of numbers per action takes it."""
    steps = len(episode["rewards"])
    seen, final, taken = (episode[name] for name in ("obs", "final_obs", "actions"))
    if obs.is_image:  # an env's image has its channels last
        seen = np.ascontiguousarray(np.moveaxis(seen, -1, 1))
        final = np.ascontiguousarray(np.moveaxis(final, -1, 0))
    elif not obs.shape:
        seen = seen.reshape(steps, 1)
        final = final.reshape(1)
    taken = (
        np.eye(width, dtype=np.float32)[taken.reshape(steps)]
        if action.is_discrete
        else taken.reshape(steps, width)
    )
    return episode | {"obs": seen, "final_obs": final, "actions": taken}
