"""A sweep's job: trains or resumes one trial of the study and reports its result."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from hydra.utils import instantiate
from optuna.trial import TrialState

from research.config import run_files
from research.config.names import trial_name
from research.engine import checkpoint, run, run_folder
from research.engine.resume import Start, resume
from research.sweeps import record
from research.sweeps.description import FOLDER
from research.sweeps.devices import exclusive_device
from research.sweeps.identity import changed_settings, format_changes
from research.sweeps.objectives import Objective, measure, monitor
from research.sweeps.parent import trial_tags
from research.sweeps.storage import StorageError, outlast
from research.sweeps.study import Study, checkpoint_time
from research.tracking import spool
from research.utils import logs
from research.utils.errors import Damaged, UserError, one_line

log = logging.getLogger(__name__)

PRUNERS = ("optuna.pruners.*",)
SECONDS_FOR_STORAGE = 0.5
"""For which training waits for a database after an epoch."""
STUDY_SWEEPER = "research.sweeps.sweeper.StudySweeper"
"""The sweeper whose storage and pruner a trial uses; Hydra's own sweepers have neither."""


class TrialPruner:
    """Reports every epoch to the study, whose pruner may stop the trial before the last epoch.

    Training does not wait for a database that does not answer: the values are reported later, and
    the pruner is asked again after the next epoch.

    Args:
        study: of the trial.
        number: of the trial.
        epochs: of the trial.
        reports: whether the monitored metric is the only objective; otherwise the pruner would
            compare it in the direction of another.
    """

    stopped = False

    def __init__(self, study: Study, number: int, epochs: int, *, reports: bool = True) -> None:
        self.study = study
        self.epochs = epochs
        self.reports = reports
        self.trial = study.resume_trial(number)
        self.reason = ""
        self.values: dict[int, float] = {}
        self.reporting: Thread | None = None

    def epoch(self, epoch: int, value: float) -> None:
        if self.stopped or not self.reports:
            return
        self.values[epoch] = value
        wait = self._report_aside if self.study.store.in_database else self._report
        if wait(epoch):
            self.stopped = True
            self.reason = f"{type(self.study.optuna.pruner).__name__} at epoch {epoch}"

    def finish(self) -> None:
        """Report what could not be reported in training."""
        if self.reporting is not None:
            self.reporting.join()
        if self.values:
            self._report(max(self.values))

    def _report(self, epoch: int) -> bool:
        """Report the values up to an epoch; whether the pruner stops the trial there."""
        reported = self.study.trial(self.trial.number).intermediate_values
        for each, value in sorted(self.values.copy().items()):
            if each not in reported:
                self.trial.report(value, each)
        if epoch in reported and epoch < max(reported):
            return False  # passed by the pruner, before a crash
        return epoch < self.epochs and bool(self.trial.should_prune())

    def _report_aside(self, epoch: int) -> bool:
        """The same in a thread; false if it takes longer than training may wait."""
        if self.reporting is not None and self.reporting.is_alive():
            return False
        answers: list[bool] = []

        def report() -> None:
            try:
                answers.append(self._report(epoch))
            except StorageError as error:
                log.warning("sweep: trial %d: epoch %d: %s", self.trial.number, epoch, error)

        self.reporting = Thread(target=report, daemon=True)
        self.reporting.start()
        self.reporting.join(SECONDS_FOR_STORAGE)
        return any(answers)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: ``FINISHED``, ``PRUNED``, ``FAILED`` or ``KILLED``, and why."""

    status: str
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


def run_trial(hydra: Any, config: Mapping[str, Any], name: str) -> float | None:
    """Run one trial and record its outcome; a failure does not end the sweep.

    Args:
        hydra: Hydra's own node, as in ``HydraConfig.get()``: its folders name study and trial.
        config: resolved and checked.
        name: of the runs of all trials, from ``research.config.base_name``.

    Returns:
        the value of the first objective; ``None`` if the trial has none.

    Raises:
        KeyboardInterrupt: passed on; the next sweep resumes the trial.
        UserError: if the trial failed under one of Hydra's own sweepers, which counts failures.
    """
    ours = hydra.sweeper._target_ == STUDY_SWEEPER
    pruner = storage = None
    if ours:
        pruner = instantiate(hydra.sweeper.pruner, _execution_whitelist_=PRUNERS)
        storage = hydra.sweeper.storage
    study = outlast(lambda: Study(Path(hydra.sweep.dir).name, storage, pruner=pruner))
    number = int(hydra.sweep.subdir.rpartition("_")[2])
    overrides = list(hydra.overrides.task)
    with ExitStack() as stack:
        device = stack.enter_context(exclusive_device(config["device"], FOLDER))
        config = {**config, "device": device}
        begin = _open_run(study, number, config, name, stack)
        if begin is None:
            return None
        start = time.perf_counter()
        outcome: Outcome | None = Outcome("KILLED", "interrupted")
        try:
            outcome = _train(study, number, config, name, overrides, begin)
        except StorageError:
            outcome = None  # nothing can be recorded; the same command resumes the trial
            raise
        except Exception as error:
            outcome = Outcome("FAILED", f"{type(error).__name__}: {one_line(error)}")
            trace = None if isinstance(error, UserError) else error
            log.error("sweep: trial %d failed: %s", number, outcome.reason, exc_info=trace)
            _clear_frames(error)
        finally:
            begin.settle()
            if outcome is not None:
                _report(study, config, number, outcome, time.perf_counter() - start)
    if outcome.status == "FAILED" and not ours:
        raise UserError("trial", outcome.reason)
    return next(iter(outcome.values.values()), None)


def _open_run(
    study: Study, number: int, config: Mapping[str, Any], name: str, stack: ExitStack
) -> Start | None:
    """Lock the trial's run folder.

    Returns:
        the start of the run, of one that is resumed without its checkpoint; ``None`` if the trial
        is finished, is run by another process or cannot be resumed.
    """
    with study.locked():
        trial = study.trial(number)
        attrs = trial.user_attrs
        folder, beginnings = study.run_of(trial), attrs.get("beginnings", 0)
        running = folder is not None and folder.is_dir() and run_folder.is_locked(folder)
        if trial.state is not TrialState.RUNNING or running:
            log.info("sweep: trial %d is finished or run by another process", number)
            return None
        if folder is None:
            # Runs of this trial of which the storage has lost the record are not overwritten, and
            # the last of them is resumed if it is the same run.
            beginnings = study.last_beginning(number)
            folder = study.run_folder(number, beginnings) if beginnings else None
            if folder is not None and (run_folder.is_locked(folder) or _changed(config, folder)):
                folder = None
        begin = Start(folder) if folder is not None and _has_checkpoint(folder) else None
        if folder is not None and begin is not None:
            changed = _changed(config, folder)
            if changed:
                reason = (
                    f"{folder} cannot be resumed: {changed}; "
                    "hydra.sweeper.retry_failed=true starts it again"
                )
                log.error("sweep: trial %d failed: %s", number, reason)
                study.fail(number, reason)
                return None
        if folder is None or begin is None:
            # A run without a checkpoint starts again in a new folder: nothing is overwritten.
            beginnings = max(beginnings, study.last_beginning(number)) + 1
            run_dir = study.run_folder(number, beginnings)
            with suppress(OSError):
                run_dir.rmdir()  # Hydra has made it, and it is empty
            new = run_folder.create({**config, "run_dir": str(run_dir)}, name)
            earlier, folder = folder, new.path
            begin = Start(folder, new=new)
            stack.callback(begin.settle)
            if earlier is not None:
                spool.hand_on(earlier, folder)
        stack.enter_context(run_folder.run_lock(folder))
        study.set_attrs(
            number,
            run=str(folder),
            beginnings=beginnings,
            attempts=attrs.get("attempts", 0) + 1,
            checkpoint=checkpoint_time(folder),
            reason="",
        )
    return begin


def _has_checkpoint(folder: Path) -> bool:
    """Whether a run can be resumed; damage of all its checkpoints is logged."""
    if not checkpoint.paths(folder):
        return False
    try:
        checkpoint.check_any_intact(folder)
    except Damaged as error:
        log.warning("sweep: %s: the trial starts again in a new folder", error.message)
        return False
    return True


def _changed(config: Mapping[str, Any], folder: Path) -> str:
    """How the run in a folder differs from a trial's; empty if it can be resumed."""
    try:
        recorded = run_files.comparable(folder)
    except UserError as error:
        return error.message
    return format_changes(changed_settings(recorded, config))


