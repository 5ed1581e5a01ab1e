"""Paired folders: found, read, judged, and written as arrays."""

from __future__ import annotations

import errno
import json
import math
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from research.data.frames.frame import Frame, FrameSet
from research.data.frames.limits import check_limits
from research.data.frames.yolo import read_yolo, yolo_folders
from research.data.rgbx import pack as packing
from research.data.rgbx.arrays import ARRAYS
from research.data.rgbx.pairs import Pairs, find_folders
from research.utils.errors import UserError

SIZE = (40, 20)
BOX = (0.25, 0.5, 0.75, 1.0)
"""From 10 to 30 px across and from 10 to 20 px down."""

YOLO = "1 0.5 0.75 0.5 0.5\n"


def noise(seed: int, channels: int = 0, dtype: type = np.uint8) -> np.ndarray:
    shape = SIZE[::-1] + ((channels,) if channels else ())
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, True)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def make(root: Path, names: str = "ab", label: str = YOLO) -> Path:
    """Pictures ``rgb/a.png``, ``thermal/a.png`` and ``labels/a.txt`` for every letter."""
    for name in names:
        save(root / f"rgb/{name}.png", noise(ord(name), 3))
        save(root / f"thermal/{name}.png", noise(1000 + ord(name)))
        text(root / f"labels/{name}.txt", label)
    text(root / "classes.txt", "cat\ndog\n")
    return root


def read(source: Path, require_labels: bool = False, **named: str) -> tuple[FrameSet, Pairs]:
    pairs = Pairs(source, find_folders(source, named))
    return pairs.read(require_labels), pairs


def pack(source: Path, out: Path, **settings: Any) -> dict[str, Any]:
    found, pairs = read(source)
    return packing.pack(found, pairs, out, **{"judge": lambda _: None, "workers": 2, **settings})


def written(out: Path) -> dict[str, Any]:
    """Place of every array → boxes and labels, by the reader that training uses."""
    found = read_yolo(out, yolo_folders(out), ARRAYS, require_labels=True)
    assert found.problems == []
    return {
        frame.name.removeprefix("images/").removesuffix(".npy"): (frame.boxes, frame.labels)
        for frame in found.frames
    }


def arrays(out: Path) -> dict[str, np.ndarray]:
    files = sorted((out / "images").rglob("*.npy"))
    return {path.relative_to(out / "images").as_posix(): np.load(path) for path in files}


# What is written


def as_yolo(source: Path) -> None:
    text(source / "labels/a.txt", YOLO)
    text(source / "labels/b.txt", "")
    text(source / "data.yaml", "names: [cat, dog]")


def as_voc(source: Path) -> None:
    items = [("dog", (11, 11, 30, 20)), ("cat", (1, 1, 40, 20))]
    for name, objects in (("a", items[:1]), ("b", [])):
        inner = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in objects
        )
        text(source / f"Annotations/{name}.xml", f"<annotation>{inner}</annotation>")


def as_coco(source: Path, picture: str = "{}.png") -> None:
    document = {
        "images": [{"id": n, "file_name": picture.format(name)} for n, name in enumerate("ab")],
        "annotations": [{"image_id": 0, "category_id": 8, "bbox": [10, 10, 20, 10]}],
        "categories": [{"id": 4, "name": "cat"}, {"id": 8, "name": "dog"}],
    }
    text(source / "annotations/instances.json", json.dumps(document))


