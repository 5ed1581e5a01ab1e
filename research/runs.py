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

from research.errors import UserError
from research.files import write_text

log = logging.getLogger(__name__)

ROOT = Path("runs")
NOT_COMPARED = ("resume", "epochs", "device", "run_dir", "logging")
"""Settings that may differ between a run and its resumption: how far, where, and where to."""

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "pillow", "pyjpegio", "hydra-core", "omegaconf",
    "mlflow", "torchmetrics", "safetensors", "backbone-lab",
)  # fmt: skip


def create(config: Mapping[str, Any], name: str) -> Path:
    """A fresh run folder: the one asked for, or ``runs/TIME_NAME``.

    Raises:
        UserError: when ``run_dir`` already holds a run.
    """
    if config["run_dir"] is not None:
        folder = Path(config["run_dir"])
        if (folder / "config.yaml").exists():
            raise UserError(
                f"run_dir: {folder} already holds a run; choose another, or resume={folder}"
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
    raise UserError(f"run_dir: no free name like {ROOT / stamp}; give run_dir=FOLDER")


def describe(folder: Path, config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Write configuration, overrides and environment; returns the environment."""
    environment = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
        "hardware": {
            "platform": platform.platform(),
            "cpu": platform.processor() or platform.machine(),
            "cores": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": [
                torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
            ],
        },
        "command": sys.argv,
    }
    write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    write_text(folder / "overrides.yaml", yaml.safe_dump(list(overrides)))
    write_text(folder / "environment.json", json.dumps(environment, indent=1))
    return environment


def find_unfinished(config: Mapping[str, Any], epochs: int) -> Path | None:
    """The newest run of this very configuration that has not reached ``epochs``, if any.

    A run that another process is still at is passed over.
    """
    candidates = sorted(ROOT.glob("*/config.yaml"), key=os.path.getmtime, reverse=True)
    if config["run_dir"] is not None:
        candidates = [Path(config["run_dir"]) / "config.yaml"]
    for path in candidates:
        folder = path.parent
        if not (folder / "checkpoints" / "last.pt").exists() or _busy(folder):
            continue
        summary = json.loads((folder / "summary.json").read_text())
        finished = summary["stopped_early"] or summary["epochs_done"] >= epochs
        if not finished and not changed(config, folder):
            return folder
    return None


def changed(config: Mapping[str, Any], folder: Path) -> list[str]:
    """The settings in which a run differs that would go on with ``config``, dotted."""
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    ours, theirs = (dict(_leaves(_compared(node))) for node in (config, yaml.safe_load(text)))
    keys = dict.fromkeys([*theirs, *ours])
    return [k for k in keys if (k in ours, ours.get(k)) != (k in theirs, theirs.get(k))]


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the lock goes when the process does.

    Raises:
        UserError: when another process trains in it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process is training in this run folder") from None
    try:
        yield
    finally:
        lock.release()


def _busy(folder: Path) -> bool:
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in NOT_COMPARED}
    # Through JSON, so that tuples read back as lists compare equal.
    return dict(json.loads(json.dumps(kept)))


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """Commit and whether files were changed since; empty outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}
