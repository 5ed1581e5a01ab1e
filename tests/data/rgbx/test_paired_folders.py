"""Tests of paired folders and of their stores."""

from __future__ import annotations

import json
import math
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from research.data.frames.frame import FrameSet
from research.data.frames.letterbox import Letterbox
from research.data.frames.limits import check_limits
from research.data.loader import SampleKey
from research.data.rgbx.paired_folders import PairedFolders, find_folders
from research.data.rgbx.sources import of_pictures, plan_channels
from research.data.warehouse.build import build
from research.data.warehouse.kinds import FrameSamples
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.plan import BuildPlan
from research.data.warehouse.store import Store
from tests.conftest import at_update, user_error
from tests.data.warehouse.conftest import content

SIZE = (40, 20)
BOX = (0.25, 0.5, 0.75, 1.0)
"""From 10 to 30 px across and from 10 to 20 px down."""

YOLO = "1 0.5 0.75 0.5 0.5\n"
OBJECT = (
    "<object><name>c</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    "</bndbox></object>"
)


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
    """Images ``rgb/a.png``, ``thermal/a.png`` and labels ``labels/a.txt`` for every letter."""
    for name in names:
        save(root / f"rgb/{name}.png", noise(ord(name), 3))
        save(root / f"thermal/{name}.png", noise(1000 + ord(name)))
        text(root / f"labels/{name}.txt", label)
    text(root / "classes.txt", "cat\ndog\n")
    return root


def read(
    source: Path, require_labels: bool = False, **named: str
) -> tuple[FrameSet, PairedFolders]:
    folders = PairedFolders(source, find_folders(source, named))
    return folders.read(require_labels), folders


def plan_of(source: Path, **limits: float) -> BuildPlan:
    """A store at the width of the images: nothing is resized."""
    folders = PairedFolders(source, find_folders(source, {}))
    return plan_channels(of_pictures(folders, folders.read(require_labels=False)), SIZE[0], limits)


def pack(source: Path, out: Path, **limits: float) -> Manifest:
    return build(plan_of(source, **limits), out, shard_samples=2, workers=1)


def written(manifest: Manifest) -> dict[str, Any]:
    """Path of every frame to its boxes, as fractions of the image, and labels."""
    store, found = Store(manifest, "always"), {}
    for position, record in enumerate(manifest.records()):
        mask = store.rows("mask", position) > 0
        box = Letterbox.of(*store.rows("sizes", position).tolist(), SIZE[0])
        boxes = box.inverse(store.rows("boxes", position)[mask].astype(np.float64)) / (SIZE * 2)
        labels = store.rows("labels", position)[mask]
        found[record["path"]] = (tuple(map(tuple, boxes.tolist())), tuple(labels.tolist()))
    return found


def arrays(manifest: Manifest) -> dict[str, np.ndarray]:
    """Path of every frame to its pixels without the padding."""
    store = Store(manifest, "always")
    top = (SIZE[0] - SIZE[1]) // 2
    return {
        record["path"]: store.rows("images", position)[top : top + SIZE[1]]
        for position, record in enumerate(manifest.records())
    }


# Arrays and labels


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
def test_every_label_format_gives_the_same_frames_and_labels(
    tmp_path: Path, label: Callable[[Path], None], folders: tuple[str, ...]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for number, name in enumerate("ab"):
        for modality, folder in enumerate(folders):
            seed = 10 * number + modality
            save(source / folder / f"{name}.png", noise(seed, 0 if modality else 3))
    label(source)
    manifest = pack(source, out)
    dog = 0 if label is as_voc else 1  # VOC has no names of classes without boxes
    assert written(manifest) == {"a.png": ((BOX,), (dog,)), "b.png": ((), ())}
    for number, (name, array) in enumerate(arrays(manifest).items()):
        assert name == "ab"[number] + ".png"
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array[..., :3], noise(10 * number, 3))
        np.testing.assert_array_equal(array[..., 3], noise(10 * number + 1))
        np.testing.assert_array_equal(array[..., 4], noise(10 * number + 2))
        own = array.reshape(-1, 5).astype(np.int64)
        sums = Store(manifest).rows("sums", number)
        np.testing.assert_array_equal(sums, [own.sum(0), (own * own).sum(0)])
    assert manifest.transform["channels"] == ["red", "green", "blue", "thermal", "event"]
    assert manifest.kind == "frames"
    assert sum(run["empty"] for run in manifest.runs.values()) == 1
    assert manifest.classes[dog] == "dog"


