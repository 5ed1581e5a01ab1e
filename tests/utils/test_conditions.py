"""Everyday conditions of a machine are reported in one line that says what helps."""

from __future__ import annotations

import errno
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from research.config import cli
from research.utils import logs
from research.utils.conditions import explain, explained, is_exhausted
from research.utils.errors import NotFinite, UserError
from research.utils.files import write_atomic, write_text
from tests.conftest import user_error

TRAINING = {
    "batch_size": 64, "accumulate": 1, "precision": "fp32", "dataset.image_size": 224,
    "workers": 8,
}  # fmt: skip
CPU_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
)
GPU_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of "
    "which 1.00 GiB is free."
)
KILLED = "DataLoader worker (pid 123) is killed by signal: Killed. "
BUS = (
    "DataLoader worker (pid 123) is killed by signal: Bus error. It is possible that dataloader's "
    "workers are out of shared memory. Please try to raise your shared memory limit."
)
SHARED = (
    "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"
)
NORM = "Expected more than 1 value per channel when training, got input size [1, 512, 1, 1]"


def system(code: int, file: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), file)


CONDITIONS: list[tuple[Exception, str, tuple[str, ...]]] = [
    (torch.OutOfMemoryError(GPU_MEMORY), "batch_size",
     ("GPU", "2.00 GiB", "batch_size=64, accumulate=1, precision=fp32, dataset.image_size"
      "=224", "set batch_size=32 accumulate=2 or precision=bf16 or a smaller dataset.ima")),
    (RuntimeError(CPU_MEMORY), "batch_size", ("out of memory", "4000000000 bytes")),
    (MemoryError(), "batch_size", ("out of memory", "batch_size=32")),
    (np._core._exceptions._ArrayMemoryError((10**9,), np.dtype("f8")),  # type: ignore[attr-defined]
     "batch_size", ("7.45 GiB",)),
    (RuntimeError("std::bad_alloc"), "batch_size", ("out of memory",)),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
     "batch_size", ("GPU",)),
    (system(errno.ENOMEM), "batch_size", ("out of memory",)),
    (system(errno.ENOSPC, "runs/x/last.pt"), "disk",
     ("runs/x/last.pt", "disk is full", "free", "then continue with resume=runs/x")),
    (system(errno.EDQUOT, "a"), "disk", ("quota", "free space")),
    (system(errno.EFBIG, "a"), "disk", ("larger",)),
    (system(errno.EROFS, "a"), "disk", ("read-only", "make it writable")),
    (system(errno.EACCES, "a"), "disk", ("no permission", "change its permissions")),
    (system(errno.ESTALE, "a"), "disk", ("network",)),
    (system(errno.EIO), "disk", ("input/output",)),
    (system(errno.EMFILE, "a"), "ulimit", ("too many open files", "ulimit -n", "workers=0")),
    (RuntimeError("received 0 items of ancdata"), "ulimit", ("too many open files",)),
    (system(errno.ENOENT, "/gone/run/batch_metrics.csv"), "disk", ("/gone/run was deleted",)),
    (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "TMPDIR", ("/tmp",)),
    (RuntimeError(KILLED), "workers", ("killed by a signal (Killed)", "workers=4")),
    (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), "workers",
     ("ended unexpectedly", "continue with resume=runs/x")),
    (RuntimeError(BUS), "workers", ("/dev/shm is full", "workers=0")),
    (RuntimeError(SHARED), "workers", ("/dev/shm is full", "--shm-size")),
    (ValueError(NORM), "batch_size", ("batch norm", "batch_size=64")),
    (RuntimeError("CUDA error: no kernel image is available for execution on the device"),
     "device", ("no code for this GPU", "device=cpu")),
    (sqlite3.OperationalError("database or disk is full"), "database", ("full", "free space")),
    (sqlite3.OperationalError("database is locked"), "database", ("locked",)),
    (sqlite3.OperationalError("attempt to write a readonly database"), "database", ("writable",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "key", "words"),
    CONDITIONS,
    ids=[f"{type(e).__name__}-{e}"[:40] for e, *_ in CONDITIONS],
)
def test_a_condition_is_one_line(error: Exception, key: str, words: tuple[str, ...]) -> None:
    known = explain(error, TRAINING, "continue with resume=runs/x")
    assert known is not None
    assert known.key == key
    assert known.hint
    assert "\n" not in str(known)
    for word in words:
        assert word in str(known)
    wrapped = LookupError("of a library")
    wrapped.__cause__ = error
    assert str(explain(wrapped, TRAINING, "continue with resume=runs/x")) == str(known)
    # Without settings, as in a command that has none of them, no value is made up.
    plain = explain(error)
    assert plain is not None
    assert "None" not in str(plain)
    assert "resume" not in str(plain)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"), KeyError("allocate memory"), RuntimeError("shape mismatch"),
        FileNotFoundError(2, "No such file", __file__), sqlite3.OperationalError("no such table"),
        ModuleNotFoundError("No module named 'mine'", name="mine"), OSError("unknown"),
    ],
)  # fmt: skip
def test_other_exceptions_are_passed_on(error: Exception) -> None:
    assert explain(error, TRAINING) is None
    with pytest.raises(type(error)), explained(TRAINING):
        raise error


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"batch_size": 8, "precision": "bf16"}, "set batch_size=4"),
        ({"batch_size": 1, "precision": "fp32"}, "set precision=bf16"),
        ({"batch": 1}, "free memory, or use a larger machine"),
        ({"batch_size": 3, "accumulate": 4}, "set batch_size=2 accumulate=8"),
        ({"batch_size": 2, "accumulate": 1}, "free memory, or use a larger machine"),
        ({"batch_size": 1, "dataset.image_size": 64}, "set a smaller dataset.image_size"),
    ],
)
def test_what_helps_against_a_lack_of_memory(settings: dict[str, Any], hint: str) -> None:
    known = explain(MemoryError(), settings)
    assert known is not None
    assert known.hint == hint


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (TRAINING, "free memory, then go on; a new run needs less with batch_size="),
        ({"batch": 1}, "free memory, then go on"),
    ],
)
def test_a_saved_state_goes_on_with_the_same_settings(settings: dict[str, Any], hint: str) -> None:
    known = explain(MemoryError(), settings, "go on", saved=True)
    assert known is not None
    assert known.hint.startswith(hint)


