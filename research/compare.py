"""Comparison of recorded runs over seeds: ``python -m research.compare RUN … group_by=…``."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from research.comparison import collect
from research.comparison.collect import RecordedRun
from research.comparison.page import page
from research.comparison.tables import flat, flat_runs, markdown
from research.comparison.upload import FOLDER, upload
from research.comparison.verdicts import ComparisonResult, compare
from research.config import cli, outputs
from research.config.keys import WITHOUT_EFFECT, is_below
from research.config.rules import PATH, TEXT, number, one_of
from research.tracking.files import csv_text
from research.utils import logs
from research.utils.counts import by_kind, counted, spanned
from research.utils.errors import UserError
from research.utils.files import to_json, write_text
from research.utils.tables import paragraph, terminal_width

STATUSES = ("FINISHED", "PRUNED", "KILLED", "FAILED", "RUNNING", "all")


@dataclass(frozen=True)
class CompareOptions:
    """Options of the command."""

    experiment: str = cli.option("", TEXT, "only runs of this experiment")
    status: tuple[str, ...] = cli.option(
        ("FINISHED",),
        one_of(*STATUSES),
        "only runs with this status: a list such as FINISHED,KILLED, or all",
    )
    metric: str = cli.option(
        "",
        TEXT,
        "column of epoch_metrics.csv or test/METRIC of evaluations/test.json, with :max or :min; "
        "read in the best epoch; by default the metric that chose that epoch",
    )
    group_by: tuple[str, ...] = cli.option(
        (),
        TEXT,
        "settings or groups of settings, such as model,optimizer.lr; by default all in which the "
        "runs differ, except seed and what has no effect on a run, such as device and workers",
    )
    against: str = cli.option(
        "",
        TEXT,
        "the reference group: its number in the table, its label or a part of it; by default the "
        "best group",
    )
    confidence: float = cli.option(0.95, number(above=0, at_most=0.9999), "of the intervals")
    title: str = cli.option("", TEXT, "of the page")
    mlflow: str = cli.option(
        "",
        TEXT,
        "URI of a store to upload the files to; by default the parent run of the sweep, if all "
        "runs belong to one",
    )
    out: Path | None = cli.option(
        None, PATH, "folder for the results; by default runs/compare/TIME"
    )


USAGE = cli.usage(
    "python -m research.compare [RUN|FOLDER …] [key=value …]",
    """
