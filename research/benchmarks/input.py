"""From a file to a training sample, from pixels and from the bitstream."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from research.benchmarks.measure import Candidate, Result, measure, per_unit
from research.benchmarks.options import BenchmarkOptions
from research.compression.selection import Selection
from research.data.crops import RandomResizedCrop
from research.data.readers import BitstreamReader, PixelReader, Reader


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    return [measure(candidates(paths, options.size), options.rounds, unit="sample")]


def candidates(files: list[Path], size: int) -> dict[str, Candidate]:
    """Samples of ``size`` px from pixels, and of coefficients with windows 8, 4 and 2."""
    crop = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3))

    def read(reader: Reader) -> int:
        for path in files:
            reader.read(path, crop, np.random.default_rng(len(path.name)))
        return len(files)

    pixels = per_unit(partial(read, PixelReader(size)))
    found: dict[str, Candidate] = {"pixels": pixels, "pixels (control)": pixels}
    for window in (8, 4, 2):
        selection = Selection.from_settings(window, "corner")
        reader = BitstreamReader(size, selection)
        found[f"bitstream, window {window}"] = per_unit(partial(read, reader))
    return found
