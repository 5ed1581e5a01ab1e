"""A cached index of the image headers in a folder tree.

Files are identified by name, size and modification time; only new or changed files are opened.
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
from research.utils.conditions import is_exhausted
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
"""Called with (what, done, total) during long operations."""


class Entry(NamedTuple):
    """One file: size in bytes, modification time, and kind of damage ('' if there is none)."""

    bytes: int
    modified_ns: int
    damage: str


def inspect_header(path: Path) -> str:
    """The kind of damage that the header shows, or '' if the image can be opened.

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
    except (OSError, ValueError, SyntaxError) as error:
        if is_exhausted(error):
            raise
        return "unreadable"


def index_folder(
    root: Path, cache: Path, progress: ProgressCallback | None = None
) -> dict[str, Entry]:
    """All image files below ``root``, by relative path, sorted.

    Args:
        root: the folder.
        cache: folder of cached indexes, see ``cached_by_file``.
        progress: called while headers are read.
    """
    stats = dict(sorted(_image_files(root)))
    stamps = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}

    def header_kinds(names: list[str]) -> Iterator[str]:
        threads = min(16, 2 * (os.cpu_count() or 1))
        what = f"reading headers in {root.name}"
        files = [root / name for name in names]
        return map_threads(inspect_header, files, threads, what, progress)

    kinds = cached_by_file(cache, {"index": str(root.resolve())}, stamps, header_kinds)
    return {name: Entry(*stamp, kinds[name]) for name, stamp in stamps.items()}


def _image_files(root: Path) -> Iterable[tuple[str, os.stat_result]]:
    for folder, _, files in os.walk(root, followlinks=True):
        for file in files:
            if os.path.splitext(file)[1].lower() in EXTENSIONS:
                path = os.path.join(folder, file)
                if os.path.exists(path):
                    yield os.path.relpath(path, root), os.stat(path)