def test_one_16_bit_file_makes_all_frames_16_bit(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    thermal = noise(5, dtype=np.uint16)
    save(source / "thermal/b.png", thermal)
    packed = arrays(pack(source, tmp_path / "out"))
    for name in "ab":
        np.testing.assert_array_equal(packed[f"{name}.png"][..., :3] / 257, noise(ord(name), 3))
    np.testing.assert_array_equal(packed["a.png"][..., 3], noise(1000 + ord("a")) * 257.0)
    np.testing.assert_array_equal(packed["b.png"][..., 3], thermal)


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
def test_grey_images_of_every_format(
    tmp_path: Path, suffix: str, store: Callable[[Path, np.ndarray], None], dtype: type
) -> None:
    source = make(tmp_path / "source", "a")
    (source / "thermal/a.png").unlink()
    grey = noise(3, dtype=dtype)
    store(source / f"thermal/a{suffix}", grey)
    array = arrays(pack(source, tmp_path / "out"))["a.png"]
    np.testing.assert_array_equal(array[..., 3], grey)
    assert array.dtype == dtype


# Splits


def test_split_folders_above_or_below_the_modalities_are_kept(tmp_path: Path) -> None:
    for layout in ("{}/rgb/", "rgb/{}/"):
        source = tmp_path / layout.partition("/")[0].strip("{}") / "source"
        for split, names in (("train", "ab"), ("valid", "c")):
            for name in names:
                for kind, pixels in (("rgb", noise(1, 3)), ("thermal", noise(2))):
                    folder = layout.replace("rgb", kind).format(split)
                    save(source / f"{folder}deep/{name}.png", pixels)
                folder = layout.replace("rgb", "labels").format(split)
                text(source / f"{folder}deep/{name}.txt", "0 0.5 0.5 0.5 0.5")
        manifest = pack(source, tmp_path / "out" / source.parent.name)
        stems = ["train/deep/a.png", "train/deep/b.png", "valid/deep/c.png"]
        assert list(written(manifest)) == stems
        assert {s: len(manifest.split(s)) for s in manifest.splits} == {"train": 2, "val": 1}


def test_splits_of_a_list_are_kept(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "abc")
    shutil.rmtree(source / "labels")
    for name in "abc":
        text(source / f"Annotations/{name}.xml", f"<annotation>{OBJECT}</annotation>")
    text(source / "ImageSets/Main/train.txt", "a")
    text(source / "ImageSets/Main/test.txt", "c")
    manifest = pack(source, tmp_path / "out")
    assert [(group.name, group.split) for group in manifest.groups] == [
        ("rgb/a.png", "train"),
        ("rgb/b.png", "train"),
        ("rgb/c.png", "test"),
    ]


def test_voc_files_in_one_folder_with_images_in_folders_of_splits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for stem in ("train/a", "test/b"):
        save(source / f"visible/{stem}.png", noise(1, 3))
        save(source / f"infrared/{stem}.png", noise(2))
        name = stem[-1]
        content = f"<annotation><filename>{name}.jpg</filename>{OBJECT}</annotation>"
        text(source / f"Annotations/{name}.xml", content)
    assert list(written(pack(source, tmp_path / "out"))) == ["test/b.png", "train/a.png"]
    assert read(source)[0].split == {"visible/test/b.png": "test", "visible/train/a.png": "train"}


def test_coco_files_of_splits_with_images_in_folders_of_splits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for split, name in (("train", "a"), ("val", "b")):
        for folder, pixels in (("rgb", noise(1, 3)), ("thermal", noise(2))):
            save(source / folder / split / f"{name}.png", pixels)
        save(source / f"{name}.png", noise(3, 3))  # same name, but not in the folder of a modality
        images = [{"id": 1, "file_name": f"{name}.png"}]
        document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "c"}]}
        text(source / f"annotations/instances_{split}.json", json.dumps(document))
    assert list(written(pack(source, tmp_path / "out"))) == ["train/a.png", "val/b.png"]


# Unusable files


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def add_colour(path: Path) -> None:
    pixels = np.full((*SIZE[::-1], 3), 90, np.uint8)
    pixels[4, 7] = 90, 200, 90
    Image.fromarray(pixels).save(path)


def to_float_with_nan(path: Path) -> None:
    pixels = np.ones(SIZE[::-1], np.float32)
    pixels[3, 4] = pixels[5, 6] = math.nan
    np.save(path.with_suffix(".npy"), pixels)
    path.unlink()


def to_float_tiff(path: Path) -> None:
    Image.fromarray(np.full(SIZE[::-1], 70_000, np.float32)).save(path.with_suffix(".tif"))
    path.unlink()


