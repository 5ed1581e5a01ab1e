"""Pictures of every mode, and files that claim what they do not contain."""

from __future__ import annotations

import io
import itertools
import random
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import SAMPLEFORMAT

from research.compression.selection import ALL_FREQUENCIES
from research.data.crops import CentreCrop
from research.data.frames.frame import SkipFrame, image_size
from research.data.image_files import EXTENSIONS, decode, inspect_header, read_header, reading_tag
from research.data.image_modes import resize_to_rgb, to_rgb
from research.data.pairs.samples import read_photo
from research.data.readers import BitstreamReader, PixelReader, Reader
from research.data.rgbx.modalities import read_grey, read_modality_header
from research.utils.errors import DamagedImage
from tests import fuzz
from tests.conftest import ROOT, picture
from tests.data.tagged import tag

RAMP = np.tile(np.linspace(0, 255, 64), (64, 1))
"""Not of whole numbers: 8-bit files have them rounded down."""


def shown(path: Path) -> NDArray[np.uint8]:
    return np.asarray(to_rgb(decode(path)))


def pgm(values: NDArray[Any], largest: int) -> bytes:
    height, width = values.shape
    kind = ">u2" if largest > 255 else "u1"
    return f"P5\n{width} {height}\n{largest}\n".encode() + values.astype(kind).tobytes()