@pytest.mark.parametrize(
    ("label", "folders"),
    [
        (as_yolo, ("rgb", "thermal", "event")),
        (as_voc, ("visible", "infrared", "events")),
        (as_coco, ("RGB", "lwir", "Event")),
        (lambda source: as_coco(source, "thermal/{}.png"), ("vis", "thermal", "event")),
        (as_coco, ("images", "ir", "events")),
    ],
)
def test_every_form_of_labels_gives_the_same_arrays_and_rows(
    tmp_path: Path, label: Callable[[Path], None], folders: tuple[str, ...]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for number, name in enumerate("ab"):
        for place, folder in enumerate(folders):
            seed = 10 * number + place
            save(source / folder / f"{name}.png", noise(seed, 0 if place else 3))
    label(source)
    made = pack(source, out)
    dog = 0 if label is as_voc else 1  # VOC names no class that has no box
    assert written(out) == {"a": ((BOX,), (dog,)), "b": ((), ())}
    for number, (name, array) in enumerate(arrays(out).items()):
        assert name == "ab"[number] + ".npy"
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array[..., :3], noise(10 * number, 3))
        np.testing.assert_array_equal(array[..., 3], noise(10 * number + 1))
        np.testing.assert_array_equal(array[..., 4], noise(10 * number + 2))
    assert made == json.loads((out / "rgbx.json").read_text())
    assert made["channels"] == ["red", "green", "blue", "thermal", "event"]
    assert made["classes"]["dog"] == made["counts"]["boxes"] == made["counts"]["negatives"] == 1
    assert (out / "classes.txt").read_text().split() == list(made["classes"])


def test_one_deep_file_makes_all_arrays_deep(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    deep = noise(5, dtype=np.uint16)
    save(source / "thermal/b.png", deep)
    assert pack(source, tmp_path / "out")["dtype"] == "uint16"
    found = arrays(tmp_path / "out")
    for name in "ab":
        np.testing.assert_array_equal(found[f"{name}.npy"][..., :3] / 257, noise(ord(name), 3))
    np.testing.assert_array_equal(found["a.npy"][..., 3], noise(1000 + ord("a")) * 257.0)
    np.testing.assert_array_equal(found["b.npy"][..., 3], deep)


def stored_in_colour(path: Path, grey: np.ndarray) -> None:
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(path)


def stored_as_palette(path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey).convert("P").save(path)


@pytest.mark.parametrize(
    ("suffix", "store", "dtype"),
    [
        (".png", stored_in_colour, np.uint8),
        (".png", stored_as_palette, np.uint8),
        (".png", save, np.uint16),
        (".tif", save, np.uint16),
        (".npy", save, np.uint8),
        (".npy", save, np.uint16),
        (".npy", lambda path, grey: save(path, grey[..., None]), np.uint8),
        (".npy", lambda path, grey: save(path, grey.astype(">u2")), np.uint16),
        (".pgm", save, np.uint8),
    ],
)
def test_grey_is_read_however_it_is_stored(
    tmp_path: Path, suffix: str, store: Callable[[Path, np.ndarray], None], dtype: type
) -> None:
    source = make(tmp_path / "source", "a")
    (source / "thermal/a.png").unlink()
    grey = noise(3, dtype=dtype)
    store(source / f"thermal/a{suffix}", grey)
    pack(source, tmp_path / "out")
    array = arrays(tmp_path / "out")["a.npy"]
    np.testing.assert_array_equal(array[..., 3], grey)
    assert array.dtype == dtype


fractions = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(fractions, fractions, fractions, fractions), max_size=4))
def test_rows_say_the_boxes_to_a_thousandth_of_a_pixel(
    tmp_path_factory: pytest.TempPathFactory, corners: list[tuple[float, ...]]
) -> None:
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    kept = tuple(box for box in boxes if box[2] - box[0] > 1e-5 and box[3] - box[1] > 1e-5)
    rows = packing._rows(Frame("a", Path("a"), "", kept, (0,) * len(kept)))
    root = tmp_path_factory.mktemp("rows")
    save(root / "images/a.png", noise(0, 3))
    text(root / "labels/a.txt", rows)
    found = read_yolo(root, yolo_folders(root))
    assert found.problems == []
    for again, box in zip(found.frames[0].boxes, kept, strict=True):
        assert again == pytest.approx(box, abs=1e-3 / 4096)


# Splits


