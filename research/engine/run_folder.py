"""Run folders: creation, locks, and the search for an unfinished run (``resume=auto``).

Also writes what is needed to reproduce a run, see ``describe``.
"""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from filelock import FileLock, Timeout

from research.config import run_files
from research.config.compose import config_dir
from research.config.outputs import resume_command
from research.config.resume import SHOWN, unchangeable, words_to_resume
from research.config.run_paths import ROOT
from research.engine import checkpoint
from research.engine.new_folder import NewFolder
from research.tracking import spool
from research.utils import documents, secrets
from research.utils.errors import UserError, one_line
from research.utils.files import to_json, write_atomic, write_text
from research.utils.installation import IS_COPY, NAME, VERSION
from research.utils.launch import machines

log = logging.getLogger(__name__)

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "scipy", "pillow", "pyjpegio", "av", "open_clip_torch",
    "hydra-core", "hydra-optuna-sweeper", "omegaconf", "optuna", "mlflow", "torchmetrics",
    "faster-coco-eval", "safetensors", NAME,
)  # fmt: skip
BATCH = ("processes", "global_batch", "lr")
"""What ``description.batch`` says."""
PATCH = "changes.patch"
DIFF = (
    "-c", "diff.relative=false", "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff",
    "--no-textconv", "--submodule=short", "--unified=3", "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip
"""Gives what ``git apply`` takes, whatever the user has set for his own reading."""
STATUS = ("status", "--porcelain", "--untracked-files=normal")
LARGEST_PATCH = 2**20
"""Bytes; larger patches are not stored."""
AT_THE_START = (
    ".lock", "train.log", "config.yaml", "overrides.yaml", "environment.json", PATCH,
    "model_summary.txt", "summary.json", "tensorboard",
)  # fmt: skip
"""What is in a run folder before the first batch is trained."""


def create(config: Mapping[str, Any], name: str) -> NewFolder:
    """Create a run folder: ``run_dir``, or ``runs/TIME_NAME``.

    With ``resume=auto``, a run in ``run_dir`` that ended before its first checkpoint starts again.

    Raises:
        UserError: if ``run_dir`` already contains a run, or cannot be a folder.
    """
    if config["run_dir"] is not None:
        folder = Path(config["run_dir"])
        again = config["resume"] == "auto" and not any((folder / "checkpoints").glob("*.pt"))
        if (folder / "config.yaml").exists() and not (again and not is_locked(folder)):
            raise _in_use(folder) if is_locked(folder) else _taken(folder, config)
        try:
            return NewFolder.create(folder, AT_THE_START, shared=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                "run_dir", f"run_dir: {folder} is a file, or below one", "set another folder"
            ) from None
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{name}"
    for number in range(1, 1000):
        folder = ROOT / (stamp if number == 1 else f"{stamp}_{number}")
        with suppress(FileExistsError):  # created by a parallel job in the same second
            return NewFolder.create(folder, AT_THE_START, shared=False)
    raise UserError("run_dir", f"run_dir: no free name like {ROOT / stamp}", "set run_dir=FOLDER")


def _in_use(folder: Path) -> UserError:
    return UserError("run_dir", f"{folder}: another process is training in this run folder")


def _taken(folder: Path, config: Mapping[str, Any]) -> UserError:
    """The error for a folder that has a run; for ``resume=auto`` with the settings that differ."""
    keys: list[str] = []
    if config["resume"] == "auto":
        with suppress(UserError):
            keys = changed(config, folder)
    others = f", with other settings: {', '.join(keys[:SHOWN])}" if keys else ""
    command = resume_command(folder, *words_to_resume(folder, config))
    return UserError(
        "run_dir",
        f"run_dir: {folder} already contains a run{others}",
        f"set another folder, or continue this run: {command}",
    )


def describe(
    folder: Path,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    data: tuple[str, str] | None = None,
    batch: Mapping[str, Any] | None = None,
    weights: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write configuration, overrides, environment and uncommitted changes.

    Args:
        folder: the run folder.
        config: resolved configuration.
        overrides: arguments of the command line.
        data: name and quick hash of the data set.
        batch: of a run that trains, see ``description.batch``.
        weights: from which it started, see ``pretrained.record``.

    Returns:
        The content of ``environment.json``.
    """
    record = {
        **environment(),
        **(batch or {}),
        "command": command(),
        "folder": str(Path.cwd()),
        "machines": machines(),
        "config_dir": None if (own := config_dir()) is None else str(own),
        "data": data and {"name": data[0], "hash": data[1]},
        "weights": list(weights),
    }
    write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    write_text(folder / "overrides.yaml", yaml.safe_dump(list(overrides)))
    write_text(folder / "environment.json", json.dumps(record, indent=1))
    patch = changes()
    if len(patch) > LARGEST_PATCH:
        log.warning("%d bytes of uncommitted changes are not stored; commit them", len(patch))
    if 0 < len(patch) <= LARGEST_PATCH:
        write_atomic(folder / PATCH, lambda path: _write_bytes(path, patch))
    else:
        (folder / PATCH).unlink(missing_ok=True)
    return record


def tags(own: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a run for trackers: the user's, and the versions of data, code and packages.

    Args:
        own: the user's.
        environment: the content of ``environment.json``.
    """
    git, weights = environment["git"], environment.get("weights", ())  # earlier runs have none
    started = [f"{each['name']} (sha256 {each['sha256']})" for each in weights]
    every = {
        **own,
        **{name: environment[name] for name in BATCH if name in environment},
        **({"weights": ", ".join(started)} if started else {}),
        "data_hash": environment["data"]["hash"],
        "git_commit": git.get("commit", ""),
        "git_changed": git.get("changed", ""),
        **{f"version.{name}": version for name, version in environment["packages"].items()},
    }
    return {key: str(value) for key, value in every.items()}


def environment() -> dict[str, Any]:
    """Current versions of Python and packages, commit and hardware."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
        "hardware": {
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cores": psutil.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": [
                torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
            ],
        },
    }


def versions() -> dict[str, str | None]:
    """Versions of this project and of torch, and the commit of a checkout."""
    names = (NAME, "torch")
    return {**{name: _version(name) for name in names}, "git_commit": _git().get("commit")}


def command() -> list[str]:
    """The command line of this process, without secrets; it may be a program that calls us."""
    return [secrets.hidden_word(word) for word in sys.argv]


def changes() -> bytes:
    """Uncommitted changes of tracked files, for ``git apply``; empty outside a checkout."""
    if IS_COPY:
        return b""
    try:
        return _run_git(*DIFF)
    except (OSError, subprocess.CalledProcessError):
        return b""


def find_unfinished(config: Mapping[str, Any], epochs: int) -> Path | None:
    """The newest run with this configuration that has not reached ``epochs``, or None.

    Runs that are locked by another process are ignored.
    """
    candidates = sorted(ROOT.glob("*/config.yaml"), key=_changed_at, reverse=True)
    if config["run_dir"] is not None:
        candidates = [Path(config["run_dir"]) / "config.yaml"]
    for path in candidates:
        folder = path.parent
        try:
            if not checkpoint.paths(folder) or is_locked(folder):
                continue
            done = is_finished(folder, {**config, "epochs": epochs})
            if not done and not changed(config, folder):
                checkpoint.check_any_intact(folder)
                return folder
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            log.warning("resume=auto ignores %s, which is damaged: %s", folder, one_line(error))
    return None


def _changed_at(path: Path) -> float:
    """Modification time in seconds; 0 for a link that leads nowhere."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def is_finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run has reached its last epoch or its early stop, has written its final files and
    evaluated its best checkpoint, and no record waits for its store.

    Args:
        folder: of the run.
        config: with which it would be resumed.

    Raises:
        UserError, KeyError, TypeError: if its summary is missing or damaged.
    """
    summary = documents.load(folder / "summary.json", dict, "resume")
    done, patience, split = summary["epochs_done"], config["patience"], config["evaluate_at_end"]
    stopped = patience is not None and done - summary["best_epoch"] >= patience
    reached = stopped or done >= config["epochs"]
    ended = summary["status"] in ("FINISHED", "PRUNED")
    evaluated = [each["split"] for each in summary.get("evaluations", {}).values()]
    missing = split is not None and split not in evaluated and summary["status"] != "PRUNED"
    return bool(reached and ended and not missing and not (folder / spool.NAME).exists())


def changed(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Dotted keys of settings of the run in ``folder`` that differ and may not when it is resumed.

    Raises:
        UserError: if the run's configuration cannot be read.
    """
    return list(unchangeable(run_files.comparable(folder), config))


def data_hash(folder: Path) -> str | None:
    """The hash of the data with which a run was trained last; None if it is not known."""
    try:
        return str(documents.load(folder / "environment.json", dict, "resume")["data"]["hash"])
    except (KeyError, TypeError, UserError):
        return None


def start_weights(folder: Path) -> list[dict[str, Any]]:
    """The weights from which a run that is resumed has started; empty if they are not known."""
    with suppress(UserError):
        found = documents.load(folder / "environment.json", dict, "resume").get("weights")
        if isinstance(found, list):
            return [each for each in found if isinstance(each, dict) and "sha256" in each]
    return []


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a run folder; the lock is released when the process ends.

    Raises:
        UserError: if another process has locked it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0.5)  # `is_locked` of another process takes it briefly
    except Timeout:
        raise _in_use(folder) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def watching(folder: Path) -> Iterator[None]:
    """What the other processes of a run do in place of ``run_lock``: after an error, such as the
    lost connection to the main process, they write the status that this one could not write.
    """
    try:
        yield
    except BaseException:
        path = folder / "summary.json"
        if path.exists():  # else the run has not begun, and the lock would create its folder anew
            # Until the main process has ended, the lock is refused.
            with suppress(UserError, OSError), run_lock(folder):
                summary = documents.load(path, dict, "resume")
                if summary.get("status") == "RUNNING":
                    write_text(path, to_json({**summary, "status": "KILLED"}))
        raise


def is_locked(folder: Path) -> bool:
    """Whether a process has locked the run folder; leaves no lock in it."""
    if not (folder / ".lock").exists():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def _version(package: str) -> str | None:
    if package == NAME:  # a checkout may have been installed when it was another
        return VERSION
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The name of the CPU; the ``platform`` module does not have it on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _git() -> dict[str, Any]:
    """Commit, whether files have changed, and untracked files; empty outside a checkout."""
    if IS_COPY:
        return {}  # the checkout around an environment, if there is one, is that of other code
    try:
        commit, status = (_run_git(*words).decode() for words in (("rev-parse", "HEAD"), STATUS))
    except (OSError, subprocess.CalledProcessError):
        return {}
    untracked = [line[3:] for line in status.splitlines() if line.startswith("??")]
    return {"commit": commit.strip(), "changed": bool(status), "untracked": untracked}


def _run_git(*words: str) -> bytes:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, check=True).stdout  # noqa: S603 - our words


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
