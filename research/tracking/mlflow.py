"""MLflow tracker: metrics in batches, pictures and files as artifacts, with an offline spool.

Every record is first appended to a spool file in the run folder, and removed from it when the store
has accepted it. If the store is unavailable or locked, nothing is lost: the spool is delivered when
it is available again, at the end of the run, or when the run is resumed.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL.Image import Image

from research.tracking.mlflow_resume import changed_settings, earlier_rows
from research.tracking.tracker import Position, Row, Rows, Run, Status, Table, Tracker
from research.utils.conditions import naming
from research.utils.files import write_text

log = logging.getLogger(__name__)

METRICS_PER_REQUEST = 1000
"""MLflow's limit on one ``log_batch`` call."""
PARAMS_PER_REQUEST = 100
PARAM_LENGTH = 6000
"""MLflow's limit on a parameter value's length."""
RUN_FILE = "mlflow_run_id"
"""File of the run folder with the id of the MLflow run."""
BATCH_TIME = "batch/batch_time_sec"
SECONDS_BETWEEN_DELIVERIES = 10.0
SECONDS_AFTER_FAILURE = 60.0
SECONDS_FOR_DATABASE = 2.0
"""How long a database may be locked or busy before it counts as unavailable."""
SECONDS_FOR_TABLES = 30.0
"""How long another process may take to create the tables; it takes 3 s on an idle machine."""


