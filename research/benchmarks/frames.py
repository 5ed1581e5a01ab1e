"""From files, or from a store of frames, to batches of whole frames."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from research.benchmarks.loaders import batches, in_children, prepared, timm_candidates
from research.benchmarks.measure import Candidate, Result, measure
from research.benchmarks.options import BenchmarkOptions
from research.data.warehouse.encoders import FrameEncoder, SampleSpec
from research.data.warehouse.kinds import FrameSamples
from research.data.warehouse.plan import BuildPlan

SIZE, BATCH = 384, 32


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    with ExitStack() as stack:
        return [measure(in_children(candidates(paths, stack), stack), options.rounds, unit="frame")]


def candidates(files: list[Path], stack: ExitStack) -> dict[str, Candidate]:
    """timm's loader on the files, and a store of letterboxed frames prepared from them."""
    loaders = timm_candidates(files, SIZE, BATCH)
    target: dict[str, list[Any]] = {"boxes": [], "labels": []}
    items = [SampleSpec(str(n), "all", file, target) for n, file in enumerate(files)]
    plan = BuildPlan(FrameEncoder(SIZE, 16), ["x"], items, {"all": "train"})
    opened, positions = prepared(plan, stack, repeats=5)
    loaders["store of frames"] = batches(FrameSamples(opened, positions, None), BATCH)
    return loaders
