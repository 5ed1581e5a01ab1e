from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from research.data.frames.frame import SkipFrame
from research.data.frames.letterbox import Letterbox
from research.data.rgbx.arrays import (
    ARRAYS,
    RANGES,
    Form,
    Headers,
    inspect,
    letterboxed,
    pictures,
    read_array,
)
from research.utils.errors import DamagedImage, UserError


def noise(
    height: int = 20, width: int = 30, channels: int = 5, dtype: str = "uint8"
) -> NDArray[np.generic]:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, RANGES[dtype] + 1, (height, width, channels)).astype(dtype)


def saved(path: Path, array: NDArray[np.generic]) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_header_tells_what_the_pixels_are(tmp_path: Path, dtype: str) -> None:
    array = noise(dtype=dtype)
    for name, stored in {
        "plain": array,
        "fortran": np.asfortranarray(array),
        "swapped": array.astype(array.dtype.newbyteorder()),
    }.items():
        path = saved(tmp_path / f"{name}.npy", stored)
        header = inspect(path)
        assert (header.height, header.width, header.form) == (20, 30, (5, dtype))
        assert ARRAYS.size(path) == (30, 20)
        read = read_array(path, Form(5, dtype))
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype


FLOATS = noise().astype(np.float32)
FLOATS[4, 7, 2] = FLOATS[4, 8, 0] = FLOATS[19, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (FLOATS, "float32, 3 NaN, the first at row 4 column 7 channel 2: store uint8 or uint16"),
        (noise().astype(np.float64), "float64, without NaN: store uint8 or uint16"),
        (noise().astype(np.int32), "int32: store uint8 or uint16"),
        (noise(channels=3), "shape 20×30×3: store red, green, blue and at least one more channel"),
        (noise()[..., 0], r"shape 20×30: store \(height, width, channels\)$"),
        (np.moveaxis(noise(), -1, 0), r"shape 5×20×30: .*np.moveaxis\(array, 0, -1\)"),
        (noise(7), "shape 7×30×5: a side is under 8 pixels"),
        (np.uint8(3), "shape a single number"),
        (np.array([{"a": 1}]), "is unreadable: replace it"),
    ],
)
def test_an_array_that_is_no_frame_says_why(
    tmp_path: Path, array: NDArray[np.generic], told: str
) -> None:
    path = saved(tmp_path / "x.npy", array)
    with pytest.raises(SkipFrame, match=f"its array x.npy.*{told}") as caught:
        inspect(path)
    assert caught.value.kind == "invalid"
    assert "\n" not in str(caught.value)
    with pytest.raises(DamagedImage, match=r"x\.npy: "):
        read_array(path, Form(5, "uint8"))


def claiming(shape: tuple[int, ...]) -> bytes:
    content = io.BytesIO()
    told = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, told)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (lambda whole: b"", "empty"),
        (lambda whole: b"no array at all, but some text", "not an image"),
        (lambda whole: whole[:-1], "truncated"),
        (lambda whole: whole[:200], "truncated"),
        (lambda whole: whole[:20], "unreadable"),
        (lambda whole: whole.replace(b"'shape': (", b"'shape': ]"), "unreadable"),
        (lambda whole: whole.replace(b"'shape': (", b"'shape': (((("), "unreadable"),
        (lambda whole: claiming((20, -30, 5)) + whole[128:], "unreadable"),
        (lambda whole: claiming((2**70, 30, 5)) + whole[128:], "unreadable"),
        (lambda whole: claiming((3_000_000, 3_000_000, 5)) + whole[128:], "truncated"),
    ],
)
def test_a_damaged_file_has_a_kind(tmp_path: Path, content: object, kind: str) -> None:
    path = saved(tmp_path / "x.npy", noise())
    path.write_bytes(content(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(SkipFrame, match=f"its array x.npy is {kind}: replace it"):
        inspect(path)
    with pytest.raises(DamagedImage) as caught:
        read_array(path, Form(5, "uint8"))
    assert caught.value.kind == kind.replace(" ", "_")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SkipFrame, match=r"its array gone.npy is not there") as caught:
        inspect(tmp_path / "gone.npy")
    assert caught.value.kind == "missing_file"
    with pytest.raises(DamagedImage, match="No such file"):
        read_array(tmp_path / "gone.npy", Form(5, "uint8"))


def test_a_file_of_another_form_than_the_set_is_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npy", noise(channels=4))
    with pytest.raises(DamagedImage, match="4 channels of uint8, expected 5 channels") as caught:
        read_array(path, Form(5, "uint8"))
    assert caught.value.kind == "wrong_form"


@pytest.mark.parametrize(
    ("odd", "told"), [({"dtype": "uint16"}, "5 channels of uint16"), ({"channels": 4}, "4 chann")]
)
def test_the_first_file_that_differs_from_most_is_named(
    tmp_path: Path, odd: dict[str, object], told: str
) -> None:
    headers = Headers()
    for number in range(6):
        array = noise(**odd) if number in (0, 4) else noise()  # type: ignore[arg-type]
        headers.files.size(saved(tmp_path / f"{number}.npy", array))
    with pytest.raises(UserError, match=rf"0\.npy: {told}.* 4 other files have 5 channels of uint"):
        headers.common()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (90, 31), (40, 40), (13, 200), (33, 9)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_canvas_is_pils_antialiased_bilinear_resize(
    height: int, width: int, dtype: str
) -> None:
    array = noise(height, width, dtype=dtype)
    canvas = letterboxed(array, 40)
    assert canvas.dtype == array.dtype
    box = Letterbox.of(height, width, 40)
    expected = np.zeros((5, 40, 40))
    for channel in range(5):
        plane = Image.fromarray(array[..., channel].astype(np.float32))
        resized = plane.resize((box.width, box.height), Image.Resampling.BILINEAR)
        rows, columns = slice(box.pad_y, box.pad_y + box.height), slice(box.pad_x, None)
        expected[channel, rows, columns][:, : box.width] = resized
    # Half a level for rounding; what is left are sums in another order.
    assert np.abs(canvas - expected).max() <= 0.5 + 1e-6 * RANGES[dtype]


def test_for_people_the_colours_come_first_and_deep_channels_are_stretched() -> None:
    shallow = noise()
    panels = pictures(shallow)
    assert [panel.size for panel in panels] == [(30, 20)] * 3
    np.testing.assert_array_equal(np.asarray(panels[0]), shallow[..., :3])
    np.testing.assert_array_equal(np.asarray(panels[2]), shallow[..., [4, 4, 4]])
    deep = noise(dtype="uint16")
    deep[..., 3] = 7000 + deep[..., 3] // 655
    deep[..., 4] = 9  # constant
    colours, thermal, event = (np.asarray(panel).astype(int) for panel in pictures(deep))
    assert np.abs(colours - deep[..., :3] / 257).max() <= 0.51
    assert (thermal.min(), thermal.max()) == (0, 255)
    assert not event.any()
