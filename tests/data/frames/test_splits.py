"""Splits and names that a source declares, and how they are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.data.frames.annotations import read_frames
from research.data.frames.frame import FrameSet
from research.data.frames.layout import split_from_name, splits_from_files
from tests.conftest import user_error
from tests.data.frames.test_annotations import image, text, voc

ROW = "0 0.5 0.5 0.25 0.5\n"


def yolo(root: Path, *names: str, row: str = ROW) -> Path:
    """``images/NAME.jpg`` and ``labels/NAME.txt`` of every name."""
    for name in names:
        image(root / f"images/{name}.jpg")
        text(root / f"labels/{name}.txt", row)
    return root


def split_of(found: FrameSet) -> dict[str, str]:
    """Stem of each frame → its split."""
    return {
        Path(frame.name).stem: found.split[frame.group]
        for frame in found.frames
        if frame.group in found.split
    }


def reading(found: FrameSet) -> str:
    assert found.reading is not None
    return found.reading.line


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("path: .\ntrain: images/one\nval: images/two\n",
         "data.yaml (train: images/one, val: images/two)"),
        ("train: images/one\nval: images/two\ntest:\n", "data.yaml (train: images/one"),
        ("path: ../source\ntrain: [images/one]\nvalid: [images/two]\n", "val: images/two"),
        ("path: /gone/elsewhere\ntrain: ./images/one/\nval: images\\two\n", "data.yaml"),
        ("train: ../images/one\nval: ../images/two\n", "data.yaml (train: ../images/one"),
        ("train: /content/drive/set/images/one\nval: images/two\n", "data.yaml"),
        ("path: images\ntrain: one\nval: two\ntest: two\n", "data.yaml"),
        ("train: one.txt\nval: two.txt\n", "split from one.txt and two.txt of data.yaml"),
        ("train: images/one\nval: lists/two.txt\n", "val: lists/two.txt"),
    ],
)  # fmt: skip
def test_data_yaml_declares_the_splits(tmp_path: Path, yaml: str, words: str) -> None:
    """``yaml_folders`` and ``yaml_lists`` of the faults, and the paths that ultralytics takes."""
    source = yolo(tmp_path / "source", "one/a", "one/b", "two/c")
    text(source / "one.txt", "./images/one/a.jpg\n\nimages/one/b.jpg\n")
    text(source / "two.txt", "/home/someone/source/images/two/c.jpg\r\n")
    text(source / "lists/two.txt", "../images/two/c.jpg\n")
    text(source / "data.yaml", yaml + "names: {0: cat}\n")
    found = read_frames(source)
    assert split_of(found) == {"a": "train", "b": "train", "c": "val"}
    assert found.problems == []
    assert "names from data.yaml" in reading(found)
    assert words in reading(found)


def test_train_and_val_are_not_swapped(tmp_path: Path) -> None:
    """A draw would take fold_a for validation."""
    source = yolo(tmp_path, *(f"fold_a/a{n}" for n in range(4)), "fold_b/b0", "fold_b/b1")
    text(source / "data.yaml", "train: images/fold_b\nval: images/fold_a\nnames: [a]\n")
    assert set(split_of(read_frames(source)).items()) == {
        *((f"a{n}", "val") for n in range(4)),
        ("b0", "train"),
        ("b1", "train"),
    }


def test_lists_without_a_yaml_file(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a", "b", "c")
    text(source / "train.txt", "\ufeffimages/a.jpg\nimages/b.jpg\nimages/b.jpg\nimages/gone.jpg\n")
    text(source / "valid.txt", "./images/C.JPG\n")
    text(source / "test.txt", "what was tested\n")
    found = read_frames(source)
    assert split_of(found) == {"a": "train", "b": "train", "c": "val"}
    assert found.problems == [
        "train.txt line 4: its image images/gone.jpg does not exist: restore it or remove the line"
    ]
    assert "split from train.txt and valid.txt;" in reading(found)
    assert "1 passed over (1 TXT)" in reading(found)
    assert found.notes == ["repeated lines of lists: 1, the first train.txt line 3"]


def test_darknet(tmp_path: Path) -> None:
    for name in "abc":
        image(tmp_path / f"data/obj/{name}.jpg")
        text(tmp_path / f"data/obj/{name}.txt", ROW)
    text(tmp_path / "data/obj.names", "cat\ndog\n")
    lines = "classes= 2\ntrain = data/train.txt\nvalid=data/test.txt\nnames = data/obj.names\n"
    text(tmp_path / "data/obj.data", lines + "backup = backup/ # later\n")
    text(tmp_path / "data/train.txt", "data/obj/a.jpg\ndata/obj/b.jpg\n")
    text(tmp_path / "data/test.txt", "/home/x/darknet/data/obj/c.jpg\n")
    found = read_frames(tmp_path)
    assert (found.classes, split_of(found)) == (
        ["cat", "dog"],
        {"a": "train", "b": "train", "c": "val"},
    )
    assert found.problems == []
    assert (
        "names from data/obj.data, split from data/train.txt and data/test.txt of data/obj.data"
        in reading(found)
    )
    text(tmp_path / "data/obj.data", lines.replace("= 2", "= 3"))
    with user_error("data_yaml", "obj.data", "classes is 3", "2 names", "data_yaml=none"):
        read_frames(tmp_path)
    assert read_frames(tmp_path, data_yaml="none").classes == ["cat", "dog"]


def test_pictures_in_no_split_or_in_two_are_left_out(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a", "b", "c", "d")
    text(source / "data.yaml", "train: train.txt\nval: val.txt\nnames: [a]\n")
    text(source / "train.txt", "images/a.jpg\nimages/b.jpg\n")
    text(source / "val.txt", "images/b.jpg\nimages/c.jpg\n")
    found = read_frames(source)
    assert split_of(found) == {"a": "train", "c": "val"}
    assert len(found.problems) == 2
    assert "images/b.jpg: is in train and val of train.txt and val.txt" in found.problems[0]
    assert "images/d.jpg: is in no split" in found.problems[1]
    assert "2 left out (1 in two splits, 1 in no split)" in reading(found)


def test_folders_are_compared_with_the_yaml_file(tmp_path: Path) -> None:
    source = yolo(tmp_path, "train/a", "val/b")
    text(source / "data.yaml", "train: images/val\nval: images/train\nnames: [a]\n")
    with user_error("data_yaml", "images/train/a.jpg", "folder is of train", "val of", "=none"):
        read_frames(source)
    assert split_of(read_frames(source, data_yaml="none")) == {"a": "train", "b": "val"}
    assert split_of(read_frames(source, data_yaml="data.yaml")) == {"a": "val", "b": "train"}
    text(source / "data.yaml", "train: images/train\nval: images/gone\n")
    with user_error("data_yaml", "val: images/gone is no folder of images and no list", "=none"):
        read_frames(source)
    with user_error("data_yaml", "data_yaml=set.yaml: no such file"):
        read_frames(source, data_yaml="set.yaml")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"coco_pretrain.yaml": "names: [person, bicycle, car]", "data.yaml": "names: [polyp]"},
         ("class 0 is 'polyp' in data.yaml, and 'person' in coco_pretrain.yaml",
          "data_yaml=data.yaml or data_yaml=coco_pretrain.yaml")),
        ({"data.yaml": "names: [cat, dog]", "classes.txt": "dog\ncat\n"},
         ("class 0 is 'cat' in data.yaml, and 'dog' in classes.txt", "data_yaml=data.yaml")),
        ({"data.yaml": "names: {0: cat, 1: dog}", "labels/classes.txt": "cat\n"},
         ("class 1 is 'dog' in data.yaml, and not named in labels/classes.txt",)),
        ({"a.yaml": "train: images/x\nval: images/y", "b.yaml": "train: images/y\nval: images/x"},
         ("a.yaml and b.yaml declare different splits", "data_yaml=b.yaml")),
    ],
)  # fmt: skip
def test_two_declarations_that_disagree(
    tmp_path: Path, files: dict[str, str], words: tuple[str, ...]
) -> None:
    """``two_yaml`` of the faults."""
    source = yolo(tmp_path, "x/a", "y/b")
    for name, content in files.items():
        text(source / name, content)
    with user_error("data_yaml", *words):
        read_frames(source)
    first = min(files)
    found = read_frames(source, data_yaml=first if first.endswith("yaml") else "data.yaml")
    assert len(found.frames) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nc: 3\nnames: [a, b]", "nc is 3, but data.yaml has 2 names"),
        ("nc: '2'\nnames: [a, b]", "nc is '2': expected a whole number"),
        ("nc: 0.5", "nc is 0.5: expected a whole number"),
        ("names: [on, off]", "class 0 is the truth value True: quote the word"),
        ("names: {0: a, 1: no}", "class 1 is the truth value False: quote the word"),
        ("names: [[a], b]", "expected a list of words"),
        ("names: {1: a}", "number the classes 0 to 0"),
        ("names: 7", "expected a list of words"),
        ("train: [1, 2]", "train: expected a path"),
        ("[" * 5000, "nested too deeply"),
        ("names: [a]\n\0", "NUL"),
        ("a: &a [x]\nb: *c", "bad YAML"),
    ],
)
def test_bad_yaml_files_are_one_line(tmp_path: Path, content: str, words: str) -> None:
    source = yolo(tmp_path, "a")
    text(source / "data.yaml", content)
    with user_error("data_yaml", "data.yaml", words):
        read_frames(source)


def test_numbers_of_classes_may_be_quoted_as_in_ultralytics(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a")
    text(source / "data.yaml", "names: {'1': 'off', '0': 'on'}\n")
    assert read_frames(source).classes == ["on", "off"]


def test_the_number_of_classes_is_compared_with_names_and_labels(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a", row=ROW.replace("0", "2", 1))
    image(source / "images/b.jpg")
    text(source / "labels/b.txt", ROW)
    text(source / "data.yaml", "nc: 5\n")
    text(source / "network.yaml", "nc: 80\n")
    found = read_frames(source)
    assert found.classes == ["0", "1", "2", "3", "4"]
    assert "classes by number" in reading(found)
    text(source / "data.yaml", "nc: 2\n")
    assert "labels/a.txt: row 1: class 2 of 2" in read_frames(source).problems[0]
    text(source / "classes.txt", "cat\ndog\npig\n")
    with user_error("data_yaml", "data.yaml: nc is 2, but classes.txt has 3 names", "=none"):
        read_frames(source)
    assert read_frames(source, data_yaml="none").classes == ["cat", "dog", "pig"]


@pytest.mark.parametrize("names", ["cat\n\ndog\n", "\ncat\ndog", "cat\n \ndog\r\n\r\n"])
def test_a_blank_line_among_class_names_is_no_guess(tmp_path: Path, names: str) -> None:
    """labelImg and darknet count it; a reader that does not gives the label dog to a cat."""
    source = yolo(tmp_path, "a")
    text(source / "classes.txt", names)
    with user_error("labels", "classes.txt: line", "is blank"):
        read_frames(source)
    text(source / "classes.txt", "cat\ndog\n\n \n")
    assert read_frames(source).classes == ["cat", "dog"]


def test_two_classes_of_one_name_are_noted(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a")
    text(source / "classes.txt", "cat\ncat\nCat\n")
    found = read_frames(source)
    assert found.classes == ["cat", "cat", "Cat"]
    assert "the same or differ only in letter case" in found.notes[0]
    assert ": 2, the first 'cat' and 'cat'" in found.notes[0]


def test_files_that_declare_something_may_have_any_letter_case(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a", "b")
    text(source / "CLASSES.TXT", "cat\n")
    text(source / "Train.txt", "images/a.jpg\n")
    text(source / "VAL.TXT", "images/b.jpg\n")
    found = read_frames(source)
    assert (found.classes, split_of(found)) == (["cat"], {"a": "train", "b": "val"})
    assert "names from CLASSES.TXT, split from Train.txt and VAL.TXT" in reading(found)


def test_other_yaml_files_are_passed_over(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a")
    text(source / "data.yaml", "names: [a]\n")
    text(source / "args.yaml", "lr0: 0.01\n")
    found = read_frames(source)
    assert found.classes == ["a"]
    assert "1 passed over (1 YAML)" in reading(found)


@pytest.mark.parametrize("entries", ["train: []\nval:\n", "train: ['', ' ']", "path: 3\ntrain:\n"])
def test_empty_entries_declare_nothing(tmp_path: Path, entries: str) -> None:
    source = yolo(tmp_path, "train/a", "val/b")
    text(source / "data.yaml", f"names: [a]\n{entries}\n")
    assert split_of(read_frames(source)) == {"a": "train", "b": "val"}


def test_lists_of_voc(tmp_path: Path) -> None:
    for name in "abcde":
        image(tmp_path / f"JPEGImages/{name}.jpg")
        text(tmp_path / f"Annotations/{name}.xml", voc(("cat", 1, 1, 9, 9)))
    text(tmp_path / "ImageSets/Main/train.txt", "a\r\nd.jpg\r\ngone\r\n")
    text(tmp_path / "ImageSets/Main/val.txt", "b\nd\n")
    text(tmp_path / "ImageSets/Main/test.txt", "JPEGImages/c.jpg\n")
    found = read_frames(tmp_path)
    assert split_of(found) == {"a": "train", "b": "val", "c": "test"}
    assert [line.partition(":")[0] for line in found.problems] == [
        "ImageSets/Main/train.txt line 3",
        "JPEGImages/d.jpg",
    ]
    assert "split from ImageSets/Main/train.txt, ImageSets/Main/val.txt and" in reading(found)
    assert found.notes == [
        "images in no list, kept as if there were none: 1, the first JPEGImages/e.jpg"
    ]


def test_lists_of_voc_in_another_spelling(tmp_path: Path) -> None:
    for name in ("A.1", "B", "A"):
        image(tmp_path / f"JPEGImages/{name}.jpg")
        text(tmp_path / f"Annotations/{name}.xml", voc(("cat", 1, 1, 9, 9)))
    text(tmp_path / "imagesets/main/Train.txt", "a.1\t1\nA.2 -1\n")
    text(tmp_path / "imagesets/main/val.txt", "b.JPG\n")
    found = read_frames(tmp_path)
    assert split_of(found) == {"A.1": "train", "B": "val"}  # A.2 is not A
    assert len(found.problems) == 1
    assert "A.2 -1 has no label file" in found.problems[0]
    assert "split from imagesets/main/Train.txt and imagesets/main/val.txt" in reading(found)


def test_words_of_splits_in_other_names(tmp_path: Path) -> None:
    """``words`` of the faults."""
    found = read_frames(yolo(tmp_path, "train_station/a", "test_track/b", "harbour/c", "Testing/d"))
    assert found.split == {}
    assert {frame.group for frame in found.frames} == {
        f"images/{name}" for name in ("train_station", "test_track", "harbour", "Testing")
    }


def test_the_reading_names_the_folders_of_splits(tmp_path: Path) -> None:
    found = read_frames(yolo(tmp_path, "train2017/a", "Validation/b"))
    assert split_of(found) == {"a": "train", "b": "val"}
    assert "split from the folders Validation and train2017;" in reading(found)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("valid", "val"),
        ("testing", "test"),
        ("train2017", "train"),
        ("instances_val2017", "val"),
        ("images_train", "train"),
        ("images_rgb_val", "val"),
        ("test-dev2017", "test"),
        ("train_station", ""),
        ("test_track", ""),
        ("trainé", ""),
        ("train1", ""),
        ("train_val", ""),
        ("contest", ""),
        ("", ""),
    ],
)
def test_only_whole_names_are_splits(name: str, split: str) -> None:
    assert split_from_name(name) == split


def test_annotation_files_whose_names_differ_in_the_split() -> None:
    assert splits_from_files(["street_train", "street_val", "train_station"]) == {
        "street_train": "train",
        "street_val": "val",
    }
    assert splits_from_files(["street_train"]) == {}
