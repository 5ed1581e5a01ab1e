"""Runs of every task that are killed (SIGKILL) at random moments and resumed, until they are done.

    pytest -m whole tests/engine/test_kills.py        # 207 kills, prints a table

Half of the kills come from outside at random times, the others from inside: after an optimizer
step, and between any two changes of files while a checkpoint, a row or a picture is written.
``verify_resume`` has the processes and the comparison.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from research.config import compose_config
from research.engine import checkpoint, run, verify_resume
from research.engine.run_differences import compare, content
from research.engine.verify_resume import Kill, KillingEpochEnd
from research.tracking import mlflow
from tests.golden.configurations import DATA, GOLDEN, NARROW, PICTURES

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

SHARED = (
    "device=cpu", "logging=mlflow", "epochs=2", "log_every=2", "keep=1", "batch_size=2",
    "max_train_batches=16", "max_val_batches=1", "ema=0.9", "evaluate_at_end=val",
)  # fmt: skip
SYSTEMS: dict[str, tuple[str, ...]] = {
    "classification, RGB": (*GOLDEN["fastnet_bf16"], "workers=1"),
    "classification, DCT": GOLDEN["dct_from_pixels"],
    "classification, DCT from a store": GOLDEN["dct_from_store"],
    "DenseNet": (*NARROW, *PICTURES, "model.dropout=0.2", "scheduler=one_cycle"),
    "RGB + X": (*GOLDEN["rgbx"], "epochs=2"),
    "ranking, frozen": GOLDEN["ranking_frozen"],
    "ranking, end to end": GOLDEN["ranking"],
    "TinyDet": (*GOLDEN["tinydet"], "optimizer=adamw"),
    "BigDet": (*GOLDEN["bigdet"], "grad_clip=1.0"),
}
FEW = ("DenseNet", "RGB + X", "ranking, frozen", "TinyDet", "BigDet")
"""One system of each task."""
SAVE_EVERY = 5e-4
"""Minutes between two checkpoints within an epoch: 30 ms."""
KILLS_OF_A_RUN = 6
CHANGES = 40
"""Changes of files from the start of a save within an epoch, and in the steps after it."""
CHANGES_AT_THE_END = 120
"""The same of an epoch's end with its pictures, and of the final files."""


class Marked(KillingEpochEnd):
    """Marks in the file ``FOLDER.phase`` what the process is doing."""

    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        path = self.folder.with_suffix(".phase")
        self.phase = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def mark(self, phase: str) -> None:
        os.pwrite(self.phase, f"{phase:30}".encode(), 0)

    def step(self, *arguments: Any) -> None:
        self.mark("in an epoch")
        super().step(*arguments)

    @contextmanager
    def validation(self, *arguments: Any) -> Iterator[None]:
        self.mark("in validation")
        with super().validation(*arguments):
            yield
        self.mark("at an epoch's end")

    def _save(self, state: Any, path: str = "", *, is_best: bool = False) -> None:
        self.mark("in saving, at its end" if path else "in saving")
        super()._save(state, path, is_best=is_best)
        self.mark("at an epoch's end" if path else "in an epoch")


def train(config: dict[str, Any], kill: Kill | None) -> None:
    """Start or resume the run in ``run_dir``; in a process of its own."""
    verify_resume.usual_workers()
    mlflow.SECONDS_BETWEEN_DELIVERIES = 0.02
    begin = run.start(config, "killed")
    if begin is not None:
        end = partial(Marked, kill=kill, saves=(), folder=begin.folder)
        with run.opened(begin):
            run.train(config, "killed", (), begin, callback=end)


@dataclass
class Outcome:
    """What came of the kills of one system."""

    counts: Counter[str] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)

    @property
    def row(self) -> tuple[int, int, int, int]:
        """Kills; in an epoch after the first checkpoint; in saving; identical."""
        counts = self.counts
        inside = counts["in an epoch"] + counts["in saving"]
        saving = counts["in saving"] + counts["in saving, at its end"]
        return counts["kills"], inside, saving, counts["identical"]


