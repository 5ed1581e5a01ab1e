"""Prediction for a user's own images, folders and videos, with files of results."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from research.batch import Batch
from research.data.datamodule import DataModule
from research.data.frames.media import Media, Still
from research.data.listing import describe_files, log_skipped
from research.engine import checkpoint, predictor
from research.engine.predictor import Predictor
from research.inference.player import Player
from research.inference.writers import Panels, PredictionWriter
from research.utils.conditions import explained
from research.utils.counts import by_kind, counted
from research.utils.errors import DamagedImage, UserError
from research.utils.files import write_text
from research.utils.progress import Phase
from research.utils.timing import synchronize

log = logging.getLogger(__name__)

MISSING_FRAMES = 0.02
"""Fraction of the frames announced in video headers that may be missing without a warning."""

T = TypeVar("T")


def predict(
    model: Predictor,
    media: Media,
    writer: PredictionWriter,
    batch_size: int,
    player: Player | None = None,
) -> dict[str, Any]:
    """Run the model on all frames, and pass the predictions to ``writer`` and ``player``.

    Returns:
        for JSON: ``frames``, ``damage`` (skipped frames by kind), ``seconds`` (total, with reading
        and writing), ``frames_per_second``, ``latency_ms`` (of the batches of the most frames:
        model and postprocessing, with the device synchronized) and the writer's summary.

    Raises:
        UserError: if no frame can be read.
    """
    damaged: list[DamagedImage] = []
    latencies: dict[int, list[float]] = {}  # ms by number of frames
    frames, start = 0, time.perf_counter()
    with writer, Phase("predicting", media.expected or None, "frames") as phase:
        for batch_stills in media.batches(batch_size):
            stills, images, batch = read_frames(model.data, batch_stills, damaged)
            if batch is not None:
                batch_start = time.perf_counter()
                predictions = model.infer(batch)
                synchronize(model.device)
                latency = 1000 * (time.perf_counter() - batch_start)
                latencies.setdefault(len(stills), []).append(latency)
                frames += len(stills)
                written = writer.add(stills, images, predictions)
                if player is not None:
                    for still, panels, shown in zip(stills, images, written, strict=True):
                        player.show(still.name, panels[0], shown, latency / len(stills))
            phase.update(frames + len(damaged))
    skipped = media.skipped + Counter(error.kind for error in damaged)
    problems = [*media.problems, *map(str, damaged)]
    if not frames:
        first = f"; the first: {problems[0]}" if problems else ""
        counts = f" ({by_kind(skipped)})" if skipped else ""
        raise UserError("SOURCE", f"no frame could be read{counts}{first}")
    log.info("%s", describe_files(frames, media.passed_over, Counter(skipped)))
    log_skipped(problems)
    missing = media.expected - frames - sum(skipped.values())
    if missing > 1 + MISSING_FRAMES * media.expected:
        text = counted(missing, "frames")
        log.warning("%s fewer could be read than the headers of the videos say", text)
    seconds = time.perf_counter() - start
    largest = max(latencies)
    return {
        "frames": frames,
        "damage": dict(skipped),
        "passed_over": dict(media.passed_over.counts),
        "seconds": seconds,
        "frames_per_second": frames / seconds,
        "latency_ms": {
            "batch_size": largest,
            "batches": len(latencies[largest]),
            "median": statistics.median(latencies[largest]),
            "highest": max(latencies[largest]),
        },
        "device": str(model.device),
        **writer.summary(),
    }


def read_frames(
    data: DataModule, stills: Sequence[Still], damaged: list[DamagedImage]
) -> tuple[list[Still], list[Panels], Batch | None]:
    """Read frames; those that cannot be read are appended to ``damaged`` and left out.

    Returns:
        the frames that were read, their pixels, and all of them as one batch.
    """
    readable: list[tuple[Still, Panels]] = _read_each(stills, data.load_image, damaged)
    while readable:
        rest, images = zip(*readable, strict=True)
        try:
            return list(rest), list(images), data.read([still.file for still in rest])
        except DamagedImage:
            # The error does not say which file: a reader of coefficients refuses other files than
            # a reader of pixels.
            pairs = _read_each(rest, lambda file: data.read([file]), damaged)
            valid = {still for still, _ in pairs}
            readable = [(still, image) for still, image in readable if still in valid]
    return [], [], None


def _read_each(
    stills: Sequence[Still], read: Callable[[Path], T], damaged: list[DamagedImage]
) -> list[tuple[Still, T]]:
    results = []
    for still in stills:
        try:
            results.append((still, read(still.file)))
        except DamagedImage as error:
            damaged.append(error)
    return results


def load_model(
    run: Path,
    which: str = "best",
    device: str = "auto",
    precision: str | None = None,
    objectness: float | None = None,
    iou: float | None = None,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> Predictor:
    """A trained model under the settings that options of prediction stand for.

    Args:
        run: run folder or checkpoint file.
        which: ``best`` or ``last``, of a run folder.
        device: as in the settings of a run.
        precision: ``fp32``, ``bf16`` or ``fp16``; None: that of the run.
        objectness: lowest score of boxes, 0…1; None: that of the run.
        iou: threshold of non-maximum suppression, 0…1; None: that of the run.
        overrides: other settings of the run, ``key=value`` each.
        trust: names of the user's own code that the run's configuration may contain.

    Raises:
        UserError: for ``objectness`` where the run's task has no ``score`` that it replaces.
    """
    path = checkpoint.find(run, which)
    saved = checkpoint.load(path, trust)
    task, model = saved["config"]["task"], saved["config"]["model"]
    words = [f"device={device}"]
    if precision is not None:
        words.append(f"precision={precision}")
    if iou is not None and "nms_iou" in model:
        words.append(f"model.nms_iou={iou}")
    if objectness is not None:
        if "score" not in task:
            raise UserError(
                "objectness",
                f"objectness={objectness:g}: the task of {run} has no score threshold",
                "leave it out",
            )
        words.append(f"task.score={objectness}")
        if objectness < model.get("score_threshold", 0):
            words.append(f"model.score_threshold={objectness}")
    if iou is not None and "nms_iou" not in model:
        log.info("iou=%g has no effect: this model predicts no overlapping boxes", iou)
    return predictor.of_checkpoint(path, saved, [*words, *overrides])


@dataclass(frozen=True)
class PredictionJob:
    """A trained model, the files that it is to predict, and the writer of its predictions.

    Attributes:
        run: as the user has named it, for ``summary.json``.
        sources: the same.
        model: from ``load_model``.
        media: the frames of the sources.
        out: folder for the results.
        batch_size: frames per batch.
        writer: writes them as the task wants them.
    """

    run: Path
    sources: Sequence[Path]
    model: Predictor
    media: Media
    out: Path
    batch_size: int
    writer: PredictionWriter

    def predict(self, player: Player | None = None) -> dict[str, Any]:
        """Predict all frames and write the results.

        Returns:
            the content of ``summary.json``: ``run``, ``sources``, ``out`` and what ``predict``
            returns.

        Raises:
            UserError: if no frame can be read, or the results cannot be written.
        """
        precision = self.model.config["precision"]
        with explained({"batch_size": self.batch_size, "precision": precision, "out": self.out}):
            found = predict(self.model, self.media, self.writer, self.batch_size, player)
            sources = [str(source) for source in self.sources]
            content = {"run": str(self.run), "sources": sources, "out": str(self.out), **found}
            write_text(self.out / "summary.json", json.dumps(content, indent=1) + "\n")
        return content
