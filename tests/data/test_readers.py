from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.compression.selection import Selection, select_frequencies
from research.data.crops import CentreCrop, Crop, CropBox, RandomResizedCrop
from research.data.image_files import decode
from research.data.readers import BitstreamReader, PixelReader, Reader
from research.data.transforms import CoefficientTransform
from research.utils.errors import DamagedImage
from tests.conftest import picture

KEPT = select_frequencies(4, "corner")
SELECTION = Selection(KEPT, KEPT[:4])
WHOLE = CentreCrop(1.0)
RANDOM = RandomResizedCrop((0.08, 1.0), (0.75, 1.3333))
READERS: list[Callable[[], Reader]] = [
    lambda: PixelReader(32),
    lambda: BitstreamReader(32, SELECTION),
]
READER_IDS = ["pixels", "bitstream"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Watched:
    """A crop that remembers for what it was asked and what it gave."""

    def __init__(self, crop: Crop) -> None:
        self.crop = crop
        self.calls: list[tuple[int, int, CropBox]] = []

    def box(self, height: int, width: int, rng: np.random.Generator) -> CropBox:
        result = self.crop.box(height, width, rng)
        self.calls.append((height, width, result))
        return result


def test_both_readers_use_the_same_boxes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture("spots", 0, (90, 70)).save(path)
    picture("spots", 0, (90, 70)).convert("CMYK").save(tmp_path / "b.jpg")
    calls = []
    for make in READERS:
        crop = Watched(RANDOM)
        for seed in range(5):
            for name in ("a.jpg", "b.jpg"):
                generator = rng(seed)
                make().read(tmp_path / name, crop, generator)  # type: ignore[arg-type]
                calls.append(generator.random())
        calls.append(crop.calls)
    assert calls[:11] == calls[11:]
    assert {call[:2] for call in calls[10]} == {(70, 90)}


def test_pixels_are_the_resized_crop(tmp_path: Path) -> None:
    image = picture("field", 1, (120, 90))
    image.save(tmp_path / "a.png")
    top, left, height, width = RANDOM.box(90, 120, rng(4))
    (result,) = PixelReader(32).read(tmp_path / "a.png", RANDOM, rng(4)).arrays
    assert result.shape == (3, 32, 32)
    assert result.dtype == np.uint8
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    # The filter looks past the edges of the box, as PIL's does: compare away from them.
    expected = F.resized_crop(pixels, top, left, height, width, [32, 32], antialias=True)
    difference = (torch.from_numpy(result.astype(np.float32)) - expected).abs()
    assert difference[:, 2:-2, 2:-2].max() <= 1.01


def test_coefficients_are_those_of_the_cropped_pixels(tmp_path: Path) -> None:
    # Of a smooth picture, so that the snap to whole MCUs (at most 8 px an edge, here none) and
    # the decoder's enlargement of chroma do not matter.
    y, x = np.mgrid[:128, :128]
    pixels = np.stack([60 + x, 180 - y, 90 + (x + y) / 4], -1).astype(np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, quality=95, subsampling=2)
    crop = CentreCrop(0.75)  # 96 of 128 px, from 16: whole MCUs
    stream = BitstreamReader(32, SELECTION)
    (luma, chroma), fallback = stream.read(path, crop, rng())
    assert fallback == ""
    assert (luma.shape, chroma.shape) == ((4, 4, 16), (2, 2, 2, 4))
    assert luma.dtype == chroma.dtype == np.int16
    reader = PixelReader(32)
    inputs = reader.stack([reader.read(path, crop, rng())])
    transform = CoefficientTransform(SELECTION, "full", None, flip=False).eval()
    index = torch.zeros(1, dtype=torch.int64)
    result = transform(ClassificationBatch(index, inputs, index), None).inputs
    # The pixel reader's filter looks past the edges of the box; the middle blocks do not feel it.
    middle = slice(1, 3)
    expected = result.y[0].permute(1, 2, 0)[middle, middle].numpy()
    np.testing.assert_allclose(luma[middle, middle], expected, atol=6)
    dc = result.cbcr[0, :, 0].numpy()
    np.testing.assert_allclose(chroma[..., 0], dc, atol=12)
    assert np.ptp(chroma[..., 0]) > 100


def write(kind: str, path: Path) -> Path:
    """A file that is read with this ``Sample.fallback``, or one that needs none."""
    image = picture("bars", 2, (48, 40))
    if kind == "not_jpeg":
        image.save(path, "PNG")
    elif kind == "cmyk":
        image.convert("CMYK").save(path, "JPEG")
    elif kind == "rgb":
        image.save(path, "JPEG", keep_rgb=True)
    elif kind == "tiny":
        image.resize((12, 40)).save(path, "JPEG", subsampling=2)
    elif kind == "sampling":
        path.write_bytes(simplejpeg.encode_jpeg(np.array(image), 90, "RGB", "411"))
    elif kind == "grey":
        image.convert("L").save(path, "JPEG")
    else:
        image.save(path, "JPEG", subsampling=2, progressive=kind == "progressive")
    return path


@pytest.mark.parametrize("kind", ["not_jpeg", "cmyk", "rgb", "tiny", "sampling"])
def test_a_file_without_usable_coefficients_is_read_by_its_pixels(
    tmp_path: Path, kind: str
) -> None:
    path = write(kind, tmp_path / "a.jpg")
    stream = BitstreamReader(32, SELECTION)
    sample = stream.read(path, RANDOM, rng(1))
    assert sample.fallback == kind
    # Equal to the coefficients that the device transform computes from pixels, rounded.
    reader = PixelReader(32)
    pixels = reader.read(path, RANDOM, rng(1))
    assert pixels.fallback == ("cmyk" if kind == "cmyk" else "")
    transform = CoefficientTransform(SELECTION, "full", None, flip=False).eval()
    index = torch.zeros(1, dtype=torch.int64)
    result = [
        transform(ClassificationBatch(index, inputs, index), None).inputs
        for inputs in (reader.stack([pixels]), stream.stack([sample]))
    ]
    for a, b in zip(*result, strict=True):
        torch.testing.assert_close(a, b, atol=0.5, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "progressive", "grey"])
