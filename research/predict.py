"""Run a trained model on images, folders or videos: ``python -m research.predict RUN SOURCE…``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from research.config import cli, outputs
from research.config.rules import COUNT, FRACTION, PATH, TRUTH, whole
from research.config.run_files import new_folder
from research.config.schema import RUN_RULES
from research.utils import logs
from research.utils.counts import by_kind, counted
from research.utils.errors import UserError

if TYPE_CHECKING:
    from research.engine.prediction import PredictionJob


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
RUN is a run folder; WEIGHTS a checkpoint, the best.safetensors of a run, or the address of a model
in MLflow (models:/NAME/VERSION); no other file is needed. A SOURCE is an image (for an RGB + X
detector an .npy array), a folder of images, a capture run, a folder of capture runs, or a video. A
detector writes pictures with boxes, those of all sensors side by side (boxed/NAME_boxed.png), the
boxes in COCO format (predictions.json) and, with one class only, the labels of a capture run; a
classifier a table (predictions.csv) and a contact sheet; a ranker all photos from best to worst
(ranking.csv) and a contact sheet in this order; each a summary.json.
""",
    PredictOptions,
    """
Settings of the run's data set may follow. Of a file that is not below runs/, only model, task,
preprocessing and metadata of the data are used: paths in it count only if they are set here, such
as dataset.feature_weights.clip=FILE.
""",
)


def prepare(
    run: Path, sources: Sequence[Path], options: PredictOptions, overrides: Sequence[str] = ()
) -> PredictionJob:
    """Load the model and find the files.

    Raises:
        UserError: for a run, a source or a folder that cannot be used.
    """
    if not sources:
        raise UserError(
            "SOURCE", f"no SOURCE after {run}", "pass images, folders, capture runs or videos"
        )
    out = new_folder(options.out, "predict", run)
    # Imported late: mistakes are reported before torch is imported.
    from research.data.frames.media import Media

    media = Media(sources, options.max_frames)
    from research.engine.prediction import PredictionJob, load_model

    model = load_model(
        run,
        options.checkpoint,
        options.device,
        options.precision,
        options.objectness,
        options.iou,
        overrides,
        options.trust,
    )
    writer = model.task.writer(out)
    return PredictionJob(run, sources, model, media, out, options.batch_size, writer)


def main(words: list[str]) -> None:
    paths, options, overrides = cli.parse(PredictOptions, words, others="dataset.")
    if not paths:
        raise UserError(
            "SOURCE", "pass a RUN folder or a WEIGHTS file first, then SOURCEs", "see --help"
        )
    logs.to_terminal()
    job = prepare(Path(paths[0]), [Path(path) for path in paths[1:]], options, overrides)
    if options.show:
        _show(job, options.port)
    else:
        _report(job, job.predict())
        outputs.print_next(outputs.command_of("predict", *_without_out(words), "show=true"))


def _without_out(words: Sequence[str]) -> list[str]:
    """The words of the command, without the folder, which is not empty any more."""
    return [word for word in words if word.partition("=")[0] not in ("out", "show")]


def _show(job: PredictionJob, port: int) -> None:
    """Play the frames on a local page, until Ctrl-C."""
    from research.inference.player import Player

    with Player(job.out.name, port, job.writer.score_threshold) as player:
        # Flushed for programs that read it from a pipe.
        print(f"watch:    {player.url} (Ctrl-C ends it)", flush=True)
        result = job.predict(player)
        player.finish()
        _report(job, result)
        # A page that has gone could not be seen: one photo is done before a browser has it.
        print(f"{player.url} stays until Ctrl-C", flush=True)
        try:
            Event().wait()
        except KeyboardInterrupt:
            print("ended")


def _report(job: PredictionJob, result: Mapping[str, Any]) -> None:
    """Print the main results, and where the files are."""
    latency = result["latency_ms"]
    print(f"predicted: {job.out}")
    frames = counted(result["frames"], "frames")
    print(
        f"  {frames} at {result['frames_per_second']:.1f} a second; inference "
        f"{latency['median']:.1f} ms a batch of {latency['batch_size']} ({result['device']})"
    )
    if result["damage"]:
        print(f"  left out {by_kind(result['damage'])}")
    for line in job.writer.where():
        print(f"  {line}", flush=True)


if __name__ == "__main__":
    cli.command(USAGE, main)
