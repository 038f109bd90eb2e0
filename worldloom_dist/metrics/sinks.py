"""Where a run's numbers go besides Prometheus: TensorBoard, Weights & Biases, Trackio and MLflow,
from the record that ``metrics.jsonl`` gets. The hub itself tells OpenTelemetry
(:mod:`worldloom_dist.metrics.otlp`).

    run thread --write/show--> bounded queue --> one daemon thread --> every sink

The run never waits for a sink and never sees its errors: when the queue is full a record is
dropped, and a sink that fails several times in a row is given up with one warning. Names are those
of the table of metrics, as paths (``loss/total``).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from worldloom.core.exceptions import MissingDependencyError
from worldloom_dist.metrics.addresses import without_password
from worldloom_dist.metrics.media import PICTURES, VIDEOS
from worldloom_dist.metrics.mlflow_sink import MlflowSink, check_mlflow
from worldloom_dist.metrics.names import path_of
from worldloom_dist.metrics.otlp import check_otlp
from worldloom_dist.metrics.tags import tag_of
from worldloom_dist.metrics.trackio_sink import TrackioSink, check_trackio

__all__ = [
    "Sink",
    "SinkThread",
    "TensorBoardSink",
    "WandbSink",
    "check_sinks",
    "open_sinks",
]

logger = logging.getLogger(__name__)

QUEUE_RECORDS = 1000
MAX_FAILURES = 3
CLOSE_TIMEOUT_S = 15.0
Check = Callable[[Mapping[str, str]], None]
NEEDS: Mapping[str, tuple[tuple[str, ...], str, Check | None]] = {
    "tensorboard": (("tensorboardX",), "training", None),
    "wandb": (("wandb",), "wandb", None),
    "trackio": (("trackio",), "trackio", check_trackio),
    "mlflow": (("mlflow", "sqlalchemy", "alembic"), "mlflow", check_mlflow),
    "otel": (("opentelemetry.exporter.otlp.proto.http",), "otel", check_otlp),
}
"""Switch -> the modules that it needs, the extra that brings them, and what looks over its
variables.
"""


class Sink(Protocol):
    """A place for numbers and pictures; may be slow and may fail."""

    def write(self, env_steps: int, values: Mapping[str, float]) -> None:
        """Take numbers by path."""

    def show(self, env_steps: int, name: str, path: Path) -> None:
        """Take a picture or a video; formats that it cannot show are left out."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoardSink:
    """TensorBoard events in a folder.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def write(self, env_steps: int, values: Mapping[str, float]) -> None:
        """One point per number, in the sections of :mod:`worldloom_dist.metrics.tags`."""
        for name, value in values.items():
            self._writer.add_scalar(tag_of(name), value, env_steps)

    def show(self, env_steps: int, name: str, path: Path) -> None:
        """PNG, JPEG and animated GIF go in as they are; TensorBoard plays no mp4."""
        if path.suffix.lower() not in PICTURES:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        image = Summary.Image(encoded_image_string=path.read_bytes(), colorspace=3)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._writer.file_writer.add_summary(summary, env_steps)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class WandbSink:
    """A Weights & Biases run, the same one after a resume. ``WANDB_MODE`` and ``WANDB_PROJECT`` are
    respected.

    Args:
        folder: The run folder; offline runs are kept in its ``wandb``.
        run_id: Of the run, and of the run there.
        config: Settings shown there.
    """

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any]) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", "worldloom")
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            id=run_id,
            name=run_id,
            dir=str(folder),
            resume="allow",
            config=dict(config),
        )
        self._run.define_metric("env_steps")
        self._run.define_metric("*", step_metric="env_steps")

    def write(self, env_steps: int, values: Mapping[str, float]) -> None:
        """One record."""
        self._run.log({**values, "env_steps": env_steps})

    def show(self, env_steps: int, name: str, path: Path) -> None:
        """Videos and animated GIFs as video, other pictures as image."""
        suffix = path.suffix.lower()
        kind = (
            self._wandb.Video
            if suffix in VIDEOS
            else self._wandb.Image
            if suffix in PICTURES
            else None
        )
        if kind is not None:
            options = {"format": suffix[1:]} if suffix in VIDEOS else {}
            self._run.log({name: kind(str(path), **options), "env_steps": env_steps})

    def close(self) -> None:
        """Upload what is left."""
        self._run.finish()


class SinkThread:
    """Feeds sinks from a thread of its own.

    Args:
        openers: Name -> makes the sink; called in the thread, because a service may take long to
            answer.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Sink]]) -> None:
        self._queue: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(QUEUE_RECORDS)
        self._openers = dict(openers)
        self._has_warned = False
        self._thread = threading.Thread(target=self._run, name="sinks", daemon=True)
        if self._openers:
            self._thread.start()

    def write(self, env_steps: int, values: Mapping[str, float]) -> None:
        """Hand over numbers by key of the table; returns at once."""
        numbers = {path_of(key): float(value) for key, value in values.items()}
        self._put(lambda sink: sink.write(env_steps, numbers))

    def show(self, env_steps: int, name: str, path: Path) -> None:
        """Hand over a picture or video; returns at once."""
        self._put(lambda sink: sink.show(env_steps, name, path))

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Let the sinks finish, for so long."""
        if not self._thread.is_alive():
            return
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning(
                "sinks did not finish within %.0f s; what they had not written is lost", timeout_s
            )

    def _put(self, item: Callable[[Sink], None]) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "a sink is too slow; records are dropped from here on "
                    "(metrics.jsonl has them all)"
                )

    def _run(self) -> None:
        sinks: dict[str, Sink] = {}
        failures = dict.fromkeys(self._openers, 0)
        for name, make in self._openers.items():
            self._try(name, failures, partial(self._open, sinks, name, make))
        while True:
            item = self._queue.get()
            for name, sink in list(sinks.items()):
                action = sink.close if item is None else partial(item, sink)
                self._try(name, failures, action)
                if failures[name] >= MAX_FAILURES:
                    del sinks[name]
                    logger.warning(
                        "%s is given up after %d failures in a row; the run goes on without it",
                        name,
                        MAX_FAILURES,
                    )
            if item is None:
                return

    def _open(self, sinks: dict[str, Sink], name: str, make: Callable[[], Sink]) -> None:
        sinks[name] = make()

    def _try(self, name: str, failures: dict[str, int], action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # the edge: whatever a service raises stays here
            failures[name] += 1
            if failures[name] == 1:
                why = without_password(f"{type(error).__name__}: {error}")
                logger.warning("%s failed (%s); the run goes on", name, why)
        else:
            failures[name] = 0


def check_sinks(wanted: Collection[str]) -> None:
    """Refuse a sink whose package is missing, or whose variables lead nowhere, before anything is
    started.

    Args:
        wanted: Names of switches: ``tensorboard``, ``wandb``, ``trackio``, ``mlflow``, ``otel``.

    Raises:
        MissingDependencyError: With the line that installs it.
        ConfigurationError: Names the variable, and what it may be.
    """
    for name, (modules, extra, check) in NEEDS.items():
        if name not in wanted:
            continue
        for module in modules:
            if not _is_installed(module):
                raise MissingDependencyError(f"--{name}", module, extra)
        if check is not None:
            check(os.environ)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it is in
        return False


def open_sinks(folder: Path, run_id: str, config: Mapping[str, Any]) -> SinkThread:
    """The sinks that a run asked for (``tensorboard``, ``wandb`` and so on of its settings).

    Args:
        folder: The run folder.
        run_id: Of the run.
        config: Its settings.
    """
    openers: dict[str, Callable[[], Sink]] = {}
    if config["tensorboard"]:
        openers["tensorboard"] = lambda: TensorBoardSink(folder / "tensorboard")
    if config["wandb"]:
        openers["wandb"] = lambda: WandbSink(folder, run_id, config)
    if config["trackio"]:
        openers["trackio"] = lambda: TrackioSink(folder, run_id, config)
    if config["mlflow"]:
        openers["mlflow"] = lambda: MlflowSink(folder, run_id, config)
    return SinkThread(openers)
