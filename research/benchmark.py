"""Speed, side by side in one run: ``python -m research.benchmark loading IMAGES…``."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research import cli
from research.errors import UserError
from research.inspect import find_images

USAGE = """
python -m research.benchmark NAME IMAGES… [key=value …]

Times candidates in turn, round by round, and prints each one's median milliseconds a file and its
ratio to the first (above 1 is faster), round by round: median, lowest, highest. The second
candidate is the first once more; how far its ratio strays from 1 is the noise.

NAME
  loading    file → training sample: pixels (decode, random crop, resize) against the bitstream at
             windows 8, 4 and 2
  readers    file → coefficients: pyjpegio against jpeglib (installed with the extra dev)
Settings
  size=224      side of the sample, in pixels
  files=200     files taken at random from those given
  rounds=7      how often each candidate runs over them
"""

Candidate = Callable[[Path], object]


def loading(size: int) -> dict[str, Candidate]:
    """From a file to a training sample, by both sources."""
    import numpy as np

    from research.compression.selection import Selection
    from research.data.crops import RandomResizedCrop
    from research.data.readers import BitstreamReader, PixelReader, Reader

    crop = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3))

    def read(reader: Reader) -> Candidate:
        return lambda path: reader.read(path, crop, np.random.default_rng(len(path.name)))

    pixels = read(PixelReader(size))
    candidates: dict[str, Candidate] = {"pixels": pixels, "pixels (control)": pixels}
    for window in (8, 4, 2):
        kept = Selection.from_settings(window, "corner")
        candidates[f"bitstream, window {window}"] = read(BitstreamReader(size, kept))
    return candidates


def readers(size: int) -> dict[str, Candidate]:
    """From a file to the quantised coefficients of all planes, by two libraries."""
    import jpegio

    try:
        import jpeglib
    except ImportError:
        raise UserError('readers needs jpeglib: pip install -e ".[dev]"') from None

    def ours(path: Path) -> object:
        return jpegio.read(str(path)).coef_arrays

    def other(path: Path) -> object:
        image = jpeglib.read_dct(str(path))
        # Its planes are read when they are first asked for.
        return image.Y, image.Cb if image.has_chrominance else None

    return {"pyjpegio": ours, "pyjpegio (control)": ours, "jpeglib": other}


def measure(
    candidates: Mapping[str, Candidate], files: list[Path], rounds: int
) -> list[dict[str, Any]]:
    """Median milliseconds a file and ratios to the first candidate, of interleaved rounds.

    Returns:
        a row a candidate: ``name``, ``ms``, and ``ratio`` as (median, lowest, highest).
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            began = time.perf_counter()
            for file in files:
                candidate(file)
            if number:  # the first round fills caches
                seconds[name].append(time.perf_counter() - began)
    first = next(iter(seconds.values()))
    found = []
    for name, took in seconds.items():
        ratios = [a / b for a, b in zip(first, took, strict=True)]
        found.append(
            {
                "name": name,
                "ms": 1000 * statistics.median(took) / len(files),
                "ratio": (statistics.median(ratios), min(ratios), max(ratios)),
            }
        )
    return found


def main(words: list[str]) -> None:
    paths, settings = cli.split(words)
    chosen, rest = cli.options(settings, {"size": "224", "files": "200", "rounds": "7"})
    if rest:
        raise UserError(f"{rest[0]}: settings are size, files and rounds")
    if not paths or len(paths) < 2:
        raise UserError("give a NAME (loading, readers), then IMAGES: files or folders")
    benchmarks = {"loading": loading, "readers": readers}
    name = cli.choose("NAME", paths[0], list(benchmarks))
    numbers = {key: cli.whole_number(key, value) for key, value in chosen.items()}
    files = find_images(paths[1:])
    files = sorted(random.Random(0).sample(files, min(numbers["files"], len(files))))
    import torch

    torch.set_num_threads(1)
    print(f"{len(files)} files, {numbers['rounds']} rounds, one thread")
    for row in measure(benchmarks[name](numbers["size"]), files, numbers["rounds"]):
        median, low, high = row["ratio"]
        print(f"{row['name']:24} {row['ms']:7.3f} ms   {median:5.2f}  ({low:.2f}-{high:.2f})")


if __name__ == "__main__":
    cli.command(USAGE, main)
