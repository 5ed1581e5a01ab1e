"""The index of a folder tree: every image's header read once, and remembered.

A file is remembered under its name, size and modification time; only new or changed files are
opened again.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from research.compression.jpeg import MIN_SIDE
from research.utils.cache import cached_by_file
from research.utils.threads import map_threads

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".ppm",
        ".pgm",
        ".webp",
        ".tif",
        ".tiff",
        ".gif",
    ]
)
ProgressCallback = Callable[[str, int, int], None]
"""Told (what, done, total) while long work goes on."""


class Entry(NamedTuple):
    """One file: its size in bytes, modification time, and what is wrong with it ('' if nothing)."""

    bytes: int
    modified_ns: int
    damage: str


def inspect_header(path: Path) -> str:
    """The kind of damage that the header shows, or '' when the image can be opened.

    Kinds: ``empty``, ``not_an_image``, ``oversized`` (more pixels than PIL's limit against
    decompression bombs), ``too_small`` (a side under 8 px), ``unreadable``.
    """
    if path.stat().st_size == 0:
        return "empty"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return "too_small" if min(image.size) < MIN_SIDE else ""
    except UnidentifiedImageError:
        return "not_an_image"
    except Image.DecompressionBombError:
        return "oversized"
    except (OSError, ValueError, SyntaxError):
        return "unreadable"


def index_folder(
    root: Path, cache: Path, progress: ProgressCallback | None = None
) -> dict[str, Entry]:
    """Every image file below ``root`` by its path relative to it, in sorted order.

    Args:
        root: the folder.
        cache: folder of the index (one file a root, see ``cached_by_file``).
        progress: told while headers are read.
    """
    stats = dict(sorted(_image_files(root)))
    stamps = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}

    def damage(names: list[str]) -> Iterator[str]:
        threads = min(16, 2 * (os.cpu_count() or 1))
        what = f"reading headers in {root.name}"
        files = [root / name for name in names]
        return map_threads(inspect_header, files, threads, what, progress)

    kinds = cached_by_file(cache, {"index": str(root.resolve())}, stamps, damage)
    return {name: Entry(*stamp, kinds[name]) for name, stamp in stamps.items()}


def _image_files(root: Path) -> Iterable[tuple[str, os.stat_result]]:
    for folder, _, files in os.walk(root, followlinks=True):
        for file in files:
            if os.path.splitext(file)[1].lower() in EXTENSIONS:
                path = os.path.join(folder, file)
                if os.path.exists(path):
                    yield os.path.relpath(path, root), os.stat(path)
