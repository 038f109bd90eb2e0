"""Whose code a run folder would have run: a run of an env, or an agent, that is a Python module
names code, and who received the folder may not know it.

Such a run is signed where it is made, with a key that the user has on this machine
(``$XDG_STATE_HOME/worldloom/owner.key``, mode 0600), so that one's own runs ask nothing. The
signature covers the name of the env, not the code behind it.
"""

from __future__ import annotations

import hmac
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.files import write_text
from worldloom.core.keys import KEY_BYTES, load_key
from worldloom.core.plain_files import read_plain
from worldloom.envs.config import TASKS_SUITE, EnvConfig

__all__ = [
    "UntrustedEnvError",
    "check_env_code",
    "is_own",
    "is_within_own",
    "module_of",
    "modules_of",
    "names_code",
    "sign_run",
    "with_consent",
]

SIGNATURE_FILE = "owner.sig"
T = TypeVar("T")


class UntrustedEnvError(ConfigurationError):
    """A folder that was made elsewhere names env code, and no one has agreed to run it."""


def module_of(env: str) -> str | None:
    """The Python module that an env's name has imported; None for an env of a suite.

    Example:
        >>> module_of("my_env:Room"), module_of("gym:my_pack:Room-v0"), module_of("atari:pong")
        ('my_env', 'my_pack', None)
    """
    config = EnvConfig(env=env)
    is_gymnasium = config.suite in ("gym", "mujoco")
    is_code = config.suite == "module" or (is_gymnasium and ":" in config.name)
    return config.name.partition(":")[0] if is_code else None


def modules_of(envs: str) -> tuple[str, ...]:
    """As :func:`module_of`, of all envs of a list with commas.

    Raises:
        ConfigurationError: If one of them is a list by name, whose envs no one has told.
    """
    names = envs.split(",")
    unread = next((name for name in names if EnvConfig(env=name).suite == TASKS_SUITE), None)
    if unread is not None:
        raise ConfigurationError(
            f"env {unread!r} names several tasks, and nothing here says which; restore the folder "
            "from a copy"
        )
    found = dict.fromkeys(module_of(env) for env in names)
    return tuple(module for module in found if module is not None)


def sign_run(folder: Path, env: str, agent_module: str | None = None) -> None:
    """Note in a run folder that this user made it, beside what was noted before: its env may be a
    list that has grown. A home that cannot be written to leaves it unsigned, so that it asks later.

    Args:
        folder: Of the run.
        env: As ``played`` of its env has it.
        agent_module: Where its agent comes from, if that is none of ours.
    """
    if not names_code(env, agent_module) or is_own(folder, env, agent_module):
        return
    key = _key(makes=True)
    if key is not None:
        lines = [*_signatures(folder), _signature(key, env, agent_module)]
        write_text(folder / SIGNATURE_FILE, "".join(f"{line}\n" for line in lines))


def names_code(env: str, agent_module: str | None = None) -> bool:
    """True when an env of this name, or an agent, runs code that is none of ours."""
    return bool(modules_of(env)) or agent_module is not None


def is_own(folder: Path, env: str, agent_module: str | None = None) -> bool:
    """True when this user made the run on this machine, in this env and with this agent."""
    key = _key(makes=False)
    if key is None:
        return False
    own = _signature(key, env, agent_module)
    return any(hmac.compare_digest(found, own) for found in _signatures(folder))


def is_within_own(folder: Path, env: str, agent_module: str | None = None) -> bool:
    """True when it is a run that this user made on this machine, or a checkpoint in one."""
    runs = (folder, *folder.absolute().parents[:2])
    return any(is_own(run, env, agent_module) for run in runs)


def check_env_code(
    folder: Path,
    env: str,
    agent_module: str | None = None,
    *,
    trust_env: bool,
    runs_env: bool = True,
) -> None:
    """Refuse to run the env code of a folder that was made elsewhere, or that of an agent from
    outside, unless that was agreed to.

    Args:
        folder: Of the run, or of a checkpoint in it.
        env: As ``played`` of its env has it: all that would be built.
        agent_module: Where its agent comes from, if that is none of ours.
        trust_env: It was agreed to.
        runs_env: The env is about to be built.

    Raises:
        UntrustedEnvError: Names the modules and where they lie.
    """
    code = {f"env {env!r}": modules_of(env) if runs_env else ()}
    code |= {"agent": () if agent_module is None else (agent_module,)}
    code = {what: named for what, named in code.items() if named}
    if trust_env or not code or is_within_own(folder, env, agent_module):
        return
    every = dict.fromkeys(module for named in code.values() for module in named)
    modules = " and ".join(f"module {module} {_place_of(module)}" for module in every)
    verb = "is" if len(code) == 1 else "are"
    raise UntrustedEnvError(
        f"run_dir: {folder} was not made by you on this machine, and its {' and '.join(code)} "
        f"{verb} Python code: {modules} would run as you; look at it, then add --trust-env (in "
        "Python trust_env=True)"
    )


def with_consent(call: Callable[[bool], T], *, trust_env: bool) -> T:
    """Do something for a command, and ask at a terminal whether env code may run, where that is
    not known.

    Args:
        call: Takes ``trust_env``.
        trust_env: As it was typed.

    Raises:
        UntrustedEnvError: If the answer is not yes, or there is no terminal.
    """
    try:
        return call(trust_env)
    except UntrustedEnvError as error:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        sys.stderr.write(f"{error}\nRun it? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise
    return call(True)


def _place_of(module: str) -> str:
    """Where it would be imported from; finds the file without running it."""
    try:
        found = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        found = None
    return f"({found.origin or 'a folder'})" if found else "(not found from here)"


def _signatures(folder: Path) -> list[str]:
    """The lines of its file; none where it cannot be read."""
    try:
        return read_plain(folder / SIGNATURE_FILE).decode("ascii").split()
    except (OSError, ValueError):
        return []


def _signature(key: bytes, env: str, agent_module: str | None) -> str:
    named = env if agent_module is None else f"{env}\n{agent_module}"
    return hmac.digest(key, named.encode(), "sha256").hex()


def _key(*, makes: bool) -> bytes | None:
    """The user's; None where there is none, or other users could have read or written it."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        path = Path(state) / "worldloom" / "owner.key"
        if makes and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            load_key(path)
        mode = path.stat().st_mode
        key = read_plain(path)
    except (OSError, RuntimeError):  # no home: a user without an entry, or a disk that is full
        return None
    return key if len(key) == KEY_BYTES and not mode & 0o077 else None
