"""The sanity ranker: of two photos the sharper one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from research.data.index import ProgressCallback
from research.data.pairs.lists import TIE, Pair, PairSet
from research.data.pairs.quality import sharpness_of
from research.data.pairs.samples import read_photo
from research.utils.cache import cached_by_file
from research.utils.errors import DamagedImage
from research.utils.threads import map_threads

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
        cache: values are stored in its folder ``sharpness``, by path, size and time of a file.
        progress: told while photos are measured.
    """
    paths = {file: str(file.parent.resolve() / file.name) for file in files}
    stats = {paths[file]: file.stat() for file in files}
    stamps = {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}

    def measure(stale: list[str]) -> Iterator[float]:
        stale_files = [Path(path) for path in stale]
        return map_threads(_sharpness, stale_files, THREADS, "measuring sharpness", progress)

    key = {"sharpness": sorted({str(Path(path).parent) for path in stamps})}
    values = cached_by_file(cache / "sharpness", key, stamps, measure)
    return {file: float(values[path]) for file, path in paths.items()}


def _sharpness(file: Path) -> float:
    try:
        return sharpness_of(np.asarray(read_photo(file, mode="L")))
    except DamagedImage:
        return math.nan
