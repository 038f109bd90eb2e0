"""``python -m worldloom_client --env gym:Pendulum-v1 --address HOST:PORT``: any machine with
Gymnasium becomes a worker of a run. Exit status 0 = done or left, 2 = wrong input, 1 = anything
else.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldloom_client.driving import Episode, drive
from worldloom_client.errors import ClientError, RefusedError, UnavailableError
from worldloom_client.session import connect
from worldloom_client.settings import HOLDS

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(words)
    try:
        env = make_env(options.env)
    except ClientError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    settings = {
        "client": options.client,
        "token": _token(options.token_file),
        "ca": options.ca,
        "certificate": options.certificate,
        "key": options.key,
        "on_hold": options.on_hold,
        "spool": options.spool,
        "spool_bytes": options.spool_mb * 2**20,
        "timeout_s": options.timeout,
        "store": None if not options.no_store else False,
    }

    def tell(episode: Episode) -> None:
        """A line for each episode."""
        sys.stdout.write(f"return {episode.episode_return:g}  length {episode.length}\n")
        sys.stdout.flush()

    try:
        with connect(options.address, **settings) as session:
            if session.warning:
                sys.stderr.write(f"{session.warning}\n")
            drive(
                env,
                session,
                episodes=options.episodes,
                steps=options.steps,
                seed=options.seed,
                on_episode=tell,
            )
    except KeyboardInterrupt:
        return 0
    except UnavailableError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except RefusedError as error:
        sys.stderr.write(f"error: {error.code}: {error}\n")
        return 1
    except ClientError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finally:
        env.close()
    return 0


def make_env(name: str) -> Any:
    """The env of ``gym:ID``, or of ``MODULE:CALLABLE``.

    Raises:
        ClientError: If there is no such env; says why.
    """
    suite, colon, rest = name.partition(":")
    if not colon or not rest:
        raise ClientError(f"env: got {name!r}, expected gym:ID or MODULE:CALLABLE")
    try:
        if suite == "gym":
            return importlib.import_module("gymnasium").make(rest)
        return getattr(importlib.import_module(suite), rest)()
    except ModuleNotFoundError as error:
        raise ClientError(f"env: {name!r} needs a package: {error}; install it") from error
    except Exception as error:  # whatever the env raises is about this env
        raise ClientError(f"env: {name!r} cannot be made: {error}") from error


def _token(path: str | None) -> Any:
    return None if path is None else Path(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worldloom_client",
        description="Play an env of this machine with the policy of a run, and feed its replay.",
    )
    add: Any = parser.add_argument
    add("--env", required=True, help="gym:ID, or MODULE:CALLABLE that makes a Gymnasium env")
    add("--address", required=True, help="HOST:PORT of a gateway; several with commas")
    add("--client", default="client", help="label for the run's logs and metrics (client)")
    add("--episodes", type=int, default=None, help="stop after this many (default: never)")
    add("--steps", type=int, default=None, help="stop after this many decisions (default: never)")
    add("--seed", type=int, default=None, help="of the first reset")
    add("--no-store", action="store_true", help="only act; nothing enters replay")
    add("--on-hold", choices=HOLDS, default="wait", help="when replay wants no rows (wait)")
    add("--spool", default=None, help="folder for rows that are pushed later (--on-hold spool)")
    add("--spool-mb", type=int, default=256, help="most megabytes in it (256)")
    add("--timeout", type=float, default=60.0, help="seconds to wait for a gateway (60)")
    add("--token-file", default=None, help="file with the bearer token")
    add("--ca", default=None, help="file with who signed the gateway's certificate, PEM")
    add("--certificate", default=None, help="file with this client's certificate, PEM")
    add("--key", default=None, help="file with its private key, PEM")
    return parser


if __name__ == "__main__":
    sys.exit(main())
