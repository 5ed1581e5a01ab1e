"""A comparison's files among the artifacts of an MLflow run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.comparison.collect import Recorded
from research.utils.errors import one_line

log = logging.getLogger(__name__)

FOLDER = "comparison"
RUNS = Path("runs")
"""The user's own; an address in other run folders does not count."""


def upload(files: Sequence[Path], runs: Sequence[Recorded], uri: str) -> str | None:
    """Put the files where the runs are: into their sweep's own run, if all are of one sweep.

    A store that is away is a warning.

    Args:
        files: to upload.
        runs: that were compared.
        uri: of the store; empty for the one that the user's own runs went to, and then only with
            a sweep's run.

    Returns:
        the id of the MLflow run that has the files; null for none.
    """
    parent = _parent(runs)
    settings = runs[0].settings
    own = all(run.folder.resolve().is_relative_to(RUNS.resolve()) for run in runs)
    uri = uri or (str(settings.get("logging.mlflow.uri", "")) if parent and own else "")
    if not uri:
        return None
    try:
        client = _client(uri)
        run = parent or _own(client, str(settings.get("logging.mlflow.experiment", "backbone-lab")))
        status = "FAILED"
        try:
            for file in files:
                client.log_artifact(run, str(file), FOLDER)
            status = "FINISHED"
        finally:
            if not parent:
                client.set_terminated(run, status)
    except Exception as error:
        # The store is a foreign service, and the files are on the disk.
        log.warning("MLflow at %s did not take the comparison (%s)", uri, one_line(error))
        return None
    return run


def _parent(runs: Sequence[Recorded]) -> str | None:
    """The MLflow run of the one sweep that all runs are of."""
    folders = {run.folder.resolve().parent for run in runs}
    path = next(iter(folders)) / "mlflow_run_id"
    return path.read_text(encoding="utf-8").strip() if len(folders) == 1 and path.exists() else None


def _client(uri: str) -> Any:
    # A dead server costs seconds, not MLflow's own minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not database.exists():
        raise FileNotFoundError(f"no {database}")
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _own(client: Any, experiment: str) -> str:
    """A new run called comparison."""
    found = client.get_experiment_by_name(experiment)
    number = found.experiment_id if found else client.create_experiment(experiment)
    return str(client.create_run(number, run_name=FOLDER).info.run_id)
