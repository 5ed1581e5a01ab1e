from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from research.data.frames.annotations import read_frames
from research.data.frames.frame import SkipFrame, normalize_box
from research.data.frames.layout import split_from_name
from tests.conftest import user_error

SIZE = (100, 50)
QUARTER = (0.25, 0.5, 0.5, 1.0)
"""The box from 25 to 50 px across and from 25 to 50 px down."""


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (90, 90, 90)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def voc(*objects: tuple[Any, ...], filename: str = "") -> str:
    """An annotation; objects are (name, xmin, ymin, xmax, ymax)."""
    keys = ("xmin", "ymin", "xmax", "ymax")
    items = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{key}>{edge}</{key}>" for key, edge in zip(keys, edges, strict=True))
        + "</bndbox></object>"
        for name, *edges in objects
    )
    return f"<annotation><filename>{filename}</filename>{items}</annotation>"


def coco(**changes: Any) -> str:
    """Two images; the first has a box, the second a crowd alone."""
    row = {"image_id": 7, "category_id": 3, "bbox": [25, 25, 25, 25], "iscrowd": 0}
    document = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "annotations": [row, {**row, "image_id": 8, "iscrowd": 1, "bbox": [0, 0, 9, 9]}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
        **changes,
    }
    return json.dumps(document)


def boxes(source: Path) -> dict[str, tuple[tuple[Any, ...], tuple[int, ...]]]:
    return {frame.name: (frame.boxes, frame.labels) for frame in read_frames(source).frames}


# VOC


def test_voc_boxes_count_from_one_and_hold_their_last_pixel(tmp_path: Path) -> None:
    image(tmp_path / "JPEGImages/a.jpg")
    image(tmp_path / "JPEGImages/b.jpg")
    objects = ("dog", 26, 26, 50, 50), ("cat", 1, 1, 100, 50)
    text(tmp_path / "Annotations/a.xml", voc(*objects, filename="a.jpg"))
    text(tmp_path / "Annotations/b.xml", voc(filename="b.jpg"))
    found = read_frames(tmp_path)
    assert found.format == "voc"
    assert found.classes == ["cat", "dog"]
    assert boxes(tmp_path) == {
        "JPEGImages/a.jpg": ((QUARTER, (0, 0, 1, 1)), (1, 0)),
        "JPEGImages/b.jpg": ((), ()),
    }
    assert [frame.group for frame in found.frames] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    assert (found.runs[0].name, found.runs[0].non_empty, found.runs[0].empty) == ("all", 1, 1)
    assert found.split == {}


def test_voc_images_are_found_by_stem_beside_the_annotation_and_in_sub_folders(
    tmp_path: Path,
) -> None:
    image(tmp_path / "flat/a.JPG")
    text(tmp_path / "flat/a.xml", voc(("cat", 1, 1, 9, 9), filename="from_elsewhere.png"))
    assert list(boxes(tmp_path / "flat")) == ["a.JPG"]
    for name in ("one", "two"):
        image(tmp_path / f"deep/images/{name}/a.png")
        text(tmp_path / f"deep/annotations/{name}/a.xml", voc(("cat", 1, 1, 9, 9)))
    found = read_frames(tmp_path / "deep")
    assert [frame.group for frame in found.frames] == ["images/one", "images/two"]