def test_split_folders_are_mirrored_whichever_way_they_lie(tmp_path: Path) -> None:
    for place in ("{}/rgb/", "rgb/{}/"):
        source = tmp_path / place.partition("/")[0].strip("{}") / "source"
        for split, names in (("train", "ab"), ("valid", "c")):
            for name in names:
                for kind, pixels in (("rgb", noise(1, 3)), ("thermal", noise(2))):
                    folder = place.replace("rgb", kind).format(split)
                    save(source / f"{folder}deep/{name}.png", pixels)
                folder = place.replace("rgb", "labels").format(split)
                text(source / f"{folder}deep/{name}.txt", "0 0.5 0.5 0.5 0.5")
        out = tmp_path / "out" / source.parent.name
        pack(source, out)
        assert list(written(out)) == ["train/deep/a", "train/deep/b", "valid/deep/c"]
        found = read_yolo(out, yolo_folders(out), ARRAYS)
        assert set(found.split.values()) == {"train", "val"}


def test_a_split_that_only_a_list_knows_becomes_folders(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "abc")
    shutil.rmtree(source / "labels")
    for name in "abc":
        text(source / f"Annotations/{name}.xml", "<annotation/>")
    text(source / "ImageSets/Main/train.txt", "a")
    text(source / "ImageSets/Main/test.txt", "c")
    pack(source, tmp_path / "out")
    assert sorted(written(tmp_path / "out")) == ["b", "test/c", "train/a"]


def test_voc_files_in_one_folder_find_pictures_in_folders_of_splits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for place in ("train/a", "test/b"):
        save(source / f"visible/{place}.png", noise(1, 3))
        save(source / f"infrared/{place}.png", noise(2))
        name = place[-1]
        content = f"<annotation><filename>{name}.jpg</filename></annotation>"
        text(source / f"Annotations/{name}.xml", content)
    pack(source, tmp_path / "out")
    assert sorted(written(tmp_path / "out")) == ["test/b", "train/a"]
    assert read(source)[0].split == {"visible/test/b.png": "test", "visible/train/a.png": "train"}


def test_coco_files_of_splits_find_pictures_in_folders_of_splits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for split, name in (("train", "a"), ("val", "b")):
        for folder, pixels in (("rgb", noise(1, 3)), ("thermal", noise(2))):
            save(source / folder / split / f"{name}.png", pixels)
        save(source / f"{name}.png", noise(3, 3))  # of the name, but in no folder of a modality
        images = [{"id": 1, "file_name": f"{name}.png"}]
        document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "c"}]}
        text(source / f"annotations/instances_{split}.json", json.dumps(document))
    pack(source, tmp_path / "out")
    assert sorted(written(tmp_path / "out")) == ["train/a", "val/b"]


# What is left out


def short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def coloured(path: Path) -> None:
    pixels = np.full((*SIZE[::-1], 3), 90, np.uint8)
    pixels[4, 7] = 90, 200, 90
    Image.fromarray(pixels).save(path)


def with_nan(path: Path) -> None:
    pixels = np.ones(SIZE[::-1], np.float32)
    pixels[3, 4] = pixels[5, 6] = math.nan
    np.save(path.with_suffix(".npy"), pixels)
    path.unlink()


def floats(path: Path) -> None:
    Image.fromarray(np.ones(SIZE[::-1], np.float32)).save(path.with_suffix(".tif"))
    path.unlink()


def stacked(path: Path) -> None:
    np.save(path.with_suffix(".npy"), noise(1, 2))
    path.unlink()


def cut_array(path: Path) -> None:
    short(save(path.with_suffix(".npy"), noise(1)))
    path.unlink()


def renamed_in(path: Path, old: bytes, new: bytes) -> None:
    """Another array beside the picture, with something else in its header, for the picture."""
    array = save(path.with_suffix(".npy"), noise(1))
    array.write_bytes(array.read_bytes().replace(old, new))
    path.unlink()


def unclosed(path: Path) -> None:
    renamed_in(path, b"'shape': (", b"'shape': ((((")


def negative(path: Path) -> None:
    renamed_in(path, b"(20, 40)", b"(20,-40)")


DEEP_COLOURS = np.repeat(noise(1, dtype=np.uint16)[..., None], 3, axis=2)


def deep_png(path: Path) -> None:
    """By hand, as no library here writes 16 bits in colour."""
    head = struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP_COLOURS)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