class Killer:
    """Trains one configuration, undisturbed and killed.

    Args:
        words: of its command line.
        folder: of its undisturbed run; those that are killed are next to it.
        chance: chooses the moments.
    """

    def __init__(self, words: tuple[str, ...], folder: Path, chance: random.Random) -> None:
        self.config = compose_config([*SHARED, *words]).config
        self.folder = folder
        self.chance = chance
        self.context = verify_resume.processes(__name__)
        self.outcome = Outcome()
        process = self.start(folder)
        wait_for_training(process, folder)
        start = time.monotonic()
        self.finish(process)
        self.seconds = time.monotonic() - start
        self.undisturbed = self.content(folder)
        counters = self.undisturbed["counters, losses, history"]
        self.batches, self.epochs = counters["step"], counters["epoch"]

    def start(self, folder: Path, kill: Kill | None = None) -> Any:
        """A process that starts or resumes the run in ``folder``."""
        config, _ = verify_resume.in_folder(self.config, folder)
        config["save_every_minutes"] = SAVE_EVERY
        process = self.context.Process(target=train, args=(config, kill))
        process.start()
        return process

    def finish(self, process: Any) -> None:
        process.join()
        assert process.exitcode == 0

    def content(self, folder: Path) -> Mapping[str, Any]:
        return content(folder, (), verify_resume.in_folder(self.config, folder)[1])

    def kill_a_run(self, name: str, kills: int) -> None:
        """Start, kill and resume a run; count its kills, and those after which it is identical."""
        folder, counts = self.folder.with_name(f"{self.folder.name}_{name}"), self.outcome.counts
        happened = [self.kill(folder) for _ in range(kills)]
        moments = [moment for moment in happened if moment]
        self.finish(self.start(folder))
        found = compare(self.undisturbed, self.content(folder))
        unlike = [str(each) for differences in found.values() for each in differences]
        counts.update(moments)
        counts["kills"] += len(moments)
        if unlike:
            self.outcome.different.append(f"{folder}: {moments}: {unlike[:5]}")
        else:
            counts["identical"] += len(moments)

    def kill(self, folder: Path) -> str:
        """Start or resume a run and kill it; returns in which phase, empty if it was finished."""
        chance = self.chance
        last = folder / "checkpoints" / "last.pt"
        done = checkpoint.load(last)["state"]["step"] if last.exists() else 0
        kill = None
        if done < self.batches and chance.random() < 0.6:
            kill = self.moment(done)
        phase = folder.with_suffix(".phase")
        phase.write_text("")
        process = self.start(folder, kill)
        if kill is None:
            if chance.random() < 0.8:
                wait_for_training(process, folder)
            process.join(chance.uniform(0, self.seconds))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), f"{folder}: {process.exitcode}"
        if process.exitcode == 0:
            return ""
        marked = phase.read_text().strip() or "in starting"
        return marked if last.exists() else f"{marked}, no checkpoint"

    def moment(self, done: int) -> Kill:
        """A random one after batch ``done``."""
        chance = self.chance
        step = chance.randint(done + 1, min(done + 10, self.batches))
        if chance.random() < 0.4:
            return Kill(step)
        if chance.random() < 0.7:
            return Kill(step, chance.randint(1, CHANGES))
        per_epoch = self.batches // self.epochs
        ends = [batch for batch in range(per_epoch, self.batches + 1, per_epoch) if batch > done]
        return Kill(chance.choice(ends), chance.randint(1, CHANGES_AT_THE_END))


def wait_for_training(process: Any, folder: Path) -> None:
    """Until the first optimizer step of a process is done, or the process has ended."""
    phase = folder.with_suffix(".phase")
    while process.is_alive() and not (phase.exists() and phase.stat().st_size):
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("systems", "kills"),
    [
        pytest.param(FEW, 2, marks=pytest.mark.long),
        pytest.param(tuple(SYSTEMS), 23, marks=pytest.mark.whole),
    ],
)
def test_killed_runs_are_resumed_bit_for_bit(
    systems: tuple[str, ...],
    kills: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "stores"):
        (tmp_path / name).symlink_to(DATA / name)
    rows, different = [], []
    for number, system in enumerate(systems):
        killer = Killer(SYSTEMS[system], tmp_path / f"system_{number}", random.Random(number))
        outcome, runs = killer.outcome, 0
        while (left := kills - outcome.counts["kills"]) > 0:
            killer.kill_a_run(f"run_{runs}", min(left, KILLS_OF_A_RUN))
            runs += 1
        rows.append(outcome.row)
        different += outcome.different
        show(capsys, system, outcome.row)
    total = tuple(map(sum, zip(*rows, strict=True)))
    show(capsys, "all", total)
    assert different == []
    assert total[0] == total[3] == kills * len(systems)
    assert kills == 2 or total[1] >= total[0] / 2


def show(capsys: pytest.CaptureFixture[str], name: str, row: tuple[int, ...]) -> None:
    with capsys.disabled():
        print(f"| {name} | " + " | ".join(map(str, row)) + " |", flush=True)
