"""Trackio: a local database with a dashboard, or a server or Space of the user's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.metrics.addresses import host_and_port, without_password
from worldloom_dist.metrics.media import PICTURES, VIDEOS

__all__ = ["TrackioSink", "check_trackio"]

VARIABLE = "TRACKIO_DIR"
_given: set[str] = set()
"""Folders that the variable was set to here."""


def check_trackio(environment: Mapping[str, str]) -> None:
    """Refuse a server that cannot be one.

    Raises:
        ConfigurationError: Names the variable, and what it may be.
    """
    url = environment.get("TRACKIO_SERVER_URL", "")
    if not url:
        return
    if host_and_port(url) is None:
        raise ConfigurationError(
            f"TRACKIO_SERVER_URL must be http://HOST:PORT or https://HOST, got "
            f"{without_password(url)!r}; "
            "correct it, or unset it to keep the numbers in the run folder"
        )
    if "write_token=" not in url and not environment.get("TRACKIO_WRITE_TOKEN"):
        raise ConfigurationError(
            "TRACKIO_SERVER_URL needs a write token: put it into TRACKIO_WRITE_TOKEN"
        )


class TrackioSink:
    """A Trackio run, the same one after a resume. ``TRACKIO_PROJECT``, ``TRACKIO_DIR``,
    ``TRACKIO_SERVER_URL`` and ``TRACKIO_SPACE_ID`` are respected.

    Args:
        folder: The run folder; its ``trackio`` holds the database unless ``TRACKIO_DIR`` names
            another place.
        run_id: Of the run, and the name of the run there.
        config: Settings shown there.

    Raises:
        ConfigurationError: If Trackio writes to another folder already: it keeps its first one for
            the life of a process.
    """

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any]) -> None:
        place = str(folder.absolute() / "trackio")
        is_own = os.environ.get(VARIABLE) in (None, "", *_given)
        if is_own:
            _given.add(place)
            os.environ[VARIABLE] = place
        import trackio

        used = getattr(getattr(trackio, "utils", None), "TRACKIO_DIR", place)
        if is_own and Path(used) != Path(place):
            raise ConfigurationError(
                f"trackio writes to {used} as long as this process lives, and not to {place}; "
                f"start the run in a process of its own, or name one place for all with {VARIABLE}"
            )
        self._trackio: Any = trackio
        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "worldloom"),
            name=run_id,
            resume="allow",
            config=dict(config),
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def write(self, env_steps: int, values: Mapping[str, float]) -> None:
        """One record."""
        self._run.log(dict(values), step=env_steps)

    def show(self, env_steps: int, name: str, path: Path) -> None:
        """Videos and animated GIFs as video, other pictures as image."""
        suffix = path.suffix.lower()
        if suffix in VIDEOS:
            medium = self._trackio.Video(str(path))
        elif suffix in PICTURES:
            medium = self._trackio.Image(str(path))
        else:
            return
        self._run.log({name: medium}, step=env_steps)

    def close(self, status: str) -> None:
        """Write what is left; Trackio keeps no status."""
        self._run.finish()
