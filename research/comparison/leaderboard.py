"""``leaderboard.html``: runs by accuracy and cost as one HTML file that needs no network."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from research.utils.counts import with_n
from research.viz.webpage import web_page


@dataclass(frozen=True)
class LeaderboardEntry:
    """The results of one run; written to ``judged.json`` under the names of the fields.

    Attributes:
        run: the run folder or file.
        model: the network's name.
        parameters: number of parameters.
        size: bytes of the state dict.
        input_bytes: bytes of an image's network input as it is stored.
        seconds: by batch size, the median time of a batch.
        metrics: on the split.
        n: number of samples that they are of.
        unit: what a sample is, in the plural.
        ranks: by ``speed``, ``accuracy`` and ``size``; 1 is best, equal values share a rank.
    """

    run: str
    model: str
    parameters: int
    size: int
    input_bytes: float
    seconds: dict[int, float]
    metrics: dict[str, float]
    n: int
    unit: str
    ranks: dict[str, int]


def page(
    entries: Sequence[LeaderboardEntry],
    metric: str,
    mode: str,
    settings: Mapping[str, Any],
    created: str,
    folder: Path,
) -> str:
    """The page's text.

    Args:
        entries: of one task, timed in batches of the same sizes.
        metric: that ranks them.
        mode: ``max`` or ``min``: which direction of it is better.
        settings: of the measurement: ``split``, ``rounds`` and ``device``.
        created: date and time.
        folder: of the file; links to the runs are relative to it.
    """
    first = entries[0]
    root = os.path.commonpath([Path(entry.run).resolve().parent for entry in entries])
    name = f"{settings['split']}/{metric}"
    title = f"Leaderboard by {name}"
    content = {
        **settings,
        "title": title,
        "created": created,
        "ranked_by": metric,
        "mode": mode,
        "label": with_n(name, *(entry.n for entry in entries), unit=first.unit),
        "unit": first.unit,
        "metrics": list(first.metrics),
        "batches": list(first.seconds),
        "runs": [
            _row(entry, first.metrics, root, folder)
            for entry in sorted(entries, key=lambda entry: entry.ranks["accuracy"])
        ],
    }
    return web_page("research.comparison", "leaderboard", title, content, ("leaderboard.js",)).text


def _row(
    entry: LeaderboardEntry, metrics: Iterable[str], root: str, folder: Path
) -> dict[str, Any]:
    path = Path(entry.run).resolve()
    values = {name: entry.metrics.get(name, math.nan) for name in metrics}
    return {
        "run": entry.run,
        "name": str(path.relative_to(root)),
        "href": quote(os.path.relpath(path, folder.resolve())),
        "model": entry.model,
        "parameters": entry.parameters,
        "size": entry.size,
        "input_bytes": entry.input_bytes,
        "milliseconds": {count: 1000 * each / count for count, each in entry.seconds.items()},
        "metrics": {
            name: value if math.isfinite(value) else None for name, value in values.items()
        },
        "n": entry.n,
        "ranks": entry.ranks,
    }
