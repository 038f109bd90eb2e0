"""From files to a trained agent: a run, a checkpoint, or what ``Agent.save`` wrote.

A checkpoint says in its manifest which agent it holds and which spaces its env has, so neither the
run nor the env is needed. One of an earlier version does not: the run's ``config.json`` beside it
says which agent, and the env is built once to see its spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.algorithms.registry import (
    make_agent,
    make_agent_config,
    make_policy,
    outside_module,
)
from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError, ConfigurationError, WorldLoomError, nearest
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_plain
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.envs.config import EnvConfig
from worldloom.envs.consent import check_env_code, is_within_own, sign_run
from worldloom.envs.tasks import check_one_task
from worldloom.training.runs import CONFIG_FILE, MANIFEST_FILE, find_run, run_facts

__all__ = ["SavedAgent"]
BUILDING_COPIES = 8
BUILDING_BYTES = 1 << 30
"""What building an agent may take beside its weights, those of other packages included."""


@dataclass(frozen=True)
class SavedAgent:
    """What a checkpoint holds, and what is known of the agent in it.

    Attributes:
        path: Of the checkpoint.
        agent: Name and settings of the agent.
        env: What its env gives and takes.
        state: Of the agent.
        weights_dtype: What the run makes of weights before its own workers and evaluations act.
        origin: The run that trained it, its checkpoint and counters, as far as they are known.
    """

    path: Path
    agent: Mapping[str, Any]
    env: EnvSpec
    state: Mapping[str, Any]
    weights_dtype: str = "float32"
    origin: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> SavedAgent:
        """Find and read it.

        Args:
            path: A run folder (its newest checkpoint), a checkpoint of it, or a copy of one.

        Raises:
            ConfigurationError: If there is nothing, or something else.
            CheckpointError: If it is damaged, or the run has no checkpoint yet.
        """
        from worldloom.training.manifests import read_manifest
        from worldloom.training.tree_files import load_tree

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
            learner = (run or {}).get("run", {}).get("learner", {})
            dtype = facts.get("weights_dtype") or learner.get("weights_dtype") or "float32"
            agent = dict(known["agent"])
            state = tree["learner"]["agent"]
            return cls(path, agent, env, state, str(dtype), _origin(path, facts, run))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, WorldLoomError):
                raise
            raise CheckpointError(
                f"{path}: does not say which agent and env it was trained with ({error!r}); give "
                "the folder of a whole run"
            ) from error

    @property
    def agent_module(self) -> str | None:
        """The Python module that building it imports, if its agent is none of ours; else None."""
        return outside_module(str(self.agent.get("name", "")))

    def check_code(self, *, trust_env: bool) -> None:
        """Refuse to run code that the folder names and this user has not agreed to: an agent from
        outside, and the env where it has to be built to see its spaces: of several tasks always.

        Raises:
            UntrustedEnvError: Names the modules, and how to agree.
        """
        check_env_code(
            self.path,
            self.env.played,
            self.agent_module,
            trust_env=trust_env,
            runs_env=bool(self.env.tasks) or not self.env.spaces,
        )

    def build(self, *, device: str, seed: int) -> Any:
        """The policy with its weights; imports torch.

        Raises:
            CheckpointError: If the weights are of another architecture.
            ConfigurationError: If the agent is not known here.
        """
        policy, weights = self._built(device, seed)
        policy.load_weights(weights)
        return policy

    def weights(self) -> WeightsSnapshot:
        """What the policy acts with; raises as :meth:`build`."""
        _, weights = self._built("cpu", 0)
        return weights

    def save(self, folder: Path) -> Path:
        """Copy the agent to a folder of its own; returns the folder.

        Raises:
            ConfigurationError: If the folder holds something else than an agent.
            CheckpointError: If it cannot be written.
        """
        if folder.exists() and not (folder / MANIFEST_FILE).is_file():
            raise ConfigurationError(
                f"{folder} exists and holds no agent; name a folder that does not exist"
            )
        if folder.exists() and run_facts(folder.absolute().parents[1]) is not None:
            raise ConfigurationError(
                f"{folder} is a checkpoint of a run, which goes on from it; name another folder"
            )
        self.write(folder)
        if is_within_own(self.path, self.env.played, self.agent_module):
            sign_run(folder, self.env.played, self.agent_module)
        return folder

    def write(self, folder: Path) -> None:
        """Write the files of :meth:`save` beside what else is in a folder.

        Raises:
            CheckpointError: If they cannot be written.
        """
        from worldloom.envs.space_json import spaces_to_json
        from worldloom.training.tree_files import save_tree

        facts: dict[str, Any] = {
            "agent": dict(self.agent),
            "env": {**self.env.to_dict(), "spaces": spaces_to_json(*self.spaces())},
            "weights_dtype": self.weights_dtype,
            "origin": dict(self.origin),
        }
        try:
            steps = int(self.origin.get("train_steps") or 0)
            save_tree(folder, {"learner": {"agent": self.state, "train_steps": steps}}, facts)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written ({error.strerror})") from error

    def _built(self, device: str, seed: int) -> tuple[Any, WeightsSnapshot]:
        """An untrained policy, and what it acts with."""
        settings = dict(self.agent)
        with reading(self.path, "describes an agent that cannot be built"), self.allowance():
            config = make_agent_config(settings.pop("name"), settings)
            agent = make_agent(config, self.env, device=device, seed=seed)
            agent.load_state_dict(dict(self.state))
            policy = make_policy(config, self.env, device=device, seed=seed)
        weights = agent.policy_weights()
        if self.weights_dtype == "bfloat16":
            from worldloom.nn.snapshot import to_bfloat16

            weights = to_bfloat16(weights)
        return policy, weights

    def allowance(self) -> AbstractContextManager[Any]:
        """A block in which building the agent may take what its weights let expect.

        Raises:
            CheckpointError: In the block, if it would take far more.
        """
        from worldloom.nn.tensor_files import Allowance, tensors_in

        size = sum(tensor.nbytes for tensor in tensors_in(self.state))
        complaint = (
            f"{self.path}: describes an agent that is far larger than its weights, which have "
            f"{size} bytes; it was changed, or is foreign"
        )
        return Allowance(BUILDING_COPIES * size + BUILDING_BYTES, complaint)

    def spaces(self) -> tuple[Any, Any]:
        """Observation and action space of the env, as Gymnasium has them.

        Raises:
            ConfigurationError: If an earlier version wrote the checkpoint, and its env cannot be
                built here; or if it plays several tasks, which have none in common.
        """
        check_one_task(self.env, "an agent outside of its run")
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


def _origin(path: Path, facts: Mapping[str, Any], run: Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(facts.get("origin"), Mapping):
        return dict(facts["origin"])
    known: dict[str, Any] = {"run_id": (run or {}).get("run_id"), "checkpoint": path.name}
    known |= {name: facts.get(name) for name in ("env_steps", "train_steps", "score")}
    return {name: value for name, value in known.items() if value is not None}


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
        is_model = "model_type" in parse_json(read_plain(path / CONFIG_FILE))
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
