"""From a file to a training sample: the readers of this project, and those of other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from research.benchmarks.input_peers import Cut, Pixels, ReadFile, peers
from research.benchmarks.loaders import prepared
from research.benchmarks.measure import Candidate, Result, measure, per_unit
from research.benchmarks.options import BenchmarkOptions
from research.compression import jpeg_header
from research.compression.selection import Selection, covering
from research.compression.stems import IMAGENET_MEAN, IMAGENET_STD
from research.data.block_samples import MCU, BlockCrop, BlockSamples
from research.data.crops import CentreCrop, CropBox, RandomResizedCrop
from research.data.folder import ImageSamples
from research.data.loader import BatchSource, SampleKey
from research.data.readers import BitstreamReader, PixelReader, Reader
from research.data.splits import Split
from research.data.transforms import CoefficientTransform, DeviceTransform, PixelTransform
from research.data.warehouse.encoders import CoefficientEncoder, SampleSpec
from research.data.warehouse.plan import BuildPlan
from research.data.warehouse.rows import StoredRows
from research.utils.errors import DamagedImage, UserError

BATCH = 32
WINDOWS = (8, 4, 2)
CROP = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3))


class Route(NamedTuple):
    """A way from files to samples.

    Attributes:
        candidate: reads all files.
        fixed: the fixed crop of a file, see ``FixedCrop``, as this way decodes and resizes it;
            ``None`` of a store, which holds what the bitstream gave.
    """

    candidate: Candidate
    fixed: Callable[[Path], Pixels] | None


@dataclass(frozen=True)
class FixedCrop(CentreCrop):
    """The picture without its last blocks of 16 px if they are partly filled: as pixels and as
    coefficients the same crop.
    """

    pct: float = 1.0

    def box(self, height: int, width: int, rng: np.random.Generator) -> CropBox:
        return CropBox(0, 0, height // MCU * MCU, width // MCU * MCU)


INNER = slice(8, -8)
"""Rows and columns that are compared: at the edges of a crop ``PixelReader`` interpolates with the
pixels around it, as PIL does where it is passed a box, and the others do not, who cut it out."""


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    files = [path for path in paths if _is_plain(path)]
    if not files:
        raise UserError("IMAGES", "input reads JPEG files, grey or in colour, that are not turned")
    with ExitStack() as stack:
        by_name = routes(files, options.size, stack)
        timed = {name: route.candidate for name, route in by_name.items()}
        result = measure(timed, options.rounds, unit="sample")
    reference = next(iter(by_name.values())).fixed
    assert reference is not None
    for name, route in by_name.items():
        if route.fixed is not None:
            columns = result.row(name).columns
            columns["mean difference"], columns["largest"] = _difference(
                route.fixed, files, reference
            )
    result.notes.append(
        f"{len(files)} of {len(paths)} files: JPEG, grey or in colour, not turned. Differences "
        f"from PIL, of 255: of a fixed crop in {options.size} px, without its edges"
    )
    return [result]


def routes(files: list[Path], size: int, stack: ExitStack) -> dict[str, Route]:
    """Samples of ``size`` px: of other libraries, from pixels, coefficients, and a store.

    Samples are normalised floats. Before flip and normalisation, which are made on the device, they
    are ``integers``: what the loader's workers send.
    """
    by_name: dict[str, Route] = {}
    for name, (sample, cut) in peers(size, CROP).items():
        fixed = partial(_cut, cut)
        by_name[name] = Route(per_unit(partial(_each, sample, files)), fixed)
        if len(by_name) == 1:
            by_name[f"{name} (control)"] = by_name[name]
    split = Split(files, [0] * len(files), {})

    def add(
        name: str, source: BatchSource, transform: DeviceTransform, reader: Reader | None
    ) -> None:
        epochs = count()
        fixed = None if reader is None else partial(_fixed, reader, transform)
        for suffix, applied in (("", transform), (", integers", None)):
            candidate = per_unit(partial(_batches, source, applied, epochs))
            by_name[name + suffix] = Route(candidate, fixed if applied else None)

    def ours(name: str, reader: Reader, transform: DeviceTransform) -> None:
        add(name, ImageSamples(split, reader, CROP, seed=0), transform, reader)

    ours("pixels", PixelReader(size), PixelTransform(IMAGENET_MEAN, IMAGENET_STD, flip=True))
    for window in WINDOWS:
        selection = Selection.from_settings(window, "corner")
        transform = CoefficientTransform(selection, "full", None, flip=True)
        ours(f"bitstream, window {window}", BitstreamReader(size, selection), transform)
    stored = max(size, round(size * 8 / 7 / MCU) * MCU)
    items = [SampleSpec(str(n), "all", file, 0) for n, file in enumerate(files)]
    for window in WINDOWS:
        encoder = CoefficientEncoder(stored, window, "bitstream")
        plan = BuildPlan(encoder, ["x"], items, {"all": "train"})
        opened, positions = prepared(plan, stack, repeats=1)
        selection = Selection.from_settings(window, "corner")
        shipped = covering(selection)
        rows = StoredRows(opened, positions, shipped)
        crop = BlockCrop(stored, size)
        samples = BlockSamples(rows, [0] * len(positions), crop, seed=0, random=True)
        transform = CoefficientTransform(selection, "full", None, flip=True, shipped=shipped)
        add(f"store, window {window}", samples, transform, None)
    return by_name


def _is_plain(path: Path) -> bool:
    """Whether all libraries read the file, and alike."""
    try:
        header = jpeg_header.read_header(path.read_bytes())
    except DamagedImage:
        return False
    return jpeg_header.unsupported_reason(header) is None and header.orientation == 1


def _each(sample: ReadFile, files: list[Path]) -> int:
    for file in files:
        sample(file)
    return len(files)


def _batches(source: BatchSource, transform: DeviceTransform | None, epochs: Iterator[int]) -> int:
    epoch, samples = next(epochs), len(source)
    generator = torch.Generator().manual_seed(epoch)
    for start in range(0, samples, BATCH):
        indices = range(start, min(start + BATCH, samples))
        batch = source.__getitems__([SampleKey(epoch, index) for index in indices])
        if transform is not None:
            transform.train()(batch, generator)
    return samples


def _fixed(reader: Reader, transform: DeviceTransform, path: Path) -> Pixels:
    source = ImageSamples(Split([path], [0], {}), reader, FixedCrop(), seed=0)
    batch = source.__getitems__([SampleKey(0, 0)])
    (images,) = transform.eval().to_images(transform(batch, None))
    pixels: Pixels = images[0].permute(1, 2, 0).numpy()
    return pixels


def _cut(peer: Cut, path: Path) -> Pixels:
    header = jpeg_header.read_header(path.read_bytes())
    return peer(path, FixedCrop().box(header.height, header.width, np.random.default_rng(0)))


def _difference(
    fixed: Callable[[Path], Pixels], files: list[Path], reference: Callable[[Path], Pixels]
) -> tuple[float, int]:
    """Mean and largest absolute difference of fixed crops."""
    differences = []
    for path in files:
        pixels, expected = (each(path)[INNER, INNER].astype(int) for each in (fixed, reference))
        differences.append(np.abs(pixels - expected))
    mean = float(np.mean([each.mean() for each in differences]))
    return mean, int(max(each.max() for each in differences))
