"""A study: its store, its folder, and who is at which of its trials."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from research.config.migrations import current_column, current_key, current_word
from research.engine.run_folder import ROOT, busy
from research.sweeps.space import Point, Space
from research.utils.errors import UserError, one_line
from research.utils.files import to_json, write_text

log = logging.getLogger(__name__)

STORE: Final = ROOT / "studies.journal"
FOLDER: Final = ROOT / "sweeps"
ABOUT: Final = "study.json"
MOST_ATTEMPTS: Final = 3
"""A trial whose process dies so often without getting further is not tried again."""
CLAIMED: Final = "claimed"
"""Says of a trial that its point was taken."""
PROBE: Final = 2.0
"""Seconds; others hold a lock for an instant, to see whether it is held."""


class JournalLock:
    """Optuna's own locks outlive a killed process by half a minute; this one ends with it."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.lock = FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        self.lock.acquire()
        _cut_torn_line(self.journal)
        return True

    def release(self) -> None:
        self.lock.release()


def _cut_torn_line(journal: Path) -> None:
    """Drop what a process that was killed (or a full disk) left of a record."""
    with journal.open("rb+") as file:
        end = file.seek(0, 2)
        if end == 0:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def storage(url: str | None) -> BaseStorage:
    """The store of all studies: ``runs/studies.journal``, or a database.

    Raises:
        UserError: for a database that cannot be opened.
    """
    if url is not None:
        try:
            return optuna.storages.RDBStorage(url)
        except Exception as error:  # of Optuna, SQLAlchemy, and any database's driver
            raise UserError(
                "hydra.sweeper.storage", f"hydra.sweeper.storage={url}: {one_line(error)}"
            ) from error
    STORE.parent.mkdir(parents=True, exist_ok=True)
    STORE.touch()
    lock: Any = JournalLock(STORE)
    return JournalStorage(JournalFileBackend(str(STORE), lock_obj=lock))


@dataclass(frozen=True)
class Claim:
    """A trial that this process is to run.

    Attributes:
        number: Optuna's, from 0.
        point: its values.
        held: says to other processes that somebody is at it.
    """

    number: int
    point: Point
    held: FileLock


