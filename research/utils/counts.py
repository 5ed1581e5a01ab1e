"""Counts in words, as every line, table and picture writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

SINGULARS: Final = {"series": "series", "ies": "y", "sses": "ss", "xes": "x", "ches": "ch", "s": ""}
"""What ends of plurals become, the first that fits."""


def samples_of(row: Mapping[str, Any], metric: str) -> int | None:
    """The number of samples of a metric in the row of an epoch; None in rows of earlier versions.

    Args:
        row: of ``epoch_metrics.csv``, with ``train/n`` and ``val/n``.
        metric: its name with the split, such as ``val/top1``.
    """
    n: int | None = row.get(f"{metric.partition('/')[0]}/n")
    return n


def counted(count: int, unit: str) -> str:
    """``1 frame``, ``3 frames``.

    Args:
        count: how many.
        unit: in the plural; a word of another language, or without an s, stays as it is.
    """
    end = next((end for end in SINGULARS if unit.endswith(end)), None) if count == 1 else None
    return f"{count} {unit}" if end is None else f"{count} {unit.removesuffix(end)}{SINGULARS[end]}"


def by_kind(counts: Mapping[str, int]) -> str:
    """Counts in words, the largest first: ``2 hidden, 1 HEIC``."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(counts).most_common() if count)


def spanned(*counts: int | None) -> str:
    """``480``, or ``96…480`` of different counts; empty if none is known."""
    known = [n for n in counts if n is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    return f"{low}" if low == high else f"{low}…{high}"


def with_n(text: str, *counts: int | None, unit: str = "") -> str:
    """``TEXT (n=480 images)``; the text alone if no count is known.

    Args:
        text: the figure, or its name.
        counts: of the samples; several, if there are several figures.
        unit: what a sample is, in the plural.
    """
    n = spanned(*counts)
    return f"{text} ({' '.join(filter(None, [f'n={n}', unit]))})" if n else text
