"""Robustness of RGB+X detectors to sensor failures: ``python -m research.robustness RUN``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.config import cli, outputs
from research.config.rules import PATH, number, one_of, whole
from research.utils.errors import UserError
from research.utils.tables import TextTable, terminal_width


@dataclass(frozen=True)
class RobustnessOptions(cli.RunOptions):
    """Options of the command."""

    split: str = cli.option(
        "test", one_of("test", "val", "train"), "test, val or train (with validation crops)"
    )
    shifts: tuple[int, ...] = cli.option((2, 4, 8), whole(1, 10**6), "in pixels")
    noise: tuple[float, ...] = cli.option(
        (0.25, 0.5, 1.0), number(above=0, below=1e6), "standard deviations"
    )
    out: Path | None = cli.option(
        None, PATH, "folder for the results; by default robustness_SPLIT in the run folder"
    )


USAGE = cli.usage(
    "python -m research.robustness RUN [key=value …]",
    """
RUN is a run folder or checkpoint of a detector on RGB + X. Evaluates it on a split as it is and
with disturbed inputs:
  missing  a sensor, or all except RGB, is replaced by its mean
  shifted  all channels except RGB are shifted to the right by n pixels of the letterboxed frame;
           the mean enters from the left
  noisy    a sensor has Gaussian noise, in units of its standard deviation; the same in every run
Prints a Markdown table with the change of the monitored metric; writes robustness.csv, .json and
.png.
""",
    RobustnessOptions,
    "Any setting of the run may follow, such as dataset.root=FOLDER if the data was moved.",
)

SHOWN = ("mAP", "mAP50", "mAP75", "recall", "precision")
"""Metrics in the printed table; the files have all."""


def table(rows: Sequence[Mapping[str, Any]], metric: str) -> TextTable:
    """A row for each case; the first one is the clean case."""
    shown = [name for name in dict.fromkeys((metric, *SHOWN)) if name in rows[0]]
    lines = []
    for row in rows:
        cells = [row["kind"], row["sensor"], f"{row['amount']:g}" if row["amount"] else ""]
        change = f"{row[metric] - rows[0][metric]:+.3f}" if row is not rows[0] else ""
        cells += [str(row["n"]), f"{row[metric]:.3f}", change]
        lines.append([*cells, *(f"{row[name]:.3f}" for name in shown[1:])])
    header = ["disturbance", "sensor", "amount", "n", metric, f"Δ {metric}", *shown[1:]]
    return TextTable(header, lines, "ll" + "r" * (len(shown) + 3), keys=3)


def write(
    out: Path, rows: Sequence[Mapping[str, Any]], metric: str, settings: Mapping[str, Any]
) -> None:
    """Write ``robustness.csv``, ``.json`` (with ``settings`` of the evaluation) and ``.png``."""
    from research.tracking.files import csv_text
    from research.utils.files import to_json, write_atomic, write_text
    from research.viz import charts

    write_text(out / "robustness.csv", csv_text(list(rows[0]), rows))
    content = {**settings, "metric": metric, "cases": [dict(row) for row in rows]}
    write_text(out / "robustness.json", to_json(content))
    titles = {
        "missing": "missing",
        "shifted": "shifted, pixels",
        "noisy": "noise, standard deviations",
    }
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows[1:]:
        lines = groups.setdefault(titles[row["kind"]], {})
        lines.setdefault(row["sensor"], []).append((row["amount"], row[metric]))
    picture = charts.robustness(groups, rows[0][metric], metric, settings["of"])
    write_atomic(out / "robustness.png", lambda path: picture.save(path, "PNG"))


def main(words: list[str]) -> None:
    paths, options, overrides = cli.parse(RobustnessOptions, words, others="")
    if len(paths) != 1:
        raise UserError("RUN", "pass one RUN folder or checkpoint first, then key=value settings")
    path, split = Path(paths[0]), options.split
    out = options.out or outputs.folder_in_run(path, f"robustness_{split}")
    # Imported late: mistakes are reported before torch is imported.
    from research.engine.disturbances import evaluate_cases
    from research.engine.evaluation import load_eval_run
    from research.utils import logs

    logs.to_terminal()
    run = load_eval_run(path, split, options.checkpoint, options.device, overrides, options.trust)
    shifts, noise = sorted(set(options.shifts)), sorted(set(options.noise))
    rows, metric, basis = evaluate_cases(run, shifts, noise)
    # Printed before the files are written: a full disk must not lose it.
    print(table(rows, metric).text(terminal_width()))
    with outputs.writing_to(out):
        write(out, rows, metric, {"run": str(path), "split": split, "of": basis})
    words = [f"split={split}", *outputs.typed_options(options), *overrides]
    look = outputs.command_of("evaluate", path, *words)
    names = [f"robustness.{suffix}" for suffix in ("csv", "json", "png")]
    outputs.print_files(out, *names, following=look)


if __name__ == "__main__":
    cli.command(USAGE, main)
