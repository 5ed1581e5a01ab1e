"""Runs what is undone of studies: prepares stores, trains, evaluates, records.

Everything heavy is done by processes of its own, with their output in a file beside the run folder:
a run that fails is reported, and the others go on.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any, Final

from filelock import FileLock, Timeout

from research.config.overrides import override
from research.config.run_paths import ROOT
from research.studies import record, recording
from research.studies.definition import StudyDefinition, StudyRun, placeholder
from research.studies.plan import HOUR, StudyPlan, hours_text, look_up
from research.utils import documents
from research.utils.errors import UserError
from research.utils.files import to_json, write_text
from research.utils.installation import HOME
from research.utils.progress import Phase

log = logging.getLogger(__name__)

RUNS: Final = ROOT / "studies"
STORES: Final = ROOT / "study_stores"
LAST_LINES: Final = 4096
"""Bytes at the end of a process's output in which the reason of its failure is looked for."""


BETWEEN_LOOKS: Final = 2.0
"""Seconds."""


class Failed(Exception):
    """A process that ended with an error; the message is its last line."""


@dataclass
class StudyProgress:
    """Of all runs that one command does.

    Attributes:
        total: number of runs.
        hours: that they need.
        done: number of runs that ended, were found recorded, or failed.
        failed: names of runs with the reasons.
    """

    total: int
    hours: float
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def run_plans(
    plans: Sequence[StudyPlan], docs: Path, data: Mapping[str, Path], hours: float | None
) -> StudyProgress:
    """Do the undone runs of studies, and write their records.

    Several processes may do so at once: each run is locked by the one that does it.

    Args:
        plans: of the studies, whose data are all known.
        docs: folder of definitions and records.
        data: the path of each name.
        hours: start no run that would probably end later than this; None: no limit.
    """
    state = StudyProgress(
        sum(len(each.undone) for each in plans), sum(each.hours for each in plans)
    )
    start = time.monotonic()
    with _sigterm_interrupts():
        for each in plans:
            try:
                places = _places(each, data)
            except (Failed, UserError) as error:
                _fail(state, each.study.name, str(error), len(each.undone), each.hours)
                continue
            for planned in each.undone:
                needed = each.hours_of(planned.run.arm)
                spent = (time.monotonic() - start) / HOUR
                if hours is not None and spent + needed > hours:
                    log.info("hours=%g: %s is left for later", hours, planned.run.name)
                else:
                    _one(planned.run, docs, places, state)
                state.done += 1
                state.hours -= needed
    return state


def _one(run: StudyRun, docs: Path, places: Mapping[str, str], state: StudyProgress) -> None:
    """Do one run, unless it is done or another process is at it."""
    folder = RUNS / run.study.name / run.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    label = f"{run.study.name} {run.name}"
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            if look_up(run, docs).state == "recorded":
                log.info("%s: was recorded meanwhile", label)
                return
            left = hours_text(state.hours)
            log.info("run %d of %d, about %s left: %s", state.done + 1, state.total, left, label)
            begin = time.monotonic()
            made = _run_benchmark if run.study.arms[run.arm].benchmark else _train
            recorded = made(run, folder, places)
            record.write(record.path_of(docs, run), recorded)
            _spent(folder).unlink(missing_ok=True)
            value = recorded.metric(run.study.metric)
            shown = "" if value is None else f": {run.study.metric} {value:.4g}"
            took = hours_text((time.monotonic() - begin) / HOUR)
            log.info("%s is recorded after %s%s", label, took, shown)
    except Timeout:
        log.info("%s: another process is at it", label)
    except (Failed, UserError) as error:
        _fail(state, label, str(error), 0, 0.0)


def _fail(state: StudyProgress, label: str, reason: str, runs: int, hours: float) -> None:
    log.error("%s failed: %s", label, reason)
    state.failed[label] = reason
    state.done += runs
    state.hours -= hours


def _train(run: StudyRun, folder: Path, places: Mapping[str, str]) -> record.StudyRecord:
    """Train, evaluate, and make the record.

    Raises:
        Failed, UserError: if one of these ends with an error.
    """
    _set_former_aside(run, folder)
    study = run.study
    own = {
        "name": f"{study.name}_{run.name}",
        "tags.study": study.name,
        "tags.arm": run.arm,
        "tags.training": run.training,
        "run_dir": str(folder),
        "resume": "auto",
    }
    words = [override(key, value) for key, value in own.items()]
    train = [sys.executable, str(HOME / "train.py"), *run.overrides(places), *words]
    _call(train, folder, trains=True)
    measured = folder.with_name(f"{folder.name}.measured.json")
    module = [sys.executable, "-m", "research.studies.measuring", str(folder), str(measured)]
    took = _call([*module, json.dumps(asdict(study.evaluate))], folder)
    content = documents.load(measured, dict, "RUN", recording.HINT)
    evaluated = [f"split={study.evaluate.split}", f"checkpoint={study.evaluate.checkpoint}"]
    commands = [
        f"python train.py {shlex.join([*run.overrides(), *words[-2:]])}",
        f"python -m research.evaluate {shlex.join([str(folder), *evaluated])}",
    ]
    return recording.of_training(run, folder, content, commands, _seconds(folder), took, places)


def _run_benchmark(run: StudyRun, folder: Path, places: Mapping[str, str]) -> record.StudyRecord:
    """Run a benchmark, and make the record.

    Raises:
        Failed, UserError: if it ends with an error.
    """
    arm, file = run.study.arms[run.arm], folder / f"{run.study.arms[run.arm].benchmark}.json"
    images = [] if arm.images is None else [places[f"data.{arm.images}"]]
    words = ["-m", "research.benchmark", arm.benchmark, *images, *run.overrides(places)]
    if _is_of(file, words):
        log.info("%s: is of this command, and was not recorded", file)
    else:
        _call([sys.executable, *words, f"out={folder}"], folder)
    shown = [placeholder(f"data.{arm.images}")] if arm.images else []
    command = f"python {shlex.join([*words[:3], *shown, *run.overrides()])}"
    return recording.of_benchmark(run, file, command, _seconds(folder))


