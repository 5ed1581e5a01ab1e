"""Measures a trained run of a study, in a process of its own: ``RUN OUT OPTIONS``.

So a study imports no torch, and whatever ends a measurement ends no study.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from research.config import cli, outputs
from research.utils.files import to_json, write_text


def measure(
    folder: Path, split: str, checkpoint: str, baseline: bool, shifts: list[int], noise: list[float]
) -> dict[str, Any]:
    """Evaluate a run by the engine, and measure what its network costs.

    Args:
        folder: of the run.
        split, checkpoint, baseline, shifts, noise: see ``definition.StudyEvaluation``.

    Returns:
        ``evaluation``, ``samples``, ``costs``, and ``baseline`` and ``cases`` as far as they are
        wanted, with the fields of ``record.StudyRecord``.

    Raises:
        UserError: if the run cannot be evaluated, or its data has no baseline or other sensors.
    """
    from research.engine import build, cost
    from research.engine.disturbances import evaluate_cases
    from research.engine.evaluation import load_eval_run
    from research.sweeps.objectives import bytes_per_image
    from research.tracking.evaluations import FOLDER

    run = load_eval_run(folder, split, checkpoint, "auto", [])
    evaluation, result = run.measure()
    out = outputs.folder_in_run(folder, FOLDER)
    run.keep(evaluation, result, out)
    network = build.model(run.predictor.config, run.saved["data"])
    parameters, macs, _, _ = cost.measure(network, run.predictor.config, run.saved["data"])
    measured: dict[str, Any] = {
        "evaluation": {
            "split": split,
            "checkpoint": checkpoint,
            "epoch": evaluation.epoch,
            "n": evaluation.n,
            "metrics": evaluation.metrics,
        },
        "samples": {name: n for name, (n, _) in run.predictor.data.counts().items()},
        "costs": {"parameters": parameters, "macs": macs, "bytes_per_image": bytes_per_image(run)},
    }
    if baseline:
        measured["baseline"] = _beside_baseline(run.predictor.data, result.totals, folder)
    if shifts or noise:
        rows, _, _ = evaluate_cases(run, shifts, noise)
        named = ("kind", "sensor", "amount", "n")
        measured["cases"] = [
            {
                **{name: row[name] for name in named[:3]},
                "metrics": {name: value for name, value in row.items() if name not in named},
            }
            for row in rows
        ]
    return measured


def _beside_baseline(data: Any, totals: Any, folder: Path) -> dict[str, Any]:
    """The samples of the split beside the baseline of the data, summed by group."""
    import numpy as np

    from research.data.folds import beside_baseline

    result = beside_baseline(data, totals, folder)
    names = sorted(set(result.groups))
    member = np.array([names.index(group) for group in result.groups])
    sums = [np.bincount(member, weights=each) for each in (result.values, result.baseline)]
    rows = zip(np.bincount(member).tolist(), *(each.tolist() for each in sums), strict=True)
    return {"names": result.columns._asdict(), "groups": [list(row) for row in rows]}


def main(words: list[str]) -> None:
    from research.utils import logs

    logs.to_terminal()
    folder, out, options = words
    write_text(Path(out), to_json(measure(Path(folder), **json.loads(options))))


if __name__ == "__main__":
    cli.command("python -m research.studies.measuring RUN OUT OPTIONS", main)