def to_two_channels(path: Path) -> None:
    np.save(path.with_suffix(".npy"), noise(1, 2))
    path.unlink()


def to_truncated_array(path: Path) -> None:
    truncate(save(path.with_suffix(".npy"), noise(1)))
    path.unlink()


def to_array_with(path: Path, old: bytes, new: bytes) -> None:
    """Replace the image by an array with a changed header."""
    array = save(path.with_suffix(".npy"), noise(1))
    array.write_bytes(array.read_bytes().replace(old, new))
    path.unlink()


def to_unclosed_header(path: Path) -> None:
    to_array_with(path, b"'shape': (", b"'shape': ((((")


def to_negative_side(path: Path) -> None:
    to_array_with(path, b"(20, 40)", b"(20,-40)")


COLOURS_16BIT = np.repeat(noise(1, dtype=np.uint16)[..., None], 3, axis=2)


def to_16bit_png(path: Path) -> None:
    """Written by hand: no library here writes 16-bit colours."""
    head = struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLOURS_16BIT)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


def to_16bit_tiff(path: Path) -> None:
    tags = [(256, SIZE[0]), (257, SIZE[1]), (258, 200), (259, 1), (262, 2), (273, 206), (277, 3)]
    tags += [(278, SIZE[1]), (279, COLOURS_16BIT.nbytes)]
    entries = [struct.pack("<HHII", tag, 3, 3 if tag == 258 else 1, value) for tag, value in tags]
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)
    content = content.ljust(200, b"\0") + struct.pack("<3H", 16, 16, 16) + COLOURS_16BIT.tobytes()
    path.with_suffix(".tif").write_bytes(content)
    path.unlink()


def to_16bit_ppm(path: Path) -> None:
    head = b"P6\n%d %d\n65535\n" % SIZE
    path.with_suffix(".ppm").write_bytes(head + COLOURS_16BIT.astype(">u2").tobytes())
    path.unlink()


BROKEN: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("thermal/b.png", Path.unlink, "missing_file", "thermal/b.* does not exist"),
    ("thermal/b.png", lambda p: save(p, noise(1)[:10]), "invalid",
     "rgb/b.png 40×20 and thermal/b.png 40×10: align"),
    ("thermal/b.png", lambda p: p.write_text("x"), "invalid", "thermal/b.png: not an image"),
    ("rgb/b.png", lambda p: p.write_bytes(b""), "invalid", "rgb/b.png: empty"),
    ("thermal/b.png", to_float_with_nan, "invalid",
     "thermal/b.npy: float32, 2 NaN, the first at row 3 column 4: store uint8"),
    ("thermal/b.png", to_float_tiff, "invalid", "thermal/b.tif: float32, values from 70000 to"),
    ("thermal/b.png", to_two_channels, "invalid",
     "thermal/b.npy: shape 20×40×2: store (height, width)"),
    ("thermal/b.png", to_truncated_array, "invalid", "thermal/b.npy: truncated: replace it"),
    ("thermal/b.png", to_unclosed_header, "invalid", "thermal/b.npy: unreadable: replace it"),
    ("thermal/b.png", to_negative_side, "invalid", "thermal/b.npy: unreadable: replace it"),
    ("thermal/b.png", to_16bit_png, "invalid",
     "thermal/b.png: 16 bits in three channels: store it in 16-bit grey, or colours in 8 bits"),
    ("rgb/b.png", to_16bit_png, "invalid", "rgb/b.png: 16 bits in three channels: store"),
    ("thermal/b.png", to_16bit_tiff, "invalid", "thermal/b.tif: 16 bits in three channels: store"),
    ("thermal/b.png", to_16bit_ppm, "invalid", "thermal/b.ppm: 16 bits in three channels: store"),
    ("thermal/b.png", lambda p: save(p.with_suffix(".npy"), noise(1)), "invalid",
     "thermal/b.npy and thermal/b.png are one frame: remove all but one"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "kind", "reason"), BROKEN)
def test_frames_with_an_unusable_file_are_skipped(
    tmp_path: Path, name: str, damage: Callable[[Path], object], kind: str, reason: str
) -> None:
    source = make(tmp_path / "source")
    damage(source / name)
    found, _ = read(source)
    assert [frame.name for frame in found.frames] == ["rgb/a.png"]
    assert sum(getattr(run, kind) for run in found.runs) == 1
    assert sum(run.seen for run in found.runs) == 2
    (problem,) = found.problems
    assert problem.startswith("labels/b.txt: ")
    assert reason in problem