def deep_tiff(path: Path) -> None:
    tags = [(256, SIZE[0]), (257, SIZE[1]), (258, 200), (259, 1), (262, 2), (273, 206), (277, 3)]
    tags += [(278, SIZE[1]), (279, DEEP_COLOURS.nbytes)]
    entries = [struct.pack("<HHII", tag, 3, 3 if tag == 258 else 1, told) for tag, told in tags]
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)
    content = content.ljust(200, b"\0") + struct.pack("<3H", 16, 16, 16) + DEEP_COLOURS.tobytes()
    path.with_suffix(".tif").write_bytes(content)
    path.unlink()


def deep_ppm(path: Path) -> None:
    head = b"P6\n%d %d\n65535\n" % SIZE
    path.with_suffix(".ppm").write_bytes(head + DEEP_COLOURS.astype(">u2").tobytes())
    path.unlink()


BROKEN: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("thermal/b.png", Path.unlink, "missing_file", "thermal/b.* is not there"),
    ("thermal/b.png", lambda p: save(p, noise(1)[:10]), "invalid",
     "rgb/b.png 40×20 and thermal/b.png 40×10: align"),
    ("thermal/b.png", lambda p: p.write_text("x"), "invalid", "thermal/b.png: not an image"),
    ("rgb/b.png", lambda p: p.write_bytes(b""), "invalid", "rgb/b.png: empty"),
    ("thermal/b.png", with_nan, "invalid",
     "thermal/b.npy: float32, 2 NaN, the first at row 3 column 4: store uint8"),
    ("thermal/b.png", floats, "invalid", "thermal/b.tif: float32, without NaN: store whole"),
    ("thermal/b.png", stacked, "invalid", "thermal/b.npy: shape 20×40×2: store (height, width)"),
    ("thermal/b.png", cut_array, "invalid", "thermal/b.npy: truncated: replace it"),
    ("thermal/b.png", unclosed, "invalid", "thermal/b.npy: unreadable: replace it"),
    ("thermal/b.png", negative, "invalid", "thermal/b.npy: unreadable: replace it"),
    ("thermal/b.png", deep_png, "invalid",
     "thermal/b.png: 16 bits in three channels: store it in 16-bit grey, or colours in 8 bits"),
    ("rgb/b.png", deep_png, "invalid", "rgb/b.png: 16 bits in three channels: store"),
    ("thermal/b.png", deep_tiff, "invalid", "thermal/b.tif: 16 bits in three channels: store"),
    ("thermal/b.png", deep_ppm, "invalid", "thermal/b.ppm: 16 bits in three channels: store"),
    ("thermal/b.png", lambda p: save(p.with_suffix(".npy"), noise(1)), "invalid",
     "thermal/b.npy and thermal/b.png are one frame: remove all but one"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "harm", "kind", "told"), BROKEN)
def test_a_bad_partner_is_left_out_and_told(
    tmp_path: Path, name: str, harm: Callable[[Path], object], kind: str, told: str
) -> None:
    source = make(tmp_path / "source")
    harm(source / name)
    found, _ = read(source)
    assert [frame.name for frame in found.frames] == ["rgb/a.png"]
    assert sum(getattr(run, kind) for run in found.runs) == 1
    assert sum(run.seen for run in found.runs) == 2
    (problem,) = found.problems
    assert problem.startswith("labels/b.txt: ")
    assert told in problem


