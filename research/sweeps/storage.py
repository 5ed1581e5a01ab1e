"""The storage of all studies: Optuna's journal under ``runs/``, or a database."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import optuna
from filelock import FileLock
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from research.engine.run_folder import ROOT
from research.utils import secrets
from research.utils.errors import UserError, causes, one_line
from research.utils.pace import Pace

log = logging.getLogger(__name__)
T = TypeVar("T")

STORE: Final = ROOT / "studies.journal"
LOCKED_SECONDS: Final = 60.0
"""How long a database file that another process has locked is waited for."""
CONNECT_SECONDS: Final = 10
"""Of PostgreSQL, whose client would wait for minutes for a machine that is not there."""
TAIL: Final = 2**16
"""Bytes in which the last record of the journal is looked for before the whole file is read."""
PATIENCE: Final = 600.0
"""Seconds for which a database server that does not answer is waited for."""
AGAIN: Final = "run the same command again when it works: trials go on from their last checkpoints"
SETTING: Final = "hydra.sweeper.storage="
NOT_A_DATABASE: Final = ("not a database", "malformed", "encrypted")
"""Words of SQLite about a damaged file."""


class StorageError(UserError):
    """The storage of a study cannot be read or written; the trial at work is not to blame.

    Attributes:
        temporary: whether it is a server that does not answer, and may do so later.
    """

    def __init__(
        self, name: str, reason: str, hint: str = AGAIN, *, temporary: bool = False
    ) -> None:
        super().__init__("hydra.sweeper.storage", f"{name}: {reason}", hint)
        self.name, self.reason, self.temporary = name, reason, temporary

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.reason, self.hint)


def outlast(call: Callable[[], T]) -> T:
    """The result of a call, which is repeated while a database server does not answer.

    Raises:
        StorageError: if it has not answered for ``PATIENCE``, or for another failure.
    """
    end, said = time.monotonic() + PATIENCE, False
    while True:
        try:
            result = call()
        except StorageError as error:
            if not error.temporary or time.monotonic() > end:
                raise
            if not said:
                log.warning("sweep: %s does not answer (%s); waiting", error.name, error.reason)
            said = True
            time.sleep(1)
        else:
            if said:
                log.warning("sweep: the storage answers again")
            return result


class EndedTrial(NamedTuple):
    """A trial that has ended, its entry in ``final_summary.json``, and the text of that."""

    trial: FrozenTrial
    entry: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Ended:
    """What a process keeps of the ended trials of a study, which do not change any more.

    Attributes:
        first: the first trials in the storage, up to one that has not ended.
        claimed: those of them that are claimed, and valid.
        retried: numbers of failed trials that others retry, and None.
        entries: trials that were recorded, by number.
        written: when the summary may be written again.
        drawn: when the parent run may be updated again.
    """

    first: list[FrozenTrial] = field(default_factory=list)
    claimed: list[FrozenTrial] = field(default_factory=list)
    retried: set[int | None] = field(default_factory=set)
    entries: dict[int, EndedTrial] = field(default_factory=dict)
    written: Pace = field(default_factory=Pace)
    drawn: Pace = field(default_factory=Pace)

    def forget_others(self, trials: Sequence[FrozenTrial]) -> None:
        """Forget everything if these are not the trials of before: the study was created anew."""
        count = len(self.first)
        if count and (len(trials) < count or trials[count - 1] is not self.first[-1]):
            self.first.clear()
            self.claimed.clear()
            self.retried.clear()
            self.entries.clear()


class GuardedStorage:
    """An Optuna storage whose every failure is a ``StorageError``; a server is waited for.

    Args:
        storage: Optuna's.
        name: of the file or the setting, for messages.
        in_database: whether it is a database, which may be busy or unreachable.
    """

    def __init__(self, storage: BaseStorage, name: str, *, in_database: bool = False) -> None:
        self._storage = storage
        self.name = name
        self.in_database = in_database
        self.ended: dict[str, Ended] = defaultdict(Ended)

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self.__dict__["_storage"], attribute)
        if not callable(value):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return value(*arguments, **named)
            except (DuplicatedStudyError, UpdateFinishedTrialError):
                raise  # answers, not failures
            except Exception as error:  # of Optuna, SQLAlchemy or any database driver
                raise _failure(self.name, error) from error

        def call_patiently(*arguments: Any, **named: Any) -> Any:
            return outlast(lambda: call(*arguments, **named))

        # A trial whose creation is not known to have failed would be created twice.
        return call if attribute == "create_new_trial" else call_patiently


def _failure(name: str, error: Exception) -> StorageError:
    # Optuna's own message is the same for every failure of a database.
    reason = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
    if any(word in reason for word in NOT_A_DATABASE):
        hint = (
            "move the file away and run the same command again: trials are restored from "
            "runs/sweeps/STUDY/final_summary.json"
        )
        return StorageError(name, reason, hint)
    from sqlalchemy.exc import InterfaceError, OperationalError

    server = name.startswith(SETTING) and not name.startswith(f"{SETTING}sqlite")
    lost = any(isinstance(each, OperationalError | InterfaceError) for each in causes(error))
    return StorageError(name, reason, temporary=server and lost)


class JournalLock:
    """A journal lock that ends with its process; Optuna's own outlive a kill by half a minute."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.lock = FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        self.lock.acquire()
        _drop_damaged_end(self.journal)
        return True

    def release(self) -> None:
        self.lock.release()