@pytest.mark.parametrize(
    ("name", "damage", "kind", "reason"),
    [
        ("rgb/b.png", truncate, "truncated", "rgb/b.png: "),
        ("thermal/b.png", truncate, "truncated", "thermal/b.png: "),
        (
            "thermal/b.png",
            add_colour,
            "coloured",
            "thermal/b.png: its channels differ by 110 at row",
        ),
    ],
)
def test_frames_that_cannot_be_decoded_are_left_out_by_name_and_count_for_the_limits(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
    kind: str,
    reason: str,
) -> None:
    source = make(tmp_path / "source")
    damage(source / name)
    with user_error("max_invalid", "max_invalid=0: 1 of 2 frames are invalid (1), 1 of them"):
        pack(source, tmp_path / "out", max_invalid=0)
    assert f"left out: rgb/b.png: {source}/{reason}" in caplog.text
    manifest = pack(source, tmp_path / "out", max_invalid=1)
    assert list(written(manifest)) == ["a.png"]
    assert (manifest.damage, manifest.left_out) == ({kind: 1}, {"rgb/b.png": kind})
    truncate(source / "rgb/a.png")
    with user_error("SOURCE", "none of its images could be read"):
        pack(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (f"{YOLO}0 0.9 0.5 0.5 0.5", "row 2 [0.65, 0.25, 1.15, 0.75] exceeds the image"),
        (f"{YOLO}0 0.5 0.5 0 0.5", "row 2 [0.5, 0.25, 0.5, 0.75] is inverted or empty"),
        (f"{YOLO}0 0.5 0.5 -0.1 0.5", "row 2 [0.55, 0.25, 0.45, 0.75] is inverted or empty"),
        (f"{YOLO}{YOLO}2 0.5 0.5 0.1 0.1", "row 3: class 2 of 2: name or fix it"),
        (f"{YOLO}0 0.5 0.5 0.1", "row 2 is '0 0.5 0.5 0.1': expected class cx cy w h"),
        ("0 nan 0.5 0.1 0.1", "row 1 is"),
    ],
)
def test_invalid_labels_are_reported_with_file_and_row(
    tmp_path: Path, label: str, reason: str
) -> None:
    source = make(tmp_path / "source")
    text(source / "labels/b.txt", label)
    found, _ = read(source)
    (problem,) = found.problems
    assert problem.startswith("labels/b.txt: ")
    assert reason in problem
    assert sum(run.invalid for run in found.runs) == 1


