"""A job of a sweep: one trial of its study, trained or gone on with, and told of."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from optuna.trial import TrialState

from research.engine import run, run_folder
from research.sweeps import record
from research.sweeps.devices import device_of_its_own
from research.sweeps.objectives import Objective, monitor, values
from research.sweeps.study import FOLDER, Study, checkpoint_time
from research.utils import logs
from research.utils.errors import UserError, one_line

log = logging.getLogger(__name__)

PRUNERS = ("optuna.pruners.*",)
STUDY_SWEEPER = "research.sweeps.sweeper.StudySweeper"
"""Whose store and pruner a trial has; Hydra's own sweepers have none of ours."""
Config = Mapping[str, Any]


class TrialPruner:
    """Tells the study of every epoch; its pruner may end the trial, but for the last one."""

    stopped = False

    def __init__(self, study: Study, number: int, epochs: int) -> None:
        self.study = study
        self.epochs = epochs
        self.trial = study.going(number)
        self.reason = ""

    def epoch(self, epoch: int, value: float) -> None:
        if self.stopped or len(self.study.optuna.directions) > 1:
            return
        told = self.study.trial(self.trial.number).intermediate_values
        if epoch not in told:
            self.trial.report(value, epoch)
        elif epoch < max(told):
            return  # told, and judged, before a crash
        if epoch < self.epochs and self.trial.should_prune():
            self.stopped = True
            self.reason = f"{type(self.study.optuna.pruner).__name__} at epoch {epoch}"


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: ``FINISHED``, ``PRUNED``, ``FAILED`` or ``KILLED``, and why."""

    status: str
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


def run_trial(hydra: Any, config: Config, name: str) -> float | None:
    """Run one trial; whatever becomes of it is recorded, and the sweep goes on.

    Args:
        hydra: Hydra's own node, as in ``HydraConfig.get()``: its folders name study and trial.
        config: resolved and checked.
        name: of the run.

    Returns:
        the first objective's value; null when it has none.

    Raises:
        KeyboardInterrupt: as it came; the next sweep takes the trial up again.
        UserError: for a trial that failed, where a sweeper of Hydra's own is to know of it.
    """
    ours = hydra.sweeper._target_ == STUDY_SWEEPER
    pruner = storage = None
    if ours:
        pruner = instantiate(hydra.sweeper.pruner, _execution_whitelist_=PRUNERS)
        storage = hydra.sweeper.storage
    study = Study(Path(hydra.sweep.dir).name, storage, pruner=pruner)
    number = int(hydra.sweep.subdir.rpartition("_")[2])
    overrides = list(hydra.overrides.task)
    with ExitStack() as stack:
        device = stack.enter_context(device_of_its_own(config["device"], FOLDER))
        config = {**config, "device": device}
        opened = _open(study, number, config, name, stack)
        if opened is None:
            return None
        began = time.perf_counter()
        outcome = Outcome("KILLED", "interrupted")
        try:
            outcome = _train(study, number, config, name, overrides, *opened)
        except Exception as error:
            outcome = Outcome("FAILED", f"{type(error).__name__}: {one_line(error)}")
            trace = None if isinstance(error, UserError) else error
            log.error("sweep: trial %d failed: %s", number, outcome.reason, exc_info=trace)
            _let_go(error)
        finally:
            _tell(study, config, number, outcome, time.perf_counter() - began)
    if outcome.status == "FAILED" and not ours:
        raise UserError("trial", outcome.reason)  # Hydra's own sweepers count it
    return next(iter(outcome.values.values()), None)


def _open(
    study: Study, number: int, config: Config, name: str, stack: ExitStack
) -> tuple[Path, bool] | None:
    """The trial's run folder, held, and whether it goes on there.

    Null when another process holds the trial or is done with it, or when it cannot go on.
    """
    with study.locked():
        trial = study.trial(number)
        facts = trial.user_attrs
        known = Path(facts["run"]) if "run" in facts else None
        if trial.state is not TrialState.RUNNING or (known is not None and run_folder.busy(known)):
            log.info("sweep: trial %d is in other hands", number)
            return None
        goes_on = known is not None and (known / "checkpoints" / "last.pt").exists()
        if known is not None and goes_on:
            changed = ", ".join(run_folder.changed(config, known)[:5])
            if changed:
                reason = (
                    f"{known} cannot go on: {changed} changed since; "
                    "hydra.sweeper.retry_failed=true begins it anew"
                )
                log.error("sweep: trial %d failed: %s", number, reason)
                study.fail(number, reason)
                return None
        beginnings = facts.get("beginnings", 0)
        if known is None or not goes_on:
            # Of what was done without a checkpoint nothing can be used, and nothing is overwritten.
            beginnings += 1
            where = study.run_folder(number, beginnings)
            known = run_folder.create({**config, "run_dir": str(where)}, name)
        stack.enter_context(run_folder.occupied(known))
        attempts = facts.get("attempts", 0) + 1
        study.note(
            number,
            run=str(known),
            beginnings=beginnings,
            attempts=attempts,
            checkpoint=checkpoint_time(known),
            reason="",
        )
    return known, goes_on


def _train(
    study: Study,
    number: int,
    config: Config,
    name: str,
    overrides: list[str],
    folder: Path,
    goes_on: bool,
) -> Outcome:
    pruner = TrialPruner(study, number, config["epochs"])
    tags = {"study": study.name, "trial": str(number), **record.parent(study)}
    about = study.about
    wanted = [Objective(**each) for each in about["objectives"]]
    own = monitor(config)
    if own != about["monitor"]:
        raise UserError(
            "monitor",
            f"monitor: this trial is judged by {own}, the sweep by {about['monitor']}",
            "sweep over models of one task",
        )
    with logs.to_file(folder):
        begin = run.resume(folder, config) if goes_on else run.Start(folder)
        state = run.train(dict(config), f"{name}_{number:04d}", overrides, begin, tags, pruner)
        if pruner.stopped:
            return Outcome("PRUNED", pruner.reason)
        for lost in ("train/loss", "val/loss", own.rpartition(":")[0]):
            value = state.history[-1].get(lost, 0.0)
            if not math.isfinite(value):
                raise UserError(lost, f"{lost} is {value} in the last epoch: the network diverged")
        assert state.best is not None
        found = values(wanted, folder, state.best, config["device"], config["trust"])
        return Outcome("FINISHED", values=found)


def _tell(study: Study, config: Config, number: int, outcome: Outcome, seconds: float) -> None:
    with study.locked():
        facts = study.trial(number).user_attrs
        study.note(number, seconds=facts.get("seconds", 0.0) + seconds)
        match outcome.status:
            case "FINISHED":
                study.tell(number, list(outcome.values.values()))
            case "PRUNED":
                study.prune(number, outcome.reason)
            case "FAILED":
                study.fail(number, outcome.reason)
            case "KILLED":
                # It is no fault of the trial's.
                study.note(number, attempts=facts["attempts"] - 1, reason=outcome.reason)
        record.update(study, config)
    log.info("sweep: trial %d %s%s", number, outcome.status.lower(), _why(outcome))


def _why(outcome: Outcome) -> str:
    told = ", ".join(f"{name} {value:.4g}" for name, value in outcome.values.items())
    return "".join(f" ({text})" for text in (told, outcome.reason) if text)


def _let_go(error: BaseException | None) -> None:
    """Free what an exception's frames hold.

    Of a network that did not fit into memory nothing must stay there for the next one.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
