"""The index of a folder tree: every image's header read once, and remembered.

A file is remembered under its name, size and modification time; only new or changed files are
opened again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from research.compression.jpeg import MIN_SIDE
from research.utils.files import write_text

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
        cache: folder in which the index is remembered (one JSON file a root).
        progress: told while headers are read.
    """
    store = cache / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    known = _read_cache(store)
    found = dict(sorted(_image_files(root)))
    index = {
        name: known[name]
        for name, stat in found.items()
        if name in known and known[name][:2] == (stat.st_size, stat.st_mtime_ns)
    }
    fresh = [name for name in found if name not in index]
    if fresh:
        with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
            kinds = pool.map(lambda name: inspect_header(root / name), fresh)
            for done, (name, kind) in enumerate(zip(fresh, kinds, strict=True), start=1):
                index[name] = Entry(found[name].st_size, found[name].st_mtime_ns, kind)
                if progress is not None:
                    progress(f"reading headers in {root.name}", done, len(fresh))
    if fresh or len(index) != len(known):
        write_text(store, json.dumps(index))
    return {name: index[name] for name in found}


def _image_files(root: Path) -> Iterable[tuple[str, os.stat_result]]:
    for folder, _, files in os.walk(root, followlinks=True):
        for file in files:
            if os.path.splitext(file)[1].lower() in EXTENSIONS:
                path = os.path.join(folder, file)
                if os.path.exists(path):
                    yield os.path.relpath(path, root), os.stat(path)


def _read_cache(store: Path) -> dict[str, Entry]:
    try:
        return {name: Entry(*entry) for name, entry in json.loads(store.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        # A missing or damaged cache costs only the time to read the headers again.
        return {}
