"""Candidates timed in turn, and the results as a table, a JSON file and a picture.

A candidate does its work once and returns the seconds per unit (sample, step, start). It times
itself, so that its preparation does not count.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from research.utils.files import to_json, write_atomic, write_text
from research.utils.progress import track
from research.utils.tables import TextTable, terminal_width

T = TypeVar("T")
Candidate = Callable[[], float]

SCALES = ((1.0, "s"), (1e-3, "ms"), (0.0, "µs"))
"""Smallest median in seconds that is shown in a unit of time."""


@dataclass(frozen=True)
class Spread:
    """A value over the rounds."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.lowest:.4g}-{self.highest:.4g})"


@dataclass(frozen=True)
class Timing:
    """The times of one candidate.

    Attributes:
        name: of the candidate.
        seconds: per unit, one for each round.
        median: of ``seconds``.
        speeds: the reference's seconds divided by those of the same round: 2 is twice as fast.
        speed: median, lowest and highest of ``speeds``.
        columns: further values by name, such as the number of parameters.
    """

    name: str
    seconds: list[float]
    median: float
    speeds: list[float]
    speed: Spread
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The candidates of a measurement; the first one is the reference.

    Attributes:
        name: what was measured, where a benchmark has several results.
        unit: of which ``Timing.seconds`` are the time, such as ``step``.
        rows: one for each candidate.
        notes: lines to be printed below the table.
    """

    name: str
    unit: str
    rows: list[Timing]
    notes: list[str] = field(default_factory=list)

    def row(self, name: str) -> Timing:
        """The row of a candidate, to which columns may be added."""
        return next(row for row in self.rows if row.name == name)


def measure(
    candidates: Mapping[str, Candidate], rounds: int, *, unit: str, seed: int = 0, name: str = ""
) -> Result:
    """Time candidates side by side.

    Args:
        candidates: by name. The first one is the reference; the second should be the same work
            again, as the control: the deviation of its speed from 1 is the noise.
        rounds: number of times of each, without the warm-up.
        unit: of which candidates return the seconds.
        seed: of the order.
        name: what is measured, where a benchmark has several results.
    """
    return compared(interleaved(candidates, rounds, seed=seed, name=name), unit=unit, name=name)


def interleaved(
    candidates: Mapping[str, Callable[[], T]], rounds: int, *, seed: int = 0, name: str = ""
) -> dict[str, list[T]]:
    """What candidates return, one value a round; after a first round for warm-up.

    In every round each runs once, in a new order drawn from ``seed``.
    """
    values: dict[str, list[T]] = {each: [] for each in candidates}
    order = list(candidates)
    shuffle = random.Random(seed).shuffle  # noqa: S311 - no secret
    for number in track(range(rounds + 1), f"timing {name}".rstrip(), unit="rounds"):
        shuffle(order)
        for each in order:
            value = candidates[each]()
            if number:  # the first round fills caches
                values[each].append(value)
    return values


def compared(seconds: Mapping[str, Sequence[float]], *, unit: str, name: str = "") -> Result:
    """The result for the seconds of every candidate in the same rounds; the first: reference."""
    reference = next(iter(seconds.values()))
    rows = []
    for each, times in seconds.items():
        speeds = [of_reference / own for of_reference, own in zip(reference, times, strict=True)]
        spread = Spread(statistics.median(speeds), min(speeds), max(speeds))
        rows.append(Timing(each, list(times), statistics.median(times), speeds, spread))
    return Result(name, unit, rows)


def per_unit(work: Callable[[], int]) -> Candidate:
    """The candidate for work that returns the number of units it has done."""

    def candidate() -> float:
        start = time.perf_counter()
        units = work()
        return (time.perf_counter() - start) / units

    return candidate


def in_process(
    work: Callable[[], T],
    stack: ExitStack,
    begin: Callable[[], object] | None = None,
    *,
    method: Literal["spawn", "fork"],
) -> Callable[[], T]:
    """``work`` that each call does in the same new process: what it sets there, and what it
    leaves, does not reach the others.

    Args:
        work: its result must be picklable.
        stack: ends the process.
        begin: is called there once, before.
        method: how the process starts. A spawned one has nothing of this one, and ``work`` and
            ``begin`` must be picklable; a forked one has all that is built here.
    """
    context = multiprocessing.get_context(method)
    pool = stack.enter_context(ProcessPoolExecutor(1, context, _begin, (work, begin)))
    return lambda: pool.submit(_work).result()


_works: list[Callable[[], Any]] = []
"""In a process of ``in_process``: what it does."""


def _begin(work: Callable[[], Any], begin: Callable[[], object] | None) -> None:
    _works[:] = [work]
    if begin is not None:
        begin()


def _work() -> Any:
    return _works[0]()


def conditions(command: str) -> dict[str, Any]:
    """The command, the threads, the machine, and the versions of Python and packages."""
    import torch

    from research.engine import run_folder

    return {
        "command": command,
        "threads": torch.get_num_threads(),
        **run_folder.environment(),
    }


def write(name: str, results: Sequence[Result], under: Mapping[str, Any], out: Path) -> None:
    """Write ``NAME.json`` and ``NAME.png``.

    Args:
        name: of the benchmark.
        results: at least one.
        under: from ``conditions``.
        out: folder of the files.
    """
    from research.viz import charts

    content = {"benchmark": name, **under, "results": [asdict(result) for result in results]}
    write_text(out / f"{name}.json", to_json(content))
    groups = {
        _title(name, result): {row.name: row.speeds for row in result.rows} for result in results
    }
    picture = charts.speeds(groups, machine(under))
    write_atomic(out / f"{name}.png", lambda path: picture.save(path, "PNG"))


def machine(under: Mapping[str, Any]) -> str:
    """Hardware, threads and versions in one line."""
    hardware, packages = under["hardware"], under["packages"]
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores, {gpus}, threads: {under['threads']}, "
        f"torch {packages['torch']}"
    )


def print_tables(name: str, results: Sequence[Result]) -> None:
    """Print a table and its notes for each result."""
    parts = []
    for result in results:
        scale, time_unit = _scale(result.rows[0].median)
        columns = list(dict.fromkeys(column for row in result.rows for column in row.columns))
        header = [f"{time_unit} / {result.unit}", "speed (lowest-highest)", *columns]
        rows = []
        for row in result.rows:
            more = [_text(row.columns.get(column, "")) for column in columns]
            rows.append([row.name, f"{row.median / scale:.4g}", str(row.speed), *more])
        table = TextTable([_title(name, result), *header], rows, "l" + "r" * len(header))
        parts.append("\n".join([table.text(terminal_width()), *result.notes]))
    print("\n\n".join(parts))


def _title(name: str, result: Result) -> str:
    rounds = len(result.rows[0].seconds)
    return f"{name}{': ' if result.name else ''}{result.name}, n = {rounds}"


def _scale(seconds: float) -> tuple[float, str]:
    """Seconds of a unit of time that suits a duration, and the unit."""
    unit = next(name for smallest, name in SCALES if seconds >= smallest)
    return {"s": 1.0, "ms": 1e-3, "µs": 1e-6}[unit], unit


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
