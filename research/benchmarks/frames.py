"""From files, or from a store of frames, to batches of whole frames."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from research.benchmarks.loaders import batches, prepared, side_by_side, timm_candidates
from research.benchmarks.measure import Candidate, Result, measure
from research.benchmarks.options import BenchmarkOptions
from research.data.warehouse.encoders import FrameEncoder, SampleSpec
from research.data.warehouse.kinds import FrameSamples
from research.data.warehouse.plan import BuildPlan

SIZE, BATCH = 384, 32


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    with ExitStack() as stack:
        theirs, ours = timm_candidates(paths, SIZE, BATCH), stores(paths, stack)
        return [measure(side_by_side(theirs, ours, stack), options.rounds, unit="frame")]


def stores(files: list[Path], stack: ExitStack) -> dict[str, Candidate]:
    """A store of letterboxed frames prepared from the files."""
    target: dict[str, list[Any]] = {"boxes": [], "labels": []}
    items = [SampleSpec(str(n), "all", file, target) for n, file in enumerate(files)]
    plan = BuildPlan(FrameEncoder(SIZE, 16), ["x"], items, {"all": "train"})
    opened, positions = prepared(plan, stack, repeats=5)
    return {"store of frames": batches(FrameSamples(opened, positions, None), BATCH)}
