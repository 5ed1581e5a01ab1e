from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from research.batch import DetectionBatch
from research.data.frames.frame import BoxXYXY
from research.data.frames.letterbox import Letterbox
from research.data.rgbx.arrays import RANGES, Pixels
from research.data.rgbx.folder import collate_arrays
from research.data.rgbx.transform import RgbxAugmentation, RgbxTransform, valid_mask

MEAN, STD = [0.1, 0.2, 0.3, 0.4, 0.05], [0.2, 0.25, 0.3, 0.15, 0.1]
NOTHING = {
    "flip": False,
    "flip_vertical": False,
    "zoom": (1.0, 1.0),
    "brightness": 0.0,
    "contrast": 0.0,
    "noise": 0.0,
    "modality_dropout": 0.0,
}


def augmentation(**changed: object) -> RgbxAugmentation:
    return RgbxAugmentation(**{**NOTHING, **changed})  # type: ignore[arg-type]


def make_batch(count: int = 6, dtype: str = "uint8", size: int = 32) -> DetectionBatch:
    """Noise of several sizes with a box in the middle."""
    rng = np.random.default_rng(0)
    shapes = [(24, 32), (32, 20), (30, 30)]
    arrays = [
        rng.integers(0, RANGES[dtype] + 1, (*shapes[n % 3], 5)).astype(dtype) for n in range(count)
    ]
    return collated(arrays, size, (0.25, 0.25, 0.75, 0.75))


