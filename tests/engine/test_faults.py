"""Faults of a real machine: a disk that is full, a dead worker, a lack of memory, a lost folder.

``test_conditions.py`` has the same for exceptions that are raised in their place.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pkgutil
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from research.config import compose_config
from research.data.loader import EpochLoader
from research.engine import checkpoint
from research.tracking.files import read_rows
from research.utils import logs
from research.utils.conditions import explained
from tests.conftest import ROOT, SMALL, TINY, data_overrides, run, user_error
from tests.engine.test_interrupts import final, rows, same

pytestmark = pytest.mark.long
Compose = Callable[..., dict[str, Any]]
WORDS = (*TINY, "epochs=2", "scheduler=cosine", "ema=0.9", "batch_size=4", "log_every=2")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MB, where mounting is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting is not allowed")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, left: int) -> None:
    """Fill a disk up to ``left`` bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(free - left))


STAGES: dict[str, tuple[str, int, int]] = {
    "configuration": ("research.engine.run_folder.describe", 1, 0),
    "first row": ("research.tracking.files.FileTracker.log", 1, 0),
    "row": ("research.tracking.files.FileTracker.log", 10, 0),
    "pictures": ("research.tracking.files.FileTracker.pictures", 2, 0),
    "first checkpoint": ("research.engine.checkpoint.Checkpoints.save", 1, 300_000),
    "checkpoint": ("research.engine.checkpoint.Checkpoints.save", 3, 300_000),
    "last checkpoint": ("research.engine.checkpoint.Checkpoints.save", 8, 300_000),
    "summary of the last": ("research.tracking.summary.SummaryTracker.flush", 9, 0),
    "final weights": ("research.engine.checkpoint.save_weights", 1, 100_000),
    "status": ("research.tracking.summary.SummaryTracker.finish", 1, 0),
}
"""At which call of a function the disk is full, and the bytes that are left."""


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(
    small: Compose,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    words = (*WORDS, "save_every_minutes=1e-9", "accumulate=2")
    run(small(*words, "run_dir=whole"))
    function, at, left = STAGES[stage]
    owner, _, name = function.rpartition(".")
    folder, calls = disk / "run", []
    with monkeypatch.context() as patch:
        target = pkgutil.resolve_name(owner)
        original = getattr(target, name)

        def full(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == at:
                fill(disk, left)
            return original(*arguments, **options)

        patch.setattr(target, name, full)
        capfd.readouterr()
        with user_error("disk", "disk is full", "of 12.6 MB free", "free space, then") as caught:
            folder.mkdir()
            with logs.to_file(folder):
                run(small(*words, f"run_dir={folder}"))
    assert "Traceback" not in capfd.readouterr().err
    assert str(folder) in caught.value.message
    # Nothing half, and nothing lost: the summary says what the last checkpoint has.
    names = {path.name for path in folder.rglob("*") if path.name.startswith(".")}
    assert names <= {".lock"}
    last = folder / "checkpoints" / "last.pt"
    if last.exists():
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["epochs_done"] <= checkpoint.load(last)["state"]["epoch"]
        assert summary["status"] in ("FAILED", "RUNNING")
    assert last.exists() == ("first" not in stage and stage != "configuration")
    (disk / "filler").unlink()
    _, _, *advised = shlex.split(caught.value.hint.partition("continue with ")[2])
    assert advised[0] == (f"resume={folder}" if last.exists() else "resume=auto")
    if last.exists():
        run(compose_config(advised).config)  # it works when typed
    else:
        run(small(*words, *advised, f"run_dir={folder}"))
    assert same(final(folder), final(Path("whole")))
    assert rows(folder) == rows(Path("whole"))
    assert json.loads((folder / "summary.json").read_text())["status"] == "FINISHED"
    assert (folder / "checkpoints" / "final.safetensors").exists()


def test_a_read_only_disk(small: Compose, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with user_error("disk", "read-only", "make it writable"), explained({}):
        run(small(*TINY, f"run_dir={disk / 'run'}"))


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(folders: Path) -> Iterator[Start]:
    """Starts ``train.py`` in a process of its own, in the folder of the data."""
    started = []

    def popen(*words: str, before: str = "", mounting: str = "") -> subprocess.Popen[str]:
        """``before``: Python that is run first; ``mounting``: a command in a mount namespace."""
        script = f"{before}\nimport runpy, sys; sys.argv[0] = 'train.py'\n"
        script += f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
        command = [sys.executable, "-c", script, *SMALL, *TINY, *data_overrides(folders), *words]
        if mounting:
            inner = f'{mounting} && exec "$0" "$@"'
            command = ["unshare", "--mount", "sh", "-c", inner, *command]
        process = subprocess.Popen(
            command,
            cwd=folders.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
        process.communicate()


def line_of(process: Any) -> str:
    """The one line with which it ends."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    *logged, line = errors.splitlines()
    assert line.startswith("error: ")
    assert not [each for each in logged if each.startswith(("error: ", "Traceback"))], errors
    return line


def wait_for_steps(folder: Path, process: Any) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_worker(folders: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.parent / "run"
    process = start("run_dir=run", "epochs=9999", "workers=1")
    wait_for_steps(folder, process)
    for child in psutil.Process(process.pid).children():  # of training and of validation
        if "resource_tracker" not in " ".join(child.cmdline()):
            child.send_signal(signal.SIGKILL)
    line = line_of(process)
    assert "a worker of the loader was killed by a signal (Killed)" in line
    assert "workers=0" in line
    _, _, *advised = shlex.split(line.partition("continue with ")[2])
    monkeypatch.chdir(folders.parent)
    assert compose_config(advised).config["resume"] == "run"  # it works when typed
    assert json.loads((folder / "summary.json").read_text())["status"] == "FAILED"
    log = (folder / "train.log").read_text()
    assert "Traceback" in log
    assert "is killed by signal" in log


def close_files_and_die() -> None:
    """As the system ends a killed process: its files are closed first."""
    os.closerange(3, 1024)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_still_ending_is_found() -> None:
    worker = multiprocessing.get_context("fork").Process(target=close_files_and_die)
    worker.start()
    loader = Mock(loader=Mock(_iterator=Mock(_workers=[worker])))
    assert EpochLoader._killed_worker(loader, 10) == (worker.pid, "Killed")


@pytest.mark.parametrize("deletes", [False, True])
def test_a_folder_deleted_or_moved_under_a_run(folders: Path, start: Start, deletes: bool) -> None:
    folder = folders.parent / "run"
    process = start("run_dir=run", "epochs=9999")
    wait_for_steps(folder, process)
    if deletes:
        while folder.exists():  # a row or a checkpoint may come in between
            shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.rename(folder.with_name("moved"))
    # While it is being deleted, a folder in it may be gone first.
    what = r"run(/\w+)?" if deletes else "run"
    assert re.match(f"error: {what} was deleted or moved while it was used", line_of(process))
    assert not folder.exists()


NO_MEMORY = """
import resource
from research.tasks.classification import Classification
losses = Classification.losses
def limited(*arguments):
    used = resource.getpagesize() * int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
    return losses(*arguments)
Classification.losses = limited
"""
"""64 MB are left when the first step begins."""
NO_FILES = """
import resource
from research.engine import loop
train_epoch = loop.train_epoch
def limited(*arguments):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        return train_epoch(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
loop.train_epoch = limited
"""
"""As if all files were open during an epoch."""


def test_out_of_memory(folders: Path, start: Start) -> None:
    words = ("run_dir=run", "dataset.image_size=1024", "batch_size=24")
    line = line_of(start(*words, before=NO_MEMORY))
    assert "out of memory with batch_size=24, accumulate=1, precision=fp32" in line
    assert "set batch_size=12 accumulate=2 or precision=bf16" in line
    assert not (folders.parent / "run").exists()  # no batch was trained


def test_too_many_open_files(folders: Path, start: Start) -> None:
    line = line_of(start("run_dir=run", before=NO_FILES))
    assert "too many open files" in line
    assert "ulimit -n" in line
    assert read_rows(folders.parent / "run" / "epoch_metrics.csv") == []


def test_a_full_shared_memory(disk: Path, start: Start) -> None:
    """In a mount namespace whose /dev/shm has 1 MB; without an error the run would wait."""
    process = start(
        "run_dir=run", "workers=1", "dataset.image_size=512",
        mounting="mount -t tmpfs -o size=1m tmpfs /dev/shm",
    )  # fmt: skip
    line = line_of(process)
    assert "/dev/shm is full" in line
    assert "workers=0" in line
