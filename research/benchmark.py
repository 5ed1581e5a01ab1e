"""Benchmarks of reading, loading and tracking: ``python -m research.benchmark NAME``."""

from __future__ import annotations

import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli
from research.config.rules import COUNT
from research.inspect import find_images
from research.utils.errors import UserError

if TYPE_CHECKING:
    from research.data.loader import BatchSource
    from research.data.warehouse.plan import BuildPlan


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of the command."""

    size: int = cli.option(224, COUNT, "side of the sample in pixels (loading)")
    files: int = cli.option(200, COUNT, "number of files, drawn at random from IMAGES")
    rounds: int = cli.option(7, COUNT, "number of times that each candidate is timed")
    steps: int = cli.option(100, COUNT, "training steps per round (tracking, processes)")


USAGE = cli.usage(
    "python -m research.benchmark NAME [IMAGES…] [key=value …]",
    """
Times candidates in turn, round by round, and prints the median time per sample of each and its
speed relative to the first: median, lowest and highest over the rounds. The second candidate is the
first one again; the deviation of its ratio from 1 is the noise. Single process, single thread.

NAME of a benchmark that reads IMAGES
  loading    file → training sample: pixels (decode, random crop, resize) and the bitstream with
             windows 8, 4 and 2
  readers    file → coefficients: pyjpegio and jpeglib (installed with the extra dev)
  store      → shuffled, cropped batch of 256: timm's loader on the files, and stores of
             coefficients prepared from them with windows 8 and 4 (256 px, crops of 224)
  frames     → batch of 32: timm's loader (resized to 384 px), and a store of letterboxed frames
NAME without IMAGES
  tracking   training steps of the composed configuration (by default the demo), without any tracker
             and with all those of train.py: tables, console, summary, MLflow on sqlite with its
             system metrics. Start and end of a run are not counted. Prints the ratio of wall time
             and of processor time, and the time spent in the trackers. Every setting of train.py
             may follow
  processes  the same training steps on one process, on two that train a run each, and on two that
             train one run, each with one thread and the batch of the configuration; and what
             the exchange between processes costs a single one that has no other
Options
""",
    BenchmarkOptions,
)

Pass = Callable[[], int]
"""Processes its samples once and returns their number."""

STORED, CROP = 256, 224


def loading(files: list[Path], size: int, stack: ExitStack) -> dict[str, Pass]:
    """From a file to a training sample, from pixels and from the bitstream."""
    import numpy as np

    from research.compression.selection import Selection
    from research.data.crops import RandomResizedCrop
    from research.data.readers import BitstreamReader, PixelReader, Reader

    crop = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3))

    def read(reader: Reader) -> Pass:
        def one(path: Path) -> object:
            return reader.read(path, crop, np.random.default_rng(len(path.name)))

        return partial(_each, one, files)

    pixels = read(PixelReader(size))
    candidates: dict[str, Pass] = {"pixels": pixels, "pixels (control)": pixels}
    for window in (8, 4, 2):
        selection = Selection.from_settings(window, "corner")
        candidates[f"bitstream, window {window}"] = read(BitstreamReader(size, selection))
    return candidates


def readers(files: list[Path], size: int, stack: ExitStack) -> dict[str, Pass]:
    """From a file to the quantised coefficients of all planes, by two libraries."""
    import jpegio

    try:
        import jpeglib
    except ImportError:
        raise UserError("NAME", 'readers needs jpeglib: pip install -e ".[dev]"') from None

    def with_jpegio(path: Path) -> object:
        return jpegio.read(str(path)).coef_arrays

    def with_jpeglib(path: Path) -> object:
        image = jpeglib.read_dct(str(path))
        # Planes are read on first access.
        return image.Y, image.Cb if image.has_chrominance else None

    first = partial(_each, with_jpegio, files)
    return {
        "pyjpegio": first,
        "pyjpegio (control)": first,
        "jpeglib": partial(_each, with_jpeglib, files),
    }


def store(files: list[Path], size: int, stack: ExitStack) -> dict[str, Pass]:
    """From files or a store to shuffled batches of random crops."""
    from research.compression.selection import Selection, covering
    from research.data.block_samples import BlockCrop, BlockSamples
    from research.data.warehouse.encoders import CoefficientEncoder, SampleSpec
    from research.data.warehouse.plan import BuildPlan
    from research.data.warehouse.rows import StoredRows

    candidates = _timm(files, CROP, 256)
    for window in (8, 4):
        items = [SampleSpec(str(n), "all", file, 0) for n, file in enumerate(files)]
        plan = BuildPlan(
            CoefficientEncoder(STORED, window, "bitstream"), ["x"], items, {"all": "train"}
        )
        opened, positions = _prepared(plan, stack)
        selection = covering(Selection.from_settings(window, "corner"))
        rows = StoredRows(opened, positions, selection)
        samples = BlockSamples(rows, [0] * len(positions), BlockCrop(STORED, CROP), 0, random=True)
        candidates[f"store, window {window}"] = _batches(samples, 256, repeats=20)
    return candidates


def frames(files: list[Path], size: int, stack: ExitStack) -> dict[str, Pass]:
    """From files or a store to batches of whole frames."""
    from research.data.warehouse.encoders import FrameEncoder, SampleSpec
    from research.data.warehouse.kinds import FrameSamples
    from research.data.warehouse.plan import BuildPlan

    candidates = _timm(files, 384, 32)
    target: dict[str, list[Any]] = {"boxes": [], "labels": []}
    items = [SampleSpec(str(n), "all", file, target) for n, file in enumerate(files)]
    opened, positions = _prepared(
        BuildPlan(FrameEncoder(384, 16), ["x"], items, {"all": "train"}), stack
    )
    samples = FrameSamples(opened, positions, None)
    candidates["store of frames"] = _batches(samples, 32, repeats=5)
    return candidates


def _each(candidate: Callable[[Path], object], files: list[Path]) -> int:
    for file in files:
        candidate(file)
    return len(files)


def _timm(files: list[Path], size: int, batch: int) -> dict[str, Pass]:
    """timm's training loader on files: decode, random resized crop, flip, normalise, collate."""
    from timm.data import create_loader
    from torch.utils.data import Dataset
    from torchvision.datasets.folder import pil_loader

    class Files(Dataset[Any]):
        transform: Any = None

        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.transform(pil_loader(files[index])), 0

    loader = create_loader(
        Files(),
        input_size=(3, size, size),
        batch_size=min(batch, len(files)),
        is_training=True,
        use_prefetcher=False,
        num_workers=0,
        persistent_workers=False,
        pin_memory=False,
    )

    def once() -> int:
        return sum(len(images) for images, _ in loader)

    return {"timm": once, "timm (control)": once}


