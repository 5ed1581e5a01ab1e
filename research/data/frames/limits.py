"""How much of a source may be unusable before it is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from research.data.frames.frame import FrameSet
from research.utils.errors import UserError

log = logging.getLogger(__name__)

MOST_PROBLEMS = 10
"""Frames left out that are written out one by one."""


def tell(problems: Sequence[str]) -> None:
    """Log the first few lines about frames that are left out, and how many more there are."""
    for problem in problems[:MOST_PROBLEMS]:
        log.warning("left out: %s", problem)
    if len(problems) > MOST_PROBLEMS:
        log.warning("left out: … and %d more", len(problems) - MOST_PROBLEMS)


def hold(found: FrameSet, limits: Mapping[str, float]) -> None:
    """Tell what is wrong with a source, and hold it to its thresholds.

    Args:
        found: the source.
        limits: ``max_invalid``, ``max_missing``, ``max_empty`` in frames; with ``_ratio`` as a
            share of all.

    Raises:
        UserError: for a limit that is exceeded.
    """
    counts = {
        "invalid": sum(run.invalid for run in found.runs),
        "missing": sum(run.missing_image + run.missing_file for run in found.runs),
        "empty": sum(run.empty for run in found.runs),
    }
    seen = sum(run.seen for run in found.runs)
    tell(found.problems)
    for kind, count in counts.items():
        for key, value in ((f"max_{kind}", count), (f"max_{kind}_ratio", count / seen)):
            if key in limits and value > limits[key]:
                prune = ", leave them out with prepare prune" * (found.format == "capture")
                raise UserError(
                    key,
                    f"{key}={limits[key]}: {count} of {seen} frames in {found.root} are {kind} "
                    f"({value:.3g})",
                    f"mend them{prune}, or raise {key}",
                )
        if count:
            kept = ", kept as negatives" if kind == "empty" else ", left out"
            log.warning("%s: %d of %d frames are %s%s", found.root, count, seen, kind, kept)