class Study:
    """An Optuna study with the folder of its runs.

    Args:
        name: of the study and its folder.
        url: of the store; null: the journal under ``runs/``.
        sampler: makes what proposes points, from a seed; null where none are asked for.
        pruner: stops trials; null: none.
        directions: of the objectives; null opens a study that is there.
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
        self.folder.mkdir(parents=True, exist_ok=True)
        pruner = pruner or optuna.pruners.NopPruner()
        self.sampler = sampler or optuna.samplers.RandomSampler
        with FileLock(FOLDER / ".store.lock"):
            # Of a database too: parallel first use would race on the creation of its tables.
            store = storage(url)
            if directions is not None:
                self._forget_what_was_deleted(store)
                optuna.create_study(
                    storage=store,
                    study_name=name,
                    directions=list(directions),  # type: ignore[arg-type]
                    load_if_exists=True,
                )
        self.optuna = OptunaStudy(name, store, self.sampler(0), pruner)

    def _forget_what_was_deleted(self, store: BaseStorage) -> None:
        """Whoever deletes a sweep's folder means its study, too."""
        if self.name not in optuna.get_all_study_names(store):
            return
        # In this order: nobody claims a trial before the study is described.
        if OptunaStudy(self.name, store).get_trials(deepcopy=False) and not self.about:
            log.info("sweep: %s is gone; its study begins anew", self.folder / ABOUT)
            optuna.delete_study(study_name=self.name, storage=store)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other process claims, ends or records trials meanwhile."""
        with FileLock(self.folder / ".study.lock"):
            yield

    # -- what is written once --------------------------------------------------------------------

    @property
    def about(self) -> dict[str, Any]:
        """What ``study.json`` says, under the names of today; empty before it is written."""
        path = self.folder / ABOUT
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return current(found)

    def describe(self, about: Mapping[str, Any]) -> None:
        write_text(self.folder / ABOUT, to_json(dict(about)))

    def begin(self, search: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        """Write ``study.json``; of a study that goes on it keeps its first command and start.

        Args:
            search: what is searched, by which a study is recognised.
            more: what may be another each time.

        Raises:
            UserError: when the folder is of another search.
        """
        known = self.about
        for key, value in search.items():
            if known and known[key] != value:
                raise UserError(
                    "hydra.sweeper.study_name",
                    f"hydra.sweeper.study_name={self.name}: {self.folder} is of another search, "
                    f"{key} {json.dumps(known[key])}",
                    "choose another name",
                )
        first: dict[str, Any] = {k: known[k] for k in ("command", "started") if k in known}
        self.describe({"study": self.name, **search, **more, **first})

    # -- trials ----------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """Those that count: no proposal that was not taken, no failure that was tried again.

        A process may die while Optuna draws a point: such a trial has no values, and no claim.
        """
        every = [t for t in self.optuna.get_trials(deepcopy=False) if CLAIMED in t.user_attrs]
        retried = {trial.user_attrs.get("retries") for trial in every}
        return [trial for trial in every if trial.number not in retried]

    def trial(self, number: int) -> FrozenTrial:
        return self.optuna.get_trials(deepcopy=False)[number]

    @staticmethod
    def point(trial: FrozenTrial) -> Point:
        """A trial's values, under the names of today."""
        return {current_key(key): value for key, value in trial.params.items()}

    def _in_store(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keys of today as this study's store has them, so that samplers see one axis."""
        every = self.optuna.get_trials(deepcopy=False)
        names = {current_key(key): key for trial in every for key in trial.params}
        return {names.get(key, key): value for key, value in values.items()}

    def going(self, number: int) -> Trial:
        """A trial that goes on, to be reported on."""
        return Trial(self.optuna, self.trial(number)._trial_id)

    def note(self, number: int, **facts: Any) -> None:
        """Facts about a trial that goes on."""
        going = self.going(number)
        for key, value in facts.items():
            going.set_user_attr(key, value)

    def run_folder(self, number: int, beginning: int) -> Path:
        """Where a trial's run is; one that had to begin anew has several."""
        return self.folder / (f"trial_{number:04d}" + (f"_{beginning}" if beginning > 1 else ""))

    def is_alive(self, trial: FrozenTrial) -> bool:
        """Whether some process is at it."""
        run = trial.user_attrs.get("run")
        if run is not None and busy(Path(run)):
            return True
        lock = self._lock(trial.number)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def claim(
        self, space: Space, total: int, seed: int, retry: set[int], *, grid: bool
    ) -> Claim | None:
        """A trial to run, or null when all are finished or in other hands.

        First those that a process left behind, then failures to be tried again, then new ones.

        Args:
            space: of the points.
            total: trials in all.
            seed: of the sampler.
            retry: numbers of failed trials; those that somebody tried again are taken out.
            grid: points in order, not as the sampler likes.
        """
        with self.locked():
            trials = self.trials()
            for trial in trials:
                if trial.state is TrialState.RUNNING and not self.is_alive(trial):
                    if self._attempts(trial) < MOST_ATTEMPTS:
                        log.info("sweep: trial %d was left unfinished; it goes on", trial.number)
                        return self._claimed(trial.number)
                    died = (
                        f"its process died {MOST_ATTEMPTS} times without another epoch: killed, or "
                        "out of memory"
                    )
                    log.error("sweep: trial %d failed: %s", trial.number, died)
                    self.fail(trial.number, died)
            retry &= {trial.number for trial in trials}
            if retry:
                failed = self.trial(retry.pop())
                point = self.point(failed)
                return self._claimed(self._create(space, point, retries=failed.number))
            if len(trials) >= total:
                return None
            taken = [self.point(trial) for trial in trials]
            if not grid:
                return self._claimed(self._ask(space, taken, seed))
            left = self._untaken(space, taken)
            return self._claimed(self._create(space, left[0])) if left else None

    def take(self, space: Space, point: Point) -> Claim | FrozenTrial:
        """The trial at a point that somebody else has chosen.

        Returns:
            a trial to run: a new one, one that was left behind, or a failure tried again; else
            the trial that has finished there, or that another process is at.
        """
        with self.locked():
            failed: dict[str, int] = {}
            for trial in self.trials():
                if self.point(trial) != point:
                    continue
                if trial.state is TrialState.FAIL:
                    failed = {"retries": trial.number}
                elif trial.state is TrialState.RUNNING and not self.is_alive(trial):
                    return self._claimed(trial.number)
                else:
                    return trial
            return self._claimed(self._create(space, point, **failed))

    def tell(self, number: int, values: Sequence[float]) -> None:
        """A trial has finished, with a value of each objective."""
        self.optuna.tell(number, list(values), TrialState.COMPLETE)

    def prune(self, number: int, reason: str) -> None:
        """A trial was stopped, being worse than others."""
        self.note(number, reason=reason)
        self.optuna.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """A trial ended by an error."""
        self.note(number, reason=reason)
        self.optuna.tell(number, state=TrialState.FAIL)

    def excuse(self, number: int) -> None:
        """A trial was interrupted, and its process may have died before it could say so itself.

        It is no fault of the trial's, so this attempt does not count.
        """
        trial = self.trial(number)
        attempts = trial.user_attrs.get("attempts", 0)
        told = trial.state.is_finished() or trial.user_attrs.get("reason")
        if attempts and not told and not self.is_alive(trial):
            self.note(number, attempts=attempts - 1, reason="interrupted")

    def _lock(self, number: int) -> FileLock:
        return FileLock(self.folder / f".trial_{number:04d}.lock")

    def _claimed(self, number: int) -> Claim:
        lock = self._lock(number)
        lock.acquire(timeout=PROBE)  # another process may just be asking whether it is held
        return Claim(number, self.point(self.trial(number)), lock)

    @staticmethod
    def _untaken(space: Space, taken: Sequence[Point]) -> list[Point]:
        return [point for point in space.points() if point not in taken]

    def _attempts(self, trial: FrozenTrial) -> int:
        """How often a process has died at it since it last got an epoch further."""
        facts = trial.user_attrs
        known = facts.get("checkpoint", 0.0)
        if "run" in facts and checkpoint_time(Path(facts["run"])) > known:
            self.note(trial.number, attempts=0)
            return 0
        return int(facts.get("attempts", 0))

    def _create(self, space: Space, point: Point, **facts: Any) -> int:
        """A trial at a point, at once with all that is said of it."""
        self.optuna.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=self._in_store(point),
                distributions=self._in_store(space.axes),
                user_attrs={CLAIMED: True, **facts},
            )
        )
        return self.optuna.get_trials(deepcopy=False)[-1].number

    def _ask(self, space: Space, taken: Sequence[Point], seed: int) -> int:
        """A new trial where the sampler likes; of a finite space at a new point."""
        # A sampler of one seed would begin a study that goes on with its first points again.
        count = len(self.optuna.get_trials(deepcopy=False))
        own = int(np.random.SeedSequence((seed, count)).generate_state(1)[0])
        self.optuna.sampler = self.sampler(own)
        trial = self.optuna.ask(self._in_store(space.axes))
        params = {current_key(key): value for key, value in trial.params.items()}
        if space.size is None or params not in taken:
            trial.set_user_attr(CLAIMED, True)
            return trial.number
        self.optuna.tell(trial, state=TrialState.FAIL)
        left = self._untaken(space, taken)
        return self._create(space, left[own % len(left)])