def _drop_damaged_end(journal: Path) -> None:
    """Drop a last record that was cut short, by a kill, a full disk or a power failure."""
    with journal.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - TAIL))
        tail = file.read()
        if end > TAIL and b"\n" not in tail[:-1]:
            file.seek(0)
            tail = file.read()
        if not tail or (tail.endswith(b"\n") and _is_json(tail[:-1].rpartition(b"\n")[2])):
            return
        kept = tail[:-1].rpartition(b"\n")
        file.truncate(end - len(tail) + len(kept[0] + kept[1]))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class Journal(JournalFileBackend):
    """Optuna's journal, which notices when the file has lost records that were read from it."""

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        read = self._log_number_offset.get(log_number_from, 0)
        if os.stat(self._file_path).st_size < read:
            raise ValueError("it has become shorter while it was in use")
        yield from super().read_logs(log_number_from)


_opened: dict[tuple[Any, ...], GuardedStorage] = {}
"""The storage that this process has opened last."""


def open_storage(url: str | None, *, repair: bool) -> Any:
    """The storage of all studies: ``runs/studies.journal``, or the database at ``url``.

    The jobs of a sweep that run in its own process, one after the other, share what it has opened:
    to open it is to read all trials of all studies.

    Args:
        url: of the database.
        repair: whether a damaged journal is set aside for a new one, to which the trials of a study
            are restored when it is opened.

    Raises:
        StorageError: if it cannot be opened.
    """
    if repair or _identity(url) not in _opened:
        storage = _open(url, repair=repair)
        _opened.clear()
        _opened[_identity(url)] = storage
    return _opened[_identity(url)]


def _identity(url: str | None) -> tuple[Any, ...]:
    """Of an open storage: a forked process opens its own, and so does one whose file is new."""
    if url is None and STORE.exists():
        about = STORE.stat()
        return os.getpid(), about.st_dev, about.st_ino
    return os.getpid(), os.getcwd(), url


def _open(url: str | None, *, repair: bool) -> GuardedStorage:
    if url is not None:
        shown = secrets.hide(url)
        name, whole = f"{SETTING}{shown}", secrets.reveal(shown)
        if whole is None:
            raise StorageError(name, "its password is not stored", "write it in place of ***")
        options: dict[str, Any] = {"pool_pre_ping": True}
        if url.startswith("sqlite"):
            options = {"connect_args": {"timeout": LOCKED_SECONDS}}
        if url.startswith("postgresql") and "connect_timeout" not in url:
            options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
        try:
            database = optuna.storages.RDBStorage(whole, engine_kwargs=options)
        except Exception as error:  # of Optuna, SQLAlchemy or any database driver
            raise _failure(name, error) from error
        return GuardedStorage(optuna.storages.get_storage(database), name, in_database=True)
    try:
        STORE.parent.mkdir(parents=True, exist_ok=True)
        STORE.touch()
        try:
            journal = _open_journal()
        except Exception as error:
            if isinstance(error, OSError) or not repair:
                raise
            aside = STORE.with_name(f"{STORE.name}.damaged_{datetime.now():%Y-%m-%d_%H-%M-%S}")
            os.replace(STORE, aside)
            STORE.touch()
            log.warning(
                "sweep: %s was damaged (%s) and is now %s; the trials of each study are restored "
                "from its final_summary.json",
                STORE,
                one_line(error),
                aside,
            )
            journal = _open_journal()
    except Exception as error:  # any, while records are replayed
        raise _failure(str(STORE), error) from error
    return GuardedStorage(journal, str(STORE))


def _open_journal() -> JournalStorage:
    lock: Any = JournalLock(STORE)
    return JournalStorage(Journal(str(STORE), lock_obj=lock))
