"""Stores built from VOC, COCO and YOLO sets equal what independent readers find, value for value.

The sets are rendered by the demo, with gaps in the ids, crowds and difficult objects, turned and
resized pictures. Independent are pycocotools, and the readers of XML and text in this file.
"""

from __future__ import annotations

import contextlib
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pycocotools.coco import COCO
from safetensors.numpy import load_file

from research.data.prepare_options import FrameOptions
from research.data.warehouse.manifest import Manifest
from research.demos.capture_runs import CaptureDemo
from research.prepare import frames
from tests.data.frames.drawn import save, write

CLASSES = ("polyp", "ulcer")
CATEGORIES = {"polyp": 9, "ulcer": 4}
SIDE = 64
SLOTS = 8
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Thing:
    """An object of an upright picture: corners in its pixels."""

    name: str
    box: tuple[float, ...]
    ignored: bool


@dataclass(frozen=True)
class Picture:
    """What a set declares about a picture.

    Attributes:
        number: in the set.
        name: of the file.
        split: ``train`` or ``val``.
        size: width and height of the picture as it is labelled.
        things: in these pixels; x0, y0, x1, y1.
    """

    number: int
    name: str
    split: str
    size: tuple[int, int]
    things: list[Thing]


def render(root: Path, runs: int, count: int) -> list[tuple[Image.Image, list[list[float]]]]:
    """Rendered pictures of a third of their size, and the boxes in their pixels."""
    folder = CaptureDemo(str(root), runs, count, seed=5).render()
    found = []
    for file in sorted(folder.glob("*/labels/*.json")):
        document = json.loads(file.read_text())
        image = Image.open(file.parents[1] / document["image"]).reduce(3)
        boxes = [
            [
                round(edge * side)
                for edge, side in zip(label["bbox_norm"], image.size * 2, strict=True)
            ]
            for label in document["labels"]
        ]
        found.append((image, [box for box in boxes if box[0] < box[2] and box[1] < box[3]]))
    return found


def turned_box(box: list[float], size: tuple[int, int], orientation: int) -> list[float]:
    """A box of the upright picture in the pixels of the stored one, by its corners."""
    width, height = size
    to_stored: dict[int, Callable[[float, float], tuple[float, float]]] = {
        1: lambda x, y: (x, y),
        2: lambda x, y: (width - x, y),
        3: lambda x, y: (width - x, height - y),
        4: lambda x, y: (x, height - y),
        5: lambda x, y: (y, x),
        6: lambda x, y: (y, width - x),
        7: lambda x, y: (height - y, width - x),
        8: lambda x, y: (height - y, x),
    }
    x, y = zip(*(to_stored[orientation](*corner) for corner in (box[:2], box[2:])), strict=True)
    return [min(x), min(y), max(x), max(y)]


def make_set(
    root: Path, images: list[Any], stored: bool, resized: bool
) -> tuple[list[Picture], dict[str, list[Thing]]]:
    """Write the pictures of a set; returns what it declares, and the truth.

    Args:
        root: folder of the pictures; a folder for each split in it.
        images: rendered pictures and boxes.
        stored: whether pictures are labelled before they are turned.
        resized: whether every fifth picture was twice as large when it was labelled.
    """
    pictures, truth = [], {}
    for number, (image, boxes) in enumerate(images):
        orientation = 1 + number % 8 if number % 3 else 1
        split = SPLITS[number % 4 == 3]
        name = f"{split}/{number:04d}{('.jpg', '.png')[number % 2]}"
        (root / split).mkdir(parents=True, exist_ok=True)
        save(image, root / name, orientation)
        scale = 2 if resized and number % 5 == 0 else 1
        things, own = [], []
        for row, box in enumerate(boxes):
            label = CLASSES[(number + row) % 2]
            ignored = number % 3 == 1 and row == len(boxes) - 1
            things.append(Thing(label, tuple(box), ignored))
            edges = turned_box(box, image.size, orientation) if stored else box
            own.append(Thing(label, tuple(edge * scale for edge in edges), ignored))
        swapped = stored and orientation >= 5
        width, height = image.size[::-1] if swapped else image.size
        pictures.append(Picture(number, name, split, (width * scale, height * scale), own))
        truth[name] = things
    return pictures, truth


