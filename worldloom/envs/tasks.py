"""Several tasks behind one ``--env``: which they are, how their arrays become alike, and which env
plays which.

A list is a text with commas (``dmc:walker-walk,dmc:cheetah-run``), a set that has a name
(``mt:dmc10``) or a file (``mt:FILE.toml``) with a table per task. It is read once, when the command
line is; from then on :attr:`~worldloom.envs.config.EnvConfig.tasks` holds what every task is. The
vectors of all tasks are padded with zeros to the largest, and the number of the task is an
observation of its own. Needs neither gymnasium nor torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom.core.specs import ACTION, OBS, TASK, TASK_NAME, ArraySpec, EnvSpec, TaskSpec
from worldloom.envs.config import NO_TASKS, TASKS_SUITE, EnvConfig
from worldloom.envs.task_sets import TASK_SETS

__all__ = [
    "check_one_task",
    "has_sizes",
    "joined_spec",
    "next_place",
    "read_tasks",
    "task_of",
    "task_specs",
    "turns",
    "with_tasks",
]

SCORES: Mapping[str, tuple[float, float]] = {"dmc": (0.0, 1000.0)}
"""Suite -> the returns that count as 0 and as 100 in its tasks."""
NAMED = 10
"""Tasks that a sentence names."""
LONGEST_NAME = 60
"""Of a task, which is a part of file names."""
MOST_FILE_BYTES = 1_000_000
Entry = dict[str, Any]


def with_tasks(config: EnvConfig) -> EnvConfig:
    """The config with its tasks, where its ``env`` names a list; a list of one task becomes that
    env.

    Raises:
        ConfigurationError: As :func:`read_tasks`.
    """
    found = read_tasks(config.env)
    if not found:
        return dataclasses.replace(config, tasks={})
    if len(found) == 1:
        entry = next(iter(found.values()))
        return dataclasses.replace(config, env=entry["env"], tasks={}, **entry["settings"])
    return dataclasses.replace(config, tasks=found)


def read_tasks(env: str) -> dict[str, Entry]:
    """The tasks that the text after ``--env`` names, in their order.

    Args:
        env: A list, ``mt:SET`` or ``mt:FILE.toml``; or a single env.

    Returns:
        Name -> ``name``, ``env``, ``settings`` (those that are given) and, where it is known,
        ``score``; empty for a single env.

    Raises:
        ConfigurationError: Says what is wrong where.
    """
    config = EnvConfig(env=env)
    if config.suite != TASKS_SUITE:
        return {}
    if "," in env:
        return _of_list(env.split(","))
    if config.name.endswith(".toml"):
        return _of_file(Path(config.name))
    if config.name not in TASK_SETS:
        raise ConfigurationError(
            f"env {env!r}: no such set of tasks{nearest(config.name, TASK_SETS)} (sets: "
            f"{', '.join(TASK_SETS)}; a file of your own ends in .toml)"
        )
    return _of_list(TASK_SETS[config.name])


def turns(num_tasks: int, *, envs: Sequence[int], all_envs: int) -> list[tuple[int, ...]]:
    """Which tasks each env plays, one after the other, for ever.

    Env number n of E plays task ``(n + k * E) % T`` in its k-th episode: each task is played
    equally often, and where E is a multiple of T an env has one task for ever.

    Args:
        num_tasks: T.
        envs: Numbers of the envs that are asked about.
        all_envs: E, all that play the list together.

    Example:
        >>> turns(3, envs=[0, 1], all_envs=2)
        [(0, 2, 1), (1, 0, 2)]
    """
    cycle = num_tasks // math.gcd(all_envs, num_tasks)
    return [tuple((n + k * all_envs) % num_tasks for k in range(cycle)) for n in envs]


def next_place(cycle: Sequence[int], place: int, seed: int | None) -> int:
    """Whose turn in a cycle it is at a reset: the next one's, or with a seed the one's that the
    seed says.
    """
    return (place + 1) % len(cycle) if seed is None else seed % len(cycle)


def has_sizes(config: EnvConfig) -> bool:
    """True when every task has been looked at, so that its sizes are known."""
    return all(OBS in entry for entry in config.tasks.values())


def task_of(name: str, entry: Mapping[str, Any], config: EnvConfig, spec: EnvSpec) -> TaskSpec:
    """What a task is, from its env.

    Args:
        name: Of the task.
        entry: As :func:`read_tasks` has it.
        config: Resolved settings of its env.
        spec: What the env gives and takes.

    Raises:
        ConfigurationError: If it cannot be padded to other tasks.
    """
    for key, array in spec.obs.items():
        if array.is_image or array.dtype != "float32":
            raise ConfigurationError(
                f"env: task {name!r} ({config.env}) observes {key!r} of shape {array.shape} and "
                f"type {array.dtype}, and several tasks can have vectors of numbers only; leave it "
                "out, or train it alone"
            )
    for key, array in spec.action.items():
        if array.is_discrete:
            raise ConfigurationError(
                f"env: task {name!r} ({config.env}) has the discrete action {key!r}, and several "
                "tasks can have continuous ones only; leave it out, or train it alone"
            )
    score = entry.get("score") or SCORES.get(config.suite)
    return TaskSpec(
        name=name,
        env=config.env,
        settings=config.settings(),
        obs=tuple((key, spec.obs[key].size) for key in spec.order or spec.obs),
        action=tuple((key, array.size) for key, array in spec.action.items()),
        episode_limit=spec.episode_limit,
        may_terminate=spec.may_terminate,
        score=None if score is None else (float(score[0]), float(score[1])),
        joined=int(entry.get("joined", 0)),
    )


def task_specs(config: EnvConfig) -> tuple[TaskSpec, ...]:
    """What every task is.

    Raises:
        ConfigurationError: If ``tasks`` was damaged, or holds tasks that no one has looked at.
    """
    try:
        return tuple(
            TaskSpec.from_dict({**entry, "name": name}) for name, entry in config.tasks.items()
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigurationError(
            f"env.tasks of {config.env!r} cannot be read ({error!r}); restore config.json from a "
            "copy"
        ) from error


def joined_spec(config: EnvConfig) -> EnvSpec:
    """What an env that plays all tasks gives and takes; nothing is built.

    Args:
        config: With tasks whose sizes are known.

    Raises:
        ConfigurationError: If the tasks differ in their action repeat.
    """
    tasks = task_specs(config)
    repeats = {task.name: int(task.settings.get("action_repeat", 1)) for task in tasks}
    first = next(iter(repeats))
    other = next((name for name in repeats if repeats[name] != repeats[first]), None)
    if other is not None:
        raise ConfigurationError(
            f"env.action_repeat must be the same for all tasks, and is {repeats[first]} for "
            f"{first!r} and {repeats[other]} for {other!r}; say --env.action-repeat "
            f"{repeats[first]}"
        )
    limits = [task.episode_limit for task in tasks]
    return EnvSpec(
        name=config.env,
        obs={
            OBS: ArraySpec((max(task.obs_size for task in tasks),)),
            TASK: ArraySpec((), "int32"),
        },
        action={ACTION: ArraySpec((max(task.action_size for task in tasks),))},
        episode_limit=None if None in limits else max(limits),  # type: ignore[type-var]
        action_repeat=repeats[first],
        may_terminate=any(task.may_terminate for task in tasks),
        settings=config.settings(),
        tasks=tasks,
    )


def check_one_task(spec: EnvSpec, what: str) -> None:
    """Refuse what is for one task where there are several.

    Args:
        spec: Of the env.
        what: That needs one task, for the sentence.

    Raises:
        ConfigurationError: Names the tasks.
    """
    if spec.tasks:
        names = ", ".join(task.name for task in spec.tasks[:NAMED])
        more = "" if len(spec.tasks) <= NAMED else f" and {len(spec.tasks) - NAMED} more"
        raise ConfigurationError(
            f"{what} is for one task, and {spec.name} has {len(spec.tasks)} ({names}{more})"
        )


def _of_list(envs: Sequence[str]) -> dict[str, Entry]:
    tasks: dict[str, Entry] = {}
    for number, text in enumerate(envs, 1):
        env = text.strip()
        if not env:
            raise ConfigurationError(
                f"env: entry {number} of the list {','.join(envs)!r} is empty; write SUITE:TASK "
                "between the commas"
            )
        config = EnvConfig(env=env)
        _refuse_suite(f"entry {number} of the list", config)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.name).strip("-._")[:LONGEST_NAME]
        if name in tasks:
            raise ConfigurationError(
                f"env: two tasks of the list are called {name!r} ({tasks[name]['env']} and {env}); "
                "leave one out, or name them in a file (mt:FILE.toml)"
            )
        if not TASK_NAME.fullmatch(name):
            raise ConfigurationError(
                f"env: {env!r} gives no name for a task; name it in a file (mt:FILE.toml)"
            )
        tasks[name] = {"name": name, "env": env, "settings": {}}
    _refuse_twice("the list", tasks)
    return tasks


def _of_file(path: Path) -> dict[str, Entry]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise ConfigurationError(f"env: {path} is no file; name a TOML file")
        if status.st_size > MOST_FILE_BYTES:
            raise ConfigurationError(
                f"env: {path} has {status.st_size} bytes, and a list of tasks at most "
                f"{MOST_FILE_BYTES}; name a TOML file with a table per task"
            )
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"env: the list of tasks {path} cannot be read ({error.strerror}); name a TOML file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"env: {path} is no TOML file ({error}); write a table per task, [NAME] with "
            'env = "SUITE:TASK"'
        ) from error
    if not tables:
        raise ConfigurationError(
            f'env: {path} names no task; write a table per task, [NAME] with env = "SUITE:TASK"'
        )
    tasks = {name: _of_table(f"{path}, [{name}]", name, table) for name, table in tables.items()}
    _refuse_twice(str(path), tasks)
    return tasks


def _of_table(where: str, name: str, table: Any) -> Entry:
    """The task of one table."""
    if not TASK_NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ConfigurationError(
            f"env: {where}: a task's name has letters, digits, '-', '_' and '.', at most "
            f"{LONGEST_NAME}, and begins with a letter or digit; rename it"
        )
    if not isinstance(table, dict):
        raise ConfigurationError(
            f'env: {where} is {table!r}, and a task is a table with env = "SUITE:TASK"'
        )
    settings = dict(table)
    env = settings.pop("env", None)
    score = settings.pop("score", None)
    if not isinstance(env, str):
        raise ConfigurationError(f'env: {where}: env must be a text like "dmc:walker-walk"')
    known = {f.name for f in dataclasses.fields(EnvConfig)} - {"env", "tasks"}
    strange = next((key for key in settings if key not in known), None)
    if strange is not None:
        raise ConfigurationError(
            f"env: {where}: there is no setting {strange!r}{nearest(strange, {*known, 'score'})}"
        )
    try:
        config = EnvConfig(env=env, **settings)
    except ConfigurationError as error:
        raise ConfigurationError(f"env: {where}: {error}") from error
    _refuse_suite(where, config)
    entry: Entry = {"name": name, "env": env.strip(), "settings": config.settings()}
    return entry if score is None else entry | {"score": _range(where, score)}


def _range(where: str, score: Any) -> list[float]:
    is_pair = isinstance(score, list) and len(score) == 2
    if not is_pair or not all(
        isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in score
    ):
        raise ConfigurationError(
            f"env: {where}: score must be the returns that count as 0 and as 100, like [0, 1000], "
            f"got {score!r}"
        )
    if not score[0] < score[1]:
        raise ConfigurationError(f"env: {where}: score must rise, got {score!r}")
    return [float(x) for x in score]


def _refuse_suite(where: str, config: EnvConfig) -> None:
    if config.suite in NO_TASKS:
        raise ConfigurationError(
            f"env: {where}: {config.env!r} cannot be one of several tasks, because "
            f"{NO_TASKS[config.suite]}; leave it out"
        )


def _refuse_twice(where: str, tasks: Mapping[str, Entry]) -> None:
    """Refuse one env under two names: half of its rows would be of each."""
    seen: dict[str, str] = {}
    for name, entry in tasks.items():
        config = EnvConfig(env=entry["env"])
        said = f"{config.suite}:{config.name} {sorted(entry['settings'].items())}"
        if said in seen:
            raise ConfigurationError(
                f"env: {where}: {seen[said]!r} and {name!r} are the same task ({entry['env']}); "
                "leave one out"
            )
        seen[said] = name
