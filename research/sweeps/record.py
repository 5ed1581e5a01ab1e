"""``final_summary.json``: the state of every trial of a sweep, updated as trials end."""

from __future__ import annotations

import logging
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from research.config import outputs
from research.engine import build
from research.sweeps import parent as parent_run
from research.sweeps.delivery import PATIENCE, EndedRun, deliver
from research.sweeps.description import SUMMARY, read_json
from research.sweeps.space import to_override
from research.sweeps.storage import EndedTrial, StorageError
from research.sweeps.study import Study
from research.tracking.tracker import Status, Tracker
from research.utils import logs
from research.utils.counts import with_n
from research.utils.errors import UserError, one_line
from research.utils.files import remove_leftovers, to_json, write_text

log = logging.getLogger(__name__)

STATUS: Final[dict[TrialState, Status]] = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "PRUNED",
    TrialState.FAIL: "FAILED",
    TrialState.RUNNING: "RUNNING",
}
RUN_KEYS: Final = (
    "model",
    "parameters",
    "epochs_done",
    "best_epoch",
    "best_value",
    "monitor",
    "total_time_sec",
    "paths",
)
"""Keys copied from the run's ``summary.json`` into the trial's entry."""
ADDED_KEYS: Final = ("best_n", "unit")
"""The same; runs of earlier versions have none."""
FRACTION = 0.02
"""The most that the summary takes of the time of a sweep while trials end; its parent run too."""


def summary(study: Study) -> dict[str, Any]:
    """The content of ``final_summary.json``, see ``docs/sweeps.md``."""
    description, now = study.description, datetime.now(UTC)
    names = [objective["name"] for objective in description["objectives"]]
    known = study.store.ended[study.name].entries
    trials = [
        own.entry
        if (own := known.get(trial.number)) is not None and own.trial is trial
        else _new_entry(study, trial, names)
        for trial in study.trials()
    ]
    started = datetime.fromisoformat(description["started"])
    return {
        **description,
        "timestamp": now.isoformat(timespec="seconds"),
        "total_time_sec": (now - started).total_seconds(),
        "trial_time_sec": sum(trial["seconds"] for trial in trials),
        "counts": dict(sorted(Counter(trial["status"] for trial in trials).items())),
        "best": _best(study, trials),
        "pareto": _pareto(study, trials),
        "trials": trials,
    }


def update(study: Study, config: Mapping[str, Any], status: Status = "RUNNING") -> dict[str, Any]:
    """Write the summary and update the parent run; the caller holds the study's lock.

    Args:
        study: its trials are recorded in their current state.
        config: of this process; trackers are never built from a stored configuration.
        status: how the sweep ended. It is recorded as ``RUNNING`` as long as any trial runs, in
            this process or another.
    """
    content = _write(study)
    _update_parent(study, config, content, status)
    return content


def update_at_times(study: Study, config: Mapping[str, Any]) -> None:
    """As ``update``, while others follow: passed over where it would take more than ``FRACTION``.

    Both the summary and the parent run take longer the more trials there are.
    """
    known = study.store.ended[study.name]
    if known.written.is_due:
        content = _write(study)
        if known.drawn.is_due and not parent_run.is_recent(study.folder):
            _update_parent(study, config, content, "RUNNING")


def _write(study: Study) -> dict[str, Any]:
    with study.store.ended[study.name].written.spent(FRACTION):
        content = summary(study)
        write_text(study.folder / SUMMARY, _text(study, content))
    return content


def _update_parent(
    study: Study, config: Mapping[str, Any], content: Mapping[str, Any], status: Status
) -> None:
    if "RUNNING" in content["counts"]:
        status = "RUNNING"

    def trackers() -> Sequence[Tracker]:
        return build.trackers(config)

    try:
        with study.store.ended[study.name].drawn.spent(FRACTION):
            parent_run.update(study.folder, content, trackers, status)
    except Exception as error:
        # The summary is written; a failing plot or tracker must not end a trial or the sweep.
        trace = None if isinstance(error, UserError | OSError) else error
        line = f"sweep: the parent run could not be updated ({one_line(error)})"
        log.warning("%s", line, exc_info=trace)


@contextmanager
def recorded(study: Study, config: Mapping[str, Any]) -> Iterator[None]:
    """Record and log how the sweep inside ended: finished, interrupted or failed."""
    status: Status | None = "FAILED"
    try:
        with study.locked():
            remove_leftovers(study.folder, study.folder / "tables")
            update(study, config)
        _deliver(study, config, 0)
        yield
        _deliver(study, config, PATIENCE)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except StorageError:
        status = None  # nothing can be read; the summary stays as it is
        raise
    finally:
        if status is not None:
            with study.locked():
                content = update(study, config, status)
            log_end(study, content)


def _deliver(study: Study, config: Mapping[str, Any], patience: float) -> None:
    """Deliver records of ended trials that a tracker's store did not accept when they ended."""
    ended = [
        EndedRun(run, trial.number, STATUS[trial.state])
        for trial in study.trials()
        if trial.state.is_finished() and (run := study.run_of(trial)) is not None
    ]

    def create_parent() -> None:
        with study.locked():
            update(study, config)

    deliver(ended, config, create_parent, patience)


