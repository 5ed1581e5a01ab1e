"""Studies: Optuna's storage, the folder of runs, and locks that assign trials to processes."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
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
from research.engine.run_folder import ROOT, is_locked
from research.sweeps.objectives import Objective
from research.sweeps.space import Point, Space
from research.utils import secrets
from research.utils.errors import UserError, one_line
from research.utils.files import to_json, write_text

log = logging.getLogger(__name__)

STORE: Final = ROOT / "studies.journal"
FOLDER: Final = ROOT / "sweeps"
DESCRIPTION: Final = "study.json"
MAX_ATTEMPTS: Final = 3
"""A trial whose process died this often without completing another epoch is failed."""
CLAIMED: Final = "claimed"
"""User attribute of every trial that was assigned to a process."""
LOCK_TIMEOUT: Final = 2.0
"""Seconds; `Study.is_alive` of another process holds a lock for an instant."""


class JournalLock:
    """A journal lock that ends with its process; Optuna's own outlive a kill by half a minute."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.lock = FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        self.lock.acquire()
        _drop_partial_line(self.journal)
        return True

    def release(self) -> None:
        self.lock.release()


def _drop_partial_line(journal: Path) -> None:
    """Drop a record that was cut short, by a kill or a full disk."""
    with journal.open("rb+") as file:
        end = file.seek(0, 2)
        if end == 0:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def open_storage(url: str | None) -> BaseStorage:
    """The storage of all studies: ``runs/studies.journal``, or the database at ``url``.

    Raises:
        UserError: if the database cannot be opened.
    """
    if url is not None:
        shown = secrets.hide(url)
        whole = secrets.reveal(shown)
        if whole is None:
            raise UserError(
                "hydra.sweeper.storage",
                f"hydra.sweeper.storage={shown}: its password is not stored",
                "write it in place of ***",
            )
        try:
            return optuna.storages.RDBStorage(whole)
        except Exception as error:  # Optuna, SQLAlchemy or any database driver
            raise UserError(
                "hydra.sweeper.storage", f"hydra.sweeper.storage={shown}: {one_line(error)}"
            ) from error
    STORE.parent.mkdir(parents=True, exist_ok=True)
    STORE.touch()
    lock: Any = JournalLock(STORE)
    return JournalStorage(JournalFileBackend(str(STORE), lock_obj=lock))


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
        self.folder.mkdir(parents=True, exist_ok=True)
        pruner = pruner or optuna.pruners.NopPruner()
        self.sampler = sampler or optuna.samplers.RandomSampler
        with FileLock(FOLDER / ".store.lock"):
            # Databases too: processes would race on the creation of the tables.
            store = open_storage(url)
            if directions is not None:
                self._delete_if_folder_is_gone(store)
                optuna.create_study(
                    storage=store,
                    study_name=name,
                    directions=list(directions),  # type: ignore[arg-type]
                    load_if_exists=True,
                )
        self.optuna = OptunaStudy(name, store, self.sampler(0), pruner)

    def _delete_if_folder_is_gone(self, store: BaseStorage) -> None:
        """Delete the stored study if the user has deleted the sweep's folder."""
        if self.name not in optuna.get_all_study_names(store):
            return
        # In this order: no trial is claimed before the description is written.
        if OptunaStudy(self.name, store).get_trials(deepcopy=False) and not self.description:
            log.info("sweep: %s is missing; the study starts again", self.folder / DESCRIPTION)
            optuna.delete_study(study_name=self.name, storage=store)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other processes from claiming, ending and recording trials."""
        with FileLock(self.folder / ".study.lock"):
            yield

    # -- description -----------------------------------------------------------------------------

    @property
    def description(self) -> dict[str, Any]:
        """``study.json`` under current names; empty before it is written."""
        path = self.folder / DESCRIPTION
        return migrated(json.loads(path.read_text("utf-8")) if path.exists() else {})

    def describe(self, search: Mapping[str, Any], **settings: Any) -> None:
        """Write ``study.json``; a resumed study keeps its first command and start time.

        Args:
            search: what identifies the study, see ``search_settings``.
            settings: what may differ each time.

        Raises:
            UserError: if the folder belongs to another search.
        """
        known = self.description
        for key, value in search.items():
            if known and known[key] != value:
                raise UserError(
                    "hydra.sweeper.study_name",
                    f"hydra.sweeper.study_name={self.name}: {self.folder} belongs to another "
                    f"search, {key} {json.dumps(known[key])}",
                    "choose another name",
                )
        first = {key: known[key] for key in ("command", "started") if key in known}
        started = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"study": self.name, **search, "command": sys.argv, **settings}
        write_text(self.folder / DESCRIPTION, to_json({**content, "started": started, **first}))

    # -- trials ----------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """All trials but rejected proposals and failures that were retried.

        If a process dies while Optuna samples a point, the trial has no values and no claim.
        """
        every = [t for t in self.optuna.get_trials(deepcopy=False) if CLAIMED in t.user_attrs]
        retried = {trial.user_attrs.get("retries") for trial in every}
        return [trial for trial in every if trial.number not in retried]

    def trial(self, number: int) -> FrozenTrial:
        return self.optuna.get_trials(deepcopy=False)[number]

    @staticmethod
    def point(trial: FrozenTrial) -> Point:
        """A trial's values, under current key names."""
        return {current_key(key): value for key, value in trial.params.items()}

    def _stored_keys(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Current keys as this study's storage has them, so that samplers see one axis."""
        every = self.optuna.get_trials(deepcopy=False)
        names = {current_key(key): key for trial in every for key in trial.params}
        return {names.get(key, key): value for key, value in values.items()}

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

    def is_alive(self, trial: FrozenTrial) -> bool:
        """Whether a process is running the trial."""
        run = trial.user_attrs.get("run")
        if run is not None and is_locked(Path(run)):
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
            taken = [self.point(trial) for trial in trials]
            if not grid:
                return self._lock_trial(self._sample(space, taken, seed))
            remaining = self._remaining(space, taken)
            return self._lock_trial(self._create(space, remaining[0])) if remaining else None

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

    @staticmethod
    def _remaining(space: Space, taken: Sequence[Point]) -> list[Point]:
        return [point for point in space.points() if point not in taken]

    def _attempts(self, trial: FrozenTrial) -> int:
        """Attempts that died since the trial last wrote a checkpoint."""
        attrs = trial.user_attrs
        known = attrs.get("checkpoint", 0.0)
        if "run" in attrs and checkpoint_time(Path(attrs["run"])) > known:
            self.set_attrs(trial.number, attempts=0)
            return 0
        return int(attrs.get("attempts", 0))

    def _create(self, space: Space, point: Point, **attrs: Any) -> int:
        """Add a running trial at a point, with its attributes in one step."""
        self.optuna.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=self._stored_keys(point),
                distributions=self._stored_keys(space.axes),
                user_attrs={CLAIMED: True, **attrs},
            )
        )
        return self.optuna.get_trials(deepcopy=False)[-1].number

    def _sample(self, space: Space, taken: Sequence[Point], seed: int) -> int:
        """A new trial at a sampled point; in a finite space at a point not tried before."""
        # With the seed alone, a resumed study would sample its first points again.
        count = len(self.optuna.get_trials(deepcopy=False))
        own = int(np.random.SeedSequence((seed, count)).generate_state(1)[0])
        self.optuna.sampler = self.sampler(own)
        trial = self.optuna.ask(self._stored_keys(space.axes))
        params = {current_key(key): value for key, value in trial.params.items()}
        if space.size is None or params not in taken:
            trial.set_user_attr(CLAIMED, True)
            return trial.number
        self.optuna.tell(trial, state=TrialState.FAIL)
        remaining = self._remaining(space, taken)
        return self._create(space, remaining[own % len(remaining)])