def write_coco(root: Path, pictures: list[Picture]) -> None:
    for split in SPLITS:
        images, rows = [], []
        for picture in pictures:
            if picture.split != split:
                continue
            key = 13 * picture.number + 5
            width, height = picture.size
            name = Path(picture.name).name
            images.append({"id": key, "file_name": name, "width": width, "height": height})
            for row, thing in enumerate(picture.things):
                x0, y0, x1, y1 = thing.box
                rows.append(
                    {
                        "id": 100 * key + 7 * row,
                        "image_id": key,
                        "category_id": CATEGORIES[thing.name],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": int(thing.ignored),
                    }
                )
        categories = [{"id": key, "name": name} for name, key in CATEGORIES.items()]
        document = {"images": images[::-1], "annotations": rows[::-1], "categories": categories}
        write(root / f"annotations/instances_{split}.json", document)


def read_coco(root: Path) -> Iterator[tuple[str, tuple[int, int], list[Thing]]]:
    """Name, declared size and objects of each picture, by pycocotools."""
    for split in SPLITS:
        with contextlib.redirect_stdout(io.StringIO()):
            found = COCO(str(root / f"annotations/instances_{split}.json"))
        for key, image in found.imgs.items():
            things = []
            for row in found.loadAnns(found.getAnnIds(imgIds=[key])):
                x, y, width, height = row["bbox"]
                name = found.loadCats([row["category_id"]])[0]["name"]
                things.append(Thing(name, (x, y, x + width, y + height), bool(row["iscrowd"])))
            yield f"{split}/{image['file_name']}", (image["width"], image["height"]), things


def write_voc(root: Path, pictures: list[Picture]) -> None:
    for picture in pictures:
        items = ""
        for thing in picture.things:
            x0, y0, x1, y1 = thing.box
            items += (
                f"<object><name>{thing.name}</name><difficult>{int(thing.ignored)}</difficult>"
                f"<bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
                f"<ymax>{y1}</ymax></bndbox></object>"
            )
        width, height = picture.size
        path = Path(picture.name)
        write(
            root / f"Annotations/{path.with_suffix('.xml')}",
            f"<annotation><filename>{path.name}</filename><size><width>{width}</width>"
            f"<height>{height}</height><depth>3</depth></size>{items}</annotation>",
        )


def read_voc(root: Path) -> Iterator[tuple[str, tuple[int, int], list[Thing]]]:
    for file in root.glob("Annotations/*/*.xml"):
        text = dict[str, str]
        tree = ElementTree.parse(file).getroot()  # noqa: S314 - written above
        size: text = {each.tag: each.text or "" for each in tree.find("size") or ()}
        things = []
        for item in tree.findall("object"):
            edges: text = {each.tag: each.text or "" for each in item.find("bndbox") or ()}
            x0, y0, x1, y1 = (float(edges[key]) for key in ("xmin", "ymin", "xmax", "ymax"))
            name = item.findtext("name") or ""
            things.append(Thing(name, (x0 - 1, y0 - 1, x1, y1), item.findtext("difficult") == "1"))
        name = f"{file.parent.name}/{tree.findtext('filename')}"
        yield name, (int(size["width"]), int(size["height"])), things


def write_yolo(root: Path, pictures: list[Picture]) -> None:
    write(root / "classes.txt", "\n".join(CLASSES))
    for picture in pictures:
        width, height = picture.size
        rows = ""
        for thing in picture.things:
            x0, y0, x1, y1 = thing.box
            values = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width
            numbers = " ".join(f"{value:.17g}" for value in (*values, (y1 - y0) / height))
            rows += f"{CLASSES.index(thing.name)} {numbers}\n"
        if rows or picture.number % 2:  # a negative may have no file
            write(root / "labels" / Path(picture.name).with_suffix(".txt"), rows)


def read_yolo(root: Path) -> Iterator[tuple[str, tuple[int, int], list[Thing]]]:
    for path in root.glob("images/*/*"):
        name = f"{path.parent.name}/{path.name}"
        file = root / "labels" / Path(name).with_suffix(".txt")
        size = upright_pixels(path).size
        things = []
        for line in file.read_text().splitlines() if file.exists() else []:
            number, *values = line.split()
            x, y, width, height = (float(value) for value in values)
            edges = x - width / 2, y - height / 2, x + width / 2, y + height / 2
            box = tuple(edge * side for edge, side in zip(edges, size * 2, strict=True))
            things.append(Thing(CLASSES[int(number)], box, False))
        yield name, size, things


