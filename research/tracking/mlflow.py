"""MLflow tracker: metrics in batches, pictures and files as artifacts, with an offline spool.

Every record is first appended to a spool file in the run folder, and removed from it when the store
has accepted it. If the store is unavailable or locked, nothing is lost: the spool is delivered when
it is available again, at the end of the run, or when the run is resumed. A record that the store
refuses for good is set aside with the reason, and the others are delivered.
"""

from __future__ import annotations

import json
import logging
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL.Image import Image

from research.tracking import mlflow_store, mlflow_tags
from research.tracking.evaluations import Evaluation
from research.tracking.mlflow_delivery import Delivery, entries_of, record_of
from research.tracking.mlflow_load import MachineLoad
from research.tracking.mlflow_resume import changed_settings, earlier_rows, milliseconds
from research.tracking.mlflow_rules import experiment_name, store_address
from research.tracking.mlflow_store import Gone, MLflowStore, flatten
from research.tracking.spool import (
    FOLDER_ID,
    MODEL,
    NAME,
    REFUSED,
    RUN_ID,
    Record,
    Spool,
    folder_id,
    is_run_id,
    read_run_id,
)
from research.tracking.tracker import Row, Rows, Run, Status, Table, Tracker
from research.utils.counts import counted
from research.utils.files import write_text

log = logging.getLogger(__name__)

PARAM_LENGTH = 6000
"""MLflow's limit on a parameter value's length."""
BATCH_TIME = "batch/batch_time_sec"
SECONDS_BETWEEN_DELIVERIES = 10.0
SECONDS_FOR_DELIVERY = 0.2
"""For which training waits for a delivery, which then goes on beside it."""
DELIVERY_THREAD = "MLflowDelivery"
SECONDS_AFTER_FAILURE = 60.0
"""Doubled after each failure in a row."""
MOST_SECONDS_AFTER_FAILURE = 600.0


