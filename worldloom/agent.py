"""Agents in one's own program: train one, load one, act with it.

    agent = worldloom.load_agent("runs/quick-0001")
    obs, info = env.reset()
    agent.reset()
    obs, reward, terminated, truncated, info = env.step(agent.act(obs))

Acting needs neither ray nor the env that the agent was trained in. Training is a run of
``worldloom_dist`` with ``--runtime local``, which is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import CheckpointError, ConfigurationError, StateError
from worldloom.core.fields import Bounds, checked
from worldloom.core.files import expanded
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_plain
from worldloom.distributed import distributed
from worldloom.hub.fetching import located
from worldloom.training.one_task import for_task
from worldloom.training.saved_agents import SavedAgent
from worldloom.training.trained_policy import TrainedPolicy

__all__ = ["Agent", "TrainingResult", "load_agent"]

MOST_SEED = 2**63 - 1
MOST_ENVS = 100_000


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        run_dir: Its folder, with checkpoints, metrics and videos.
        status: ``completed``, or ``stopped`` (by Ctrl-C, with a checkpoint).
        summary: What ``summary.json`` says.
    """

    run_dir: Path
    status: str
    summary: Mapping[str, Any]

    @property
    def env_steps(self) -> int:
        """Env steps of the whole run."""
        return int(self.summary["env_steps"])

    @property
    def train_steps(self) -> int:
        """Updates of the whole run."""
        return int(self.summary["train_steps"])

    @property
    def return_mean(self) -> float | None:
        """Mean return of the last evaluation; None when there was none."""
        evaluation = self.summary.get("eval") or {}
        found = evaluation.get("return_mean")
        return None if found is None else float(found)

    @property
    def return_std(self) -> float | None:
        """Standard deviation of its episodes' returns; None when there was none."""
        evaluation = self.summary.get("eval") or {}
        found = evaluation.get("return_std")
        return None if found is None else float(found)


class Agent:
    """An agent: trains in an env, and acts with what it has learned.

    Args:
        agent: ``algorithm:preset``, as after ``--agent``.
        env: As after ``--env``, or a class of one's own that can be imported by its name.
        **settings: Further settings of the run by the names that :class:`RunConfig` has:
            ``workers=1``, ``seed=3``, ``run_dir="runs/mine"``; those of a section as a mapping,
            ``replay={"capacity_steps": 10_000}``, of the algorithm ``agent_settings={"lr": 1e-3}``,
            of the env ``env_settings={"time_limit": 200}``.

    Example:
        >>> agent = Agent("dreamerv3:ci", env="gym:CartPole-v1")
        >>> agent.is_trained
        False
    """

    def __init__(self, agent: str, env: Any = None, **settings: Any) -> None:
        if not isinstance(agent, str):
            raise ConfigurationError(
                f"agent must be algorithm:preset, for example dreamerv3:ci, got {agent!r}"
            )
        if env is None:
            raise ConfigurationError(
                "env must name an environment, for example gym:CartPole-v1, got None"
            )
        self._words = ["--agent", agent, "--env", _env_text(env), *_flags(settings)]
        self._policy: TrainedPolicy | None = None
        self.run_dir: Path | None = None

    @classmethod
    def load(
        cls,
        path_or_run: str | PathLike[str],
        *,
        num_envs: int | None = None,
        device: str = "cpu",
        seed: int = 0,
        threads: int = 1,
        trust_env: bool = False,
        task: str | None = None,
    ) -> Agent:
        """As :func:`load_agent`."""
        path = located(path_or_run, "path_or_run")
        checked("num_envs", num_envs, int | None, Bounds(1, MOST_ENVS))
        checked("seed", seed, int, Bounds(0, MOST_SEED))
        checked("threads", threads, int, Bounds(1, 1024))
        checked("trust_env", trust_env, bool)
        checked("task", task, str | None)
        saved = SavedAgent.read(path)
        saved.check_code(trust_env=trust_env)
        saved = for_task(saved, task)
        made = cls.__new__(cls)
        made._words = []
        made._policy = TrainedPolicy(
            saved, num_envs=num_envs, device=device, seed=seed, threads=threads
        )
        made.run_dir = None
        return made

    @property
    def is_trained(self) -> bool:
        """True when it can act."""
        return self._policy is not None

    @property
    def path(self) -> Path:
        """The checkpoint that it acts with."""
        return self._trained().saved.path

    @property
    def observation_space(self) -> Any:
        """Of the env: what :meth:`act` takes."""
        return self._trained().observation_space

    @property
    def action_space(self) -> Any:
        """Of the env: what :meth:`act` returns."""
        return self._trained().action_space

    @property
    def action_repeat(self) -> int:
        """Env steps that one action was repeated for in training; repeat it as often."""
        return self._trained().saved.env.action_repeat

    def act(self, obs: Any, is_first: Any = None, *, explore: bool = False) -> Any:
        """Choose an action; what the agent remembers of the episode is kept in between.

        Args:
            obs: As the env returns it, with its own shape, dtype and units; of an agent that was
                loaded for several envs as a ``gymnasium.vector`` env returns it.
            is_first: True for the first observation of an episode, as :meth:`reset` before it; of
                several envs one truth value for each.
            explore: Act as in training, with noise, instead of as well as it can.

        Returns:
            What the env's ``step`` takes.

        Raises:
            StateError: If the agent is not trained.
            ShapeMismatchError, EnvFailureError: If the observation is not one of the env's.
        """
        return self._trained().act(obs, is_first, explore=explore)

    def reset(self) -> None:
        """An episode begins with the next observation."""
        self._trained().reset()

    def save(self, folder: str | PathLike[str]) -> Path:
        """Copy the agent to a folder that :func:`load_agent` reads, without its run.

        Raises:
            ConfigurationError: If the folder holds something else.
            CheckpointError: If it cannot be written, or the checkpoint is gone.
        """
        return self._trained().save(expanded(folder, "folder"))

    def train(self, steps: int) -> TrainingResult:
        """Train for a number of env steps, and act with the result; called again it goes on.

        It is the run of ``worldloom train --runtime local`` with the same settings: all roles in
        this process, in lock-step, which needs no Ray. Ctrl-C stops it with a checkpoint.

        Args:
            steps: Env steps, besides those made before.

        Raises:
            ConfigurationError: If a setting is wrong; nothing is started or written then.
            TrainingError: If the run fails.
        """
        checked("steps", steps, int, Bounds(1))
        if not self._words:
            raise StateError(
                f"this agent was loaded from {self.path}; go on with its run by worldloom train "
                "--resume RUN, or train a new one: worldloom.Agent(NAME, env=...).train(steps)"
            )
        launch = distributed("launch", "training")
        if self.run_dir is None:
            words = [*self._words, "--env-steps", str(steps)]
        else:
            done = int(_summary(self.run_dir)["env_steps"])
            words = ["--resume", str(self.run_dir), "--env-steps", str(done + steps)]
        folder, status = launch.train(["--runtime", "local", "--metrics-port", "0", *words])
        self.run_dir = Path(folder)
        self._policy = TrainedPolicy(SavedAgent.read(self.run_dir))
        return TrainingResult(self.run_dir, status, _summary(self.run_dir))

    def __repr__(self) -> str:
        if self._policy is None:
            return f"Agent({' '.join(self._words)}; not trained)"
        saved = self._policy.saved
        return f"Agent({saved.agent['name']} for {saved.env.name}, from {saved.path})"

    def _trained(self) -> TrainedPolicy:
        if self._policy is None:
            raise StateError(
                "this agent is not trained; call train(steps) first, or load a trained one with "
                "worldloom.load_agent(RUN)"
            )
        return self._policy


