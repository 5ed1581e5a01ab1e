"""Changed files of data sets, read by the commands and data sets that read them.

``python -m tests.fuzz_data PARSER FIRST COUNT`` prints what ``fuzz.campaign`` does.
"""

from __future__ import annotations

import io
import os
import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

import research
from research import inspect, prepare
from research.compression.selection import Selection
from research.data.crops import CentreCrop
from research.data.image_files import read_header, reading_tag
from research.data.readers import BitstreamReader, PixelReader
from research.utils.errors import DamagedImage
from tests import fuzz
from tests.fuzz import Reader
from tests.fuzz_files import Tree
from tests.fuzz_frames import Capture, Coco, Voc, Yolo
from tests.fuzz_parser import ASSETS, Parser, batches, encoded
from tests.fuzz_stores import Cifar, Frozen, FrozenCoefficients, Pairs


class Jpeg(Parser):
    """One picture of a class is changed; training goes on without it, and it is counted."""

    first = 0.9

    def files(self) -> Tree:
        self.kinds = self.pictures()
        first = next(iter(self.kinds))
        plain = {f"{s}/{c}/{n}.jpg": encoded(n) for s in ("train", "val") for c in ("cat", "dog")
                 for n in (1, 2)}  # fmt: skip
        return {f"train/cat/{first}": self.kinds[first], **plain}

    def pictures(self) -> Tree:
        exif = Image.Exif()
        exif[0x0112] = 6
        return {
            "0.jpg": encoded(0), "444.jpg": encoded(1, subsampling=0, optimize=True),
            "progressive.jpg": encoded(2, progressive=True), "grey.jpg": encoded(3, mode="L"),
            "cmyk.jpg": encoded(4, mode="CMYK"), "turned.jpg": encoded(5, exif=exif.tobytes()),
            "restart.jpg": encoded(6, restart_marker_blocks=2),
        }  # fmt: skip

    def changed(self, rng: random.Random) -> tuple[str, Tree]:
        name = rng.choice(list(self.kinds))
        with mock.patch.object(self, "tree", {**self.tree, **self.kinds}):
            content = self.change(name, self.kinds[name], rng)
        self.seen = Path("source/train/cat") / name
        rest = {key: value for key, value in self.tree.items() if key != next(iter(self.tree))}
        return name, {f"train/cat/{name}": content, **rest}

    def readers(self) -> dict[str, Reader]:
        source = Path("source/train/cat")
        return {
            "file": self.file,
            "batches": self.batches,
            "prepare": self.prepare,
            "inspect": lambda: inspect.main([str(source), "out=seen", "dataset.image_size=64"]),
            "predict": lambda: self.predict(source),
        }

    def file(self) -> None:
        """The changed picture alone: its header, pixels and coefficients."""
        blocks = BitstreamReader(32, Selection((0, 1), (0,)))
        crop, rng = CentreCrop(1.0), np.random.default_rng(0)
        for path in Path("source/train/cat").iterdir():
            if path.name[:2] not in ("1.", "2."):
                for read in (read_header, reading_tag):
                    with suppress(DamagedImage):
                        read(path)
                for reader in (PixelReader(32), blocks):
                    with suppress(DamagedImage):
                        reader.read(path, crop, rng)

    def batches(self) -> None:
        """Of coefficients and of pixels."""
        words = [
            "dataset=imagefolder", "dataset.train_dirs=[source/train]", "dataset.crop_pct=1",
            "dataset.val_dir=source/val", "dataset.image_size=32", "dataset.cache_dir=cache",
        ]  # fmt: skip
        blocks = ["model=resnet34_compressed", "model.name=resnet18", "compression.window=2"]
        batches([*words, *blocks, "compression.source=bitstream"])
        batches([*words, "model.name=resnet18"])

    def prepare(self) -> None:
        options = prepare.CoefficientOptions(image_size=32, shard_samples=2, workers=1)
        prepare.coefficients(Path("source"), Path("out"), options)

    def predict(self, source: Path) -> None:
        predictor = research.load(ASSETS / "runs/classification", device="cpu")
        for path in sorted(source.iterdir()):
            with suppress(DamagedImage):
                predictor([path])


class Pictures(Jpeg):
    """Of the other formats."""

    def pictures(self) -> Tree:
        deep = io.BytesIO()
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 65_535, (36, 40), np.uint16)).save(deep, "PNG")
        wide = io.BytesIO()
        Image.fromarray(rng.random((36, 40), np.float32)).save(wide, "TIFF")
        return {
            "0.png": encoded(0, "PNG"), "alpha.png": encoded(1, "PNG", "RGBA"),
            "palette.png": encoded(2, "PNG", "P"), "deep.png": deep.getvalue(),
            "0.tif": encoded(3, "TIFF"), "packed.tif": encoded(4, "TIFF", compression="tiff_lzw"),
            "float.tif": wide.getvalue(), "0.gif": encoded(5, "GIF", "P"),
            "0.webp": encoded(6, "WEBP"), "0.bmp": encoded(7, "BMP"), "0.ppm": encoded(8, "PPM"),
            "3.pgm": encoded(9, "PPM", "L"), "lossless.webp": encoded(10, "WEBP", lossless=True),
        }  # fmt: skip


PARSERS: dict[str, Callable[[Path], Parser]] = {
    "coco": Coco, "voc": Voc, "yolo": Yolo, "capture": Capture, "store": Frozen,
    "coefficients": FrozenCoefficients, "pairs": Pairs, "cifar": Cifar, "jpeg": Jpeg,
    "pictures": Pictures,
}  # fmt: skip


def main(parser: str, first: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        made = PARSERS[parser](Path(folder))
        fuzz.campaign(made.case, made.intact, first, count)
        os.chdir("/")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