def migrated(description: Mapping[str, Any]) -> dict[str, Any]:
    """A ``study.json`` of any version under current names."""
    content = secrets.redacted(dict(description))
    if "space" in content:
        content["space"] = {current_key(key): text for key, text in content["space"].items()}
    if "fixed" in content:
        content["fixed"] = sorted(current_word(word) for word in content["fixed"])
    if "objectives" in content:
        content["objectives"] = [
            {**each, "name": current_column(each["name"])} for each in content["objectives"]
        ]
    if "monitor" in content:
        metric, _, mode = content["monitor"].rpartition(":")
        content["monitor"] = f"{current_column(metric)}:{mode}"
    return content


def search_settings(
    wanted: Sequence[Objective], space: Space, storage: str | None, sampler: str
) -> dict[str, Any]:
    """What identifies a study, as in ``study.json``.

    Args:
        wanted: the objectives.
        space: of the sweep.
        storage: URL of the storage; ``None`` for the journal under ``runs/``.
        sampler: the name of its class.
    """
    return {
        "objectives": [objective._asdict() for objective in wanted],
        "space": space.expressions,
        "fixed": space.identity,
        "storage": secrets.hide(storage) if storage else str(STORE),
        "sampler": sampler,
    }


def find_name(search: Mapping[str, Any], name_of: Callable[[Mapping[str, Any]], str]) -> str:
    """The name of a search's study, which may have started under names of an earlier version.

    Args:
        search: the search settings.
        name_of: the name under which a search starts.
    """
    for path in sorted(FOLDER.glob(f"*/{DESCRIPTION}")):
        try:
            description = json.loads(path.read_text("utf-8"))
            stored = {key: description[key] for key in search}
            if migrated(stored) == search and name_of(stored) == path.parent.name:
                return path.parent.name
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: ignoring a damaged study (%s)", path, one_line(error))
    return name_of(search)


def checkpoint_time(run: Path) -> float:
    """Modification time of a run's last checkpoint, in seconds; 0 without one."""
    last = run / "checkpoints" / "last.pt"
    return last.stat().st_mtime if last.exists() else 0.0
