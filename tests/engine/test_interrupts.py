"""A run that a signal ends after any optimizer step is resumed as if it had not ended."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from research.engine import checkpoint, interrupts
from research.engine.epoch_end import EpochEnd
from research.engine.interrupts import Interrupted, Interrupts
from research.tracking.files import read_rows
from tests.conftest import ROOT, TINY, run, user_error

Compose = Callable[..., dict[str, Any]]
WORDS = (
    *TINY, "epochs=2", "accumulate=2", "ema=0.9", "scheduler=cosine", "log_every=3",
    "dataset.augmentation.mixup=0.2", "patience=5", "batch_size=4", "seed=1",
)  # fmt: skip
TIMES = ("epoch_time_sec", "timestamp", "batch_time_sec")


@pytest.fixture(autouse=True)
def nothing_ignored() -> Iterator[None]:
    """Shells and ``nohup`` start the tests with some signals ignored, which stay so."""
    former = {number: signal.signal(number, signal.SIG_DFL) for number in interrupts.SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


class Signalled(EpochEnd):
    """Sends signal ``number`` to this process before the check at step ``at``."""

    at, number, steps = 0, signal.SIGTERM, 0

    def step(self, *arguments: Any) -> None:
        type(self).steps += 1
        if self.steps == self.at:
            os.kill(os.getpid(), self.number)
        super().step(*arguments)


def interrupted(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, at: int, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("research.engine.run.EpochEnd", Signalled)
        patch.setattr(Signalled, "steps", 0)
        patch.setattr(Signalled, "at", at)
        patch.setattr(Signalled, "number", number)
        with pytest.raises(Interrupted) as stop:
            run(config)
    assert stop.value.args == (number,)


def final(folder: Path) -> dict[str, Any]:
    content = checkpoint.load(folder / "checkpoints" / "last.pt")
    for row in content["state"]["history"]:
        for name in TIMES:
            row.pop(name, None)
    return {name: content[name] for name in content if name not in ("config", "tracking")}


def rows(folder: Path) -> list[list[dict[str, str]]]:
    tables = [read_rows(folder / f"{table}_metrics.csv") for table in ("epoch", "batch")]
    return [[{k: v for k, v in row.items() if k not in TIMES} for row in rows] for rows in tables]


def same(one: Any, two: Any) -> bool:
    """Equality of nested values, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def test_a_resumed_run_is_the_same_after_any_step(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(small(*WORDS, "run_dir=whole"))
    steps = final(Path("whole"))["scheduler"]["last_epoch"]
    assert steps == 6
    for at in range(1, steps + 1):
        folder = f"stopped_{at}"
        number = interrupts.SIGNALS[at % len(interrupts.SIGNALS)]
        interrupted(small(*WORDS, f"run_dir={folder}"), monkeypatch, at, number)
        state = checkpoint.load(Path(folder, "checkpoints/last.pt"))["state"]
        assert state["epoch"] < 2
        run(small(*WORDS, f"resume={folder}"))
        assert same(final(Path(folder)), final(Path("whole"))), at
        assert rows(Path(folder)) == rows(Path("whole")), at


def test_a_signal_during_validation(small: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    from research.tasks.classification import Classification

    run(small(*WORDS, "run_dir=whole"))
    predict = Classification.predict
    with monkeypatch.context() as patch:

        def stop(self: Any, model: Any, batch: Any) -> Any:
            os.kill(os.getpid(), signal.SIGHUP)
            return predict(self, model, batch)

        patch.setattr(Classification, "predict", stop)
        with pytest.raises(Interrupted):
            run(small(*WORDS, "run_dir=stopped"))
    assert checkpoint.load(Path("stopped/checkpoints/last.pt"))["state"]["samples"] > 0
    run(small(*WORDS, "resume=stopped"))
    assert same(final(Path("stopped")), final(Path("whole")))
    assert rows(Path("stopped")) == rows(Path("whole"))


def test_checkpoints_within_an_epoch_by_the_clock(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = EpochEnd._save

    def counted(self: EpochEnd, content: Any, *path: str, is_best: bool = False) -> None:
        saved.append(content["state"]["samples"])
        save(self, content, *path, is_best=is_best)

    monkeypatch.setattr(EpochEnd, "_save", counted)
    run(small(*WORDS, "run_dir=often", "save_every_minutes=1e-9", "epochs=1"))
    assert saved == [8, 16, 24, 0]
    saved.clear()
    run(small(*WORDS, "run_dir=never", "save_every_minutes=null", "epochs=1"))
    assert saved == [0]


def test_the_launcher_interrupts_no_explanation_of_an_error(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that lost another one says so, although the launcher ends it meanwhile."""

    def fit(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full", "file")

    def how_to_continue(*_: Any, **__: Any) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "go on"

    monkeypatch.setattr("research.engine.run.fit", fit)
    monkeypatch.setattr("research.engine.run._how_to_continue", how_to_continue)
    several = Interrupts(repeated=True)
    monkeypatch.setattr("research.engine.run.Interrupts", lambda repeated: several)
    with user_error("disk", "the disk is full", "go on"):
        run(small())


def test_deferred_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as handlers:
        with handlers.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            with pytest.raises(Interrupted), handlers.immediate():
                raise AssertionError("the signal is raised on entry")
        with pytest.raises(Interrupted):
            handlers.check()
    assert signal.getsignal(signal.SIGTERM) is before


IN_A_LONG_STEP = """
import os, time
from research.engine.interrupts import Interrupts
with Interrupts() as handlers, handlers.deferred():
    print("ready", flush=True)
    while not handlers.requested:
        time.sleep(0.01)
    print("requested", flush=True)
    time.sleep(60)
"""


@pytest.mark.long
@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_second_signal_ends_the_process(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_LONG_STEP],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as started:
        assert started.stdout is not None
        for line in ("ready\n", "requested\n"):
            assert started.stdout.readline() == line
            started.send_signal(number)
        assert started.wait(timeout=30) == 128 + number


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as handlers:
            os.kill(os.getpid(), signal.SIGHUP)
            handlers.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
