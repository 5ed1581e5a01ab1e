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
    RANGES,
    ArraySpec,
    HeaderCollector,
    letterbox,
    read_array,
    read_array_header,
    to_pil_images,
)
from research.utils.errors import DamagedImage
from tests.conftest import user_error


def noise(
    height: int = 20, width: int = 30, channels: int = 5, dtype: str = "uint8"
) -> NDArray[np.generic]:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, RANGES[dtype] + 1, (height, width, channels)).astype(dtype)


def saved(path: Path, array: NDArray[np.generic]) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_headers_match_the_pixels(tmp_path: Path, dtype: str) -> None:
    array = noise(dtype=dtype)
    for name, stored in {
        "plain": array,
        "fortran": np.asfortranarray(array),
        "swapped": array.astype(array.dtype.newbyteorder()),
    }.items():
        path = saved(tmp_path / f"{name}.npy", stored)
        header = read_array_header(path)
        assert (header.height, header.width, header.spec) == (20, 30, (5, dtype))
        read = read_array(path, ArraySpec(5, dtype))
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype


FLOATS = noise().astype(np.float32)
FLOATS[4, 7, 2] = FLOATS[4, 8, 0] = FLOATS[19, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("array", "reason"),
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
def test_arrays_that_are_not_frames(
    tmp_path: Path, array: NDArray[np.generic], reason: str
) -> None:
    path = saved(tmp_path / "x.npy", array)
    with pytest.raises(SkipFrame, match=f"its array x.npy.*{reason}") as caught:
        read_array_header(path)
    assert caught.value.kind == "invalid"
    assert "\n" not in str(caught.value)
    with pytest.raises(DamagedImage, match=r"x\.npy: "):
        read_array(path, ArraySpec(5, "uint8"))


def header_of(shape: tuple[int, ...]) -> bytes:
    content = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, header)
    return content.getvalue()


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda content: b"", "empty"),
        (lambda content: b"not an array, but some text", "not an image"),
        (lambda content: content[:-1], "truncated"),
        (lambda content: content[:200], "truncated"),
        (lambda content: content[:20], "unreadable"),
        (lambda content: content.replace(b"'shape': (", b"'shape': ]"), "unreadable"),
        (lambda content: content.replace(b"'shape': (", b"'shape': (((("), "unreadable"),
        (lambda content: header_of((20, -30, 5)) + content[128:], "unreadable"),
        (lambda content: header_of((2**70, 30, 5)) + content[128:], "unreadable"),
        (lambda content: header_of((3_000_000, 3_000_000, 5)) + content[128:], "truncated"),
    ],
)
def test_kinds_of_damage(tmp_path: Path, damage: object, kind: str) -> None:
    path = saved(tmp_path / "x.npy", noise())
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(SkipFrame, match=f"its array x.npy is {kind}: replace it"):
        read_array_header(path)
    with pytest.raises(DamagedImage) as caught:
        read_array(path, ArraySpec(5, "uint8"))
    assert caught.value.kind == kind.replace(" ", "_")
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(SkipFrame, match=r"its array gone.npy does not exist") as caught:
        read_array_header(tmp_path / "gone.npy")
    assert caught.value.kind == "missing_file"
    with pytest.raises(DamagedImage, match="No such file"):
        read_array(tmp_path / "gone.npy", ArraySpec(5, "uint8"))


def test_files_with_other_channels_are_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npy", noise(channels=4))
    with pytest.raises(DamagedImage, match="4 channels of uint8, expected 5 channels") as caught:
        read_array(path, ArraySpec(5, "uint8"))
    assert caught.value.kind == "wrong_form"


@pytest.mark.parametrize(
    ("changed", "spec"),
    [({"dtype": "uint16"}, "5 channels of uint16"), ({"channels": 4}, "4 channels of uint8")],
)
def test_the_first_file_that_differs_from_the_majority_is_reported(
    tmp_path: Path, changed: dict[str, object], spec: str
) -> None:
    collector = HeaderCollector()
    for number in range(6):
        array = noise(**changed) if number in (0, 4) else noise()  # type: ignore[arg-type]
        collector.files.size(saved(tmp_path / f"{number}.npy", array))
    with user_error(
        "dataset.root", f"{tmp_path / '0.npy'}: {spec}", "4 other", "5 channels of uint8"
    ):
        collector.common_spec()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (90, 31), (40, 40), (13, 200), (33, 9)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_letterbox_equals_pils_antialiased_bilinear_resize(
    height: int, width: int, dtype: str
) -> None:
    array = noise(height, width, dtype=dtype)
    canvas = letterbox(array, 40)
    assert canvas.dtype == array.dtype
    box = Letterbox.of(height, width, 40)
    expected = np.zeros((5, 40, 40))
    for channel in range(5):
        plane = Image.fromarray(array[..., channel].astype(np.float32))
        resized = plane.resize((box.width, box.height), Image.Resampling.BILINEAR)
        rows, columns = slice(box.pad_y, box.pad_y + box.height), slice(box.pad_x, None)
        expected[channel, rows, columns][:, : box.width] = resized
    # Half a level for rounding, and sums in another order.
    assert np.abs(canvas - expected).max() <= 0.5 + 1e-6 * RANGES[dtype]


def test_images_are_colours_first_and_stretched_16_bit_channels() -> None:
    array = noise()
    images = to_pil_images(array)
    assert [image.size for image in images] == [(30, 20)] * 3
    np.testing.assert_array_equal(np.asarray(images[0]), array[..., :3])
    np.testing.assert_array_equal(np.asarray(images[2]), array[..., [4, 4, 4]])
    array = noise(dtype="uint16")
    array[..., 3] = 7000 + array[..., 3] // 655
    array[..., 4] = 9  # constant
    colours, thermal, event = (np.asarray(image).astype(int) for image in to_pil_images(array))
    assert np.abs(colours - array[..., :3] / 257).max() <= 0.51
    assert (thermal.min(), thermal.max()) == (0, 255)
    assert not event.any()
