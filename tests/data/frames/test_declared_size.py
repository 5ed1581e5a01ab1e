"""Sizes and orientations that label files declare are compared with those of the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from research.data.frames.annotations import read_frames
from research.data.frames.declared_size import boxes_are_stored, match_size, parse_side
from research.data.frames.frame import FrameSet, ImageSize, SkipFrame
from research.data.prepare_options import FrameOptions
from research.data.rgbx.paired_folders import PairedFolders, find_folders
from research.prepare import frames
from research.utils.exif import upright, upright_box, upright_size
from tests.conftest import user_error
from tests.data.frames.drawn import coco, draw, left_out, means, pixel_boxes, voc, write

FORMATS = ("coco", "voc")
BOX = (20, 10, 40, 20)


def label(
    root: Path, form: str, pictures: dict[str, tuple[Any, Any] | None], box: Any = BOX
) -> Path:
    """Label pictures in ``root/images`` with one box; the declared sizes by name of the file."""
    if form == "voc":
        for name, size in pictures.items():
            text = voc({"box": box}, filename=name, size=size)
            write(root / "Annotations" / f"{Path(name).stem}.xml", text)
        return root
    images = [
        {"id": number, "file_name": name}
        | ({} if size is None else {"width": size[0], "height": size[1]})
        for number, (name, size) in enumerate(pictures.items())
    ]
    rows = [{"image_id": number, "bbox": list(box)} for number in range(len(images))]
    write(root / "instances.json", coco(images, rows))
    return root


def read(root: Path, scale_boxes: bool = False) -> FrameSet:
    return read_frames(root, scale_boxes)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("declared", "real", "scaled"),
    [
        ((640, 480), (320, 240), (10, 5, 20, 10)),  # as half_coco
        ((100, 50), (150, 75), (30, 15, 60, 30)),
        ((100, 50), (200, 50), (40, 10, 80, 20)),  # by no common factor
    ],
)
def test_boxes_of_resized_pictures_are_left_out_or_scaled(
    tmp_path: Path,
    form: str,
    declared: tuple[int, int],
    real: tuple[int, int],
    scaled: tuple[int, ...],
) -> None:
    draw(tmp_path / "images/a.png", real)
    draw(tmp_path / "images/b.png", (100, 50))
    label(tmp_path, form, {"a.png": declared, "b.png": (100, 50)})
    found = read(tmp_path)
    assert pixel_boxes(found) == {"images/b.png": [BOX]}
    assert found.runs[0].invalid == 1
    sizes = f"size declared {declared[0]}×{declared[1]}, is {real[0]}×{real[1]}"
    assert sizes in found.problems[0]
    assert "scale_boxes=true" in found.problems[0]
    assert f"1 left out ({sizes})" in str(found.reading)
    found = read(tmp_path, scale_boxes=True)
    assert pixel_boxes(found) == {"images/a.png": [scaled], "images/b.png": [BOX]}
    assert found.problems == []
    assert len(found.notes) == 1
    assert "boxes scaled" in found.notes[0]
    assert ": 1, the first" in found.notes[0]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("declared", [None, (0, 0), (0, 50), (100, 0), ("100", "50"), ("", None)])
def test_a_size_of_zero_is_not_declared(tmp_path: Path, form: str, declared: Any) -> None:
    if form == "voc" and declared == ("", None):
        declared = ("", "")
    draw(tmp_path / "images/a.png")
    found = read(label(tmp_path, form, {"a.png": declared}))
    assert pixel_boxes(found) == {"images/a.png": [BOX]}
    assert (found.problems, found.notes) == ([], [])


@pytest.mark.parametrize("value", ["x", -1, 640.5, float("nan"), float("inf"), [640], True, 1e300])
def test_a_bad_size_is_one_line(value: object) -> None:
    with pytest.raises(SkipFrame, match=r"width is .*: expected pixels"):
        parse_side(value, "width")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("scale_boxes", [False, True])
def test_a_picture_that_was_turned_without_a_tag_is_left_out(
    tmp_path: Path, form: str, scale_boxes: bool
) -> None:
    draw(tmp_path / "images/a.png", (50, 100))
    draw(tmp_path / "images/b.png", (25, 50))  # and made smaller
    draw(tmp_path / "images/c.png", (100, 50))
    label(tmp_path, form, dict.fromkeys(("a.png", "b.png", "c.png"), (100, 50)))
    found = read(tmp_path, scale_boxes)
    assert [frame.name for frame in found.frames] == ["images/c.png"]
    assert len(found.problems) == 2
    assert "size declared 100×50, is 50×100: turned after it was labelled" in found.problems[0]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stored", [False, True])
def test_boxes_of_turned_pictures_lie_on_the_object(
    tmp_path: Path, form: str, orientation: int, stored: bool
) -> None:
    """Of tools that apply the orientation before a picture is labelled, and that do not."""
    size, box = (96, 64), BOX
    draw(tmp_path / "images/a.jpg", size, [box], orientation)
    draw(tmp_path / "images/b.jpg", size, [box], 6)  # shows which of the two the tool is
    sizes = {"a.jpg": size, "b.jpg": size}
    if stored:
        sizes = {"a.jpg": upright_size(*size, orientation), "b.jpg": (64, 96)}
    label(tmp_path, form, sizes)
    if stored:  # each picture has its own box
        own = {name: stored_box(box, size, turn) for name, turn in (("a", orientation), ("b", 6))}
        relabel(tmp_path, form, sizes, own)
    found = read(tmp_path)
    assert pixel_boxes(found) == {"images/a.jpg": [box], "images/b.jpg": [box]}
    np.testing.assert_allclose(means(found), [[228, 31, 31]] * 2, atol=2)
    turned = 1 + (orientation > 1)
    notes = ["boxes turned", f": {turned}, the first"] if stored else []
    assert len(found.notes) == bool(stored)
    assert all(word in found.notes[0] for word in notes)


def stored_box(box: Any, size: tuple[int, int], orientation: int) -> list[int]:
    """The box of an upright picture in the pixels of the stored one, by turning a mask."""
    mask = np.zeros(size[::-1], np.uint8)
    x, y, width, height = box
    mask[y : y + height, x : x + width] = 255
    back = {6: 8, 8: 6}.get(orientation, orientation)
    turned = np.asarray(upright(Image.fromarray(mask), back))
    rows, columns = np.flatnonzero(turned.any(1)), np.flatnonzero(turned.any(0))
    return [int(columns[0]), int(rows[0]), len(columns), len(rows)]


def relabel(root: Path, form: str, sizes: dict[str, Any], own: dict[str, list[int]]) -> None:
    if form == "voc":
        for stem, box in own.items():
            label(root, form, {f"{stem}.jpg": sizes[f"{stem}.jpg"]}, box)
        return
    images = [
        {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        for number, (name, size) in enumerate(sizes.items())
    ]
    rows = [{"image_id": number, "bbox": box} for number, box in enumerate(own.values())]
    write(root / "instances.json", coco(images, rows))


@pytest.mark.parametrize("form", FORMATS)
def test_turned_pictures_that_fit_to_both_follow_the_others_or_are_left_out(
    tmp_path: Path, form: str
) -> None:
    draw(tmp_path / "images/a.jpg", (96, 64), [BOX], 3)
    sizes: dict[str, Any] = {"a.jpg": (96, 64)}
    assert pixel_boxes(read(label(tmp_path, form, sizes))) == {"images/a.jpg": [BOX]}
    draw(tmp_path / "images/b.jpg", (96, 64), [BOX], 6)
    draw(tmp_path / "images/c.jpg", (96, 64), [BOX], 8)
    found = read(label(tmp_path, form, {**sizes, "b.jpg": (96, 64), "c.jpg": (64, 96)}))
    assert [frame.name for frame in found.frames] == ["images/b.jpg", "images/c.jpg"]
    assert len(found.problems) == 1
    assert "before or after its EXIF orientation" in found.problems[0]


@pytest.mark.parametrize("form", FORMATS)
def test_turned_pictures_are_scaled_too(tmp_path: Path, form: str) -> None:
    draw(tmp_path / "images/a.jpg", (48, 32), [(10, 5, 20, 10)], 6)
    label(tmp_path, form, {"a.jpg": (96, 64)})
    assert pixel_boxes(read(tmp_path, scale_boxes=True)) == {"images/a.jpg": [(10, 5, 20, 10)]}
    label(tmp_path, form, {"a.jpg": (64, 96)}, stored_box(BOX, (96, 64), 6))
    found = read(tmp_path, scale_boxes=True)
    assert pixel_boxes(found) == {"images/a.jpg": [(10, 5, 20, 10)]}
    assert len(found.notes) == 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_turns_as_its_pixels_do(orientation: int) -> None:
    mask = np.zeros((7, 11), np.uint8)
    mask[1:4, 2:9] = 255
    turned = np.asarray(upright(Image.fromarray(mask), orientation))
    x0, y0, x1, y1 = upright_box((2 / 11, 1 / 7, 9 / 11, 4 / 7), orientation)
    height, width = turned.shape
    expected = np.zeros_like(turned)
    expected[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)] = 255
    np.testing.assert_array_equal(turned, expected)


def test_only_pictures_whose_sides_differ_show_what_boxes_belong_to() -> None:
    def match(declared: tuple[int, int], orientation: int) -> Any:
        return match_size(declared, ImageSize(96, 64, orientation), False)

    upright_, stored, either = match((96, 64), 6), match((64, 96), 6), match((96, 64), 2)
    plain, unknown = match((96, 64), 1), match((0, 0), 8)
    assert boxes_are_stored([plain, either, unknown]) is False
    assert boxes_are_stored([plain, stored, either]) is True
    assert boxes_are_stored([upright_, either, unknown]) is False
    assert boxes_are_stored([upright_, stored]) is None
    assert unknown.pixels(False).size == (96, 64)
    assert unknown.pixels(True).size == (64, 96)


def test_rgb_and_thermal_frames_are_compared_and_scaled(tmp_path: Path) -> None:
    for folder in ("visible", "infrared"):
        draw(tmp_path / folder / "a.png", (50, 25))
        draw(tmp_path / folder / "b.png", (100, 50))
    sizes = {"a.png": (100, 50), "b.png": (100, 50)}
    images = [
        {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        for number, (name, size) in enumerate(sizes.items())
    ]
    write(tmp_path / "labels.json", coco(images, [{"image_id": 0}, {"image_id": 1}]))
    folders = PairedFolders(tmp_path, find_folders(tmp_path, {}))
    found = folders.read(require_labels=False)
    assert pixel_boxes(found) == {"visible/b.png": [BOX]}
    found = PairedFolders(tmp_path, find_folders(tmp_path, {})).read(False, scale_boxes=True)
    assert pixel_boxes(found) == {"visible/a.png": [(10, 5, 20, 10)], "visible/b.png": [BOX]}


def test_prepare_says_it_and_scales_if_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    for name in ("a", "b"):
        draw(source / f"images/{name}.png", (320, 240))
    label(source, "coco", {"a.png": (640, 480), "b.png": (640, 480)})
    with user_error("SOURCE", "2 left out", "size declared 640×480, is 320×240"):
        frames(source, tmp_path / "out", FrameOptions(size=32))
    with caplog.at_level("INFO"):
        manifest = frames(source, tmp_path / "out", FrameOptions(size=32, scale_boxes=True))
    assert manifest.folder.is_dir()
    assert "boxes scaled" in caplog.text
    assert left_out(read(source, True)) == 0
