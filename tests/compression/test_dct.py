from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from research.compression.dct import (
    block_dct,
    block_idct,
    dct_basis,
    from_blocks,
    rgb_to_ycbcr,
    studio_affine,
    to_blocks,
    ycbcr_to_rgb,
)


def planes(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 255


shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31 - 1)
)


def test_dct_equals_scipy_both_ways() -> None:
    plane = planes(2, 48, 40) - 128
    blocks = plane.numpy().astype(np.float64).reshape(2, 6, 8, 5, 8).transpose(0, 1, 3, 2, 4)
    expected = np.asarray(scipy.fft.dctn(blocks, axes=(-2, -1), norm="ortho"))
    coefficients = block_dct(plane)
    assert coefficients.shape == (2, 64, 6, 5)
    assert coefficients.dtype == torch.float32
    result = coefficients.movedim(1, -1).unflatten(-1, (8, 8)).numpy()
    assert np.abs(result - expected).max() <= 1e-4

    back = np.asarray(scipy.fft.idctn(result.astype(np.float64), axes=(-2, -1), norm="ortho"))
    picture = back.transpose(0, 1, 3, 2, 4).reshape(2, 48, 40)
    assert np.abs(block_idct(coefficients).numpy() - picture).max() <= 1e-4


def test_frequency_index_is_row_major() -> None:
    vertical = torch.cos(torch.pi * (2 * torch.arange(8.0) + 1) * 3 / 16)[:, None].expand(8, 8)
    energy = block_dct(vertical)[:, 0, 0].abs()
    assert energy.argmax() == 8 * 3
    assert energy.sum() - energy.max() < 1e-4


def test_basis_is_orthonormal() -> None:
    basis = dct_basis(torch.float64)
    torch.testing.assert_close(basis @ basis.T, torch.eye(64, dtype=torch.float64))


@settings(deadline=None)
@given(shapes)
def test_blocks_round_trip_exactly(shape: tuple[int, int, int, int]) -> None:
    batch, rows, cols, seed = shape
    plane = planes(batch, 8 * rows, 8 * cols, seed=seed)
    blocks = to_blocks(plane)
    assert blocks.shape == (batch, rows, cols, 64)
    assert torch.equal(blocks[0, -1, -1].view(8, 8), plane[0, -8:, -8:])
    assert torch.equal(from_blocks(blocks), plane)


@settings(deadline=None)
@given(shapes)
def test_dct_round_trips_and_keeps_energy(shape: tuple[int, int, int, int]) -> None:
    batch, rows, cols, seed = shape
    plane = planes(batch, 8 * rows, 8 * cols, seed=seed)
    coefficients = block_dct(plane)
    torch.testing.assert_close(block_idct(coefficients), plane, rtol=0, atol=1e-3)
    torch.testing.assert_close(coefficients.square().sum(), plane.square().sum(), rtol=1e-5, atol=0)


def test_some_rows_of_the_basis_give_those_frequencies() -> None:
    plane = planes(3, 16, 24)
    frequencies = [9, 0, 63]
    torch.testing.assert_close(
        block_dct(plane, dct_basis()[frequencies]), block_dct(plane)[:, frequencies]
    )


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="12×16"):
        block_dct(torch.zeros(12, 16))
    with pytest.raises(ValueError, match="not 16"):
        block_idct(torch.zeros(16, 2, 2))
    with pytest.raises(ValueError, match="not 63"):
        from_blocks(torch.zeros(2, 2, 63))
    with pytest.raises(ValueError, match="even sides"):
        rgb_to_ycbcr(torch.zeros(1, 3, 8, 9))


def test_colours_are_those_of_pil() -> None:
    small = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    rgb = small.repeat(2, axis=0).repeat(2, axis=1)  # chroma means of equal pixels are exact
    expected = torch.from_numpy(np.array(Image.fromarray(rgb).convert("YCbCr"))).float()
    y, cbcr = rgb_to_ycbcr(torch.from_numpy(rgb).permute(2, 0, 1)[None].float())
    # PIL rounds down, in fixed point.
    assert (y[0] - 0.5 - expected[..., 0]).abs().max() <= 0.55
    assert (cbcr[0] - 0.5 - expected[::2, ::2, 1:].permute(2, 0, 1)).abs().max() <= 0.55


def test_chroma_is_the_mean_of_four_pixels() -> None:
    rgb = planes(1, 3, 4, 6)
    means = rgb.unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean((3, 5))
    _, expected = rgb_to_ycbcr(means.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(rgb_to_ycbcr(rgb)[1], expected)


@settings(deadline=None)
@given(st.tuples(*[st.floats(0, 255, width=32)] * 3))
def test_flat_colours_survive_ycbcr_and_back(colour: tuple[float, float, float]) -> None:
    rgb = torch.tensor(colour)[None, :, None, None].expand(1, 3, 4, 4)
    torch.testing.assert_close(ycbcr_to_rgb(*rgb_to_ycbcr(rgb)), rgb, rtol=0, atol=1e-3)


def test_studio_range_is_an_affine_map_of_coefficients() -> None:
    scale_y, shift_y, scale_c, shift_c = studio_affine()
    plane = planes(16, 16)
    for expected, scale, shift in [
        (plane * 219 / 255 + 16, scale_y, shift_y),
        ((plane - 128) * 224 / 255 + 128, scale_c, shift_c),
    ]:
        coefficients = block_dct(plane - 128) * scale
        coefficients[0] += 8 * shift
        torch.testing.assert_close(coefficients, block_dct(expected - 128), rtol=0, atol=1e-3)
