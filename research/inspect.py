"""Show the effect of compression on images: ``python -m research.inspect IMAGES…``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli, outputs
from research.config.overrides import train_command
from research.config.rules import PATH
from research.utils import logs
from research.utils.errors import UserError
from research.utils.files import short_stem
from research.utils.progress import track

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

log = logging.getLogger("research.inspect")  # as a command, this module is called __main__


@dataclass(frozen=True)
class InspectOptions:
    """Options of the command."""

    out: Path = cli.option(Path("runs/inspect"), PATH, "folder for the pictures")


USAGE = cli.usage(
    "python -m research.inspect IMAGES… [key=value …]",
    """
IMAGES are files or folders. Each image is cropped and resized as in validation (to 256 px, or
dataset.image_size=N), and decoded from its selected DCT coefficients. Prints the PSNR (dB) of Y,
Cb, Cr and RGB relative to the pixels (with compression.source=bitstream: relative to all
coefficients of the file), and writes a picture of original, reconstruction and four times their
difference, and the energy of each DCT frequency with frames around the selected ones.
""",
    InspectOptions,
    """
Settings of compression and dataset may follow, for example
  python -m research.inspect photo.jpg compression.window=2
  python -m research.inspect FOLDER compression.order=zigzag compression.source=bitstream
""",
)


def inspect(files: list[Path], out: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """Measure the PSNR of each plane and of the whole image, and write pictures to ``out``.

    Returns:
        one row for each file: ``file``, ``Y``, ``Cb``, ``Cr``, ``RGB`` (dB) and ``fallback``: why
        the file was skipped or read by another decoder, else empty.

    Raises:
        UserError: if compression is off, no file can be read, or ``out`` cannot be written.
    """
    import numpy as np
    import torch

    from research.batch import ClassificationBatch
    from research.compression.dct import rgb_to_ycbcr
    from research.compression.decoder import Decoder
    from research.compression.selection import ALL_FREQUENCIES
    from research.config import compose_config
    from research.data.crops import CentreCrop
    from research.data.readers import BitstreamReader, PixelReader
    from research.data.transforms import CoefficientTransform
    from research.engine import build
    from research.utils.errors import DamagedImage

    config = compose_config(["dataset.image_size=256", *overrides]).config
    spec = build.stem_spec(config["compression"])
    if spec is None:
        raise UserError("compression", "compression=none keeps every pixel: nothing to inspect")
    size = config["dataset"]["image_size"]
    bitstream = config["compression"]["source"] == "bitstream"
    reader = BitstreamReader(size, ALL_FREQUENCIES) if bitstream else PixelReader(size)
    transform = CoefficientTransform(ALL_FREQUENCIES, spec.range_, None, flip=False).eval()
    complete, selected = Decoder(ALL_FREQUENCIES, spec.range_), Decoder(spec.selection, spec.range_)
    crop = CentreCrop(build.crop_pct(config))
    rows: list[dict[str, Any]] = []
    energy = torch.zeros(3, 64, dtype=torch.float64)
    for number, file in enumerate(track(files, "inspecting")):
        try:
            sample = reader.read(file, crop, np.random.default_rng(0))
        except DamagedImage as error:
            rows.append({"file": str(file), "fallback": f"left out: {error.kind}"})
            continue
        index = torch.zeros(1, dtype=torch.int64)
        batch = ClassificationBatch(index, reader.stack([sample]), index)
        y, cbcr = transform(batch, None).inputs
        if bitstream:
            original = complete(y, cbcr).clamp(0, 255)
        else:
            original = torch.from_numpy(sample.arrays[0].astype(np.float32))[None]
        luma, chroma = list(spec.selection.luma), list(spec.selection.chroma)
        rebuilt = selected(y[:, luma], cbcr[:, :, chroma]).clamp(0, 255)
        planes = zip(_planes(*rgb_to_ycbcr(original)), _planes(*rgb_to_ycbcr(rebuilt)), strict=True)
        rows.append(
            {
                "file": str(file),
                **{n: _psnr(a, b) for n, (a, b) in zip(("Y", "Cb", "Cr"), planes, strict=True)},
                "RGB": _psnr(original, rebuilt),
                "fallback": sample.fallback,
            }
        )
        energy[0] += y.double().square().mean((0, 2, 3))
        energy[1:] += cbcr.double().square().mean((0, 3, 4))
        _save(_side_by_side(original[0], rebuilt[0]), out, f"{number:03d}_{short_stem(file.stem)}")
    readable = sum("RGB" in row for row in rows)
    if not readable:
        raise UserError("IMAGES", f"none of {len(files)} files could be read as an image")
    for plane, values in zip(("Y", "Cb", "Cr"), (energy / readable).numpy(), strict=True):
        frequencies = spec.selection.luma if plane == "Y" else spec.selection.chroma
        _save(_energy(values, plane, frequencies), out, f"energy_{plane}")
    return rows


def _save(picture: Image, out: Path, name: str) -> None:
    with outputs.writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        picture.save(out / f"{name}.png")


def _planes(y: Tensor, cbcr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return y, cbcr[:, 0], cbcr[:, 1]


def _psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 255; infinite for equal images."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(a, b, data_range=255.0))


def _side_by_side(original: Tensor, rebuilt: Tensor) -> Image:
    """Original, reconstruction, and four times their difference around grey."""
    import torch
    from PIL import Image

    difference = 128 + 4 * (rebuilt - original)
    row = torch.cat([original, rebuilt, difference], dim=2).round().clamp(0, 255)
    return Image.fromarray(row.to(torch.uint8).permute(1, 2, 0).numpy())


def _energy(values: Any, plane: str, frequencies: tuple[int, ...]) -> Image:
    from research.viz import charts

    return charts.energy_map(values, f"{plane}: kept frequencies framed", frequencies)


def find_images(paths: list[str]) -> list[Path]:
    """The given files, and all image files in the given folders.

    Raises:
        UserError: if a path does not exist or there is no image file.
    """
    from research.data.image_files import EXTENSIONS
    from research.data.listing import describe_files, list_files

    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            listing = list_files(path, EXTENSIONS)
            files += listing.paths
            log.info("%s: %s", path, describe_files(len(listing.names), listing.passed_over))
        elif path.exists():
            files.append(path)
        else:
            raise UserError("IMAGES", f"{path}: no such file or folder")
    if not files:
        raise UserError(
            "IMAGES", f"{' '.join(paths)}: no image files", "pass images or folders of images"
        )
    return files


def main(words: list[str]) -> None:
    paths, options, overrides = cli.parse(InspectOptions, words, others="")
    if not paths:
        raise UserError("IMAGES", "pass IMAGES (files or folders) first, then key=value settings")
    logs.to_terminal()
    out = options.out
    rows = inspect(find_images(paths), out, overrides)
    print(f"{'Y':>7} {'Cb':>7} {'Cr':>7} {'RGB':>7}  dB")
    for row in rows:
        numbers = [f"{row[name]:7.2f}" for name in ("Y", "Cb", "Cr", "RGB") if name in row]
        fallback = f"  ({row['fallback']})" if row["fallback"] else ""
        print(f"{' '.join(numbers):31}  {row['file']}{fallback}")
    chosen = [word for word in overrides if word.startswith("compression")]
    following = train_command(["model=resnet34_compressed", *chosen])
    outputs.print_files(out, following=following)


if __name__ == "__main__":
    cli.command(USAGE, main)
