"""From the words on the command line to a checked ``RunConfig``, or to one clear sentence per mistake.

tyro reads the dataclasses; no flag exists that is not a field. Two things are done around it: ``--agent SPEC`` and
``--agent.FIELD VALUE`` share a name, so the latter are read with the agent's own config; and when tyro refuses the line, every
flag is tried alone so that all mistakes are reported together, each with the nearest name.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from worldloom.agents.registry import make_agent_config
from worldloom.core.exceptions import ConfigurationError, WorldLoomError, nearest
from worldloom_dist.config import RunConfig
from worldloom_dist.presets import PRESETS

__all__ = ["UsageError", "flag_names", "parse", "read_config"]

PROGRAM = "python -m worldloom_dist.launch"
HIDDEN = ("agent_overrides",)
MARKERS = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)


class UsageError(ConfigurationError):
    """The command line cannot be run; the message has one line per mistake."""


def parse(words: Sequence[str]) -> RunConfig:
    """Resolve a command line: preset or resumed config, then flags, then checks across sections.

    Raises:
        UsageError: With one line per mistake.
        SystemExit: With status 0 after ``--help``.
    """
    if any(word in ("-h", "--help") for word in words):
        tyro.cli(RunConfig, prog=PROGRAM, description=_description(), args=["--help"], default=PRESETS["quick"](), config=MARKERS)
    pairs, mistakes = _split(words)
    base = _base(dict(pairs), mistakes)
    own = [(flag, value) for flag, value in pairs if not flag.startswith("--agent.")]
    config = _read(own, base, mistakes)
    overrides = _agent_overrides(config.agent, [(f, v) for f, v in pairs if f.startswith("--agent.")], mistakes)
    kept = base.agent_overrides if config.agent == base.agent else {}
    config = dataclasses.replace(config, agent_overrides={**kept, **overrides})
    mistakes += [text for text in config.problems() if not mistakes or text not in mistakes]
    if mistakes:
        raise UsageError("\n".join(mistakes))
    return config


def read_config(folder: Path) -> RunConfig:
    """The resolved config of a run folder.

    Raises:
        ConfigurationError: If the folder or its ``config.json`` does not exist or cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigurationError(f"resume: {folder} holds no run (no config.json); give the folder of an earlier run")
    try:
        return RunConfig.from_dict(json.loads(path.read_text())["run"])
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"resume: {path} is not a worldloom config ({error})") from error


def flag_names(kind: Any = RunConfig, prefix: str = "--") -> Iterator[str]:
    """Every flag of a config dataclass, sections included."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from flag_names(hints[field.name], name + ".")
        elif field.name not in HIDDEN:
            yield name


def _description() -> str:
    presets = ", ".join(f"{name} ({(make.__doc__ or '').split(':')[0].rstrip('.')})" for name, make in PRESETS.items())
    return f"Train a world model agent with distributed actors, replay and learner. Presets: {presets}."


def _split(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(flag, value) pairs with dashes normalised, and what is wrong with the words themselves."""
    known, pairs, mistakes = set(flag_names()), [], []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            mistakes.append(f"{word}: expected a flag like --env; write the flag before its value")
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if not equals:
            if not rest or rest[0].startswith("--"):
                value = ""
                mistakes.append(f"{flag}: expected a value after it" if flag in known else _unknown(flag, known))
                continue
            value = rest.pop(0)
        if flag in known or flag.startswith("--agent."):
            pairs.append((flag, value))
        else:
            mistakes.append(_unknown(flag, known))
    return pairs, mistakes


def _unknown(flag: str, known: set[str]) -> str:
    return f"{flag}: no such option{nearest(flag, known)}"


def _base(given: dict[str, str], mistakes: list[str]) -> RunConfig:
    """What the flags override: the resumed run's config, or the preset."""
    if "--resume" in given:
        try:
            return read_config(Path(given["--resume"]))
        except ConfigurationError as error:
            mistakes.append(str(error))
    name = given.get("--preset", "quick")
    if name not in PRESETS:
        mistakes.append(f"--preset: no preset named {name!r}{nearest(name, PRESETS)} (available: {', '.join(PRESETS)})")
        name = "quick"
    return PRESETS[name]()


def _read(pairs: list[tuple[str, str]], base: RunConfig, mistakes: list[str]) -> RunConfig:
    """Tyro over the whole line, or flag by flag when something in it is wrong."""
    whole = _try(pairs, base)
    if whole is not None:
        return whole
    config = base
    for flag, value in pairs:
        one = _try([(flag, value)], config)
        if one is None:
            mistakes.append(f"{flag}: cannot be {value!r}{_allowed(flag)}")
        else:
            config = one
    return config


def _try(pairs: list[tuple[str, str]], base: Any) -> Any:
    arguments = [word for pair in pairs for word in pair]
    try:
        return tyro.cli(type(base), args=arguments, default=base, console_outputs=False, config=MARKERS)
    except SystemExit:
        return None


def _allowed(flag: str, kind: Any = RunConfig) -> str:
    """What a flag takes, in words."""
    hint: Any = kind
    for part in flag.removeprefix("--").split("."):
        hint = typing.get_type_hints(hint)[part.replace("-", "_")]
    options = [option for option in (typing.get_args(hint) or (hint,)) if option is not type(None)]
    if all(isinstance(option, str) for option in options):
        return f"; allowed: {', '.join(options)}"
    names = {int: "an integer", float: "a number", bool: "True or False", Path: "a path", str: "text"}
    return f"; it takes {' or '.join(names.get(option, str(option)) for option in options)}"


def _agent_overrides(agent: str, pairs: list[tuple[str, str]], mistakes: list[str]) -> dict[str, Any]:
    """``--agent.FIELD VALUE`` read by the agent's own config."""
    try:
        config = make_agent_config(agent)
    except WorldLoomError:
        return {}  # RunConfig.problems names the unknown agent
    known = {"--agent." + name.removeprefix("--") for name in flag_names(type(config))} - {"--agent.name"}
    overrides: dict[str, Any] = {}
    for flag, value in pairs:
        if flag not in known:
            mistakes.append(_unknown(flag, known))
            continue
        inner = "--" + flag.removeprefix("--agent.")
        changed = _try([(inner, value)], config)
        if changed is None:
            mistakes.append(f"{flag}: cannot be {value!r}{_allowed(inner, type(config))}")
        else:
            name = inner.removeprefix("--").replace("-", "_")
            overrides[name] = getattr(changed, name)
    return overrides