def tiff(values: NDArray[Any], photometric: int, bits: int) -> bytes:
    """An uncompressed grey TIFF file of one strip."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        packed = np.stack(
            [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1]]
        )
        data = (packed.T & 255).astype(np.uint8).tobytes()
    else:
        data = values.astype("<u2").tobytes()
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
    ]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data))]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", key, kind, 1, value) for key, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


def saved(values: NDArray[Any], suffix: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF" if suffix == ".tif" else "PNG")
    return file.getvalue()


WIDE: dict[str, bytes] = {
    # ``modes`` of the faults
    "p16.pgm": pgm(RAMP * 257, 65535),
    "i32.tif": saved((RAMP * 257).astype(np.int32), ".tif"),
    "f32.tif": saved((RAMP / 255).astype(np.float32), ".tif"),
    # more of their kind
    "p12.pgm": pgm(np.ceil(RAMP.astype(int) * 4095 / 255), 4095),
    "p7.pgm": pgm(np.ceil(RAMP.astype(int) * 200 / 255), 200),
    "i16.png": saved((RAMP * 257).astype(np.uint16), ".png"),
    "i16.tif": saved((RAMP * 257).astype(np.uint16), ".tif"),
    "white_is_0.tif": tiff(65535 - (RAMP * 257).astype(int), 0, 16),
    "i12.tif": tiff(np.ceil(RAMP.astype(int) * 4095 / 255), 1, 12),
    "i32_255.tif": saved(RAMP.astype(np.int32), ".tif"),
    "f32_255.tif": saved(RAMP.astype(np.float32), ".tif"),
    "f32_65535.tif": saved((RAMP * 257).astype(np.float32), ".tif"),
}


@pytest.mark.parametrize("name", WIDE)
def test_wide_pictures_are_the_ramp_of_8_bits(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WIDE[name])
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "l.png")
    found = shown(path).astype(int)
    slack = 1 if name == "p7.pgm" else 0  # has fewer values than the ramp
    assert np.abs(found - shown(tmp_path / "l.png")).max() <= slack
    assert inspect_header(path) == ""
    reader = PixelReader(32)
    sample = reader.read(path, CentreCrop(1.0), np.random.default_rng(0)).arrays[0]
    right = reader.read(tmp_path / "l.png", CentreCrop(1.0), np.random.default_rng(0)).arrays[0]
    assert np.abs(sample.astype(int) - right).max() <= slack
    if name != "p7.pgm":
        assert read_modality_header(path).is_16bit
        grey = read_grey(path)
        assert grey.dtype == np.uint16
        np.testing.assert_array_equal(grey[..., 0] // 257, RAMP.astype(np.uint8))


def test_floats_stored_from_8_bits_come_back(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for largest in (1, 255, 65535):
        wide = (values.astype(np.float64) * (largest / 255)).astype(np.float32)
        Image.fromarray(wide).save(tmp_path / "a.tif")
        np.testing.assert_array_equal(shown(tmp_path / "a.tif")[..., 0], values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.float32([-0.5, 1]), "float32, values from -0.5 to 1: store 0 to 1, 0 to 255 or"),
        (np.float32([0, 65536]), "values from 0 to 65536"),
        (np.float32([0, 1.25]), "values from 0 to 1.25"),
        (np.int32([0, 300]), "values from 0 to 300"),
        (np.float32([0, np.nan]), "128 NaN"),
        (np.float32([0, np.inf]), "to inf"),
        (np.int32([0, 70_000]), "int32, values from 0 to 70000"),
        (np.int32([-1, 255]), "values from -1 to 255"),
    ],
)
def test_other_ranges_are_left_out_by_name(
    tmp_path: Path, values: NDArray[Any], words: str
) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.resize(values, (16, 16))).save(path)
    assert inspect_header(path) == "value_range"
    with pytest.raises(DamagedImage, match=re.escape(f"{path}: ")) as caught:
        decode(path)
    assert words in str(caught.value)
    for read in (image_size, read_modality_header):
        with pytest.raises(SkipFrame, match=re.escape(words)):
            read(path)


def test_signed_values_of_8_bits_are_left_out_by_name(tmp_path: Path) -> None:
    """PIL reads them as unsigned: -1 would be white."""
    path = tmp_path / "a.tif"
    for sample_format, kind in ((1, ""), (2, "value_range")):
        picture = Image.fromarray(np.resize(np.uint8([0, 100, 255]), (16, 16)))
        picture.save(path, tiffinfo={SAMPLEFORMAT: sample_format})
        assert inspect_header(path) == kind
    for read in (decode, read_header):
        with pytest.raises(DamagedImage, match="int8: store 0 to 255"):
            read(path)


def test_a_dark_picture_keeps_its_declared_range(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(pgm(np.full((16, 16), 200), 65535))
    Image.fromarray(np.full((16, 16), 200, np.uint16)).save(tmp_path / "a.png")
    for name in ("a.pgm", "a.png"):
        assert shown(tmp_path / name).max() == 0


COLOUR = (180, 90, 40)


def as_lab(image: Image.Image) -> Image.Image:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    assert converted is not None
    return converted


@pytest.mark.parametrize(
    ("suffix", "mode", "slack"),
    [
        ("png", "RGB", 0),
        ("png", "P", 0),
        ("png", "RGBA", 0),
        ("tif", "LAB", 3),
        ("tif", "YCbCr", 2),
        ("tif", "CMYK", 1),
        ("jpg", "CMYK", 6),
        ("tif", "PA", 0),
        ("gif", "P", 0),
        ("webp", "RGBA", 3),
        ("bmp", "RGB", 0),
    ],
)
def test_colours_survive_every_mode(tmp_path: Path, suffix: str, mode: str, slack: int) -> None:
    image = Image.new("RGB", (16, 16), COLOUR)
    if mode == "PA":
        converted = image.convert("P", palette=Image.Palette.ADAPTIVE).convert("PA")
    elif mode == "LAB":
        converted = as_lab(image)
    else:
        options = {"palette": Image.Palette.ADAPTIVE} if mode == "P" else {}
        converted = image.convert(mode, **options)
    converted.save(tmp_path / f"a.{suffix}")
    assert np.abs(shown(tmp_path / f"a.{suffix}").astype(int) - COLOUR).max() <= slack


def test_modes_that_only_exist_in_memory() -> None:
    image = Image.new("RGB", (8, 8), COLOUR)
    for mode in ("HSV", "RGBX", "RGBa", "YCbCr"):
        source = image.convert("RGBA") if mode == "RGBa" else image
        assert np.abs(np.asarray(to_rgb(source.convert(mode))).astype(int) - COLOUR).max() <= 3


def test_black_and_white(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).random((16, 16)) < 0.5
    for name in ("a.png", "a.tif", "a.pbm", "a.bmp"):
        Image.fromarray(bits).save(tmp_path / name)
        np.testing.assert_array_equal(shown(tmp_path / name)[..., 1], 255 * bits)


def test_transparent_pixels_are_shown_on_white(tmp_path: Path) -> None:
    """Whatever colours are stored below them."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., :3] = 200, 100, 0
    pixels[..., 3] = np.resize([0, 51, 255, 128], 16)
    expected = {0: (255, 255, 255), 1: (244, 224, 204), 2: (200, 100, 0), 3: (227, 177, 127)}
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    Image.fromarray(pixels).save(tmp_path / "rgba.webp", lossless=True, exact=True)
    Image.fromarray(pixels).save(tmp_path / "rgba.tif")
    for name in ("rgba.png", "rgba.webp", "rgba.tif"):
        found = shown(tmp_path / name).astype(int)
        for column, colour in expected.items():
            assert np.abs(found[:, column] - colour).max() <= 1, (name, column)
        assert read_header(tmp_path / name).has_alpha
    Image.fromarray(pixels[..., [0, 3]], "LA").save(tmp_path / "la.png")
    assert (
        np.abs(shown(tmp_path / "la.png")[0, :4, 0].astype(int) - (255, 244, 200, 227)).max() <= 1
    )


