"""Uploads a comparison's files as artifacts of an MLflow run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.comparison.collect import RecordedRun
from research.tracking.mlflow_rules import experiment_name, store_address
from research.tracking.mlflow_store import MLflowStore
from research.tracking.spool import read_run_id
from research.utils import secrets
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
    if not uri and not (parent and own and "logging.mlflow.uri" in settings):
        return None
    uri = uri or settings["logging.mlflow.uri"] or ""
    try:
        store = MLflowStore(store_address(uri))
        if store.database is not None and not store.database.exists():
            raise FileNotFoundError(f"no {store.database}")
        client = store.client()
        run = parent or _own(store, client, settings.get("logging.mlflow.experiment"))
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
        shown = secrets.hide(uri)
        log.warning("MLflow at %s: the comparison was not uploaded (%s)", shown, one_line(error))
        return None
    return run


def _parent(runs: Sequence[RecordedRun]) -> str | None:
    """The id of the parent run, if all runs belong to one sweep that has one."""
    folders = {run.folder.resolve().parent for run in runs}
    return (read_run_id(next(iter(folders))) or None) if len(folders) == 1 else None


def _own(store: MLflowStore, client: Any, experiment: str | None) -> str:
    """The id of a new run named comparison."""
    number = store.experiment(client, experiment_name(experiment))
    return str(client.create_run(number, run_name=FOLDER).info.run_id)
