"""Agents on a model hub, by their address: ``hf://USER/NAME[@REVISION]``.

The client is ``huggingface_hub``, with its own settings: ``HF_ENDPOINT`` for a private hub,
``HF_TOKEN``, ``HF_HOME`` for the cache, ``HF_HUB_OFFLINE=1`` to use the cache alone. What is
fetched is JSON and safetensors; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from worldloom import __version__
from worldloom.core.error_text import first_line
from worldloom.core.exceptions import (
    ConfigurationError,
    HubError,
    MissingDependencyError,
    WorldLoomError,
)
from worldloom.core.files import expanded

__all__ = ["HubAddress", "client", "is_address", "located", "told"]

SCHEME = re.compile(r"hf:/{1,2}")
"""A path object keeps one of two slashes."""
NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?")
CHECKPOINT = ("manifest.json", "tree.json", "tensors.safetensors")
FETCHED = (
    *("config.json", "summary.json", "policy.json"),
    *CHECKPOINT,
    *(f"checkpoints/*/{name}" for name in CHECKPOINT),
)
"""All that is ever fetched."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib")
SHOWN = 3


@dataclass(frozen=True, slots=True)
class HubAddress:
    """Where an agent lies on a hub.

    Attributes:
        repo: ``USER/NAME``.
        revision: A branch, a tag or a commit; None is the newest.
    """

    repo: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> HubAddress:
        """Read ``hf://USER/NAME[@REVISION]``, or the same without ``hf://``.

        Raises:
            ConfigurationError: If it is no such text.

        Example:
            >>> HubAddress.of("hf://ada/walker@v1")
            HubAddress(repo='ada/walker', revision='v1')
        """
        repo, at, revision = SCHEME.sub("", text, count=1).partition("@")
        parts = repo.split("/")
        is_name = len(parts) == 2 and all(NAME.fullmatch(part) for part in parts)
        if not is_name or "--" in repo or ".." in repo or (at and not revision):
            raise ConfigurationError(
                f"hub address must be USER/NAME or hf://USER/NAME[@REVISION], of letters, digits "
                f"and single - _ . between them, got {text!r}"
            )
        return cls(repo, revision or None)

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


def is_address(place: object) -> bool:
    """True for ``hf://...``."""
    return isinstance(place, str | PathLike) and bool(SCHEME.match(os.fspath(place)))


def located(place: str | PathLike[str], name: str = "path") -> Path:
    """A place as a path on this machine; what is on a hub is fetched, or found in the cache.

    Args:
        place: A path, or ``hf://USER/NAME[@REVISION]``.
        name: How messages call it.

    Raises:
        ConfigurationError: If it is neither, or the hub has no such agent.
        HubError: If the hub cannot be reached.
        MissingDependencyError: If ``huggingface_hub`` is not installed.
    """
    if is_address(place):
        return _fetched(HubAddress.of(str(os.fspath(place))))
    return expanded(place, name)


def client(purpose: str) -> Any:
    """The package ``huggingface_hub``.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependencyError(purpose, "huggingface_hub", "hub") from error
    return huggingface_hub


@contextlib.contextmanager
def told(address: HubAddress) -> Iterator[None]:
    """Talk to the hub in this block; what the client raises becomes one sentence.

    Raises:
        ConfigurationError: If name, revision or token is wrong.
        HubError: If the hub cannot be reached, or fails.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the client's, of its own settings
            yield
    except WorldLoomError:
        raise
    except Exception as error:  # the edge: a client raises what its HTTP library raises
        raise _sentence(address, error) from error


def _fetched(address: HubAddress) -> Path:
    hub = client(f"{address}")
    with told(address):
        folder = Path(
            hub.snapshot_download(
                address.repo,
                revision=address.revision,
                allow_patterns=list(FETCHED),
                library_name="worldloom",
                library_version=__version__,
            )
        )
    checkpoints = folder.glob("checkpoints/*/manifest.json")
    if not (folder / "manifest.json").exists() and not any(checkpoints):
        raise ConfigurationError(
            f"{address} holds no agent that worldloom push wrote{_what_else(hub, address)}"
        )
    return folder


def _what_else(hub: Any, address: HubAddress) -> str:
    """Pickles, or other files, for a sentence; empty where the hub does not tell."""
    try:
        names = hub.HfApi().list_repo_files(address.repo, revision=address.revision)
    except Exception:  # it was there a moment ago; the sentence is true without it
        return ""
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return f"; it has {', '.join(pickles[:SHOWN])}, and nothing is ever unpickled"
    return f"; it has {', '.join(names[:SHOWN])}" if names else "; it is empty"


def _sentence(address: HubAddress, error: Exception) -> WorldLoomError:
    from huggingface_hub import constants, errors

    place = constants.ENDPOINT
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    offline = isinstance(error, errors.OfflineModeIsEnabled) or isinstance(
        error.__cause__, errors.OfflineModeIsEnabled
    )
    if isinstance(error, errors.LocalTokenNotFoundError) or status in (401, 403):
        return ConfigurationError(
            f"{address}: {place} does not let this token in (status {status or 401}), or there is "
            "no such model; check the name, and set HF_TOKEN to a token that may"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigurationError(
            f"{address}: {place} has no revision {address.revision!r} of it; leave @REVISION out "
            "for the newest, or name a branch, a tag or a commit"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigurationError(
            f"{address}: {place} has no such model, or this token may not see it; check the name"
        )
    if isinstance(error, errors.HFValidationError):
        return ConfigurationError(f"{address}: {first_line(error)}")
    if offline:
        return HubError(
            f"{address} is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE keeps "
            "the client from asking; unset it once"
        )
    if status is not None:
        return HubError(f"{address}: {place} answered with status {status}; try again later")
    reason = f"{type(error).__name__}: {first_line(error)}"
    return HubError(
        f"{address}: {place} cannot be reached ({reason}); check the network, or HF_ENDPOINT"
    )