def test_voc_lists_define_the_split(tmp_path: Path) -> None:
    for name in "abc":
        image(tmp_path / f"JPEGImages/{name}.jpg")
        text(tmp_path / f"Annotations/{name}.xml", voc(("cat", 1, 1, 9, 9)))
    text(tmp_path / "ImageSets/Main/train.txt", "a\n")
    text(tmp_path / "ImageSets/Main/val.txt", "b\n")
    text(tmp_path / "ImageSets/Main/cat_train.txt", "c 1\n")
    found = read_frames(tmp_path)
    assert found.split == {"JPEGImages/a.jpg": "train", "JPEGImages/b.jpg": "val"}


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ("<annotation>", "invalid", "bad XML"),
        ("", "invalid", "bad XML"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', "invalid", "encoding nonsense"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "invalid", "DOCTYPE"),
        (voc(("", 1, 1, 9, 9)), "invalid", "object 0 has no name"),
        (voc(("cat", 9, 1, 1, 9)), "invalid", "object 0 bndbox [8, 0, 1, 9] is inverted"),
        (voc(("cat", 1, 1, 9, 9), ("cat", 1, 1, 900, 9)), "invalid", "object 1 bndbox"),
        (voc(("cat", "one", 1, 9, 9)), "invalid", "four finite numbers"),
        (voc(("cat", "nan", 1, 9, 9)), "invalid", "four finite numbers"),
        (voc(filename="../a.jpg"), "invalid", "outside the folder"),
        (voc(filename="c.jpg"), "missing_file", "c.jpg does not exist"),
    ],
)
def test_a_bad_voc_file_is_skipped_and_reported(
    tmp_path: Path, content: str, kind: str, words: str
) -> None:
    image(tmp_path / "JPEGImages/a.jpg")
    text(tmp_path / "Annotations/a.xml", voc(("cat", 1, 1, 9, 9)))
    text(tmp_path / "Annotations/b.xml", content)
    if kind == "invalid":
        image(tmp_path / "JPEGImages/b.jpg")
    found = read_frames(tmp_path)
    assert getattr(found.runs[0], kind) == 1
    assert len(found.frames) == len(found.problems) == 1
    assert found.problems[0].startswith("Annotations/b.xml: ")
    assert words in found.problems[0]


# YOLO


def test_yolo_rows_are_centres_and_sides(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg")
    image(tmp_path / "images/no_label.png")
    image(tmp_path / "images/no_row.jpg")
    text(tmp_path / "labels/a.txt", "1 0.375 0.75 0.25 0.5\n\n0 0.5 0.5 1 1\n")
    text(tmp_path / "labels/no_row.txt", "")
    text(tmp_path / "classes.txt", "cat\ndog\n")
    found = read_frames(tmp_path)
    assert (found.format, found.classes) == ("yolo", ["cat", "dog"])
    assert boxes(tmp_path) == {
        "images/a.jpg": ((QUARTER, (0, 0, 1, 1)), (1, 0)),
        "images/no_label.png": ((), ()),
        "images/no_row.jpg": ((), ()),
    }
    assert {frame.group for frame in found.frames} == {frame.name for frame in found.frames}


@pytest.mark.parametrize("layout", ["images/{}/a.jpg", "{}/images/a.jpg"])
def test_yolo_folders_define_split_and_groups(tmp_path: Path, layout: str) -> None:
    for split in ("train", "valid"):
        path = image(tmp_path / layout.format(split))
        label = path.relative_to(tmp_path).as_posix().replace("images", "labels")
        text((tmp_path / label).with_suffix(".txt"), "0 0.5 0.5 0.5 0.5")
    text(tmp_path / "data.yaml", "names: {0: cat}\nnc: 1\n")
    found = read_frames(tmp_path)
    folders = {split: str(Path(layout.format(split)).parent) for split in ("train", "valid")}
    assert found.split == {folders["train"]: "train", folders["valid"]: "val"}
    assert {frame.group for frame in found.frames} == set(folders.values())
    assert [run.name for run in found.runs] == ["train", "val"]
    assert found.classes == ["cat"]


def test_a_source_all_in_train_has_no_split(tmp_path: Path) -> None:
    image(tmp_path / "images/train/a.jpg")
    text(tmp_path / "labels/train/a.txt", "2 0.5 0.5 0.5 0.5")
    found = read_frames(tmp_path)
    assert found.split == {}
    assert found.classes == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5\n", "row 2 is '0 0.5 0.5 0.5'"),
        ("0 0.5 0.5 0.5 x", "row 1"),
        ("0.0 0.5 0.5 0.5 0.5", "row 1"),
        ("-1 0.5 0.5 0.5 0.5", "row 1"),
        ("1 0.5 0.5 0.5 0.5", "class 1 of 1"),
        ("0 0.5 0.5 0 0.5", "row 1 [0.5, 0.25, 0.5, 0.75] is inverted or empty"),
        ("0 0.9 0.5 0.5 0.5", "exceeds the image"),
        ("0 nan 0.5 0.5 0.5", "four finite numbers"),
        ("0 0.5 inf 0.5 0.5", "four finite numbers"),
    ],
)
def test_a_bad_yolo_row_is_reported(tmp_path: Path, content: str, words: str) -> None:
    image(tmp_path / "images/a.jpg")
    image(tmp_path / "images/b.jpg")
    text(tmp_path / "labels/b.txt", content)
    text(tmp_path / "classes.txt", "cat\n")
    found = read_frames(tmp_path)
    assert (len(found.frames), found.runs[0].invalid) == (1, 1)
    assert found.problems[0].startswith("labels/b.txt: ")
    assert words in found.problems[0]


