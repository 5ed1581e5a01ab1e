"""Everyday conditions of a machine as a ``UserError``: memory, disk, worker processes, packages.

Libraries report them in exceptions of many types, often only in the text. This is the only place
that knows them. ``explain`` translates one exception, ``explained`` those of a block. Imports no
torch.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from research.utils.errors import UserError, causes
from research.utils.installation import NAME

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - of the loader's workers; only looked at
FULL: Final = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the disk or ulimit -f allows",
}
REFUSED: Final = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EIO: "the disk reports an input/output error",
    errno.ESTALE: "the network disk was mounted anew (stale file handle)",
    errno.ENOTCONN: "the network disk is not connected",
    errno.ENOLCK: "the disk does not support file locks",
}
REMEDIES: Final = {
    errno.EROFS: "make it writable",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.ESTALE: "start again",
    errno.ENOTCONN: "connect it",
    errno.ENOLCK: "use another disk",
}
OPEN_FILES: Final = (errno.EMFILE, errno.ENFILE)
EXHAUSTED: Final = (*OPEN_FILES, errno.ENOMEM, errno.ENOSPC)
"""Errors of the machine, whatever file is read."""
NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|out of memory|bad_alloc|allocate memory|_ALLOC_FAILED", re.IGNORECASE
)
WANTED = re.compile(r"(?:tried|Unable) to allocate ([\d.]+ [KMGT]iB|\d+ bytes)", re.IGNORECASE)
DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (?:exited|is killed by signal: (.*?)\.)")
LOST_PROCESS = re.compile(r"/gloo/transport/|ncclRemoteError|remote process exited|SocketImpl")
"""The connection of several processes, of gloo, NCCL and the store with their addresses."""
SHARED_FILE = re.compile(r"</torch_\d+_")
"""Shared memory of torch, by which workers send batches."""
DISTRIBUTIONS: Final = {
    "PIL": "pillow",
    "hydra": "hydra-core",
    "jpegio": "pyjpegio",
    "open_clip": "open_clip_torch",
    "yaml": "pyyaml",
}
"""Packages whose modules have other names."""


@dataclass(frozen=True)
class Circumstances:
    """What was going on.

    Attributes:
        settings: current values of the settings that matter, by their key on this command line:
            ``batch_size``, ``accumulate``, ``precision``, ``dataset.image_size``,
            ``workers``, ``out``.
        resume: how the work goes on, such as ``continue with resume=RUN``; may be empty.
        saved: whether the work has a saved state, with which these settings cannot change.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    resume: str = ""
    saved: bool = False

    def key(self, *names: str) -> str:
        """The key of the first setting whose last part is one of ``names``, or an empty text."""
        return next((key for key in self.settings if key.rpartition(".")[2] in names), "")

    def then(self, remedy: str) -> str:
        """A remedy, and how to continue after it."""
        return f"{remedy}, then {self.resume}" if self.resume else remedy


def explain(
    error: BaseException,
    settings: Mapping[str, Any] | None = None,
    resume: str = "",
    *,
    saved: bool = False,
) -> UserError | None:
    """The ``UserError`` for an everyday condition; None for any other exception.

    Args:
        error: it, or an exception that it was raised from, is examined.
        settings: see ``Circumstances``.
        resume, saved: see ``Circumstances``.
    """
    around = Circumstances(settings or {}, resume, saved)
    explained = (rule(cause, around) for cause in causes(error) for rule in RULES)
    return next(filter(None, explained), None)


