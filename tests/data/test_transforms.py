from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import convolve1d
from torch import Tensor

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.compression.dct import block_dct, block_idct
from research.compression.selection import ZIGZAG, Selection, select_frequencies
from research.compression.statistics import Statistics, measure
from research.data.crops import CentreCrop
from research.data.readers import BitstreamReader, PixelReader
from research.data.transforms import (
    CONSTANT,
    EPSILON,
    CoefficientTransform,
    DeviceTransform,
    PixelTransform,
    flipped,
)
from tests.conftest import picture

ALL = tuple(range(64))
FULL = Selection(ALL, ALL)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(count: int = 4, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def batch(inputs: Tensor | Blocks) -> ClassificationBatch:
    count = len(inputs.y if isinstance(inputs, Blocks) else inputs)
    return ClassificationBatch(torch.arange(count), inputs, torch.zeros(count).long())


def transformed(
    transform: DeviceTransform, inputs: Tensor | Blocks, seed: int | None = None
) -> Tensor | Blocks:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    result: Tensor | Blocks = transform(batch(inputs), generator).inputs
    return result


def panel(transform: DeviceTransform, inputs: Tensor) -> Tensor:
    """Images as they are seen again behind the transform."""
    (result,) = transform.to_images(transform(batch(inputs), None))
    return result


def coefficients(
    selection: Selection, range_: str, inputs: Tensor | Blocks, statistics: Statistics | None = None
) -> Blocks:
    transform = CoefficientTransform(selection, range_, statistics, flip=True).eval()
    result = transformed(transform, inputs)
    assert isinstance(result, Blocks)
    return result


def slow(pixels: NDArray[np.uint8], range_: str) -> tuple[NDArray[np.float64], ...]:
    """Planes in their range, then scipy's DCT: luma [64, h, w] and chroma [2, 64, h/2, w/2]."""
    red, green, blue = pixels.astype(np.float64)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = 128 + (blue - y) / 1.772, 128 + (red - y) / 1.402
    if range_ == "studio":
        y = 16 + y * 219 / 255
        cb, cr = (128 + (c - 128) * 224 / 255 for c in (cb, cr))
    halved = [c.reshape(c.shape[0] // 2, 2, -1, 2).mean((1, 3)) for c in (cb, cr)]
    return blockwise(y), np.stack([blockwise(c) for c in halved])


def blockwise(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, cols = plane.shape[0] // 8, plane.shape[1] // 8
    cut = (plane - 128).reshape(rows, 8, cols, 8).transpose(0, 2, 1, 3)
    return dctn(cut, axes=(2, 3), norm="ortho").reshape(rows, cols, 64).transpose(2, 0, 1)


@pytest.mark.parametrize("range_", ["full", "studio"])
def test_coefficients_equal_those_of_the_mapped_planes(range_: str) -> None:
    selection = Selection(select_frequencies(4, "zigzag"), select_frequencies(2, "corner"))
    result = coefficients(selection, range_, images())
    for number, pixels in enumerate(images().numpy()):
        y, cbcr = slow(pixels, range_)
        np.testing.assert_allclose(result.y[number], y[list(selection.luma)], atol=1e-3)
        np.testing.assert_allclose(result.cbcr[number], cbcr[:, list(selection.chroma)], atol=1e-3)


def test_a_low_contrast_image_is_brought_to_the_studio_range_too() -> None:
    # One whose values all lie within 16…235 already: the mapping does not depend on content.
    flat = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    result = coefficients(FULL, "studio", flat)
    expected = 8 * (16 + 100 * 219 / 255 - 128)
    torch.testing.assert_close(result.y[:, 0], torch.full((1, 2, 2), expected), atol=1e-3, rtol=0)
    assert result.y[:, 1:].abs().max() < 1e-3
    assert result.cbcr.abs().max() < 1e-3
    low = (90 + images() % 30).to(torch.uint8)
    y, cbcr = slow(low[0].numpy(), "studio")
    result = coefficients(FULL, "studio", low)
    np.testing.assert_allclose(result.y[0], y, atol=1e-3)
    np.testing.assert_allclose(result.cbcr[0], cbcr, atol=1e-3)


def jpeg(path: Path, size: int = 64) -> Path:
    """4:2:0, coloured, and far enough from black and white for nothing to be clipped."""
    rng = np.random.default_rng(3)
    coarse = rng.uniform(-28, 28, (size // 8, size // 8, 3)).repeat(8, 0).repeat(8, 1)
    fine = rng.normal(0, 6, (size, size, 1)).clip(-15, 15)
    Image.fromarray((128 + coarse + fine).astype(np.uint8)).save(path, quality=80, subsampling=2)
    return path


@pytest.mark.parametrize("range_", ["full", "studio"])
def test_both_sources_agree_on_an_uncropped_file(tmp_path: Path, range_: str) -> None:
    """Up to the 8-bit roundings of a decoder.

    A pixel's luma is rounded twice, by ±0.5 each: as Y, and as the R, G and B whose weights sum to
    one; the integer IDCT is within 1 of the exact one (IEEE 1180). Its chroma is rounded as C and
    after the enlargement, by ±0.5, and as (B - Y) / 1.772 of rounded RGB, which is ±0.5 again;
    integer IDCT as before. 8 times a bound on pixels bounds each orthonormal coefficient, and the
    bitstream's own are integers here. Libjpeg's enlargement of chroma (weights 3/4, 1/4) followed
    by our 2×2 mean is a [1, 6, 1] / 8 filter, which the reference applies.
    """
    path = jpeg(tmp_path / "a.jpg")
    whole, rng = CentreCrop(1.0), np.random.default_rng(0)
    result = []
    for reader in (PixelReader(64), BitstreamReader(64, FULL)):
        sample = reader.read(path, whole, rng)
        assert sample.fallback == ""
        result.append(coefficients(FULL, range_, reader.stack([sample])))
    pixels, stream = result
    assert stream.y.std() > 5
    assert stream.cbcr.std() > 5

    planes = block_idct(stream.cbcr.double()).numpy()
    for axis in (-1, -2):
        planes = convolve1d(planes, np.array([1, 6, 1]) / 8, axis=axis, mode="nearest")
    chroma = block_dct(torch.from_numpy(planes))
    for name, difference, bound in (
        ("luma", pixels.y.double() - stream.y, 2.0),
        ("chroma", pixels.cbcr.double() - chroma, 2.5),
    ):
        assert difference.abs().max() <= 8 * bound, name
        # The roundings are independent: together they stay far below their worst case.
        assert difference.square().mean().sqrt() < 0.8, name


def test_bitstream_blocks_are_not_changed() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(-900, 900, (2, 4, 6, 3), generator=generator, dtype=torch.int16)
    cbcr = torch.randint(-900, 900, (2, 2, 2, 3, 1), generator=generator, dtype=torch.int16)
    result = coefficients(Selection((0, 1, 8), (0,)), "full", Blocks(y, cbcr))
    assert result.y.shape == (2, 3, 4, 6)
    assert result.cbcr.shape == (2, 2, 1, 2, 3)
    for channel in range(3):
        assert torch.equal(result.y[:, channel], y[..., channel].float())
    assert torch.equal(result.cbcr[:, :, 0], cbcr[..., 0].float())


@pytest.mark.parametrize("source", ["pixels", "bitstream"])
@pytest.mark.parametrize("range_", ["full", "studio"])
def test_flips_in_training_equal_flips_of_pixels(source: str, range_: str) -> None:
    selection = Selection(select_frequencies(3, "zigzag"), select_frequencies(4, "corner"))
    transform = CoefficientTransform(selection, range_, statistics(), flip=True)
    inputs = images(32, 16)
    plain = coefficients(selection, range_, inputs, statistics())
    mirrored = coefficients(
        selection, range_, torch.from_numpy(inputs.numpy()[..., ::-1].copy()), statistics()
    )
    given: Tensor | Blocks = inputs
    tolerance = 2e-3
    if source == "bitstream":
        raw = coefficients(selection, "full", inputs)
        given = Blocks(
            raw.y.permute(0, 2, 3, 1).round().to(torch.int16),
            raw.cbcr.permute(0, 1, 3, 4, 2).round().to(torch.int16),
        )
        tolerance = 0.51
    result = transformed(transform, given, seed=5)
    assert isinstance(result, Blocks)
    turned = 0
    for number in range(32):
        far, near = (
            max(
                (result.y[number] - other.y[number]).abs().max().item(),
                (result.cbcr[number] - other.cbcr[number]).abs().max().item(),
            )
            for other in (plain, mirrored)
        )
        assert min(far, near) < tolerance < max(far, near)
        turned += near < far
    assert 8 <= turned <= 24


def pixel_transform() -> DeviceTransform:
    return PixelTransform(MEAN, STD, flip=True)


def coefficient_transform() -> DeviceTransform:
    return CoefficientTransform(FULL, "studio", statistics(), flip=True)


@pytest.mark.parametrize("make", [pixel_transform, coefficient_transform])
def test_random_flips_use_the_generator_and_only_in_training(make: object) -> None:
    transform: DeviceTransform = make()  # type: ignore[operator]
    inputs = images(24, 16)

    def flat(seed: int | None) -> Tensor:
        result = transformed(transform, inputs, seed)
        return result.y if isinstance(result, Blocks) else result

    before = torch.get_rng_state()
    assert torch.equal(flat(1), flat(1))
    assert not torch.equal(flat(1), flat(2))
    assert torch.equal(torch.get_rng_state(), before)
    transform.eval()
    assert torch.equal(flat(1), flat(2))
    assert torch.equal(flat(1), flat(None))


@pytest.mark.parametrize("make", [PixelTransform, CoefficientTransform])
def test_alternating_flips_show_each_image_in_both_directions(make: object) -> None:
    """Which ones depends only on index and epoch: not on a generator, nor on the batch."""
    if make is PixelTransform:
        flips, fixed = (PixelTransform(MEAN, STD, flip=f) for f in ("alternating", False))
    else:
        flips, fixed = (
            CoefficientTransform(FULL, "full", None, flip=f) for f in ("alternating", False)
        )

    def unlike(epoch: int, index: Tensor) -> Tensor:
        """[B] bool, which images the transform has changed."""
        inputs = replace(batch(images(40, 16)[index]), index=index, epoch=epoch)
        one, two = (t.train()(inputs, None).inputs for t in (flips, fixed))
        if isinstance(one, Blocks):
            one, two = one.y, two.y
        return (one != two).flatten(1).any(1)

    index = torch.arange(40)
    first, second = unlike(1, index), unlike(2, index)
    assert torch.equal(first, ~second)
    assert torch.equal(first, unlike(3, index))
    backwards = index.flip(0)[:7]
    assert torch.equal(unlike(1, backwards), first[backwards])


def test_alternating_flips_are_of_half_the_images_and_independent() -> None:
    chosen = flipped("alternating", replace(batch(torch.zeros(2**16)), epoch=1), None).double()
    for step in (1, 2, 3, 10, 64, 1024, 2**15):
        agree = (chosen[:-step] == chosen[step:]).double().mean()
        assert agree.item() == pytest.approx(0.5, abs=0.02)
    assert chosen.mean().item() == pytest.approx(0.5, abs=0.01)


def test_flip_can_be_switched_off() -> None:
    for transform in (
        PixelTransform(MEAN, STD, flip=False),
        CoefficientTransform(FULL, "full", None, flip=False),
    ):
        one, two = (transformed(transform.train(), images(), seed) for seed in (1, 2))
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a, b)


def test_pixels_are_normalised_and_mirrored() -> None:
    transform = pixel_transform()
    inputs = images(16)
    scaled = inputs.numpy() / 255.0
    expected = (scaled - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    result = transformed(transform.eval(), inputs)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    trained = transformed(transform.train(), inputs, seed=0)
    same = [np.allclose(a, b, atol=1e-5) for a, b in zip(trained, expected, strict=True)]
    turned = [
        np.allclose(a, b[..., ::-1], atol=1e-5) for a, b in zip(trained, expected, strict=True)
    ]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 0 < sum(turned) < 16


def statistics() -> Statistics:
    """Numbers of its own for each frequency."""
    f = torch.arange(64).float()
    return Statistics(
        f - 30, 1 + f, torch.stack([2 * f, -3 * f]), torch.stack([5 + f, 7 + f]), images=1
    )


@pytest.mark.parametrize("order", ["corner", "zigzag"])
def test_statistics_are_those_of_the_selected_frequencies(order: str) -> None:
    frequencies = select_frequencies(3, order)  # type: ignore[arg-type]
    if order == "zigzag":
        assert frequencies == ZIGZAG[:9] != tuple(sorted(frequencies))
    selection = Selection(frequencies, frequencies[:4])
    plain = coefficients(selection, "full", images())
    result = coefficients(selection, "full", images(), statistics())
    for channel, f in enumerate(frequencies):
        expected = (plain.y[:, channel] - (f - 30)) / (1 + f + EPSILON)
        torch.testing.assert_close(result.y[:, channel], expected)
    for channel, f in enumerate(frequencies[:4]):
        for plane, (mean, std) in enumerate([(2 * f, 5 + f), (-3 * f, 7 + f)]):
            expected = (plain.cbcr[:, plane, channel] - mean) / (std + EPSILON)
            torch.testing.assert_close(result.cbcr[:, plane, channel], expected)


def test_what_is_constant_in_the_statistics_is_only_centred() -> None:
    """As by scikit-learn's StandardScaler: another image may have these coefficients."""
    generator = torch.Generator().manual_seed(0)
    shape = (8, 1, 32, 32)
    grey = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    measured = measure([coefficients(FULL, "full", grey.expand(-1, 3, -1, -1))], FULL)
    assert measured.cbcr_std.max() < CONSTANT < measured.y_std.min()
    result = coefficients(FULL, "full", images(), measured)
    colours = coefficients(FULL, "full", images())
    torch.testing.assert_close(result.cbcr, colours.cbcr, atol=1e-3, rtol=0)
    std = measured.y_std[:, None, None] + EPSILON
    torch.testing.assert_close(result.y, (colours.y - measured.y_mean[:, None, None]) / std)


def test_statistics_are_in_the_state_dict() -> None:
    trained = CoefficientTransform(FULL, "full", statistics(), flip=False)
    bare = CoefficientTransform(FULL, "full", None, flip=False)
    bare.load_state_dict(trained.state_dict())
    one, two = (transformed(transform.eval(), images()) for transform in (trained, bare))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("range_", ["full", "studio"])
@pytest.mark.parametrize("order", ["corner", "zigzag"])
def test_to_images_returns_the_inputs(range_: str, order: str) -> None:
    frequencies = select_frequencies(8, order)  # type: ignore[arg-type]
    transform = CoefficientTransform(
        Selection(frequencies, frequencies), range_, statistics(), flip=False
    ).eval()
    grey = images()[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(panel(transform, grey), grey)
    # A colour that does not change within an image survives the halving of chroma.
    flat = images(3, 1).expand(-1, -1, 16, 16).contiguous()
    assert torch.equal(panel(transform, flat), flat)


def test_to_images_of_a_small_window_is_blurred() -> None:
    transform = CoefficientTransform(Selection((0,), (0,)), "studio", None, flip=False).eval()
    image = torch.from_numpy(np.array(picture("spots", 0, (64, 64)))).permute(2, 0, 1)[None]
    grey = image.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
    shown = panel(transform, grey)
    mean = torch.nn.functional.avg_pool2d(grey.float(), 8)
    expected = mean.repeat_interleave(8, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(shown.float(), expected, atol=0.51, rtol=0)


def test_to_images_of_pixels() -> None:
    transform = pixel_transform().eval()
    result = panel(transform, images())
    assert result.dtype == torch.uint8
    assert torch.equal(result, images())
