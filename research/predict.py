"""Run a trained model on images, folders or videos: ``python -m research.predict RUN SOURCE…``."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from research.config import cli
from research.config.rules import COUNT, FRACTION, PATH, TRUTH, whole
from research.config.schema import RUN_RULES
from research.utils.conditions import explained
from research.utils.errors import DamagedImage, UserError

if TYPE_CHECKING:
    from research.batch import Batch
    from research.data.datamodule import DataModule
    from research.data.frames.media import Media, Still
    from research.engine.predictor import Predictor
    from research.inference.player import Player
    from research.inference.writers import Panels, PredictionWriter

log = logging.getLogger("research.predict")  # as a command, this module is called __main__


@dataclass(frozen=True)
class PredictOptions(cli.RunOptions):
    """Options of the command."""

    objectness: float | None = cli.option(
        None,
        FRACTION,
        "lowest score of boxes that are drawn and written, 0…1; by default task.score of the run",
    )
    iou: float | None = cli.option(
        None,
        FRACTION,
        "IoU threshold of non-maximum suppression, 0…1; by default model.nms_iou of the run (0.5); "
        "no effect on models that predict one box per frame",
    )
    max_frames: int | None = cli.option(
        None,
        COUNT,
        "maximum number of frames, spread over the files, of a video its first; by default all",
    )
    out: Path | None = cli.option(
        None,
        PATH,
        "folder for the results, new or empty; by default runs/predict/NAME-TIME",
    )
    show: bool = cli.option(
        False,
        TRUTH,
        "true: play the frames during inference on a local web page, until Ctrl-C",
    )
    port: int = cli.option(0, whole(0, 65535), "port of that page; 0: any free port")
    batch_size: int = cli.option(8, COUNT, "frames per batch")
    precision: str | None = cli.option(
        None, RUN_RULES["precision"], "fp32, bf16 or fp16; by default that of the run"
    )


USAGE = cli.usage(
    "python -m research.predict RUN|WEIGHTS SOURCE… [key=value …]",
    """
RUN is a run folder, WEIGHTS a checkpoint or the final.safetensors of a run; no other file is
needed. A SOURCE is an image (for an RGB + X detector an .npy array), a folder of images, a capture
run, a folder of capture runs, or a video. A detector writes pictures with boxes, those of all
sensors side by side (boxed/NAME_boxed.png), the boxes in COCO format (predictions.json) and, with
one class only, the labels of a capture run; a classifier a table (predictions.csv) and a contact
sheet; a ranker all photos from best to worst (ranking.csv) and a contact sheet in this order; each
a summary.json.
""",
    PredictOptions,
    """
Settings of the run's data set may follow. Of a file that is not below runs/, only model, task,
preprocessing and metadata of the data are used: paths in it count only if they are set here, such
as dataset.feature_weights.clip=FILE.
""",
)

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
        and writing), ``frames_per_second``, ``latency_ms`` (of a batch: model and postprocessing,
        with the device synchronized) and the writer's summary.

    Raises:
        UserError: if no frame can be read.
    """
    from research.data.listing import describe_files, log_skipped
    from research.tracking.console import ConsoleTracker
    from research.tracking.tracker import Progress
    from research.utils.timing import synchronize

    console = ConsoleTracker()
    damaged: list[DamagedImage] = []
    latencies: list[float] = []
    frames, start = 0, time.perf_counter()
    with writer:
        for batch_stills in media.batches(batch_size):
            stills, images, batch = _read(model.data, batch_stills, damaged)
            if batch is not None:
                batch_start = time.perf_counter()
                predictions = model.infer(batch)
                synchronize(model.device)
                latencies.append(1000 * (time.perf_counter() - batch_start))
                frames += len(stills)
                written = writer.add(stills, images, predictions)
                if player is not None:
                    for still, panels, shown in zip(stills, images, written, strict=True):
                        player.show(still.name, panels[0], shown, latencies[-1] / len(stills))
            processed = frames + len(damaged)
            rate = frames / (time.perf_counter() - start)
            total = max(media.expected, processed)
            console.progress(Progress("predicting", processed, total, "frames", rate))
    skipped = media.skipped + Counter(error.kind for error in damaged)
    problems = [*media.problems, *map(str, damaged)]
    if not frames:
        first = f"; the first: {problems[0]}" if problems else ""
        counts = f" ({_format_counts(skipped)})" if skipped else ""
        raise UserError("SOURCE", f"no frame could be read{counts}{first}")
    log.info("%s", describe_files(frames, media.passed_over, Counter(skipped)))
    log_skipped(problems)
    missing = media.expected - frames - sum(skipped.values())
    if missing > 1 + MISSING_FRAMES * media.expected:
        log.warning("%d frames fewer could be read than the headers of the videos say", missing)
    seconds = time.perf_counter() - start
    return {
        "frames": frames,
        "damage": dict(skipped),
        "passed_over": dict(media.passed_over.counts),
        "seconds": seconds,
        "frames_per_second": frames / seconds,
        "latency_ms": {
            "batch_size": batch_size,
            "batches": len(latencies),
            "median": statistics.median(latencies),
            "highest": max(latencies),
        },
        "device": str(model.device),
        **writer.summary(),
    }


