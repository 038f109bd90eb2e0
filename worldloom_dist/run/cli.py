"""From the words on the command line to a checked ``RunConfig``, or to one clear sentence per
mistake.

tyro reads the dataclasses; no flag exists that is not a field. Two things are done around it:
``--agent SPEC`` and ``--agent.FIELD VALUE`` share a name, so the latter are read with the agent's
own config; and when tyro refuses the line, every flag is tried alone so that all mistakes are
reported together, each with the nearest name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from worldloom.algorithms.registry import make_agent_config, own_field
from worldloom.core.exceptions import ConfigurationError, WorldLoomError
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_plain
from worldloom.core.program import called
from worldloom.envs.config import TASKS_SUITE
from worldloom.envs.tasks import with_tasks
from worldloom_dist.run.agent_help import agent_help
from worldloom_dist.run.config import NO_PRESET, RunConfig
from worldloom_dist.run.flag_hints import hint
from worldloom_dist.run.help_texts import description, footer
from worldloom_dist.run.listing import newest_run
from worldloom_dist.run.presets import PRESETS, default_config, find_preset
from worldloom_dist.run.resuming import kept_tasks, resume_problems

__all__ = ["UsageError", "flag_names", "parse", "read_config"]

HIDDEN = ("agent_overrides", "tasks")
"""Fields that are filled from others and are no flags."""
MARKERS = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)
SWITCHES = ("--tensorboard", "--wandb", "--trackio", "--mlflow", "--otel")
"""Flags that mean True when no value follows."""
ENV_FLAG = "--env.env"
"""What tyro calls the flag that people type as ``--env``."""
Pairs = list[tuple[str, str]]


class UsageError(ConfigurationError):
    """The command line cannot be run; the message has one line per mistake."""


def parse(words: Sequence[str]) -> RunConfig:
    """Resolve a command line: preset or resumed config, then flags, then checks across sections.

    Raises:
        UsageError: With one line per mistake.
        SystemExit: With status 0 after ``--help``.
    """
    if any(word in ("-h", "--help") for word in words):
        _print_help([word for word in words if word not in ("-h", "--help")])
    pairs, mistakes = _split(words)
    base, is_resumed = _base(dict(pairs), mistakes)
    config = _read([pair for pair in pairs if not pair[0].startswith("--agent.")], base, mistakes)
    if "--env" in dict(pairs) or not config.env.tasks:
        config = _with_tasks(config, mistakes)
        if is_resumed:
            config = dataclasses.replace(config, env=kept_tasks(base.env, config.env))
    kept = base.agent_overrides if config.agent == base.agent else {}
    overrides = _agent_overrides(
        config.agent, kept, [pair for pair in pairs if pair[0].startswith("--agent.")], mistakes
    )
    config = dataclasses.replace(config, agent_overrides=overrides)
    mistakes += config.problems() or (resume_problems(base, config) if is_resumed else [])
    if mistakes:
        raise UsageError("\n".join(dict.fromkeys(mistakes)))
    return config


def _with_tasks(config: RunConfig, mistakes: list[str]) -> RunConfig:
    """The tasks that ``--env`` names are read here and nowhere else: their file may change."""
    try:
        return dataclasses.replace(config, env=with_tasks(config.env))
    except ConfigurationError as error:
        mistakes.append(str(error))
        return config


def read_config(folder: Path) -> RunConfig:
    """The resolved config of a run folder.

    Raises:
        ConfigurationError: If the folder or its ``config.json`` does not exist or cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigurationError(
            f"{folder} holds no run (no config.json); give the folder of an earlier run"
        )
    try:
        found = parse_json(read_plain(path))
        if not isinstance(found, dict) or not isinstance(found.get("run"), dict):
            raise ConfigurationError(f"{path} is not a worldloom config (no object 'run' in it)")
        return RunConfig.from_dict(found["run"])
    except ConfigurationError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not a worldloom config ({error})") from error


