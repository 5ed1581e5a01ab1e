"""VOC annotations: what an XML file says twice, its picture, difficult objects, encodings."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from research.data.frames.annotations import read_frames
from tests.data.frames.drawn import draw, pixel_boxes, voc, write

BOX = (20, 10, 40, 20)


def source(root: Path, *pictures: str, **documents: str) -> Path:
    for name in pictures or ("a.jpg", "b.jpg"):
        draw(root / "JPEGImages" / name)
    for stem, text in documents.items():
        write(root / f"Annotations/{stem}.xml", text)
    return root


@pytest.mark.parametrize(
    ("value", "ignored"), [(None, False), (0, False), (1, True), ("", False), (" 1 ", True)]
)
def test_difficult_objects_are_ignored_areas(tmp_path: Path, value: Any, ignored: bool) -> None:
    a = voc({"difficult": value})
    found = read_frames(source(tmp_path, a=a, b=voc({}, {"box": (0, 0, 9, 9), "difficult": 1})))
    assert [any(frame.ignored) for frame in found.frames] == [ignored, True]
    assert found.frames[1].ignored == (False, True)
    # A picture with difficult objects alone is no negative.
    assert (found.runs[0].non_empty, found.runs[0].empty) == (2, 0)


@pytest.mark.parametrize("value", ["2", "hard", "-1", "nan"])
def test_a_bad_flag_is_one_line(tmp_path: Path, value: str) -> None:
    found = read_frames(source(tmp_path, a=voc({"difficult": value}), b=voc()))
    assert [frame.name for frame in found.frames] == ["JPEGImages/b.jpg"]
    assert f"object 0 difficult is '{value}': expected 0 or 1" in found.problems[0]


def test_the_named_picture_is_compared_with_the_name_of_the_file(tmp_path: Path) -> None:
    other, gone = voc({}, filename="b.jpg"), voc({}, filename="gone.jpg")
    found = read_frames(source(tmp_path, "a.jpg", "b.jpg", "c.jpg", a=other, c=gone))
    assert pixel_boxes(found) == {"JPEGImages/c.jpg": [BOX]}
    assert found.problems == [
        "Annotations/a.xml: names b.jpg, but JPEGImages/a.jpg has its name: correct filename"
    ]
    assert "names an image that does not exist" in found.notes[0]
    assert found.passed_over.counts == {"not in any annotation file": 1}
    # One that alone exists is read.
    found = read_frames(source(tmp_path / "two", "b.jpg", a=other))
    assert pixel_boxes(found) == {"JPEGImages/b.jpg": [BOX]}


def test_two_pictures_of_one_stem(tmp_path: Path) -> None:
    source(tmp_path, "a.jpg", "a.png", "b.jpg", a=voc({}), b=voc())
    found = read_frames(tmp_path)
    assert pixel_boxes(found) == {"JPEGImages/b.jpg": []}
    assert "its image may be JPEGImages/a.jpg and JPEGImages/a.png" in found.problems[0]
    write(tmp_path / "Annotations/a.xml", voc({}, filename="a.png"))
    found = read_frames(tmp_path)
    assert pixel_boxes(found) == {"JPEGImages/a.png": [BOX], "JPEGImages/b.jpg": []}
    assert found.passed_over.counts == {"not in any annotation file": 1}


def test_a_name_without_suffix_is_that_of_its_picture(tmp_path: Path) -> None:
    found = read_frames(source(tmp_path, "a.v1.jpg", **{"a.v1": voc({}, filename="a.v1")}))
    assert pixel_boxes(found) == {"JPEGImages/a.v1.jpg": [BOX]}
    assert found.notes == []


def test_two_files_for_one_picture(tmp_path: Path) -> None:
    same = voc({}, filename="a.jpg")
    found = read_frames(source(tmp_path, "a.jpg", a=same, other=same))
    assert pixel_boxes(found) == {"JPEGImages/a.jpg": [BOX]}
    assert "described again with the same boxes, used once: 1" in found.notes[0]
    third = voc({"box": (0, 0, 9, 9)}, filename="a.jpg")
    found = read_frames(source(tmp_path, a=same, other=third, b=voc()))
    assert pixel_boxes(found) == {"JPEGImages/b.jpg": []}
    assert len(found.problems) == 2
    assert "Annotations/other.xml, with other boxes" in found.problems[0]


def test_equal_objects_and_names_of_classes_are_noted(tmp_path: Path) -> None:
    found = read_frames(source(tmp_path, a=voc({}, {}), b=voc({"name": "Cat"})))
    assert found.classes == ["Cat", "cat"]
    assert [len(frame.boxes) for frame in found.frames] == [2, 1]
    assert "two equal boxes of one class" in found.notes[0]
    assert "differ only in letter case, spaces or Unicode form: 1" in found.notes[1]


@pytest.mark.parametrize(
    ("said", "stem", "real"),
    [
        ("A.JPG", "a", "a.jpg"),
        ("", "A", "a.jpg"),
        ("", "a", "a.JPG"),
        (unicodedata.normalize("NFD", "é.jpg"), "é", "é.jpg"),
        ("", unicodedata.normalize("NFD", "é"), "é.jpg"),
    ],
)
def test_spelling_of_names(tmp_path: Path, said: str, stem: str, real: str) -> None:
    found = read_frames(source(tmp_path, real, **{stem: voc({}, filename=said)}))
    assert pixel_boxes(found) == {f"JPEGImages/{real}": [BOX]}
    assert found.problems == []


def test_coordinates_may_be_fractions(tmp_path: Path) -> None:
    found = read_frames(source(tmp_path, a=voc({"box": (20.5, 10.25, 40, 20)})))
    assert pixel_boxes(found) == {"JPEGImages/a.jpg": [(20.5, 10.25, 40, 20)]}


@pytest.mark.parametrize("place", ["Annotations/a.xml", "annotations/a.xml", "ANNOTATIONS/x/a.xml"])
def test_folders_are_found_in_any_letter_case(tmp_path: Path, place: str) -> None:
    inner = Path(place).parent.name if place.count("/") > 1 else ""
    draw(tmp_path / "jpegImages" / inner / "a.jpg")
    write(tmp_path / place, voc({}))
    assert list(pixel_boxes(read_frames(tmp_path)).values()) == [[BOX]]


def test_files_beside_pictures_are_read_at_any_depth(tmp_path: Path) -> None:
    for folder in ("train", "valid", "valid/more"):
        draw(tmp_path / folder / "a.jpg")
        write(tmp_path / folder / "a.xml", voc({}, filename="a.jpg"))
    write(tmp_path / "project.xml", "<project/>")
    found = read_frames(tmp_path)
    assert set(pixel_boxes(found)) == {"train/a.jpg", "valid/a.jpg", "valid/more/a.jpg"}
    assert found.passed_over.counts == {"XML": 1}


def test_every_file_is_used_or_counted(tmp_path: Path) -> None:
    source(tmp_path, "a.jpg", "b.jpg", a=voc({}))
    draw(tmp_path / "JPEGImages/.ipynb_checkpoints/a.jpg")
    draw(tmp_path / "__MACOSX/a.jpg")
    write(tmp_path / "Annotations/._a.xml", "x")
    write(tmp_path / "__MACOSX/Annotations/a.xml", voc({}))
    write(tmp_path / "SegmentationClass/a.npz", "x")
    (tmp_path / "Annotations/loop").symlink_to("..")
    found = read_frames(tmp_path)
    assert pixel_boxes(found) == {"JPEGImages/a.jpg": [BOX]}
    assert found.passed_over.counts == {
        "hidden": 2, "system": 2, "NPZ": 1, "linked again": 1, "not in any annotation file": 1,
    }  # fmt: skip
    assert found.problems == []


def declared(encoding: str, name: str = "café") -> str:
    return f'<?xml version="1.0" encoding="{encoding}"?>' + voc({"name": name})


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "cp1252", "utf-16", "gb18030"])
def test_the_declared_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    source(tmp_path, "a.jpg")
    write(tmp_path / "Annotations/a.xml", declared(encoding).encode(encoding))
    assert read_frames(tmp_path).classes == ["café"]


def test_another_encoding_than_the_declared_one_is_one_line(tmp_path: Path) -> None:
    source(tmp_path, b=voc())
    for declaration, real in (("iso-8859-1", "utf-8"), ("utf-8", "iso-8859-1")):
        write(tmp_path / "Annotations/a.xml", declared(declaration).encode(real))
        found = read_frames(tmp_path)
        assert [frame.name for frame in found.frames] == ["JPEGImages/b.jpg"]
        assert len(found.problems) == 1
        assert found.problems[0].startswith("Annotations/a.xml: ")


@pytest.mark.parametrize(
    ("tag", "first", "second"),
    [
        ("filename", "a.jpg", "b.jpg"),
        ("size", "<width>100</width><height>50</height>", "<width>50</width><height>100</height>"),
        ("object/name", "cat", "dog"),
        ("object/difficult", "0", "1"),
        ("object/bndbox/xmin", "21", "1"),
    ],
)
def test_an_element_that_is_declared_twice_is_compared(
    tmp_path: Path, tag: str, first: str, second: str
) -> None:
    *_, name = tag.split("/")
    text = voc({"difficult": 0}, filename="a.jpg", size=(100, 50))
    one, two = f"<{name}>{first}</{name}>", f"<{name}>{second}</{name}>"
    assert one in text
    found = read_frames(source(tmp_path, b=voc(), a=text.replace(one, one + one)))
    assert pixel_boxes(found) == {"JPEGImages/a.jpg": [BOX], "JPEGImages/b.jpg": []}
    found = read_frames(source(tmp_path, a=text.replace(one, one + two)))
    assert pixel_boxes(found) == {"JPEGImages/b.jpg": []}
    assert "has two of" in found.problems[0]


def test_coordinates_from_zero_are_noted(tmp_path: Path) -> None:
    found = read_frames(source(tmp_path, a=voc({"box": (-1, 5, 20, 20)})))
    assert pixel_boxes(found) == {"JPEGImages/a.jpg": [(0, 5, 19, 20)]}
    assert "coordinates that count from 0" in found.notes[0]


@pytest.mark.parametrize("line", [".", "/", "..", "./", "x/..", "//", " . "])
def test_a_line_of_a_list_that_names_nothing_is_counted(tmp_path: Path, line: str) -> None:
    source(tmp_path, a=voc({}), b=voc())
    write(tmp_path / "ImageSets/Main/train.txt", f"a\n{line}\n")
    write(tmp_path / "ImageSets/Main/val.txt", "b\n")
    found = read_frames(tmp_path)
    assert len(found.frames) == 2
    assert "ImageSets/Main/train.txt line 2" in found.problems[0]