Compares runs over seeds, from the files in their folders. FOLDERs are searched for runs, such as
runs/sweeps/STUDY; by default runs/. Prints two Markdown tables: mean and sample standard deviation
of each group over seeds, and its difference from a reference group. Differences are paired by seed
where seeds match, with a bootstrap interval, Student's t interval and a p value adjusted for the
number of comparisons. A difference is distinguishable from chance if p is small and the bootstrap
interval excludes zero. Writes comparison.html (tables, learning curves, differences and accuracy
against cost in one file that needs no network), comparison.csv, runs.csv and comparison.json.
""",
    CompareOptions,
)


def notes(result: ComparisonResult) -> tuple[list[str], list[str]]:
    """Sentences about this result, and about how to read any comparison."""
    own = []
    runs = [run for group in result.groups for run in group.runs]
    if result.metric.startswith("val/") and any(run.monitor[0] == result.metric for run in runs):
        own.append(
            f"The best epoch of each run was chosen by {result.metric} itself, so these values are "
            "optimistic; research.evaluate RUN split=test measures on data that chose nothing, and "
            f"metric={result.metric.replace('val/', 'test/', 1)} compares that."
        )
    counts = {run.n(result.metric) for run in runs} - {None}
    if len(counts) > 1:
        own.append(
            f"The runs were evaluated on different numbers of samples ({spanned(*counts)}): they "
            "differ in these samples, too."
        )
    own += _other_data(runs)
    if not result.comparisons:
        return own, []
    many = counted(result.comparisons, "comparisons")
    return own, [
        "A difference is distinguishable if the bootstrap interval of its mean (percentiles of "
        "10,000 resamples of seeds) excludes zero and p is below "
        f"{1 - result.confidence:.3g}: with few seeds the bootstrap alone is too narrow.",
        f"p is that of Student's t test, adjusted for {many} by Holm's procedure: all verdicts "
        f"are correct with a probability of {100 * result.confidence:g} %. Each interval is for "
        "one difference alone.",
        "With the best group as reference, every pair of groups counts as compared, since any "
        "might have been the best; a group named by against= needs fewer comparisons.",
        "The number of seeds to add is for a power of 80 % to detect a difference of the size "
        "seen, from its standard deviation so far: a rough guide while seeds are few.",
    ]


def _other_data(runs: Sequence[RecordedRun]) -> list[str]:
    """A sentence if runs whose settings of the data are the same had other data."""
    hashes: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for run in runs:
        own = {
            key: value
            for key, value in run.settings.items()
            if is_below(key, {"dataset"}) and not is_below(key, WITHOUT_EFFECT)
        }
        settings = to_json(own)
        if run.data:
            hashes[settings,].add(run.data)
            hashes[settings, str(run.seed)].add(run.data)
    several = [len(key) for key, known in hashes.items() if len(known) > 1]
    if not several:
        return []
    if max(several) == 1 and any(run.settings.get("dataset.split_seed", 0) is None for run in runs):
        return [
            "Each seed has drawn its own validation split, so the spread over seeds is of the "
            "splits, too; dataset.split_seed=0 draws one for all."
        ]
    return [
        "Runs with the same settings of the data had different data: its files have changed "
        "between them, so they differ in these, too."
    ]


def record(
    result: ComparisonResult, title: str, created: str, notes: Sequence[str]
) -> dict[str, Any]:
    """The content of ``comparison.json``: that of the tables and the page, without the curves."""
    groups = zip(flat(result), result.groups, result.differences, strict=True)
    return {
        "title": title,
        "created": created,
        "metric": result.metric,
        "mode": result.mode,
        "confidence": result.confidence,
        "reference": result.groups[result.reference].label,
        "groups": [
            {**row, "values": group.values, "difference": difference and asdict(difference)}
            for row, group, difference in groups
        ],
        "runs": flat_runs(result),
        "left_out": dict(result.skipped),
        "notes": list(notes),
    }


def write(out: Path, result: ComparisonResult, title: str) -> list[Path]:
    """Write ``comparison.html``, ``.json``, ``.csv`` (one row a group) and ``runs.csv``."""
    created = f"{datetime.now():%Y-%m-%d %H:%M}"
    groups, runs = flat(result), flat_runs(result)
    own, general = notes(result)
    texts = {
        "comparison.html": page(result, title, created, own, general, out),
        "comparison.json": to_json(record(result, title, created, [*own, *general])),
        "comparison.csv": csv_text(list(groups[0]), groups),
        "runs.csv": csv_text(list(runs[0]), runs),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def main(words: list[str]) -> None:
    paths, options, _ = cli.parse(CompareOptions, words)
    metric, _, mode = options.metric.partition(":")
    if mode:
        cli.choose("metric", f"{metric}:{mode}", (f"{metric}:max", f"{metric}:min"))
    logs.to_terminal()
    folders = collect.find_runs([Path(path) for path in paths or ["runs"]])
    statuses = () if "all" in options.status else options.status
    runs, skipped = collect.select(folders, options.experiment, statuses)
    if not runs:
        raise UserError(
            "RUN", f"no run to compare{_skipped(skipped) or '; pass other RUN folders'}"
        )
    if metric:
        collect.check_metric(runs, metric)
        mode = mode or collect.direction(runs, metric)
    else:
        metric, mode = collect.monitored(runs)
    compared = [run for run in runs if run.value(metric) is not None]
    if not compared:
        raise UserError(
            "metric", f"metric={metric}: no run has it in its best epoch", "choose another"
        )
    if len(compared) < len(runs):
        skipped[f"without {metric}"] = len(runs) - len(compared)
    result = compare(
        compared, metric, mode, options.group_by, options.against, options.confidence, skipped
    )
    # Printed before the files are written: a full disk must not lose it.
    width = terminal_width()
    own = [paragraph(note, width) for note in notes(result)[0]]
    print("\n\n".join([markdown(result, width), *own]))
    if skipped:
        print(f"\nskipped{_skipped(skipped)}", file=sys.stderr)
    single = Path(paths[0]).name if len(paths) == 1 else ""
    title = options.title or options.experiment or single
    out = options.out or Path(f"runs/compare/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    with outputs.writing_to(out):
        files = write(out, result, title or f"Comparison by {metric}")
    stored = upload(files, compared, options.mlflow)
    sign = 1 if mode == "max" else -1
    best = max(result.groups[0].runs, key=lambda run: sign * (run.value(metric) or 0))
    names = [file.name for file in files]
    outputs.print_files(out, *names, following=outputs.command_of("reproduce", best.folder))
    if stored:
        print(f"mlflow: run {stored}, artifacts in {FOLDER}/", file=sys.stderr)


def _skipped(skipped: Mapping[str, int]) -> str:
    counts = by_kind(skipped)
    hint = "; status=all includes unfinished runs" if {*STATUSES} & {*skipped} else ""
    return f": {counts}{hint}" if counts else ""


if __name__ == "__main__":
    cli.command(USAGE, main)