def flag_names(kind: Any = RunConfig, prefix: str = "--") -> Iterator[str]:
    """Every flag of a config dataclass as people type it, sections included."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from flag_names(hints[field.name], name + ".")
        elif field.name not in HIDDEN:
            yield "--env" if name == ENV_FLAG else name


def _given_agent(words: Sequence[str]) -> str | None:
    """What follows ``--agent``; None when it is not given."""
    for word, after in itertools.pairwise([*words, ""]):
        if word == "--agent" and after and not after.startswith("-"):
            return after
        if word.startswith("--agent="):
            return word.partition("=")[2]
    return None


def _print_help(words: Sequence[str]) -> None:
    """The flags of a run with the defaults of the run that the other words make, and the flags of
    an agent that is named; leaves the program.
    """
    agent = _given_agent(words)
    if agent is not None:
        try:
            own = agent_help(agent)
        except WorldLoomError as error:
            raise UsageError(f"--agent: {error}") from error
    pairs, mistakes = _split(words)
    default = _base(dict(pairs), mistakes)[0]
    default = _read([pair for pair in pairs if not pair[0].startswith("--agent.")], default, [])
    # tasks are no flags
    default = dataclasses.replace(default, env=dataclasses.replace(default.env, tasks={}))
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            tyro.cli(
                RunConfig,
                prog=called("train"),
                description=description(words),
                args=["--help"],
                default=default,
                config=MARKERS,
            )
    finally:
        sys.stdout.write(out.getvalue().replace(ENV_FLAG + " ", "--env ".ljust(len(ENV_FLAG) + 1)))
        sys.stdout.write("\n" + own if agent is not None else footer())


def _split(words: Sequence[str]) -> tuple[Pairs, list[str]]:
    """(flag, value) pairs with dashes normalised, and what is wrong with the words themselves."""
    known = set(flag_names())
    pairs = []
    mistakes = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if not word.startswith("--"):
            mistakes.append(f"{word}: expected a flag like --env before it")
        elif flag not in known and not flag.startswith("--agent."):
            mistakes.append(_unknown(flag, known | _agent_flags(_given_agent(words))))
            if not equals and rest and not rest[0].startswith("--"):
                rest.pop(0)
        elif equals:
            pairs.append((flag, value))
        elif rest and not rest[0].startswith("--"):
            pairs.append((flag, rest.pop(0)))
        elif flag in SWITCHES:
            pairs.append((flag, "True"))
        elif flag == "--resume":
            pairs.append((flag, str(newest_run())))
        else:
            mistakes.append(f"{flag}: expected a value after it")
    return pairs, mistakes


def _unknown(flag: str, known: set[str]) -> str:
    return f"{flag}: no such option{hint(flag, sorted(known))}"


def _agent_flags(agent: str | None) -> set[str]:
    """Flags of the agent that is given, or of the demo's; none when there is no such agent."""
    try:
        config = make_agent_config(agent or PRESETS["quick"]().agent)
    except WorldLoomError:
        return set()
    names = {"--agent." + name.removeprefix("--") for name in flag_names(type(config))}
    return names - {"--agent.name"}


def _base(given: dict[str, str], mistakes: list[str]) -> tuple[RunConfig, bool]:
    """What the flags override: the config of the run that goes on (then True), or the preset."""
    folder = given.get("--resume")
    if (
        folder is None
        and given.get("--if-exists") == "resume"
        and "--run-dir" in given
        and Path(given["--run-dir"], "config.json").exists()
    ):
        folder = given["--run-dir"]
    base = _preset(given, mistakes)
    if folder is not None:
        other = given.get("--run-dir", folder)
        if Path(other).absolute() != Path(folder).absolute():
            mistakes.append(
                f"run_dir: --resume {folder} goes on in that folder, and cannot write to {other}; "
                "leave one of the two out"
            )
        try:
            return dataclasses.replace(
                read_config(Path(folder)), resume=None, if_exists="error"
            ), True
        except ConfigurationError as error:
            mistakes.append(f"resume: {error}")
    return base, False


def _preset(given: dict[str, str], mistakes: list[str]) -> RunConfig:
    """The named preset; without one what env and agent were published with, or without these too
    the demo.
    """
    names_task = "--env" in given or "--agent" in given
    name = given.get("--preset", NO_PRESET if names_task else "quick")
    if name != NO_PRESET:
        try:
            return find_preset(name)
        except ConfigurationError as error:
            mistakes.append(f"--preset: {error}")
            return PRESETS["quick"]()
    base = RunConfig()
    steps = given.get("--env-steps", "")
    try:
        env = with_tasks(dataclasses.replace(base.env, env=given.get("--env", base.env.env)))
        agent = given.get("--agent", base.agent)
        return default_config(env, agent, int(steps) if steps.isdecimal() else None)
    except ConfigurationError:
        return dataclasses.replace(base, preset=NO_PRESET)  # reading the flags says what is wrong


