"""The files below a folder: those that are read, and those that are passed over, by kind.

Every reader and command finds its files here, so that the same names are read everywhere and no
file or folder is left out without being counted.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from research.utils.conditions import is_exhausted
from research.utils.counts import by_kind, counted
from research.utils.errors import printable

log = logging.getLogger(__name__)

HIDDEN: Final = "hidden"
SYSTEM: Final = "system"
LOOP: Final = "linked again"
BROKEN: Final = "broken link"
SPECIAL: Final = "no regular file"
CLOSED: Final = "unreadable folder"
NO_TEXT: Final = "unreadable name"
OTHER_SUFFIX: Final = "other"
SYSTEM_NAMES: Final = frozenset(
    [
        "__macosx",
        "@eadir",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "#recycle",
        "#snapshot",
    ]
)
"""Files and folders of operating systems and network disks, in lower case."""

MAX_LOGGED: Final = 20
"""Files that are logged one by one."""


@dataclass
class PassedOver:
    """Files that are not read.

    Attributes:
        counts: number of files by kind: ``hidden``, ``system``, ``linked again``, …, or the suffix
            in upper case.
        examples: the first file of each kind, relative to the folder.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        self.examples.setdefault(kind, printable(name))

    def update(self, other: PassedOver) -> None:
        """Add the files of another folder."""
        self.counts.update(other.counts)
        self.examples = {**other.examples, **self.examples}

    def below(self, folder: str) -> PassedOver:
        """The same, with names relative to a folder above this one."""
        examples = {kind: f"{folder}/{name}" for kind, name in self.examples.items()}
        return PassedOver(self.counts, examples)

    def __str__(self) -> str:
        kinds = f" ({by_kind(self.counts)})" if self.counts else ""
        return f"{self.counts.total()} passed over{kinds}"

    def details(self) -> str:
        """One file of each kind, in words; empty if there is none."""
        return ", ".join(f"{name} ({kind})" for kind, name in self.examples.items())


@dataclass(frozen=True)
class Listing:
    """What a folder contains.

    Attributes:
        root: the folder.
        names: POSIX paths of the files to read, relative to ``root``, sorted.
        passed_over: all other files; a link that is not followed counts as one file.
    """

    root: Path
    names: list[str]
    passed_over: PassedOver

    @property
    def paths(self) -> list[Path]:
        """The files to read, sorted by the parts of their paths."""
        return sorted(self.root / name for name in self.names)


def passed_over_kind(name: str) -> str:
    """Why a file or folder of this name is never read, or ''.

    ``hidden``, ``system``, or ``unreadable name``: its bytes are no text, so that no record of it
    can be written.
    """
    if name.startswith("."):
        return HIDDEN
    if any("\ud800" <= char <= "\udfff" for char in name):
        return NO_TEXT
    return SYSTEM if name.lower() in SYSTEM_NAMES else ""


def list_files(root: Path, suffixes: Set[str] | None) -> Listing:
    """Find the files below a folder, at any depth.

    Each real file is listed once, however many links lead to it: a link to a file or folder that is
    listed already is passed over, and so is one that leads back to a folder above it. Hard links
    are files of their own. Whether a name is hidden counts only below ``root``.

    Args:
        root: the folder.
        suffixes: the suffixes to list, in lower case, such as ``.jpg``; ``None`` for all.
    """
    walk = _Walk(root, suffixes)
    walk.folder(root, "", "")
    walk.follow_links()
    return Listing(root, sorted(walk.names), walk.passed_over)


def list_folders(folder: Path) -> list[str]:
    """Names of the folders directly in a folder that are not passed over, sorted.

    Without links to one of them, or to the folder itself or one above it.
    """
    paths = [path for path in folder.iterdir() if not passed_over_kind(path.name) and path.is_dir()]
    known = {_identity(os.stat(each)) for each in (folder, *folder.resolve().parents)}
    names = []
    for path in sorted(paths, key=lambda path: (path.is_symlink(), path.name)):
        identity = _identity(os.stat(path))
        if identity not in known:
            names.append(path.name)
        known.add(identity)
    return sorted(names)


def log_files(root: Path, found: Mapping[str, str], passed_over: PassedOver) -> None:
    """Log how many pictures are used, passed over and left out, and the first of the latter.

    Args:
        root: the folder.
        found: kind of damage of each picture that was found, '' for none.
        passed_over: all other files.
    """
    damaged = {name: kind.replace("_", " ") for name, kind in found.items() if kind}
    used = len(found) - len(damaged)
    log.info("%s: %s", root, describe_files(used, passed_over, Counter(damaged.values())))
    if passed_over.counts:
        log.info("%s: passed over, for example: %s", root, passed_over.details())
    log_skipped([f"{root / name}: {kind}" for name, kind in damaged.items()])


