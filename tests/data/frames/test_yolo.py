"""YOLO: which label file belongs to a picture, and what rows it has."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import pytest

from research.data.frames.annotations import read_frames
from research.data.frames.yolo_labels import match_labels
from tests.conftest import user_error
from tests.data.frames.test_annotations import boxes, image, text, voc
from tests.data.frames.test_splits import ROW, reading, yolo

BOX = (0.375, 0.25, 0.625, 0.75)


def test_the_spelling_of_a_label_does_not_matter(tmp_path: Path) -> None:
    """``spelling`` of the faults, and Unicode forms."""
    source = yolo(tmp_path, "l0", "l1")
    image(source / "images/upper.jpg")
    text(source / "labels/upper.TXT", ROW)
    image(source / f"images/{unicodedata.normalize('NFC', 'é')}.jpg")
    text(source / f"labels/{unicodedata.normalize('NFD', 'é')}.txt", ROW)
    image(source / "images/Street_1.JPG")
    text(source / "labels/street_1.txt", ROW)
    found = read_frames(source)
    assert len(found.frames) == 5
    assert {frame.boxes for frame in found.frames} == {(BOX,)}
    assert found.problems == []
    assert found.notes == [
        "label files spelled otherwise: 3, the first labels/street_1.txt of images/Street_1.JPG"
    ]


@pytest.mark.parametrize(
    ("picture", "label"),
    [
        ("a.jpg", "a.jpg.txt"),
        ("a.jpg", "a .txt"),
        ("my photo.jpg", "my_photo.txt"),
        ("frame_1.jpg", "frame_0001.txt"),
        ("harbour_12.jpg", "harbor_12.txt"),
        ("train/a.jpg", "a.txt"),
        ("a.jpg", "cam/a.txt"),
        ("a.jpg", "a.TXT.txt"),
    ],
)
def test_a_near_miss_leaves_the_picture_out(tmp_path: Path, picture: str, label: str) -> None:
    source = yolo(tmp_path, "other")
    image(source / "images" / picture)
    text(source / "labels" / label, ROW)
    found = read_frames(source)
    assert [frame.name for frame in found.frames] == ["images/other.jpg"]
    (problem,) = found.problems
    assert problem.startswith(f"images/{picture}: ")
    assert f"labels/{label} is nearly that" in problem
    assert "2 left out (label file of nearly its name)" in reading(found)


@pytest.mark.parametrize(
    ("picture", "label"),
    [("frame_1", "frame_2"), ("cam1/0001", "cam2/0001"), ("a", "b"), ("left_7", "right_7")],
)
def test_another_name_is_no_near_miss(picture: str, label: str) -> None:
    matches = match_labels({f"images/{picture}.jpg": picture}, {f"labels/{label}.txt": label})
    assert matches.problems == {}
    assert matches.orphans == [f"labels/{label}.txt"]


def test_a_label_that_is_no_file_of_its_own_makes_no_negative(tmp_path: Path) -> None:
    """As in a git-annex whose content was not fetched."""
    for name in "abcde":
        image(tmp_path / f"images/{name}.jpg")
    text(tmp_path / "labels/a.txt", ROW)
    (tmp_path / "labels/b.txt").symlink_to("gone.txt")
    (tmp_path / "labels/c.txt").mkdir()
    (tmp_path / "labels/d.txt").symlink_to("a.txt")
    found = read_frames(tmp_path)
    assert [frame.name for frame in found.frames] == ["images/a.jpg", "images/e.jpg"]
    assert len(found.problems) == 3
    assert "images/b.jpg: its label file labels/b.txt is a broken link" in found.problems[0]
    assert "3 left out (label that is no file of its own)" in str(found.reading)
    assert "1 without label kept as negatives" in str(found.reading)


@pytest.mark.parametrize("whole", [True, False])
def test_labels_may_be_links_into_the_source(tmp_path: Path, whole: bool) -> None:
    """``labels`` is a link to one of several versions, or each label is."""
    for name in "abc":
        image(tmp_path / f"images/{name}.jpg")
    text(tmp_path / "labels_2/a.txt", ROW)
    text(tmp_path / "labels_2/b.txt", ROW)
    if whole:
        (tmp_path / "labels").symlink_to("labels_2")
    else:
        (tmp_path / "labels").mkdir()
        for name, label in (("a", "a"), ("b", "b"), ("c", "a")):
            (tmp_path / f"labels/{name}.txt").symlink_to(f"../labels_2/{label}.txt")
    found = read_frames(tmp_path)
    boxes = {frame.name: len(frame.boxes) for frame in found.frames}
    expected = {"images/a.jpg": 1, "images/b.jpg": 1}
    assert boxes == (expected | {"images/c.jpg": 0} if whole else expected)
    if not whole:
        linked = "labels/c.txt is a link to labels_2/a.txt, which is a label of its own"
        assert found.problems == [f"images/c.jpg: its label file {linked}: replace it"]
    assert found.reading is not None
    files = sum(path.is_file() and not path.is_symlink() for path in tmp_path.rglob("*"))
    used = found.reading.used + found.reading.labels + found.reading.omitted.total()
    assert used == files


def test_a_link_to_a_label_of_another_folder_is_no_label(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image(tmp_path / f"{split}/images/a.jpg")
    text(tmp_path / "val/labels/a.txt", ROW)
    (tmp_path / "train/labels").mkdir(parents=True)
    (tmp_path / "train/labels/a.txt").symlink_to("../../val/labels/a.txt")
    found = read_frames(tmp_path)
    assert [frame.name for frame in found.frames] == ["val/images/a.jpg"]
    assert "is a link to val/labels/a.txt, which is a label of its own" in found.problems[0]


def test_pictures_that_are_links_into_the_source_are_counted(tmp_path: Path) -> None:
    """They are known by the name that needs no link, to which no label belongs."""
    image(tmp_path / "all/a.jpg")
    (tmp_path / "images").symlink_to("all")
    text(tmp_path / "labels/a.txt", ROW)
    passed_over = "1 passed over (1 linked again), for example images (linked again)"
    with user_error("SOURCE", passed_over):
        read_frames(tmp_path)
    with user_error("format", passed_over):
        read_frames(tmp_path, form="yolo")


def test_two_pictures_of_one_label(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a", "b")
    image(source / "images/a.png")
    found = read_frames(source)
    assert [frame.name for frame in found.frames] == ["images/b.jpg"]
    assert len(found.problems) == 2
    assert "images/a.jpg and images/a.png have one label file labels/a.txt" in found.problems[0]


def test_names_that_differ_only_in_letter_case(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a", "A", "b")
    assert len(read_frames(source).frames) == 3
    (source / "labels/A.txt").rename(source / "labels/A.TXT")
    assert len(read_frames(source).frames) == 3
    (source / "labels/b.txt").rename(source / "labels/B.txt")
    text(source / "labels/b.TXT", ROW)
    found = read_frames(source)
    assert {frame.name for frame in found.frames} == {"images/a.jpg", "images/A.jpg"}
    assert "labels/B.txt and labels/b.TXT differ only in letter case" in found.problems[0]


def test_polygons_become_boxes(tmp_path: Path) -> None:
    """``polygons`` of the faults: the first is 0.2 … 0.6 across and 0.2 … 0.7 down."""
    source = yolo(tmp_path, "p0", "p1", row="0 0.2 0.2 0.6 0.2 0.6 0.7 0.2 0.7\n")
    text(source / "labels/p1.txt", "0 0.5 0.1 0.9 0.9 0.1 0.9\n" + ROW)
    assert boxes(source) == {
        "images/p0.jpg": (((0.2, 0.2, 0.6, 0.7),), (0,)),
        "images/p1.jpg": (((0.1, 0.1, 0.9, 0.9), BOX), (0, 0)),
    }
    assert read_frames(source).notes == [
        "polygons read as the boxes around them: 2, the first labels/p0.txt"
    ]


def test_rows_with_keypoints(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a", row=ROW.strip() + " 0.1 0.1 2 0.9 0.9 2\n")
    with user_error("SOURCE", "no usable frame"):
        text(source / "data.yaml", "names: [a]\n")
        text(source / "labels/a.txt", ROW.strip() + " 0.1 0.1 2\n")
        read_frames(source)
    text(source / "labels/a.txt", ROW.strip() + " 0.1 0.1 2 0.9 0.9 2\n")
    text(source / "data.yaml", "names: [a]\nkpt_shape: [2, 3]\n")
    assert boxes(source) == {"images/a.jpg": ((BOX,), (0,))}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0.0 0.5 0.5 0.25 0.5", "the class is no whole number: write 0.0 as 0"),
        ("car 0.5 0.5 0.25 0.5", "the class is no whole number"),
        ("0 0.5 0.5 0.25 0.5 0.97", "a sixth number is a confidence"),
        ("0 0.5 0.5 0.25 1e999", "expected class cx cy w h"),
        ("0 0.5 0.5 0.25 ٣", "expected class cx cy w h"),
        ("٣ 0.5 0.5 0.25 0.5", "the class is no whole number"),
        ("9" * 5000 + " 0.5 0.5 0.25 0.5", "the class is no whole number"),
        ("0,0.5,0.5,0.25,0.5", "row 2"),
        ("0 0.2 0.2 0.6 0.2 1.6 0.7", "row 2 [0.2, 0.2, 1.6, 0.7] exceeds the image"),
        ("0 0.5 0.5 0.25 0.5\0", "NUL"),
    ],
)
def test_bad_rows_are_one_line(tmp_path: Path, row: str, words: str) -> None:
    source = yolo(tmp_path, "a", "b")
    text(source / "labels/b.txt", f"{ROW}{row}\n")
    (problem,) = read_frames(source).problems
    assert problem.startswith("labels/b.txt: ")
    assert words in problem


def test_byte_order_marks_are_no_content(tmp_path: Path) -> None:
    """``bom`` of the faults, and UTF-16."""
    source = yolo(tmp_path, "a", "b", row=f"\ufeff{ROW.strip()}\r\n")
    (source / "labels/b.txt").write_bytes(ROW.encode("utf-16"))
    text(source / "classes.txt", "\ufeffcar\r\nbus\r\n")
    found = read_frames(source)
    assert found.classes == ["car", "bus"]
    assert found.problems == []
    (source / "classes.txt").write_bytes("zürich\n".encode("latin-1"))
    with user_error("labels", "classes.txt", "is not UTF-8 (line 1)"):
        read_frames(source)


@pytest.mark.parametrize(
    "layout",
    [
        ("{split}/images/{name}.jpg", "{split}/labels/{name}.txt"),
        ("images/{split}/{name}.jpg", "labels/{split}/{name}.txt"),
        ("{split}/{name}.jpg", "{split}/{name}.txt"),
        ("set/images/{split}/{name}.jpg", "set/labels/{split}/{name}.txt"),
        ("Images/{split}/{name}.jpg", "Labels/{split}/{name}.txt"),
    ],
)
def test_layouts_with_splits(tmp_path: Path, layout: tuple[str, str]) -> None:
    for split, name in (("train", "a"), ("valid", "b")):
        picture, label = (each.format(split=split, name=name) for each in layout)
        image(tmp_path / picture)
        text(tmp_path / label, ROW)
    found = read_frames(tmp_path)
    assert [frame.boxes for frame in found.frames] == [(BOX,)] * 2
    assert sorted(found.split.values()) == ["train", "val"]


def test_pictures_and_labels_in_one_folder(tmp_path: Path) -> None:
    """As labelImg writes them."""
    for name in "ab":
        image(tmp_path / f"{name}.jpg")
    text(tmp_path / "a.txt", ROW)
    text(tmp_path / "classes.txt", "cat\n")
    text(tmp_path / "notes.txt", "see the wiki\n")
    text(tmp_path / "gone.txt", ROW)
    found = read_frames(tmp_path)
    assert [frame.boxes for frame in found.frames] == [(BOX,), ()]
    assert found.problems == ["gone.txt: its image does not exist: restore or remove it"]
    assert reading(found) == (
        "read as YOLO: names from classes.txt, no split; 2 pictures used, 2 label files, "
        "1 passed over (1 TXT), 1 without label kept as negatives, 1 left out (without picture)"
    )


def test_labelimg_with_xml_files_in_one_folder(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    text(tmp_path / "a.xml", voc(("cat", 1, 1, 9, 9), filename="a.jpg"))
    assert read_frames(tmp_path).format == "voc"


# Two formats


def test_two_formats_that_disagree(tmp_path: Path) -> None:
    """``two_layouts`` of the faults."""
    source = yolo(tmp_path, *map(str, range(10)), row="1 0.5 0.5 0.25 0.5\n")
    text(source / "data.yaml", "names: [cat, dog]\n")
    for number in range(3):
        content = voc(("old", 1, 1, 20, 20), filename=f"{number}.jpg")
        text(source / f"annotations/{number}.xml", content)
    with user_error("format", "VOC and YOLO", "3 images in VOC and 10", "=voc or format=yolo"):
        read_frames(source)
    found = read_frames(source, form="yolo")
    assert (len(found.frames), found.classes) == (10, ["cat", "dog"])
    assert "3 passed over (3 XML)" in reading(found)
    assert len(read_frames(source, form="voc").frames) == 3
    with user_error("format", "format=coco", "no labels as COCO"):
        read_frames(source, form="coco")


def test_two_formats_that_agree(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a", "b")
    text(source / "classes.txt", "cat\n")
    for name in "ab":  # 37.5 … 62.5 of 100 px, 12.5 … 37.5 of 50 px
        text(source / f"Annotations/{name}.xml", voc(("cat", 38.5, 13.5, 62.5, 37.5)))
    found = read_frames(source)
    assert found.format == "voc"
    assert found.notes == ["other formats, which agree: 1, the first YOLO"]
    text(source / "Annotations/b.xml", voc(("cat", 38.5, 13.5, 61.5, 37.5)))
    with user_error("format", "images/b.jpg has other boxes or classes"):
        read_frames(source)
    text(source / "Annotations/b.xml", voc(("dog", 38.5, 13.5, 62.5, 37.5)))
    with user_error("format", "images/b.jpg has other boxes or classes"):
        read_frames(source)


def test_the_format_that_declares_splits_is_used(tmp_path: Path) -> None:
    """And two that both do are compared."""
    source = yolo(tmp_path, "a", "b", "c")
    text(source / "classes.txt", "cat\n")
    boxes = {"bbox": [37.5, 12.5, 25, 25], "category_id": 1, "iscrowd": 0}
    for split, names in (("train", "ab"), ("val", "c")):
        images = [
            {"id": number, "file_name": f"{name}.jpg", "width": 100, "height": 50}
            for number, name in enumerate(names)
        ]
        content = {
            "images": images,
            "annotations": [{"id": each["id"], "image_id": each["id"], **boxes} for each in images],
            "categories": [{"id": 1, "name": "cat"}],
        }
        text(source / f"annotations/instances_{split}.json", json.dumps(content))
    found = read_frames(source)
    assert found.format == "coco"
    assert sorted(found.split.values()) == ["train", "train", "val"]
    text(source / "train.txt", "images/a.jpg\nimages/b.jpg\n")
    text(source / "val.txt", "images/c.jpg\n")
    assert read_frames(source).format == "yolo"
    text(source / "train.txt", "images/a.jpg\nimages/c.jpg\n")
    text(source / "val.txt", "images/b.jpg\n")
    with user_error("format", "images/b.jpg is in the split val and in train"):
        read_frames(source)
    for split in ("train", "val"):
        path = source / f"annotations/instances_{split}.json"
        path.write_text(path.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))
    with user_error("format", "images/a.jpg has other ignore regions"):
        read_frames(source)


def test_other_xml_and_json_files_are_no_second_format(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a")
    text(source / "project.xml", "<project><name>x</name></project>")
    text(source / "notes.json", "{")
    (source / "Annotations").mkdir()
    shutil.copy(source / "project.xml", source / "Annotations")
    assert read_frames(source).format == "yolo"
