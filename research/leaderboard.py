"""Evaluation and timing of several runs: ``python -m research.leaderboard RUN RUN …``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.comparison.leaderboard import LeaderboardEntry, page
from research.config import cli, outputs
from research.config.rules import COUNT, PATH, one_of
from research.utils.errors import Damaged, UserError
from research.utils.progress import track
from research.utils.tables import TextTable, terminal_width

if TYPE_CHECKING:
    from research.engine.evaluation import EvalRun
    from research.tasks.task import Monitor

log = logging.getLogger("research.leaderboard")  # as a command, this module is called __main__


@dataclass(frozen=True)
class LeaderboardOptions(cli.RunOptions):
    """Options of the command."""

    split: str = cli.option(
        "val", one_of("val", "train", "test"), "val, train (with validation crops) or test"
    )
    rounds: int = cli.option(20, COUNT, "number of times that each run is timed")
    batch: tuple[int, ...] = cli.option((1, 8), COUNT, "batch sizes to time")
    out: Path | None = cli.option(
        None, PATH, "folder for the results; by default runs/leaderboard/TIME"
    )


USAGE = cli.usage(
    "python -m research.leaderboard RUN RUN … [key=value …]",
    """
RUNs are run folders or checkpoints of one task. Prints a Markdown table with one row for each run:
model, parameters, size of weights and buffers (MB), milliseconds per image, images per second in
the largest batch, the task's main metrics on the split, and ranks by speed (in the smallest batch),
accuracy (the metric that chose the first run's best epoch) and size; equal values share a rank.
Times are of the network and its postprocessing to classes or boxes, on real images of the split
that are already on the device: the median of rounds in which the runs take turns, after warm-up,
with the device synchronized. Writes judged.csv, judged.json, judged.png and leaderboard.html: a
sortable table, and accuracy against latency, bytes of the network's input and parameters with the
Pareto fronts, in one file that needs no network.
""",
    LeaderboardOptions,
    "Any setting of the runs may follow, such as dataset.root=FOLDER if the data was moved.",
)
MB = 1e6


def evaluate_runs(
    paths: Sequence[Path],
    split: str,
    which: str,
    device: str,
    overrides: Sequence[str],
    rounds: int,
    batches: Sequence[int],
    trust: Sequence[str] = (),
) -> tuple[list[LeaderboardEntry], Monitor]:
    """An entry for each run, and the metric by which they are ranked; damaged runs are skipped.

    Raises:
        UserError: if the runs are not of one task, or all are damaged.
    """
    from research.engine import build
    from research.engine.evaluation import load_eval_run
    from research.sweeps.objectives import bytes_per_image
    from research.utils.timing import median_times

    paths, runs = _intact(
        paths, lambda path: load_eval_run(path, split, which, device, overrides, trust)
    )
    _check_data(paths, runs)
    results = [run.evaluate() for run in track(runs, f"evaluating {split}", unit="runs")]
    metrics = [result.metrics for result in results]
    monitor = runs[0].main_metric(metrics[0])
    for path, values in zip(paths, metrics, strict=True):
        for name in _shown(metrics[0], monitor):
            if name not in values:
                raise UserError(
                    "RUN",
                    f"{path}: has no metric {name}, which {paths[0]} has",
                    "pass runs of one task",
                )
    # By batch size, the time of each run.
    times = {
        batch: median_times(
            [run.timed_prediction(batch) for run in runs], rounds, f"timing batches of {batch}"
        )
        for batch in batches
    }
    networks = [run.predictor.model for run in runs]
    sizes = [sum(t.nbytes for t in network.state_dict().values()) for network in networks]
    sign = -1 if monitor.mode == "max" else 1
    ranks = {
        "speed": _ranks(times[batches[0]]),
        "accuracy": _ranks([sign * values[monitor.metric] for values in metrics]),
        "size": _ranks(sizes),
    }
    entries = [
        LeaderboardEntry(
            str(path),
            build.model_name(runs[index].predictor.config),
            sum(p.numel() for p in networks[index].parameters()),
            sizes[index],
            bytes_per_image(runs[index]),
            {batch: seconds[index] for batch, seconds in times.items()},
            metrics[index],
            results[index].n,
            runs[index].loader.unit,
            {name: ranked[index] for name, ranked in ranks.items()},
        )
        for index, path in enumerate(paths)
    ]
    return entries, monitor


def _shown(metrics: Mapping[str, float], monitor: Monitor) -> list[str]:
    """The metrics of the table: the main ones, and the one that ranks."""
    from research.engine.evaluation import MAIN

    return list(dict.fromkeys([*(name for name in MAIN if name in metrics), monitor.metric]))


def _intact(
    paths: Sequence[Path], load: Callable[[Path], EvalRun]
) -> tuple[list[Path], list[EvalRun]]:
    """The runs that are not damaged; a path that does not exist is a mistake, not damage."""
    intact, runs = [], []
    for number, path in enumerate(track(paths, "loading runs", unit="runs"), start=1):
        try:
            runs.append(load(path))
            intact.append(path)
        except Damaged as error:
            if not path.exists() or (number == len(paths) and not runs):
                raise
            log.warning("skipping %s: %s", path, error)
    return intact, runs


def _check_data(paths: Sequence[Path], runs: Sequence[EvalRun]) -> None:
    """Warn of runs that are evaluated on other data than the first: files, fold or samples."""
    first, *others = [
        # The fingerprint of a prepared store is the same for all folds.
        (
            run.predictor.data.fingerprint(),
            [run.predictor.config["dataset"].get(key) for key in ("folds", "fold")],
            len(run.loader.source),
        )
        for run in runs
    ]
    for path, other in zip(paths[1:], others, strict=True):
        if other != first:
            log.warning(
                "%s is evaluated on other data than %s: their ranks are not comparable",
                path,
                paths[0],
            )


def _ranks(values: Sequence[float]) -> list[int]:
    """Ranks from 1 for the smallest value; NaN comes last."""
    ordered = [value if value == value else float("inf") for value in values]
    return [1 + sum(other < value for other in ordered) for value in ordered]


def csv_row(entry: LeaderboardEntry) -> dict[str, float | int | str]:
    speed = {f"ms_image_batch_{n}": 1000 * seconds / n for n, seconds in entry.seconds.items()}
    largest = max(entry.seconds)
    return {
        "run": entry.run,
        "model": entry.model,
        "parameters": entry.parameters,
        "size_mb": entry.size / MB,
        "bytes_per_image": entry.input_bytes,
        **speed,
        "fps": largest / entry.seconds[largest],
        "n": entry.n,
        **entry.metrics,
        **{f"rank_{name}": rank for name, rank in entry.ranks.items()},
    }


def table(entries: Sequence[LeaderboardEntry], monitor: Monitor) -> TextTable:
    """One row for each entry."""
    metrics = _shown(entries[0].metrics, monitor)
    batches = list(entries[0].seconds)
    header = [
        "run", "model", "parameters", "size MB", *(f"ms/image, batch {n}" for n in batches),
        f"FPS, batch {max(batches)}", "n", *metrics, "speed", "accuracy", "size",
    ]  # fmt: skip
    rows = []
    for entry in entries:
        row = csv_row(entry)
        cells = [
            entry.run,
            entry.model,
            f"{entry.parameters:,}",
            f"{row['size_mb']:.1f}",
            *(f"{row[f'ms_image_batch_{n}']:.1f}" for n in batches),
            f"{row['fps']:.1f}",
            f"{entry.n} {entry.unit}",
            *(f"{entry.metrics[name]:.3f}" for name in metrics),
            *(str(rank) for rank in entry.ranks.values()),
        ]
        rows.append(cells)
    return TextTable(header, rows, "ll" + "r" * (len(header) - 2))


def write(
    out: Path,
    entries: Sequence[LeaderboardEntry],
    monitor: Monitor,
    settings: Mapping[str, Any],
) -> None:
    """Write ``judged.csv``, ``.json`` (with ``settings`` of the measurement), ``.png``, page."""
    from research.tracking.files import csv_text
    from research.utils.counts import with_n
    from research.utils.files import to_json, write_atomic, write_text
    from research.viz import charts

    rows = [csv_row(entry) for entry in entries]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_text(out / "judged.csv", csv_text(columns, rows))
    content = {**settings, "ranked_by": monitor.metric, "runs": [asdict(e) for e in entries]}
    write_text(out / "judged.json", to_json(content))
    created = f"{datetime.now():%Y-%m-%d %H:%M}"
    text = page(entries, monitor.metric, monitor.mode, settings, created, out)
    write_text(out / "leaderboard.html", text)
    smallest = min(entries[0].seconds)
    unit = entries[0].unit
    names = [
        [entry.model for entry in entries],
        [Path(entry.run).name for entry in entries],
        [entry.run for entry in entries],
    ]
    picture = charts.speed_and_accuracy(
        next((each for each in names if len(set(each)) == len(entries)), names[-1]),
        [1000 * entry.seconds[smallest] / smallest for entry in entries],
        [entry.metrics[monitor.metric] for entry in entries],
        [entry.size / MB for entry in entries],
        with_n(f"{settings['split']}/{monitor.metric}", *(e.n for e in entries), unit=unit),
    )
    write_atomic(out / "judged.png", lambda path: picture.save(path, "PNG"))


def main(words: list[str]) -> None:
    paths, options, overrides = cli.parse(LeaderboardOptions, words, others="")
    if not paths:
        raise UserError("RUN", "pass RUN folders first, then key=value settings", "see --help")
    out = options.out or Path(f"runs/leaderboard/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    # Imported late: mistakes are reported before torch is imported.
    from research.engine import build
    from research.utils import logs

    logs.to_terminal()
    entries, monitor = evaluate_runs(
        [Path(path) for path in paths],
        options.split,
        options.checkpoint,
        options.device,
        overrides,
        options.rounds,
        sorted(set(options.batch)),
        options.trust,
    )
    device = str(build.select_device(options.device, "fp32"))  # the one that auto stands for
    settings = {"split": options.split, "rounds": options.rounds, "device": device}
    # Printed before the files are written: a full disk must not lose it.
    print(table(entries, monitor).text(terminal_width()))
    with outputs.writing_to(out):
        write(out, entries, monitor, settings)
    best = next(entry for entry in entries if entry.ranks["accuracy"] == 1)
    folder = outputs.run_dir_of(Path(best.run))
    if (folder / "config.yaml").is_file():
        words = outputs.typed_options(cli.RunOptions(trust=options.trust))
        look = outputs.command_of("reproduce", folder, *words)
    else:  # a model or a weights file, which does not say how it was trained
        words = [f"split={options.split}", *outputs.typed_options(options), *overrides]
        look = outputs.command_of("evaluate", best.run, *words)
    files = ("judged.csv", "judged.json", "judged.png", "leaderboard.html")
    outputs.print_files(out, *files, following=look)


if __name__ == "__main__":
    cli.command(USAGE, main)