class MLflowTracker(Tracker):
    """Records a run in an MLflow store.

    Args:
        uri: tracking URI; for ``sqlite:///FOLDER/mlflow.db`` the artifacts go to
            ``FOLDER/mlflow-artifacts``.
        experiment: experiment name, created when missing.
        system_metrics: sample CPU, memory and GPU load during training; not for a run without
            data, which only groups other runs.
    """

    def __init__(self, uri: str, experiment: str, system_metrics: bool) -> None:
        self.uri = uri
        sqlite = uri.startswith("sqlite:///")
        self.database = Path(uri.removeprefix("sqlite:///")) if sqlite else None
        self.experiment = experiment
        self.system_metrics = system_metrics
        self.run: Run | None = None
        self.run_id = ""
        # The MLflow run of a process that ended before this folder's first checkpoint.
        self.abandoned = ""
        self.pending: list[dict[str, Any]] = []
        # The last step of each metric that an earlier process delivered.
        self.delivered: dict[str, int] = {}
        self.next_delivery = 0.0
        self.batch_time: float | None = None
        self.client: Any = None
        self.monitor: Any = None

    # -- the interface -------------------------------------------------------------------------

    def start(self, run: Run) -> None:
        self.run = run
        if run.resumed.step:
            self.run_id = run.state.get("mlflow_run_id", "")
            if not self.run_id and self._run_file.exists():
                # The MLflow run was created after the checkpoint was written.
                self.run_id = self._run_file.read_text(encoding="utf-8")
            if self._spool.exists():
                self.pending = [
                    record for record in _lines(self._spool) if _is_before(record, run.resumed)
                ]
        elif self._run_file.exists():
            self.abandoned = self._run_file.read_text(encoding="utf-8")
        self._rewrite_spool()
        self._deliver()

    def set_back(self, folder: Path) -> None:
        (folder / RUN_FILE).unlink(missing_ok=True)

    def log(self, table: Table, step: int, row: Row) -> None:
        self._add(self._record(table, step, row))
        if time.monotonic() >= self.next_delivery:
            self._deliver()

    def _record(
        self, table: Table, step: int, row: Row, time_ms: int | None = None
    ) -> dict[str, Any]:
        """A row as a record of the spool, of now unless a time is given."""
        numbers = {
            f"batch/{name}" if table == "batch" else name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and name not in ("epoch", "batch")
        }
        if table == "batch":
            # Batches whose losses were read together have the same time. It is logged once: it
            # would be a third of all metrics, and a third of the cost of tracking.
            if numbers.get(BATCH_TIME) == self.batch_time:
                numbers.pop(BATCH_TIME, None)
            else:
                self.batch_time = numbers.get(BATCH_TIME)
        return {"epoch": row["epoch"], "step": step, "time": time_ms or _now(), "metrics": numbers}

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        for name in images:
            self._add({"file": f"pictures/{name}.png", "folder": "pictures"})

    def tables(self, step: int, tables: Mapping[str, Rows]) -> None:
        for name in tables:
            self._add({"file": f"tables/{name}.csv", "folder": "tables"})

    def artifact(self, path: Path) -> None:
        assert self.run is not None
        relative = path.relative_to(self.run.folder)
        folder = str(relative.parent) if relative.parent != Path() else None
        self._add({"file": str(relative), "folder": folder})

    def flush(self) -> None:
        if time.monotonic() >= self.next_delivery:
            self._deliver()

    def state(self) -> dict[str, str]:
        return {"mlflow_run_id": self.run_id} if self.run_id else {}

    def locations(self) -> list[str]:
        if self.uri.startswith("http"):
            return [f"mlflow:   {self.uri}   # experiment {self.experiment!r}"]
        return [f"mlflow ui --backend-store-uri {self.uri}   # experiment {self.experiment!r}"]

    def finish(self, status: Status) -> None:
        if self.monitor is not None:
            self.monitor.finish()
        self._deliver()
        if self.pending or not self.run_id:
            log.warning(
                "MLflow at %s did not accept everything: %d records wait in %s; resume the run to "
                "deliver them",
                self.uri,
                len(self.pending),
                self._spool,
            )
            return
        if status == "RUNNING":
            return
        try:
            self.client.set_tag(self.run_id, "status", status)
            # MLflow has no status for a pruned run; its Optuna storage also uses KILLED.
            self.client.set_terminated(self.run_id, "KILLED" if status == "PRUNED" else status)
        except Exception as error:
            log.warning("MLflow at %s did not accept the status of the run: %s", self.uri, error)

    # -- the spool -----------------------------------------------------------------------------

    @property
    def _spool(self) -> Path:
        assert self.run is not None
        return self.run.folder / "mlflow_spool.jsonl"

    @property
    def _run_file(self) -> Path:
        assert self.run is not None
        return self.run.folder / RUN_FILE

    def _add(self, record: dict[str, Any]) -> None:
        self.pending.append(record)
        with naming(self._spool), self._spool.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _rewrite_spool(self) -> None:
        if self.pending and self._spool.parent.is_dir():  # else the run folder was deleted
            write_text(self._spool, "".join(json.dumps(record) + "\n" for record in self.pending))
        else:
            self._spool.unlink(missing_ok=True)

    # -- the store -----------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Send pending records; if the store fails, keep them in the spool and try again later."""
        try:
            if self.client is None:
                self._connect()
            elif self.database is not None:
                _probe(self.database)
            while self.pending:
                # A request that was interrupted (timeout, Ctrl-C) is repeated, even if MLflow
                # executed it: metrics with the same key, step, time and value are stored once.
                sent = self._send_request()
                del self.pending[:sent]
            self.next_delivery = time.monotonic() + SECONDS_BETWEEN_DELIVERIES
        except Exception as error:
            # The store is an external service: no exception of it may end training.
            log.warning("MLflow at %s does not answer (%s); spooling", self.uri, _first_line(error))
            self.next_delivery = time.monotonic() + SECONDS_AFTER_FAILURE
        self._rewrite_spool()

    def _send_request(self) -> int:
        """Send the first pending records that fit one request; returns their number."""
        from mlflow.entities import Metric

        assert self.run is not None
        first = self.pending[0]
        if "file" in first:
            path = self.run.folder / first["file"]
            inside = path.resolve().is_relative_to(self.run.folder.resolve())
            if path.exists() and inside:
                self.client.log_artifact(self.run_id, str(path), first["folder"])
            return 1
        metrics: list[Metric] = []
        sent = 0
        for record in self.pending:
            if "file" in record or (
                metrics and len(metrics) + len(record["metrics"]) > METRICS_PER_REQUEST
            ):
                break
            metrics += [
                Metric(key, value, record["time"], record["step"])
                for key, value in record["metrics"].items()
                if record["step"] > self.delivered.get(key, -1)
            ]
            sent += 1
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            request = metrics[start : start + METRICS_PER_REQUEST]
            self.client.log_batch(self.run_id, metrics=request)
        return sent

    def _connect(self) -> None:
        """Connect to the store and open the run."""
        # Delivery is repeated later; MLflow's own retries would block training.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow import MlflowClient

        if self.database is not None:
            self.database.parent.mkdir(parents=True, exist_ok=True)
            # Parallel first use would race to create the tables.
            with FileLock(f"{self.database}.lock", timeout=SECONDS_FOR_TABLES):
                _probe(self.database)
                client = MlflowClient(self.uri)
                experiment = self._experiment(client, self.database.resolve().parent)
        else:
            client = MlflowClient(self.uri)
            experiment = self._experiment(client, None)
        self._open_run(client, experiment)
        self.client = client
        assert self.run is not None
        if self.system_metrics and self.run.data is not None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self.monitor = SystemMetricsMonitor(
                self.run_id, resume_logging=self.run.resumed.step > 0, tracking_uri=self.uri
            )
            self.monitor.start()

    def _experiment(self, client: Any, folder: Path | None) -> str:
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = None if folder is None else (folder / "mlflow-artifacts").as_uri()
        return str(client.create_experiment(self.experiment, artifact_location=location))

    def _open_run(self, client: Any, experiment: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, Param, RunTag

        assert self.run is not None
        opened = self._reopen(client) if self.run_id else None
        if opened is None:
            self._end_abandoned(client)
            opened = client.create_run(experiment, run_name=self.run.name, tags=self.run.tags)
            self.run_id = opened.info.run_id
            if self.run.resumed.step:
                rows = earlier_rows(self.run, self.pending)
                self.pending[:0] = [self._record(*row) for row in rows]
                self._rewrite_spool()
            write_text(self._run_file, self.run_id)
        settings = {k: v[:PARAM_LENGTH] for k, v in _flatten(self.run.config, prefix="")}
        tags = [
            RunTag(key, value)
            for key, value in {**self.run.tags, **changed_settings(settings, opened.data)}.items()
            if opened.data.tags.get(key) != value
        ]
        if tags:
            client.log_batch(self.run_id, tags=tags)
        # Parameters that an earlier, interrupted attempt did not log.
        params = [
            Param(key, value) for key, value in settings.items() if key not in opened.data.params
        ]
        for first in range(0, len(params), PARAMS_PER_REQUEST):
            client.log_batch(self.run_id, params=params[first : first + PARAMS_PER_REQUEST])
        if self.run.data is not None and not (opened.inputs and opened.inputs.dataset_inputs):
            name, digest = self.run.data
            source = json.dumps({"name": name})
            dataset = Dataset(name, digest, source_type="local", source=source)
            client.log_inputs(self.run_id, [DatasetInput(dataset)])

    def _end_abandoned(self, client: Any) -> None:
        """A killed process could not say that its run has ended; the folder's run starts again."""
        from mlflow.exceptions import MlflowException

        try:
            if self.abandoned and client.get_run(self.abandoned).info.status == "RUNNING":
                client.set_terminated(self.abandoned, "KILLED")
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise  # those are of a run that was deleted
        self.abandoned = ""

    def _reopen(self, client: Any) -> Any:
        """The MLflow run that is resumed; None if the store no longer has it."""
        from mlflow.exceptions import MlflowException

        try:
            client.update_run(self.run_id, status="RUNNING")
            opened = client.get_run(self.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.warning("MLflow run %s is not in %s; a new one is created", self.run_id, self.uri)
            return None
        self.delivered = {
            key: max(metric.step for metric in client.get_metric_history(self.run_id, key))
            for key in opened.data.metrics
            if not key.startswith("system/")
        }
        return opened


def _probe(database: Path) -> None:
    """Try to lock the database; MLflow itself would block for 20 s, on first use for minutes."""
    with closing(sqlite3.connect(database, timeout=SECONDS_FOR_DATABASE)) as connection:
        connection.execute("BEGIN IMMEDIATE")


def _flatten(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _lines(spool: Path) -> Iterator[dict[str, Any]]:
    for line in spool.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            # Only the last line can be cut short, by a crash while it was written.
            log.warning("%s: an incomplete record was dropped", spool)
            continue
        if _is_record(record):
            yield record
        else:
            log.warning("%s: an invalid record was dropped", spool)


def _is_before(record: Mapping[str, Any], position: Position) -> bool:
    """Whether a record was made up to ``position``."""
    if record.get("epoch", 0) <= position.epoch:
        return True
    of_batch = all(key.startswith("batch/") for key in record.get("metrics", ()))
    return of_batch and "metrics" in record and record["step"] <= position.step


def _is_record(record: Any) -> bool:
    """Whether it is a file of the run folder or the metrics of a step."""
    if not isinstance(record, dict) or type(record.get("epoch", 0)) is not int:
        return False
    if "file" in record:
        names = record["file"], record.get("folder")
        return all(name is None or isinstance(name, str) for name in names) and not any(
            ".." in Path(name or "").parts or Path(name or "").is_absolute() for name in names
        )
    metrics = record.get("metrics")
    return (
        type(record.get("step")) is int
        and type(record.get("time")) is int
        and isinstance(metrics, dict)
        and all(type(value) in (int, float) for value in metrics.values())
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _now() -> int:
    return int(time.time() * 1000)
