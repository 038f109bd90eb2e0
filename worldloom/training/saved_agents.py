"""From files to a trained agent that acts: a run, a checkpoint, or what ``Agent.save`` wrote.

A checkpoint says in its manifest which agent it holds and which spaces its env has, so neither the
run nor the env is needed. One of an earlier version does not: the run's ``config.json`` beside it
says which agent, and the env is built once to see its spaces.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.algorithms.registry import make_agent, make_agent_config, make_policy
from worldloom.core.exceptions import CheckpointError, ConfigurationError, WorldLoomError, nearest
from worldloom.core.json_text import parse_json
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.config import EnvConfig
from worldloom.training.runs import CONFIG_FILE, MANIFEST_FILE, find_run, run_facts

__all__ = ["SavedAgent", "TrainedPolicy"]


@dataclass(frozen=True)
class SavedAgent:
    """What a checkpoint holds, and what is known of the agent in it.

    Attributes:
        path: Of the checkpoint.
        agent: Name and settings of the agent.
        env: What its env gives and takes.
        state: Of the agent.
    """

    path: Path
    agent: Mapping[str, Any]
    env: EnvSpec
    state: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> SavedAgent:
        """Find and read it.

        Args:
            path: A run folder (its newest checkpoint), a checkpoint of it, or a copy of one.

        Raises:
            ConfigurationError: If there is nothing, or something else.
            CheckpointError: If it is damaged, or the run has no checkpoint yet.
        """
        from worldloom.training.checkpoints import load_tree, read_manifest

        _check_place(path)
        if (path / MANIFEST_FILE).exists():
            facts = read_manifest(path)["facts"]
            return cls._of(path, load_tree(path), facts, run_facts(path.absolute().parents[1]))
        run = find_run(path)
        if run is None:
            raise _nothing_to_load(path)
        checkpoint, tree, facts = run.newest()
        return cls._of(checkpoint, tree, facts, run.facts)

    @classmethod
    def _of(
        cls,
        path: Path,
        tree: Mapping[str, Any],
        facts: Mapping[str, Any],
        run: Mapping[str, Any] | None,
    ) -> SavedAgent:
        """What the manifest says goes before what the run says."""
        known = {**(run or {}), **facts}
        try:
            if "agent" not in known:
                raise ConfigurationError(
                    f"{path} is a checkpoint of an earlier version outside of its run, whose "
                    f"{CONFIG_FILE} says which agent it holds; give RUN/checkpoints/NAME, with the "
                    f"run's {CONFIG_FILE} in RUN"
                )
            seen = facts.get("env") or facts.get("recorded_env") or known["env"]
            spaces = seen.get("spaces") or (run or {}).get("env", {}).get("spaces", {})
            env = EnvSpec.from_dict({**seen, "spaces": spaces})
            return cls(path, dict(known["agent"]), env, tree["learner"]["agent"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, WorldLoomError):
                raise
            raise CheckpointError(
                f"{path}: does not say which agent and env it was trained with ({error!r}); give "
                "the folder of a whole run"
            ) from error

    def build(self, *, device: str, seed: int) -> Any:
        """The policy with its weights; imports torch.

        Raises:
            CheckpointError: If the weights are of another architecture.
            ConfigurationError: If the agent is not known here.
        """
        settings = dict(self.agent)
        config = make_agent_config(settings.pop("name"), settings)
        agent = make_agent(config, self.env, device=device, seed=seed)
        agent.load_state_dict(dict(self.state))
        policy = make_policy(config, self.env, device=device, seed=seed)
        policy.load_weights(agent.policy_weights())
        return policy

    def spaces(self) -> tuple[Any, Any]:
        """Observation and action space of the env, as Gymnasium has them.

        Raises:
            ConfigurationError: If an earlier version wrote the checkpoint, and its env cannot be
                built here.
        """
        from worldloom.envs.space_json import space_from_json

        try:
            if self.env.spaces:
                obs, action = (space_from_json(self.env.spaces[name]) for name in ("obs", "action"))
                return obs, action
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise CheckpointError(
                f"{self.path}: what it says of the env's spaces is damaged ({error!r}); use an "
                "earlier checkpoint"
            ) from error
        config = self.env_config()
        if config.is_none:
            return _recorded(self.env.obs, is_action=False), _recorded(self.env.action)
        return self._spaces_of_env(config)

    def _spaces_of_env(self, config: EnvConfig) -> tuple[Any, Any]:
        from worldloom.envs.factory import make_raw
        from worldloom.envs.wrappers import RawEnv

        try:
            raw = make_raw(config, 1)
        except WorldLoomError as error:
            raise ConfigurationError(
                f"{self.path} was written by an earlier version, which did not note the env's "
                f"spaces, and the env cannot be built here ({error}); make it importable, or let "
                "the run go on for a moment (--resume), which writes a new checkpoint"
            ) from error
        try:
            if isinstance(raw, RawEnv):
                return raw.env.observation_space, raw.env.action_space
            return raw.single_observation_space, raw.single_action_space
        finally:
            (raw.env if isinstance(raw, RawEnv) else raw).close()

    def env_config(self) -> EnvConfig:
        """Name and settings of the env that it was trained in."""
        return EnvConfig.from_settings(self.env.name, self.env.settings).resolved()


class TrainedPolicy:
    """Acts in one env: takes its observations and gives its actions, and remembers in between.

    Args:
        saved: What to act with.
        device: cpu, cuda, cuda:N, or auto.
        seed: Of the draws that acting makes.
        threads: Torch threads while it acts; a network this small is fastest with one, and the
            evaluations of a run have one.
    """

    def __init__(
        self, saved: SavedAgent, *, device: str = "cpu", seed: int = 0, threads: int = 1
    ) -> None:
        from worldloom.algorithms.base import place_of
        from worldloom.envs.spaces import ActionMapper

        self.saved = dataclasses.replace(saved, state={})  # it holds what training needs besides
        self.observation_space, self.action_space = saved.spaces()
        self._read = _reader(saved, self.observation_space)
        self._map_action = ActionMapper(self.action_space)
        self._threads = threads
        with _threads(threads):
            self._policy = saved.build(device=str(place_of(device)), seed=seed)
        self._carry = self._policy.initial_carry(1)
        self._is_first = True

    def reset(self) -> None:
        """The next observation is the first one of an episode."""
        self._is_first = True

    def act(self, obs: Any, is_first: bool | None = None, *, explore: bool = False) -> Any:
        """Choose an action.

        Args:
            obs: As the env returns it, with neither a batch nor a time axis.
            is_first: True for the first observation of an episode, as :meth:`reset` before it.
            explore: Act as in training instead of as well as it can.

        Returns:
            What the env's ``step`` takes.

        Raises:
            ShapeMismatchError, EnvFailureError: If the observation is not one of the env's.
        """
        first = self._is_first or bool(is_first)
        if isinstance(obs, tuple) and len(obs) == 2 and not isinstance(obs[0], dict):
            from gymnasium.spaces import Tuple

            if isinstance(obs[1], dict) and not isinstance(self.observation_space, Tuple):
                raise ConfigurationError(
                    "obs must be an observation alone, got a pair; write obs, info = env.reset(), "
                    "then agent.act(obs)"
                )
        flat = {key: value[None] for key, value in self._read(obs, first=first).items()}
        with _threads(self._threads):
            out = self._policy.act(flat, self._carry, np.array([first]), explore=explore)
        self._carry = out.carry
        self._is_first = False
        return self._map_action({key: value[0] for key, value in out.action.items()})

    def save(self, folder: Path) -> Path:
        """Copy the agent to a folder of its own; returns the folder.

        Raises:
            ConfigurationError: If the folder holds something else than an agent.
            CheckpointError: If it cannot be written, or the checkpoint is gone.
        """
        from worldloom.envs.space_json import spaces_to_json
        from worldloom.training.checkpoints import save_tree

        if folder.exists() and not (folder / MANIFEST_FILE).is_file():
            raise ConfigurationError(
                f"{folder} exists and holds no agent; name a folder that does not exist"
            )
        if folder.exists() and run_facts(folder.absolute().parents[1]) is not None:
            raise ConfigurationError(
                f"{folder} is a checkpoint of a run, which goes on from it; name another folder"
            )
        saved = SavedAgent.read(self.saved.path)
        spaces = spaces_to_json(self.observation_space, self.action_space)
        facts = {"agent": dict(saved.agent), "env": {**saved.env.to_dict(), "spaces": spaces}}
        try:
            save_tree(folder, {"learner": {"agent": saved.state}}, facts)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written ({error.strerror})") from error
        return folder


def _check_place(path: Path) -> None:
    if path.is_dir():
        return
    if path.exists():
        raise ConfigurationError(
            f"{path} is a file; give the folder: a run, RUN/checkpoints/NAME, or what save wrote"
        )
    beside = [p.name for p in path.parent.glob("*") if p.is_dir()]
    raise ConfigurationError(
        f"there is nothing at {path}{nearest(path.name, beside)}; give a run folder, "
        "RUN/checkpoints/NAME (best, or a folder's name), or what save wrote"
    )


def _nothing_to_load(path: Path) -> ConfigurationError:
    try:
        is_model = "model_type" in parse_json((path / CONFIG_FILE).read_text())
    except (OSError, ValueError, TypeError):
        is_model = False
    if is_model:
        return ConfigurationError(
            f"{path} is a world model that save_pretrained wrote, which has no env to act in; "
            "load it with worldloom.create_world_model, or give the run that trained it"
        )
    return ConfigurationError(
        f"{path} holds no agent; give a run folder, RUN/checkpoints/NAME, or what save wrote"
    )


def _reader(saved: SavedAgent, space: Any) -> Any:
    """From the env's observations to the agent's; those of a vector env of the ALE's come resized
    already.
    """
    from worldloom.envs.spaces import ObsMapper
    from worldloom.envs.wrappers import ObsReader

    plain = ObsMapper(space)
    if plain.specs == dict(saved.env.obs):
        return lambda obs, *, first: plain(obs)
    reader = ObsReader(space, saved.env_config())
    if reader.specs != dict(saved.env.obs):
        raise CheckpointError(
            f"{saved.path}: the agent observes {_shapes(saved.env.obs)}, and the env's space "
            f"{space} becomes {_shapes(reader.specs)}; the two are of different runs"
        )
    return reader


def _shapes(specs: Mapping[str, ArraySpec]) -> str:
    return ", ".join(f"{key} {list(spec.shape)} {spec.dtype}" for key, spec in specs.items())


def _recorded(specs: Mapping[str, ArraySpec], *, is_action: bool = True) -> Any:
    """The space of arrays that came from files which name no env: as they are recorded there."""
    from gymnasium import spaces

    def one(spec: ArraySpec) -> Any:
        if spec.is_discrete:
            if not spec.shape:
                return spaces.Discrete(spec.num_classes[0])
            return spaces.MultiDiscrete(np.array(spec.num_classes).reshape(spec.shape))
        if spec.dtype == "uint8":
            return spaces.Box(0, 255, spec.shape, np.uint8)
        low, high = (-1.0, 1.0) if is_action else (-np.inf, np.inf)
        return spaces.Box(low, high, spec.shape, np.dtype(spec.dtype).type)

    if len(specs) == 1:
        return one(next(iter(specs.values())))
    return spaces.Dict({key: one(spec) for key, spec in specs.items()})


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