class MLflowTracker(Tracker):
    """Records a run in an MLflow store.

    Args:
        uri: tracking URI; for ``sqlite:///FOLDER/mlflow.db`` the artifacts go to
            ``FOLDER/mlflow-artifacts``. None: ``MLFLOW_TRACKING_URI``, else
            ``sqlite:///runs/mlflow.db``.
        experiment: experiment name, created when missing. None: ``MLFLOW_EXPERIMENT_NAME``, else
            ``backbone-lab``.
        system_metrics: sample CPU, memory and GPU load during training; not for a run without
            data, which only groups other runs.
        register: name in the model registry of which the best weights become a version when the
            run ends.

    Raises:
        UserError: if the URI comes from a file, without its password.
    """

    def __init__(
        self,
        uri: str | None,
        experiment: str | None,
        system_metrics: bool,
        register: str | None = None,
    ) -> None:
        self.store = MLflowStore(store_address(uri))
        self.experiment = experiment_name(experiment)
        self.system_metrics = system_metrics
        self.register = register
        self.run: Run | None = None
        self.spool = Spool(Path())
        self.delivery = Delivery(self.store, self.spool, self.register)
        self.connected = False
        self.was_open = False
        self.answers = False
        self.problem = ""
        self.failures = 0
        self.next_delivery = 0.0
        self.batch_times: list[float] = []
        self.wanted_times = 1
        self.load = MachineLoad()
        self.ended = False
        self.delivering: threading.Thread | None = None

    # -- the interface -------------------------------------------------------------------------

    def start(self, run: Run) -> None:
        # It connects with the first record: MLflow takes seconds to import, and to create tables,
        # and would compete with the first training step for Python's lock.
        self._read(run)

    def _read(self, run: Run) -> None:
        """Read what an earlier process has left in the folder of a run."""
        self.run = run
        self.spool = Spool(run.folder)
        self.delivery = Delivery(self.store, self.spool, self.register)
        if run.resumed.step:
            state = run.state.get("mlflow_run_id")
            # The file has the run that was created after the checkpoint was written.
            self.delivery.run_id = str(state) if is_run_id(state) else read_run_id(run.folder)
            self.spool.load(run.resumed)
        else:
            self.spool.clear()

    def waits(self, folder: Path) -> bool:
        return (folder / NAME).exists()

    def deliver(self, run: Run, status: Status) -> bool:
        self.ended, self.connected, self.was_open = True, False, False
        self._read(run)
        self._deliver()
        if self.answers and not self.spool:
            self._end(status)
        return not self.spool

    def set_back(self, folder: Path) -> None:
        (folder / RUN_ID).unlink(missing_ok=True)

    def log(self, table: Table, step: int, row: Row) -> None:
        self.spool.add(self._record(table, step, row))
        self.flush()

    def _record(self, table: Table, step: int, row: Row) -> Record:
        """A row as a record of the spool, of its own time."""
        numbers = {
            f"batch/{name}" if table == "batch" else name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and name not in ("epoch", "batch")
        }
        if BATCH_TIME in numbers:
            # The mean of those since the last one: the time of every batch would be a third of all
            # metrics, and a third of the cost of tracking.
            self.batch_times.append(numbers.pop(BATCH_TIME))
            if len(self.batch_times) >= self.wanted_times:
                numbers[BATCH_TIME] = fmean(self.batch_times)
                assert self.run is not None
                self.batch_times, self.wanted_times = [], self.run.config.get("log_every", 1)
        time_ms = milliseconds(row.get("timestamp")) or int(time.time() * 1000)
        return {"epoch": row["epoch"], "step": step, "time": time_ms, "metrics": numbers}

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        for name in images:
            self.spool.add({"file": f"pictures/{name}.png", "folder": "pictures"})

    def tables(self, step: int, tables: Mapping[str, Rows]) -> None:
        for name, rows in tables.items():
            file = f"tables/{name}.csv"
            if rows or (self.spool.folder / file).exists():
                self.spool.add({"file": file, "folder": "tables"})

    def evaluation(self, evaluation: Evaluation, files: Sequence[Path]) -> None:
        self.spool.add(record_of(evaluation))
        for path in files:
            self.artifact(path)

    def deliver_evaluation(
        self, folder: Path, evaluation: Evaluation, out: Path, files: Sequence[Path]
    ) -> str:
        try:
            delivery = Delivery(self.store, Spool(folder))
            delivery.evaluation(evaluation, out, files)
        except Exception as error:
            hint = error.hint if isinstance(error, Gone) else mlflow_store.remedy(error)
            what = f"MLflow at {self.store.shown}: {mlflow_store.reason(error)}"
            return f"{what}; {hint}" if hint else what
        return ""

    def artifact(self, path: Path) -> None:
        assert self.run is not None
        relative = path.relative_to(self.run.folder)
        folder = str(relative.parent) if relative.parent != Path() else None
        self.spool.add({"file": str(relative), "folder": folder})

    def model(self, path: Path, epoch: int) -> None:
        assert self.run is not None
        relative = str(path.relative_to(self.run.folder))
        self.spool.add({"file": relative, "folder": None, MODEL: epoch})

    def flush(self) -> None:
        is_delivering = self.delivering is not None and self.delivering.is_alive()
        if time.monotonic() >= self.next_delivery and not is_delivering:
            self._deliver_aside(SECONDS_FOR_DELIVERY)

    @property
    def run_id(self) -> str:
        """Of the MLflow run; empty before it is created."""
        return self.delivery.run_id

    @property
    def client(self) -> Any:
        """MLflow's client; None before the store has answered."""
        return self.delivery.client

    def state(self) -> dict[str, str]:
        return {"mlflow_run_id": self.run_id} if self.run_id else {}

    def locations(self) -> list[str]:
        shown, name = self.store.shown, f"   # experiment {self.experiment!r}"
        is_server = shown.startswith("http")
        ui = f"mlflow ui --backend-store-uri {shlex.quote(shown)}"
        place = f"mlflow: {shown}" if is_server else ui
        model = self.delivery.model
        return [f"{place}{name}", *([f"model: {model}"] if model else [])]

    def finish(self, status: Status) -> None:
        self.ended = True
        if self.delivering is not None:
            self.delivering.join()
        self.load.finish()
        self._deliver()
        if self.answers and status != "RUNNING":
            self._end(status)
        if self.spool or not (self.run_id or self.spool.refused):
            log.warning(
                "MLflow at %s did not accept everything: %s left in %s; resume the run to deliver "
                "what is left",
                self.store.shown,
                counted(len(self.spool), "records"),
                self.spool.folder / NAME,
            )
        if self.spool.refused and status != "RUNNING":
            log.warning(
                "MLflow at %s refused %s, kept in %s; resume the run to try again",
                self.store.shown,
                counted(self.spool.refused, "records"),
                self.spool.folder / REFUSED,
            )

    # -- delivery ------------------------------------------------------------------------------

    def _deliver_aside(self, seconds: float) -> None:
        """Deliver in a thread, for which training waits no longer than this."""
        self.delivering = threading.Thread(target=self._deliver, name=DELIVERY_THREAD, daemon=True)
        self.delivering.start()
        self.delivering.join(seconds)

    def _deliver(self) -> None:
        """Send waiting records; if the store fails, keep them in the spool and try again later."""
        self.answers = False
        try:
            if self.connected:
                self.store.probe()
            else:
                self._connect()
            self._watch_machine()
            self.delivery.rows()
            self.answers = True
            self.delivery.files()
        except Gone as gone:
            self.connected = False
            self._say_once(
                f"{gone}; its records are kept in {self.spool.folder / REFUSED}", gone.hint
            )
            self.spool.refuse_all(str(gone))
            self._wait()
        except Exception as error:
            # The store is an external service: no exception of it may end training.
            what = f"does not answer ({mlflow_store.reason(error)}); spooling"
            self._say_once(what, mlflow_store.remedy(error))
            self._wait()
        else:
            if self.problem:
                log.info("MLflow at %s accepts records again", self.store.shown)
            self.problem, self.failures = "", 0
            self.next_delivery = time.monotonic() + SECONDS_BETWEEN_DELIVERIES
        if self.spool.is_stale:
            self.spool.save()

    def _wait(self) -> None:
        """Wait before the next delivery, longer after each failure in a row."""
        seconds = min(SECONDS_AFTER_FAILURE * 2**self.failures, MOST_SECONDS_AFTER_FAILURE)
        self.failures = min(self.failures + 1, 10)
        self.next_delivery = time.monotonic() + seconds

    def _say_once(self, what: str, hint: str) -> None:
        """Warn of a problem of the store, until it is another one."""
        if what != self.problem:
            log.warning("MLflow at %s: %s%s", self.store.shown, what, f"; {hint}" if hint else "")
        self.problem = what

    # -- the store -----------------------------------------------------------------------------

    def _connect(self) -> None:
        """Connect to the store and open the run."""
        client = self.delivery.client = self.store.client()
        self._open_run(client)
        self.connected = self.was_open = True
        if self.problem:
            # What was set aside while the run was deleted.
            self.spool.take_back()

    def _open_run(self, client: Any) -> None:
        """Open the MLflow run, and record its tags, parameters and data."""
        from mlflow.entities import Dataset, DatasetInput

        assert self.run is not None
        own = mlflow_tags.of_run(self.run.folder)
        opened = self._reopen(client) if self.run_id else None
        if opened is None:
            about = mlflow_tags.of_experiment(self.run.folder)
            number = self.store.experiment(client, self.experiment, about)
            tags = {**own, FOLDER_ID: self._end_abandoned(client, number)}
            opened = client.create_run(number, run_name=self.run.name, tags=tags)
            self.delivery.run_id = opened.info.run_id
            if self.run.resumed.step:
                rows = earlier_rows(self.run, self.spool.rows)
                self.spool.add_first([self._record(*row) for row in rows])
            write_text(self.run.folder / RUN_ID, self.run_id)
        config = {key: value[:PARAM_LENGTH] for key, value in flatten(self.run.config)}
        changed = changed_settings(config, opened.data)
        tags = {
            key: value
            for key, value in {**own, **self.run.tags, **changed}.items()
            if opened.data.tags.get(key) != value
        }
        # Parameters that an earlier, interrupted attempt did not log.
        params = {key: value for key, value in config.items() if key not in opened.data.params}
        self.delivery.send("tags", entries_of("tag", tags))
        self.delivery.send("params", entries_of("param", params))
        if self.run.data is not None and not (opened.inputs and opened.inputs.dataset_inputs):
            name, digest = self.run.data
            source = json.dumps({"name": name})
            dataset = Dataset(name, digest, source_type="local", source=source)
            with self.delivery.set_aside("data", name, {"data": [name, digest]}):
                client.log_inputs(self.run_id, [DatasetInput(dataset)])

    def _end_abandoned(self, client: Any, experiment: str) -> str:
        """End the MLflow runs of this folder whose processes were killed: another one begins.

        Returns:
            the id of the folder.
        """
        assert self.run is not None
        number, is_old = folder_id(self.run.folder)
        if is_old:
            running = f"attributes.status = 'RUNNING' and tags.{FOLDER_ID} = '{number}'"
            for abandoned in client.search_runs([experiment], running):
                client.set_terminated(abandoned.info.run_id, "KILLED")
        return number

    def _reopen(self, client: Any) -> Any:
        """The MLflow run that is resumed; None if the store no longer has it.

        Raises:
            Gone: if it was deleted; also from the store, while this process had it open.
        """
        try:
            opened = self.delivery.check_run()
        except Gone as gone:
            if self.was_open or gone.__cause__ is None:
                raise
            log.warning(
                "MLflow run %s is not in %s; a new one is created", self.run_id, self.store.shown
            )
            return None
        client.update_run(self.run_id, status="RUNNING")
        self.delivery.read_delivered(opened)
        return opened

    def _end(self, status: Status) -> None:
        assert self.run is not None
        note = "" if mlflow_tags.NOTE in self.run.tags else mlflow_tags.note(self.run.folder)
        try:
            if note:
                self.client.set_tag(self.run_id, mlflow_tags.NOTE, note)
            self.client.set_tag(self.run_id, "status", status)
            # MLflow has no status for a pruned run; its Optuna storage also uses KILLED.
            self.client.set_terminated(self.run_id, "KILLED" if status == "PRUNED" else status)
        except Exception as error:
            log.warning(
                "MLflow at %s did not accept the status of the run (%s); resume the run to repeat "
                "it",
                self.store.shown, mlflow_store.reason(error),
            )  # fmt: skip

    def _watch_machine(self) -> None:
        """Sample the load of the machine; MLflow's thread ends when the store does not answer."""
        assert self.run is not None
        if self.system_metrics and self.run.data is not None and not self.ended:
            device, resumed = str(self.run.config.get("device")), self.run.resumed.step > 0
            self.load.watch(self.store.uri, self.run_id, device, resumed=resumed)