def test_yolo_labels_without_image_and_damaged_images_are_counted(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg")
    text(tmp_path / "images/b.jpg", "no image")
    text(tmp_path / "labels/c.txt", "0 0.5 0.5 0.5 0.5")
    text(tmp_path / "labels/classes.txt", "cat\n")
    found = read_frames(tmp_path)
    assert (found.runs[0].invalid, found.runs[0].missing_file) == (1, 1)
    assert [line.partition(":")[0] for line in found.problems] == ["images/b.jpg", "labels/c.txt"]
    assert found.classes == ["cat"]


@pytest.mark.parametrize(
    ("content", "words"), [("names: [", "bad YAML"), ("names: {1: cat}", "number the classes")]
)
def test_bad_yolo_names_are_a_clear_error(tmp_path: Path, content: str, words: str) -> None:
    image(tmp_path / "images/a.jpg")
    text(tmp_path / "labels/a.txt", "")
    text(tmp_path / "data.yaml", content)
    with user_error("data_yaml", "data.yaml", words):
        read_frames(tmp_path)


# COCO


@pytest.mark.parametrize(
    ("document", "pictures"),
    [
        ("annotations/instances.json", "images"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("labels.json", "."),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_coco_boxes_are_corner_and_sides(tmp_path: Path, document: str, pictures: str) -> None:
    text(tmp_path / document, coco())
    image(tmp_path / pictures / "a.jpg")
    image(tmp_path / pictures / "b.jpg")
    found = read_frames(tmp_path)
    assert (found.format, found.classes) == ("coco", ["cat", "dog"])
    assert list(boxes(tmp_path).values()) == [((QUARTER,), (0,)), (((0, 0, 0.09, 0.18),), (0,))]
    assert [frame.ignored for frame in found.frames] == [(), (True,)]
    assert found.problems == []
    assert found.split == {}


def test_coco_files_define_splits_and_one_list_of_classes(tmp_path: Path) -> None:
    for split, names in (("train", ["dog", "cat"]), ("val", ["bird", "dog"])):
        categories = [{"id": number, "name": name} for number, name in enumerate(names)]
        row = {"image_id": 1, "category_id": 1, "bbox": [25, 25, 25, 25]}
        images = [{"id": 1, "file_name": "a.jpg"}]
        content = coco(images=images, annotations=[row], categories=categories)
        text(tmp_path / f"annotations/instances_{split}2017.json", content)
        text(tmp_path / f"annotations/captions_{split}2017.json", '{"images": []}')
        image(tmp_path / f"{split}2017/a.jpg")
    found = read_frames(tmp_path)
    assert found.classes == ["dog", "cat", "bird"]
    assert [frame.labels for frame in found.frames] == [(1,), (0,)]
    assert found.split == {"train2017": "train", "val2017": "val"}


def _coco_row(**changes: Any) -> list[dict[str, Any]]:
    return [{"image_id": 7, "category_id": 3, "bbox": [25, 25, 25, 25], **changes}]


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"annotations": _coco_row(bbox=[25, 25, 0, 25])}, "invalid", "annotations[0].bbox"),
        ({"annotations": _coco_row(bbox=[25, 25, 99, 25])}, "invalid", "the image (100×50)"),
        ({"annotations": _coco_row(bbox=[25, 25, 25])}, "invalid", "four finite numbers"),
        ({"annotations": _coco_row(bbox=[25, 25, 25, float("nan")])}, "invalid", "four finite"),
        ({"annotations": _coco_row(category_id=4)}, "invalid", "category 4 is not listed"),
        ({"images": [{"id": 8, "file_name": "b.jpg"}]}, "invalid", "belongs to no image (7)"),
        ({"images": [{"id": 8, "file_name": "b.jpg"}, {"id": 7}]}, "missing_image", "file_name"),
        ({"images": [{"id": 8, "file_name": "b.jpg"}, {}, {"id": 7, "file_name": "a.jpg"}]},
         "invalid", "images[1]: has no id"),
        ({"images": [{"id": 7, "file_name": "../a.jpg"}, {"id": 8, "file_name": "b.jpg"}]},
         "invalid", "images[0]: image '../a.jpg' is outside"),
        ({"images": [{"id": 7, "file_name": "c.jpg"}, {"id": 8, "file_name": "b.jpg"}]},
         "missing_file", "c.jpg does not exist"),
    ],
)  # fmt: skip
def test_bad_coco_entries_are_reported(
    tmp_path: Path, changes: dict[str, Any], kind: str, words: str
) -> None:
    text(tmp_path / "set.json", coco(**changes))
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    found = read_frames(tmp_path)
    assert getattr(found.runs[0], kind) == 1
    assert len(found.problems) == 1
    assert found.problems[0].startswith("set.json ")
    assert words in found.problems[0]


