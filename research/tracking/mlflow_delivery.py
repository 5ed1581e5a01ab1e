"""Sends records to an MLflow run; what the store refuses is set aside, and the rest is sent."""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from research.config.outputs import resume_command
from research.tracking import mlflow_store
from research.tracking.evaluations import FOLDER, Evaluation
from research.tracking.mlflow_models import log_metrics, log_model, register
from research.tracking.mlflow_store import Gone, MLflowStore
from research.tracking.spool import MODEL, ONCE, REFUSED, Record, Spool, read_run_id

log = logging.getLogger(__name__)

METRICS_PER_REQUEST: Final = 1000
"""MLflow's limit on one ``log_batch`` call."""
PARAMS_PER_REQUEST: Final = 100
"""Of parameters, and of tags."""
TOLERANCE: Final = 1e-6
"""Relative difference of a metric that batch size and device may make."""
INVALID_NAME = re.compile(r"[^\w/\-. :]", re.ASCII)
"""A character that MLflow does not allow in names."""


class BatchEntry(NamedTuple):
    """What a request sends of a record.

    Attributes:
        key: of the metric, tag or parameter.
        entity: MLflow's object.
        record: what is set aside if the store refuses it.
    """

    key: str
    entity: Any
    record: Record


class Delivery:
    """Sends the records of a spool.

    Args:
        store: to which they are sent.
        spool: from which delivered and refused records are removed.
        register: name in the model registry for the run's model; None: it is not registered.

    Attributes:
        client: of MLflow, once it is connected.
        run_id: of the MLflow run; empty before it is created.
        model: address of the run's model; empty before it is delivered.
        delivered: the last step of each metric that an earlier process delivered.
        refused: names of each kind that the store has refused, with the reason; they are not sent
            again.
    """

    def __init__(self, store: MLflowStore, spool: Spool, register: str | None = None) -> None:
        self.store = store
        self.spool = spool
        self.register = register
        self.client: Any = None
        self.run_id = ""
        self.model = ""
        self.delivered: dict[str, int] = {}
        self.refused: dict[tuple[str, str], str] = {}
        self.said: set[str] = set()

    def rows(self) -> None:
        """Send the metrics that wait; training may add others meanwhile."""
        waiting = len(self.spool.rows)
        while waiting:
            entries: list[BatchEntry] = []
            sent = 0
            for record in self.spool.first_rows(min(waiting, METRICS_PER_REQUEST)):
                if entries and len(entries) + len(record["metrics"]) > METRICS_PER_REQUEST:
                    break
                entries += self._entries(record)
                sent += 1
            # A request that was interrupted (timeout, Ctrl-C) is repeated, even if MLflow
            # executed it: metrics with the same key, step, time and value are stored once.
            self.send("metrics", entries)
            self.spool.drop_rows(sent)
            waiting -= sent

    def _entries(self, record: Record) -> list[BatchEntry]:
        """The metrics of a record, without those that the store has."""
        from mlflow.entities import Metric

        step, values = record["step"], record["metrics"]
        if ONCE in record:
            values = self._new(step, values)
        else:
            values = {k: v for k, v in values.items() if step > self.delivered.get(k, -1)}
        return [
            BatchEntry(
                key,
                Metric(key, float(value), record["time"], step),
                {**record, "metrics": {key: value}},
            )
            for key, value in values.items()
        ]

    def _new(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """The values that are not those of the run at this step; says which of them differ."""
        known, new = self.check_run().data.metrics, {}
        for key, value in values.items():
            history = self.client.get_metric_history(self.run_id, key) if key in known else []
            recorded = [entry for entry in history if entry.step == step]
            last = max(recorded, key=lambda entry: entry.timestamp, default=None)
            if last is not None and _is_same(last.value, value):
                continue
            if last is not None:
                log.info(
                    "MLflow: %s of epoch %d was %.6g; %.6g is logged beside it",
                    key, step, last.value, value,
                )  # fmt: skip
            new[key] = value
        return new

    def evaluation(self, evaluation: Evaluation, out: Path, files: Sequence[Path]) -> None:
        """Send the metrics and files of an evaluation of a run that another process trains.

        Args:
            evaluation: of a checkpoint of the run.
            out: what replaces the folder ``evaluations`` in the paths of ``files``.
            files: to upload.

        Raises:
            Gone: if the store has no such run.
            Exception: any, if the store is unavailable.
        """
        self.run_id = read_run_id(self.spool.folder)
        if not self.run_id:
            raise Gone(f"{self.spool.folder} has no run there", "")
        if self.store.database is not None and not self.store.database.exists():
            raise FileNotFoundError(f"no {self.store.database}")
        self.client = self.store.client()
        self.send("metrics", self._entries(record_of(evaluation)))
        for file in files:
            folder = Path(FOLDER, file.relative_to(out).parent)
            self.client.log_artifact(self.run_id, str(file), str(folder))
        try:
            log_metrics(self.client, self.check_run(), evaluation.epoch)
        except Exception as error:
            if not mlflow_store.is_refusal(error):  # a server before MLflow 3 has no models
                raise

    def files(self) -> None:
        """Upload the files that wait."""
        folder = self.spool.folder
        for _ in range(len(self.spool.files)):
            record = self.spool.first_file()
            path = folder / record["file"]
            if path.exists() and path.resolve().is_relative_to(folder.resolve()):
                if MODEL in record:
                    self._model(path, record)
                else:
                    with self.set_aside("file", record["file"], record):
                        uri = self.client.get_run(self.run_id).info.artifact_uri
                        mlflow_store.link_artifact(uri, path, record.get("folder"))
                        self.client.log_artifact(self.run_id, str(path), record.get("folder"))
            self.spool.drop_file()

    def _model(self, path: Path, record: Record) -> None:
        """Make the weights of an epoch a model of the run, and a version in the registry."""
        model = None
        with self.set_aside("model", record["file"], record, "models need a server of MLflow 3"):
            model = log_model(self.client, self.check_run(), path, record[MODEL])
            self.model = f"models:/{model.model_id}"
        if model is None or self.register is None:
            return
        again = resume_command(self.spool.folder, "logging.mlflow.register=NAME")
        hint = f"{again} registers it later"
        refused = mlflow_store.is_refused_here
        with self.set_aside("registered model", self.register, record, hint, refused):
            version, is_new = register(self.client, model, self.register)
            self.model = f"models:/{self.register}/{version}"
            if is_new:
                log.info("MLflow: registered %s", self.model)

    @contextmanager
    def set_aside(
        self,
        kind: str,
        key: str,
        record: Record,
        hint: str = "",
        is_refusal: Callable[[Exception], bool] = mlflow_store.is_refusal,
    ) -> Iterator[None]:
        """Set the record aside if the store refuses it inside.

        Args:
            kind: of the record, in words.
            key: its name.
            record: what is set aside.
            hint: what helps, if the error does not say it.
            is_refusal: whether an error stays.
        """
        try:
            yield
        except Exception as error:
            if not is_refusal(error):
                raise
            self.check_run()
            self.spool.refuse(record, self._log_reason(kind, key, error, hint))

    def send(self, kind: str, entries: Sequence[BatchEntry]) -> None:
        """Send entries, without those that the store refuses, which are set aside.

        Args:
            kind: ``metrics``, ``tags`` or ``params``.
            entries: any number.
        """
        most = METRICS_PER_REQUEST if kind == "metrics" else PARAMS_PER_REQUEST
        refused: list[BatchEntry] = []
        for first in range(0, len(entries), most):
            refused += self._request(kind, entries[first : first + most])
        # At the end: if the store fails before, all are sent again.
        for entry in refused:
            self.spool.refuse(entry.record, self.refused[kind, entry.key])

    def _request(self, kind: str, entries: Sequence[BatchEntry]) -> Iterator[BatchEntry]:
        """Send entries in one request, or in halves if the store refuses it; yields the refused."""
        yield from (entry for entry in entries if (kind, entry.key) in self.refused)
        sent = [entry for entry in entries if (kind, entry.key) not in self.refused]
        if not sent:
            return
        try:
            self.client.log_batch(self.run_id, **{kind: [entry.entity for entry in sent]})
        except Exception as error:
            if not mlflow_store.is_refusal(error):
                raise
            self.check_run()
            if len(sent) == 1:
                key = sent[0].key
                self.refused[kind, key] = self._log_reason(kind.removesuffix("s"), key, error)
                yield sent[0]
                return
        else:
            return
        half = len(sent) // 2
        yield from self._request(kind, sent[:half])
        yield from self._request(kind, sent[half:])

    def _log_reason(self, kind: str, key: str, error: Exception, hint: str = "") -> str:
        """The reason of a refusal, which is logged if it is a new one."""
        reason = mlflow_store.reason(error)
        # Every file is refused for the same reason, each name for its own.
        known = reason if kind == "file" else f"{kind} {key}"
        if known not in self.said and reason not in self.spool.reasons:
            hint = mlflow_store.remedy(error) or hint
            if kind in ("metric", "tag", "param", "data") and INVALID_NAME.search(key):
                hint = "rename it"
            log.warning(
                "MLflow at %s refused %s %r (%s); it is kept in %s%s",
                self.store.shown, kind, key, reason, self.spool.folder / REFUSED,
                f"; {hint}" if hint else "",
            )  # fmt: skip
        self.said.add(known)
        return reason

    def check_run(self) -> Any:
        """The MLflow run.

        Raises:
            Gone: if it is deleted, or no longer in the store.
        """
        run_id, folder = self.run_id, self.spool.folder
        try:
            run = self.client.get_run(run_id)
        except Exception as error:
            if not mlflow_store.is_missing(error):
                raise
            raise Gone(
                f"run {run_id} is no longer in the store",
                f"{resume_command(folder)} records it as a new run",
            ) from error
        if run.info.lifecycle_stage != "active":
            experiment = self.client.get_experiment(run.info.experiment_id)
            what, command = f"run {run_id}", f"runs restore --run-id {run_id}"
            if experiment.lifecycle_stage != "active":
                what = f"experiment {experiment.name!r}"
                command = f"experiments restore --experiment-id {experiment.experiment_id}"
            again = f"{self.store.command(command)}, then {resume_command(folder)}"
            raise Gone(f"{what} was deleted", again)
        return run

    def read_delivered(self, run: Any) -> None:
        """Read the last step of each metric of a run that is resumed."""
        self.delivered = {
            key: max(metric.step for metric in self.client.get_metric_history(self.run_id, key))
            for key in run.data.metrics
            if not key.startswith("system/")
        }


def record_of(evaluation: Evaluation) -> Record:
    """The metrics of an evaluation, to be sent now."""
    step, now = evaluation.epoch, int(time.time() * 1000)
    return {"epoch": step, "step": step, "time": now, "metrics": evaluation.row, ONCE: True}


def _is_same(recorded: float, value: float) -> bool:
    """Whether a value is the recorded one, but for the order in which a device adds numbers."""
    if math.isnan(value) or math.isnan(recorded):
        return math.isnan(value) and math.isnan(recorded)
    within = max(-sys.float_info.max, min(sys.float_info.max, value))  # as databases have infinity
    return math.isclose(recorded, within, rel_tol=TOLERANCE)


def entries_of(kind: str, values: Mapping[str, str]) -> list[BatchEntry]:
    """Tags or parameters to send.

    Args:
        kind: ``tag`` or ``param``.
        values: by name.
    """
    from mlflow.entities import Param, RunTag

    entity = RunTag if kind == "tag" else Param
    return [
        BatchEntry(key, entity(key, value), {kind: key, "value": value})
        for key, value in values.items()
    ]
