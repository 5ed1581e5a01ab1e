"""Recorded runs, read from their own folders."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from research.config import cli, stored
from research.config.keys import leaves
from research.config.migrations import current_column
from research.config.rules import nearest
from research.tracking.files import read_rows
from research.utils.errors import UserError, one_line

log = logging.getLogger(__name__)

DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
    yaml.YAMLError, csv.Error, UserError,
)  # fmt: skip
"""What the files of a damaged run make of their readers."""
NOT_SEARCHED = ("checkpoints", "mlflow-artifacts")
NO_CURVES = ("epoch", "avg_loss", "total_loss", "is_best", "checkpoint_path", "timestamp")
"""Columns of ``epoch_metrics.csv`` that are no metric, or one under a second name."""
SMALLER = ("loss", "error", "nll", "ece", "mae", "mse", "time", "sec", "ms", "bytes")
"""Words in the names of metrics of which less is better."""


@dataclass(frozen=True)
class Recorded:
    """What a run folder says of its run.

    Attributes:
        folder: the run folder.
        status: ``FINISHED``, or how else it stands.
        model: the network's name.
        seed: of the run.
        monitor: the metric that picked the best epoch, and ``max`` or ``min``.
        best_epoch: from 1.
        best_value: of the monitored metric.
        settings: every setting, dotted.
        overrides: what its command line said.
        epochs: numbers of the rows of ``epoch_metrics.csv``.
        curves: every metric's values in these epochs; null where it was not logged.
        costs: ``parameters``, ``seconds`` of training, ``epochs`` done, and whatever its sweep
            measured beside metrics, such as ``latency_ms``.
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
    costs: dict[str, float]

    def value(self, metric: str) -> float | None:
        """The metric's value in the best epoch; null if there is none."""
        if metric == self.monitor[0]:
            return self.best_value if math.isfinite(self.best_value) else None
        if metric not in self.curves or self.best_epoch not in self.epochs:
            return None
        return self.curves[metric][self.epochs.index(self.best_epoch)]


def find(paths: Sequence[Path]) -> list[Path]:
    """The run folders among and below ``paths``, each once.

    Raises:
        UserError: for a path that is none and holds none.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        here = (
            {folder.resolve(): folder for folder in _runs(cli.home(path))} if path.exists() else {}
        )
        if not here:
            raise UserError(
                "RUN", f"{path}: no run here (a folder with summary.json)", "give run folders"
            )
        found = {**found, **{place: run for place, run in here.items() if place not in found}}
    return list(found.values())


def _runs(top: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(top):
        if "summary.json" in files and "config.yaml" in files:
            folders.clear()
            yield Path(place)
        else:
            folders[:] = sorted(f for f in folders if f[0] != "." and f not in NOT_SEARCHED)


def select(
    folders: Sequence[Path], experiment: str, statuses: Sequence[str]
) -> tuple[list[Recorded], Counter[str]]:
    """The runs to compare, and how many were left out by what they are.

    Args:
        folders: of runs.
        experiment: the recipe that a run was made by; empty for any.
        statuses: those of ``summary.json`` that count; empty for all.
    """
    chosen: list[Recorded] = []
    left_out: Counter[str] = Counter()
    sweeps: dict[Path, dict[str, dict[str, float]]] = {}
    for folder in folders:
        try:
            overrides = [w for w in _yaml(folder / "overrides.yaml") or [] if isinstance(w, str)]
            if experiment and f"experiment={experiment}" not in overrides:
                continue
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            status = str(summary["status"])
            if statuses and status not in statuses:
                left_out[status] += 1
            elif not summary["best_epoch"]:
                left_out["without an epoch"] += 1
            else:
                if folder.parent not in sweeps:
                    sweeps[folder.parent] = _costs(folder.parent)
                measured = sweeps[folder.parent].get(folder.name, {})
                chosen.append(_read(folder, summary, overrides, measured))
        except DAMAGED as error:
            log.warning("%s: a damaged run, left out (%s)", folder, one_line(error))
            left_out["damaged"] += 1
    return chosen, left_out


def _costs(folder: Path) -> dict[str, dict[str, float]]:
    """As ``_measured``; nothing of a summary that cannot be read, of which runs need nothing."""
    try:
        return _measured(folder)
    except DAMAGED as error:
        log.warning("%s: a damaged summary; its costs are left out (%s)", folder, one_line(error))
        return {}


def _read(
    folder: Path, summary: dict[str, Any], overrides: list[str], measured: Mapping[str, float]
) -> Recorded:
    rows = read_rows(folder / "epoch_metrics.csv")
    names = [name for name in (rows[0] if rows else ()) if name not in NO_CURVES]
    metric, mode = summary["monitor"]
    path = str(folder / "summary.json")
    config = stored.completed(stored.recorded(summary["configuration"], path))
    return Recorded(
        folder,
        summary["status"],
        str(summary["model"]),
        int(config["seed"]),
        (current_column(metric), mode),
        int(summary["best_epoch"]),
        float(summary["best_value"]),
        dict(leaves(config)),
        overrides,
        [int(row["epoch"]) for row in rows],
        {name: [_number(row[name]) for row in rows] for name in names},
        {
            "parameters": _cost(summary["parameters"]),
            "seconds": _cost(summary["total_time_sec"]),
            "epochs": _cost(summary["epochs_done"]),
            **{
                name: value
                for name, value in measured.items()
                if name not in names and math.isfinite(value)
            },
        },
    )


def _cost(value: Any) -> float:
    """A finite number.

    Raises:
        ValueError: for anything else.
    """
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is no cost")
    cost: float = value
    return cost


def _measured(sweep: Path) -> dict[str, dict[str, float]]:
    """The values of a sweep's objectives by the name of the trial's folder."""
    path = sweep / "final_summary.json"
    if not path.exists():
        return {}
    trials = json.loads(path.read_text(encoding="utf-8")).get("trials", [])
    return {
        Path(trial["paths"]["run"]).name: trial.get("values", {})
        for trial in trials
        if "paths" in trial
    }


def direction(runs: Sequence[Recorded], metric: str) -> str:
    """``max`` or ``min``: as a run that monitored the metric said, else by the metric's name."""
    for run in runs:
        if run.monitor[0] == metric:
            return run.monitor[1]
    words = metric.lower().replace("/", "_").split("_")
    return "min" if any(word in SMALLER for word in words) else "max"


def monitored(runs: Sequence[Recorded]) -> tuple[str, str]:
    """The metric that all runs monitored, and which way is better.

    Raises:
        UserError: when they monitored different ones.
    """
    monitors = sorted({run.monitor for run in runs})
    if len(monitors) > 1:
        told = " and ".join(":".join(monitor) for monitor in monitors)
        raise UserError(
            "metric", f"the runs monitored {told}", "choose one by metric=, or fewer runs"
        )
    return monitors[0]


def check_metric(runs: Sequence[Recorded], metric: str) -> None:
    """
    Raises:
        UserError: when no run has such a metric, naming the nearest.
    """
    known = sorted({name for run in runs for name in (*run.curves, run.monitor[0])})
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


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
