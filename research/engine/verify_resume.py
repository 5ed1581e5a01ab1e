"""``verify_resume=true``: whether a run that is killed and resumed equals one that is not.

The configuration is trained for a few steps: twice undisturbed, and once by processes that kill
themselves at random moments and are started again, until the run is finished. ``run_differences``
compares what the runs leave. ``tests/engine/test_kills.py`` does the same hundreds of times.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from research.batch import Batch
from research.engine import build, checkpoint, run, run_folder
from research.engine.epoch_end import EpochEnd
from research.engine.interrupts import Interrupts
from research.engine.loss_log import LossLog
from research.engine.run_differences import RunDifference, compare, content, describe
from research.engine.state import TrainState
from research.utils import logs
from research.utils.counts import counted
from research.utils.errors import UserError
from research.utils.installation import TRAIN

log = logging.getLogger(__name__)

Config = Mapping[str, Any]

EPOCHS = 2
STEPS = 6
"""Optimizer steps per epoch."""
VAL_BATCHES = 2
KILLS = 6
CHANGES_OF_A_SAVE = 30
"""Changes of files from the start of a save; later ones are those of the following steps."""
OURS = "research.tracking."
MLFLOW = f"{OURS}mlflow.MLflowTracker"
PRELOADED = (
    __name__, "matplotlib.backends.backend_agg", "mlflow.store.tracking.sqlalchemy_store",
    "scipy.stats", "torchmetrics",
)  # fmt: skip
"""What a training process imports, in part late; it saves seconds in each of them."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGING = ("os.rename", "os.link", "os.remove", "os.chmod", "os.mkdir", "sqlite3.connect")


@dataclass(frozen=True)
class Kill:
    """A moment at which a process kills itself.

    Attributes:
        step: after this batch of the run, or the first batch of the process if that is later.
        change: 0: after the optimizer step; n: a checkpoint is written after the step, and the
            process ends before its n-th change of a file from then on, see ``kill_at_change``.
    """

    step: int
    change: int = 0


class KillingEpochEnd(EpochEnd):
    """Saves within an epoch only after the batches ``saves``, and kills the process at ``kill``.

    Args:
        parts: arguments of ``EpochEnd``.
        kill: None: the process is not killed.
        saves: batches of the run.
        folder: of the run.
    """

    def __init__(
        self, *parts: Any, kill: Kill | None, saves: Collection[int], folder: Path
    ) -> None:
        super().__init__(*parts)
        self.kill = kill
        self.saves = saves
        self.folder = folder

    def step(self, state: TrainState, losses: LossLog, inputs: Batch | None) -> None:
        kill, saves = self.kill, state.step in self.saves
        if kill is not None and state.step >= kill.step:
            where = f"batch {state.step} (epoch {state.epoch + 1})"
            if not kill.change:
                kill_process(self.folder, f"after {where}")
            kill_at_change(self.folder, kill.change, f"after {where}")
            self.kill, saves = None, True
        if saves:
            self.next_save = 0.0
        super().step(state, losses, inputs)