def test_a_missing_package_of_this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["pyjpegio>=0.3.0", 'onnx>=1.17; extra == "export"']
    monkeypatch.setattr("research.utils.conditions.metadata.requires", lambda name: required)
    for module, command in {"jpegio": "pip install -e .", "onnx": "-e '.[export]'"}.items():
        known = explain(ModuleNotFoundError("no module", name=f"{module}.part"))
        assert known is not None
        assert command in known.hint
    assert explain(ModuleNotFoundError("no module", name="mine")) is None


def test_a_deleted_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with user_error("disk", "current folder was deleted"), explained({}):
        Path.cwd()


def test_user_errors_survive_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(NotFinite("a.b", "what", "do")))
    assert (type(error), error.key, error.message, error.hint) == (NotFinite, "a.b", "what", "do")


def test_what_is_no_damage_of_a_file() -> None:
    assert [is_exhausted(system(code)) for code in (errno.EMFILE, errno.ENOMEM, errno.EACCES)] == [
        True, True, False,
    ]  # fmt: skip
    assert is_exhausted(MemoryError())


LIMITED = """
import resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from research.utils.files import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
tensors = {"weight": torch.zeros(100_000)}
writers = {
    "torch": lambda path: torch.save(tensors, path),
    "safetensors": lambda path: save_file(tensors, path),
    "python": lambda path: path.write_bytes(bytes(200_000)),
}
for name, write in writers.items():
    try:
        write_atomic(Path(name), write)
    except OSError as error:
        print(name, error.errno, error.filename, flush=True)
"""


@pytest.mark.long
def test_every_writer_names_file_and_reason(tmp_path: Path) -> None:
    """With a limit on the size of files, in a process of its own."""
    for name in ("torch", "safetensors", "python"):
        (tmp_path / name).write_text("before")
    printed = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed == [f"{n} {errno.EFBIG} {n}" for n in ("torch", "safetensors", "python")]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"before"}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_writers_own_mistake_is_passed_on(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        write_atomic(tmp_path / "file", broken)
    assert not list(tmp_path.iterdir())
    (tmp_path / "parent").touch()
    with pytest.raises(OSError, match="parent"):
        write_text(tmp_path / "parent" / "file", "")


def test_the_log_has_the_traceback_and_the_terminal_has_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(UserError),
        logs.to_file(tmp_path),
        explained({"batch_size": 4, "accumulate": 1}),
    ):
        raise MemoryError("inner")
    text = (tmp_path / "train.log").read_text()
    assert "MemoryError: inner" in text
    assert "ERROR out of memory with batch_size=4" in text
    assert capsys.readouterr().err == ""


def ended(main: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["command", "word"])
    with pytest.raises(SystemExit) as stop:
        cli.command("usage", main)
    return stop.value.code


def test_a_command_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(words: list[str]) -> None:
        raise MemoryError

    assert ended(out_of_memory, monkeypatch) == 2
    assert capsys.readouterr().err == (
        "error: out of memory; free memory, or use a larger machine\n"
    )


@pytest.mark.long
def test_a_reader_that_has_ended(tmp_path: Path) -> None:
    """``python -m research.COMMAND | head -1`` says nothing about the pipe."""
    script = (
        "import sys; from research.config import cli; sys.argv = ['x', 'y']\n"
        "cli.command('usage', lambda words: print('line\\n' * 100_000))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.readline()
        started.stdout.close()
        assert started.stderr.read() == ""
        assert started.wait(timeout=60) == 141
