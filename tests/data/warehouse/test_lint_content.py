"""What ``prepare lint`` says of content that is valid and still suspicious."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from research.data.frames.frame import Frame, FrameSet
from research.data.warehouse import lint_labels, lint_pictures
from research.data.warehouse.build import build
from research.data.warehouse.lint import MAX_LINES, lint
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.plan import plan_frames
from tests.conftest import CLASSES
from tests.data.warehouse.conftest import ENCODER, make_images, plan_images

Box = tuple[float, float, float, float]
FULL: Box = (0.0, 0.0, 1.0, 1.0)


def store(
    root: Path,
    splits: dict[str, Sequence[tuple[Image.Image, Sequence[tuple[str, Box]]]]],
    classes: Sequence[str] = ("cat", "dog"),
    **save: object,
) -> Manifest:
    """A store of frames; each split is one group of (picture, its classes and boxes)."""
    frames = []
    for split, content in splits.items():
        (root / split).mkdir(parents=True)
        for number, (image, objects) in enumerate(content):
            path = root / split / f"{number}.png"
            image.save(path, **save)
            boxes, labels = [box for _, box in objects], [classes.index(n) for n, _ in objects]
            name = path.relative_to(root).as_posix()
            frames.append(Frame(name, path, split, tuple(boxes), tuple(labels)))
    frame_set = FrameSet(root, "voc", list(classes), frames, [], [], {})
    slots = max(1, *(len(frame.boxes) for frame in frames))
    encoder = replace(ENCODER, image_size=64, max_boxes=slots)
    plan = plan_frames(frame_set, encoder, {split: split for split in splits}, {})
    return build(plan, root / "out", workers=1)


def warnings(manifest: Manifest) -> list[str]:
    report, _ = lint(manifest)
    assert report.errors == []
    return report.warnings


def scene(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth picture with content at low frequencies, as photos have."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


BOX: Box = (0.1, 0.1, 0.5, 0.5)
CAT = [("cat", BOX)]


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (("cat", BOX), True),
        (("cat", (0.1, 0.1, 0.5, 0.501)), True),  # IoU 0.9975
        (("cat", (0.1, 0.1, 0.5, 0.51)), False),  # 0.976
        (("dog", BOX), False),
        (("cat", (0.5, 0.5, 0.9, 0.9)), False),
    ],
)
def test_duplicate_boxes(tmp_path: Path, other: tuple[str, Box], found: bool) -> None:
    both = [*CAT, other, ("dog", (0.6, 0.1, 0.9, 0.4))]
    samples = lint(store(tmp_path, {"train": [(scene(0), CAT), (scene(1), both)]}))[1]
    lines = list(lint_labels.duplicate_boxes(samples))
    assert len(lines) == found
    if found:
        assert "row 1 (train/1.png) box 1: the same cat as box 0 (IoU " in lines[0]


def test_boxes_that_cover_the_picture(tmp_path: Path) -> None:
    """Of the picture, not of its letterbox."""
    wide = (0.0, 0.0, 1.0, 0.97)
    boxes = [[("cat", FULL)], [("dog", (0.0, 0.0, 0.997, 0.997))], [("cat", wide)], []]
    content = [(scene(n, (64, 32)), own) for n, own in enumerate(boxes)]
    _, samples = lint(store(tmp_path, {"train": content}))
    assert [line.partition(" (")[2] for line in lint_labels.whole_picture_boxes(samples)] == [
        "train/0.png) box 0: cat covers the whole picture",
        "train/1.png) box 0: dog covers the whole picture",
    ]


def test_classes_that_no_split_can_use(tmp_path: Path) -> None:
    classes = ("both", "train only", "once", "val only", "nowhere")

    def frames(*names: str) -> list[tuple[Image.Image, list[tuple[str, Box]]]]:
        return [(scene(len(name) + 50 * n), [(name, BOX)]) for n, name in enumerate(names)]

    train = frames("both", "both", "train only", "train only", "once")
    val = [(scene(900 + n), own) for n, (_, own) in enumerate(frames("both", "val only"))]
    lines = warnings(store(tmp_path, {"train": train, "val": val}, classes))
    assert lines == [
        "class val only: none in train, some in val",
        "class nowhere: none in train",
        "class train only: none in val, so that nothing evaluates it",
        "class once: one box in all, in train",
        "class val only: one box in all, in val",
    ]


@pytest.mark.parametrize(("dogs", "unlike"), [(6, False), (10, False), (30, True)])
def test_splits_of_other_classes(tmp_path: Path, dogs: int, unlike: bool) -> None:
    """``train`` has 10 % dogs, ``val`` 10, 17 or 50 % of 60."""
    grid = [(x / 16, y / 16, (x + 1) / 16, (y + 1) / 16) for x in range(16) for y in range(16)]

    def objects(cats: int, dogs: int) -> list[tuple[str, Box]]:
        return list(zip(["cat"] * cats + ["dog"] * dogs, grid, strict=False))

    content = {
        "train": [(scene(0), objects(90, 10))],
        "val": [(scene(1), objects(60 - dogs, dogs))],
    }
    _, samples = lint(store(tmp_path, content))
    lines = list(lint_labels.unlike_splits(samples))
    line = "val: its classes are distributed otherwise than in train, most of all cat (90% of "
    assert lines == [f"{line}train, 50% of val)"] * unlike


CHANGES = {
    "the same": lambda image: image,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(0.7)),
    "brighter": lambda image: image.point(lambda value: min(255, value + 12)),
    "smaller": lambda image: image.resize((56, 42), Image.Resampling.LANCZOS),
    "noisy": lambda image: Image.fromarray(
        (np.asarray(image) + np.random.default_rng(9).normal(0, 4, (48, 64, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    ),
    "another": lambda image: scene(77),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "half changed": lambda image: Image.composite(image, scene(78), Image.new("L", (64, 48), 128)),
}  # fmt: skip


@pytest.mark.parametrize("how", CHANGES)
def test_nearly_the_same_picture_in_two_splits(tmp_path: Path, how: str) -> None:
    """Exact duplicates have a line of their own."""
    train = [(scene(n), CAT) for n in range(5)]
    val = [(scene(10), CAT), (CHANGES[how](scene(3)), CAT)]
    report, _ = lint(store(tmp_path, {"train": train, "val": val}, ["cat"]))
    near = how in ("blurred", "brighter", "smaller", "noisy")
    assert len(report.warnings) == near
    assert len(report.errors) == (how == "the same")
    for line in report.warnings:
        assert "row 6 (val/1.png): nearly the same picture as shard_00000" in line
        assert "(train/3.png), which is in train, this one in val (" in line


def test_flat_pictures_are_not_compared(tmp_path: Path) -> None:
    def flat(grey: int) -> Image.Image:
        noise = np.random.default_rng(grey).normal(grey, 2, (48, 64, 3))
        return Image.fromarray(noise.astype(np.uint8))

    content = {"train": [(flat(90), CAT)], "val": [(flat(91), CAT), (flat(200), CAT)]}
    assert warnings(store(tmp_path, content, ["cat"])) == []


def test_near_duplicates_of_coefficients(tmp_path: Path) -> None:
    root, folders = make_images(tmp_path / "images")
    for split, quality in (("train", 95), ("val", 60)):
        for label, _ in enumerate(CLASSES):
            scene(label, (64, 64)).save(folders.splits[split].files[4 * label], quality=quality)
    report, _ = lint(build(plan_images(root, folders), tmp_path / "out", workers=1))
    assert report.errors == []
    names = [line.partition(")")[0].partition("(")[2] for line in report.warnings]
    assert names == [f"val/{kind}/000.jpg" for kind in CLASSES]


def test_turned_pictures_are_counted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = {"train": [(scene(n), CAT) for n in range(3)]}
    report, _ = lint(store(tmp_path / "turned", content, exif=exif.tobytes()))
    assert any("3 samples are turned by their orientation tag" in line for line in report.notes)
    report, _ = lint(store(tmp_path / "plain", content))
    assert not any("turned" in line for line in report.notes)


def test_many_lines_are_counted(tmp_path: Path) -> None:
    content = {"train": [(scene(n), [("cat", FULL)]) for n in range(MAX_LINES + 5)]}
    lines = warnings(store(tmp_path, content, ["cat"]))
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == "… and 5 more like it"


def hashes(count: int, seed: int) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


def test_the_search_finds_what_all_pairs_have() -> None:
    mine, others = hashes(400, 0), hashes(3000, 1)
    rng = np.random.default_rng(2)
    for index in range(0, 400, 2):  # 0 to 13 bits of another one are changed
        bits = rng.choice(64, rng.integers(0, 14), replace=False)
        mine[index] = others[rng.integers(3000)] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    distances = np.bitwise_count(mine[:, None] ^ others)
    expected = {
        index: int(row.min())
        for index, row in enumerate(distances)
        if row.min() <= lint_pictures.DISTANCE
    }
    found = {one: (other, bits) for one, other, bits in lint_pictures.nearest(mine, others)}
    assert {one: bits for one, (_, bits) in found.items()} == expected
    assert all(distances[one, other] == bits for one, (other, bits) in found.items())
    assert not list(lint_pictures.nearest(mine, others[:0]))


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["random", "all alike"])
def test_the_search_of_a_hundred_thousand(kind: str) -> None:
    mine, others = hashes(20_000, 0), hashes(80_000, 1)
    if kind == "all alike":  # frames of one camera: 12 bits vary
        mine, others = mine & np.uint64(0xFFF), others & np.uint64(0xFFF)
    start = time.process_time()
    found = list(lint_pictures.nearest(mine, others))
    seconds = time.process_time() - start
    print(kind, len(found), f"{seconds:.1f} s")
    assert (len(found) == len(mine)) if kind == "all alike" else (len(found) < 5)
    assert seconds < 20
