"""Uploads a comparison's files as artifacts of an MLflow run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.comparison.collect import RecordedRun
from research.utils.errors import one_line

log = logging.getLogger(__name__)

FOLDER = "comparison"
RUNS = Path("runs")
"""The user's own runs; a tracking URI in other run folders is not used."""


def upload(files: Sequence[Path], runs: Sequence[RecordedRun], uri: str) -> str | None:
    """Upload to the parent run of the sweep, if all runs belong to one sweep.

    An unreachable store causes a warning, not an error.

    Args:
        files: to upload.
        runs: that were compared.
        uri: of the store; empty for that of the user's own runs, used only with a parent run.

    Returns:
        the id of the MLflow run that has the files; ``None`` if they were not uploaded.
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
        # The store is an external service, and the files are on disk.
        log.warning("MLflow at %s: the comparison was not uploaded (%s)", uri, one_line(error))
        return None
    return run


def _parent(runs: Sequence[RecordedRun]) -> str | None:
    """The id of the parent run, if all runs belong to one sweep that has one."""
    folders = {run.folder.resolve().parent for run in runs}
    path = next(iter(folders)) / "mlflow_run_id"
    if len(folders) > 1 or not path.is_file():
        return None
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _client(uri: str) -> Any:
    # An unreachable server should cost seconds, not the minutes of MLflow's default retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not database.exists():
        raise FileNotFoundError(f"no {database}")
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _own(client: Any, experiment: str) -> str:
    """The id of a new run named comparison."""
    found = client.get_experiment_by_name(experiment)
    number = found.experiment_id if found else client.create_experiment(experiment)
    return str(client.create_run(number, run_name=FOLDER).info.run_id)
