"""The sanity ranker: of two photos the sharper one."""

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
from research.data.pairs.quality import sharpness_of
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
    """How many pairs the sharper photo wins, and of how many; ties of labels do not count.

    Photos of equal sharpness share the pair; one that cannot be read leaves it out.
    """
    pairs = [pair for pair in pairs if pair.preference != TIE]
    files = [photos[index] for index in sorted({i for p in pairs for i in (p.first, p.second)})]
    values = sharpness(files, cache, progress)
    wins, of = 0.0, 0
    for pair in pairs:
        first, second = (values[photos[index]] for index in (pair.first, pair.second))
        if math.isnan(first) or math.isnan(second):
            continue
        of += 1
        wins += 0.5 if first == second else (first > second) == (pair.preference > TIE)
    return wins, of


def trivial(part: PairSet, cache: Path) -> str | None:
    """Accuracy of two who learn nothing, in words; null where all are ties.

    One says the same place always, the one that wins more often in these very pairs, as the
    metric ``constant_accuracy`` has it; the other the sharper photo.
    """
    won = [pair.preference > TIE for pair in part.pairs if pair.preference != TIE]
    if not won:
        return None
    share = sum(won) / len(won)
    place = "first" if share >= TIE else "second"
    wins, of = sharper_wins(part.photos, part.pairs, cache)
    sharper = f", {wins / of:.4f} of the sharper photo" if of else ""
    return f"pair accuracy {max(share, 1 - share):.4f} of always the {place} photo{sharper}"


def sharpness(
    files: Sequence[Path], cache: Path, progress: ProgressCallback | None = None
) -> dict[Path, float]:
    """Variance of the Laplacian of each photo at its own size; nan for one that cannot be read.

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
        return sharpness_of(np.asarray(read_photo(file, mode="L")))
    except DamagedImage:
        return math.nan


def _remembered(store: Path) -> dict[str, list[float]]:
    try:
        found = json.loads(store.read_text())
        return {name: entry for name, entry in found.items() if len(entry) == 3}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # a missing or damaged cache costs only the time to measure again
