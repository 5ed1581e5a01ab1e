"""A baseline without learning: of two photos, prefer the sharper one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from research.data.pairs.lists import TIE, Pair, PairSet
from research.data.pairs.quality import laplacian_variance
from research.data.pairs.samples import read_photo
from research.utils.cache import cached_by_file, file_stamp
from research.utils.counts import with_n
from research.utils.errors import DamagedImage
from research.utils.threads import map_threads

THREADS: Final = 4


def sharper_wins(
    photos: Sequence[Path],
    pairs: Sequence[Pair],
    cache: Path,
) -> tuple[float, int]:
    """Number of pairs that the sharper photo wins, and number of pairs compared.

    Photos of equal sharpness count half. Ties and pairs with an unreadable photo are excluded.
    """
    pairs = [pair for pair in pairs if pair.preference != TIE]
    files = [photos[index] for index in sorted({i for p in pairs for i in (p.first, p.second)})]
    sharpness = measure_sharpness(files, cache)
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
    constant = with_n(f"{max(fraction, 1 - fraction):.4f}", len(first_wins), unit="pairs")
    sharpest = with_n(f"{wins / compared:.4f}", compared, unit="pairs") if compared else ""
    sharper = f", {sharpest} of the sharper photo" if compared else ""
    return f"pair accuracy {constant} of always the {position} photo{sharper}"


def measure_sharpness(files: Sequence[Path], cache: Path) -> dict[Path, float]:
    """Variance of the Laplacian of each photo at its own size; NaN for an unreadable photo.

    Args:
        files: photos.
        cache: values are stored in its folder ``sharpness``, by path, size and times of a file.
    """
    paths = {file: str(file.parent.resolve() / file.name) for file in files}
    stamps = {paths[file]: file_stamp(file.stat()) for file in files}

    def measure(stale: list[str]) -> Iterator[float]:
        stale_files = [Path(path) for path in stale]
        return map_threads(_sharpness, stale_files, THREADS, "measuring sharpness", "photos")

    key = {"sharpness": sorted({str(Path(path).parent) for path in stamps})}
    values = cached_by_file(cache / "sharpness", key, stamps, measure)
    return {file: float(values[path]) for file, path in paths.items()}


def _sharpness(file: Path) -> float:
    try:
        return laplacian_variance(np.asarray(read_photo(file, mode="L")))
    except DamagedImage:
        return math.nan
