"""Delivers records of trials that a tracker's store did not accept when they ended.

Nobody resumes a trial that has finished, so the sweep does it: at its end, and when its command is
run again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from research.config import run_files
from research.engine import build, run_folder
from research.sweeps.parent import trial_tags
from research.tracking.spool import LARGEST, read_run_id
from research.tracking.tracker import Position, Run, Status, Tracker
from research.utils import documents
from research.utils.counts import counted
from research.utils.errors import UserError, one_line

log = logging.getLogger(__name__)

PATIENCE: Final = 600.0
"""Seconds for which the end of a sweep waits for a store that does not answer."""
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 60.0
"""Seconds between two attempts; each is twice as long as the one before."""
END: Final = Position(LARGEST, LARGEST, LARGEST)


@dataclass(frozen=True)
class EndedRun:
    """The run of a trial that has ended.

    Attributes:
        folder: of the run, in that of its study.
        number: of the trial.
        status: of the trial.
    """

    folder: Path
    number: int
    status: Status


def deliver(
    runs: Sequence[EndedRun],
    config: Mapping[str, Any],
    create_parent: Callable[[], object],
    patience: float,
) -> None:
    """Deliver the records of runs that still wait.

    Args:
        runs: that have ended.
        config: of this process, with its trackers.
        create_parent: records the parent run of the trials, without which they are not nested.
        patience: seconds for which a store is waited for that does not answer.
    """
    trackers = build.trackers(config)
    waiting = [run for run in runs if any(each.waits(run.folder) for each in trackers)]
    count, begin, pause = len(waiting), time.monotonic(), FIRST_PAUSE
    while waiting:
        if not read_run_id(waiting[0].folder.parent):
            create_parent()
        waiting = [run for run in waiting if not _deliver(run, trackers, config["trust"])]
        if not waiting or time.monotonic() + pause > begin + patience:
            break
        if pause == FIRST_PAUSE:
            trials = counted(len(waiting), "trials")
            log.warning("sweep: records of %s wait for their store", trials)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    if waiting:
        log.warning(
            "sweep: records of %s wait in their folders; run the same command again to deliver "
            "them",
            counted(len(waiting), "trials"),
        )
    elif count:
        log.info("sweep: records of %s were delivered", counted(count, "trials"))


def _deliver(ended: EndedRun, trackers: Sequence[Tracker], trust: Collection[str]) -> bool:
    """Deliver the records of a run; whether none waits any more, or none can be delivered."""
    waiting = [tracker for tracker in trackers if tracker.waits(ended.folder)]
    try:
        with run_folder.run_lock(ended.folder):
            run = _read(ended, trust)
            return all(tracker.deliver(run, ended.status) for tracker in waiting)
    except (UserError, AttributeError, KeyError, TypeError, OSError) as error:
        # In use by another process, or damaged.
        log.warning("sweep: records of %s are not delivered (%s)", ended.folder, one_line(error))
        return True


def _read(ended: EndedRun, trust: Collection[str]) -> Run:
    """What trackers got at the start of a run.

    Raises:
        UserError: if a file of the run is missing or damaged; also AttributeError, KeyError,
            TypeError.
    """
    folder = ended.folder
    config = run_files.configuration(folder, trust)
    environment = documents.load(folder / "environment.json", dict, "resume")
    data = environment["data"]
    own = trial_tags(folder.parent, ended.number)
    tags = run_folder.tags({**config["tags"], **own}, environment)
    return Run(
        folder, run_files.name(folder), config, tags, (data["name"], data["hash"]), resumed=END
    )