def upright_pixels(path: Path) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def upright_things(
    path: Path, declared: tuple[int, int], things: list[Thing], stored: bool
) -> list[Thing]:
    """Declared objects in the pixels of the upright picture."""
    with Image.open(path) as image:
        orientation, real = image.getexif().get(0x0112, 1), image.size
    back = {6: 8, 8: 6}.get(orientation, orientation)
    found = []
    for thing in things:
        size = real if stored else upright_pixels(path).size
        scale = np.tile(np.divide(size, declared), 2)
        box = (np.array(thing.box) * scale).tolist()
        if stored:
            box = turned_box(box, real, back)
        found.append(Thing(thing.name, tuple(box), thing.ignored))
    return found


def stored_samples(manifest: Manifest) -> dict[str, dict[str, NDArray[Any]]]:
    """Tensors of each sample by the name of its frame, read with safetensors."""
    lines = (manifest.folder / "samples.jsonl").read_text().splitlines()
    names = [json.loads(line)["name"] for line in lines]
    shards = [load_file(manifest.folder / shard.file) for shard in manifest.shards]
    tensors = {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]}
    return {
        name: {key: rows[number] for key, rows in tensors.items()}
        for number, name in enumerate(names)
    }


def check_sample(
    sample: dict[str, NDArray[Any]], path: Path, things: list[Thing], classes: list[str]
) -> None:
    """Compare a sample with the picture and its objects, in pixels of the upright picture."""
    image = upright_pixels(path)
    assert sample["sizes"].tolist() == [image.height, image.width]
    scale = min(SIDE / image.width, SIDE / image.height)
    size = int(image.width * scale + 0.5), int(image.height * scale + 0.5)
    left, top = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    canvas = Image.new("RGB", (SIDE, SIDE))
    canvas.paste(image.resize(size, Image.Resampling.BILINEAR), (left, top))
    np.testing.assert_array_equal(sample["images"], np.asarray(canvas))
    assert sample["mask"].tolist() == [1] * len(things) + [0] * (SLOTS - len(things))
    ratio = np.tile(np.divide(size, image.size), 2)
    boxes = np.array([thing.box for thing in things]).reshape(-1, 4) * ratio
    boxes = (boxes + np.array([left, top, left, top])) / SIDE
    filled = slice(len(things))
    np.testing.assert_allclose(sample["boxes"][filled], boxes, atol=1e-6)
    assert sample["labels"][filled].tolist() == [classes.index(thing.name) for thing in things]
    ignored = sample.get("ignored", np.zeros(SLOTS, np.uint8))  # YOLO has none
    assert ignored[filled].tolist() == [thing.ignored for thing in things]
    assert not any(sample[key][len(things) :].any() for key in ("boxes", "labels"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return render(tmp_path_factory.mktemp("demo") / "runs", 4, 10)


def rounded(things: list[Thing], has_ignored: bool = True) -> list[tuple[Any, ...]]:
    return sorted(
        (thing.name, *np.round(thing.box, 6), thing.ignored and has_ignored) for thing in things
    )


def check_set(root: Path, form: str, stored: bool, images: list[Any]) -> None:
    folder = {"voc": "JPEGImages", "coco": "images", "yolo": "images"}[form]
    source = root / "source"
    pictures, truth = make_set(source / folder, images, stored, resized=form != "yolo")
    {"voc": write_voc, "coco": write_coco, "yolo": write_yolo}[form](source, pictures)
    options = FrameOptions(size=SIDE, max_boxes=SLOTS, scale_boxes=True, workers=1)
    manifest = frames(source, root / "out", options)
    assert manifest.damage == manifest.left_out == {}
    samples = stored_samples(manifest)
    assert {f"{folder}/{name}" for name in truth} == samples.keys()
    reader = {"voc": read_voc, "coco": read_coco, "yolo": read_yolo}[form]
    seen = 0
    for name, declared, things in reader(source):
        path = source / folder / name
        found = upright_things(path, declared, things, stored)
        assert rounded(found) == rounded(truth[name], has_ignored=form != "yolo")
        check_sample(samples[f"{folder}/{name}"], path, found, manifest.classes)
        seen += 1
    assert seen == len(images)
    assert len(manifest.splits) == 2


@pytest.mark.parametrize(
    ("form", "stored"), [("coco", False), ("coco", True), ("voc", True), ("yolo", False)]
)
def test_a_store_equals_an_independent_reader(
    tmp_path: Path, form: str, stored: bool, few: list[Any]
) -> None:
    check_set(tmp_path, form, stored, few)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("form", "stored"),
    [("coco", False), ("coco", True), ("voc", False), ("voc", True), ("yolo", False)],
)
def test_a_store_of_320_frames_equals_an_independent_reader(
    tmp_path: Path, form: str, stored: bool
) -> None:
    check_set(tmp_path, form, stored, render(tmp_path / "runs", 10, 32))