def _prepared(plan: BuildPlan, stack: ExitStack) -> Any:
    """A store in a temporary folder, and its training positions."""
    from research.data.warehouse.build import build
    from research.data.warehouse.store import Store

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    manifest = build(plan, folder / "store")
    opened = Store(manifest, "never", folder)
    opened.open()
    return opened, manifest.split("train")


def _batches(samples: BatchSource, batch: int, repeats: int) -> Pass:
    """``repeats`` epochs of an ``EpochLoader``, so that a pass takes long enough to be timed."""
    from research.data.loader import EpochLoader

    loader = EpochLoader(samples, min(batch, len(samples)), seed=0, train=True)

    def several() -> int:
        return sum(len(batch) for epoch in range(repeats) for batch in loader.epoch(epoch))

    return several


def measure(candidates: Mapping[str, Pass], rounds: int) -> list[dict[str, Any]]:
    """Median milliseconds per sample and speeds relative to the first, over interleaved rounds.

    Returns:
        one row for each candidate: ``name``, ``ms``, and ``ratio`` as (median, lowest, highest).
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            samples = candidate()
            if number:  # the first round fills caches
                seconds[name].append((time.perf_counter() - start) / samples)
    first = next(iter(seconds.values()))
    rows = []
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(first, times, strict=True)]
        rows.append(
            {
                "name": name,
                "ms": 1000 * statistics.median(times),
                "ratio": (statistics.median(ratios), min(ratios), max(ratios)),
            }
        )
    return rows


def main(words: list[str]) -> None:
    benchmarks = {"loading": loading, "readers": readers, "store": store, "frames": frames}
    of_steps = ["tracking", "processes"]
    names = [*benchmarks, *of_steps]
    others = "" if words[:1] and words[0] in of_steps else None
    paths, options, overrides = cli.parse(BenchmarkOptions, words, others)
    if not paths:
        raise UserError("NAME", f"pass a NAME ({', '.join(names)}), then IMAGES if it reads any")
    name = cli.choose("NAME", paths[0], names)
    import torch

    torch.set_num_threads(1)
    if name in of_steps:
        if paths[1:]:
            raise UserError(
                "NAME", f"{paths[1]}: {name} reads no IMAGES", "settings are written key=value"
            )
        logging.basicConfig(level=logging.INFO)
        print(f"{options.steps} steps, {options.rounds} rounds, one thread", flush=True)
        _steps(name, overrides, options)
        return
    if not paths[1:]:
        raise UserError("NAME", f"{name}: pass IMAGES, files or folders, after it")
    files = find_images(paths[1:])
    files = sorted(random.Random(0).sample(files, min(options.files, len(files))))  # noqa: S311 - no secret
    with ExitStack() as stack:
        candidates = benchmarks[name](files, options.size, stack)
        print(f"{len(files)} files, {options.rounds} rounds, one thread")
        for row in measure(candidates, options.rounds):
            median, low, high = row["ratio"]
            print(f"{row['name']:24} {row['ms']:8.4f} ms   {median:7.2f}  ({low:.2f}-{high:.2f})")


def _steps(name: str, overrides: list[str], options: BenchmarkOptions) -> None:
    """A benchmark of training steps."""
    if name == "tracking":
        from research.benchmarks import tracking

        costs = tracking.measure(overrides, options.steps, options.rounds)
        print("\n".join(tracking.report(costs)))
        return
    from research.benchmarks import processes

    found = processes.throughput(overrides, options.steps, options.rounds)
    print("\n".join(processes.report(found)), flush=True)
    found = processes.seam(overrides, options.steps, options.rounds)
    print("\n".join(processes.report(found, "samples / s of processor")))


if __name__ == "__main__":
    cli.command(USAGE, main)
