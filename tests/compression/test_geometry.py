from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from research.compression.dct import block_dct, block_idct, rgb_to_ycbcr, ycbcr_to_rgb
from research.compression.geometry import (
    crop_and_resize,
    flip_channels,
    flip_signs,
    resize,
    resize_operator,
    snap_box,
)
from research.compression.jpeg import read_planes
from research.compression.jpeg_header import Header
from research.compression.selection import Selection, select_frequencies

MakeJpeg = Callable[..., Path]
ALL = tuple(range(64))
FULL = Selection(ALL, ALL)
SAMPLINGS = ["444", "422", "440", "420", "grey"]


def blocks_of(plane: Tensor) -> NDArray[np.float32]:
    """[H, W] grey levels to [H/8, W/8, 64] coefficients."""
    return block_dct(plane - 128).movedim(0, -1).numpy()


def plane_of(blocks: NDArray[np.generic]) -> Tensor:
    """The inverse, in float64."""
    return block_idct(torch.from_numpy(blocks.astype(np.float64)).movedim(-1, 0)) + 128


def layout_of(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """[rows, cols, 64] to the layout of the plane, [8·rows, 8·cols]."""
    rows, cols, _ = blocks.shape
    return blocks.reshape(rows, cols, 8, 8).transpose(0, 2, 1, 3).reshape(8 * rows, 8 * cols)


def random_plane(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.rand(8 * rows, 8 * cols, generator=torch.Generator().manual_seed(seed)) * 255


def resized(plane: Tensor, height: int, width: int) -> Tensor:
    return F.resize(plane[None], [height, width], antialias=True)[0]


def header(height: int, width: int, across: int, down: int) -> Header:
    sampling = ((across, down), (1, 1), (1, 1))
    return Header(width, height, 3, sampling, 8, False, "ycbcr", "huffman")


sides = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 28), st.integers(1, 28), st.integers(0, 2**31 - 1))
def test_resize_equals_that_of_the_pixels(
    rows: int, cols: int, out_rows: int, out_cols: int, seed: int
) -> None:
    plane = random_plane(rows, cols, seed)
    result = resize(layout_of(blocks_of(plane)), out_rows, out_cols, ALL)
    assert result.shape == (out_rows, out_cols, 64)
    assert result.dtype == np.float32
    expected = resized(plane, 8 * out_rows, 8 * out_cols)
    assert (plane_of(result) - expected).abs().max() <= 1e-2


@settings(max_examples=20, deadline=None)
@given(sides, sides, st.integers(1, 28), st.integers(1, 28))
def test_resize_is_the_product_with_its_operators(
    rows: int, cols: int, out_rows: int, out_cols: int
) -> None:
    blocks = blocks_of(random_plane(rows, cols))
    layout = layout_of(blocks)
    product = resize_operator(rows, out_rows) @ layout @ resize_operator(cols, out_cols).T
    expected = product.reshape(out_rows, 8, out_cols, 8).transpose(0, 2, 1, 3)
    result = resize(layout, out_rows, out_cols, ALL)
    np.testing.assert_allclose(result, expected.reshape(out_rows, out_cols, 64), atol=5e-3)


def test_resize_to_the_same_size_changes_nothing() -> None:
    blocks = blocks_of(random_plane(5, 7))
    np.testing.assert_allclose(resize(layout_of(blocks), 5, 7, ALL), blocks, atol=1e-3)


@pytest.mark.parametrize(
    "frequencies",
    [
        select_frequencies(4, "corner"),
        select_frequencies(1, "corner"),
        select_frequencies(3, "zigzag"),
        (63, 0),
        (),
    ],
)
def test_selected_frequencies_equal_those_of_a_full_resize(frequencies: tuple[int, ...]) -> None:
    layout = layout_of(blocks_of(random_plane(9, 6)))
    whole = resize(layout, 4, 8, ALL)
    result = resize(layout, 4, 8, frequencies)
    np.testing.assert_allclose(result, whole[..., list(frequencies)], atol=1e-3)


@pytest.mark.parametrize("frequencies", [ALL, select_frequencies(3, "zigzag")])
def test_flip_is_the_mirrored_picture(frequencies: tuple[int, ...]) -> None:
    plane = random_plane(3, 5)
    blocks = blocks_of(plane)[..., list(frequencies)]
    mirrored = blocks_of(plane.flip(-1))[..., list(frequencies)]
    channels = torch.from_numpy(np.stack([blocks, blocks])).permute(0, 3, 1, 2)
    expected = torch.from_numpy(mirrored).permute(2, 0, 1)
    torch.testing.assert_close(flip_channels(channels, frequencies)[1], expected, rtol=0, atol=1e-3)


