"""``comparison.html``: a comparison as one HTML file that needs no network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from research.comparison.collect import RecordedRun
from research.comparison.tables import costs_of, decimals, p_text
from research.comparison.verdicts import ComparisonResult
from research.utils.counts import by_kind
from research.viz.webpage import web_page

COSTS = {
    "parameters": ("parameters", ""),
    "seconds": ("training time", "s"),
    "epochs": ("epochs", ""),
    "latency_ms": ("latency", "ms/image"),
    "bytes_per_image": ("network input", "bytes/image"),
}
"""Labels and units of costs; others are labelled with their keys."""


def page(
    result: ComparisonResult,
    title: str,
    created: str,
    warnings: Sequence[str],
    notes: Sequence[str],
    folder: Path,
) -> str:
    """The page's text.

    Args:
        result: to show.
        title: of the page.
        created: date and time.
        warnings: sentences about this result.
        notes: sentences about how to read such a page.
        folder: of the file; links to the runs are relative to it.
    """
    folders = [run.folder.resolve() for group in result.groups for run in group.runs]
    root = Path(os.path.commonpath([path.parent for path in folders]))
    content = {
        "title": title,
        "created": created,
        "metric": result.metric,
        "mode": result.mode,
        "confidence": result.confidence,
        "digits": decimals(result),
        "reference": result.reference,
        "groups": _groups(result),
        "runs": [
            _run(run, index, result.metric, root, folder)
            for index, group in enumerate(result.groups)
            for run in group.runs
        ],
        "metrics": _metrics(result),
        "unit": result.unit,
        "labels": {name: result.label(name) for name in {result.metric, *_metrics(result)}},
        "costs": [
            dict(zip(("key", "label", "unit"), (name, *COSTS.get(name, (name, ""))), strict=True))
            for name in costs_of(result)
        ],
        "left_out": by_kind(result.skipped),
        "warnings": list(warnings),
        "notes": list(notes),
    }
    scripts = ("curves.js", "comparison.js")
    return web_page("research.comparison", "comparison", title, content, scripts).text


def _groups(result: ComparisonResult) -> list[dict[str, Any]]:
    rows = []
    for index, (group, stats) in enumerate(zip(result.groups, result.stats, strict=True)):
        difference, verdict = result.differences[index], result.verdicts[index]
        rows.append(
            {
                "index": index,
                "label": group.label,
                "n": stats.n,
                "runs": len(group.runs),
                "samples": group.n(result.metric),
                "mean": stats.mean,
                "sd": stats.sd,
                "min": stats.low,
                "max": stats.high,
                "costs": {name: group.cost(name) for name in costs_of(result)},
                "settings": group.settings,
                "difference": difference and vars(difference),
                "verdict": verdict and vars(verdict),
                "p": verdict and p_text(verdict.p),
                "pairing": result.pairing(index),
                "verdictText": result.verdict_text(index),
            }
        )
    return rows


def _run(run: RecordedRun, group: int, metric: str, root: Path, folder: Path) -> dict[str, Any]:
    return {
        "name": str(run.folder.resolve().relative_to(root)),
        "folder": str(run.folder),
        "href": quote(os.path.relpath(run.folder.resolve(), folder.resolve())) + "/",
        "group": group,
        "seed": run.seed,
        "value": run.value(metric),
        "samples": run.n(metric),
        "best_epoch": run.best_epoch,
        "status": run.status,
        "costs": run.costs,
        "epochs": run.epochs,
        "curves": {name: [_short(v) for v in values] for name, values in run.curves.items()},
    }


def _metrics(result: ComparisonResult) -> list[str]:
    """Metrics with curves: the compared one first, then validation, training and the rest."""
    names = {name for group in result.groups for run in group.runs for name in run.curves}
    order = ("val/", "train/")

    def rank(name: str) -> tuple[bool, int, str]:
        part = next((index for index, start in enumerate(order) if name.startswith(start)), 2)
        return name != result.metric, part, name

    return sorted(names, key=rank)


def _short(value: float | None) -> float | None:
    """Rounded to six digits, so that a page of hundreds of runs stays small."""
    return None if value is None else float(f"{value:.6g}")
