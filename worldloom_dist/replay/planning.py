"""What a run's settings mean for its replay: the files to load, memory, and which windows are
drawn. Starts and writes nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterable, Mapping

from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.protocol import AgentSpec, SamplingSpec
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.selector_spec import parse_selector
from worldloom_dist.replay.budget import ReplayBudget, plan_budget
from worldloom_dist.replay.formats.episode_files import open_episodes, whole_name
from worldloom_dist.replay.imports import check_beginning, is_gone, split_sources
from worldloom_dist.run.config import RunConfig

__all__ = [
    "absolute_files",
    "check_files",
    "check_first_windows",
    "files_to_store",
    "recorded_env",
    "replay_budget",
    "resolve_windows",
]

logger = logging.getLogger(__name__)


def absolute_files(config: RunConfig) -> RunConfig:
    """The config with whole paths in ``replay.load``, ``replay.held_out`` and
    ``learner.checkpoints``: roles and resumed runs may begin in another folder.
    """
    load, held_out = (
        ",".join(whole_name(name) for name in split_sources(text)) or None
        for text in (config.replay.load, config.replay.held_out)
    )
    replay = dataclasses.replace(config.replay, load=load, held_out=held_out)
    learner = dataclasses.replace(config.learner, checkpoints=config.learner.whole_checkpoints)
    return dataclasses.replace(config, replay=replay, learner=learner)


def recorded_env(config: RunConfig) -> EnvSpec:
    """What the first file to load says of the env it was recorded in.

    Raises:
        ConfigurationError, MissingDependencyError: If the file cannot be read here.
    """
    try:
        return open_episodes(split_sources(config.replay.load)[0]).env
    except CheckpointError as error:
        raise ConfigurationError(f"replay.load: {error}") from error


def check_files(
    config: RunConfig,
    columns: Mapping[str, ArraySpec],
    env: EnvSpec,
    stored: Collection[str] = (),
) -> None:
    """Look at every file to load before anything is started.

    Args:
        config: Names them.
        columns: Of the run.
        env: Of the run.
        stored: Files whose rows the run has: one of them that is gone is not missed, and one that
            turned bad is left out when the run has begun.

    Raises:
        ConfigurationError: If another one cannot be used.
    """
    for source in split_sources(config.replay.load):
        if source in stored:
            continue
        try:
            check_beginning(source, columns, env)
        except CheckpointError as error:
            raise ConfigurationError(f"replay.load: {error}") from error
    for source in split_sources(config.replay.held_out):
        try:
            check_beginning(source, columns, env)
        except CheckpointError as error:
            raise ConfigurationError(f"replay.held_out: {error}") from error


def check_first_windows(
    config: RunConfig, sampling: SamplingSpec, stored: Collection[str] = ()
) -> None:
    """Refuse offline updates on files that fill no window: nothing would ever be trained, and
    nothing made.

    Args:
        config: Names the files.
        sampling: Of the agent.
        stored: Files whose rows the run has.

    Raises:
        ConfigurationError: If no shard gets a window.
    """
    for source in split_sources(config.replay.load):
        if source in stored:
            return
        rows = [0] * config.replay.shards  # each file is a stream of its own in every shard
        for number, episode in enumerate(open_episodes(source).episodes):
            shard = number % len(rows)
            before = rows[shard] if sampling.cross_episodes else 0
            rows[shard] = before + len(episode["is_first"])
            if rows[shard] >= sampling.window_rows:
                return
    raise ConfigurationError(
        f"offline_steps: the files of replay.load hold no {sampling.window_rows} consecutive rows, "
        f"which one window needs, so none of the {config.offline_steps} updates could be made; "
        "name longer episodes, or sample shorter windows"
    )


def files_to_store(sources: Iterable[str], stored: Collection[str]) -> list[str]:
    """A run's files without those that are gone and not needed; one that was stored before is read
    again where it is still there.

    Args:
        sources: All files of the run.
        stored: Those whose rows it has.
    """
    files = []
    for source in sources:
        if source in stored and is_gone(source):
            logger.info("%s is gone, and is not needed: its rows were stored before", source)
            continue
        files.append(source)
    return files


def replay_budget(
    config: RunConfig, columns: Mapping[str, ArraySpec], memory_bytes: int
) -> ReplayBudget:
    """What replay takes; a cluster's machines are not known here, so there only ``replay.ram_gb``
    limits it.
    """
    default = memory_bytes // 2 if config.address is None else None
    limit = default if config.replay.ram_gb is None else int(config.replay.ram_gb * 1e9)
    has_journal = config.replay.durability != "none"
    return plan_budget(
        columns, rows=config.replay.capacity_steps, ram_limit_bytes=limit, has_journal=has_journal
    )


def resolve_windows(config: RunConfig, spec: AgentSpec, env: EnvSpec) -> AgentSpec:
    """The agent's spec with the windows that were asked for.

    Raises:
        ConfigurationError: If the selector needs priorities that the agent does not give (it would
            silently be uniform), or several tasks where there is one, or the stride passes over
            rows.
    """
    selector = parse_selector(config.replay.selector, has_tasks=bool(env.tasks))
    if selector.uses_tasks and not env.tasks:
        raise ConfigurationError(
            f"replay.selector: {config.replay.selector!r} balances several tasks, and "
            f"{env.name} is one; use uniform, or name several with --env"
        )
    if selector.uses_priorities and not spec.gives_priorities:
        raise ConfigurationError(
            f"replay.selector: {config.replay.selector!r} needs priorities, and agent "
            f"{spec.name} gives none; "
            "use uniform, recency or online"
        )
    online = spec.sampling.online if selector.online is None else selector.online
    try:
        sampling = dataclasses.replace(spec.sampling, online=online, stride=config.replay.stride)
    except ConfigurationError as error:
        raise ConfigurationError(f"replay.stride: {error}") from error
    return dataclasses.replace(spec, sampling=sampling)
