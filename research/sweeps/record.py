"""``final_summary.json``: what became of every trial of a sweep, true after each of them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from research.engine import build
from research.sweeps import parent as parent_run
from research.sweeps.space import written
from research.sweeps.study import Study
from research.tracking.tracker import Status, Tracker
from research.utils.files import to_json, write_text

log = logging.getLogger(__name__)

NAME: Final = "final_summary.json"
STATUS: Final = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "PRUNED",
    TrialState.FAIL: "FAILED",
    TrialState.RUNNING: "RUNNING",
}
TOLD: Final = (
    "model",
    "parameters",
    "epochs_done",
    "best_epoch",
    "best_value",
    "monitor",
    "total_time_sec",
    "paths",
)
"""What a trial's entry takes over from its run's ``summary.json``."""


def summary(study: Study) -> dict[str, Any]:
    """The study in one dictionary, see ``docs/sweeps.md``."""
    about, now = study.about, datetime.now(UTC)
    names = [objective["name"] for objective in about["objectives"]]
    trials = [_entry(study, trial, names) for trial in study.trials()]
    started = datetime.fromisoformat(about["started"])
    return {
        **about,
        "timestamp": now.isoformat(timespec="seconds"),
        "total_time_sec": (now - started).total_seconds(),
        "trial_time_sec": sum(trial["seconds"] for trial in trials),
        "counts": dict(sorted(Counter(trial["status"] for trial in trials).items())),
        "best": _best(study, trials),
        "pareto": _pareto(study, trials),
        "trials": trials,
    }


def update(study: Study, config: Mapping[str, Any], status: Status = "RUNNING") -> dict[str, Any]:
    """Write the summary, and tell the parent run; the caller holds the study.

    Args:
        study: its trials are told as they stand.
        config: of this process: where records go is not read from a file.
        status: how the sweep ended; ``RUNNING`` as long as trials may follow in this process,
            and kept so while another one has some.
    """
    found = summary(study)
    if "RUNNING" in found["counts"]:
        status = "RUNNING"
    write_text(study.folder / NAME, to_json(found))

    def trackers() -> Sequence[Tracker]:
        return build.trackers(config)

    try:
        parent_run.update(study.folder, found, trackers, status)
    except Exception as error:
        # The summary is written: no picture, and no store, may cost a trial or end a sweep.
        log.warning("sweep: the parent run could not be brought up to date", exc_info=error)
    return found


def parent(study: Study) -> dict[str, str]:
    """The tag by which MLflow nests a trial under its sweep; empty while there is none."""
    file = study.folder / "mlflow_run_id"
    return {"mlflow.parentRunId": file.read_text("utf-8")} if file.exists() else {}


def _entry(study: Study, trial: FrozenTrial, names: Sequence[str]) -> dict[str, Any]:
    facts = trial.user_attrs
    status = STATUS[trial.state]
    if status == "RUNNING" and (facts.get("reason") or not study.is_alive(trial)):
        status = "KILLED"
    begun, point = trial.datetime_start, study.point(trial)
    return {
        "trial": trial.number,
        "params": {key: plain(value) for key, value in point.items()},
        "overrides": [f"{key}={written(value)}" for key, value in point.items()],
        "status": status,
        "reason": facts.get("reason", ""),
        "values": dict(zip(names, trial.values or (), strict=False)),
        "epochs": {str(epoch): value for epoch, value in trial.intermediate_values.items()},
        "started": None if begun is None else begun.astimezone().isoformat(timespec="seconds"),
        "seconds": facts.get("seconds", 0.0),
        "attempts": facts.get("attempts", 0),
        **_of_run(facts.get("run")),
    }


def plain(value: Any) -> Any:
    """A swept value as a number where it is one; the override grammar keeps it as text."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _of_run(run: str | None) -> dict[str, Any]:
    """What a run tells of itself; its folder alone when it ended before it could."""
    if run is None:
        return {}
    try:
        told = json.loads((Path(run) / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"paths": {"run": run}}
    return {key: told[key] for key in TOLD}


def _best(study: Study, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    directions = study.optuna.directions
    finished = [trial for trial in trials if trial["status"] == "FINISHED"]
    if len(directions) > 1 or not finished:
        return None
    pick = max if directions[0] is StudyDirection.MAXIMIZE else min
    return _told(pick(finished, key=lambda trial: next(iter(trial["values"].values()))))


def _pareto(study: Study, trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if len(study.optuna.directions) < 2:
        return []
    front = {trial.number for trial in study.optuna.best_trials}
    return [_told(trial) for trial in trials if trial["trial"] in front]


def _told(trial: Mapping[str, Any]) -> dict[str, Any]:
    return {key: trial[key] for key in ("trial", "params", "values")}


def failed(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials that failed."""
    return [trial for trial in summary["trials"] if trial["status"] == "FAILED"]


def say_end(study: Study, summary: dict[str, Any]) -> None:
    """Log what became of the trials, and which was best."""
    told = ", ".join(f"{count} {status.lower()}" for status, count in summary["counts"].items())
    log.info("sweep: %s", told)
    for trial in failed(summary):
        log.info("  failed:   trial %d: %s", trial["trial"], trial["reason"])
    for best in [summary["best"], *summary["pareto"]]:
        if best is not None:
            point = " ".join(f"{key}={value}" for key, value in best["params"].items())
            values = ", ".join(f"{name} {value:.4g}" for name, value in best["values"].items())
            log.info("  best:     trial %d, %s: %s", best["trial"], values, point)
    log.info("  summary:  %s", study.folder / NAME)
    log.info("  compare:  python -m research.compare %s", study.folder)