def collated(arrays: list[Pixels], size: int, box: BoxXYXY) -> DetectionBatch:
    """A batch of arrays with one box each."""
    batch = collate_arrays(arrays, size)
    for row, array in enumerate(arrays):
        mapped = Letterbox.of(*array.shape[:2], size).boxes(np.array([box]))
        batch.boxes[row] = torch.from_numpy(mapped)
        batch.mask[row] = True
    return batch


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=5))
def test_the_valid_mask_is_the_area_of_the_letterbox(sizes: list[tuple[int, int]]) -> None:
    for size in (32, 97, 640):
        mask = valid_mask(torch.tensor(sizes, dtype=torch.int32), size).numpy()
        for row, (height, width) in enumerate(sizes):
            box = Letterbox.of(height, width, size)
            expected = np.zeros((size, size), bool)
            expected[box.pad_y :, box.pad_x :][: box.height, : box.width] = True
            np.testing.assert_array_equal(mask[row], expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_evaluation_normalises_and_sets_padding_to_0(dtype: str) -> None:
    batch = make_batch(dtype=dtype)
    before = batch.inputs.clone()
    everything = augmentation(flip=True, zoom=(0.5, 2.0), brightness=0.5, modality_dropout=1.0)
    found = RgbxTransform(MEAN, STD, everything).eval()(batch, None)
    assert torch.equal(batch.inputs, before)
    for image, pixels, (height, width) in zip(
        found.inputs.numpy(), before.numpy(), batch.sizes.tolist(), strict=True
    ):
        box = Letterbox.of(height, width, 32)
        inner = np.s_[:, box.pad_y : box.pad_y + box.height, box.pad_x : box.pad_x + box.width]
        mean, std = (np.array(part)[:, None, None] for part in (MEAN, STD))
        expected = np.zeros((5, 32, 32))
        expected[inner] = (pixels[inner] / float(RANGES[dtype]) - mean) / std
        np.testing.assert_allclose(image, expected, atol=1e-5)
    assert torch.equal(found.boxes, batch.boxes)


def test_a_constant_channel_stays_finite() -> None:
    batch = make_batch()
    batch.inputs[:, 4] = 51
    transform = RgbxTransform([*MEAN[:4], 0.2], [*STD[:4], 0.0], None)
    assert transform(batch, None).inputs[:, 4].abs().max() < 1e-3
    batch.inputs[:, 4] = 255  # not constant beyond the frames that were measured
    assert transform(batch, None).inputs[:, 4].max() == pytest.approx(0.8)


def test_the_range_is_that_of_the_type_of_the_batch() -> None:
    """A model that was trained on 8 bits gives the same results in 16 bits."""
    uint8 = make_batch()
    uint16 = replace(uint8, inputs=(uint8.inputs.int() * 257).to(torch.uint16))
    transform = RgbxTransform(MEAN, STD, None).eval()
    expected = transform(uint8, None).inputs
    torch.testing.assert_close(transform(uint16, None).inputs, expected, atol=1e-5, rtol=0)
    # In turn: the type is not kept from one batch to the next.
    torch.testing.assert_close(transform(uint8, None).inputs, expected)


def test_images_are_the_pixels_of_the_input() -> None:
    batch = make_batch()
    transform = RgbxTransform(MEAN, STD, None).eval()
    colours, thermal, event = transform.to_images(transform(batch, None))
    mask = valid_mask(batch.sizes, 32)[:, None]
    for image, pixels in (
        (colours, batch.inputs[:, :3]),
        (thermal, batch.inputs[:, [3, 3, 3]]),
        (event, batch.inputs[:, [4, 4, 4]]),
    ):
        assert image.dtype == torch.uint8
        assert torch.equal(image * mask, pixels)
    narrow = make_batch(dtype="uint16")
    thermal = torch.from_numpy(narrow.inputs.numpy()[:, 3] // 1000 + 26000)
    narrow.inputs[:, 3] = thermal.to(torch.uint16)
    stretched = transform.to_images(transform(narrow, None))[1].float()
    assert stretched.amax((1, 2, 3)).min() == 255
    assert stretched.amin((1, 2, 3)).max() == 0


def trained(seed: int = 0, count: int = 6, **changed: object) -> DetectionBatch:
    transform = RgbxTransform(MEAN, STD, augmentation(**changed)).train()
    return transform(make_batch(count), torch.Generator().manual_seed(seed))


def test_color_jitter_changes_the_colours_alone() -> None:
    plain, found = trained(), trained(brightness=0.2, contrast=0.3)
    assert torch.equal(found.inputs[:, 3:], plain.inputs[:, 3:])
    mask = valid_mask(plain.sizes, 32)[:, None]
    assert not (found.inputs * ~mask).any()
    mean, std = (torch.tensor(part[:3])[:, None, None] for part in (MEAN, STD))
    for old, new, valid in zip(plain.inputs, found.inputs, mask, strict=True):
        before, after = ((image[:3] * std + mean)[:, valid[0]].double() for image in (old, new))
        unclipped = (after > 1e-6) & (after < 1 - 1e-6)
        slope, shift = np.polyfit(before[unclipped].numpy(), after[unclipped].numpy(), 1)
        assert 0.7 - 1e-6 <= slope <= 1.3 + 1e-6
        np.testing.assert_allclose(after[unclipped], slope * before[unclipped] + shift, atol=1e-4)
    assert (found.inputs[:, :3] - plain.inputs[:, :3]).abs().amax((1, 2, 3)).min() > 0.01


def test_contrast_keeps_the_mean_of_the_frame_without_its_padding() -> None:
    pixels = np.random.default_rng(0).integers(100, 150, (16, 32, 5)).astype(np.uint8)
    batch = collate_arrays([pixels] * 4, 32)
    augment = augmentation(contrast=0.5)
    transform = RgbxTransform([0.0] * 5, [1.0] * 5, augment).train()
    found = transform(batch, torch.Generator().manual_seed(3)).inputs[:, :3, 8:24]
    fractions = torch.from_numpy(pixels[..., :3]).permute(2, 0, 1) / 255
    assert (found - fractions).abs().amax((1, 2, 3)).min() > 0.01
    torch.testing.assert_close(found.mean((1, 2, 3)), fractions.mean().expand(4))


def test_dropped_modalities_are_0() -> None:
    plain, found = trained(count=600), trained(count=600, modality_dropout=0.5)
    colours = found.inputs[:, :3].abs().amax((1, 2, 3)) == 0
    extra = found.inputs[:, 3:].abs().amax((1, 2, 3)) == 0
    assert not (colours & extra).any()
    # Five standard deviations of a binomial of 600.
    assert abs(int(colours.sum()) - 150) < 53
    assert abs(int(extra.sum()) - 150) < 53
    assert torch.equal(found.inputs[~colours, :3], plain.inputs[~colours, :3])
    assert torch.equal(found.inputs[~extra, 3:], plain.inputs[~extra, 3:])
    assert not trained(modality_dropout=1.0).inputs.flatten(2).abs().amax(2).all(1).any()


def test_noise_has_the_scale_of_each_channel_and_spares_padding() -> None:
    plain, found = trained(60), trained(60, noise=0.1)
    difference = found.inputs - plain.inputs
    mask = valid_mask(plain.sizes, 32)[:, None].expand_as(difference)
    assert not difference[~mask].any()
    for channel in range(5):
        std = difference[:, channel][mask[:, channel]].std()
        assert std == pytest.approx(0.1, rel=0.08)


def test_augmentation_depends_on_the_generator_and_leaves_the_batch_alone() -> None:
    changed = {"flip": True, "zoom": (0.8, 1.2), "brightness": 0.1, "noise": 0.01}
    changed["modality_dropout"] = 0.3
    one, same, other = trained(1, **changed), trained(1, **changed), trained(2, **changed)
    assert torch.equal(one.inputs, same.inputs)
    assert not torch.equal(one.inputs, other.inputs)
    batch = make_batch()
    before = batch.inputs.clone(), batch.boxes.clone()
    RgbxTransform(MEAN, STD, augmentation(**changed)).train()(
        batch, torch.Generator().manual_seed(0)
    )
    assert torch.equal(batch.inputs, before[0])
    assert torch.equal(batch.boxes, before[1])


SIDE = st.integers(40, 300)
CORNER = st.floats(0.2, 0.45)


def coordinates(height: int, width: int) -> NDArray[np.uint16]:
    """Pixels that encode their position: x in channel 3, y in channel 4, as fractions."""
    array = np.zeros((height, width, 5), np.uint16)
    array[..., 3] = np.rint((np.arange(width) + 0.5) / width * 65535)
    array[..., 4] = np.rint((np.arange(height) + 0.5)[:, None] / height * 65535)
    return array


def interpolate(plane: NDArray[np.float32], x: float, y: float) -> float:
    """Bilinear interpolation at a position in pixels, whose centres are at halves."""
    column, row = x - 0.5, y - 0.5
    left = int(np.clip(np.floor(column), 0, plane.shape[1] - 2))
    top = int(np.clip(np.floor(row), 0, plane.shape[0] - 2))
    right, low = column - left, row - top
    upper = plane[top, left] * (1 - right) + plane[top, left + 1] * right
    lower = plane[top + 1, left] * (1 - right) + plane[top + 1, left + 1] * right
    return float(upper * (1 - low) + lower * low)


@settings(max_examples=60, deadline=None)
@given(
    SIDE,
    SIDE,
    st.integers(64, 200),
    st.tuples(CORNER, CORNER, CORNER, CORNER),
    st.floats(0.6, 1.8),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_boxes_stay_on_their_pixels(
    height: int,
    width: int,
    size: int,
    corners: tuple[float, float, float, float],
    zoom: float,
    flips: bool,
    seed: int,
) -> None:
    """After letterbox, flip and zoom, within half a pixel of the file."""
    if max(height, width) > 3 * min(height, width):
        height = width  # thinner frames are only a few pixels of the canvas
    x0, y0, x1, y1 = corners[0], corners[1], 1 - corners[2], 1 - corners[3]
    augment = augmentation(flip=flips, flip_vertical=flips, zoom=(zoom, zoom))
    transform = RgbxTransform([0.0] * 5, [1.0] * 5, augment).train()
    batch = collated([coordinates(height, width)], size, (x0, y0, x1, y1))
    found = transform(batch, torch.Generator().manual_seed(seed))
    if not found.mask[0, 0]:
        assert zoom > 1
        return
    left, top, right, bottom = (found.boxes[0, 0].double().numpy() * size).tolist()
    columns, rows = found.inputs[0, 3].numpy(), found.inputs[0, 4].numpy()
    middle = (left + right) / 2, (top + bottom) / 2
    across = [interpolate(columns, edge, middle[1]) * width for edge in (left, right)]
    down = [interpolate(rows, middle[0], edge) * height for edge in (top, bottom)]
    for edges, positions, low, high, side in (
        ((left, right), across, x0, x1, width),
        ((top, bottom), down, y0, y1, height),
    ):
        cut = [edge < 1e-3 or edge > size - 1e-3 for edge in edges]
        ordered = sorted(zip(positions, cut, strict=True))
        for (position, is_cut), true in zip(ordered, (low * side, high * side), strict=True):
            if is_cut:  # the edge of the crop, inside the box
                assert low * side - 1 <= position <= high * side + 1
            else:
                assert abs(position - true) <= 0.5


@settings(max_examples=40, deadline=None)
@given(
    st.integers(40, 60),
    st.integers(40, 60),
    st.tuples(*[st.integers(6, 16)] * 4),
    st.floats(0.8, 1.25),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_boxes_enclose_painted_rectangles(
    height: int,
    width: int,
    margins: tuple[int, int, int, int],
    zoom: float,
    flips: bool,
    seed: int,
) -> None:
    x0, y0, x1, y1 = margins[0], margins[1], width - margins[2], height - margins[3]
    array = np.zeros((height, width, 4), np.uint8)
    array[y0:y1, x0:x1] = 255
    box = (x0 / width, y0 / height, x1 / width, y1 / height)
    augment = augmentation(flip=flips, zoom=(zoom, zoom))
    transform = RgbxTransform([0.0] * 4, [1.0] * 4, augment).train()
    batch = collated([array], 160, box)
    found = transform(batch, torch.Generator().manual_seed(seed))
    for channel in found.inputs[0]:
        rows, columns = np.nonzero(channel.numpy() > 0.5)
        painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        half_a_pixel = 0.5 * zoom * 160 / max(height, width)
        np.testing.assert_allclose(found.boxes[0, 0] * 160, painted, atol=half_a_pixel)