@pytest.mark.parametrize(
    ("name", "harm", "told"),
    [
        ("rgb/b.png", short, "rgb/b.png: truncated: replace it"),
        ("thermal/b.png", short, "thermal/b.png: truncated: replace it"),
        ("thermal/b.png", coloured, "thermal/b.png: has colours (most at row 4 column 7): store"),
    ],
)
def test_what_only_decoding_shows_is_left_out_and_judged(
    tmp_path: Path, name: str, harm: Callable[[Path], None], told: str
) -> None:
    source = make(tmp_path / "source")
    harm(source / name)
    judged: list[FrameSet] = []
    made = pack(source, tmp_path / "out", judge=judged.append)
    assert made["counts"]["frames"] == made["counts"]["left_out_invalid"] == 1
    assert list(written(tmp_path / "out")) == ["a"]
    (found,) = judged
    assert found.problems == [problem for problem in found.problems if told in problem]
    assert [(run.seen, run.total, run.invalid) for run in found.runs] == [(2, 1, 1)]
    again: list[FrameSet] = []
    assert pack(source, tmp_path / "out", judge=again.append) == made
    assert again[0].problems == found.problems
    (source / "rgb/a.png").write_bytes((source / "rgb/a.png").read_bytes()[:-40])
    with pytest.raises(UserError, match="no usable frame; the first: rgb/"):
        pack(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (f"{YOLO}0 0.9 0.5 0.5 0.5", "row 2 [0.65, 0.25, 1.15, 0.75] exceeds the image"),
        (f"{YOLO}0 0.5 0.5 0 0.5", "row 2 [0.5, 0.25, 0.5, 0.75] is inverted or empty"),
        (f"{YOLO}0 0.5 0.5 -0.1 0.5", "row 2 [0.55, 0.25, 0.45, 0.75] is inverted or empty"),
        (f"{YOLO}{YOLO}2 0.5 0.5 0.1 0.1", "row 3: class 2 of 2: name or fix it"),
        (f"{YOLO}0 0.5 0.5 0.1", "row 2 is '0 0.5 0.5 0.1': expected class cx cy w h"),
        ("0 nan 0.5 0.1 0.1", "row 1 is"),
    ],
)
def test_a_bad_row_is_told_with_file_and_number(tmp_path: Path, label: str, told: str) -> None:
    source = make(tmp_path / "source")
    text(source / "labels/b.txt", label)
    found, _ = read(source)
    (problem,) = found.problems
    assert problem.startswith("labels/b.txt: ")
    assert told in problem
    assert sum(run.invalid for run in found.runs) == 1


