"""From files, or from a store of coefficients, to shuffled batches of random crops."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from research.benchmarks.loaders import batches, prepared, side_by_side, timm_candidates
from research.benchmarks.measure import Candidate, Result, measure
from research.benchmarks.options import BenchmarkOptions
from research.compression.selection import Selection, covering
from research.data.block_samples import BlockCrop, BlockSamples
from research.data.warehouse.encoders import CoefficientEncoder, SampleSpec
from research.data.warehouse.plan import BuildPlan
from research.data.warehouse.rows import StoredRows

STORED, CROP, BATCH = 256, 224, 256


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    with ExitStack() as stack:
        theirs, ours = timm_candidates(paths, CROP, BATCH), stores(paths, stack)
        return [measure(side_by_side(theirs, ours, stack), options.rounds, unit="sample")]


def stores(files: list[Path], stack: ExitStack) -> dict[str, Candidate]:
    """Stores prepared from the files with windows 8 and 4."""
    loaders = {}
    items = [SampleSpec(str(n), "all", file, 0) for n, file in enumerate(files)]
    for window in (8, 4):
        encoder = CoefficientEncoder(STORED, window, "bitstream")
        plan = BuildPlan(encoder, ["x"], items, {"all": "train"})
        opened, positions = prepared(plan, stack, repeats=20)
        selection = covering(Selection.from_settings(window, "corner"))
        rows = StoredRows(opened, positions, selection)
        samples = BlockSamples(rows, [0] * len(positions), BlockCrop(STORED, CROP), 0, random=True)
        loaders[f"store, window {window}"] = batches(samples, BATCH)
    return loaders
