"""From a file to the quantised coefficients of all planes, by two libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jpegio

from research.benchmarks.measure import Candidate, Result, measure, per_unit
from research.benchmarks.options import BenchmarkOptions
from research.utils.errors import UserError

try:
    import jpeglib
except ImportError:
    raise UserError("NAME", 'readers needs jpeglib: pip install -e ".[dev]"') from None


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    return [measure(candidates(paths), options.rounds, unit="file")]


def candidates(files: list[Path]) -> dict[str, Candidate]:
    """``pyjpegio`` and ``jpeglib``."""
    first = per_unit(partial(_each, _with_jpegio, files))
    return {
        "pyjpegio": first,
        "pyjpegio (control)": first,
        "jpeglib": per_unit(partial(_each, _with_jpeglib, files)),
    }


def _each(read: Callable[[Path], object], files: list[Path]) -> int:
    for file in files:
        read(file)
    return len(files)


def _with_jpegio(path: Path) -> object:
    return jpegio.read(str(path)).coef_arrays


def _with_jpeglib(path: Path) -> object:
    image = jpeglib.read_dct(str(path))
    # Planes are read on first access.
    return image.Y, image.Cb if image.has_chrominance else None
