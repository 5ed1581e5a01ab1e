"""An MLflow store: opened without long waits, its artifacts where the project is, its errors.

Paths of artifacts are stored relative to the folder in which the database is addressed, so that a
project can be moved or copied. Those that earlier versions stored, or another place, are corrected
when a run opens the store.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from research.tracking.mlflow_tags import KIND
from research.utils import secrets
from research.utils.errors import one_line
from research.utils.files import write_atomic

log = logging.getLogger(__name__)

ARTIFACTS: Final = "mlflow-artifacts"
WRITTEN_ONCE: Final = (".pt", ".safetensors")
"""Files that are replaced, but never changed in place."""
SECONDS_FOR_DATABASE: Final = 2.0
"""How long a database may be locked or busy before it counts as unavailable."""
SECONDS_FOR_TABLES: Final = 30.0
"""How long another process may take to create the tables; it takes 3 s on an idle machine."""
ENVIRONMENT: Final = {
    # Delivery is repeated later; MLflow's own retries would block training.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
NOISY: Final = ("mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor")
"""Loggers that print tracebacks of a store that is unavailable."""

# -- errors ------------------------------------------------------------------------------------

REFUSALS: Final = frozenset(
    {
        "ALREADY_EXISTS", "BAD_REQUEST", "ENDPOINT_NOT_FOUND", "INVALID_PARAMETER_VALUE",
        "INVALID_STATE", "NOT_FOUND", "NOT_IMPLEMENTED", "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
    }
)  # fmt: skip
"""MLflow's codes of errors that repeating a request does not change."""
TEMPORARY_STATUS: Final = frozenset({401, 403, 407, 408, 425, 429})
"""HTTP status codes below 500 of requests that may succeed later: a login, a limit, a time-out."""
NO_LOGIN: Final = frozenset({"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"})
PACKAGES: Final = {
    "azure": "azure-storage-blob azure-identity",
    "botocore": "boto3",
    "google": "google-cloud-storage",
    "MySQLdb": "mysqlclient",
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
}
"""The package of a missing module, where it has another name."""


class Gone(Exception):
    """The run or its experiment is deleted: the store takes no record of this run.

    Attributes:
        hint: what helps.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def is_refusal(error: Exception) -> bool:
    """Whether the store has refused a record for good; otherwise it may be delivered later."""
    code, status = getattr(error, "error_code", None), _http_status(error)
    if code is not None:
        return code in REFUSALS
    if status is not None:
        return 400 <= status < 500 and status not in TEMPORARY_STATUS
    # A package that is missing stays so; a number that is too large for the store as well.
    return isinstance(error, ImportError | OverflowError)


def is_refused_here(error: Exception) -> bool:
    """The same where a missing right does not come by waiting, such as that to register models."""
    return is_refusal(error) or getattr(error, "error_code", None) in NO_LOGIN


def is_missing(error: Exception) -> bool:
    """Whether a run is not in the store."""
    return getattr(error, "error_code", None) in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


def remedy(error: Exception) -> str:
    """What helps against an error; empty if it is not known."""
    if isinstance(error, ImportError) and error.name:
        module = error.name.partition(".")[0]
        return f"pip install {PACKAGES.get(module, module)}"
    no_login = getattr(error, "error_code", None) in NO_LOGIN or _http_status(error) in (401, 403)
    return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if no_login else ""


def reason(error: Exception) -> str:
    """The message of an error in one short line, without secrets."""
    return one_line(error)


def _http_status(error: Exception) -> int | None:
    """The HTTP status of an exception of requests."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


# -- the store ---------------------------------------------------------------------------------


