"""A baseline without learning: of two photos, prefer the sharper one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from research.data.index import ProgressCallback
from research.data.pairs.lists import TIE, Pair, PairSet
from research.data.pairs.quality import laplacian_variance
from research.data.pairs.samples import read_photo
from research.utils.errors import DamagedImage
from research.utils.files import write_text

THREADS: Final = 4


def sharper_wins(
    photos: Sequence[Path],
    pairs: Sequence[Pair],
    cache: Path,
    progress: ProgressCallback | None = None,
) -> tuple[float, int]:
    """Number of pairs that the sharper photo wins, and number of pairs compared.

    Photos of equal sharpness count half. Ties and pairs with an unreadable photo are excluded.
    """
    pairs = [pair for pair in pairs if pair.preference != TIE]
    files = [photos[index] for index in sorted({i for p in pairs for i in (p.first, p.second)})]
    sharpness = measure_sharpness(files, cache, progress)
    wins, compared = 0.0, 0
    for pair in pairs:
        first, second = (sharpness[photos[index]] for index in (pair.first, pair.second))
        if math.isnan(first) or math.isnan(second):
            continue
        compared += 1
        wins += 0.5 if first == second else (first > second) == (pair.preference > TIE)
    return wins, compared


def describe_baselines(pair_set: PairSet, cache: Path) -> str | None:
    """Pair accuracy of two baselines, in words; ``None`` if all pairs are ties.

    One always prefers the same position, the one that wins more often in these pairs (the metric
    ``constant_accuracy``); the other prefers the sharper photo.
    """
    first_wins = [pair.preference > TIE for pair in pair_set.pairs if pair.preference != TIE]
    if not first_wins:
        return None
    fraction = sum(first_wins) / len(first_wins)
    position = "first" if fraction >= TIE else "second"
    wins, compared = sharper_wins(pair_set.photos, pair_set.pairs, cache)
    sharper = f", {wins / compared:.4f} of the sharper photo" if compared else ""
    return (
        f"pair accuracy {max(fraction, 1 - fraction):.4f} of always the {position} photo{sharper}"
    )


def measure_sharpness(
    files: Sequence[Path], cache: Path, progress: ProgressCallback | None = None
) -> dict[Path, float]:
    """Variance of the Laplacian of each photo at its own size; NaN for an unreadable photo.

    Args:
        files: photos.
        cache: folder in which values are remembered by a file's name, size and time.
        progress: told while photos are measured.
    """
    folders = sorted({str(file.parent.resolve()) for file in files})
    name = hashlib.sha256("\n".join(folders).encode()).hexdigest()[:16]
    store = cache / "sharpness" / f"{name}.json"
    known = _remembered(store)
    stats = {file: file.stat() for file in files}
    marks = {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}
    fresh = [file for file in files if known.get(file.name, [])[:2] != marks[file]]
    if fresh:
        with ThreadPoolExecutor(THREADS) as pool:
            for done, (file, value) in enumerate(
                zip(fresh, pool.map(_sharpness, fresh), strict=True), 1
            ):
                known[file.name] = [*marks[file], value]
                if progress is not None:
                    progress("measuring sharpness", done, len(fresh))
        write_text(store, json.dumps(known))
    return {file: float(known[file.name][2]) for file in files}


def _sharpness(file: Path) -> float:
    try:
        return laplacian_variance(np.asarray(read_photo(file, mode="L")))
    except DamagedImage:
        return math.nan


def _remembered(store: Path) -> dict[str, list[float]]:
    try:
        found = json.loads(store.read_text())
        return {name: entry for name, entry in found.items() if len(entry) == 3}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # a missing or damaged cache costs only the time to measure again