def describe_files(used: int, passed_over: PassedOver, left_out: Counter[str] | None = None) -> str:
    """The number of pictures that are used, and of all others by kind, in words."""
    parts = [f"{counted(used, 'pictures')} used"]
    if passed_over.counts:
        parts.append(str(passed_over))
    if left_out:
        parts.append(f"{left_out.total()} left out ({by_kind(left_out)})")
    return ", ".join(parts)


def log_skipped(problems: Sequence[str]) -> None:
    """Log the first ``MAX_LOGGED`` files that are left out, and the number of the others."""
    for problem in problems[:MAX_LOGGED]:
        log.warning("left out: %s", printable(problem))
    if len(problems) > MAX_LOGGED:
        log.warning("left out: … and %d more", len(problems) - MAX_LOGGED)


class LeftOutFiles:
    """Names files that are found damaged while samples are read: each once, the first ones."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def log(self, found: Mapping[str, str]) -> None:
        """Log files that were not named before.

        Args:
            found: kind of damage of each.
        """
        for file, kind in found.items():
            if file in self.files or len(self.files) > MAX_LOGGED:
                continue
            self.files.add(file)
            if len(self.files) > MAX_LOGGED:
                log.warning("left out: … and more; they are counted")
            else:
                log.warning("left out: %s", printable(f"{file}: {kind.replace('_', ' ')}"))


class _Walk:
    """A walk over real folders first, then over those that links lead to.

    So a file has its real name, and a link to it is the one that is passed over.
    """

    def __init__(self, root: Path, suffixes: Set[str] | None) -> None:
        self.root = root
        self.suffixes = suffixes
        self.names: list[str] = []
        self.passed_over = PassedOver()
        self.links: list[tuple[str, str]] = []
        self.folders: set[tuple[int, int]] = set()

    def folder(self, path: Path, name: str, kind: str) -> None:
        """Add the files in a folder, its links to ``links``.

        Args:
            path: the folder.
            name: its path relative to the root; '' for the root.
            kind: why its files are passed over, or ''.
        """
        pending = [(os.fspath(path), name, kind)]
        while pending:
            current, name, kind = pending.pop()
            try:
                identity = _identity(os.stat(current))
                with os.scandir(current) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name)
            except OSError as error:
                if is_exhausted(error):
                    raise
                self.passed_over.add(CLOSED, name or ".")
                continue
            if identity in self.folders:
                self.passed_over.add(LOOP, name)
                continue
            self.folders.add(identity)
            inside = []
            for entry in entries:
                inner = f"{name}/{entry.name}" if name else entry.name
                why = kind or passed_over_kind(entry.name)
                if entry.is_symlink():
                    self.links.append((inner, why))
                elif entry.is_dir():
                    inside.append((entry.path, inner, why))
                else:
                    self.file(inner, why or ("" if entry.is_file() else SPECIAL))
            pending += reversed(inside)  # the first one is next

    def file(self, name: str, kind: str) -> None:
        suffix = os.path.splitext(name)[1]
        listed = self.suffixes is None or suffix.lower() in self.suffixes
        if kind or not listed:
            self.passed_over.add(kind or suffix_kind(suffix), name)
        else:
            self.names.append(name)

    def follow_links(self) -> None:
        """Add what links lead to, unless it is there already; folders before files."""
        while self.links:
            batch, self.links = sorted(self.links), []
            files = []
            for name, kind in batch:
                path = self.root / name
                if kind:
                    self.passed_over.add(kind, name)
                elif path.is_dir():
                    self.folder(path, name, "")
                elif path.exists():
                    files.append(name)
                else:  # also a link to itself
                    self.passed_over.add(BROKEN, name)
            if files:
                self.link_files(files)

    def link_files(self, names: Sequence[str]) -> None:
        """Add the files behind these links."""
        known = {_identity(os.stat(self.root / name)) for name in self.names}
        for name in names:
            path = self.root / name
            identity = _identity(os.stat(path))
            self.file(name, LOOP if identity in known else "" if path.is_file() else SPECIAL)
            known.add(identity)


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def suffix_kind(suffix: str) -> str:
    """A suffix as a kind of files that are passed over, such as ``HEIC``."""
    kind = suffix[1:].upper()
    return kind if kind.isalnum() and len(kind) <= 12 else OTHER_SUFFIX