class MLflowStore:
    """The store at an address.

    Args:
        address: with its secrets.

    Attributes:
        shown: the address without its secrets.
    """

    def __init__(self, address: str) -> None:
        self.shown = secrets.hide(address)
        # MLflow prints addresses: the login is passed in its own variables.
        self.uri, self.user, self.password = secrets.login(address)
        path = address.removeprefix("sqlite:///")
        is_file = path != address and path not in ("", ":memory:")
        self.database = Path(path.partition("?")[0]) if is_file else None

    def client(self) -> Any:
        """MLflow's client; in a new database the tables are created.

        Raises:
            Exception: any, if the store is unavailable.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if self.user:
            os.environ["MLFLOW_TRACKING_USERNAME"] = self.user
            os.environ["MLFLOW_TRACKING_PASSWORD"] = self.password
        from mlflow import MlflowClient

        for name in NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with self._first_use():
            client = MlflowClient(self.uri)
            if self.database is not None:
                client.search_experiments(max_results=1)  # creates the tables
                _move_artifacts(self.database, self._artifacts())
        return client

    def probe(self) -> None:
        """Try to lock the database; MLflow itself would block for 20 s, on first use for minutes.

        Raises:
            sqlite3.Error: if it cannot be locked.
        """
        if self.database is not None:
            timeout = SECONDS_FOR_DATABASE
            with closing(sqlite3.connect(self.database, timeout=timeout)) as connection:
                connection.execute("BEGIN IMMEDIATE")

    def experiment(self, client: Any, name: str, tags: Mapping[str, str] = KIND) -> str:
        """The id of the experiment of this name, which is created if there is none.

        Args:
            client: of MLflow.
            name: of the experiment.
            tags: that it gets, unless it has others of the same names.

        Raises:
            Gone: if it was deleted.
        """
        with self._first_use():
            found = client.get_experiment_by_name(name)
            if found is None:
                created = str(client.create_experiment(name, tags=dict(tags)))
                if self.database is not None:
                    self._set_location(created)
                return created
        number = str(found.experiment_id)
        if found.lifecycle_stage != "active":
            raise Gone(
                f"experiment {name!r} was deleted",
                f"{self.command(f'experiments restore --experiment-id {number}')}, or another "
                "logging.mlflow.experiment",
            )
        for key in [key for key in tags if key not in found.tags]:
            try:
                client.set_experiment_tag(number, key, tags[key])
            except Exception as error:  # a login that may add runs only
                log.info("MLflow: experiment %r has no tag %s (%s)", name, key, reason(error))
        return number

    def command(self, words: str) -> str:
        """A command line of MLflow, which knows the store by a variable of the environment only."""
        variable = secrets.TRACKING_URI
        is_set = secrets.hide(os.environ.get(variable, "")) == self.shown
        return (
            f"mlflow {words}" if is_set else f"{variable}={shlex.quote(self.shown)} mlflow {words}"
        )

    def _artifacts(self) -> str:
        """The folder of the artifacts beside a database, as it is stored."""
        assert self.database is not None
        folder = self.database.parent / ARTIFACTS
        return folder.as_uri() if folder.is_absolute() else folder.as_posix()

    def _set_location(self, experiment: str) -> None:
        """Set where an experiment's artifacts go; MLflow would make the path absolute."""
        assert self.database is not None
        timeout = SECONDS_FOR_DATABASE
        with closing(sqlite3.connect(self.database, timeout=timeout)) as connection, connection:
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (self._artifacts(), int(experiment)),
            )

    @contextmanager
    def _first_use(self) -> Iterator[None]:
        """Exclude other processes, which would race to create tables and experiments."""
        if self.database is None:
            yield
            return
        self.database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.database}.lock", timeout=SECONDS_FOR_TABLES):
            self.probe()
            yield


def link_artifact(uri: str, path: Path, folder: str | None = None) -> None:
    """Give a checkpoint its name among the artifacts; MLflow, which then finds it, copies nothing.

    Does nothing for files that may be changed in place, for artifacts on a server, and where the
    disk has no links: MLflow copies them.

    Args:
        uri: of the artifacts of a run or model.
        path: the file.
        folder: below them.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc or path.suffix not in WRITTEN_ONCE:
        return
    root = Path(unquote(parts.path) if parts.scheme else uri)
    target = root / (folder or "") / path.name

    def link(temporary: Path) -> None:
        temporary.unlink()
        os.link(path, temporary)

    if target.resolve().is_relative_to(root.resolve()):
        with suppress(OSError):
            write_atomic(target, link)


def _move_artifacts(database: Path, folder: str) -> None:
    """Correct the paths of artifacts that are beside the database, but stored as elsewhere.

    They are those of a project that was moved or copied.
    """
    tables = (
        (
            "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?",
            "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
        ),
        (
            "SELECT DISTINCT artifact_uri FROM runs WHERE artifact_uri LIKE ?",
            "UPDATE runs SET artifact_uri = ? WHERE artifact_uri = ?",
        ),
        (
            "SELECT DISTINCT artifact_location FROM logged_models WHERE artifact_location LIKE ?",
            "UPDATE logged_models SET artifact_location = ? WHERE artifact_location = ?",
        ),
        (
            "SELECT DISTINCT source FROM model_versions WHERE source LIKE ?",
            "UPDATE model_versions SET source = ? WHERE source = ?",
        ),
        (
            "SELECT DISTINCT storage_location FROM model_versions WHERE storage_location LIKE ?",
            "UPDATE model_versions SET storage_location = ? WHERE storage_location = ?",
        ),
    )
    timeout = SECONDS_FOR_DATABASE
    with closing(sqlite3.connect(database, timeout=timeout)) as connection, connection:
        for select, update in tables:
            for (old,) in connection.execute(select, (f"%/{ARTIFACTS}%",)).fetchall():
                above, _, below = old.rpartition(f"/{ARTIFACTS}")
                if f"{above}/{ARTIFACTS}" == folder or urlsplit(old).scheme not in ("", "file"):
                    continue
                here = database.parent / f"{ARTIFACTS}{below}"
                there = Path(unquote(urlsplit(old).path) if ":" in old else old)
                same_name = Path(above).name == database.resolve().parent.name
                if here.exists() or (same_name and not there.exists()):
                    connection.execute(update, (f"{folder}{below}", old))


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of a nested configuration as texts; an empty mapping is a value."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
