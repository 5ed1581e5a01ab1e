"""Pictures turned by their EXIF orientation are read as if their pixels were turned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jpegio
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from research.compression.dct import block_idct
from research.compression.geometry import upright
from research.compression.jpeg import Planes, UnsupportedJpeg, read_planes
from research.compression.selection import ALL_FREQUENCIES, Selection, select_frequencies
from research.data.coefficients import CoefficientSpec
from research.data.crops import CentreCrop, RandomResizedCrop
from research.data.datamodule import NetworkInput
from research.data.frames.annotations import read_frames
from research.data.frames.frame import image_size
from research.data.image_files import decode, read_header
from research.data.image_modes import to_rgb
from research.data.pairs.samples import SquareResize, read_photo
from research.data.readers import BitstreamReader, PixelReader
from research.data.rgbx.modalities import read_colour, read_grey, read_modality_header
from research.data.warehouse.encoders import CoefficientEncoder, FrameEncoder, SampleSpec
from research.inspect import inspect
from tests.conftest import picture
from tests.data.tagged import tag
from tests.data.test_listing import image_folders

RANDOM = RandomResizedCrop((0.08, 1.0), (0.75, 1.3333))
SELECTION = Selection(select_frequencies(4, "corner"), select_frequencies(4, "corner")[:4])
ORIENTATIONS = range(1, 9)
Arrays = list[NDArray[Any]]


def turned_pixels(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels [H, W, …] as EXIF says: the 0th row and column of what is stored are …"""
    transposed = pixels.swapaxes(0, 1)
    return {
        1: pixels,  # top, left
        2: pixels[:, ::-1],  # top, right
        3: pixels[::-1, ::-1],  # bottom, right
        4: pixels[::-1],  # bottom, left
        5: transposed,  # left, top
        6: transposed[:, ::-1],  # right, top
        7: transposed[::-1, ::-1],  # right, bottom
        8: transposed[::-1],  # left, bottom
    }[orientation]


def frame(path: Path) -> Arrays:
    target = {"boxes": [[0.1, 0.2, 0.3, 0.5]], "labels": [0]}
    encoded = FrameEncoder(64, 2).encode(SampleSpec("a", "", path, target))
    return [*encoded.arrays.values(), np.array(image_size(path)[:2])]


def stored_pixels(path: Path) -> Arrays:
    spec = SampleSpec("a", "", path, 3)
    return [*CoefficientEncoder(32, 4, "pixels").encode(spec).arrays.values()]


def colour_and_grey(path: Path) -> Arrays:
    return [read_colour(path), np.array(read_modality_header(path)[:3])]


