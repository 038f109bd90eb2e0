"""MLflow: a database in the run folder, or the tracking server of the user's.

MLflow's store of plain files is refused: it keeps a metric in a file of the metric's name, so that
``policy_lag_updates`` and ``policy_lag_updates/p99`` cannot both be there.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.files import write_json
from worldloom.core.json_text import read_object, to_json
from worldloom_dist.metrics.addresses import host_and_port, without_password

__all__ = ["MlflowSink", "check_mlflow"]

logger = logging.getLogger(__name__)

VARIABLE = "MLFLOW_TRACKING_URI"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
CONNECT_WITHIN_S = 5.0
BATCH_METRICS = 1000
BATCH_PARAMS = 100
"""What MLflow takes in one call."""
ENDS = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""How a run ended, in MLflow's words."""
REFUSED = re.compile(r"[^\w.\- :/]")
"""Characters that no name has there."""


def check_mlflow(environment: Mapping[str, str]) -> None:
    """Refuse a tracking URI that MLflow cannot use, or not for the names of our metrics.

    Raises:
        ConfigurationError: Names the variable, and what it may be.
    """
    uri = environment.get(VARIABLE, "")
    if not uri or uri == "databricks" or uri.startswith("databricks://"):
        return
    scheme, _, rest = uri.partition("://")
    if host_and_port(uri) is not None or (scheme.partition("+")[0] in DATABASES and rest):
        return
    why = (
        ", a store of files, which cannot hold a metric beside another whose name goes on from it"
        if scheme == "file" or (":" not in scheme and not rest)
        else ""
    )
    raise ConfigurationError(
        f"{VARIABLE} must be http(s)://HOST, a database like sqlite:////PATH/mlflow.db, or "
        f"databricks, got {without_password(uri)!r}{why}; correct it, or unset it to keep the "
        "numbers in the run folder"
    )


class MlflowSink:
    """An MLflow run, the same one after a resume: its id is in ``mlflow.json`` of the run folder.
    ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME`` and MLflow's other variables are respected.

    Args:
        folder: The run folder; without a tracking URI its ``mlflow.db`` has the numbers and its
            ``mlflow`` pictures and videos.
        run_id: Of the run, and the name of the run there.
        config: Settings, there as parameters.
    """

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._metric = Metric
        uri = os.environ.get(VARIABLE) or _database_in(folder)
        _warn_if_away(uri)
        self._client: Any = MlflowClient(tracking_uri=uri)
        known = _known_run(folder, uri)
        settings = dict(_flat(config))
        if known is not None and self._go_on(known, settings):
            self._run_id = known
            return
        self._run_id = self._create(folder, run_id, settings)
        place = {"tracking_uri": without_password(uri), "run_id": self._run_id}
        write_json(folder / "mlflow.json", place)

    def write(self, env_steps: int, values: Mapping[str, float]) -> None:
        """One record; its step is that of the run."""
        stamp = int(time.time() * 1000)
        metrics = [
            self._metric(REFUSED.sub("_", name), value, stamp, env_steps)
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + BATCH_METRICS])

    def show(self, env_steps: int, name: str, path: Path) -> None:
        """The file as an artifact, below the part of the name before its last slash."""
        self._client.log_artifact(self._run_id, str(path), name.rpartition("/")[0] or None)

    def close(self, status: str) -> None:
        """Say there how the run ended."""
        self._client.set_terminated(self._run_id, ENDS.get(status, "FAILED"))

    def _create(self, folder: Path, run_id: str, settings: Mapping[str, str]) -> str:
        from mlflow.entities import Param

        tags = {"worldloom.run_id": run_id}
        made = self._client.create_run(self._experiment(folder), run_name=run_id, tags=tags)
        params = [Param(key, value) for key, value in settings.items()]
        for start in range(0, len(params), BATCH_PARAMS):
            self._client.log_batch(made.info.run_id, params=params[start : start + BATCH_PARAMS])
        return str(made.info.run_id)

    def _experiment(self, folder: Path) -> str:
        """The id of the experiment, which is made when there is none."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "worldloom")
        found = self._client.get_experiment_by_name(name)
        if found is None:
            own = None if os.environ.get(VARIABLE) else (folder.absolute() / "mlflow").as_uri()
            try:
                return str(self._client.create_experiment(name, artifact_location=own))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:  # else another run made it meanwhile
                    raise
        return str(found.experiment_id)

    def _go_on(self, known: str, settings: Mapping[str, str]) -> bool:
        """Open a run again; False where it was deleted. Its parameters cannot change, so that
        settings that did are tags.
        """
        from mlflow.exceptions import MlflowException

        try:
            before = self._client.get_run(known).data.params
            self._client.update_run(known, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("mlflow has no run %s any more; a new one is begun there", known)
            return False
        for key, value in settings.items():
            if before.get(key) != value:
                self._client.set_tag(known, f"resumed/{key}", value)
        return True


def _warn_if_away(uri: str) -> None:
    """Say at once that no server answers: MLflow itself tries for minutes before it does."""
    place = host_and_port(uri)
    if place is None:
        return
    try:
        socket.create_connection(place, CONNECT_WITHIN_S).close()
    except OSError as error:
        logger.warning(
            "mlflow: nothing answers at %s (%s); it is tried for some minutes, and the run goes on",
            without_password(uri),
            error,
        )


def _database_in(folder: Path) -> str:
    from sqlalchemy.engine import URL

    path = str(folder.absolute() / "mlflow.db")
    return URL.create("sqlite", database=path).render_as_string(hide_password=False)


def _known_run(folder: Path, uri: str) -> str | None:
    """The run's id at this very place; None for a new run, and where it was somewhere else."""
    path = folder / "mlflow.json"
    if not path.exists():
        return None
    found = read_object(path)
    known = found.get("run_id")
    if found.get("tracking_uri") != without_password(uri) or not isinstance(known, str):
        return None
    return known


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """``{"env": {"size": 64}}`` -> (``env.size``, ``64``); None is left out."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, value if isinstance(value, str) else to_json(value)
