"""MLflow's own tags of a run and of an experiment: what its UI shows beside the metrics."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from research.utils import documents
from research.utils.counts import with_n
from research.utils.errors import UserError

NOTE: Final = "mlflow.note.content"
KIND: Final = {"mlflow.experimentKind": "custom_model_development"}
"""Without it the UI opens an experiment as one of language models, with no chart of metrics."""
PRIMARY: Final = "mlflow.experiment.primaryMetric"


def of_run(folder: Path) -> dict[str, str]:
    """Tags of a run: user, source and description.

    Args:
        folder: of the run, with ``environment.json`` and ``summary.json``.
    """
    environment = _document(folder / "environment.json")
    command, git = environment.get("command") or sys.argv, environment.get("git") or {}
    known = {"mlflow.user": _user(), NOTE: note(folder)}
    return {
        "mlflow.source.name": str(command[0]),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": str(git.get("commit", "")),
        **{key: value for key, value in known.items() if value},
    }


def note(folder: Path) -> str:
    """What a run is: model, data, and the best value so far with its number of samples."""
    text = str(_document(folder / "environment.json").get("description", ""))
    summary = _document(folder / "summary.json")
    epoch, best = summary.get("best_epoch"), summary.get("best_value")
    if not epoch or not isinstance(best, int | float):
        return text
    value = f"**best {summary['monitor'][0]} {best:.4f}**"
    n, unit = summary.get("best_n"), str(summary.get("unit", ""))
    line = f"{with_n(value, n if isinstance(n, int) else None, unit=unit)} at epoch {epoch}"
    return f"{text}\n\n{line}" if text else line


def of_experiment(folder: Path) -> dict[str, str]:
    """Tags of an experiment: the view of the UI, and the metric that its charts begin with."""
    monitor = _document(folder / "summary.json").get("monitor")
    if not monitor:
        return KIND
    metric, mode = monitor
    return {**KIND, f"{PRIMARY}.name": metric, f"{PRIMARY}.greaterIsBetter": str(mode == "max")}


def _document(path: Path) -> Mapping[str, Any]:
    """A file of the run folder; empty if it is missing or damaged."""
    try:
        found: dict[str, Any] = documents.load(path, dict, "resume")
    except UserError:
        return {}
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no entry for this user in the system
        return ""