def _train(
    study: Study,
    number: int,
    config: Mapping[str, Any],
    name: str,
    overrides: list[str],
    begin: Start,
) -> Outcome:
    tags = trial_tags(study.folder, number)
    description = study.description
    wanted = [Objective(**each) for each in description["objectives"]]
    own = monitor(config)
    if own != description["monitor"]:
        raise UserError(
            "monitor",
            f"monitor: this trial monitors {own}, the sweep {description['monitor']}",
            "sweep over models of one task",
        )
    monitored = own.rpartition(":")[0]
    by_monitor = [each.name for each in wanted] == [monitored]
    pruner = TrialPruner(study, number, config["epochs"], reports=by_monitor)
    folder = begin.folder
    with logs.to_file(folder):
        begin = begin if begin.new is not None else resume(folder, config)
        named = trial_name(name, number, study.point(study.trial(number)))
        state = run.train(dict(config), named, overrides, begin, tags, pruner)
        pruner.finish()
        if pruner.stopped:
            return Outcome("PRUNED", pruner.reason)
        for metric in ("train/loss", "val/loss", monitored):
            value = state.history[-1].get(metric, 0.0)
            if not math.isfinite(value):
                raise UserError(
                    "optimizer.lr", f"{metric} is {value} in the last epoch: the network diverged"
                )
        assert state.best is not None
        values = measure(wanted, folder, state.best, config["device"], config["trust"])
        return Outcome("FINISHED", values=values)


def _report(
    study: Study, config: Mapping[str, Any], number: int, outcome: Outcome, seconds: float
) -> None:
    with study.locked():
        attrs = study.trial(number).user_attrs
        study.set_attrs(number, seconds=attrs.get("seconds", 0.0) + seconds)
        match outcome.status:
            case "FINISHED":
                study.report(number, list(outcome.values.values()))
            case "PRUNED":
                study.prune(number, outcome.reason)
            case "FAILED":
                study.fail(number, outcome.reason)
            case "KILLED":
                # An interruption does not count as a failed attempt.
                study.set_attrs(number, attempts=attrs["attempts"] - 1, reason=outcome.reason)
        if outcome.status != "KILLED":
            # Schedulers give an interrupted job little time; the sweep records how it ends.
            record.update_at_times(study, config)
    values = ", ".join(f"{name} {value:.4g}" for name, value in outcome.values.items())
    details = "".join(f" ({text})" for text in (values, outcome.reason) if text)
    log.info("sweep: trial %d %s%s", number, outcome.status.lower(), details)


def _clear_frames(error: BaseException | None) -> None:
    """Free the local variables of an exception's frames.

    After an out-of-memory error they would keep the network in memory during the next trial.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