def test_common_jpegs_need_no_fallback(tmp_path: Path, kind: str) -> None:
    path = write(kind, tmp_path / "a.png")  # the content counts, not the name
    sample = BitstreamReader(32, SELECTION).read(path, RANDOM, rng())
    assert sample.fallback == ""
    assert bool(sample.arrays[1].any()) == (kind != "grey")


@pytest.mark.parametrize("make", READERS, ids=READER_IDS)
def test_images_of_any_mode_are_read_as_rgb(tmp_path: Path, make: Callable[[], Reader]) -> None:
    grey = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (32, 1))
    image = Image.fromarray(grey)
    palette = image.quantize(256)
    variants: dict[str, tuple[Image.Image, dict[str, bytes]]] = {
        "L": (image, {}),
        "LA": (image.convert("LA"), {}),
        "RGBA": (image.convert("RGBA"), {}),
        "P": (palette, {}),
        "16 bits": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
    }
    image.convert("RGB").save(tmp_path / "rgb.png")
    expected = make().read(tmp_path / "rgb.png", WHOLE, rng()).arrays
    for name, (variant, options) in variants.items():
        variant.save(tmp_path / "a.png", **options)
        result = make().read(tmp_path / "a.png", WHOLE, rng()).arrays
        for a, b in zip(result, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    picture("bars", 0, (64, 48)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def oversized() -> bytes:
    data = jpeg_bytes()
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + b"\xff\xdc\xff\xdc" + data[frame + 9 :]


def dot() -> bytes:
    buffer = io.BytesIO()
    picture("bars", 0).resize((1, 1)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("make", READERS, ids=READER_IDS)
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("empty", lambda: b""),
        ("not_an_image", lambda: b"not a picture\n" * 20),
        ("truncated", lambda: jpeg_bytes()[:-400]),
        ("oversized", oversized),
        ("too_small", dot),
    ],
)
def test_damage_has_a_kind(
    tmp_path: Path, make: Callable[[], Reader], kind: str, content: Callable[[], bytes]
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content())
    with pytest.raises(DamagedImage) as caught:
        make().read(path, RANDOM, rng())
    assert caught.value.kind == kind


@pytest.mark.parametrize("make", READERS, ids=READER_IDS)
def test_a_missing_file_is_unreadable(tmp_path: Path, make: Callable[[], Reader]) -> None:
    with pytest.raises(DamagedImage) as caught:
        make().read(tmp_path / "gone.jpg", RANDOM, rng())
    assert caught.value.kind == "unreadable"


def test_the_shortest_side_is_one_block(tmp_path: Path) -> None:
    for side, fits in ((8, True), (7, False)):
        picture("field", 0, (side, 30)).save(tmp_path / "a.png")
        if fits:
            assert decode(tmp_path / "a.png").size == (side, 30)
        else:
            with pytest.raises(DamagedImage, match="7x30"):
                decode(tmp_path / "a.png")


@pytest.mark.parametrize("make", READERS, ids=READER_IDS)
def test_samples_are_stacked_even_if_there_are_none(
    tmp_path: Path, make: Callable[[], Reader]
) -> None:
    reader = make()
    picture("field", 0).save(tmp_path / "a.jpg")
    samples = [reader.read(tmp_path / "a.jpg", RANDOM, rng(seed)) for seed in range(3)]
    full, none = reader.stack(samples), reader.stack([])
    if isinstance(full, Blocks):
        assert isinstance(none, Blocks)
        pairs = list(zip(full, none, strict=True))
        assert full.y.shape == (3, 4, 4, 16)
        assert full.cbcr.shape == (3, 2, 2, 2, 4)
    else:
        assert isinstance(none, torch.Tensor)
        pairs = [(full, none)]
        assert full.shape == (3, 3, 32, 32)
    for a, b in pairs:
        assert b.shape == (0, *a.shape[1:])
        assert a.dtype == b.dtype
