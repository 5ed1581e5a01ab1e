from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import jpeglib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from research.compression.dct import block_idct
from research.compression.jpeg import UnsupportedJpeg, read_planes
from research.compression.jpeg_header import MAX_PIXELS, read_header, unsupported_reason
from research.utils.errors import DamagedImage

MakeJpeg = Callable[..., Path]
SAMPLINGS = ["444", "422", "440", "420", "grey"]


def encoded(mode: str = "RGB", side: int = 32, **options: object) -> bytes:
    """A JPEG file as PIL writes it."""
    file = io.BytesIO()
    ramp = np.add.outer(np.arange(side), 3 * np.arange(side))[..., None] * np.array([1, 2, 3])
    image = Image.fromarray((ramp % 256).astype(np.uint8)).convert(mode)
    image.save(file, "JPEG", **options)
    return file.getvalue()


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def frame(data: bytes) -> int:
    """Where the body of the baseline frame header starts: precision, height, width, …"""
    return data.index(b"\xff\xc0") + 4


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(48, 64), (37, 51), (33, 16)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_planes_equal_those_of_a_second_reader(
    make_jpeg: MakeJpeg, sampling: str, size: tuple[int, int], progressive: bool
) -> None:
    path = make_jpeg(*size, sampling, progressive=progressive)
    planes = read_planes(path)
    assert planes.header.progressive == progressive
    other = jpeglib.read_dct(str(path))
    ours = (planes.y, planes.cb, planes.cr)
    for index, (plane, theirs) in enumerate(zip(ours, (other.Y, other.Cb, other.Cr), strict=True)):
        if theirs is None:
            assert plane is None
            continue
        expected = theirs.astype(np.int32) * other.get_component_qt(index)
        np.testing.assert_array_equal(plane, expected.reshape(*expected.shape[:2], 64))
    assert planes.y.shape[:2] == (-(-size[0] // 8), -(-size[1] // 8))
    assert np.abs(planes.y).max() > 0


@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
def test_inverse_of_the_planes_is_the_decoded_picture(
    make_jpeg: MakeJpeg, size: tuple[int, int]
) -> None:
    path = make_jpeg(*size, "grey")
    plane = block_idct(torch.from_numpy(read_planes(path).y).double().permute(2, 0, 1)) + 128
    ours = plane[: size[0], : size[1]].clamp(0, 255)
    theirs = torch.from_numpy(np.array(Image.open(path))).double()
    assert (ours - theirs).abs().max() <= 1


def test_crop_is_a_part_of_the_dequantised_plane(make_jpeg: MakeJpeg) -> None:
    planes = read_planes(make_jpeg(64, 80, "420"))
    crop = planes.planes[0].crop(2, 3, 4, 5)
    blocks = crop.reshape(4, 8, 5, 8).transpose(0, 2, 1, 3).reshape(4, 5, 64)
    np.testing.assert_array_equal(blocks, planes.y[2:6, 3:8])


@pytest.mark.parametrize(
    ("sampling", "subsampling"),
    [("444", (1, 1)), ("422", (2, 1)), ("440", (1, 2)), ("420", (2, 2)), ("grey", (1, 1))],
)
def test_header_of_what_is_read_directly(
    make_jpeg: MakeJpeg, sampling: str, subsampling: tuple[int, int]
) -> None:
    header = read_header(make_jpeg(37, 51, sampling).read_bytes())
    assert (header.height, header.width, header.precision) == (37, 51, 8)
    assert header.color == ("grey" if sampling == "grey" else "ycbcr")
    assert header.subsampling == subsampling
    assert not header.progressive
    assert unsupported_reason(header) is None


def test_factors_may_be_written_unreduced(tmp_path: Path) -> None:
    grey = encoded("L")
    doubled = patched(grey, frame(grey) + 7, b"\x22")
    assert unsupported_reason(read_header(doubled)) is None
    assert read_header(doubled).subsampling == (1, 1)
    for name, data in [("plain.jpg", grey), ("doubled.jpg", doubled)]:
        (tmp_path / name).write_bytes(data)
    np.testing.assert_array_equal(
        read_planes(tmp_path / "plain.jpg").y, read_planes(tmp_path / "doubled.jpg").y
    )
    colour = encoded(subsampling=0)
    for component in range(3):
        colour = patched(colour, frame(colour) + 7 + 3 * component, b"\x22")
    assert unsupported_reason(read_header(colour)) is None
    assert read_header(colour).subsampling == (1, 1)


def test_unsupported_files_have_a_reason(make_jpeg: MakeJpeg) -> None:
    def reason(data: bytes) -> str | None:
        return unsupported_reason(read_header(data))

    rgb = encoded()
    assert reason(encoded("CMYK")) == "cmyk"
    assert reason(encoded(keep_rgb=True)) == "rgb"
    assert reason(make_jpeg(32, 64, "411").read_bytes()) == "sampling"
    assert reason(make_jpeg(32, 32, "420", arithmetic=True).read_bytes()) == "arithmetic"
    assert reason(patched(rgb, frame(rgb), b"\x0c")) == "twelve_bit"
    assert reason(patched(rgb, frame(rgb) - 3, b"\xc3")) == "lossless"
    assert reason(patched(rgb, frame(rgb) + 7, b"\x11\x00\x02\x22")) == "sampling"
    assert reason(encoded(side=15)) == "tiny"
    assert reason(encoded(side=15, subsampling=0)) is None


def test_planes_of_an_unsupported_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cmyk.jpg"
    path.write_bytes(encoded("CMYK"))
    with pytest.raises(UnsupportedJpeg) as error:
        read_planes(path)
    assert error.value.reason == "cmyk"


def test_colour_is_decided_as_libjpeg_does() -> None:
    def colour(data: bytes) -> str:
        return read_header(data).color

    data = encoded()
    length = int.from_bytes(data[4:6], "big")
    assert data[2:4] == b"\xff\xe0"
    bare = data[:2] + data[4 + length :]
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    ids = bare
    for component, letter in enumerate(b"RGB"):
        ids = patched(ids, frame(ids) + 6 + 3 * component, bytes([letter]))
    assert colour(bare) == "ycbcr"
    assert colour(ids) == "rgb"
    assert colour(bare[:2] + adobe + b"\x00" + bare[2:]) == "rgb"
    assert colour(bare[:2] + adobe + b"\x01" + bare[2:]) == "ycbcr"
    assert colour(data[: 4 + length] + adobe + b"\x00" + data[4 + length :]) == "ycbcr"


def test_thumbnails_and_fill_bytes_are_skipped(tmp_path: Path) -> None:
    data, thumbnail = encoded(side=48), encoded(side=16)
    exif = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    header = read_header(data[:2] + exif + b"\xff\xff\xff" + data[2:])
    assert (header.width, header.height) == (48, 48)
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[:2] + exif + data[2:-2])
    with pytest.raises(DamagedImage, match="no end-of-image marker"):
        read_planes(path)  # the thumbnail's end marker does not count


@pytest.mark.parametrize("progressive", [False, True])
def test_completeness(make_jpeg: MakeJpeg, progressive: bool) -> None:
    path = make_jpeg(16, 16, "420", progressive=progressive)
    data, planes = path.read_bytes(), read_planes(path)
    path.write_bytes(data + b"trailing bytes \xff\xd8")
    np.testing.assert_array_equal(read_planes(path).y, planes.y)
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(DamagedImage) as caught:
            read_planes(path)
        assert caught.value.kind in {"empty", "not_an_image", "truncated"}, cut


def test_tables_are_found_by_their_slot(tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    path = make_jpeg(48, 48, "420")
    data = path.read_bytes()
    second = data.index(b"\xff\xdb", data.index(b"\xff\xdb") + 1)
    moved = patched(data, second + 4, b"\x03")
    for component in (1, 2):
        moved = patched(moved, frame(moved) + 8 + 3 * component, b"\x03")
    (tmp_path / "moved.jpg").write_bytes(moved)
    expected, planes = read_planes(path), read_planes(tmp_path / "moved.jpg")
    assert expected.cb is not None
    np.testing.assert_array_equal(planes.y, expected.y)
    np.testing.assert_array_equal(planes.cb, expected.cb)


def test_a_component_keeps_the_table_of_its_first_scan(tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    path = make_jpeg(48, 48, "grey", progressive=True)
    data = path.read_bytes()
    second_scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    table = b"\xff\xdb\x00\x43\x00" + bytes([255] * 64)
    changed = tmp_path / "changed.jpg"
    changed.write_bytes(data[:second_scan] + table + data[second_scan:])
    np.testing.assert_array_equal(np.array(Image.open(changed)), np.array(Image.open(path)))
    np.testing.assert_array_equal(read_planes(changed).y, read_planes(path).y)


def test_tables_may_have_sixteen_bits(tmp_path: Path) -> None:
    data = encoded("L")
    at = data.index(b"\xff\xdb")
    wide = b"\xff\xdb\x00\x83\x10" + np.arange(300, 364, dtype=">u2").tobytes()
    data = data[:at] + wide + data[at + 69 :]
    data = data.replace(b"\xff\xc0", b"\xff\xc1")  # baseline proper knows 8-bit tables only
    path = tmp_path / "wide.jpg"
    path.write_bytes(data)
    other = jpeglib.read_dct(str(path))
    assert other.qt.max() == 363
    expected = other.Y.astype(np.int32) * other.get_component_qt(0)
    np.testing.assert_array_equal(read_planes(path).y, expected.reshape(4, 4, 64))


def oversized(data: bytes, height: int, width: int) -> bytes:
    at = frame(data) + 1
    return patched(data, at, height.to_bytes(2, "big") + width.to_bytes(2, "big"))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("empty", b""),
        ("not_an_image", b"just some text, renamed"),
        ("not_an_image", b"\x89PNG\r\n\x1a\n"),
        ("truncated", encoded()[:2]),
        ("truncated", encoded()[:100]),
        ("truncated", encoded()[:-200]),
        ("truncated", encoded()[:-2]),
        ("too_small", encoded(side=1)),
        ("too_small", encoded(side=7)),
        ("oversized", oversized(encoded(), 65500, 65500)),
        ("oversized", oversized(encoded(), 13000, 13000)),
        ("unreadable", b"\xff\xd8\xff\xd9"),
        ("unreadable", encoded()[:2] + encoded()),
        ("unreadable", encoded().replace(b"\xff\xc0", b"\xff\xc5")),
        ("unreadable", encoded().replace(b"\xff\xdb", b"\xff\xfe")),
    ],
)
def test_damage_has_a_kind(tmp_path: Path, kind: str, data: bytes) -> None:
    path = tmp_path / "damaged.jpg"
    path.write_bytes(data)
    with pytest.raises(DamagedImage) as error:
        read_planes(path)
    assert error.value.kind == kind


def test_an_oversized_header_is_refused_without_the_rest() -> None:
    data = oversized(encoded(), 65500, 65500)
    with pytest.raises(DamagedImage) as error:
        read_header(data[: data.index(b"\xff\xda") + 2 + 12])
    assert error.value.kind == "oversized"
    side = int(MAX_PIXELS**0.5)
    assert read_header(oversized(encoded(), side, side)).width == side


def test_an_error_of_libjpeg_is_unreadable(tmp_path: Path) -> None:
    data = encoded()
    path = tmp_path / "tables.jpg"
    lengths = data.index(b"\xff\xc4") + 5
    path.write_bytes(patched(data, lengths, b"\xff" * 16))  # a Huffman table of 4080 codes
    with pytest.raises(DamagedImage) as error:
        read_planes(path)
    assert error.value.kind == "unreadable"


def test_a_blank_image_of_few_bytes_is_not_taken_for_oversized(tmp_path: Path) -> None:
    path = tmp_path / "blank.jpg"
    blank: NDArray[np.uint8] = np.full((2048, 2048, 3), 128, np.uint8)
    Image.fromarray(blank).save(path, progressive=True, optimize=True)
    assert path.stat().st_size < 2048 * 2048 / 64
    assert not read_planes(path).y[..., 1:].any()


WHOLE = encoded(progressive=True, side=24)
DAMAGES = ("empty", "not_an_image", "truncated", "oversized", "too_small", "unreadable")
UNUSABLE = ("lossless", "arithmetic", "twelve_bit", "cmyk", "rgb", "sampling", "tiny")


def counted_as(data: bytes) -> str | None:
    """The word under which a file is counted; ``None`` if its coefficients can be used."""
    try:
        return unsupported_reason(read_header(data))
    except DamagedImage as damage:
        return damage.kind


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), max_size=8),
    st.integers(0, len(WHOLE)),
)
def test_corrupt_headers_are_damage_or_unsupported(changes: dict[int, int], cut: int) -> None:
    data = bytearray(WHOLE)
    for at, value in changes.items():
        data[at] = value
    for version in (bytes(data), bytes(data[:cut])):
        assert counted_as(version) in {None, *UNUSABLE, *DAMAGES}


def test_paths_may_contain_any_letters(tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    odd = tmp_path / "grün 图.jpg"
    shutil.copy(make_jpeg(16, 16, "420"), odd)
    assert read_planes(str(odd)).header.width == 16
