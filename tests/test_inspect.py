from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn, idctn

from research import inspect
from research.config import compose_config
from research.utils.errors import UserError
from tests.conftest import advised, picture, user_error

SIZE = "dataset.image_size=64"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    picture("spots", 0, (90, 80)).save(path, quality=92)
    return path


def planes(rgb: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """[H, W, 3] to Y, Cb, Cr with 4:2:0 chroma."""
    red, green, blue = rgb.transpose(2, 0, 1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = [128 + (blue - y) / 1.772, 128 + (red - y) / 1.402]
    return [y, *(c.reshape(c.shape[0] // 2, 2, -1, 2).mean((1, 3)) for c in chroma)]


def low_pass(plane: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Keeps the window×window lowest frequencies of each 8×8 block."""
    rows, cols = plane.shape[0] // 8, plane.shape[1] // 8
    cut = (plane - 128).reshape(rows, 8, cols, 8).transpose(0, 2, 1, 3)
    kept = dctn(cut, axes=(2, 3), norm="ortho")
    kept[..., window:, :] = kept[..., :, window:] = 0
    cut = idctn(kept, axes=(2, 3), norm="ortho")
    return cut.transpose(0, 2, 1, 3).reshape(plane.shape) + 128


def enlarged(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice as large by bilinear weights of 3/4 and 1/4."""
    for axis in (0, 1):
        padded = np.pad(plane, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        middle = np.take(padded, range(1, padded.shape[axis] - 1), axis)
        before = np.take(padded, range(padded.shape[axis] - 2), axis)
        after = np.take(padded, range(2, padded.shape[axis]), axis)
        pair = np.stack([0.75 * middle + 0.25 * before, 0.75 * middle + 0.25 * after], axis + 1)
        plane = pair.reshape([n * (2 if a == axis else 1) for a, n in enumerate(plane.shape)])
    return plane


def psnr(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return 10 * math.log10(255**2 / float(np.mean((a - b) ** 2)))


@pytest.mark.parametrize("range_", ["full", "studio"])
def test_psnr_equals_that_of_numpy(photo: Path, tmp_path: Path, range_: str) -> None:
    settings = [SIZE, "compression.window=3", f"compression.range={range_}", "dataset.crop_pct=0.9"]
    (row,) = inspect.inspect([photo], tmp_path / "out", settings)
    # The validation crop: the centred square of 0.9 of the short side.
    box = (9, 4, 9 + 72, 4 + 72)
    with Image.open(photo) as image:
        resized = image.resize((64, 64), Image.Resampling.BILINEAR, box=box)
    original = np.asarray(resized).astype(np.float64)
    y, cb, cr = (low_pass(plane, 3) for plane in planes(original))
    cb, cr = enlarged(cb) - 128, enlarged(cr) - 128
    red, blue = y + 1.402 * cr, y + 1.772 * cb
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    rebuilt = np.stack([red, green, blue], -1).clip(0, 255)
    assert row["RGB"] == pytest.approx(psnr(original, rebuilt), abs=0.01)
    for name, a, b in zip(("Y", "Cb", "Cr"), planes(original), planes(rebuilt), strict=True):
        assert row[name] == pytest.approx(psnr(a, b), abs=0.01), name
    assert row["file"] == str(photo)
    assert row["fallback"] == ""


@pytest.mark.parametrize("source", ["pixels", "bitstream"])
def test_more_coefficients_leave_more_of_the_image(
    photo: Path, tmp_path: Path, source: str
) -> None:
    rows = [
        inspect.inspect(
            [photo],
            tmp_path / "out",
            [SIZE, f"compression.source={source}", "compression.range=full",
             f"compression.window={window}"],
        )[0]
        for window in (1, 2, 4, 8)
    ]  # fmt: skip
    for name in ("Y", "RGB"):
        values = [row[name] for row in rows]
        assert values == sorted(values)
        assert values[-1] > values[1] + 5


def test_every_coefficient_of_the_bitstream_is_the_file_itself(photo: Path, tmp_path: Path) -> None:
    settings = [SIZE, "compression.source=bitstream", "compression.window=8"]
    (row,) = inspect.inspect([photo], tmp_path / "out", settings)
    assert min(row[name] for name in ("Y", "Cb", "Cr", "RGB")) > 100


def test_pictures_show_original_reconstruction_and_difference(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = [SIZE, "compression.window=8", "compression.range=full", "dataset.crop_pct=1.0"]
    inspect.inspect([photo], out, settings)
    names = {path.name for path in out.iterdir()}
    assert names == {"000_photo.png", "energy_Y.png", "energy_Cb.png", "energy_Cr.png"}
    with Image.open(out / "000_photo.png") as image:
        row = np.asarray(image).astype(int)
    assert row.shape == (64, 3 * 64, 3)
    original, rebuilt, difference = row[:, :64], row[:, 64:128], row[:, 128:]
    with Image.open(photo) as image:
        expected = image.resize((64, 64), Image.Resampling.BILINEAR, box=(5, 0, 85, 80))
    np.testing.assert_array_equal(original, np.asarray(expected))
    # The picture rounds the reconstruction, and four times the unrounded difference.
    assert np.abs(difference - (128 + 4 * (rebuilt - original)).clip(0, 255)).max() <= 3
    for name in ("Y", "Cb", "Cr"):
        with Image.open(out / f"energy_{name}.png") as image:
            assert image.width > 100


def test_a_damaged_file_is_reported_and_the_others_are_done(photo: Path, tmp_path: Path) -> None:
    bad, png, cmyk = (tmp_path / name for name in ("bad.jpg", "a.png", "b.jpg"))
    bad.write_bytes(photo.read_bytes()[:-600])
    picture("bars", 1).save(png)
    picture("bars", 1).convert("CMYK").save(cmyk)
    out = tmp_path / "out"
    settings = [SIZE, "compression.source=bitstream"]
    rows = inspect.inspect([bad, photo, png, cmyk], out, settings)
    assert [row["fallback"] for row in rows] == ["left out: truncated", "", "not_jpeg", "cmyk"]
    assert ["RGB" in row for row in rows] == [False, True, True, True]
    pictures = sorted(path.name for path in out.glob("0*.png"))
    assert pictures == ["001_photo.png", "002_a.png", "003_b.png"]


def test_nothing_readable_is_one_line(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.jpg" for number in range(2)]
    for file in files:
        file.write_text("no")
    with pytest.raises(UserError, match="none of 2 files"):
        inspect.inspect(files, tmp_path / "out", [SIZE])


def test_settings_are_checked_as_everywhere(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="window"):
        inspect.inspect([photo], tmp_path / "out", ["compression.window=9"])
    with pytest.raises(UserError, match="compression=none"):
        inspect.inspect([photo], tmp_path / "out", ["model=resnet34", "compression=none"])


def test_data_without_a_crop_keep_the_whole_square(photo: Path, tmp_path: Path) -> None:
    one, other = (
        inspect.inspect([photo], tmp_path / "out", [*words, SIZE])
        for words in (["dataset=cifar10"], ["dataset.crop_pct=1"])
    )
    assert one == other


def test_names_as_long_as_file_systems_take(photo: Path, tmp_path: Path) -> None:
    files = [photo.rename(tmp_path / f"{'x' * 251}.jpg"), tmp_path / f"{'é' * 125}.jpg"]
    files[1].write_bytes(files[0].read_bytes())
    inspect.inspect(files, tmp_path / "out", [SIZE])
    names = sorted(path.name for path in (tmp_path / "out").glob("0*.png"))
    assert names == [f"000_{'x' * 200}.png", f"001_{'é' * 100}.png"]
    with user_error("out", str(files[0]), "out=FOLDER"):
        inspect.inspect(files[1:], files[0], [SIZE])


def test_find_images_takes_files_and_folders(photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    for name in ("b.png", "a.JPG", "notes.txt"):
        (folder / name).write_bytes(b"")
    found = inspect.find_images([str(photo), str(tmp_path / "folder")])
    assert found == [photo, folder / "a.JPG", folder / "b.png"]
    with pytest.raises(UserError, match="no such file"):
        inspect.find_images([str(tmp_path / "none.jpg")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image files"):
        inspect.find_images([str(tmp_path / "empty")])


def test_the_command_prints_a_row_a_file(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    words = ["compression.window=2", f"out={tmp_path / 'out'}"]
    inspect.main([str(photo), str(bad), SIZE, *words])
    output, logged = capsys.readouterr()
    printed = output.splitlines()
    assert printed[0].split() == ["Y", "Cb", "Cr", "RGB", "dB"]
    assert re.fullmatch(rf"( +\d+\.\d\d){{4}} +{re.escape(str(photo))}", printed[1])
    assert printed[2].split(maxsplit=1) == [str(bad), "(left out: empty)"]
    assert len(printed) == 3
    assert f"files: {tmp_path / 'out'}\n" in logged
    assert compose_config(advised(logged)[2:]).config["compression"]["window"] == 2
    with pytest.raises(UserError, match="pass IMAGES"):
        inspect.main([SIZE])