def _read(pairs: Pairs, base: RunConfig, mistakes: list[str]) -> RunConfig:
    """The whole line at once, or flag by flag when something in it is wrong."""
    try:
        whole: RunConfig = _apply(pairs, base)
    except (SystemExit, ConfigurationError):
        whole = base
        for flag, value in pairs:
            try:
                whole = _apply([(flag, value)], whole)
            except (SystemExit, ConfigurationError):
                mistakes.append(_explain(flag, ENV_FLAG if flag == "--env" else flag, value, whole))
    return whole


def _apply(pairs: Pairs, base: Any) -> Any:
    """Let tyro put flags onto a config; it leaves with SystemExit when it cannot. Tasks are no
    flags, and it cannot write them.
    """
    tasks = base.env.tasks if isinstance(base, RunConfig) else {}
    if tasks:
        alone = dataclasses.replace(base, env=dataclasses.replace(base.env, tasks={}))
        config = _apply(pairs, alone)
        if config.env.suite != TASKS_SUITE:
            return config
        return dataclasses.replace(config, env=dataclasses.replace(config.env, tasks=tasks))
    arguments = [
        word for flag, value in pairs for word in (ENV_FLAG if flag == "--env" else flag, value)
    ]
    with contextlib.redirect_stderr(io.StringIO()):  # we say ourselves what is wrong
        return tyro.cli(
            type(base), args=arguments, default=base, console_outputs=False, config=MARKERS
        )


def _explain(flag: str, path: str, value: str, config: Any) -> str:
    """Why ``value`` cannot be put at ``path`` of a config: its type is wrong, or the section
    refuses it and says why.
    """
    *sections, name = path.removeprefix("--").replace("-", "_").split(".")
    for section in sections:
        config = getattr(config, section)
    hint = typing.get_type_hints(type(config))[name]
    options = [option for option in (typing.get_args(hint) or (hint,)) if option is not type(None)]
    if all(isinstance(option, str) for option in options):
        return f"{flag}: cannot be {value!r}; allowed: {', '.join(options)}"
    for option in options:
        try:
            dataclasses.replace(config, **{name: option(value)})
        except ConfigurationError as error:
            return f"{flag}: {error}"
        except (ValueError, TypeError):
            continue
    names = {
        int: "an integer",
        float: "a number",
        bool: "True or False",
        Path: "a path",
        str: "text",
    }
    several = "; several seeds are --seeds 1-5" if flag == "--seed" else ""
    return (
        f"{flag}: cannot be {value!r}; it takes "
        f"{' or '.join(names.get(option, str(option)) for option in options)}{several}"
    )


def _agent_overrides(
    agent: str, kept: Mapping[str, Any], pairs: Pairs, mistakes: list[str]
) -> dict[str, Any]:
    """``kept`` and what ``--agent.FIELD VALUE`` adds, read by the agent's own config."""
    try:
        config = make_agent_config(agent, kept)
    except WorldLoomError:
        return dict(kept)  # RunConfig.problems says what is wrong
    known = _agent_flags(agent)
    pairs = [(_own_flag(config, flag), value) for flag, value in pairs]
    mistakes += [_unknown(flag, known) for flag, _ in pairs if flag not in known]
    inner = [
        ("--" + flag.removeprefix("--agent."), value) for flag, value in pairs if flag in known
    ]
    names = [flag.removeprefix("--").replace("-", "_") for flag, _ in inner]
    try:
        config = _apply(inner, config)
    except (SystemExit, ConfigurationError):
        mistakes += [
            _explain(f"--agent.{flag[2:]}", flag, value, config)
            for flag, value in inner
            if _is_bad(flag, value, config)
        ]
    return {**kept, **{name: getattr(config, name) for name in names}}


def _own_flag(config: Any, flag: str) -> str:
    """A flag by the name that the agent has for the setting."""
    field = flag.removeprefix("--agent.").replace("-", "_")
    return f"--agent.{own_field(config, field).replace('_', '-')}"


def _is_bad(flag: str, value: str, config: Any) -> bool:
    try:
        _apply([(flag, value)], config)
    except (SystemExit, ConfigurationError):
        return True
    return False