def load_agent(
    path_or_run: str | PathLike[str],
    *,
    num_envs: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    threads: int = 1,
    trust_env: bool = False,
    task: str | None = None,
) -> Agent:
    """A trained agent that acts, with the weights as the run's own evaluations had them.

    Args:
        path_or_run: A run folder (its newest checkpoint), ``RUN/checkpoints/NAME`` (``best``, or a
            folder's name), a copy of one, what :meth:`Agent.save` wrote, or
            ``hf://USER/NAME[@REVISION]`` on a hub.
        num_envs: Act in this many envs side by side, whose observations and actions are batched as
            in ``gymnasium.vector``; None for one env, without a batch axis.
        device: cpu, cuda, cuda:N, or auto.
        seed: Of the draws that acting makes.
        threads: Torch threads while it acts.
        trust_env: Run the code of an agent, or of an env, that is a Python module, also where
            the folder was made elsewhere. An env's runs only where an earlier version wrote the
            checkpoint, or the agent has several tasks.
        task: Of an agent of several tasks, the name of the one in which it acts; the task's env is
            built once, to see its spaces.

    Raises:
        UntrustedEnvError: If that code would run, and was not agreed to.
        ConfigurationError: If there is no agent, no such device, or an earlier version wrote it and
            its env cannot be built here.
        CheckpointError: If the files are damaged, or the run has no checkpoint yet.
        HubError: If the hub cannot be reached.

    Example:
        >>> load_agent("runs/none")
        Traceback (most recent call last):
        worldloom.core.exceptions.ConfigurationError: there is nothing at runs/none; give a run ...
    """
    return Agent.load(
        path_or_run,
        num_envs=num_envs,
        device=device,
        seed=seed,
        threads=threads,
        trust_env=trust_env,
        task=task,
    )


def _summary(run_dir: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = parse_json(read_plain(run_dir / "summary.json"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run_dir / 'summary.json'} cannot be read ({error})") from error
    return found


def _env_text(env: Any) -> str:
    """What follows ``--env``; of a class or function its module and name."""
    if isinstance(env, str):
        return env
    module, name = getattr(env, "__module__", None), getattr(env, "__qualname__", None)
    if not callable(env) or module is None or name is None or "<" in name:
        raise ConfigurationError(
            f"env must be a text like gym:CartPole-v1, or a class that makes an env, got {env!r}"
        )
    if module == "__main__":
        raise ConfigurationError(
            f"env: {name} is defined in the program itself, where a run that is resumed or "
            "evaluated cannot find it; put it into a file of its own, my_env.py, and import it"
        )
    return f"{module}:{name}"


def _flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command line, which checks them."""
    words: list[str] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            section = {"agent_settings": "agent", "env_settings": "env"}.get(name, name)
            for field, inner in value.items():
                words += _flag(f"{section}.{field}", inner)
        else:
            words += _flag(name, value)
    return words


def _flag(name: str, value: Any) -> list[str]:
    if name in ("runtime", "env_steps", "resume"):
        says = {"env_steps": "give it to train(steps)", "runtime": "train runs in this process"}
        raise ConfigurationError(
            f"{name} is not set here: {says.get(name, 'call train again to go on')}"
        )
    return [] if value is None else [f"--{name.replace('_', '-')}={value}"]
