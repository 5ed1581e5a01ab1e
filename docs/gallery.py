"""The pictures of gallery.md, taken anew: ``python -m docs.gallery out=docs/gallery``.

Run from the root of the repository. Trains a small run of each system on rendered data in a
temporary folder, some minutes on two cores, and copies what the runs and commands have drawn,
smaller.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from research.config import cli
from research.config.rules import PATH
from research.utils.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
SIDE = 1400
"""Pixels of the longest side of a picture."""
BYTES = 140_000
"""Of a picture, at most."""
CSV = ("logging=csv", "device=cpu")
COMMANDS = (
    (
        "train.py", "model=resnet34_compressed", "model.name=resnet18", "compression=luma_fusion",
        "compression.window=4", "dataset.demo.train_images=1200", "dataset.demo.val_images=240",
        "epochs=8", "batch_size=16", "run_dir=runs/compressed", *CSV,
    ),
    (
        "-m", "research.inspect", "runs/demo/scenes/val/spots/00000.jpg", "compression.window=2",
        "out=runs/inspect",
    ),
    (
        "train.py", "experiment=demo_rgbx", "dataset.demo.images=360", "epochs=3",
        "run_dir=runs/rgbx", *CSV,
    ),
    ("-m", "research.robustness", "runs/rgbx", "out=runs/robustness"),
    (
        "-m", "research.lr_find", "model=densenet_bc_40_12", "dataset.image_size=32",
        "start=1e-4", "end=10", "dataset.demo.train_images=1200", "dataset.demo.val_images=240",
        "batch_size=16", "out=runs/lr", "device=cpu",
    ),
    (
        "train.py", "model=siamese_frozen", "dataset.demo.series=120", "epochs=6",
        "run_dir=runs/ranking", *CSV,
    ),
    (
        "train.py", "model=bigdet", "dataset.demo.runs=24", "dataset.demo.frames=10", "epochs=16",
        "dataset.image_size=192", "run_dir=runs/bigdet", *CSV,
    ),
)  # fmt: skip
PICTURES = {
    "predictions": "runs/compressed/pictures/sample_predictions.png",
    "training_samples": "runs/compressed/pictures/training_samples.png",
    "confusion": "runs/compressed/pictures/confusion_matrix.png",
    "curves": "runs/compressed/pictures/learning_curves.png",
    "coefficients": "runs/inspect/000_00000.png",
    "sensors": "runs/rgbx/pictures/detections.png",
    "robustness": "runs/robustness/robustness.png",
    "learning_rate": "runs/lr/lr_find.png",
    "series": "runs/ranking/pictures/ranked_series.png",
    "detections": "runs/bigdet/pictures/detections.png",
    "precision_recall": "runs/bigdet/pictures/precision_recall.png",
}
"""Where the runs have drawn each picture of the page."""


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    out: Path = cli.option(Path("docs/gallery"), PATH, "folder for the pictures")


USAGE = cli.usage("python -m docs.gallery key=value", __doc__ or "", Options)


def save(source: Path, file: Path) -> None:
    """Write a picture as WebP, in the best of some qualities that is small enough."""
    with Image.open(source) as image:
        picture = image.convert("RGB")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    for quality in (90, 80, 65, 50, 35):
        write_atomic(
            file,
            lambda path, quality=quality: picture.save(path, "WEBP", quality=quality, method=6),
        )
        if file.stat().st_size <= BYTES:
            break
    print(f"{file}  {picture.width} × {picture.height}  {file.stat().st_size / 1024:.0f} KiB")


def main(words: list[str]) -> None:
    paths, options, _ = cli.parse(Options, words)
    cli.no_paths(paths)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for command in COMMANDS:
            first = str(ROOT / command[0]) if command[0] == "train.py" else command[0]
            subprocess.run(  # noqa: S603 - words of this file
                [sys.executable, first, *command[1:]],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                check=True,
            )
        options.out.mkdir(exist_ok=True)
        for name, source in PICTURES.items():
            save(folder / source, options.out / f"{name}.webp")


if __name__ == "__main__":
    cli.command(USAGE, main)