PIXELS: dict[str, Callable[[Path], Arrays]] = {
    "header": lambda path: [np.array(read_header(path)[:2])],
    "a folder, random crop": lambda path: [
        *PixelReader(32).read(path, RANDOM, np.random.default_rng(3)).arrays
    ],
    "a folder, centre crop": lambda path: [
        *PixelReader(32).read(path, CentreCrop(0.9), np.random.default_rng(0)).arrays
    ],
    "shown": lambda path: [np.asarray(to_rgb(decode(path)))],
    "a store of coefficients": stored_pixels,
    "a store of frames": frame,
    "a pair, padded": lambda path: [SquareResize(64, (9, 9, 9))(path).numpy()],
    "a pair, cropped": lambda path: [SquareResize(64, None)(path).numpy()],
    "sharpness": lambda path: [np.asarray(read_photo(path, mode="L"))],
    "RGB + X": colour_and_grey,
}
"""Every way to the pixels of a file."""


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_are_those_of_the_turned_picture(tmp_path: Path, name: str) -> None:
    for size in ((72, 56), (53, 61)):
        stored = tmp_path / "stored.jpg"
        picture("spots", 3, size).save(stored, quality=90, subsampling=0)
        pixels = np.asarray(Image.open(stored))
        grey = np.asarray(Image.open(stored).convert("L"))
        for orientation in ORIENTATIONS:
            tagged = tag(stored, tmp_path / "tagged.jpg", orientation)
            plain = tmp_path / "plain.png"
            expected = turned_pixels(grey if name == "sharpness" else pixels, orientation)
            Image.fromarray(expected).save(plain)
            if name == "sharpness":  # libjpeg's own grey is the luma plane
                image = Image.open(stored)
                image.draft("L", image.size)
                expected = turned_pixels(np.asarray(image), orientation)
                Image.fromarray(expected).save(plain)
            for found, right in zip(PIXELS[name](tagged), PIXELS[name](plain), strict=True):
                np.testing.assert_array_equal(found, right, err_msg=f"{orientation}, {size}")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_format_is_turned_as_pil_turns_it(tmp_path: Path, orientation: int) -> None:
    image = picture("bars", 1, (40, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    files = [tmp_path / name for name in ("a.png", "a.webp", "a.tif", "a.jpg")]
    for file in files:
        image.save(file, exif=exif, **({"lossless": True} if file.suffix == ".webp" else {}))
    image.convert("I;16").save(tmp_path / "wide.png", exif=exif)
    image.convert("L").save(tmp_path / "wide.tif", exif=exif, compression="tiff_lzw")
    packet = PngImagePlugin.PngInfo()
    packet.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
    image.save(tmp_path / "xmp.png", pnginfo=packet)
    for file in [*files, *(tmp_path / name for name in ("wide.png", "wide.tif", "xmp.png"))]:
        right = ImageOps.exif_transpose(Image.open(file))
        found = decode(file)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(right), err_msg=file.name)
        assert read_header(file)[:2] == found.size == right.size


def test_metadata_after_the_pixels_count(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture("bars", 1, (40, 24)).save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    chunk, tail = data[start:end], data.index(b"IEND") - 4
    late = tmp_path / "late.png"
    late.write_bytes(data[:start] + data[end:tail] + chunk + data[tail:])
    assert read_header(late)[:3] == (24, 40, 6)
    assert decode(late).size == (24, 40)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_do_not_exist_are_ignored(tmp_path: Path, value: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    picture("bars", 1, (40, 24)).save(tmp_path / "a.jpg", exif=exif)
    assert read_header(tmp_path / "a.jpg").width == decode(tmp_path / "a.jpg").width == 40


def test_damaged_metadata_do_not_make_a_picture_damaged(tmp_path: Path) -> None:
    path = tag(picture_file(tmp_path, (40, 24)), tmp_path / "a.jpg", 6)
    data = path.read_bytes()
    at = data.index(b"Exif\0\0")
    for offset in range(6, 30):
        path.write_bytes(data[: at + offset] + b"\xff" + data[at + offset + 1 :])
        assert decode(path).size == read_header(path)[:2]
        planes = read_planes(path)
        size = planes.header.width, planes.header.height
        turned = planes.header.orientation >= 5
        assert decode(path).size == (size[::-1] if turned else size)


def picture_file(folder: Path, size: tuple[int, int], subsampling: int = 2) -> Path:
    picture("spots", 5, size).save(folder / "stored.jpg", quality=90, subsampling=subsampling)
    return folder / "stored.jpg"


# -- coefficients ---------------------------------------------------------------------------------


def write_turned(stored: Path, path: Path, orientation: int) -> Path:
    """A square JPEG whose blocks are turned one by one, in the order of the pixels."""
    image = jpegio.read(str(stored))
    odd = np.array([1, -1] * 4)
    for number, plane in enumerate(image.coef_arrays):
        rows, cols = (side // 8 for side in plane.shape)
        grid = turned_pixels(plane.reshape(rows, 8, cols, 8).transpose(0, 2, 1, 3), orientation)
        corner = turned_pixels(np.array([[0, 1], [2, 3]]), orientation)
        result = np.empty_like(plane)
        for i in range(rows):
            for j in range(cols):
                block = grid[i, j]
                if orientation >= 5:
                    block = block.T
                upper, left = corner[0, 0] // 2, corner[0, 0] % 2
                if orientation >= 5:
                    upper, left = left, upper
                block = block * (odd if left else 1) * (odd[:, None] if upper else 1)
                result[8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = block
        image.coef_arrays[number][:] = result
    if orientation >= 5:
        for table in image.quant_tables:
            table[:] = table.T.copy()
    jpegio.write(image, str(path))
    return path


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_coefficients_are_those_of_the_turned_file(tmp_path: Path, orientation: int) -> None:
    for subsampling, side in ((0, 40), (2, 64)):
        stored = picture_file(tmp_path, (side, side), subsampling)
        tagged = tag(stored, tmp_path / "tagged.jpg", orientation)
        turned = write_turned(stored, tmp_path / "turned.jpg", orientation)
        for a, b in zip(
            upright(read_planes(tagged)).planes, read_planes(turned).planes, strict=True
        ):
            np.testing.assert_array_equal(a.quantised, b.quantised)
            np.testing.assert_array_equal(a.table, b.table)
        reader = BitstreamReader(32, SELECTION)
        for seed in range(3):
            found, right = (
                reader.read(path, RANDOM, np.random.default_rng(seed)) for path in (tagged, turned)
            )
            assert found.fallback == right.fallback == ""
            for a, b in zip(found.arrays, right.arrays, strict=True):
                np.testing.assert_array_equal(a, b)
        found, right = (
            CoefficientEncoder(32, 4, "bitstream").encode(SampleSpec("a", "", path, 0))
            for path in (tagged, turned)
        )
        assert found.fallback == right.fallback == ""
        for key in right.arrays:
            np.testing.assert_array_equal(found.arrays[key], right.arrays[key])


def decoded(planes: Planes) -> Arrays:
    """The pixels of each component."""
    values = []
    for plane in planes.planes:
        blocks = torch.from_numpy(plane.blocks()).double().permute(2, 0, 1)[None]
        values.append(block_idct(blocks)[0].numpy())
    return values


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("sampling", ["444", "422", "440", "420", "grey"])
def test_planes_decode_to_turned_planes(
    tmp_path: Path, make_jpeg: Callable[..., Path], sampling: str, orientation: int
) -> None:
    stored = make_jpeg(48, 64, sampling)
    planes = read_planes(tag(stored, tmp_path / "tagged.jpg", orientation))
    assert planes.header.orientation == orientation
    turned = upright(planes)
    assert turned.header.orientation == 1
    assert (turned.header.width, turned.header.height) == read_header(tmp_path / "tagged.jpg")[:2]
    for found, stored_plane in zip(decoded(turned), decoded(planes), strict=True):
        right = turned_pixels(stored_plane, orientation)
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(64, 48), (72, 48), (64, 40), (60, 44)])
def test_partly_filled_blocks_are_read_as_pixels_and_counted(
    tmp_path: Path, size: tuple[int, int], orientation: int
) -> None:
    """Where they would come first: sides that are mirrored and no multiple of the MCU, 16 px."""
    stored = picture_file(tmp_path, size)
    tagged = tag(stored, tmp_path / "tagged.jpg", orientation)
    width_matters = orientation in (2, 3, 7, 8)
    height_matters = orientation in (3, 4, 6, 7)
    partial = (width_matters and size[0] % 16) or (height_matters and size[1] % 16)
    sample = BitstreamReader(32, SELECTION).read(tagged, RANDOM, np.random.default_rng(1))
    assert sample.fallback == ("turned" if partial else "")
    if partial:
        with pytest.raises(UnsupportedJpeg):
            upright(read_planes(tagged))
        plain = tmp_path / "plain.png"
        Image.fromarray(turned_pixels(np.asarray(Image.open(stored)), orientation)).save(plain)
        right = BitstreamReader(32, SELECTION).read(plain, RANDOM, np.random.default_rng(1))
        for a, b in zip(sample.arrays, right.arrays, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_transposed_picture_of_any_size_keeps_its_blocks(tmp_path: Path) -> None:
    planes = read_planes(tag(picture_file(tmp_path, (61, 43)), tmp_path / "a.jpg", 5))
    for found, stored in zip(decoded(upright(planes)), decoded(planes), strict=True):
        np.testing.assert_allclose(found, stored.T, rtol=0, atol=1e-9)


# -- labels and modalities ------------------------------------------------------------------------


def test_boxes_lie_on_what_they_were_drawn_around(tmp_path: Path) -> None:
    """``exif_yolo`` of the faults, in all orientations: half of its frames are turned by tag 6."""
    for orientation in ORIENTATIONS:
        pixels = np.random.default_rng(orientation).integers(0, 60, (320, 240, 3), dtype=np.uint8)
        x, y, w, h = 40 + orientation, 200 - orientation, 60, 80
        pixels[y : y + h, x : x + w] = 230, 30, 30
        inverse = {6: 8, 8: 6}.get(orientation, orientation)
        shown = tmp_path / "shown.jpg"
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(turned_pixels(pixels, inverse)).save(shown, quality=95)
        tag(shown, tmp_path / "images" / f"p{orientation}.jpg", orientation)
        row = f"0 {(x + w / 2) / 240} {(y + h / 2) / 320} {w / 240} {h / 320}\n"
        (tmp_path / "labels" / f"p{orientation}.txt").write_text(row)
    frames = read_frames(tmp_path).frames
    assert len(frames) == 8
    for each in frames:
        target = {"boxes": [list(box) for box in each.boxes], "labels": [0]}
        encoded = FrameEncoder(320, 1).encode(SampleSpec(each.name, "", each.image, target)).arrays
        assert encoded["sizes"].tolist() == [320, 240]
        x0, y0, x1, y1 = (320 * encoded["boxes"][0]).round().astype(int)
        inside = encoded["images"][y0 + 4 : y1 - 4, x0 + 4 : x1 - 4].reshape(-1, 3).mean(0)
        np.testing.assert_allclose(inside, (230, 30, 30), atol=4, err_msg=each.name)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_modalities_are_turned_too(tmp_path: Path, orientation: int) -> None:
    thermal = np.random.default_rng(0).integers(0, 65536, (24, 40)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix, kind in (("png", np.uint16), ("tif", np.uint16), ("tif", np.float32)):
        Image.fromarray(thermal.astype(kind)).save(tmp_path / f"a.{suffix}", exif=exif)
        grey = read_grey(tmp_path / f"a.{suffix}")[..., 0]
        np.testing.assert_array_equal(grey, turned_pixels(thermal, orientation))
        assert read_modality_header(tmp_path / f"a.{suffix}")[:3] == (*grey.shape[::-1], True)


def test_full_selection_is_available_for_turned_files(tmp_path: Path) -> None:
    tagged = tag(picture_file(tmp_path, (64, 48)), tmp_path / "a.jpg", 8)
    sample = BitstreamReader(32, ALL_FREQUENCIES).read(
        tagged, CentreCrop(1.0), np.random.default_rng(0)
    )
    assert [array.shape for array in sample.arrays] == [(4, 4, 64), (2, 2, 2, 64)]


# -- commands -------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("source", ["pixels", "bitstream"])
def test_commands_see_the_turned_picture(tmp_path: Path, source: str) -> None:
    """What ``predict`` reads, in classification, and what ``inspect`` measures."""
    stored = picture_file(tmp_path, (64, 64))
    pairs = []
    for orientation in ORIENTATIONS:
        tagged = tag(stored, tmp_path / f"tagged_{orientation}.jpg", orientation)
        if source == "bitstream":
            plain = write_turned(stored, tmp_path / f"plain_{orientation}.jpg", orientation)
        else:
            plain = tmp_path / f"plain_{orientation}.png"
            turned = turned_pixels(np.asarray(Image.open(stored)), orientation)
            Image.fromarray(turned).save(plain)
        pairs.append((tagged, plain))
    both = [path for pair in pairs for path in pair]
    rows = inspect(
        both, tmp_path / "out", ["dataset.image_size=64", f"compression.source={source}"]
    )
    for found, right in zip(rows[::2], rows[1::2], strict=True):
        assert found["fallback"] == right["fallback"] == ""
        assert [found[key] for key in ("Y", "Cb", "Cr", "RGB")] == [
            right[key] for key in ("Y", "Cb", "Cr", "RGB")
        ]
    for folder in ("a", "b"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for name in ("1.jpg", "2.jpg"):
            (tmp_path / "set" / folder / name).write_bytes(stored.read_bytes())
    spec = CoefficientSpec(ALL_FREQUENCIES, "full", source, False, 8)
    network = NetworkInput(32, (0.5,) * 3, (0.5,) * 3, 0.9, spec)
    data = image_folders(tmp_path / "set", tmp_path / "cache", network)
    inputs = data.read(both).inputs
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    for tensor in tensors:
        assert torch.equal(tensor[::2], tensor[1::2])
    shown = [np.asarray(data.load_image(path)[0]) for path in both]
    if source == "pixels":
        for a, b in zip(shown[::2], shown[1::2], strict=True):
            np.testing.assert_array_equal(a, b)
