"""The best weights of a run as a logged model of MLflow, and versions of it in the registry.

The folder of a model has ``MLmodel``, which says what it is, and ``best.safetensors``, which
``research.load`` reads. It has no flavor that MLflow could load: nothing in it runs code.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from research.tracking.mlflow_rules import store_address
from research.tracking.mlflow_store import MLflowStore, link_artifact, reason, remedy
from research.utils.errors import UserError

FILE: Final = "best.safetensors"
FLAVOR: Final = "backbone_lab"
EPOCH: Final = "epoch"
"""Tag of a model with the epoch of its weights: a run has one model for each best epoch."""
VERSIONS: Final = "mlflow.modelVersions"
"""Tag by which the UI shows the versions of a model."""
MOST_METRICS: Final = 100
"""Of a model; each is read from the history of the run."""
KEPT: Final = Path("runs/cache/models")
"""Models that were read from a store."""
NOT_IN_NAMES: Final = re.compile(r"[/:.%\"']")
"""Characters that names of logged models do not have."""
ADDRESS: Final = re.compile(
    r"models:/(?:(?P<id>m-[0-9a-f]{32})|(?P<name>[^/@]+)(?:/(?P<version>\d+|latest)|@(?P<alias>[^/]+)))"
)


def log_model(client: Any, run: Any, weights: Path, epoch: int) -> Any:
    """The model of an epoch of a run; it is made and uploaded if the store does not have it.

    Each step is left out if an earlier process has done it.

    Args:
        client: of MLflow.
        run: its run.
        weights: ``best.safetensors`` of the run folder.
        epoch: of the weights.

    Raises:
        Exception: any, from the store.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run_id = run.info.run_id
    model = _model_of(client, run, epoch)
    if model is None:
        name = NOT_IN_NAMES.sub("_", run.info.run_name or "model")
        tags = {EPOCH: str(epoch)}
        model = client.create_logged_model(run.info.experiment_id, name, run_id, tags)
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as folder:
            _write_description(Path(folder), run_id, model)
            client.log_model_artifacts(model.model_id, folder)
        link_artifact(model.artifact_location, weights)
        client.log_model_artifact(model.model_id, str(weights))
        model = client.finalize_logged_model(model.model_id, "READY")
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, epoch)])
    log_metrics(client, run, epoch, model)
    return model


def log_metrics(client: Any, run: Any, epoch: int, model: Any = None) -> None:
    """Give the model of an epoch the metrics that its run has for this epoch.

    Args:
        client: of MLflow.
        run: its run.
        epoch: of the model.
        model: None: that of the run, if it has one.

    Raises:
        Exception: any, from the store.
    """
    from mlflow.entities import Metric

    run_id, model = run.info.run_id, model or _model_of(client, run, epoch)
    if model is None:
        return
    keys = [key for key in run.data.metrics if key.startswith(("val/", "test/"))]
    # With the times that they have in the run, which so gets no second value.
    values = [
        Metric(key, each.value, each.timestamp, each.step, model_id=model.model_id, run_id=run_id)
        for key in keys[:MOST_METRICS]
        for each in client.get_metric_history(run_id, key)
        if each.step == epoch
    ]
    client.log_batch(run_id, values)


def _model_of(client: Any, run: Any, epoch: int) -> Any:
    """The model of an epoch of a run; None if there is none."""
    of_run = f"source_run_id = '{run.info.run_id}'"
    found = client.search_logged_models([run.info.experiment_id], of_run)
    return next((model for model in found if model.tags.get(EPOCH) == str(epoch)), None)


def _write_description(folder: Path, run_id: str, model: Any) -> None:
    from mlflow.models import Model

    flavor = {"data": FILE, "load": "research.load"}
    about = Model(run_id=run_id, flavors={FLAVOR: flavor}, model_id=model.model_id)
    about.save(str(folder / "MLmodel"))


def register(client: Any, model: Any, name: str) -> tuple[str, bool]:
    """Make a model a version in the registry, once.

    Args:
        client: of MLflow.
        model: from ``log_model``.
        name: of the registered model, which is made if there is none.

    Returns:
        the version, and whether it is new.

    Raises:
        Exception: any, from the store.
    """
    run_id, source = model.source_run_id, model.artifact_location
    # Not models:/ID, which a database resolves with the address of MLflow's own settings.
    for version in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if version.source == source:
            return str(version.version), False
    try:
        client.create_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", None) not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    version = client.create_model_version(
        name, source, run_id, await_creation_for=0, model_id=model.model_id
    )
    tags = client.get_logged_model(model.model_id).tags
    shown = json.loads(tags.get(VERSIONS, "[]"))
    # A server has set the tag itself; a database has not.
    if (name, str(version.version)) not in [(each["name"], str(each["version"])) for each in shown]:
        entry = {"name": name, "version": version.version}
        client.set_logged_model_tags(model.model_id, {VERSIONS: json.dumps([*shown, entry])})
    return str(version.version), True


def fetch(address: str) -> Path:
    """The weights of a model in the store, in a file of this computer.

    Args:
        address: ``models:/ID``, ``models:/NAME/VERSION``, ``models:/NAME/latest`` or
            ``models:/NAME@ALIAS``, in the store of ``MLFLOW_TRACKING_URI``, else in the database in
            ``runs/``.

    Raises:
        UserError: if there is no such model, it is none of this project, or the store is
            unavailable.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(
            "RUN", f"{address}: no address of a model", "write models:/NAME/VERSION or models:/ID"
        )
    if match["id"] and (KEPT / match["id"] / FILE).exists():
        return KEPT / match["id"] / FILE
    store = MLflowStore(store_address(None))
    with _explained(address, store):
        if store.database is not None and not store.database.exists():
            raise FileNotFoundError(f"no {store.database}")
        client = store.client()
        location = _location(client, match)
        # A version in the registry has the files of a logged model, whose id is unique.
        own = re.search(r"m-[0-9a-f]{32}", location)
        if own is None:
            raise FileNotFoundError("it is no model of this project")
        file = KEPT / own[0] / FILE
        if not file.exists():
            _download(store, f"{location}/{FILE}", file)
    return file


def _location(client: Any, match: re.Match[str]) -> str:
    """Where the files of a model are."""
    if match["id"]:
        return str(client.get_logged_model(match["id"]).artifact_location)
    name = match["name"]
    if match["alias"]:
        version = client.get_model_version_by_alias(name, match["alias"]).version
    elif match["version"] == "latest":
        found = client.search_model_versions(f"name = '{name}'", 1, ["version_number DESC"])
        if not found:
            raise FileNotFoundError(f"no registered model {name!r}")
        version = found[0].version
    else:
        version = match["version"]
    return str(client.get_model_version_download_uri(name, version))


def _download(store: MLflowStore, uri: str, file: Path) -> None:
    """Download a file; it is there when it is complete."""
    from mlflow.artifacts import download_artifacts

    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        found = download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=store.uri)
        Path(found).replace(file)


@contextmanager
def _explained(address: str, store: MLflowStore) -> Iterator[None]:
    """Raise a ``UserError`` for what MLflow raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        hint = remedy(error) or "MLFLOW_TRACKING_URI says which store it is in"
        raise UserError(
            "RUN", f"{address}: cannot be read from {store.shown} ({reason(error)})", hint
        ) from error
