"""Run folders: made once, described so that they can be repeated, found again to be resumed."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from filelock import FileLock, Timeout

from research.config import stored
from research.config.keys import differences
from research.utils.errors import UserError, one_line
from research.utils.files import write_atomic, write_text

log = logging.getLogger(__name__)

ROOT = Path("runs")
NOT_COMPARED = ("resume", "epochs", "device", "run_dir", "logging", "trust", "version")
"""Settings that may differ between a run and its resumption: how far, where, and where to."""

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "scipy", "pillow", "pyjpegio", "av", "open_clip_torch",
    "hydra-core", "hydra-optuna-sweeper", "omegaconf", "optuna", "mlflow", "torchmetrics",
    "faster-coco-eval", "safetensors", "backbone-lab",
)  # fmt: skip
PATCH = "changes.patch"
LARGEST_PATCH = 2**20
"""Bytes; larger changes are left to the user to commit."""


def create(config: Mapping[str, Any], name: str) -> Path:
    """A fresh run folder: the one asked for, or ``runs/TIME_NAME``.

    Raises:
        UserError: when ``run_dir`` already holds a run.
    """
    if config["run_dir"] is not None:
        folder = Path(config["run_dir"])
        if (folder / "config.yaml").exists():
            raise UserError(
                "run_dir",
                f"run_dir: {folder} already holds a run",
                f"choose another, or resume={folder}",
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{name}"
    for number in range(1, 1000):
        folder = ROOT / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            # A parallel job of the same second has it.
            continue
        return folder
    raise UserError("run_dir", f"run_dir: no free name like {ROOT / stamp}", "give run_dir=FOLDER")


def describe(
    folder: Path,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    data: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Write configuration, overrides, environment and what was changed since the commit.

    Args:
        folder: of the run.
        config: resolved.
        overrides: what the command line said.
        data: the data set's name and quick hash.

    Returns:
        the environment, as in ``environment.json``.
    """
    found = {
        **environment(),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "data": data and {"name": data[0], "hash": data[1]},
    }
    write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    write_text(folder / "overrides.yaml", yaml.safe_dump(list(overrides)))
    write_text(folder / "environment.json", json.dumps(found, indent=1))
    patch = changes()
    if len(patch) > LARGEST_PATCH:
        log.warning("%d bytes of uncommitted changes are not kept; commit them", len(patch))
    if 0 < len(patch) <= LARGEST_PATCH:
        write_atomic(folder / PATCH, lambda path: _write_bytes(path, patch))
    else:
        (folder / PATCH).unlink(missing_ok=True)
    return found


def environment() -> dict[str, Any]:
    """Python, packages, commit and hardware, as they are now."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
        "hardware": {
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cores": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": [
                torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
            ],
        },
    }


def changes() -> bytes:
    """What tracked files differ from the commit in, for ``git apply``; empty outside a checkout."""
    try:
        return _run_git("diff", "HEAD", "--binary", "--no-color", "--no-ext-diff")
    except (OSError, subprocess.CalledProcessError):
        return b""


def find_unfinished(config: Mapping[str, Any], epochs: int) -> Path | None:
    """The newest run of this very configuration that has not reached ``epochs``, if any.

    A run that another process is still at is passed over.
    """
    candidates = sorted(ROOT.glob("*/config.yaml"), key=os.path.getmtime, reverse=True)
    if config["run_dir"] is not None:
        candidates = [Path(config["run_dir"]) / "config.yaml"]
    for path in candidates:
        folder = path.parent
        if not (folder / "checkpoints" / "last.pt").exists() or is_locked(folder):
            continue
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            finished = summary["stopped_early"] or summary["epochs_done"] >= epochs
            same = not finished and not changed(config, folder)
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            log.warning("resume=auto passes over %s, which is damaged: %s", folder, one_line(error))
            continue
        if same:
            return folder
    return None


def changed(config: Mapping[str, Any], folder: Path) -> list[str]:
    """The settings in which a run differs that would go on with ``config``, dotted.

    Raises:
        UserError: when the run's configuration cannot be read.
    """
    path = folder / "config.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError("RUN", f"{path}: damaged ({one_line(error)})", "use another run") from None
    then = stored.completed(stored.recorded(document, str(path)))
    return list(differences(then, config, NOT_COMPARED))


def is_own(path: Path) -> bool:
    """Whether a file lies under the user's own ``runs/``, wherever links lead."""
    return path.resolve().is_relative_to(ROOT.resolve())


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a run folder for this process; the lock ends with the process.

    Raises:
        UserError: when another process trains in it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0.5)  # `is_locked` of another process holds it for an instant
    except Timeout:
        raise UserError(
            "RUN", f"{folder}: another process is training in this run folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name, which Python does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _git() -> dict[str, Any]:
    """Commit, whether files were changed since, and untracked ones; empty outside a checkout."""
    try:
        commit, status = (
            _run_git(*words).decode()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    untracked = [line[3:] for line in status.splitlines() if line.startswith("??")]
    return {"commit": commit.strip(), "changed": bool(status), "untracked": untracked}


def _run_git(*words: str) -> bytes:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, check=True).stdout


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