def test_bad_boxes_of_other_forms_are_told_with_file_and_number(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    shutil.rmtree(source / "labels")
    as_coco(source)
    file = source / "annotations/instances.json"
    for change, told in (
        ({"bbox": [10, 10, 0, 5]}, "annotations[0].bbox as corners [10, 10, 10, 15] is inverted"),
        ({"bbox": [10, 10, 40, 5]}, "annotations[0].bbox as corners [10, 10, 50, 15] exceeds"),
        ({"category_id": 5}, "annotations[0]: category 5 is not listed"),
    ):
        document = json.loads(file.read_text())
        document["annotations"][0] |= change
        text(source / "annotations/instances.json", json.dumps(document))
        (problem,) = read(source)[0].problems
        assert problem.startswith(f"annotations/instances.json images[0]: {told}")
        as_coco(source)
    for xmax, told in ((4, "4, 20] is inverted or empty"), (90, "90, 20] exceeds")):
        as_voc(source)
        content = (source / "Annotations/a.xml").read_text()
        text(source / "Annotations/a.xml", content.replace("<xmax>30", f"<xmax>{xmax}"))
        (problem,) = read(source)[0].problems
        assert problem.startswith(f"Annotations/a.xml: object 0 bndbox [10, 10, {told}")


def test_lone_pictures_and_labels_are_told(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "rgb/b.png").unlink()
    found, _ = read(source)
    assert found.problems == [
        "labels/b.txt: its image does not exist: restore or remove it",
        "thermal/b.png: no picture of its name in rgb: restore or remove it",
    ]
    assert {run.name: run.missing_file for run in found.runs} == {"all": 1, "thermal": 1}


def test_pictures_without_labels_are_negatives_or_a_mistake(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "labels/b.txt").unlink()
    assert [frame.boxes for frame in read(source)[0].frames] == [(BOX,), ()]
    with pytest.raises(UserError, match=r"rgb/b\.png: has no label file .*labels/b\.txt; add it"):
        read(source, require_labels=True)
    as_voc(source)
    (source / "Annotations/b.xml").unlink()
    found, _ = read(source)
    assert [frame.name for frame in found.frames] == ["rgb/a.png"]
    assert found.problems[0].startswith("rgb: 1 pictures without labels, the first rgb/b.png: left")
    assert {run.name: run.missing_file for run in found.runs} == {"all": 0, "rgb": 1}
    assert sum(run.seen for run in found.runs) == 2
    with pytest.raises(UserError, match=r"max_missing=0: 1 of 2 frames in .* are missing"):
        check_limits(found, {"max_missing": 0})
    assert pack(source, tmp_path / "out")["counts"]["left_out_missing"] == 1
    with pytest.raises(UserError, match=r"rgb/b\.png: has no labels; add them"):
        read(source, require_labels=True)


def test_a_frame_has_its_boxes_in_one_place(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "a")
    shutil.rmtree(source / "labels")
    as_coco(source)
    document = json.loads((source / "annotations/instances.json").read_text())
    document["images"][1]["file_name"] = "thermal/a.png"
    text(source / "annotations/instances.json", json.dumps(document))
    found, _ = read(source)
    assert [frame.name for frame in found.frames] == ["rgb/a.png"]
    assert found.problems == [
        "annotations/instances.json images[1]: rgb/a.png has its boxes already"
    ]


@pytest.mark.parametrize(
    ("gone", "named", "told"),
    [
        ("rgb", {}, "no folder rgb, visible, vis, images; it has labels, thermal: name yours with "
         "rgb=FOLDER"),
        ("thermal", {}, "no folder thermal, infrared, ir, lwir, event, events; it has labels, rgb: "
         "name yours with thermal=FOLDER or event=FOLDER"),
        ("labels", {}, "no labels found in it; give labels/*.txt (YOLO)"),
        ("", {"event": "dvs"}, "event=dvs: no such folder in"),
        ("", {"event": "rgb"}, "rgb stands for two modalities"),
    ],
)  # fmt: skip
def test_folders_that_are_not_there_are_told(
    tmp_path: Path, gone: str, named: dict[str, str], told: str
) -> None:
    source = make(tmp_path / "source")
    if gone:
        shutil.rmtree(source / gone)
    with pytest.raises(UserError) as caught:
        read(source, **named)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_can_be_named_and_events_alone_are_enough(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "thermal").rename(source / "dvs")
    assert find_folders(source, {"event": "dvs"}) == {"rgb": "rgb", "event": "dvs"}


# Again


@contextmanager
def made_anew(out: Path) -> Iterator[set[str]]:
    """Collects the names of the arrays that are written meanwhile."""
    before = {path.name: path.stat().st_ino for path in (out / "images").rglob("*.npy")}
    anew: set[str] = set()
    yield anew
    after = {path.name: path.stat().st_ino for path in (out / "images").rglob("*.npy")}
    anew |= {name for name in after if before.get(name) != after[name]}


def test_only_what_changed_is_made_again(tmp_path: Path) -> None:
    source, out = make(tmp_path / "source", "abcd"), tmp_path / "out"
    pack(source, out)
    with made_anew(out) as anew:
        pack(source, out)
    assert anew == set()
    save(source / "thermal/a.png", noise(9)[:, ::-1])
    short(out / "images/b.npy")
    (out / "images/c.npy").unlink()
    for folder, suffix in (("rgb", "png"), ("thermal", "png"), ("labels", "txt")):
        (source / f"{folder}/d.{suffix}").unlink()
    text(source / "labels/b.txt", "")
    with made_anew(out) as anew:
        pack(source, out)
    assert anew == {"a.npy", "b.npy", "c.npy"}
    assert written(out) == {"a": ((BOX,), (1,)), "b": ((), ()), "c": ((BOX,), (1,))}
    np.testing.assert_array_equal(arrays(out)["a.npy"][..., 3], noise(9)[:, ::-1])
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["a.txt", "b.txt", "c.txt"]


def test_a_stopped_run_goes_on_and_ends_with_the_same_files(tmp_path: Path) -> None:
    source, out = make(tmp_path / "source", "abcd"), tmp_path / "out"
    pack(source, out)
    for name in "abcd":
        save(source / f"thermal/{name}.png", noise(2000 + ord(name))[::-1])

    def stop(_: str, done: int, total: int) -> None:
        assert total == 4
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, out, workers=1, progress=stop)
    assert not (out / "rgbx.json").exists()
    with (out / ".prepared.jsonl").open("a") as record:
        record.write('["c", [fal')
    (out / "images/.c.npy.0123").write_text("half")
    inodes = {path.name: path.stat().st_ino for path in sorted((out / "images").glob("[!.]*"))}
    pack(source, out)
    pack(source, tmp_path / "whole")
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            assert (out / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert not (out / "images/.c.npy.0123").exists()
    assert all((out / "images" / name).stat().st_ino == inodes[name] for name in ("a.npy", "b.npy"))


def test_no_array_lies_without_its_label_when_a_run_is_stopped(tmp_path: Path) -> None:
    """A reader would take it for a negative."""
    source, out = make(tmp_path / "source", "abcd"), tmp_path / "out"
    pack(source, out)
    make(source, "efgh")
    text(source / "labels/a.txt", "0 0.5 0.5 0.5 0.5\n")

    def stop(_: str, done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, out, workers=1, progress=stop)
    places = {Path(name).stem for name in arrays(out)}
    assert places > set("abcd")
    rows = {place: (out / f"labels/{place}.txt").read_text().split() for place in places}
    assert rows.pop("a")[0] == "0"
    assert all(row == YOLO.split() for row in rows.values())
    assert not (out / "rgbx.json").exists()


def test_arrays_that_no_ledger_tells_of_are_removed(tmp_path: Path) -> None:
    """Killed between an array and its line in the ledger; then the frame left the source."""
    source, out = make(tmp_path / "source", "ab"), tmp_path / "out"
    pack(source, out)
    ledger = out / ".prepared.jsonl"
    kept = [line for line in ledger.read_text().splitlines() if not line.startswith('["b"')]
    ledger.write_text("\n".join(kept) + "\n")
    (out / "labels/.c.txt.0123").write_text("half")
    for name in ("rgb/b.png", "thermal/b.png", "labels/b.txt"):
        (source / name).unlink()
    assert pack(source, out)["counts"]["frames"] == 1
    files = {path.name for folder in ("images", "labels") for path in (out / folder).iterdir()}
    assert files == {"a.npy", "a.txt"}


def test_an_out_with_something_else_is_left_alone(tmp_path: Path) -> None:
    source, out = make(tmp_path / "source"), tmp_path / "out"
    notes = text(out / "notes.txt", "mine")
    with pytest.raises(UserError, match="out: holds other files; name an empty folder"):
        pack(source, out)
    notes.unlink()
    pack(source, out)
    with pytest.raises(UserError, match=r"was prepared from .*source; name another OUT"):
        pack(make(tmp_path / "other"), out)
    text(out / ".prepared.jsonl", "{}\n")
    with pytest.raises(UserError, match="was prepared from files that are not known any more"):
        pack(source, out)
    with (
        FileLock(tmp_path / "new/.lock"),
        pytest.raises(UserError, match="new: another process prepares there; wait for it"),
    ):
        pack(source, tmp_path / "new")


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = make(tmp_path / "source"), tmp_path / "out"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(UserError, match="out: No space left on device; see to it and run"):
            pack(source, out)
    assert arrays(out) == {}
    pack(source, out)
    assert list(arrays(out)) == ["a.npy", "b.npy"]


def test_places_do_not_collide_in_silence(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "ab")
    shutil.rmtree(source / "labels")
    for folder in ("rgb", "thermal"):
        (source / folder / "train").mkdir()
        (source / folder / "b.png").rename(source / folder / "train/a.png")
    for place in ("a", "train/a"):
        text(source / f"Annotations/{place}.xml", "<annotation/>")
    text(source / "ImageSets/Main/train.txt", "a")
    text(source / "ImageSets/Main/val.txt", "c")
    for name in ("rgb", "thermal"):
        save(source / name / "c.png", noise(1, 3 if name == "rgb" else 0))
    text(source / "Annotations/c.xml", "<annotation/>")
    with pytest.raises(UserError, match="both become train/a: rename one"):
        pack(source, tmp_path / "out")