def test_an_invisible_picture_is_damaged(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    for name in ("a.png", "a.tif", "a.webp"):
        Image.fromarray(pixels).save(tmp_path / name)
        with pytest.raises(DamagedImage) as caught:
            decode(tmp_path / name)
        assert caught.value.kind == "transparent"


def test_a_transparent_colour_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.resize(np.uint8([0, 9]), (16, 16)))
    image.save(tmp_path / "l.png", transparency=9)
    image.convert("P").save(tmp_path / "p.png", transparency=bytes([*[255] * 9, 0]))
    image.save(tmp_path / "a.gif", transparency=9)
    image.convert("RGB").save(tmp_path / "rgb.png", transparency=(9, 9, 9))
    for name in ("l.png", "p.png", "a.gif", "rgb.png"):
        assert shown(tmp_path / name)[0, :2, 0].tolist() == [0, 255], name


def keyed_png(file: Path, values: NDArray[np.uint16], bits: int, colour: list[int]) -> None:
    """A PNG file of grey [H, W] or of colours [H, W, 3] with a transparent colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width = values.shape[:2]
    big = values.reshape(height, -1).astype(">u2").view(np.uint8)
    wide = np.unpackbits(big, axis=1).reshape(height, -1, 16)[..., 16 - bits :]
    rows = np.packbits(wide.reshape(height, -1), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, 2 if values.ndim == 3 else 0, 0, 0, 0)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tRNS", np.array(colour, ">u2").tobytes())
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_colour_has_the_bits_of_its_file(tmp_path: Path, bits: int) -> None:
    """PIL compares it with 8 bits; every value of the file is tried as the transparent one."""
    largest = 2**bits - 1
    values = (np.arange(256) * largest // 255).astype(np.uint16).reshape(16, 16)
    file = tmp_path / "a.png"
    for colour in np.unique(values)[:: 1 if bits < 8 else 51].tolist():
        keyed_png(file, values, bits, [colour])
        grey = np.where(values == colour, 255, values.astype(int) * 255 // largest)
        np.testing.assert_array_equal(shown(file), np.repeat(grey[..., None], 3, 2), str(colour))
        np.testing.assert_array_equal(np.asarray(read_photo(file)), shown(file))
        np.testing.assert_array_equal(np.asarray(read_photo(file, mode="L")), shown(file)[..., 0])
        assert reading_tag(file)
        if bits >= 8:
            colours = np.stack([values, np.roll(values, 1, 1), values[::-1]], 2)
            chosen = colours[3, 5]
            keyed_png(file, colours, bits, chosen.tolist())
            expected = (colours >> (bits - 8)).astype(np.uint8)
            expected[(colours == chosen).all(2)] = 255
            np.testing.assert_array_equal(shown(file), expected)
            np.testing.assert_array_equal(np.asarray(read_photo(file)), expected)
    keyed_png(file, np.full((8, 8), largest, np.uint16), bits, [largest])
    with pytest.raises(DamagedImage) as caught:
        decode(file)
    assert caught.value.kind == "transparent"


def test_plain_files_keep_their_keys(tmp_path: Path) -> None:
    """Features and stores of earlier versions stay valid for files that are read as before."""
    image = picture("bars", 0)
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "a.png")
    image.convert("CMYK").save(tmp_path / "c.jpg")
    image.convert("I;16").save(tmp_path / "i.png")
    for name in ("a.jpg", "a.png", "c.jpg", "i.png", "missing.png"):
        assert reading_tag(tmp_path / name) == ""
    tag(tmp_path / "a.jpg", tmp_path / "t.jpg", 6)
    image.convert("RGBA").save(tmp_path / "alpha.png")
    (tmp_path / "a.pgm").write_bytes(pgm(np.zeros((16, 16)), 65535))
    for name in ("t.jpg", "alpha.png", "a.pgm"):
        assert reading_tag(tmp_path / name)


# -- claims ---------------------------------------------------------------------------------------


def jpeg(size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    file = io.BytesIO()
    picture("bars", 0, size).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def claiming(data: bytes, width: int, height: int) -> bytes:
    frame = re.search(rb"\xff[\xc0-\xc2]\0", data)
    assert frame is not None
    at = frame.start() + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def grey_dot() -> bytes:
    """A JPEG of a few hundred bytes."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(("alphas", "damaged"), [(2, False), (256, False), (257, True)])
