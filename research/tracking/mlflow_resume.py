"""What a resumed run sends to MLflow: earlier rows to a new MLflow run, and changed settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from research.config.migrations import current_key
from research.tracking.files import typed_rows
from research.tracking.spool import ONCE
from research.tracking.tracker import Row, Run, Table

TAG_LENGTH: Final = 5000
"""MLflow's limit on a tag value's length."""
RESUMED: Final = "resumed."
"""Prefix of the tags of settings that were changed when the run was resumed."""
OF_THE_COMMAND: Final = ("resume", "run_dir", "version")
"""Settings that are no property of the run."""


def earlier_rows(
    run: Run, pending: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Table, int, Row]]:
    """The rows in the tables of a run folder, for a new MLflow run.

    Args:
        run: that is resumed.
        pending: records of the spool; their rows are left out.

    Yields:
        table, step and row.
    """
    epochs, batches, steps = run.resumed
    per_epoch = (steps - batches) // max(1, epochs)
    known = {
        (record["step"], any(key.startswith("batch/") for key in record["metrics"]))
        for record in pending
        if "metrics" in record and ONCE not in record
    }
    tables: tuple[Table, ...] = ("batch", "epoch")
    for table in tables:
        for row in typed_rows(run.folder / f"{table}_metrics.csv"):
            epoch, batch = row.get("epoch"), row.get("batch", 0)
            if not isinstance(epoch, int) or not isinstance(batch, int):
                continue  # damaged
            step = epoch if table == "epoch" else (epoch - 1) * per_epoch + batch
            if (step, table == "batch") not in known:
                yield table, step, row


def changed_settings(settings: Mapping[str, str], recorded: Any) -> dict[str, str]:
    """Tags for the settings that are no longer those of the MLflow run's parameters.

    Parameters cannot change: the current value of a setting is its tag ``resumed.KEY``, if there
    is one, or its parameter.

    Args:
        settings: now.
        recorded: ``data`` of the MLflow run.
    """
    # Of a run of an earlier version, some have their former names.
    params = {current_key(key): value for key, value in recorded.params.items()} | recorded.params
    return {
        f"{RESUMED}{key}": value[:TAG_LENGTH]
        for key, value in settings.items()
        if key in params
        and key not in OF_THE_COMMAND
        and (params[key] != value or f"{RESUMED}{key}" in recorded.tags)
    }


def milliseconds(timestamp: float | int | str | bool | None) -> int | None:
    """A time in ISO 8601 since 1970; None for anything else."""
    try:
        return round(1000 * datetime.fromisoformat(str(timestamp)).timestamp())
    except ValueError:
        return None
