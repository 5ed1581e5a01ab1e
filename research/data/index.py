"""A cached index of the image files in a folder tree, and hashes of their content.

Files are identified by name, size and times; only new or changed files are opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final, NamedTuple

from research.data.image_files import EXTENSIONS, inspect_header
from research.data.listing import PassedOver, list_files
from research.utils.cache import cached_by_file, file_stamp
from research.utils.conditions import is_exhausted
from research.utils.progress import track
from research.utils.threads import map_threads

VERSION: Final = 2
"""Increase it when other headers are found damaged, so that cached kinds are not used."""


class Entry(NamedTuple):
    """One file.

    Attributes:
        bytes: its size.
        damage: its kind; '' if there is none.
        identity: of device and inode, the same for all names and links of a file.
    """

    bytes: int
    damage: str
    identity: int


class Index(NamedTuple):
    """The image files of a folder tree.

    Attributes:
        entries: by path relative to the folder, sorted.
        passed_over: all other files.
    """

    entries: dict[str, Entry]
    passed_over: PassedOver


def index_folder(root: Path, cache: Path) -> Index:
    """All image files below ``root``, see ``list_files``.

    Args:
        root: the folder.
        cache: folder of cached indexes, see ``cached_by_file``.
    """
    listing = list_files(root, EXTENSIONS)
    names = track(listing.names, f"listing {root.name}")
    stats = {name: os.stat(root / name) for name in names}
    stamps = {name: file_stamp(stat) for name, stat in stats.items()}

    def header_kinds(names: list[str]) -> Iterator[str]:
        what = f"reading headers in {root.name}"
        files = [root / name for name in names]
        return map_threads(inspect_header, files, _threads(), what)

    key = {"index": str(root.resolve()), "version": VERSION}
    kinds = cached_by_file(cache, key, stamps, header_kinds)
    entries = {
        name: Entry(stat.st_size, kinds[name], stat.st_dev << 64 | stat.st_ino)
        for name, stat in stats.items()
    }
    return Index(entries, listing.passed_over)


def content_hash(files: Sequence[Path], cache: Path) -> str:
    """Hash of the content of files, in their order; files that cannot be read count as such.

    It is the key for what is measured on pictures: neither a name, nor a size, nor a time shows
    whether pixels are the same. Unchanged files are not read again.

    Args:
        files: the files.
        cache: hashes of single files are stored in its folder ``contents``.
    """
    folders = {parent: str(parent.resolve()) for parent in {file.parent for file in files}}
    paths = [os.path.join(folders[file.parent], file.name) for file in files]
    stamps = {path: _stamp(path) for path in paths}

    def hashes(stale: list[str]) -> Iterator[str]:
        return map_threads(_hash, stale, _threads(), "hashing files")

    key = {"contents": sorted({os.path.dirname(path) for path in paths})}
    known = cached_by_file(cache / "contents", key, stamps, hashes)
    return sha256("".join(known[path] for path in paths).encode()).hexdigest()[:32]


def _stamp(path: str) -> list[int]:
    try:
        return file_stamp(os.stat(path))
    except OSError:
        return []


def _hash(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if is_exhausted(error):
            raise
        return "unreadable"


def _threads() -> int:
    return min(16, 2 * (os.cpu_count() or 1))
