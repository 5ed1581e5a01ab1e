"""Whether shards are as they were written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from research.data.warehouse.manifest import REMEDY, Manifest, Shard


def sha256_of(path: Path) -> str:
    """Hexadecimal, of the whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong_size(manifest: Manifest, shard: Shard) -> str:
    """Why a shard cannot be whole, in one line that names it, or ''."""
    path = manifest.folder / shard.file
    try:
        found = path.stat().st_size
    except OSError as error:
        return f"{path}: {error.strerror or error}; {REMEDY}"
    if found != shard.bytes:
        return f"{path}: {found} bytes, expected {shard.bytes}; {REMEDY}"
    return ""


def damaged_shards(manifest: Manifest, shards: Sequence[Shard]) -> Iterator[tuple[Shard, str]]:
    """Read shards whole and compare their hashes.

    Yields:
        each that is not as it was written, with one line that names it.
    """

    def problem(shard: Shard) -> str:
        path = manifest.folder / shard.file
        wrong = wrong_size(manifest, shard)
        if wrong:
            return wrong
        try:
            found = sha256_of(path)
        except OSError as error:
            return f"{path}: {error.strerror or error}; {REMEDY}"
        if found != shard.sha256:
            return f"{path}: SHA-256 is {found}, expected {shard.sha256}; {REMEDY}"
        return ""

    # Hashing and reading let go of the interpreter: threads are enough.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for shard, text in zip(shards, pool.map(problem, shards), strict=True):
            if text:
                yield shard, text
