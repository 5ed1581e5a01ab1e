"""Limits on the number of skipped frames in a source."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from research.data.frames.frame import FrameSet
from research.data.listing import log_skipped
from research.utils.errors import UserError

log = logging.getLogger(__name__)


def log_reading(frames: FrameSet) -> None:
    """Log how a source was read, and examples of the files that are passed over."""
    if frames.reading is None:
        return
    log.info("%s: %s", frames.root, frames.reading.line)
    for note in frames.reading.notes:
        log.warning("%s: %s", frames.root, note)
    if frames.reading.passed_over.counts:
        log.info(
            "%s: passed over, for example: %s", frames.root, frames.reading.passed_over.details()
        )


def check_limits(frames: FrameSet, limits: Mapping[str, float]) -> None:
    """Log the problems of a source, and check it against limits.

    Args:
        frames: the source.
        limits: ``max_invalid``, ``max_missing``, ``max_empty`` as numbers of frames; with the
            suffix ``_ratio`` as a fraction of all frames.

    Raises:
        UserError: if a limit is exceeded.
    """
    counts = {
        "invalid": sum(run.invalid for run in frames.runs),
        "missing": sum(run.missing_image + run.missing_file for run in frames.runs),
        "empty": sum(run.empty for run in frames.runs),
    }
    total = sum(run.seen for run in frames.runs)
    log_reading(frames)
    log_skipped(frames.problems)
    for kind, count in counts.items():
        for key, value in ((f"max_{kind}", count), (f"max_{kind}_ratio", count / total)):
            if key in limits and value > limits[key]:
                prune = ", leave them out with prepare prune" * (frames.format == "capture")
                raise UserError(
                    key,
                    f"{key}={limits[key]}: {count} of {total} frames in {frames.root} are {kind} "
                    f"({value:.3g})",
                    f"fix them{prune}, or raise {key}",
                )
        if count:
            action = ", kept as negatives" if kind == "empty" else ", left out"
            log.warning("%s: %d of %d frames are %s%s", frames.root, count, total, kind, action)