def test_flip_of_stored_integers_is_its_own_inverse() -> None:
    stored = torch.randint(-2000, 2000, (64, 4, 6), dtype=torch.int16)
    assert flip_channels(stored, ALL).dtype == torch.int16
    assert torch.equal(flip_channels(flip_channels(stored, ALL), ALL), stored)
    assert flip_signs((0, 1, 2, 8, 9)).tolist() == [1, -1, 1, 1, -1]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(96, 128), (75, 99)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_it_equals_cropping_and_resizing_pixels(
    make_jpeg: MakeJpeg, sampling: str, size: tuple[int, int], progressive: bool
) -> None:
    planes = read_planes(make_jpeg(*size, sampling, progressive=progressive))
    box = snap_box(planes.header, 15, 17, 47, 66)
    assert box == (2, 2, 6, 8)
    y, cbcr = crop_and_resize(planes, box, 64, FULL)
    assert y.shape == (8, 8, 64)
    assert cbcr.shape == (2, 4, 4, 64)
    assert y.dtype == cbcr.dtype == np.float32
    expected = resized(plane_of(planes.y)[16:64, 16:80], 64, 64)
    assert (plane_of(y) - expected).abs().max() <= 1e-2
    if planes.cb is None or planes.cr is None:
        assert not cbcr.any()
        return
    across, down = planes.header.subsampling
    for result, source in zip(cbcr, (planes.cb, planes.cr), strict=True):
        crop = plane_of(source)[16 // down : 64 // down, 16 // across : 80 // across]
        assert (plane_of(result) - resized(crop, 32, 32)).abs().max() <= 1e-2


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_whole_block_crop_without_resize_is_exact(make_jpeg: MakeJpeg, sampling: str) -> None:
    planes = read_planes(make_jpeg(96, 128, sampling))
    y, _ = crop_and_resize(planes, snap_box(planes.header, 16, 32, 64, 64), 64, FULL)
    crop = plane_of(planes.y)[16:80, 32:96]
    assert (plane_of(y) - crop).abs().max() <= 1e-3


@pytest.mark.parametrize("sampling", ["444", "422", "440", "420"])
def test_the_decoded_crop_is_the_image_of_pil(make_jpeg: MakeJpeg, sampling: str) -> None:
    path = make_jpeg(160, 192, sampling, quality=95)
    planes = read_planes(path)
    y, cbcr = crop_and_resize(planes, snap_box(planes.header, 0, 0, 160, 192), 96, FULL)
    chroma = torch.stack([plane_of(part) for part in cbcr])
    result = ycbcr_to_rgb(plane_of(y)[None], chroma[None])[0]
    image = Image.open(path).resize((96, 96), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).double()
    # The chroma is 4:2:0, so that of the expected picture is subsampled too.
    expected = ycbcr_to_rgb(*rgb_to_ycbcr(expected[None]))[0]
    assert (result - expected).abs().mean() < 2


def test_empty_selection_of_a_plane_gives_an_empty_array(make_jpeg: MakeJpeg) -> None:
    planes = read_planes(make_jpeg(64, 64, "420"))
    box = snap_box(planes.header, 0, 0, 64, 64)
    y, cbcr = crop_and_resize(planes, box, 32, Selection((0,), ()))
    assert (y.shape, cbcr.shape) == ((4, 4, 1), (2, 2, 2, 0))
    y, cbcr = crop_and_resize(planes, box, 32, Selection((), (0, 1)))
    assert (y.shape, cbcr.shape) == ((4, 4, 0), (2, 2, 2, 2))


def test_size_must_be_a_multiple_of_16(make_jpeg: MakeJpeg) -> None:
    planes = read_planes(make_jpeg(64, 64, "420"))
    with pytest.raises(ValueError, match="size=40"):
        crop_and_resize(planes, snap_box(planes.header, 0, 0, 64, 64), 40, FULL)


@settings(deadline=None)
@given(
    st.integers(16, 400),
    st.integers(16, 400),
    st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_snapped_box_is_the_nearest_of_whole_mcus(
    height: int, width: int, factors: tuple[int, int], fractions: tuple[float, float, float, float]
) -> None:
    across, down = factors
    top, left = fractions[0] * height, fractions[1] * width
    tall, wide = fractions[2] * (height - top), fractions[3] * (width - left)
    box = snap_box(header(height, width, across, down), top, left, tall, wide)
    for start, extent, wanted, length, step, side in [
        (box.top, box.height, top, tall, down, height),
        (box.left, box.width, left, wide, across, width),
    ]:
        assert start % step == extent % step == 0
        assert 0 <= start < start + extent <= side // (8 * step) * step
        whole = side // (8 * step) * 8 * step
        if extent > step:  # a single MCU may have been grown from nothing
            assert abs(8 * start - min(wanted, whole)) <= 4 * step
            assert abs(8 * (start + extent) - min(wanted + length, whole)) <= 4 * step


def test_an_empty_box_becomes_the_mcu_at_its_centre() -> None:
    assert snap_box(header(64, 64, 2, 2), 33, 20, 2, 2) == (4, 2, 2, 2)
    assert snap_box(header(64, 64, 1, 1), 63, 63, 1, 1) == (7, 7, 1, 1)