def current(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``study.json`` of any version says, under the names of today."""
    found = dict(about)
    if "space" in found:
        found["space"] = {current_key(key): told for key, told in found["space"].items()}
    if "fixed" in found:
        found["fixed"] = sorted(current_word(word) for word in found["fixed"])
    if "objectives" in found:
        found["objectives"] = [
            {**each, "name": current_column(each["name"])} for each in found["objectives"]
        ]
    if "monitor" in found:
        metric, _, mode = found["monitor"].rpartition(":")
        found["monitor"] = f"{current_column(metric)}:{mode}"
    return found


def known_as(search: Mapping[str, Any], name_of: Callable[[Mapping[str, Any]], str]) -> str:
    """The name of the study of a search, which may have begun under names of an earlier version.

    Args:
        search: what is searched.
        name_of: gives the name under which a search begins.
    """
    for path in sorted(FOLDER.glob(f"*/{ABOUT}")):
        try:
            about = json.loads(path.read_text("utf-8"))
            then = {key: about[key] for key in search}
            if current(then) == search and name_of(then) == path.parent.name:
                return path.parent.name
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: a damaged study, passed over (%s)", path, one_line(error))
    return name_of(search)


def checkpoint_time(run: Path) -> float:
    """When a run last wrote a checkpoint, in seconds; 0 before the first."""
    last = run / "checkpoints" / "last.pt"
    return last.stat().st_mtime if last.exists() else 0.0
