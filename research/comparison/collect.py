"""Reads recorded runs from their folders."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.config import outputs, stored
from research.config.keys import leaves
from research.config.migrations import current_column, current_word
from research.config.rules import nearest
from research.config.run_paths import instead_of
from research.tracking.evaluations import own_metrics
from research.tracking.files import first_row, read_rows
from research.utils import documents
from research.utils.counts import samples_of
from research.utils.errors import UserError, one_line
from research.utils.progress import track

log = logging.getLogger(__name__)

DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
    UserError,
)  # fmt: skip
"""Exceptions that reading the files of a damaged run may raise."""
NOT_SEARCHED = ("checkpoints", "mlflow-artifacts")
NO_CURVES = (
    "epoch", "avg_loss", "total_loss", "is_best", "checkpoint_path", "timestamp",
    "train/n", "val/n",
)  # fmt: skip
"""Columns of ``epoch_metrics.csv`` that are not metrics, or repeat another column."""
LOWER_IS_BETTER = ("loss", "error", "nll", "ece", "mae", "mse", "time", "sec", "ms", "bytes")
"""Words in the names of metrics for which lower is better."""


@dataclass(frozen=True)
class RecordedRun:
    """A run as recorded in its folder.

    Attributes:
        folder: the run folder.
        status: ``FINISHED`` or another status of ``summary.json``.
        model: the network's name.
        seed: of the run.
        monitor: the metric that chose the best epoch, and ``max`` or ``min``.
        best_epoch: from 1.
        best_value: of the monitored metric.
        settings: the configuration, by dotted key, with the ``monitor`` that the run had, and
            ``global_batch``: samples of a batch of all processes.
        overrides: of the command line.
        epochs: numbers of the rows of ``epoch_metrics.csv``.
        curves: by metric, the value in each of these epochs; ``None`` where it was not logged.
        results: metrics of the best epoch on the test split, if it was evaluated.
        counts: ``train/n``, ``val/n`` and ``test/n`` of the best epoch, as far as they are known.
        unit: what a sample is, in the plural.
        costs: ``parameters``, ``seconds`` of training, ``epochs`` done, and what the sweep measured
            in addition, such as ``latency_ms``.
        data: hash of the data; empty if it is not known.
    """

    folder: Path
    status: str
    model: str
    seed: int
    monitor: tuple[str, str]
    best_epoch: int
    best_value: float
    settings: dict[str, Any]
    overrides: list[str]
    epochs: list[int]
    curves: dict[str, list[float | None]]
    results: dict[str, float]
    counts: dict[str, int]
    unit: str
    costs: dict[str, float]
    data: str

    def n(self, metric: str) -> int | None:
        """The number of samples of the metric's value; ``None`` if it was not counted."""
        return samples_of(self.counts, metric)

    def value(self, metric: str) -> float | None:
        """The metric's value in the best epoch; ``None`` if it was not logged."""
        if metric == self.monitor[0]:
            return self.best_value if math.isfinite(self.best_value) else None
        if metric in self.results:
            return self.results[metric]
        if metric not in self.curves or self.best_epoch not in self.epochs:
            return None
        return self.curves[metric][self.epochs.index(self.best_epoch)]


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run folders at and below ``paths``, each once.

    Raises:
        UserError: for a path without a run.
    """
    runs: dict[Path, Path] = {}
    for path in paths:
        here = list(_walk(outputs.run_dir_of(path))) if path.exists() else []
        if not here:
            message = f"{path}: no run here (a folder with summary.json)"
            raise UserError("RUN", message, instead_of(path))
        for folder in here:
            runs.setdefault(folder.resolve(), folder)
    return list(runs.values())


def _walk(top: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(top):
        if "summary.json" in files and "config.yaml" in files:
            folders.clear()
            yield Path(root)
        else:
            folders[:] = sorted(f for f in folders if f[0] != "." and f not in NOT_SEARCHED)


def select(
    folders: Sequence[Path], experiment: str, statuses: Sequence[str]
) -> tuple[list[RecordedRun], Counter[str]]:
    """The runs to compare, and the number of skipped runs by reason.

    Args:
        folders: of runs.
        experiment: only runs of this experiment; empty for any.
        statuses: only runs with one of these statuses; empty for any.
    """
    selected: list[RecordedRun] = []
    skipped: Counter[str] = Counter()
    sweeps: dict[Path, dict[str, dict[str, float]]] = {}
    for folder in track(folders, "reading runs", unit="runs"):
        try:
            words = documents.load(folder / "overrides.yaml", list, "RUN")
            overrides = [current_word(word) for word in words if isinstance(word, str)]
            if experiment and f"experiment={experiment}" not in overrides:
                continue
            summary = documents.load(folder / "summary.json", dict, "RUN")
            status = str(summary["status"])
            if statuses and status not in statuses:
                skipped[status] += 1
            elif not summary["best_epoch"]:
                skipped["without an epoch"] += 1
            else:
                if folder.parent not in sweeps:
                    sweeps[folder.parent] = _sweep_costs(folder.parent)
                costs = sweeps[folder.parent].get(folder.name, {})
                selected.append(_read(folder, summary, overrides, costs))
        except DAMAGED as error:
            log.warning("%s: skipping a damaged run (%s)", folder, one_line(error))
            skipped["damaged"] += 1
    return selected, skipped


def _read(
    folder: Path, summary: dict[str, Any], overrides: list[str], costs: Mapping[str, float]
) -> RecordedRun:
    rows = read_rows(folder / "epoch_metrics.csv")
    names = [name for name in (rows[0] if rows else ()) if name not in NO_CURVES]
    metric, mode = summary["monitor"]
    path = str(folder / "summary.json")
    results = _results(folder, int(summary["best_epoch"]))
    config = stored.with_defaults(stored.unchecked(summary["configuration"], path))
    return RecordedRun(
        folder,
        summary["status"],
        str(summary["model"]),
        int(config["seed"]),
        (current_column(metric), mode),
        int(summary["best_epoch"]),
        float(summary["best_value"]),
        {
            **dict(leaves(config)),
            "monitor": f"{current_column(metric)}:{mode}",
            "global_batch": _global_batch(summary, config),
        },
        overrides,
        [int(row["epoch"]) for row in rows],
        {name: [_number(row[name]) for row in rows] for name in names},
        results,
        {
            **{name: int(n) for name, n in results.items() if name.endswith("/n")},
            **{
                name: int(row[name])
                for row in rows
                for name in ("train/n", "val/n")
                if row["epoch"] == str(summary["best_epoch"]) and row.get(name, "").isdecimal()
            },
        },
        str(summary.get("unit", "samples")),
        {
            "parameters": _cost(summary["parameters"]),
            "seconds": _cost(summary["total_time_sec"]),
            "epochs": _cost(summary["epochs_done"]),
            **{
                name: value
                for name, value in costs.items()
                if name not in names and math.isfinite(value)
            },
        },
        _data_hash(folder),
    )


def _data_hash(folder: Path) -> str:
    try:
        return str(documents.load(folder / "environment.json", dict, "RUN")["data"]["hash"])
    except DAMAGED:
        return ""  # the run itself does not need it


def _global_batch(summary: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """As recorded; of runs of earlier versions, which did not, as set for one process."""
    recorded = summary.get("global_batch")
    return recorded or config.get("global_batch_size") or config.get("batch_size")


def _results(folder: Path, epoch: int) -> dict[str, float]:
    try:
        found = own_metrics(folder, "test", epoch)
        return {name: _cost(value) for name, value in found.items() if value is not None}
    except DAMAGED as error:
        # The run itself does not need it.
        log.warning("%s: ignoring a damaged test result (%s)", folder, one_line(error))
        return {}


def _cost(value: Any) -> float:
    """A finite number.

    Raises:
        ValueError: for anything else.
    """
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is not a cost")
    cost: float = value
    return cost


def _sweep_costs(sweep: Path) -> dict[str, dict[str, float]]:
    """Values of a sweep's objectives by the name of the trial's folder; empty without a sweep."""
    path = sweep / "final_summary.json"
    if not path.exists():
        return {}
    try:
        trials = documents.load(path, dict, "RUN").get("trials", [])
        return {
            Path(trial["paths"]["run"]).name: trial.get("values", {})
            for trial in trials
            if "paths" in trial
        }
    except DAMAGED as error:
        # The runs themselves do not need it.
        log.warning("%s: ignoring the costs of a damaged summary (%s)", sweep, one_line(error))
        return {}


def direction(runs: Sequence[RecordedRun], metric: str) -> str:
    """``max`` or ``min``: of a run that monitored the metric on any split, else from its name.

    What a run has recorded of its batches are losses and times.
    """
    split, _, name = metric.rpartition("/")
    for run in runs:
        if run.monitor[0].rpartition("/")[2] == name:
            return run.monitor[1]
    if split == "train" and any(
        name in first_row(run.folder / "batch_metrics.csv") for run in runs if metric in run.curves
    ):
        return "min"
    words = metric.lower().replace("/", "_").split("_")
    return "min" if any(word in LOWER_IS_BETTER for word in words) else "max"


def monitored(runs: Sequence[RecordedRun]) -> tuple[str, str]:
    """The metric that all runs monitored, and ``max`` or ``min``.

    Raises:
        UserError: if they monitored different ones.
    """
    monitors = sorted({run.monitor for run in runs})
    if len(monitors) > 1:
        names = " and ".join(":".join(monitor) for monitor in monitors)
        raise UserError(
            "metric",
            f"the runs monitored {names}",
            "choose one with metric=METRIC, or pass fewer runs",
        )
    return monitors[0]


def check_metric(runs: Sequence[RecordedRun], metric: str) -> None:
    """Check that a run logged the metric.

    Raises:
        UserError: with the nearest and all known metrics.
    """
    known = sorted({name for run in runs for name in (*run.curves, *run.results, run.monitor[0])})
    if metric not in known:
        near = nearest(metric, known)
        hint = f"; did you mean {near!r}?" if near else ";"
        raise UserError(
            "metric", f"metric={metric}: no run logged it{hint} there are {', '.join(known)}"
        )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
