from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import idctn
from torch import Tensor

from research.compression.dct import block_dct, rgb_to_ycbcr, ycbcr_to_rgb
from research.compression.decoder import Decoder
from research.compression.selection import Selection, select_frequencies

ALL = tuple(range(64))
FULL = Selection(ALL, ALL)


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 255


def coefficients(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """All of them, full range, on JPEG's scale."""
    y, cbcr = rgb_to_ycbcr(rgb)
    return block_dct(y - 128), block_dct(cbcr - 128)


@pytest.mark.parametrize("range_", ["full", "studio"])
def test_every_coefficient_gives_the_image_with_halved_chroma(range_: str) -> None:
    decoder = Decoder(FULL, range_)
    y, cbcr = coefficients(images())
    rebuilt = decoder(*decoder.to_range(y, cbcr))
    torch.testing.assert_close(rebuilt, ycbcr_to_rgb(*rgb_to_ycbcr(images())), atol=2e-3, rtol=0)


def test_studio_coefficients_decode_by_the_matrix_of_bt601() -> None:
    # Random planes of the studio range, decoded by the published integer-free matrix
    # (ITU-R BT.601-7, section 2.5) instead of by way of the full range.
    generator = torch.Generator().manual_seed(1)
    y = 16 + 219 * torch.rand(1, 16, 16, generator=generator)
    flat = 16 + 224 * torch.rand(1, 2, 1, 1, generator=generator)
    cbcr = flat.expand(1, 2, 8, 8).contiguous()
    decoded = Decoder(FULL, "studio")(block_dct(y - 128), block_dct(cbcr - 128))
    luma, (cb, cr) = 1.164383 * (y - 16), (flat - 128).flatten()
    red = luma + 1.596027 * cr
    green = luma - 0.391762 * cb - 0.812968 * cr
    blue = luma + 2.017232 * cb
    torch.testing.assert_close(decoded, torch.stack([red, green, blue], 1), atol=5e-3, rtol=0)


@pytest.mark.parametrize("order", ["corner", "zigzag"])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_other_frequencies_are_zero(window: int, order: str) -> None:
    kept = select_frequencies(window, order)  # type: ignore[arg-type]
    y, cbcr = coefficients(images(1, 16))
    decoded = Decoder(Selection(kept, kept), "full")(y[:, list(kept)], cbcr[:, :, list(kept)])
    luma = np.zeros((16, 16))
    for row in range(2):
        for col in range(2):
            block = np.zeros(64)
            block[list(kept)] = y[0, list(kept), row, col]
            pixels = idctn(block.reshape(8, 8), norm="ortho") + 128
            luma[8 * row : 8 * row + 8, 8 * col : 8 * col + 8] = pixels
    # Luma comes back from RGB by the same weights, whatever the chroma.
    back = rgb_to_ycbcr(decoded)[0][0]
    np.testing.assert_allclose(back.numpy(), luma, atol=2e-3)


@pytest.mark.parametrize("range_", ["full", "studio"])
def test_an_empty_plane_is_neutral(range_: str) -> None:
    y, cbcr = coefficients(images(1))
    grey = Decoder(Selection(ALL, ()), range_)
    decoded = grey(*grey.to_range(y, cbcr[:, :, :0]))
    expected = rgb_to_ycbcr(images(1))[0][:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(decoded, expected, atol=2e-3, rtol=0)
    flat = Decoder(Selection((), ALL), range_)
    luma = rgb_to_ycbcr(flat(*flat.to_range(y[:, :0], cbcr)))[0]
    torch.testing.assert_close(luma, torch.full_like(luma, 128), atol=2e-3, rtol=0)


def test_mixed_precision_does_not_round_the_image() -> None:
    decoder = Decoder(FULL, "studio")
    y, cbcr = decoder.to_range(*coefficients(images()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = decoder(y, cbcr)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, decoder(y, cbcr))


@pytest.mark.parametrize("range_", ["full", "studio"])
def test_a_decoder_of_a_double_network_computes_in_float32(range_: str) -> None:
    decoder = Decoder(Selection(ALL[:10], ALL[:3]), range_)
    y, cbcr = coefficients(images())
    y, cbcr = decoder.to_range(y[:, :10], cbcr[:, :, :3])
    decoded = decoder(y, cbcr)
    assert torch.equal(decoder.double()(y.double(), cbcr.double()), decoded)
    assert decoder.to_range(y.half(), cbcr.half())[0].dtype == torch.float16
