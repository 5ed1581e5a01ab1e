"""Recorded runs compared over seeds: ``python -m research.compare RUNS… group_by=…``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from research.comparison import collect
from research.comparison.page import page
from research.comparison.tables import flat, flat_runs, markdown
from research.comparison.upload import FOLDER, upload
from research.comparison.verdicts import Comparison, compare
from research.config import cli
from research.config.rules import TEXT, Rule, number
from research.tracking.files import csv_text
from research.utils import logs
from research.utils.errors import UserError
from research.utils.files import to_json, write_text

USAGE = """
python -m research.compare [RUN|FOLDER …] [key=value …]

Compares runs over seeds from what their folders say, in seconds; FOLDERs are searched for runs,
runs/ by default, such as runs/sweeps/STUDY. Prints two Markdown tables: each group's mean and
sample standard deviation over seeds, and its difference from one group, paired by seed where seeds
match, with a bootstrap interval, Student's t interval and p, adjusted for the number of groups, and
whether the difference can be told from chance: it can if p is small and the bootstrap interval
excludes zero. Writes comparison.html (sortable tables, learning curves, differences, accuracy
against cost; one file that needs no network), comparison.csv, runs.csv and comparison.json.
  experiment=       only runs of this recipe
  status=FINISHED   which runs count: a list such as FINISHED,KILLED, or all
  metric=           column of epoch_metrics.csv, METRIC, METRIC:max or METRIC:min, read in the best
                    epoch; by default the metric that picked it
  group_by=         settings or groups of settings, such as model,optimizer.lr; by default all in
                    which the runs differ but for seed, name, tags, logging, device and paths
  against=          the group that the others are held against: its number in the table, its label
                    or a part of it; by default the best
  confidence=0.95   of the intervals
  title=            of the page
  mlflow=           URI of a store that gets the files; by default the run of the sweep, where all
                    runs are of one
  out=              folder for the results; runs/compare/TIME by default
"""

OPTIONS: dict[str, tuple[str, Rule]] = {
    "experiment": ("", TEXT),
    "status": ("FINISHED", TEXT),
    "metric": ("", TEXT),
    "group_by": ("", TEXT),
    "against": ("", TEXT),
    "confidence": ("0.95", number(above=0, at_most=0.9999)),
    "title": ("", TEXT),
    "mlflow": ("", TEXT),
    "out": ("", TEXT),
}
STATUSES = ("FINISHED", "PRUNED", "KILLED", "FAILED", "RUNNING", "all")


def notes(found: Comparison) -> tuple[list[str], list[str]]:
    """Sentences on how to read a comparison: what this one in particular needs, and the rest."""
    own = []
    runs = [run for group in found.groups for run in group.runs]
    if found.metric.startswith("val/") and any(run.monitor[0] == found.metric for run in runs):
        own.append(
            f"Each run's best epoch was picked by the very {found.metric} shown, which is "
            "therefore optimistic; research.evaluate RUN split=test judges on data that picked "
            "nothing."
        )
    if not found.comparisons:
        return own, []
    many = f"{found.comparisons} comparison{'s' if found.comparisons > 1 else ''}"
    return own, [
        "A difference is distinguishable if the bootstrap interval of its mean (percentiles of "
        "10,000 resamples of seeds) excludes zero and p is below "
        f"{1 - found.confidence:.3g}: with few seeds the bootstrap alone is too narrow.",
        f"p is that of Student's t test, adjusted for {many} by Holm's procedure: all verdicts "
        f"are right together with a chance of {100 * found.confidence:g} %. The intervals are of "
        "each difference by itself.",
        "Held against the best, every pair of groups counts as compared, since any might have "
        "come out as the best; a group named by against= asks for less.",
        "Seeds to add are for a chance of 80 % to tell a difference of the size seen, by its "
        "standard deviation so far: a rough guide while seeds are few.",
    ]


def record(found: Comparison, title: str, created: str, told: Sequence[str]) -> dict[str, Any]:
    """``comparison.json``: all that the tables and the page say, but for the curves."""
    groups = zip(flat(found), found.groups, found.differences, strict=True)
    return {
        "title": title,
        "created": created,
        "metric": found.metric,
        "mode": found.mode,
        "confidence": found.confidence,
        "reference": found.groups[found.reference].label,
        "groups": [
            {**row, "values": group.values, "difference": difference and asdict(difference)}
            for row, group, difference in groups
        ],
        "runs": flat_runs(found),
        "left_out": dict(found.left_out),
        "notes": list(told),
    }


def write(out: Path, found: Comparison, title: str) -> list[Path]:
    """``comparison.html``, ``.json``, ``.csv`` (a row a group) and ``runs.csv``; returns them."""
    created = f"{datetime.now():%Y-%m-%d %H:%M}"
    groups, runs = flat(found), flat_runs(found)
    own, general = notes(found)
    texts = {
        "comparison.html": page(found, title, created, own, general, out),
        "comparison.json": to_json(record(found, title, created, [*own, *general])),
        "comparison.csv": csv_text(list(groups[0]), groups),
        "runs.csv": csv_text(list(runs[0]), runs),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def main(words: list[str]) -> None:
    paths, settings = cli.split(words)
    asked = cli.typed(settings, OPTIONS, "compare")
    statuses = asked["status"].split(",")
    for status in statuses:
        cli.choose("status", status, STATUSES)
    metric, _, mode = asked["metric"].partition(":")
    if mode:
        cli.choose("metric", f"{metric}:{mode}", (f"{metric}:max", f"{metric}:min"))
    logs.to_terminal(sys.stderr)
    folders = collect.find([Path(path) for path in paths or ["runs"]])
    wanted = [] if "all" in statuses else statuses
    runs, left_out = collect.select(folders, asked["experiment"], wanted)
    if not runs:
        raise UserError("RUN", f"no run to compare{_left(left_out) or '; give other RUN folders'}")
    if metric:
        collect.check_metric(runs, metric)
        mode = mode or collect.direction(runs, metric)
    else:
        metric, mode = collect.monitored(runs)
    chosen = [run for run in runs if run.value(metric) is not None]
    if not chosen:
        raise UserError(
            "metric", f"metric={metric}: no run has it in its best epoch", "choose another"
        )
    if len(chosen) < len(runs):
        left_out[f"without {metric}"] = len(runs) - len(chosen)
    by = [key for key in asked["group_by"].split(",") if key]
    found = compare(chosen, metric, mode, by, asked["against"], asked["confidence"], left_out)
    # First: no disk can take it back.
    print("\n\n".join([markdown(found), *notes(found)[0]]))
    if left_out:
        print(f"\nleft out{_left(left_out)}", file=sys.stderr)
    single = Path(paths[0]).name if len(paths) == 1 else ""
    title = asked["title"] or asked["experiment"] or single
    out = Path(asked["out"] or f"runs/compare/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    with cli.written(out):
        files = write(out, found, title or f"Comparison by {metric}")
    stored = upload(files, chosen, asked["mlflow"])
    print(f"\npage: {out / 'comparison.html'}", file=sys.stderr)
    if stored:
        print(f"mlflow: run {stored}, artifacts in {FOLDER}/", file=sys.stderr)


def _left(left_out: Mapping[str, int]) -> str:
    told = ", ".join(f"{count} {what}" for what, count in sorted(left_out.items()))
    hint = "; status=all takes unfinished ones in" if {*STATUSES} & {*left_out} else ""
    return f": {told}{hint}" if told else ""


if __name__ == "__main__":
    cli.command(USAGE, main)