def _read(
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


def _load(run: Path, options: PredictOptions, overrides: Sequence[str]) -> Predictor:
    """The trained model under the settings that the options stand for.

    Raises:
        UserError: for ``objectness`` where the run's task has no ``score`` that it replaces.
    """
    from research.engine import checkpoint, predictor

    path = checkpoint.find(run, options.checkpoint)
    saved = checkpoint.load(path, options.trust)
    task, model = saved["config"]["task"], saved["config"]["model"]
    words = [f"device={options.device}"]
    if options.precision is not None:
        words.append(f"precision={options.precision}")
    if options.iou is not None and "nms_iou" in model:
        words.append(f"model.nms_iou={options.iou}")
    if options.objectness is not None:
        if "score" not in task:
            raise UserError(
                "objectness",
                f"objectness={options.objectness:g}: the task of {run} has no score threshold",
                "leave it out",
            )
        words.append(f"task.score={options.objectness}")
        if options.objectness < model.get("score_threshold", 0):
            words.append(f"model.score_threshold={options.objectness}")
    if options.iou is not None and "nms_iou" not in model:
        log.info("iou=%g has no effect: this model predicts no overlapping boxes", options.iou)
    return predictor.of_checkpoint(path, saved, [*words, *overrides])


def _output_folder(out: Path | None, run: Path) -> Path:
    """The folder for the results; ``out``, if it is given.

    Raises:
        UserError: if it is not empty.
    """
    if out is None:
        if run.is_file():
            run = run.parent.parent if run.parent.name == "checkpoints" else run.with_suffix("")
        return Path("runs", "predict", f"{run.resolve().name}-{datetime.now():%Y-%m-%d_%H-%M-%S}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("out", f"out={out}: is not empty", "set a new folder")
    return out


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def main(words: list[str]) -> None:
    paths, options, overrides = cli.parse(PredictOptions, words, others="dataset.")
    if not paths:
        raise UserError(
            "SOURCE", "pass a RUN folder or a WEIGHTS file first, then SOURCEs", "see --help"
        )
    run, sources = Path(paths[0]), [Path(path) for path in paths[1:]]
    if not sources:
        raise UserError(
            "SOURCE", f"no SOURCE after {run}", "pass images, folders, capture runs or videos"
        )
    out = _output_folder(options.out, run)
    # Imported late: mistakes are reported before torch is imported.
    from research.data.frames.media import Media

    media = Media(sources, options.max_frames)
    from research.utils import logs

    logs.to_terminal()
    model = _load(run, options, overrides)
    limits = {"batch_size": options.batch_size, "precision": model.config["precision"], "out": out}
    with explained(limits):
        _predict(model, media, out, options, paths)


def _predict(
    model: Predictor, media: Media, out: Path, options: PredictOptions, paths: list[str]
) -> None:
    """Predict and write the results, on a local page first with ``show``."""
    from research.inference.player import Player

    writer = model.task.writer(out)
    if not options.show:
        result = predict(model, media, writer, options.batch_size)
        _write_summary(result, writer, paths, out)
        return
    with Player(out.name, options.port, writer.score_threshold) as player:
        # Flushed for programs that read it from a pipe.
        print(f"watch:    {player.url} (Ctrl-C ends it)", flush=True)
        result = predict(model, media, writer, options.batch_size, player)
        player.finish()
        _write_summary(result, writer, paths, out)
        try:
            Event().wait()
        except KeyboardInterrupt:
            print("ended")


def _write_summary(
    result: dict[str, Any], writer: PredictionWriter, paths: list[str], out: Path
) -> None:
    """Write ``summary.json``, and print the main results and where the files are."""
    from research.utils.files import write_text

    content = {"run": paths[0], "sources": paths[1:], **result}
    write_text(out / "summary.json", json.dumps(content, indent=1) + "\n")
    latency = result["latency_ms"]
    print(f"predicted: {out}")
    print(
        f"  {result['frames']} frames at {result['frames_per_second']:.1f} a second; inference "
        f"{latency['median']:.1f} ms a batch of {latency['batch_size']} ({result['device']})"
    )
    if result["damage"]:
        print(f"  left out {_format_counts(result['damage'])}")
    for line in writer.where():
        print(f"  {line}", flush=True)


if __name__ == "__main__":
    cli.command(USAGE, main)
