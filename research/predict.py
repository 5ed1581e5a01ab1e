"""What a trained model says of your own images: ``python -m research.predict RUN SOURCE…``."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from research.config import cli
from research.config.rules import COUNT, PATH, TRUTH, number, whole
from research.config.schema import RUN_RULES
from research.utils.errors import DamagedImage, UserError

if TYPE_CHECKING:
    from research.batch import Batch
    from research.data.frames.media import Media, Still
    from research.data.source import DataModule
    from research.engine.predictor import Predictor
    from research.inference.player import Player
    from research.inference.writers import Panels, PredictionWriter

log = logging.getLogger("research.predict")  # as a command, this module is called __main__

FRACTION = number(at_least=0, at_most=1)


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
    max_frames: int | None = cli.option(None, COUNT, "maximum number of frames; by default all")
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

MOST_TOLD = 10
"""Files left out that are written out one by one."""
ABOUT = 0.02
"""How far a header's number of frames may be off, as a share."""

T = TypeVar("T")


def predict(
    model: Predictor,
    media: Media,
    writer: PredictionWriter,
    batch_size: int,
    player: Player | None = None,
) -> dict[str, Any]:
    """Predict every still, write the predictions, and show them in the player if there is one.

    Returns:
        for JSON: ``frames``, ``damage`` by kind, ``seconds`` in all (reading and writing too),
        ``frames_per_second``, ``latency_ms`` (of batches, from what was read to boxes, classes or
        scores, the device's work done) and the counts of the writer.

    Raises:
        UserError: when not one still can be read.
    """
    from research.tracking.console import ConsoleTracker
    from research.tracking.tracker import Progress
    from research.utils.timing import synchronize

    console = ConsoleTracker()
    damaged: list[DamagedImage] = []
    latencies: list[float] = []
    frames, began = 0, time.perf_counter()
    with writer:
        for batch_stills in media.batches(batch_size):
            stills, images, batch = _read(model.data, batch_stills, damaged)
            if batch is not None:
                started = time.perf_counter()
                predictions = model.infer(batch)
                synchronize(model.device)
                latencies.append(1000 * (time.perf_counter() - started))
                frames += len(stills)
                seen = writer.add(stills, images, predictions)
                if player is not None:
                    for still, panels, said in zip(stills, images, seen, strict=True):
                        player.show(still.name, panels[0], said, latencies[-1] / len(stills))
            looked_at = frames + len(damaged)
            rate = frames / (time.perf_counter() - began)
            total = max(media.expected, looked_at)
            console.progress(Progress("predicting", looked_at, total, "frames", rate))
    damage = media.skipped + Counter(error.kind for error in damaged)
    told = [*media.problems, *map(str, damaged)]
    if not frames:
        first = f"; the first: {told[0]}" if told else ""
        raise UserError("SOURCE", f"no frame could be read{_listed(damage, ' (', ')')}{first}")
    _tell(told)
    silent = media.expected - frames - sum(damage.values())
    if silent > 1 + ABOUT * media.expected:
        log.warning("%d frames fewer could be read than the videos' headers tell of", silent)
    seconds = time.perf_counter() - began
    return {
        "frames": frames,
        "damage": dict(damage),
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
    """What can be read of some stills: their pixels, and all as one batch; the rest is noted."""
    found: list[tuple[Still, Panels]] = _each(stills, data.load_image, damaged)
    while found:
        kept, images = zip(*found, strict=True)
        try:
            return list(kept), list(images), data.read([still.file for still in kept])
        except DamagedImage:
            # It does not say which of them: a reader of coefficients dislikes other files.
            good = {still for still, _ in _each(kept, lambda file: data.read([file]), damaged)}
            found = [(still, image) for still, image in found if still in good]
    return [], [], None


def _each(
    stills: Sequence[Still], read: Callable[[Path], T], damaged: list[DamagedImage]
) -> list[tuple[Still, T]]:
    found = []
    for still in stills:
        try:
            found.append((still, read(still.file)))
        except DamagedImage as error:
            damaged.append(error)
    return found


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
        log.info("iou=%g has no effect: this model has no overlapping boxes", options.iou)
    return predictor.of_checkpoint(path, saved, [*words, *overrides])


def _folder(out: Path | None, run: Path) -> Path:
    """Where the results go.

    Raises:
        UserError: when there is something already.
    """
    if out is None:
        if run.is_file():
            run = run.parent.parent if run.parent.name == "checkpoints" else run.with_suffix("")
        return Path("runs", "predict", f"{run.resolve().name}-{datetime.now():%Y-%m-%d_%H-%M-%S}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("out", f"out={out}: is not empty", "give a new folder")
    return out


def _tell(told: Sequence[str]) -> None:
    for line in told[:MOST_TOLD]:
        log.warning("left out: %s", line)
    if len(told) > MOST_TOLD:
        log.warning("left out: … and %d more", len(told) - MOST_TOLD)


def _listed(counts: Counter[str], before: str = "", after: str = "") -> str:
    text = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"{before}{text}{after}" if text else ""


def main(words: list[str]) -> None:
    paths, options, overrides = cli.parse(PredictOptions, words, others="dataset.")
    if not paths:
        raise UserError(
            "SOURCE", "give a RUN folder or a WEIGHTS file first, then SOURCEs", "see --help"
        )
    run, sources = Path(paths[0]), [Path(path) for path in paths[1:]]
    if not sources:
        raise UserError(
            "SOURCE", f"what is {run} to look at? give images, folders, capture runs or videos"
        )
    out = _folder(options.out, run)
    # Imported late: a mistake is answered before torch is there.
    from research.data.frames.media import Media

    media = Media(sources, options.max_frames)
    from research.inference.player import Player
    from research.utils import logs

    logs.to_terminal()
    model = _load(run, options, overrides)
    writer = model.task.writer(out)
    if not options.show:
        _finish(predict(model, media, writer, options.batch_size), writer, paths, out)
        return
    with Player(out.name, options.port, writer.score_threshold) as player:
        # Flushed, for whoever reads it from a pipe.
        print(f"watch:    {player.url} (Ctrl-C ends it)", flush=True)
        found = predict(model, media, writer, options.batch_size, player)
        player.finish()
        _finish(found, writer, paths, out)
        try:
            Event().wait()
        except KeyboardInterrupt:
            print("ended")


def _finish(found: dict[str, Any], writer: PredictionWriter, paths: list[str], out: Path) -> None:
    """Write the summary, and say where everything is."""
    from research.utils.files import write_text

    told = {"run": paths[0], "sources": paths[1:], **found}
    write_text(out / "summary.json", json.dumps(told, indent=1) + "\n")
    latency = found["latency_ms"]
    print(f"predicted: {out}")
    print(
        f"  {found['frames']} frames at {found['frames_per_second']:.1f} a second; inference "
        f"{latency['median']:.1f} ms a batch of {latency['batch_size']} ({found['device']})"
    )
    if found["damage"]:
        print(f"  left out {_listed(Counter(found['damage']))}")
    for line in writer.where():
        print(f"  {line}", flush=True)


if __name__ == "__main__":
    cli.command(USAGE, main)