def kill_process(folder: Path, where: str) -> None:
    """Kill this process; ``where`` is what ``Killed.where`` will be."""
    _record(folder).write_text(where, encoding="utf-8")
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_change(folder: Path, number: int, where: str) -> None:
    """Kill this process before its ``number``-th change of a file next to or in ``folder``.

    Python's audit events report each file that is created, renamed, linked or removed. Renaming
    counts twice: the first time new content is cut in half, as if it had not been written yet.
    """
    watched = f"{folder.parent}{os.sep}"
    left = number

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and arguments[2] & WRITING
        if left <= 0 or not (writes or event in CHANGING):
            return
        path = arguments[0]
        if isinstance(path, int) or not os.fsdecode(path).startswith(watched):
            return
        file = os.fsdecode(arguments[1] if event == "os.rename" else path)
        name = file.removeprefix(watched).removeprefix(f"{folder.name}{os.sep}")
        left -= 1
        if left == 0 and event == "os.rename":
            if os.stat(path).st_nlink == 1:  # else it is another name of a file that is complete
                os.truncate(path, os.path.getsize(path) // 2)
            kill_process(folder, f"{where}, while {name} is written")
        left -= event == "os.rename"
        if left == 0:
            kill_process(folder, f"{where}, before {event} of {name}")

    sys.addaudithook(watch)


def train(config: Config, name: str, kill: Kill | None, saves: Collection[int]) -> None:
    """Start or resume the run in ``run_dir``, in a process of its own."""
    usual_workers()
    try:
        begin = run.start(config, name)
        if begin is not None:
            end = partial(KillingEpochEnd, kill=kill, saves=saves, folder=begin.folder)
            with run.opened(begin):
                run.train(dict(config), name, (), begin, callback=end)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def processes(*modules: str) -> ForkServerContext:
    """Makes processes that have imported ``modules``, but hold no state, threads or device."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *modules])
    before = dict(os.environ)
    # The server of Python 3.11 does not get sys.path; MLflow reads its variable on import.
    os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path), "MLFLOW_LOGGING_LEVEL": "WARNING"}
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def usual_workers() -> None:
    """Start a loader's workers as every run does, not as this process was started."""
    multiprocessing.set_start_method(None, force=True)


def in_folder(config: Config, folder: Path) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """The configuration of a run in ``folder``, and its MLflow store and experiment.

    MLflow records go to a store next to the folder, and to no other place. Trackers of the user's
    own are left out.
    """
    store = None
    trackers: dict[str, Any] = {}
    for key, node in config["logging"].items():
        if node["_target_"] == MLFLOW:
            store = f"sqlite:///{folder.parent / 'mlflow.db'}", folder.name
            node = {**node, "uri": store[0], "experiment": store[1], "system_metrics": False}
        if node["_target_"].startswith(OURS):
            trackers[key] = node
    own = {"run_dir": str(folder), "resume": "auto", "verify_resume": False, "logging": trackers}
    return {**config, **own, "save_every_minutes": None}, store


def verify(config: Config, name: str) -> int:
    """Train, kill, resume, compare; prints what happens and a verdict.

    Args:
        config: resolved and checked. ``resume`` and ``run_dir`` are not used.
        name: of the runs.

    Returns:
        the exit status: 0 if the runs are identical, 1 if they are not.

    Raises:
        UserError: under torchrun, or if a process is killed by the system.
        SystemExit: if a process cannot train; it has printed why.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            "verify_resume",
            "verify_resume=true under torchrun: it verifies one process",
            f"run it as {TRAIN} verify_resume=true",
        )
    for key in ("resume", "run_dir"):
        if config[key] is not None:
            log.info("%s=%s is not used: verify_resume trains in a new folder", key, config[key])
    batches, val = config["max_train_batches"], config["max_val_batches"]
    few = {
        "epochs": EPOCHS,
        "max_train_batches": min(batches or math.inf, STEPS * config["accumulate"]),
        "max_val_batches": min(val or math.inf, VAL_BATCHES),
        "evaluate_at_end": None,
    }
    config = {**config, **few}
    with _scratch() as folder, Interrupts():
        context = processes("__main__")
        log.info("verify_resume: %d epochs of at most %d steps, in %s", EPOCHS, STEPS, folder)
        first = _undisturbed(context, config, name, folder / "undisturbed")
        again = compare(first, _undisturbed(context, config, name, folder / "repeated"))
        if any(again.values()):
            return _verdict("not killed", again, _reasons_of_chance(config))
        killed = _killed(context, config, name, folder / "killed", first)
        return _verdict("killed", compare(first, killed), _reasons_of_resume(config))


def _undisturbed(
    context: ForkServerContext, config: Config, name: str, folder: Path
) -> dict[str, Any]:
    """Train a run from start to end; returns its ``content``."""
    start = time.perf_counter()
    own, store = in_folder(config, folder)
    _wait(context.Process(target=train, args=(own, name, None, ())), folder)
    found = content(folder, config["trust"], store)
    batches, seconds = found["counters, losses, history"]["step"], time.perf_counter() - start
    log.info("  %s: %s, %.0f s", folder.name, counted(batches, "batches"), seconds)
    return found


def _killed(
    context: ForkServerContext, config: Config, name: str, folder: Path, first: Mapping[str, Any]
) -> dict[str, Any]:
    """Train a run that is killed ``KILLS`` times; returns its ``content``."""
    own, store = in_folder(config, folder)
    batches = first["counters, losses, history"]["step"]
    chance = random.Random(config["seed"])  # noqa: S311 - moments, not secrets
    saves = frozenset(chance.sample(range(1, batches + 1), (batches + 1) // 2))
    for kill in [*_kills(chance, batches), None]:
        process = context.Process(target=train, args=(own, name, kill, saves))
        where = _wait(process, folder)
        if where is None:
            break
        log.info("  killed %s; %s", where, _position(folder, config["trust"]))
    log.info("  resumed: finished")
    return content(folder, config["trust"], store)


def _kills(chance: random.Random, batches: int) -> Iterator[Kill]:
    """Random moments, one in each part of the run, every other one in saving."""
    for number in range(KILLS):
        step = 1 + int((number + chance.random()) * batches / KILLS)
        yield Kill(step, chance.randint(1, CHANGES_OF_A_SAVE) if number % 2 else 0)


def _wait(process: ForkServerProcess, folder: Path) -> str | None:
    """Run a process that trains in ``folder``.

    Returns:
        where it killed itself; None if it finished the run.
    """
    record = _record(folder)
    record.unlink(missing_ok=True)
    process.start()
    try:
        process.join()
    finally:
        process.kill()
        process.join()
    if process.exitcode == 0:
        return None
    if process.exitcode == 2:
        raise SystemExit(2)  # it has printed the mistake
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the training process ended with status {process.exitcode}, see above")
    if not record.exists():
        raise UserError(
            "verify_resume",
            "verify_resume: the training process was killed by the system",
            "it may lack memory: set a smaller batch_size",
        )
    return record.read_text(encoding="utf-8")


def _position(folder: Path, trust: Collection[str]) -> str:
    """Where the run in ``folder`` will be resumed."""
    last = folder / "checkpoints" / "last.pt"
    if not last.exists():
        return "no checkpoint yet, it starts again"
    return f"resumed after batch {checkpoint.load(last, trust)['state']['step']}"


def _record(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.kill")


@contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder in ``runs/``: the disk of real runs."""
    run_folder.ROOT.mkdir(parents=True, exist_ok=True)
    # Ignored: a worker of a killed process may still be writing.
    with tempfile.TemporaryDirectory(
        prefix=".verify_resume_", dir=run_folder.ROOT.resolve(), ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def _verdict(
    which: str, found: Mapping[str, Sequence[RunDifference]], reasons: Iterator[str]
) -> int:
    """Print what is identical, what is not, and the verdict; returns the exit status."""
    same = ", ".join(name for name in found if not found[name]) or "nothing"
    log.info("  identical: %s", same, extra=logs.RESULT)
    different = [describe(differences) for differences in found.values() if differences]
    for text in different:
        log.info("  different: %s", text, extra=logs.RESULT)
    if not different:
        line = "verify_resume: identical; a killed run is resumed bit for bit"
        log.info(line, extra=logs.RESULT)
        return 0
    if which == "killed":
        line = "verify_resume: different; the resumed run is not the undisturbed one. Reasons:"
    else:
        line = (
            "verify_resume: not deterministic; two runs differ although neither was killed, which "
            "says nothing about resume. Reasons:"
        )
    for each in (line, *(f"  - {reason}" for reason in reasons)):
        log.info("%s", each, extra=logs.RESULT)
    return 1


def _reasons_of_chance(config: Config) -> Iterator[str]:
    """Why two undisturbed runs may differ."""
    device = build.select_device(config["device"], config["precision"])
    if device.type != "cpu" and not config["deterministic"]:
        yield "kernels of an accelerator that add in any order: set deterministic=true"
    if config["deterministic"] and config["compile"]:
        yield "kernels that torch.compile chooses by their speed: set compile=false"
    if config["trust"]:
        yield (
            f"your own code ({', '.join(config['trust'])}) that reads a clock, or draws from a "
            "generator that is not seeded"
        )
    yield "several threads that add in any order: set OMP_NUM_THREADS=1"


def _reasons_of_resume(config: Config) -> Iterator[str]:
    """Why a resumed run may differ although undisturbed runs are the same."""
    own = ", ".join(config["trust"])
    code = f"your own code ({own})" if own else "code"
    yield f"{code} with state in attributes or buffers with persistent=False: use buffers"
    if config["workers"] != 0:
        yield (
            f"{code} that draws from the global generators in a loader's worker: draw from "
            "(seed, epoch, index), as docs/adding.md says"
        )
    yield "files of the data set that have changed meanwhile"
