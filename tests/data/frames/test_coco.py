"""COCO documents: ids, tables that are declared twice, crowds, polygons, places of pictures."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from research.data.frames.annotations import read_frames
from research.data.frames.coco_writer import CocoWriter
from research.data.frames.frame import FrameSet
from tests.conftest import user_error
from tests.data.frames.drawn import coco, draw, pixel_boxes, write

A, B = {"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}
BOX = (20, 10, 40, 20)
CATS = [{"id": 3, "name": "cat"}]


def source(root: Path, *names: str, **documents: dict[str, Any]) -> Path:
    for name in names or ("a.png", "b.png"):
        draw(root / "images" / name)
    for stem, document in documents.items():
        write(root / f"annotations/{stem}.json", document)
    return root


def read_one(root: Path, images: Any, annotations: Any = (), categories: Any = CATS) -> FrameSet:
    return read_frames(source(root, set=coco(images, annotations, categories)))


# Ignored areas


def test_crowds_are_neither_objects_nor_background(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(4)]
    rows = [
        {"image_id": 0},
        {"image_id": 1, "iscrowd": 1, "bbox": [50, 5, 40, 30]},
        {"image_id": 2, "bbox": [0, 0, 9, 9]},
        {"image_id": 2, "iscrowd": 1},
    ]
    names = [f"{number}.png" for number in range(4)]
    found = read_frames(source(tmp_path, *names, set=coco(images, rows)))
    assert [frame.ignored for frame in found.frames] == [(), (True,), (False, True), ()]
    assert [len(frame.boxes) for frame in found.frames] == [1, 1, 2, 0]
    # A picture with crowds alone is no negative.
    assert (found.runs[0].total, found.runs[0].non_empty, found.runs[0].empty) == (4, 3, 1)


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize(
    ("value", "ignored"),
    [(0, False), (1, True), (False, False), (True, True), ("0", False), ("1", True), (0.0, False),
     (1.0, True), (None, False), ("", False), ("true", True), (" 0 ", False)],
)  # fmt: skip
def test_flags_are_numbers_truth_values_or_text(
    tmp_path: Path, key: str, value: object, ignored: bool
) -> None:
    found = read_one(tmp_path, [A], [{"image_id": 7, key: value}])
    assert any(found.frames[0].ignored) == ignored
    assert found.problems == []


@pytest.mark.parametrize("value", [2, -1, "yes", [1], {}, float("nan"), 0.5])
def test_a_bad_flag_leaves_its_picture_out(tmp_path: Path, value: object) -> None:
    found = read_one(tmp_path, [A, B], [{"image_id": 7, "iscrowd": value}])
    assert [frame.name for frame in found.frames] == ["images/b.png"]
    assert len(found.problems) == 1
    assert "annotations[0].iscrowd is" in found.problems[0]
    assert "expected 0 or 1" in found.problems[0]


def test_declared_areas_are_kept_where_they_are_not_those_of_the_boxes(tmp_path: Path) -> None:
    rows = [{"image_id": 7, "area": 800}, {"image_id": 8, "area": 250}, {"image_id": 8}]
    a, b = read_one(tmp_path, [A, B], rows).frames
    assert a.areas == ()
    assert b.areas == pytest.approx((250 / 5000, 800 / 5000))
    rows = [{"image_id": 7, "area": 0}, {"image_id": 8, "area": "x"}]
    found = read_one(tmp_path, [A, B], rows)
    assert [frame.areas for frame in found.frames] == [(), ()]
    assert "areas that are no numbers" in found.notes[0]


# Ids and what is declared twice


@pytest.mark.parametrize("key", [7, "7", 7.0, "seven", -7, 7.5, 10**400, 0])
def test_ids_are_numbers_or_texts(tmp_path: Path, key: object) -> None:
    images = [{**A, "id": key}, {**B, "id": 99}]
    found = read_one(tmp_path, images, [{"image_id": key}], [{"id": 3, "name": "cat"}])
    assert pixel_boxes(found) == {"images/a.png": [BOX], "images/b.png": []}
    categories = [{"id": key, "name": "cat"}]
    found = read_one(tmp_path, [A], [{"image_id": 7, "category_id": key}], categories)
    assert found.frames[0].labels == (0,)


def test_ids_as_text_and_as_number_are_the_same(tmp_path: Path) -> None:
    found = read_one(tmp_path, [A], [{"image_id": "7", "category_id": "3"}])
    assert pixel_boxes(found) == {"images/a.png": [BOX]}


@pytest.mark.parametrize("key", [None, [7], {"x": 1}, True, float("nan"), float("inf"), "", " "])
def test_other_ids_are_one_line(tmp_path: Path, key: object) -> None:
    found = read_one(tmp_path, [{**A, "id": key}, B])
    assert [frame.name for frame in found.frames] == ["images/b.png"]
    assert found.problems[0].startswith("annotations/set.json images[0]: ")
    found = read_one(tmp_path, [A], [{"image_id": key}])
    assert "belongs to no image" in found.problems[0]
    found = read_one(tmp_path, [A, B], [{"image_id": 7, "category_id": key}])
    assert [frame.name for frame in found.frames] == ["images/b.png"]
    assert "is not listed" in found.problems[0]
    with user_error("labels", "set.json", "needs an id and a name"):
        read_one(tmp_path, [A], [], [{"id": key, "name": "cat"}])


@pytest.mark.parametrize("name", [None, "", ["cat"], {}, float("nan")])
def test_a_category_needs_a_name(tmp_path: Path, name: object) -> None:
    with user_error("labels", "set.json", "needs an id and a name"):
        read_one(tmp_path, [A], [], [{"id": 3, "name": name}])


def test_an_image_that_is_listed_twice(tmp_path: Path) -> None:
    found = read_one(tmp_path, [A, A, B], [{"image_id": 7}])
    assert pixel_boxes(found) == {"images/a.png": [BOX], "images/b.png": []}
    assert found.notes == [
        "image listed again in its file, used once: 1, the first annotations/set.json images[1]"
    ]
    # Two images of one id: whose boxes the annotations are is not known.
    found = read_one(tmp_path, [A, {**B, "id": 7}, {**B, "id": 9}], [{"image_id": 7}])
    assert pixel_boxes(found) == {"images/b.png": []}
    assert [line.partition(": ")[2] for line in found.problems] == [
        "has the id of images[1], 7: give each an id of its own",
        "has the id of images[0], 7: give each an id of its own",
    ]


def test_an_image_under_two_ids_is_used_once_if_its_boxes_are_the_same(tmp_path: Path) -> None:
    images = [A, {**A, "id": 9}, B]
    found = read_one(tmp_path, images, [{"image_id": 7}, {"image_id": 9}])
    assert pixel_boxes(found) == {"images/a.png": [BOX], "images/b.png": []}
    assert "described again with the same boxes, used once: 1" in found.notes[0]
    found = read_one(tmp_path, images, [{"image_id": 7}])
    assert pixel_boxes(found) == {"images/b.png": []}
    assert found.runs[0].invalid == 2
    first, second = found.problems
    assert "set.json images[0]: images/a.png is also described by" in first
    assert "images[1], with other boxes" in first
    assert second.startswith("annotations/set.json images[1]: ")
    # A third description does not bring it back.
    images.insert(2, {**A, "id": 10})
    assert pixel_boxes(read_one(tmp_path, images, [{"image_id": 7}])) == {"images/b.png": []}


def test_annotations_that_are_listed_twice_or_share_an_id(tmp_path: Path) -> None:
    row = {"image_id": 7, "id": 5}
    found = read_one(tmp_path, [A], [row, row, {**row, "bbox": [0, 0, 5, 5]}])
    assert pixel_boxes(found) == {"images/a.png": [BOX, (0, 0, 5, 5)]}
    assert found.notes == [
        "annotation listed again, used once: 1, the first annotations/set.json annotations[1]",
        "annotations that share an id, all used: 1, the first annotations/set.json annotations[2]",
    ]
    found = read_one(tmp_path, [A], [{"image_id": 7, "id": 1}, {"image_id": 7, "id": 2}])
    assert len(found.frames[0].boxes) == 2
    assert "two equal boxes of one class" in found.notes[0]


def test_categories_that_are_declared_twice(tmp_path: Path) -> None:
    with user_error("labels", "set.json", "category 3 is both 'cat' and 'dog'"):
        read_one(tmp_path, [A], [], [*CATS, {"id": 3, "name": "dog"}])
    assert read_one(tmp_path, [A], [], [*CATS, *CATS]).classes == ["cat"]
    rows = [{"image_id": 7}, {"image_id": 7, "category_id": 4, "bbox": [0, 0, 5, 5]}]
    found = read_one(tmp_path, [A], rows, [*CATS, {"id": 4, "name": "cat"}])
    assert (found.classes, found.frames[0].labels) == (["cat"], (0, 0))
    assert "categories of one name, read as one class: 1" in found.notes[0]
    found = read_one(tmp_path, [A], [], [*CATS, {"id": 4, "name": "Cat "}])
    assert found.classes == ["cat", "Cat "]
    assert "differ only in letter case" in found.notes[0]


def test_documents_with_other_categories_are_matched_by_name(tmp_path: Path) -> None:
    other = [{"id": 3, "name": "dog"}, {"id": 5, "name": "cat"}]
    train = coco([A], [{"image_id": 7}], [*CATS, {"id": 5, "name": "dog"}])
    val = coco([B], [{"image_id": 8, "category_id": 5}], other)
    found = read_frames(source(tmp_path, train=train, val=val))
    assert found.classes == ["cat", "dog"]
    assert [frame.labels for frame in found.frames] == [(0,), (0,)]
    assert "categories differ between annotation files" in found.notes[0]
    assert "3 is 'cat' and 'dog'" in found.notes[0]
    val = coco([B], [{"image_id": 8}], [*CATS, {"id": 6, "name": "bird"}])
    found = read_frames(source(tmp_path, train=train, val=val))
    assert found.classes == ["cat", "dog", "bird"]
    assert "'bird' is only in the second" in found.notes[0]


def test_a_picture_in_two_splits_is_left_out_with_both_names(tmp_path: Path) -> None:
    both = {"train": coco([A, B], [{"image_id": 7}]), "val": coco([A], [{"image_id": 7}])}
    found = read_frames(source(tmp_path, **both))
    assert [frame.name for frame in found.frames] == ["images/b.png"]
    assert len(found.problems) == 2
    for line in found.problems:
        assert "annotations/train.json images[0]" in line
        assert "annotations/val.json images[0]" in line
        assert "in another split" in line
    assert "images/a.png" not in found.split
    # A list of all pictures beside those of the splits is no contradiction.
    both = {"everything": coco([A, B], [{"image_id": 7}]), "train": coco([A], [{"image_id": 7}])}
    found = read_frames(source(tmp_path / "two", **both, val=coco([B])))
    assert found.split == {"images/a.png": "train", "images/b.png": "val"}


# Boxes


@pytest.mark.parametrize(
    "bbox",
    [[20, 10, float("inf"), 5], [float("nan"), 0, 5, 5], [20, 10, -5, 5], [20, 10, 0, 5],
     ["20", 10, 5, 5], [1e308, 10, 5, 5], [20, 10, 1e308, 1e308], "20 10 5 5", {"x": 1}, 5, [[]]],
)  # fmt: skip
def test_a_bad_box_leaves_its_picture_out(tmp_path: Path, bbox: object) -> None:
    found = read_one(tmp_path, [A, B], [{"image_id": 7, "bbox": bbox}])
    assert [frame.name for frame in found.frames] == ["images/b.png"]
    assert len(found.problems) == 1
    assert "annotations[0].bbox as corners" in found.problems[0]
    assert "\n" not in found.problems[0]


@pytest.mark.parametrize("bbox", [None, []])
def test_polygons_become_boxes_and_the_output_says_so(tmp_path: Path, bbox: object) -> None:
    parts = [[20, 10, 60, 10, 60, 20], [30, 12, 40, 30, 25, 14]]
    row = {"image_id": 7, "bbox": bbox, "segmentation": parts}
    found = read_one(tmp_path, [A], [row])
    assert pixel_boxes(found) == {"images/a.png": [BOX]}
    assert "boxes around polygons, as their bbox is missing: 1" in found.notes[0]
    flat = {**row, "segmentation": [20, 10, 60, 10, 60, 30]}
    assert pixel_boxes(read_one(tmp_path, [A], [flat])) == {"images/a.png": [BOX]}
    for other in ([], [[20, 10, 60]], {"counts": "x", "size": [5, 5]}, None, [["x"] * 6], "x"):
        found = read_one(tmp_path, [A, B], [{**row, "segmentation": other}])
        assert [frame.name for frame in found.frames] == ["images/b.png"]


def test_a_box_is_compared_with_its_polygon(tmp_path: Path) -> None:
    row = {"image_id": 7, "segmentation": [[20, 10, 60, 10, 60, 30]]}
    assert read_one(tmp_path, [A], [row]).notes == []
    found = read_one(tmp_path, [A], [{**row, "bbox": [20, 10, 60, 30]}])  # written as corners
    assert "bbox and segmentation differ, bbox is used: 1" in found.notes[0]


def test_fractions_for_pixels_are_noted(tmp_path: Path) -> None:
    found = read_one(tmp_path, [A], [{"image_id": 7, "bbox": [0.2, 0.1, 0.4, 0.2]}])
    assert "boxes of less than a pixel" in found.notes[0]


# Files


def test_a_document_without_annotations(tmp_path: Path) -> None:
    bare = {"images": [A], "categories": CATS}
    source(tmp_path, image_info=bare)
    with user_error("labels", "image_info.json", "no list of annotations"):
        read_frames(tmp_path)
    found = read_frames(source(tmp_path, train=coco([B], [{"image_id": 8}])))
    assert pixel_boxes(found) == {"images/b.png": [BOX]}
    assert found.passed_over.counts == {"JSON": 1, "not in any annotation file": 1}


def test_every_file_is_used_or_counted(tmp_path: Path) -> None:
    source(tmp_path, "a.png", "b.png", "c.png", set=coco([A], [{"image_id": 7}]))
    draw(tmp_path / "images/.ipynb_checkpoints/a.png")
    draw(tmp_path / "__MACOSX/images/a.png")
    write(tmp_path / "annotations/.hidden.json", coco([B]))
    write(tmp_path / "__MACOSX/annotations.json", coco([B]))
    write(tmp_path / "notes.txt", "x")
    write(tmp_path / "annotations/captions.json", {"images": []})
    (tmp_path / "again").symlink_to("images")
    found = read_frames(tmp_path)
    assert pixel_boxes(found) == {"images/a.png": [BOX]}
    assert found.passed_over.counts == {
        "hidden": 2, "system": 2, "linked again": 1, "TXT": 1, "JSON": 1,
        "not in any annotation file": 2,
    }  # fmt: skip


def test_two_pictures_of_one_name(tmp_path: Path) -> None:
    draw(tmp_path / "images/one/a.png")
    draw(tmp_path / "images/two/a.png")
    images = [{**A, "file_name": "one/a.png"}, {**B, "file_name": "two\\a.png"}]
    found = read_one(tmp_path, images, [{"image_id": 8}])
    assert pixel_boxes(found) == {"images/one/a.png": [], "images/two/a.png": [BOX]}
    draw(tmp_path / "a.png")
    found = read_one(tmp_path, [A, B])
    assert [frame.name for frame in found.frames] == ["images/b.png"]
    assert "its image may be a.png and images/a.png" in found.problems[0]


@pytest.mark.parametrize(
    ("said", "real"), [("A.PNG", "a.png"), (unicodedata.normalize("NFD", "é.png"), "é.png")]
)
def test_spelling_of_names(tmp_path: Path, said: str, real: str) -> None:
    document = coco([{**A, "file_name": said}], [{"image_id": 7}])
    found = read_frames(source(tmp_path, real, set=document))
    assert pixel_boxes(found) == {f"images/{real}": [BOX]}
    assert "differs in letter case or Unicode form: 1" in found.notes[0]


def test_names_through_links_are_found(tmp_path: Path) -> None:
    source(tmp_path, "a.png", set=coco([{**A, "file_name": "link/a.png"}], [{"image_id": 7}]))
    (tmp_path / "link").symlink_to("images")
    assert pixel_boxes(read_frames(tmp_path)) == {"images/a.png": [BOX]}


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".png", "a\0.png", "a\n.png", "/etc/a.png", "../a.png"]
)
def test_a_name_that_no_file_has_is_one_line(tmp_path: Path, name: str) -> None:
    found = read_one(tmp_path, [{**A, "file_name": name}, B])
    assert [frame.name for frame in found.frames] == ["images/b.png"]
    assert len(found.problems) == 1
    assert "\n" not in found.problems[0]
    assert len(found.problems[0]) < 250


@pytest.mark.parametrize("labelled", [True, False])
def test_boxes_of_a_model_are_no_labels_beside_others(tmp_path: Path, labelled: bool) -> None:
    """``research.predict`` writes its detections beside the runs that it labels."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png")
    if labelled:
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    writer = CocoWriter(["other"])
    writer.add("images/a.png", (40, 30), [[0, 0, 10, 10]], [0.9], [0])
    writer.write(tmp_path / "predictions.json")
    found = read_frames(tmp_path)
    assert found.format == ("yolo" if labelled else "coco")
    assert found.frames[0].boxes == ((0.25, 0.25, 0.75, 0.75) if labelled else (0, 0, 0.25, 1 / 3),)