def _is_of(file: Path, words: Sequence[str]) -> bool:
    """Whether a benchmark that was run by these words has written a file."""
    try:
        written = shlex.split(documents.load(file, dict, "benchmark")["command"])
    except (KeyError, TypeError, AttributeError, ValueError, UserError):
        return False
    return [word for word in written[1:] if not word.startswith("out=")] == list(words)


def _set_former_aside(run: StudyRun, folder: Path) -> None:
    """Rename a run folder that is of a former definition: it can be neither resumed nor reused."""
    if not (folder / "config.yaml").exists():
        return
    config = documents.load(folder / "config.yaml", dict, "RUN")
    former = (config.get("tags") or {}).get("training", "unknown")
    if former != run.training:
        aside = folder.with_name(f"{folder.name}.{former}")
        number = 1
        while aside.exists():
            number += 1
            aside = folder.with_name(f"{folder.name}.{former}_{number}")
        folder.rename(aside)
        log.info("%s: is of a former definition, and now in %s", folder, aside)


def _places(plan: StudyPlan, data: Mapping[str, Path]) -> dict[str, str]:
    """The path of each ``data.NAME`` and ``store.NAME`` of a study; stores are prepared.

    Raises:
        Failed: if one cannot be prepared.
    """
    places = {f"data.{name}": str(data[name]) for name in plan.study.data if name in data}
    needed = {name for each in plan.undone for name in plan.study.stores_of(each.run.arm)}
    for name in sorted(needed):
        places[f"store.{name}"] = str(_prepared(plan.study, name, data))
    return places


def _prepared(study: StudyDefinition, name: str, data: Mapping[str, Path]) -> Path:
    """The folder of a store. ``research.prepare`` goes on, and does nothing if it is whole."""
    store = study.stores[name]
    digest = sha256(json.dumps(vars(store), sort_keys=True).encode()).hexdigest()[:8]
    out = STORES / f"{name}_{digest}"  # studies share it
    out.parent.mkdir(parents=True, exist_ok=True)
    words = [override(key, value) for key, value in store.options.items()]
    log.info("preparing store.%s from data.%s", name, store.source)
    module = [sys.executable, "-m", "research.prepare", store.kind]
    with FileLock(f"{out}.lock"):
        _call([*module, str(data[store.source]), str(out), *words], out)
    return out


def _call(words: Sequence[str], beside: Path, *, trains: bool = False) -> float:
    """Run a process with its output in ``BESIDE.log``, and add its time to ``_seconds``.

    The process has a session of its own: a signal for this one is passed on, once, so that a run
    saves its state.

    Args:
        words: of the process.
        beside: the folder of a run or a store.
        trains: whether it trains, so that its epochs are shown.

    Returns:
        The seconds that it took.

    Raises:
        Failed: if it ends with an error.
        KeyboardInterrupt: passed on, when the process has ended.
    """
    file, start = beside.with_name(f"{beside.name}.log"), time.monotonic()
    with file.open("ab") as output:
        output.write(f"$ {shlex.join(words)}\n".encode())
        output.flush()
        began = output.tell()
        child = subprocess.Popen(  # noqa: S603 - our words
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, "PYTHONPATH": _python_path()},
        )  # fmt: skip
        try:
            status = _wait(child, beside, trains=trains)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
        finally:
            if child.poll() is None:  # a second signal
                child.kill()
                child.wait()
            took = time.monotonic() - start
            write_text(_spent(beside), to_json({"seconds": _seconds(beside) + took}))
    if status != 0:
        raise Failed(f"{_reason(file, began, status)}; its output is in {file}")
    return took


def _wait(child: subprocess.Popen[bytes], folder: Path, *, trains: bool) -> int:
    """Wait for a process, and show how many epochs of a run are done; returns its status."""
    name = folder.name if trains else f"preparing or measuring {folder.name}"
    with Phase(name, unit="epochs", first=epochs_of(folder)[0] if trains else 0) as phase:
        while True:
            try:
                return child.wait(BETWEEN_LOOKS)
            except subprocess.TimeoutExpired:
                done, phase.total = epochs_of(folder) if trains else (0, None)
                phase.update(done)


def epochs_of(folder: Path) -> tuple[int, int | None]:
    """Epochs that the run of a folder has done, and all; None before it has begun."""
    try:
        summary = documents.load(folder / "summary.json", dict, "RUN")
        return int(summary["epochs_done"]), int(summary["configuration"]["epochs"])
    except (KeyError, TypeError, ValueError, UserError):
        return 0, None


def _python_path() -> str:
    """Where a process finds this project, whatever folder it is started in."""
    return os.pathsep.join([str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])])


def _reason(file: Path, began: int, status: int) -> str:
    """The signal that ended a process; else the last line with an error; else its last line."""
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    with file.open("rb") as output:
        output.seek(max(began, file.stat().st_size - LAST_LINES))
        lines = output.read().decode("utf-8", "replace").splitlines()
    lines = [line for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = [*errors, *lines[-1:]] if errors else lines[-1:]
    return last[0] if last else f"it ended with status {status} and no output"


def _seconds(folder: Path) -> float:
    """That the processes of a run have taken, those that were interrupted too."""
    try:
        return float(documents.load(_spent(folder), dict, "RUN")["seconds"])
    except (KeyError, TypeError, ValueError, UserError):
        return 0.0


def _spent(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.spent.json")


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Within it SIGTERM, which schedulers send, is like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt(number)

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