@contextmanager
def explained(
    settings: Mapping[str, Any],
    resume: Callable[[], str] = lambda: "",
    saved: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Raise the ``UserError`` for an everyday condition inside; see ``explain``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        known = explain(error, settings, resume(), saved=saved())
        if known is None:
            raise
        raise known from error


def is_exhausted(error: BaseException) -> bool:
    """Whether a file could not be read for want of memory or file handles: it is not damaged."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in EXHAUSTED
    )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in every ``OSError`` inside: those of ``write`` and ``close`` have no name."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _memory(error: BaseException, around: Circumstances) -> UserError | None:
    text = str(error)
    name = type(error).__name__
    if not (
        isinstance(error, MemoryError)
        or name == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and NO_MEMORY.search(text))
    ):
        return None
    gpu = name == "OutOfMemoryError" or "CUDA" in text
    wanted = WANTED.search(text)
    batch = around.key("batch_size", "batch", "global_batch_size")
    image = around.key("image_size")
    shown = [f"{key}={around.settings[key]}" for key in around.settings if key in MEMORY_KEYS]
    message = " ".join(
        [
            "out of GPU memory" if gpu else "out of memory",
            *([f"with {', '.join(shown)}"] if shown else []),
            *([f"({wanted[1]} were asked for)"] if wanted else []),
        ]
    )
    remedies = []
    size, rest = around.settings.get(batch, 1), around.settings.get("accumulate")
    # Half of it; batch norm needs two samples in training.
    if size > (1 if rest is None else 2):
        same = "" if rest is None else f" accumulate={2 * rest}"
        remedies.append(f"{batch}={max(1 if rest is None else 2, size // 2)}{same}")
    if around.settings.get("precision") == "fp32":
        remedies.append("precision=bf16")
    if image:
        remedies.append(f"a smaller {image}")
    free = "free GPU memory" if gpu else "free memory"
    hint = f"set {' or '.join(remedies)}" if remedies else f"{free}, or use a larger machine"
    if around.saved:
        new = f"; a new run needs less with {' or '.join(remedies)}" if remedies else ""
        hint = f"{around.then(free)}{new}"
    return UserError(batch or "memory", message, hint)


MEMORY_KEYS: Final = (
    "batch_size", "global_batch_size", "batch", "accumulate", "precision", "dataset.image_size",
)  # fmt: skip


def _shared_memory(error: BaseException, around: Circumstances) -> UserError | None:
    text = str(error)
    bus = "Bus error" in text and DEAD_WORKER.search(text)
    full = isinstance(error, RuntimeError) and SHARED_FILE.search(text) and "No space" in text
    if not (bus or full):
        return None
    space = f" ({_space(SHARED_MEMORY)})" if SHARED_MEMORY.exists() else ""
    return UserError(
        "workers",
        f"{SHARED_MEMORY} is full{space}, through which workers send their batches",
        around.then("set workers=0, or enlarge it (docker run --shm-size=8g)"),
    )


def _worker(error: BaseException, around: Circumstances) -> UserError | None:
    dead = DEAD_WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
    if dead is None:
        return None
    how = f"was killed by a signal ({dead[1]})" if dead[1] else "ended unexpectedly"
    workers = around.settings.get("workers") or 0
    fewer = f"workers={workers // 2}" if workers > 1 else "workers=0"
    return UserError(
        "workers",
        f"a worker of the loader {how}; if memory ran out, the system killed it",
        around.then(f"set {fewer} for less memory"),
    )


def _lost_process(error: BaseException, around: Circumstances) -> UserError | None:
    """The connection to another process of the run was closed."""
    if not (isinstance(error, RuntimeError) and LOST_PROCESS.search(str(error))):
        return None
    remedy = around.then("see its error, or its signal in the launcher's report")
    return UserError("launcher", "another process of this run has ended", remedy)


def _open_files(error: BaseException, around: Circumstances) -> UserError | None:
    text = str(error)
    system = isinstance(error, OSError) and error.errno in OPEN_FILES
    torch = isinstance(error, RuntimeError) and ("Too many open files" in text or "ancdata" in text)
    if not (system or torch):
        return None
    fewer = " or set workers=0" if around.settings.get("workers") else ""
    return UserError(
        "ulimit",
        "too many open files for the limit of this process",
        around.then(f"raise it in this shell with ulimit -n 65536{fewer}"),
    )


def _disk(error: BaseException, around: Circumstances) -> UserError | None:
    if not isinstance(error, OSError):
        return None
    if error.errno in FULL:
        what, remedy = FULL[error.errno], "free space"
    elif error.errno in REFUSED:
        what, remedy = REFUSED[error.errno], REMEDIES.get(error.errno, "check the disk")
    else:
        return None
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    if error.errno in FULL:
        what += f" ({_space(path or Path())})"
    out = around.key("out")
    elsewhere = f" or set another {out}=FOLDER" if out else ""
    where = "" if path is None else f"{path}: "
    return UserError(out or "disk", f"{where}{what}", around.then(f"{remedy}{elsewhere}"))


def _lost_folder(error: BaseException, around: Circumstances) -> UserError | None:
    """A folder that was deleted while it was used; other missing files are not everyday."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return None
    if "No usable temporary directory" in str(error):
        return UserError("TMPDIR", "no folder for temporary files can be written", "free space "
                         "on /tmp or set the environment variable TMPDIR")  # fmt: skip
    if error.filename is None:
        gone = not _exists(Path())
        folder: Path | str = "the current folder"
    else:
        folder = Path(os.fsdecode(error.filename)).parent
        gone = not _exists(folder)
    if not gone:
        return None
    return UserError(
        "disk", f"{folder} was deleted or moved while it was used", around.then("restore it")
    )


def _batch_norm(error: BaseException, around: Circumstances) -> UserError | None:
    if not (isinstance(error, ValueError) and "more than 1 value per channel" in str(error)):
        return None
    key = around.key("batch_size", "global_batch_size") or "batch_size"
    size = around.settings.get(key)
    image = around.key("image_size") or "dataset.image_size"
    current = "" if size is None else f" with {key}={size} and {image}={around.settings.get(image)}"
    two = f"{key}=2 with at least two samples"
    return UserError(
        key,
        f"batch norm needs more than one value per channel in training, it has one{current}",
        f"set {f'{two} or ' if size in (None, 1) else ''}a larger {image}",
    )


def _gpu(error: BaseException, around: Circumstances) -> UserError | None:
    if not (isinstance(error, RuntimeError) and "no kernel image is available" in str(error)):
        return None
    return UserError(
        "device",
        "the installed torch has no code for this GPU",
        "install a torch for it (https://pytorch.org), or set device=cpu",
    )


def _database(error: BaseException, around: Circumstances) -> UserError | None:
    if type(error).__module__ != "sqlite3" or type(error).__name__ != "OperationalError":
        return None
    text = " ".join(str(error).split())
    remedies = {
        "disk is full": "free space",
        "readonly": "make it writable",
        "unable to open": "make its folder exist and writable",
        "disk I/O": "free space, or move it to a local disk",
        "locked": "end the process that has locked it",
    }
    for words, remedy in remedies.items():
        if words in text:
            return UserError("database", f"a sqlite database: {text}", around.then(remedy))
    return None


def _package(error: BaseException, around: Circumstances) -> UserError | None:
    """A package of this project that is not installed; others are the user's own."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    module = error.name.partition(".")[0]
    wanted = _normal(DISTRIBUTIONS.get(module, module))
    try:
        required = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return None
    for line in required:
        name, _, condition = line.partition(";")
        if _normal(re.split(r"[\s\[<>=!~(]", name.strip(), maxsplit=1)[0]) != wanted:
            continue
        extra = re.search(r"extra == ['\"](\w+)['\"]", condition)
        what = f"'.[{extra[1]}]'" if extra else "."
        return UserError(
            "package", f"the package {wanted} is not installed", f"run pip install -e {what}"
        )
    return None


RULES: tuple[Callable[[BaseException, Circumstances], UserError | None], ...] = (
    _shared_memory, _worker, _open_files, _memory, _lost_process, _disk, _lost_folder, _batch_norm,
    _gpu, _database, _package,
)  # fmt: skip


def _space(path: Path) -> str:
    """How much of the disk of a file is free."""
    try:
        folder = path.absolute()
        while not folder.exists():
            folder = folder.parent
        usage = shutil.disk_usage(folder)
        free_inodes = os.statvfs(folder).f_favail if hasattr(os, "statvfs") else 1
    except OSError:
        return "its free space is not known"
    inodes = ", but no file more can be created" if usage.free and not free_inodes else ""
    return f"{_size(usage.free)} of {_size(usage.total)} free{inodes}"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _exists(folder: Path) -> bool:
    try:
        return folder.exists() and folder.resolve().exists()
    except OSError:
        return False


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
