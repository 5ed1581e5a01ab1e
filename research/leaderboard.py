"""Trained runs judged and timed side by side: ``python -m research.leaderboard RUN RUN …``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli
from research.config.rules import COUNT, DEVICE, TEXT, Rule, one_of
from research.utils.errors import UserError

if TYPE_CHECKING:
    from research.engine.evaluation import EvalRun
    from research.tasks.task import Monitor

log = logging.getLogger("research.leaderboard")  # as a command, this module is called __main__

USAGE = """
python -m research.leaderboard RUN RUN … [key=value …]

RUNs are run folders or checkpoints of one task. Prints a Markdown table with a row a run: model,
parameters, size of weights and statistics (MB), milliseconds an image, images a second in the
largest batch, the task's main metrics on the split, and ranks by speed (in the smallest batch),
accuracy (the metric that picked the first run's best epoch) and size; equals share one.
Times are those of the network and of what follows it up to classes or boxes, on real images of the
split that wait on the device: median of rounds in which the runs take turns, after warming up, the
device's work done. Writes judged.csv, judged.json and judged.png.
  split=val          val, train (with validation crops) or test
  checkpoint=best    best or last, of run folders
  rounds=20          how often each run is timed
  batch=1,8          images a timed batch
  device=auto        auto, cpu, cuda, cuda:N or mps
  out=               folder for the results; runs/judge/TIME by default
  trust=[]           classes and functions of your own that the runs name: [my_models.Net]
Any setting of the runs may follow, such as dataset.root=FOLDER for data that were moved.
"""

BATCHES = Rule(
    "whole numbers of at least 1, such as 1,8",
    lambda value: all(part.strip().isdecimal() and int(part) > 0 for part in str(value).split(",")),
)
OPTIONS: dict[str, tuple[str, Rule]] = {
    "split": ("val", one_of("val", "train", "test")),
    "checkpoint": ("best", one_of("best", "last")),
    "rounds": ("20", COUNT),
    "batch": ("1,8", BATCHES),
    "device": ("auto", DEVICE),
    "out": ("", TEXT),
    **cli.TRUST,
}
MB = 1e6


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        run: the run folder or file.
        model: the network's name.
        parameters: all of them.
        size: bytes of its state dict.
        seconds: of each batch size, median of a batch.
        metrics: on the split.
        ranks: by ``speed``, ``accuracy`` and ``size``, 1 the best; equals share one.
    """

    run: str
    model: str
    parameters: int
    size: int
    seconds: dict[int, float]
    metrics: dict[str, float]
    ranks: dict[str, int]


def judge(
    runs: Sequence[Path],
    split: str,
    which: str,
    device: str,
    overrides: Sequence[str],
    rounds: int,
    batches: Sequence[int],
    trust: Sequence[str] = (),
) -> tuple[list[Row], Monitor]:
    """A row a run, and the metric by which they are ranked.

    Raises:
        UserError: when the runs are not of one task.
    """
    from research.engine import build
    from research.engine.evaluation import load_eval_run
    from research.utils.timing import median_times

    every = [load_eval_run(run, split, which, device, overrides, trust) for run in runs]
    _check_data(runs, every)
    judged = [one.evaluate(split).metrics for one in every]
    monitor = every[0].main_metric(judged[0])
    for run, metrics in zip(runs, judged, strict=True):
        if monitor.metric not in metrics:
            raise UserError(
                "RUN",
                f"{run}: has no {monitor.metric}, by which {runs[0]} is judged",
                "judge runs of one task",
            )
    spent: list[dict[int, float]] = [{} for _ in every]
    for count in batches:
        times = median_times([one.timed_prediction(count) for one in every], rounds)
        for taken, seconds in zip(spent, times, strict=True):
            taken[count] = seconds
    networks = [one.predictor.model for one in every]
    sizes = [sum(t.nbytes for t in network.state_dict().values()) for network in networks]
    sign = -1 if monitor.mode == "max" else 1
    ranks = {
        "speed": _ranks([taken[batches[0]] for taken in spent]),
        "accuracy": _ranks([sign * metrics[monitor.metric] for metrics in judged]),
        "size": _ranks(sizes),
    }
    rows = [
        Row(
            str(run),
            build.model_name(every[place].predictor.config),
            sum(p.numel() for p in networks[place].parameters()),
            sizes[place],
            spent[place],
            judged[place],
            {name: ranked[place] for name, ranked in ranks.items()},
        )
        for place, run in enumerate(runs)
    ]
    return rows, monitor


def _check_data(runs: Sequence[Path], every: Sequence[EvalRun]) -> None:
    """Warn of runs that are judged on other images than the first."""
    first, *others = [one.predictor.data.fingerprint() for one in every]
    for run, other in zip(runs[1:], others, strict=True):
        if other != first:
            log.warning("%s is judged on other data than %s: ranks say little", run, runs[0])


def _ranks(values: Sequence[float]) -> list[int]:
    """1 for the smallest; what is not a number comes last."""
    ordered = [value if value == value else float("inf") for value in values]
    return [1 + sum(other < value for other in ordered) for value in ordered]


def flat(row: Row) -> dict[str, float | int | str]:
    """A row of the CSV file."""
    speed = {f"ms_image_batch_{n}": 1000 * seconds / n for n, seconds in row.seconds.items()}
    largest = max(row.seconds)
    return {
        "run": row.run,
        "model": row.model,
        "parameters": row.parameters,
        "size_mb": row.size / MB,
        **speed,
        "fps": largest / row.seconds[largest],
        **row.metrics,
        **{f"rank_{name}": rank for name, rank in row.ranks.items()},
    }


def table(rows: Sequence[Row], monitor: Monitor) -> str:
    """The rows as Markdown."""
    from research.engine.evaluation import MAIN

    metrics = [name for name in MAIN if name in rows[0].metrics]
    if monitor.metric not in metrics:
        metrics.append(monitor.metric)
    batches = list(rows[0].seconds)
    header = [
        "run", "model", "parameters", "size MB", *(f"ms/image, batch {n}" for n in batches),
        f"FPS, batch {max(batches)}", *metrics, "speed", "accuracy", "size",
    ]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "| --- | --- |" + " ---: |" * (len(header) - 2)]
    for row in rows:
        told = flat(row)
        cells = [
            row.run,
            row.model,
            f"{row.parameters:,}",
            f"{told['size_mb']:.1f}",
            *(f"{told[f'ms_image_batch_{n}']:.1f}" for n in batches),
            f"{told['fps']:.1f}",
            *(f"{row.metrics[name]:.3f}" for name in metrics),
            *(str(rank) for rank in row.ranks.values()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(out: Path, rows: Sequence[Row], monitor: Monitor, told: Mapping[str, Any]) -> None:
    """``judged.csv``, ``.json`` (with what was asked, ``told``) and ``.png``."""
    from research.tracking.files import csv_text
    from research.utils.files import to_json, write_atomic, write_text
    from research.viz import charts

    plain = [flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in plain for key in row))
    write_text(out / "judged.csv", csv_text(columns, plain))
    content = {**told, "ranked_by": monitor.metric, "runs": [asdict(row) for row in rows]}
    write_text(out / "judged.json", to_json(content))
    first = min(rows[0].seconds)
    models = [row.model for row in rows]
    picture = charts.speed_and_accuracy(
        models if len(set(models)) == len(models) else [row.run for row in rows],
        [1000 * row.seconds[first] / first for row in rows],
        [row.metrics[monitor.metric] for row in rows],
        [row.size / MB for row in rows],
        monitor.metric,
    )
    write_atomic(out / "judged.png", lambda path: picture.save(path, "PNG"))


def main(words: list[str]) -> None:
    paths, settings = cli.split(words)
    if not paths:
        raise UserError("RUN", "give RUN folders first, then key=value settings", "see --help")
    asked, rest = cli.mixed(settings, OPTIONS, "judge")
    batches = [int(part) for part in str(asked["batch"]).split(",")]
    out = Path(asked["out"] or f"runs/judge/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    # Imported late: a mistake is answered before torch is there.
    from research.utils import logs

    # Standard output is for the result alone.
    logs.to_terminal(sys.stderr)
    split, rounds = asked["split"], asked["rounds"]
    runs = [Path(path) for path in paths]
    rows, monitor = judge(
        runs,
        split,
        asked["checkpoint"],
        asked["device"],
        rest,
        rounds,
        sorted(set(batches)),
        asked["trust"],
    )
    told = {"split": split, "rounds": rounds, "device": asked["device"]}
    # First: no disk can take it back.
    print(table(rows, monitor))
    with cli.written(out):
        write(out, rows, monitor, told)
    print(f"\nfiles: {out}", file=sys.stderr)


if __name__ == "__main__":
    cli.command(USAGE, main)
