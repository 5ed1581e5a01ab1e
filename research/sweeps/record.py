"""``final_summary.json``: what became of every job of a multirun, true after each of them."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.types import RunMode

from research.errors import one_line
from research.files import write_text

log = logging.getLogger(__name__)

NAME = "final_summary.json"
TOLD = (
    "model",
    "parameters",
    "epochs_done",
    "best_epoch",
    "best_value",
    "monitor",
    "total_time_sec",
    "paths",
)
"""What a job's entry takes over from its run's ``summary.json``."""


@dataclass
class Job:
    """What a job says of itself while it goes on.

    Attributes:
        run: its run folder, as soon as it has one.
    """

    run: Path | None = None


def of_job(hydra: Any) -> AbstractContextManager[Job]:
    """``recorded`` for a job of Hydra's; no record of a run that is no job of a multirun.

    Args:
        hydra: Hydra's own configuration, as in ``HydraConfig.get()``.
    """
    if hydra.mode is not RunMode.MULTIRUN:
        return nullcontext(Job())
    return recorded(Path(hydra.sweep.dir), hydra.job.num, hydra.overrides.task)


@contextmanager
def recorded(sweep: Path, number: int, overrides: Sequence[str]) -> Iterator[Job]:
    """Enter one job into the sweep's summary, whatever becomes of it.

    The file has the keys ``command``, ``started``, ``timestamp``, ``total_time_sec``, ``counts``
    by status, and ``jobs``: of each its ``overrides``, ``status`` (``FINISHED``, ``FAILED`` or
    ``KILLED``), ``reason``, ``seconds``, and of its run model, parameters, best epoch and value,
    and paths. Jobs of several processes may write at once.

    Args:
        sweep: folder of the multirun.
        number: the job's, from 0.
        overrides: its own, the swept values among them.
    """
    began, entered = time.perf_counter(), datetime.now(UTC)
    status, reason = "FINISHED", ""
    job = Job()
    try:
        yield job
    except KeyboardInterrupt:
        status, reason = "KILLED", "interrupted"
        raise
    except Exception as error:
        status, reason = "FAILED", f"{type(error).__name__}: {one_line(error)}"
        _let_go(error)
        raise
    finally:
        entry = {
            "job": number,
            "overrides": list(overrides),
            "status": status,
            "reason": reason,
            "started": entered.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - began,
            **_of_run(job.run),
        }
        _enter(sweep, entry)


def _let_go(error: BaseException | None) -> None:
    """Free what an exception's frames hold: Hydra keeps it until all jobs are done.

    Of a network that did not fit into memory nothing must stay there for the next one.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _of_run(run: Path | None) -> dict[str, Any]:
    """What a run tells of itself; its folder alone when it ended before it could."""
    if run is None:
        return {}
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"paths": {"run": str(run)}}
    return {key: summary[key] for key in TOLD}


def _enter(sweep: Path, entry: dict[str, Any]) -> None:
    sweep.mkdir(parents=True, exist_ok=True)
    path, now = sweep / NAME, datetime.now(UTC)
    with FileLock(sweep / f".{NAME}.lock"):
        jobs = json.loads(path.read_text(encoding="utf-8"))["jobs"] if path.exists() else []
        jobs = [job for job in jobs if job["job"] != entry["job"]] + [entry]
        jobs.sort(key=lambda job: job["job"])
        started = min(job["started"] for job in jobs)
        counts = dict(sorted(Counter(job["status"] for job in jobs).items()))
        summary = {
            "command": sys.argv,
            "started": started,
            "timestamp": now.isoformat(timespec="seconds"),
            "total_time_sec": (now - datetime.fromisoformat(started)).total_seconds(),
            "counts": counts,
            "jobs": jobs,
        }
        write_text(path, json.dumps(summary, indent=1))
    told = ", ".join(f"{count} {status.lower()}" for status, count in counts.items())
    log.info("sweep: job %d ended; so far %s (%s)", entry["job"], told, path)
