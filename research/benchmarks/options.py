"""Options of ``python -m research.benchmark``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from research.config import cli
from research.config.rules import COUNT, PATH


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of the command; a benchmark uses those that name it, and the last three."""

    size: int = cli.option(224, COUNT, "side of the sample in pixels (input)")
    files: int = cli.option(200, COUNT, "number of files, drawn at random from IMAGES")
    steps: int = cli.option(100, COUNT, "training steps per round (loop, tracking, processes)")
    trials: int = cli.option(2000, COUNT, "trials of the long sweep (sweep)")
    rounds: int = cli.option(7, COUNT, "number of times that each candidate is timed")
    threads: int = cli.option(1, COUNT, "threads of PyTorch")
    out: Path | None = cli.option(
        None, PATH, "folder for the results; by default runs/benchmarks/NAME_TIME"
    )
