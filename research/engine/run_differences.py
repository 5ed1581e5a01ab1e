"""What two runs of one configuration left behind, compared bit for bit.

Times, paths and identifiers are not compared; everything else of a run that was killed and resumed
must be that of a run that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from research.engine import checkpoint
from research.tracking.files import read_rows
from research.tracking.spool import read_run_id

TIMES = ("epoch_time_sec", "batch_time_sec", "timestamp", "total_time_sec")
PARTS = {
    "model": "weights",
    "ema": "moving average of the weights (EMA)",
    "transform": "device transform",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "scaler": "gradient scaler",
    "rng": "random generators",
    "state": "counters, losses, history",
    "data": "metadata of the data",
}
"""Parts of a checkpoint, and what they are called in the table."""
OWN_SETTINGS = ("run_dir", "resume", "logging.")
"""Parameters in MLflow that differ between the runs that are compared."""

ENVIRONMENT = ("changes.patch", "git_", "version.")
"""Files and tags about the code, which may be edited meanwhile: a process has its own copy."""


@dataclass(frozen=True)
class RunDifference:
    """One place in which two runs differ.

    Attributes:
        where: dotted.
        text: both values, or how much they differ.
        amount: largest absolute difference of numbers; None for anything else.
    """

    where: str
    text: str
    amount: float | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def content(
    folder: Path, trust: Collection[str] = (), store: tuple[str, str] | None = None
) -> dict[str, Any]:
    """All that a finished run has recorded, except times, paths and identifiers.

    Args:
        folder: the run folder.
        trust: names of the user's own code that its configuration may contain.
        store: URI of an MLflow store, and the name of an experiment with this run alone.

    Raises:
        UserError: if a checkpoint is missing or damaged.
    """
    checkpoints = folder / "checkpoints"
    last = checkpoint.load(checkpoints / "last.pt", trust)
    best = checkpoint.load(checkpoints / "best.pt", trust)
    weights = {
        name: checkpoint.load(checkpoints / name, trust)
        for name in ("best.safetensors", "final.safetensors")
    }
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    found = {
        **{
            name: _without_times(last[part])
            for part, name in PARTS.items()
            if last[part] is not None
        },
        "best.pt": _without_times({part: best[part] for part in ("model", "ema", "state")}),
        **{
            name: _without_times({part: saved[part] for part in ("model", "state")})
            for name, saved in weights.items()
        },
        **{
            str(path.relative_to(folder)): _without_times(_numbers(read_rows(path)))
            for path in sorted(folder.rglob("*.csv"))
        },
        "summary.json": _without_times(
            {key: summary[key] for key in summary if key not in ("paths", "configuration")}
        ),
        # Temporary files of killed processes and event files of TensorBoard have random names.
        "files": {
            str(file): "there"
            for file in sorted(files)
            if file.name[0] != "." and "tfevents" not in file.name and file.name not in ENVIRONMENT
        },
    }
    # A short run may have ended before the store answered for the first time.
    run_id = last["tracking"].get("mlflow_run_id") or read_run_id(folder)
    if store is not None and run_id:
        found |= _tracked(*store, run_id)
    return found


def compare(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, list[RunDifference]]:
    """The differences of each entry of ``content`` of two runs; none: an empty list."""
    names = dict.fromkeys([*one, *two])
    return {name: list(differences(one.get(name), two.get(name), name)) for name in names}


def differences(one: Any, two: Any, where: str) -> Iterator[RunDifference]:
    """Every place in which two nested values differ; NaN is equal to NaN.

    Args:
        one: plain values, tensors, and containers of them.
        two: the same of the other run.
        where: dotted name of both.
    """
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        yield from _tensor_differences(one, two, where)
    elif isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in dict.fromkeys([*one, *two]):
            if key in one and key in two:
                yield from differences(one[key], two[key], f"{where}.{key}")
            else:
                yield RunDifference(f"{where}.{key}", "missing" if key in one else "added")
    elif isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if len(one) != len(two):
            yield RunDifference(where, f"{len(one)} entries / {len(two)}")
        for index, (first, second) in enumerate(zip(one, two, strict=False)):
            yield from differences(first, second, f"{where}[{index}]")
    elif isinstance(one, float) and isinstance(two, float):
        if one != two and not (math.isnan(one) and math.isnan(two)):
            yield RunDifference(where, f"{one!r} / {two!r}", abs(one - two))
    elif type(one) is not type(two) or one != two:
        yield RunDifference(where, f"{one!r:.80} / {two!r:.80}")


def describe(found: Sequence[RunDifference]) -> str:
    """Differences of one entry in one line."""
    if not found:
        return "identical"
    worst = max(found, key=lambda each: -1 if each.amount is None else each.amount)
    return str(worst) if len(found) == 1 else f"{len(found)} differences, such as {worst}"


def _tensor_differences(one: Tensor, two: Tensor, where: str) -> Iterator[RunDifference]:
    if one.dtype != two.dtype or one.shape != two.shape:
        yield RunDifference(
            where, f"{one.dtype} {tuple(one.shape)} / {two.dtype} {tuple(two.shape)}"
        )
        return
    unequal = (one != two) & ~((one != one) & (two != two))
    count = int(unequal.sum())
    if count:
        gap = (one.double() - two.double()).abs()[unequal].nan_to_num(math.inf).max().item()
        yield RunDifference(where, f"{count} of {one.numel()} values, by up to {gap:.2g}", gap)


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_times(entry) for key, entry in value.items() if key not in TIMES}
    return [_without_times(entry) for entry in value] if isinstance(value, list) else value


def _numbers(rows: Sequence[Mapping[str, str]]) -> list[dict[str, float | str]]:
    return [{name: _number(text) for name, text in row.items()} for row in rows]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _tracked(uri: str, experiment: str, run_id: str) -> dict[str, Any]:
    """What an MLflow store has about a run, and which others of the experiment did not end."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    known = client.get_experiment_by_name(experiment)
    runs = [] if known is None else client.search_runs([known.experiment_id])
    data = client.get_run(run_id).data
    metrics = {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]
        for key in data.metrics
        if not key.startswith("system/") and not key.endswith(TIMES)
    }
    return {
        "MLflow status": {
            # An attempt that was killed before the first checkpoint is a run of its own.
            "run" if run.info.run_id == run_id else "other": run.info.status
            for run in runs
            if run.info.run_id == run_id or run.info.status not in ("KILLED", "FAILED")
        },
        # In the order of their steps: a store may return equal times in any order.
        "MLflow metrics": {key: sorted(rows) for key, rows in sorted(metrics.items())},
        "MLflow parameters": {
            key: value for key, value in data.params.items() if not key.startswith(OWN_SETTINGS)
        },
        "MLflow tags": {
            key: value
            for key, value in data.tags.items()
            if not key.startswith(("mlflow.", "mlflow_", *ENVIRONMENT))
        },
        "MLflow artifacts": sorted(_artifacts(client, run_id, None)),
    }


def _artifacts(client: Any, run_id: str, folder: str | None) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from _artifacts(client, run_id, entry.path)
        else:
            yield entry.path