def test_alphas_of_a_palette(tmp_path: Path, alphas: int, damaged: bool) -> None:
    """A file with more than 256 of them is damaged."""
    path = tmp_path / "a.png"
    image = Image.new("P", (16, 16))
    image.putpalette([9, 8, 7, 1, 2, 3])
    image.save(path)
    data = path.read_bytes()
    at = data.index(b"IDAT") - 4
    path.write_bytes(data[:at] + chunk(b"tRNS", b"\xff" * alphas) + data[at:])
    if damaged:
        with pytest.raises(DamagedImage, match=r"a\.png") as error:
            decode(path)
        assert error.value.kind == "unreadable"
    else:
        assert to_rgb(decode(path)).getpixel((0, 0)) == (9, 8, 7)


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


CLAIMS: dict[str, bytes] = {
    "a dot of 13000×13000": claiming(grey_dot(), 13_000, 13_000),
    "colours": claiming(jpeg(), 13_000, 13_000),
    "progressive": claiming(jpeg(progressive=True), 9_000, 13_000),
    "a little too many": claiming(jpeg(), 1 << 12, 1 << 12),
    "more than is ever read": claiming(jpeg(), 65_500, 65_500),
    "PNG": png_claiming(13_000, 13_000),
    "PPM": b"P6\n13000 13000\n255\n" + bytes(100),
    "PGM": b"P5\n13000 13000\n65535\n" + bytes(100),
    "TIFF": tiff(np.zeros((8, 8)), 1, 16).replace(
        struct.pack("<HHII", 256, 4, 1, 8), struct.pack("<HHII", 256, 4, 1, 90_000_000)
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_is_refused_before_anything_is_decoded(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(CLAIMS[name])
    assert inspect_header(path) == "oversized"
    before = fuzz.peak()
    for read in (
        decode,
        lambda path: PixelReader(32).read(path, CentreCrop(1), np.random.default_rng(0)),
        lambda path: BitstreamReader(32, ALL_FREQUENCIES).read(
            path, CentreCrop(1), np.random.default_rng(0)
        ),
    ):
        with pytest.raises(DamagedImage) as caught:
            read(path)
        assert caught.value.kind == "oversized"
        assert str(path) in str(caught.value)
    assert fuzz.peak() - before < 50 * 2**20
    with pytest.raises(SkipFrame, match="oversized"):
        image_size(path)


def test_large_pictures_of_one_colour_are_no_fraud(tmp_path: Path) -> None:
    """The smallest files that encoders write."""
    for name, mode in (("a.jpg", "L"), ("b.jpg", "RGB"), ("a.png", "RGB"), ("a.webp", "RGB")):
        Image.new(mode, (3000, 2000)).save(tmp_path / name)
        assert inspect_header(tmp_path / name) == ""
    Image.new("1", (10_000, 9_000)).save(tmp_path / "b.png", optimize=True)
    assert inspect_header(tmp_path / "b.png") == ""


SECOND_FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "in the scan": lambda data: data[:-200] + b"\xff\xc1\0\x0b" + bytes(9) + data[-200:],
    "after the scan": lambda data: data[:-2] + b"\xff\xc0\0\x0b\x08\0\x08\0\x08\1\1\x11\0\xff\xd9",
    "of a length that it has not": lambda data: data[:-300] + b"\xff\xc1" + data[-298:],
    "hierarchical": lambda data: data[:-2] + b"\xff\xc5\0\x0b" + bytes(9) + b"\xff\xd9",
    "before the scan": lambda data: data.replace(
        b"\xff\xda", b"\xff\xc0\0\x0b\x08\1\0\1\0\1\1\x11\0\xff\xda"
    ),
}


@pytest.mark.parametrize("name", SECOND_FRAMES)
def test_a_second_frame_header_is_damage_for_both_readers(tmp_path: Path, name: str) -> None:
    """As ``second_frame_header.jpg`` of the faults has one."""
    path = tmp_path / "a.jpg"
    path.write_bytes(SECOND_FRAMES[name](jpeg((96, 96))))
    for reader in (PixelReader(32), BitstreamReader(32, ALL_FREQUENCIES)):
        with pytest.raises(DamagedImage) as caught:
            reader.read(path, CentreCrop(1.0), np.random.default_rng(0))
        assert caught.value.kind in ("unreadable", "truncated")
        assert "\n" not in str(caught.value)


def test_a_file_of_endless_scans_is_not_decoded(tmp_path: Path) -> None:
    data = jpeg((96, 96), progressive=True)
    scans = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    last = data[scans[-1] : -2]
    path = tmp_path / "a.jpg"
    for times, fits in ((1, True), (5000, False)):
        path.write_bytes(data[:-2] + (times - 1) * last + data[-2:])
        for reader in (PixelReader(32), BitstreamReader(32, ALL_FREQUENCIES)):
            verdict = fuzz.judged(partial(read_or_refuse, path, reader))
            assert not verdict.failed
            if not fits:
                with pytest.raises(DamagedImage, match="scans"):
                    reader.read(path, CentreCrop(1.0), np.random.default_rng(0))


def test_a_thumbnail_is_no_second_frame(tmp_path: Path) -> None:
    exif = jpeg((16, 16))
    body = b"Exif\0\0II*\0\x08\0\0\0\0\0" + exif
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    data = jpeg()
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
    assert decode(tmp_path / "a.jpg").size == (64, 48)


def test_headers_of_more_than_64_kb_are_read(tmp_path: Path) -> None:
    data = jpeg()
    profile = b"\xff\xe2\xff\xff" + bytes(65533)
    (tmp_path / "a.jpg").write_bytes(data[:2] + 3 * profile + data[2:])
    assert read_header(tmp_path / "a.jpg")[:2] == decode(tmp_path / "a.jpg").size == (64, 48)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "444": ("RGB", {"subsampling": 0}),
    "422": ("RGB", {"subsampling": 1}),
    "420": ("RGB", {"subsampling": 2}),
    "progressive": ("RGB", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_blocks": 3}),
    "rgb": ("RGB", {"keep_rgb": True}),
    "grey": ("L", {}),
    "cmyk": ("CMYK", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_jpegs_are_decoded_as_by_pil(tmp_path: Path, kind: str) -> None:
    mode, options = KINDS[kind]
    path = tmp_path / "a.jpg"
    picture("spots", 1, (203, 118)).convert(mode).save(path, "JPEG", quality=80, **options)
    with Image.open(path) as expected:
        assert decode(path).mode == expected.mode
        np.testing.assert_array_equal(np.asarray(decode(path)), np.asarray(expected))
    for grey, reduction in itertools.product((False, True), (1.0, 1.9, 2.0, 5.0, 12.0, 1e9)):
        found = decode(path, lambda size, least=reduction: least, grey=grey)
        with Image.open(path) as expected:
            smaller = max(1, int(203 / reduction)), max(1, int(118 / reduction))
            expected.draft("L" if grey else "RGB", smaller)
            assert (found.mode, found.size) == (expected.mode, expected.size)
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_cut_short_is_truncated(tmp_path: Path, kind: str) -> None:
    mode, options = KINDS[kind]
    file = io.BytesIO()
    picture("spots", 1, (203, 118)).convert(mode).save(file, "JPEG", quality=80, **options)
    data = file.getvalue()
    path = tmp_path / "a.jpg"
    for length in range(100, len(data) - 2, 97):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedImage) as caught:
            decode(path)
        assert caught.value.kind == "truncated"


def test_grey_images_are_resized_as_their_three_equal_channels(tmp_path: Path) -> None:
    box = (3.0, 5.0, 200.0, 111.0)
    grey = picture("spots", 1, (203, 118)).convert("L")
    with_alpha = grey.convert("LA")
    with_alpha.putalpha(grey)
    for image in (grey, with_alpha, grey.convert("1"), picture("spots", 2, (203, 118))):
        for size in ((32, 32), (224, 200)):
            expected = to_rgb(image).convert("RGB").resize(size, Image.Resampling.BILINEAR, box=box)
            found = resize_to_rgb(image, size, box)
            assert found.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_no_other_program_is_started_for_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    assert inspect_header(tmp_path / "a.jpg") == "not_an_image"


def test_pictures_are_opened_in_one_place() -> None:
    opening = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "research").rglob("*.py")
        if "Image.open(" in path.read_text(encoding="utf-8")
    ]
    assert opening == ["research/data/image_files.py"]
    assert all(suffix == suffix.lower() for suffix in EXTENSIONS)


# -- fuzz -----------------------------------------------------------------------------------------


def originals() -> list[bytes]:
    """Files of every kind that the readers tell apart."""
    made = [jpeg((96, 80), subsampling=number) for number in (0, 1, 2)]
    made += [jpeg((64, 64), progressive=True), jpeg((40, 40), optimize=True)]
    grey = io.BytesIO()
    picture("spots", 1, (64, 48)).convert("L").save(grey, "JPEG")
    cmyk = io.BytesIO()
    picture("spots", 1, (64, 48)).convert("CMYK").save(cmyk, "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    return [*made, grey.getvalue(), cmyk.getvalue(), jpeg((64, 48), exif=exif)]


def read_or_refuse(path: Path, reader: Reader | None) -> None:
    """Read a file, or only its header; damage must have a kind and the name of the file."""
    if reader is None:
        assert re.fullmatch("[a-z_]*", inspect_header(path))
        return
    damage = None
    try:
        reader.read(path, CentreCrop(1.0), np.random.default_rng(0))
    except DamagedImage as error:
        damage = error
    if damage is not None:
        assert str(path) in str(damage)
        assert re.fullmatch("[a-z_]+", damage.kind)


def mutate(first: int, count: int, path: Path) -> list[str]:
    """Read changed JPEG files on both paths; the failures, one line each."""
    files = originals()
    readers = PixelReader(32), BitstreamReader(32, ALL_FREQUENCIES)
    failed = []
    for seed, rng in fuzz.seeds(first, count):
        data = fuzz.octets(rng.choice(files), rng)
        if rng.random() < 0.3:
            data = fuzz.octets(data or b"x", rng)
        if rng.random() < 0.2 and re.search(rb"\xff[\xc0-\xc2]\0", data[:-20]):
            data = claiming(data, rng.randrange(1 << 16), rng.randrange(1 << 16))
        path.write_bytes(data)

        for reader in (None, *readers):
            verdict = fuzz.judged(partial(read_or_refuse, path, reader))
            if verdict.failed:
                failed.append(f"seed {seed}: {verdict.outcome} {verdict.where}")
    return failed


def test_a_hundred_changed_jpegs(tmp_path: Path) -> None:
    assert mutate(0, 100, tmp_path / "a.jpg") == []


@pytest.mark.whole
def test_ten_thousand_changed_jpegs(tmp_path: Path) -> None:
    for first in range(0, 10_000, 1000):
        assert mutate(first, 1000, tmp_path / "a.jpg") == []


@pytest.mark.whole
def test_changed_files_of_other_formats(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    files = list(WIDE.values())
    for kind, options in (
        ("PNG", {"exif": exif}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {"exif": exif}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"exif": exif}),
        ("JPEG2000", {}),
        ("AVIF", {}),
    ):
        file = io.BytesIO()
        picture("bars", 0, (48, 40)).save(file, kind, **options)
        files.append(file.getvalue())
    path = tmp_path / "a.png"
    for seed in range(4000):
        rng = random.Random(seed)
        path.write_bytes(fuzz.octets(rng.choice(files), rng))

        def read() -> None:
            with suppress(DamagedImage):
                to_rgb(decode(path))
            inspect_header(path)

        verdict = fuzz.judged(read)
        assert not verdict.failed, (seed, verdict)


# -- pyjpegio -------------------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["jpegio"] = None
from pathlib import Path
import torch
from research.config import compose_config, resolved
from research.engine import build
from research.utils.conditions import explain
from research.data.loader import EpochLoader

def batches(*words):
    config = resolved(compose_config(["dataset=imagefolder", *sys.argv[1:], *words])[0])
    experiment = build.experiment({**config, "seed": 0})
    return next(experiment.train.epoch(0)).inputs

print(tuple(batches("model=resnet34", "model.name=resnet18").shape))
try:
    batches("model=resnet34_compressed", "model.name=resnet18", "compression.source=bitstream")
except Exception as error:
    print(explain(error) or repr(error))
"""


@pytest.mark.long
def test_pixels_need_no_pyjpegio(folders: Path) -> None:
    words = [
        f"dataset.train_dirs=[{folders / 'train'}]",
        f"dataset.cache_dir={folders / 'cache'}",
        "dataset.image_size=32",
        "batch_size=4",
        "workers=0",
        "device=cpu",
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shape, line = done.stdout.splitlines()[-2:]
    assert shape == "(4, 3, 32, 32)"
    assert "pyjpegio is not installed" in line


def test_warnings_of_pil_are_no_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    data = jpeg()
    body = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(30)
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(path).size == (64, 48)