def _text(study: Study, content: Mapping[str, Any]) -> str:
    """The summary as JSON, for which only the entries of trials that have not ended are encoded."""
    known = study.store.ended[study.name].entries
    entries = [
        known[each["trial"]].text if each["trial"] in known else _entry_text(each)
        for each in content["trials"]
    ]
    if not entries:
        return to_json(content)
    head = to_json({**content, "trials": []}).removesuffix("]\n}\n")
    return head + "\n" + ",\n".join(entries) + "\n ]\n}\n"


def _entry_text(entry: Mapping[str, Any]) -> str:
    return textwrap.indent(to_json(entry).rstrip("\n"), "  ")


def _new_entry(study: Study, trial: FrozenTrial, names: Sequence[str]) -> dict[str, Any]:
    """As ``_entry``, which is kept if the trial has ended."""
    known = study.store.ended[study.name].entries
    known.pop(trial.number, None)
    entry = _entry(study, trial, names)
    if trial.state.is_finished():
        known[trial.number] = EndedTrial(trial, entry, _entry_text(entry))
    return entry


def _entry(study: Study, trial: FrozenTrial, names: Sequence[str]) -> dict[str, Any]:
    attrs = trial.user_attrs
    status = STATUS[trial.state]
    if status == "RUNNING" and (attrs.get("reason") or not study.is_alive(trial)):
        status = "KILLED"
    started, point = trial.datetime_start, study.point(trial)
    return {
        "trial": trial.number,
        "params": {key: to_number(value) for key, value in point.items()},
        "overrides": [f"{key}={to_override(value)}" for key, value in point.items()],
        "status": status,
        "reason": attrs.get("reason", ""),
        "values": dict(zip(names, trial.values or (), strict=False)),
        "epochs": {str(epoch): value for epoch, value in trial.intermediate_values.items()},
        "started": None if started is None else started.astimezone().isoformat(timespec="seconds"),
        "seconds": attrs.get("seconds", 0.0),
        "attempts": attrs.get("attempts", 0),
        **_run_keys(study.run_of(trial)),
    }


def to_number(value: Any) -> Any:
    """A swept value as a number if it is one; the override grammar keeps it as text."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _run_keys(run: Path | None) -> dict[str, Any]:
    """``RUN_KEYS`` of a run's summary; only its folder if it ended without a valid one.

    A trial that was refused before it began has no folder.
    """
    if run is None or not run.is_dir():
        return {}
    only_folder = {"paths": {"run": str(run)}}
    try:
        content = read_json(run / "summary.json")
        found = {key: content[key] for key in RUN_KEYS}
        found |= {key: content[key] for key in ADDED_KEYS if key in content}
        valid = isinstance(found["paths"], dict) and isinstance(found["epochs_done"], int)
    except FileNotFoundError:
        return only_folder
    except (UserError, KeyError, TypeError) as error:
        log.warning("sweep: %s: damaged (%s)", run / "summary.json", one_line(error))
        return only_folder
    return found if valid else only_folder


def _best(study: Study, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    directions = study.optuna.directions
    finished = [trial for trial in trials if trial["status"] == "FINISHED"]
    if len(directions) > 1 or not finished:
        return None
    pick = max if directions[0] is StudyDirection.MAXIMIZE else min
    return _result(pick(finished, key=lambda trial: next(iter(trial["values"].values()))))


def _pareto(study: Study, trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if len(study.optuna.directions) < 2:
        return []
    front = {trial.number for trial in study.optuna.best_trials}
    return [_result(trial) for trial in trials if trial["trial"] in front]


def _result(trial: Mapping[str, Any]) -> dict[str, Any]:
    return {key: trial[key] for key in ("trial", "params", "values")}


def failed_trials(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [trial for trial in summary["trials"] if trial["status"] == "FAILED"]


def log_end(study: Study, summary: dict[str, Any]) -> None:
    """Log the number of trials by status, the failed ones and the best."""
    counts = ", ".join(f"{count} {status.lower()}" for status, count in summary["counts"].items())
    rows = []
    for trial in failed_trials(summary):
        folder = trial.get("paths", {}).get("run", "it has no run folder")
        rows.append(("failed", [f"trial {trial['trial']}:", f"{trial['reason']}", f"({folder})"]))
    entries = {trial["trial"]: trial for trial in summary["trials"]}
    for best in [summary["best"], *summary["pareto"]]:
        if best is not None:
            point = " ".join(f"{key}={value}" for key, value in best["params"].items())
            entry = entries[best["trial"]]
            values = ", ".join(
                with_n(f"{name} {value:.4g}", entry.get("best_n"), unit=entry.get("unit", ""))
                if summary["monitor"].startswith(f"{name}:")
                else f"{name} {value:.4g}"
                for name, value in best["values"].items()
            )
            rows.append(("best", [f"trial {best['trial']},", f"{values}:", point]))
    rows.append(("summary", [str(study.folder / SUMMARY)]))
    logs.log_table(log, f"sweep: {counts}", rows, is_result=True)
    log.info("next:  %s", outputs.command_of("compare", study.folder))
