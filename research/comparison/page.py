"""A comparison as one HTML file that needs no network: ``comparison.html`` and its data."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from research.comparison.collect import Recorded
from research.comparison.tables import costs_of, decimals
from research.comparison.verdicts import Comparison

COSTS = {
    "parameters": ("parameters", ""),
    "seconds": ("training time", "s"),
    "epochs": ("epochs", ""),
    "latency_ms": ("latency", "ms/image"),
    "bytes_per_image": ("network input", "bytes/image"),
}
"""Name and unit of each cost that has better ones than its key."""


def page(
    found: Comparison,
    title: str,
    created: str,
    warnings: Sequence[str],
    notes: Sequence[str],
    folder: Path,
) -> str:
    """The page's text.

    Args:
        found: what it shows.
        title: of the page.
        created: date and time.
        warnings: sentences that belong to the result.
        notes: sentences on how to read any such page.
        folder: where it will lie, from which it links to the runs.
    """
    template = (
        resources.files("research.comparison").joinpath("page.html").read_text(encoding="utf-8")
    )
    places = [run.folder.resolve() for group in found.groups for run in group.runs]
    home = Path(os.path.commonpath([place.parent for place in places]))
    content = {
        "title": title,
        "created": created,
        "metric": found.metric,
        "mode": found.mode,
        "confidence": found.confidence,
        "digits": decimals(found),
        "reference": found.reference,
        "groups": _groups(found),
        "runs": [
            _run(run, place, found.metric, home, folder)
            for place, group in enumerate(found.groups)
            for run in group.runs
        ],
        "metrics": _metrics(found),
        "costs": [
            dict(zip(("key", "label", "unit"), (name, *COSTS.get(name, (name, ""))), strict=True))
            for name in costs_of(found)
        ],
        "left_out": ", ".join(f"{count} {what}" for what, count in found.left_out.items()),
        "warnings": list(warnings),
        "notes": list(notes),
    }
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # What a run is called must not end the element that the data stand in.
    text = text.replace("<", "\\u003c")
    page = template.replace("__POLICY__", _policy(template), 1)
    head, _, tail = page.partition("__DATA__")
    return head + text + tail


def _groups(found: Comparison) -> list[dict[str, Any]]:
    rows = []
    for place, (group, spread) in enumerate(zip(found.groups, found.spreads, strict=True)):
        difference, verdict = found.differences[place], found.verdicts[place]
        rows.append(
            {
                "place": place,
                "label": group.label,
                "n": spread.n,
                "runs": len(group.runs),
                "mean": spread.mean,
                "sd": spread.sd,
                "min": spread.low,
                "max": spread.high,
                "costs": {name: group.cost(name) for name in costs_of(found)},
                "settings": group.settings,
                "difference": difference and vars(difference),
                "verdict": verdict and vars(verdict),
                "pairing": found.pairing(place),
                "said": found.said(place),
            }
        )
    return rows


def _run(run: Recorded, group: int, metric: str, home: Path, folder: Path) -> dict[str, Any]:
    return {
        "name": str(run.folder.resolve().relative_to(home)),
        "folder": str(run.folder),
        "href": quote(os.path.relpath(run.folder.resolve(), folder.resolve())) + "/",
        "group": group,
        "seed": run.seed,
        "value": run.value(metric),
        "best_epoch": run.best_epoch,
        "status": run.status,
        "costs": run.costs,
        "epochs": run.epochs,
        "curves": {name: [_short(v) for v in values] for name, values in run.curves.items()},
    }


def _metrics(found: Comparison) -> list[str]:
    """What has curves: what is compared first, then validation, training, and the rest."""
    names = {name for group in found.groups for run in group.runs for name in run.curves}
    order = ("val/", "train/")

    def rank(name: str) -> tuple[bool, int, str]:
        part = next((place for place, start in enumerate(order) if name.startswith(start)), 2)
        return name != found.metric, part, name

    return sorted(names, key=rank)


def _short(value: float | None) -> float | None:
    """Six digits, more than any screen shows: a page of hundreds of runs stays small."""
    return None if value is None else float(f"{value:.6g}")


def _policy(page: str) -> str:
    """Content security: the page's own script and style, and nothing from anywhere."""

    def own(tag: str) -> str:
        [inner] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}'"

    return f"default-src 'none'; script-src {own('script')}; style-src {own('style')}"
