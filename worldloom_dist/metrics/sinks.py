"""Where a run's numbers go besides Prometheus: TensorBoard, Weights & Biases, Trackio and MLflow,
from the record that ``metrics.jsonl`` gets. The hub itself tells OpenTelemetry
(:mod:`worldloom_dist.metrics.otlp`).

    run thread --write/show--> bounded queue --> one daemon thread --> every sink

The run never waits for a sink and never sees its errors: when the queue is full a record is
dropped, and a sink that fails several times in a row is given up with one warning; one that cannot
be opened is tried again with the next records. Names are those of the table of metrics, as paths
(``loss/total``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom_dist.metrics.addresses import without_password
from worldloom_dist.metrics.guest_sinks import find_sink, sink_names
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
REFUSED_BY_WANDB = re.compile(r"[\s/\\#?%:;,'\"]")
"""Characters that no id of a run has there."""
MOST_WANDB_CHARS = 128
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

    def close(self, status: str) -> None:
        """Write what is left.

        Args:
            status: How the run ended: ``completed``, ``stopped`` or ``failed``. A sink that has no
                use for it may leave the argument out.
        """


class TensorBoardSink:
    """TensorBoard events in a folder.

    A run that goes on leaves out what earlier events hold from its first record on: it does that
    again.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._make = SummaryWriter
        self._folder = folder
        self._known: Any = None

    def _writer(self, env_steps: int) -> Any:
        """The writer; made with the first record, which says where the run goes on."""
        if self._known is None:
            goes_on = any(self._folder.glob("events.*"))
            self._known = self._make(
                str(self._folder), flush_secs=10, purge_step=env_steps if goes_on else None
            )
        return self._known

    def write(self, env_steps: int, values: Mapping[str, float]) -> None:
        """One point per number, in the sections of :mod:`worldloom_dist.metrics.tags`."""
        writer = self._writer(env_steps)
        for name, value in values.items():
            writer.add_scalar(tag_of(name), value, env_steps)

    def show(self, env_steps: int, name: str, path: Path) -> None:
        """PNG, JPEG and animated GIF go in as they are; TensorBoard plays no mp4."""
        if path.suffix.lower() not in PICTURES:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        image = Summary.Image(encoded_image_string=path.read_bytes(), colorspace=3)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._writer(env_steps).file_writer.add_summary(summary, env_steps)

    def close(self, status: str) -> None:
        """Flush and close the file."""
        if self._known is not None:
            self._known.close()


class WandbSink:
    """A Weights & Biases run, the same one after a resume. ``WANDB_MODE`` and ``WANDB_PROJECT`` are
    respected.

    Args:
        folder: The run folder; offline runs are kept in its ``wandb``.
        run_id: Of the run, its name there, and its id there without the characters that ids must
            not have.
        config: Settings shown there.
    """

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any]) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", "worldloom")
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            id=REFUSED_BY_WANDB.sub("-", run_id)[-MOST_WANDB_CHARS:],
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

    def close(self, status: str) -> None:
        """Upload what is left; a run that failed has failed there, too."""
        self._run.finish(exit_code=0 if status in ("completed", "stopped") else 1)


class SinkThread:
    """Feeds sinks from a thread of its own.

    Args:
        openers: Name -> makes the sink; called in the thread, because a service may take long to
            answer.

    Attributes:
        given_up: Sinks that get no more, with the reason.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Sink]]) -> None:
        self.given_up: Mapping[str, str] = {}
        self._status = "completed"
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

    def close(self, status: str = "completed", timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Let the sinks finish, for so long.

        Args:
            status: How the run ended, as in ``summary.json``.
            timeout_s: Seconds.
        """
        self._status = status
        if not self._thread.is_alive():
            return
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
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
        waiting = dict(self._openers)
        sinks: dict[str, Sink] = {}
        failures = dict.fromkeys(self._openers, 0)
        self._open(waiting, sinks, failures)
        while True:
            item = self._queue.get()
            if item is not None:
                self._open(waiting, sinks, failures)
            for name, sink in list(sinks.items()):
                act = partial(_close, status=self._status) if item is None else item
                if not self._try(name, failures, partial(act, sink)):
                    del sinks[name]
            if item is None:
                return

    def _open(
        self,
        waiting: dict[str, Callable[[], Sink]],
        sinks: dict[str, Sink],
        failures: dict[str, int],
    ) -> None:
        """Open those that wait for it."""
        for name, make in list(waiting.items()):
            goes_on = self._try(name, failures, partial(_open_into, sinks, name, make))
            if name in sinks or not goes_on:
                del waiting[name]

    def _try(self, name: str, failures: dict[str, int], action: Callable[[], object]) -> bool:
        """Do it; False where the sink is given up."""
        try:
            action()
        # the edge: whatever a service raises stays here, also what would end this thread and with
        # it all sinks without a word; a real Ctrl-C is raised in the main thread only
        except BaseException as error:
            failures[name] += 1
            why = without_password(f"{type(error).__name__}: {first_line(error)}")
            if failures[name] == 1:
                logger.warning("%s failed (%s); the run goes on", name, why)
            if failures[name] < MAX_FAILURES:
                return True
            self.given_up = {**self.given_up, name: why}
            logger.warning(
                "%s is given up after %d failures in a row; the run goes on without it",
                name,
                MAX_FAILURES,
            )
            return False
        failures[name] = 0
        return True


def _open_into(sinks: dict[str, Sink], name: str, make: Callable[[], Sink]) -> None:
    sinks[name] = make()


def _close(sink: Sink, status: str) -> None:
    """Close a sink, also one whose ``close`` takes nothing."""
    close: Callable[..., None] = sink.close
    if inspect.signature(close).parameters:
        close(status)
    else:
        close()


def check_sinks(wanted: Collection[str], others: str | None = None) -> None:
    """Refuse a sink whose package is missing, or whose variables lead nowhere, before anything is
    started.

    Args:
        wanted: Names of switches: ``tensorboard``, ``wandb``, ``trackio``, ``mlflow``, ``otel``.
        others: Those that are none of ours, as typed after ``--sink``.

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
    names = sink_names(others)
    if others is not None and not names:
        raise ConfigurationError(
            f"sink must name a sink, or several as a+b, got {others!r}; leave it out for none"
        )
    for name in names:
        find_sink(name)


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
    for name in sink_names(config.get("sink")):
        openers[name] = partial(find_sink(name), folder, run_id, config)
    return SinkThread(openers)
