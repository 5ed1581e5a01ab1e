from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from research.data.frames.letterbox import Letterbox
from tests.conftest import picture

SIDES = st.integers(1, 4000)
SIZES = st.integers(8, 640)
FRACTIONS = st.floats(0, 1, width=32)


def in_order(corners: tuple[float, float, float, float]) -> list[float]:
    x0, y0, x1, y1 = corners
    return [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]


@given(SIDES, SIDES, SIZES, st.tuples(FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS), st.booleans())
def test_boxes_come_back_within_half_a_pixel(
    height: int, width: int, size: int, corners: tuple[float, ...], single: bool
) -> None:
    box = np.array([in_order(corners)], dtype=np.float32 if single else np.float64)  # type: ignore[arg-type]
    letterbox = Letterbox.of(height, width, size)
    mapped = letterbox.boxes(box)
    back = letterbox.inverse(mapped)
    assert mapped.dtype == back.dtype == box.dtype
    assert (np.abs(back - box * [width, height, width, height]) <= 0.5).all()


@given(SIDES, SIDES, SIZES)
def test_the_image_fits_touches_two_sides_and_is_centred(
    height: int, width: int, size: int
) -> None:
    box = Letterbox.of(height, width, size)
    assert max(box.width, box.height) == size
    assert 0 <= size - box.width - 2 * box.pad_x <= 1
    assert 0 <= size - box.height - 2 * box.pad_y <= 1
    assert abs(box.width - width * box.scale) <= 0.5 or box.width == 1
    assert abs(box.height - height * box.scale) <= 0.5 or box.height == 1


def test_a_landscape_by_hand() -> None:
    """640×480 in 384²: scale 0.6, 48 rows of black above and below."""
    box = Letterbox.of(480, 640, 384)
    assert (box.scale, box.width, box.height, box.pad_x, box.pad_y) == (0.6, 384, 288, 0, 48)
    pixels = np.array([[64, 48, 320, 240]]) / [640, 480, 640, 480]
    mapped = box.boxes(pixels) * 384
    np.testing.assert_allclose(mapped, [[38.4, 28.8 + 48, 192, 144 + 48]])


def test_predictions_in_the_black_are_clipped_to_the_image() -> None:
    box = Letterbox.of(480, 640, 384)
    back = box.inverse(np.array([[0.0, 0.0, 1.0, 1.0]]))
    np.testing.assert_allclose(back, [[0, 0, 640, 480]])


@pytest.mark.parametrize(("width", "height"), [(64, 48), (31, 90), (7, 7), (300, 20), (1000, 1)])
def test_the_canvas_is_a_bilinear_resize_on_black(width: int, height: int) -> None:
    source = picture("spots", 3, (width, height))
    box = Letterbox.of(height, width, 40)
    expected = np.zeros((40, 40, 3), dtype=np.uint8)
    resized = source.resize((box.width, box.height), Image.Resampling.BILINEAR)
    inside = np.s_[box.pad_y : box.pad_y + box.height, box.pad_x : box.pad_x + box.width]
    expected[inside] = np.asarray(resized)
    np.testing.assert_array_equal(box.image(source), expected)


def test_a_marked_object_lies_in_its_box() -> None:
    """The box and the pixels of a white patch land in the same place, at an odd aspect ratio."""
    pixels = np.zeros((90, 210, 3), dtype=np.uint8)
    pixels[30:60, 70:140] = 255
    box = Letterbox.of(90, 210, 128)
    canvas = box.image(Image.fromarray(pixels))[..., 0] > 127
    rows, columns = np.flatnonzero(canvas.any(1)), np.flatnonzero(canvas.any(0))
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    mapped = box.boxes(np.array([[70 / 210, 30 / 90, 140 / 210, 60 / 90]]))[0] * 128
    np.testing.assert_allclose(mapped, found, atol=0.75)
