"""The parent run of a sweep in the trackers, under which MLflow nests the trials' runs."""

from __future__ import annotations

import csv
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from research.sweeps import analysis, plots
from research.tracking.files import FileTracker, read_rows
from research.tracking.spool import read_run_id
from research.tracking.tracker import Position, Rows, Run, Status, Tracker, Trackers
from research.utils.tables import TextTable

log = logging.getLogger(__name__)

EPOCHS: Final = "epoch_metrics.csv"
MAX_DIGITS: Final = 10
"""Of an epoch that is believed."""

SECONDS_BETWEEN_UPDATES: Final = 30.0
"""While trials follow one another: to draw a sweep costs as much as a very short trial or more."""
ENDED: Final = ("FINISHED", "PRUNED", "FAILED", "KILLED")


def update(
    folder: Path,
    summary: Mapping[str, Any],
    trackers: Callable[[], Sequence[Tracker]],
    status: Status,
) -> str | None:
    """Update the parent run; the caller, in any process, holds the study's lock.

    The folder also gets ``pictures/``, ``tables/trials.csv`` and ``epoch_metrics.csv``, with a row
    for each update; its "epoch" is the number of trials that have ended. The run stays open until
    the sweep has ended and is resumed when the sweep is, by this process or another.

    Args:
        folder: of the study.
        summary: as in ``final_summary.json``.
        trackers: creates the trackers of a run.
        status: ``RUNNING`` as long as trials may follow, otherwise how the sweep ended.

    Returns:
        the MLflow id of the run, which trials carry as ``mlflow.parentRunId``; ``None`` without
        MLflow or if its store has not been reachable yet.
    """
    last = _last_row(folder / EPOCHS)
    row = _row(summary)
    table = analysis.trials_table(summary)
    # Zeros would start a new run.
    resumed = max(1, int(last["epoch"])) if last else int(bool(read_run_id(folder)))
    position = Position(epoch=resumed, step=resumed)
    run = Run(folder, summary["study"], _config(summary), _tags(summary), resumed=position)
    tracker = Trackers([*trackers(), FileTracker()])
    try:
        tracker.start(run)
        changed = any(last.get(name) != str(value) for name, value in row.items())
        # Retrying a trial does not increase the number of ended trials.
        step = max(int(last["epoch"]) + changed if last else 0, int(row["trials/ended"]))
        if changed:
            tracker.pictures(step, plots.pictures(summary))
        if table and (changed or _is_stale(folder / "tables" / "trials.csv", table)):
            # A trial that failed again has another number, and the counts are the same.
            tracker.tables(step, {"trials": table})
        if changed:
            # The row last, the file tracker last: if the row exists, everything was recorded.
            tracker.log("epoch", step, {"epoch": step, **row})
    finally:
        tracker.finish(status)
    return tracker.state().get("mlflow_run_id")


def is_recent(folder: Path) -> bool:
    """Whether the parent run of a study has a row that is not older than the pause between two."""
    try:
        age = time.time() - (folder / EPOCHS).stat().st_mtime
    except OSError:
        return False
    return 0 <= age < SECONDS_BETWEEN_UPDATES


def trial_tags(folder: Path, number: int) -> dict[str, str]:
    """The tags of a trial's run, by which MLflow nests it under its sweep if that has a run.

    Args:
        folder: of the study.
        number: of the trial.
    """
    run_id = read_run_id(folder)
    tags = {"study": folder.name, "trial": str(number)}
    return {**tags, "mlflow.parentRunId": run_id} if run_id else tags


def _last_row(path: Path) -> dict[str, str]:
    """The values of the last recorded row; empty without one, or if the file is damaged."""
    past = read_rows(path, epochs=True)
    last = {name: text for name, text in past[-1].items() if text} if past else {}
    epoch = last.get("epoch", "")
    return last if epoch.isdecimal() and len(epoch) < MAX_DIGITS else {}


def _is_stale(path: Path, table: Rows) -> bool:
    """Whether a table has other rows; what it says of running trials does not matter."""
    try:
        known = {row["trial"]: row["status"] for row in read_rows(path)}
    except (OSError, ValueError, KeyError, csv.Error):
        return True
    ended = {str(row["trial"]): row["status"] for row in table if row["status"] in ENDED}
    return known != known | ended or not known.keys() <= {str(row["trial"]) for row in table}


def _row(summary: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of ended trials by status, and the best value of each objective so far."""
    counts = Counter(trial["status"] for trial in summary["trials"])
    row: dict[str, float] = {"trials/ended": sum(counts[status] for status in ENDED)}
    row |= {f"trials/{status.lower()}": counts[status] for status in ENDED}
    for objective in summary["objectives"]:
        values = analysis.finished_values(summary, objective["name"])
        if values:
            best = max if objective["direction"] == "maximize" else min
            row[f"best/{objective['name']}"] = best(values.values())
    return row


def _config(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the sweep, the same after every trial."""
    return {
        "study": summary["study"],
        "storage": summary["storage"],
        "sampler": summary["sampler"],
        "pruner": summary["pruner"],
        "objectives": ", ".join(f"{o['direction']} {o['name']}" for o in summary["objectives"]),
        "space": {key.lstrip("+"): values for key, values in summary["space"].items()},
    }


def _tags(summary: Mapping[str, Any]) -> dict[str, str]:
    tags = {"study": summary["study"], "n_trials": str(summary["n_trials"])}
    best = summary["best"]
    if best:
        tags["best_trial"] = str(best["trial"])
        tags |= {f"best.{key.lstrip('+')}": str(value) for key, value in best["params"].items()}
    front = summary.get("pareto", [])
    if front:
        tags["pareto"] = ", ".join(str(trial["trial"]) for trial in front)
    chosen = [best] if best else front
    if chosen:
        tags["mlflow.note.content"] = _markdown(chosen, "best trial" if best else "Pareto front")
    return tags


def _markdown(trials: Sequence[Mapping[str, Any]], title: str) -> str:
    """Trials as a Markdown table, which the MLflow UI shows at the top of a run."""
    rows = [{"trial": t["trial"], **t["values"], **t["params"]} for t in trials]
    cells = [list(map(_cell, row.values())) for row in rows]
    return f"**{title}**\n\n{TextTable([*rows[0]], cells, 'l' * len(rows[0])).text()}"


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