@pytest.mark.parametrize("content", ["{", coco(categories=[{"id": "x"}])])
def test_a_bad_coco_file_is_a_clear_error(tmp_path: Path, content: str) -> None:
    text(tmp_path / "set.json", content)
    with user_error("labels", "set.json"):
        read_frames(tmp_path)


# All of them


def test_an_unknown_layout_names_the_known_ones(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    text(tmp_path / "notes.json", "{}")
    for source in (tmp_path, tmp_path / "nowhere"):
        with user_error("SOURCE", source, "run_manifest.json"):
            read_frames(source)


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("train", "train"),
        ("instances_train2017", "train"),
        ("valid", "val"),
        ("Validation", "val"),
        ("test-dev", "test"),
        ("trainval", ""),
        ("latest", ""),
        ("images", ""),
    ],
)
def test_names_of_splits(word: str, split: str) -> None:
    assert split_from_name(word) == split


coordinates = st.lists(st.floats(-200, 700, width=32), min_size=4, max_size=4)


@given(coordinates, st.integers(8, 640), st.integers(8, 640))
def test_a_normalised_box_is_the_pixel_box_clipped_or_none(
    edges: list[float], width: int, height: int
) -> None:
    x0, y0, x1, y1 = edges
    inside = x0 >= -1 and y0 >= -1 and x1 <= width + 1 and y1 <= height + 1
    seen = x0 < x1 and y0 < y1 and x0 < width and y0 < height and x1 > 0 and y1 > 0
    try:
        box = normalize_box(edges, width, height, 1.0, "box")
    except SkipFrame:
        assert not (inside and seen)
        return
    assert inside
    assert 0 <= box[0] < box[2] <= 1
    assert 0 <= box[1] < box[3] <= 1
    for fraction, edge, side in zip(box, edges, (width, height) * 2, strict=True):
        assert fraction * side == pytest.approx(min(max(edge, 0), side), abs=1e-6)