def test_invalid_boxes_of_other_formats_are_reported_with_file_and_index(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    shutil.rmtree(source / "labels")
    as_coco(source)
    file = source / "annotations/instances.json"
    for change, reason in (
        ({"bbox": [10, 10, 0, 5]}, "annotations[0].bbox as corners [10, 10, 10, 15] is inverted"),
        ({"bbox": [10, 10, 40, 5]}, "annotations[0].bbox as corners [10, 10, 50, 15] exceeds"),
        ({"category_id": 5}, "annotations[0]: category 5 is not listed"),
    ):
        document = json.loads(file.read_text())
        document["annotations"][0] |= change
        text(source / "annotations/instances.json", json.dumps(document))
        (problem,) = read(source)[0].problems
        assert problem.startswith(f"annotations/instances.json images[0]: {reason}")
        as_coco(source)
    for xmax, reason in ((4, "4, 20] is inverted or empty"), (90, "90, 20] exceeds")):
        as_voc(source)
        content = (source / "Annotations/a.xml").read_text()
        text(source / "Annotations/a.xml", content.replace("<xmax>30", f"<xmax>{xmax}"))
        (problem,) = read(source)[0].problems
        assert problem.startswith(f"Annotations/a.xml: object 0 bndbox [10, 10, {reason}")


def test_unpaired_images_and_labels_are_reported(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "rgb/b.png").unlink()
    found, _ = read(source)
    assert found.problems == [
        "labels/b.txt: its image does not exist: restore or remove it",
        "thermal/b.png: no image of its name in rgb: restore or remove it",
    ]
    assert {run.name: run.missing_file for run in found.runs} == {"all": 1, "thermal": 1}


def test_images_without_labels_are_negatives_or_an_error(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "labels/b.txt").unlink()
    assert [frame.boxes for frame in read(source)[0].frames] == [(BOX,), ()]
    with user_error("labels", "rgb/b.png", "labels/b.txt"):
        read(source, require_labels=True)
    shutil.rmtree(source / "labels")
    as_voc(source)
    (source / "Annotations/b.xml").unlink()
    found, _ = read(source)
    assert [frame.name for frame in found.frames] == ["rgb/a.png"]
    assert found.problems[0].startswith("rgb: 1 image without labels, the first is rgb/b.png: add")
    assert {run.name: run.missing_file for run in found.runs} == {"all": 0, "rgb": 1}
    assert sum(run.seen for run in found.runs) == 2
    with user_error("max_missing", "1 of 2 frames"):
        check_limits(found, {"max_missing": 0})
    assert pack(source, tmp_path / "out").runs["rgb"]["missing_file"] == 1
    with user_error("SOURCE", "rgb/b.png", "no labels"):
        read(source, require_labels=True)


def test_ignore_regions_are_stored(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    shutil.rmtree(source / "labels")
    as_coco(source)
    file = source / "annotations/instances.json"
    document = json.loads(file.read_text())
    crowd = {"id": 9, "image_id": 1, "category_id": 4, "bbox": [0, 0, 9, 9], "iscrowd": 1}
    document["annotations"].append(crowd)
    text(file, json.dumps(document))
    manifest = pack(source, tmp_path / "out")
    store = Store(manifest, "always")
    assert store.whole("ignored").tolist() == [[0], [1]]
    batch = FrameSamples(store, np.arange(2)).__getitems__([SampleKey(0, 0), SampleKey(0, 1)])
    assert batch.mask.tolist() == [[True], [False]]
    assert batch.ignored is not None
    assert batch.ignored.tolist() == [[False], [True]]


def test_a_frame_with_two_sets_of_boxes(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "a")
    shutil.rmtree(source / "labels")
    as_coco(source)
    document = json.loads((source / "annotations/instances.json").read_text())
    document["images"][1]["file_name"] = "thermal/a.png"
    text(source / "annotations/instances.json", json.dumps(document))
    found, _ = read(source)
    assert [frame.name for frame in found.frames] == ["rgb/a.png"]
    assert found.problems == ["annotations/instances.json images[1]: rgb/a.png has boxes already"]


@pytest.mark.parametrize(
    ("removed", "named", "key", "words"),
    [
        ("rgb", {}, "rgb",
         ("no folder rgb, visible, vis, images;", "labels, thermal", "rgb=FOLDER")),
        ("thermal", {}, "thermal",
         ("infrared, ir, lwir, event", "labels, rgb", "thermal=FOLDER or event=FOLDER")),
        ("labels", {}, "SOURCE", ("no labels", "labels/*.txt (YOLO)")),
        ("", {"event": "dvs"}, "event", ("event=dvs",)),
        ("", {"event": "rgb"}, "event", ("rgb", "event=FOLDER")),
    ],
)  # fmt: skip
def test_missing_folders(
    tmp_path: Path, removed: str, named: dict[str, str], key: str, words: tuple[str, ...]
) -> None:
    source = make(tmp_path / "source")
    if removed:
        shutil.rmtree(source / removed)
    with user_error(key, *words):
        read(source, **named)


def test_folders_can_be_named_and_events_alone_are_enough(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "thermal").rename(source / "dvs")
    assert find_folders(source, {"event": "dvs"}) == {"rgb": "rgb", "event": "dvs"}


# Repeated and interrupted builds


def test_a_stopped_build_continues_and_writes_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change of any one file of a frame, another version is written."""
    source, out = make(tmp_path / "source", "abcd"), tmp_path / "out"
    plan = plan_of(source)

    def stop(what: str, done: int, total: int | None) -> None:
        if what == "storing frames" and done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        at_update(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            build(plan, out, shard_samples=2, workers=1)
    finished = {path.name: path.stat().st_ino for path in out.rglob("*.safetensors")}
    assert list(finished) == ["shard_00000.safetensors"]
    once = pack(source, out)
    whole = pack(source, tmp_path / "whole")
    assert content(once.folder) == content(whole.folder)
    first = once.folder / "shard_00000.safetensors"
    assert first.stat().st_ino == finished[first.name]
    assert pack(source, out) == once
    for name in ("thermal/c.png", "rgb/d.png"):
        save(source / name, noise(9, 3 if "rgb" in name else 0)[:, ::-1])
        assert pack(source, out).version != once.version


def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "source")

    def change(what: str, done: int, total: int | None) -> None:
        if what == "hashing files" and done == total:
            save(source / "thermal/b.png", noise(7))

    at_update(monkeypatch, change)
    with user_error("SOURCE", source / "thermal/b.png", "changed while it was prepared"):
        build(plan_of(source), tmp_path / "out", workers=1)
