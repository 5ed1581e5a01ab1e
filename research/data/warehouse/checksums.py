"""Checks the sizes and checksums of shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from research.data.warehouse.manifest import Manifest, Shard
from research.utils.threads import map_threads


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_mismatch(manifest: Manifest, shard: Shard) -> str:
    """A message if a shard does not exist or has the wrong size, else ''."""
    path = manifest.folder / shard.file
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    if size != shard.bytes:
        return f"{path}: {size} bytes, expected {shard.bytes}"
    return ""


def damaged_shards(manifest: Manifest, shards: Sequence[Shard]) -> Iterator[tuple[Shard, str]]:
    """Compare the sizes and SHA-256 hashes of shards with the manifest.

    Yields:
        each damaged or missing shard with a message.
    """

    def problem(shard: Shard) -> str:
        path = manifest.folder / shard.file
        if message := size_mismatch(manifest, shard):
            return message
        try:
            digest = sha256_of(path)
        except OSError as error:
            return f"{path}: {error.strerror or error}"
        if digest != shard.sha256:
            return f"{path}: SHA-256 is {digest}, expected {shard.sha256}"
        return ""

    problems = map_threads(
        problem, shards, min(8, os.cpu_count() or 1), "checking checksums", "shards"
    )
    for shard, message in zip(shards, problems, strict=True):
        if message:
            yield shard, message
