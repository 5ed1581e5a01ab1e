"""Studies: Optuna's storage, the folder of runs, and locks that assign trials to processes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.samplers import BaseSampler
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from research.config.migrations import current_key
from research.engine.new_folder import NewFolder
from research.engine.run_folder import is_locked
from research.sweeps.description import DESCRIPTION, FOLDER, read_description
from research.sweeps.space import Point, Space
from research.sweeps.storage import StorageError, open_storage
from research.sweeps.stored_trials import check
from research.utils.errors import UserError, one_line

log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 3
"""A trial whose process died this often without completing another epoch is failed."""
LOCK: Final = ".store.lock"
CLAIMED: Final = "claimed"
"""User attribute of every trial that was assigned to a process."""
MOST_DELETED: Final = 20
"""Run folders of a trial that the user may have deleted before the last one."""
LOCK_TIMEOUT: Final = 2.0
"""Seconds; `Study.is_alive` of another process holds a lock for an instant."""


@dataclass(frozen=True)
class Claim:
    """A trial that this process has claimed and is about to run.

    Attributes:
        number: of the trial, from 0, as in Optuna.
        point: its values.
        lock: held while this process runs the trial.
    """

    number: int
    point: Point
    lock: FileLock


class Study:
    """An Optuna study and the folder of its runs.

    Args:
        name: of the study and its folder.
        url: of the storage; ``None`` for the journal under ``runs/``.
        sampler: creates a sampler from a seed; ``None`` if no points are sampled.
        pruner: stops trials early; ``None`` for no pruning.
        directions: of the objectives; ``None`` opens an existing study.
    """

    def __init__(
        self,
        name: str,
        url: str | None,
        sampler: Callable[[int], BaseSampler] | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
        directions: Sequence[str] | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = name
        self.folder = FOLDER / name
        pruner = pruner or optuna.pruners.NopPruner()
        self.sampler = sampler or optuna.samplers.RandomSampler
        new = NewFolder.create(FOLDER, [LOCK], shared=True)
        with ExitStack() as stack:
            stack.callback(new.settle)
            stack.enter_context(FileLock(FOLDER / LOCK))
            # Databases too: processes would race on the creation of the tables.
            self.store = open_storage(url, repair=directions is not None)
            if directions is not None:
                self._delete_if_folder_is_gone()
                optuna.create_study(
                    storage=self.store,
                    study_name=name,
                    directions=list(directions),  # type: ignore[arg-type]
                    load_if_exists=True,
                )
                # After the storage was opened: a start that fails leaves no folder.
                self.folder.mkdir(exist_ok=True)
            new.begun = True
        self.optuna = OptunaStudy(name, self.store, self.sampler(0), pruner)
        self._stored: dict[str, str] = {}
        self._named = 0

    def _delete_if_folder_is_gone(self) -> None:
        """Delete the stored study if the user has deleted the sweep's folder."""
        if not self.folder.exists() and self.name in optuna.get_all_study_names(self.store):
            log.info("sweep: %s was deleted; the study starts again", self.folder)
            optuna.delete_study(study_name=self.name, storage=self.store)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other processes from claiming, ending and recording trials."""
        with FileLock(self.folder / ".study.lock"):
            yield

    # -- description -----------------------------------------------------------------------------

    @property
    def description(self) -> dict[str, Any]:
        """``study.json`` under current names.

        Raises:
            UserError: if it is missing or damaged.
        """
        known = read_description(self.folder)
        if known is None:
            raise UserError(
                "hydra.sweeper.study_name",
                f"{self.folder / DESCRIPTION}: it is missing",
                "run the sweep's command again, which writes it",
            )
        return known

    # -- trials ----------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """All trials but rejected proposals and failures that were retried.

        If a process dies while Optuna samples a point, the trial has no values and no claim.
        """
        every = self.optuna.get_trials(deepcopy=False)
        ended = self.store.ended[self.name]
        ended.forget_others(every)
        more: list[FrozenTrial] = []
        all_ended = True
        for trial in every[len(ended.first) :]:
            is_claimed = CLAIMED in trial.user_attrs
            if is_claimed:
                check(trial, self.name, self.store.name, len(self.optuna.directions))
            all_ended = all_ended and trial.state.is_finished()
            if all_ended:
                ended.first.append(trial)
            if is_claimed:
                (ended.claimed if all_ended else more).append(trial)
                ended.retried.add(trial.user_attrs.get("retries"))
        claimed = [*ended.claimed, *more]
        retried = ended.retried - {None}
        return [t for t in claimed if t.number not in retried] if retried else claimed

    def failed(self) -> list[FrozenTrial]:
        """Trials that have failed and were not retried."""
        return [trial for trial in self.trials() if trial.state is TrialState.FAIL]

    def trial(self, number: int) -> FrozenTrial:
        every = self.optuna.get_trials(deepcopy=False)
        if number >= len(every):
            raise StorageError(self.store.name, f"it has lost trial {number} of {self.name}")
        check(every[number], self.name, self.store.name, len(self.optuna.directions))
        return every[number]

    @staticmethod
    def point(trial: FrozenTrial) -> Point:
        """A trial's values, under current key names."""
        return {current_key(key): value for key, value in trial.params.items()}

    def stored_keys(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Current keys as this study's storage has them, so that samplers see one axis."""
        every = self.optuna.get_trials(deepcopy=False)
        for trial in every[self._named :]:
            self._stored |= {current_key(key): key for key in trial.params}
        self._named = len(every)
        return {self._stored.get(key, key): value for key, value in values.items()}

    def resume_trial(self, number: int) -> Trial:
        """A running trial, for intermediate values and attributes."""
        return Trial(self.optuna, self.trial(number)._trial_id)

    def set_attrs(self, number: int, **attrs: Any) -> None:
        """Set user attributes of a running trial."""
        trial = self.resume_trial(number)
        for key, value in attrs.items():
            trial.set_user_attr(key, value)

    def run_folder(self, number: int, beginning: int) -> Path:
        """The folder of a trial's run; a trial that was restarted has several."""
        return self.folder / (f"trial_{number:04d}" + (f"_{beginning}" if beginning > 1 else ""))

    @staticmethod
    def beginning(run: str) -> int:
        """Which of a trial's run folders this is, from 1.

        Raises:
            ValueError: if no trial has such a folder.
        """
        match = re.fullmatch(r"trial_\d{4,}(?:_(\d{1,4}))?", run)
        if match is None:
            raise ValueError(f"{run} is not the folder of a trial")
        return int(match[1] or 1)

    def run_of(self, trial: FrozenTrial) -> Path | None:
        """The folder of a trial's last run, which lies in the study's; ``None`` without one."""
        run = trial.user_attrs.get("run")
        return None if run is None else self.folder / Path(run).name

    def last_beginning(self, number: int) -> int:
        """The last of a trial's run folders, from 1; 0 if it has none."""
        last, beginning = 0, 1
        while beginning <= last + MOST_DELETED + 1:  # without listing the folders of all trials
            if (self.run_folder(number, beginning) / "config.yaml").exists():
                last = beginning
            beginning += 1
        return last

    def is_alive(self, trial: FrozenTrial) -> bool:
        """Whether a process is running the trial."""
        run = self.run_of(trial)
        if run is not None and run.is_dir() and is_locked(run):
            return True
        lock = self._lock(trial.number)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def claim_trial(
        self, space: Space, total: int, seed: int, retry: set[int], *, grid: bool
    ) -> Claim | None:
        """Claim the next trial; ``None`` if all are finished or claimed by other processes.

        In this order: trials that a process left unfinished, failures to retry, new trials.

        Args:
            space: of the points.
            total: trials in all.
            seed: of the sampler.
            retry: numbers of failed trials; those already retried are removed from the set.
            grid: take the points in order instead of sampling.
        """
        with self.locked():
            trials = self.trials()
            for trial in trials:
                if trial.state is TrialState.RUNNING and not self.is_alive(trial):
                    if self._attempts(trial) < MAX_ATTEMPTS:
                        log.info("sweep: trial %d was left unfinished; resuming it", trial.number)
                        return self._lock_trial(trial.number)
                    reason = (
                        f"its process died {MAX_ATTEMPTS} times without completing another epoch: "
                        "killed, or out of memory"
                    )
                    log.error("sweep: trial %d failed: %s", trial.number, reason)
                    self.fail(trial.number, reason)
            retry &= {trial.number for trial in trials}
            if retry:
                failed = self.trial(retry.pop())
                point = self.point(failed)
                return self._lock_trial(self._create(space, point, retries=failed.number))
            if len(trials) >= total:
                return None
            if not grid:
                return self._lock_trial(self._sample(space, trials, seed))
            found = next(self._remaining(space, trials), None)
            return None if found is None else self._lock_trial(self._create(space, found))

    def claim_point(self, space: Space, point: Point) -> Claim | FrozenTrial:
        """Claim the trial at a point that another sweeper has chosen.

        Returns:
            the claim of a new, unfinished or failed trial; otherwise the trial that has finished
            at this point or is running in another process.
        """
        with self.locked():
            failed: dict[str, int] = {}
            for trial in self.trials():
                if self.point(trial) != point:
                    continue
                if trial.state is TrialState.FAIL:
                    failed = {"retries": trial.number}
                elif trial.state is TrialState.RUNNING and not self.is_alive(trial):
                    return self._lock_trial(trial.number)
                else:
                    return trial
            return self._lock_trial(self._create(space, point, **failed))

    def report(self, number: int, values: Sequence[float]) -> None:
        """Finish a trial with a value of each objective."""
        self.optuna.tell(number, list(values), TrialState.COMPLETE)

    def prune(self, number: int, reason: str) -> None:
        """End a trial that the pruner stopped."""
        self.set_attrs(number, reason=reason)
        self.optuna.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """End a trial that raised an error."""
        self.set_attrs(number, reason=reason)
        self.optuna.tell(number, state=TrialState.FAIL)

    def forgive(self, number: int) -> None:
        """Do not count an attempt that the user interrupted.

        For the case that the trial's process died before it could record that itself.
        """
        trial = self.trial(number)
        attempts = trial.user_attrs.get("attempts", 0)
        recorded = trial.state.is_finished() or trial.user_attrs.get("reason")
        if attempts and not recorded and not self.is_alive(trial):
            self.set_attrs(number, attempts=attempts - 1, reason="interrupted")

    def _lock(self, number: int) -> FileLock:
        return FileLock(self.folder / f".trial_{number:04d}.lock")

    def _lock_trial(self, number: int) -> Claim:
        lock = self._lock(number)
        lock.acquire(timeout=LOCK_TIMEOUT)
        return Claim(number, self.point(self.trial(number)), lock)

    def _remaining(self, space: Space, trials: Sequence[FrozenTrial]) -> Iterator[Point]:
        """The points of a finite space that no trial has, in order."""
        taken = {frozenset(self.point(trial).items()) for trial in trials}
        return (point for point in space.points() if frozenset(point.items()) not in taken)

    def _attempts(self, trial: FrozenTrial) -> int:
        """Attempts that died since the trial last wrote a checkpoint."""
        attrs = trial.user_attrs
        run, known = self.run_of(trial), attrs.get("checkpoint", 0.0)
        if run is not None and checkpoint_time(run) > known:
            self.set_attrs(trial.number, attempts=0)
            return 0
        return int(attrs.get("attempts", 0))

    def _create(self, space: Space, point: Point, **attrs: Any) -> int:
        """Add a running trial at a point, with its attributes in one step."""
        self.optuna.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=self.stored_keys(point),
                distributions=self.stored_keys(space.axes),
                user_attrs={CLAIMED: True, **attrs},
            )
        )
        return self.optuna.get_trials(deepcopy=False)[-1].number

    def _sample(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> int:
        """A new trial at a sampled point; in a finite space at a point not tried before."""
        # With the seed alone, a resumed study would sample its first points again.
        count = len(self.optuna.get_trials(deepcopy=False))
        own = int(np.random.SeedSequence((seed, count)).generate_state(1)[0])
        self.optuna.sampler = self.sampler(own)
        try:
            trial = self.optuna.ask(self.stored_keys(space.axes))
        except StorageError:
            raise
        except Exception as error:  # of a sampler, for settings that it cannot use here
            raise UserError(
                "hydra/sweeper/sampler",
                f"hydra/sweeper/sampler: {type(self.optuna.sampler).__name__} found no point "
                f"({one_line(error)})",
                "change hydra.sweeper.sampler, or choose hydra/sweeper/sampler=random",
            ) from error
        params = {current_key(key): value for key, value in trial.params.items()}
        if space.size is None or all(self.point(each) != params for each in trials):
            trial.set_user_attr(CLAIMED, True)
            return trial.number
        self.optuna.tell(trial, state=TrialState.FAIL)
        remaining = list(self._remaining(space, trials))
        return self._create(space, remaining[own % len(remaining)])


def checkpoint_time(run: Path) -> float:
    """Modification time of a run's last checkpoint, in seconds; 0 without one."""
    last = run / "checkpoints" / "last.pt"
    return last.stat().st_mtime if last.exists() else 0.0
