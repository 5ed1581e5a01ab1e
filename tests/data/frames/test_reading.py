"""How a source was read: every file below it counts once, and the line is printed and kept."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from research.data.frames.annotations import read_frames
from research.data.frames.frame import FrameSet
from research.data.frames.limits import log_reading
from research.data.rgbx.paired_folders import PairedFolders, find_folders
from research.utils.errors import UserError
from tests.data.frames.test_annotations import image, text, voc
from tests.data.frames.test_splits import ROW, yolo

LONG = "x" * 300 + ".jpg"
SEEDS = {
    "annotations/instances.json": [
        '{"images": [{"id": 1, "file_name": "a.jpg"}, "\\u0000"], "annotations": [], '
        '"categories": [{"id": 1e999, "name": "cat"}]}',
        '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, '
        '"category_id": [[1]], "bbox": [1, 2, 3, 4]}], "categories": [{"id": 1, "name": "cat"}]}',
        '{"images": [{"id": [1], "file_name": "a.jpg"}], "annotations": [{"image_id": {}}], '
        '"categories": [{"id": 1, "name": "cat"}]}',
        "[" * 5000,
    ],
    "Annotations/b.xml": [voc(("cat", 1, 1, 9, 9), filename=LONG), "<annotation>\0</annotation>"],
    "run_0/labels/frame_00002.json": [
        json.dumps({"image": LONG, "labels": []}),
        json.dumps({"image": "\ud800.jpg", "labels": []}),
        '{"image": "a.jpg", "labels": [' + "9" * 5000 + "]}",
    ],
    "data.yaml": ["[" * 5000, "names: [a\n", "names: !!python/name:os.system x", "names: &a [*a]"],
    "classes.txt": ["\0", "x" * 70_000],
    "labels/a.txt": ["9" * 70_000, "1e999 0 0 1 1", "0 0.5 0.5 1e999 1"],
}
"""Files on which a parser ended in a traceback, and others of the kind."""


def coco(*names: str) -> str:
    row = {"category_id": 1, "bbox": [1, 1, 9, 9]}
    return json.dumps(
        {
            "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
            "annotations": [{**row, "id": n, "image_id": n} for n in range(len(names))],
            "categories": [{"id": 1, "name": "cat"}],
        }
    )


def capture(root: Path, run: str, *frames: int) -> None:
    manifest = {"schema_version": 1, "run_dir": run}
    text(root / run / "run_manifest.json", json.dumps(manifest))
    for number in frames:
        stem = f"frame_{number:05d}"
        image(root / f"{run}/images/{stem}.jpg")
        label = {"image": f"images/{stem}.jpg", "labels": []}
        text(root / f"{run}/labels/{stem}.json", json.dumps(label))
    image(root / f"{run}/overlays/frame_00000.jpg")


def as_yolo(root: Path) -> None:
    yolo(root, "a", "train/b")
    text(root / "data.yaml", "names: [cat]\n")


def as_flat(root: Path) -> None:
    image(root / "a.jpg")
    text(root / "a.txt", ROW)


def as_voc(root: Path) -> None:
    image(root / "JPEGImages/a.jpg")
    text(root / "Annotations/a.xml", voc(("cat", 1, 1, 9, 9), filename="a.jpg"))


def as_coco(root: Path) -> None:
    image(root / "images/a.jpg")
    text(root / "annotations/instances.json", coco("a.jpg"))


def as_capture(root: Path) -> None:
    capture(root, "run_0", 0, 1)
    capture(root, "run_1", 0)


def as_rgbx(root: Path) -> None:
    for folder in ("rgb", "thermal"):
        (root / folder).mkdir()
        Image.fromarray(np.full((20, 40), 90, np.uint8)).save(root / folder / "a.png")
    text(root / "labels/a.txt", ROW)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "yolo": as_yolo,
    "flat": as_flat,
    "voc": as_voc,
    "coco": as_coco,
    "capture": as_capture,
    "rgbx": as_rgbx,
}
PLACES = """images labels JPEGImages Annotations annotations rgb thermal train val x .git @eaDir
run_0 overlays"""
FILES = """a.jpg a.png A.jpg b.txt a.txt A.TXT a.jpg.txt a.xml b.xml c.json frame_00000.jpg k.txt
frame_00007.json classes.txt d.heic ._a.jpg Thumbs.db README notes.yaml train.txt q.npy k.jpg
l.jpg"""
FOLDERS, NAMES = (st.sampled_from(words.split()) for words in (PLACES, FILES))
TREES = st.sets(
    st.tuples(st.lists(FOLDERS, max_size=3), NAMES).map(lambda t: "/".join([*t[0], t[1]])),
    max_size=12,
)
CONTENTS = st.sampled_from(["", ROW, "x", "<annotation/>", "{}", "names: [cat]\n"])


def read(root: Path, layout: str) -> FrameSet:
    if layout == "rgbx":
        return PairedFolders(root, find_folders(root, {})).read(False)
    return read_frames(root, form="yolo" if layout == "flat" else layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_used_passed_over_and_left_out_are_all_files(
    tmp_path_factory: pytest.TempPathFactory, layout: str
) -> None:
    counted: list[Path] = []
    refused: list[Path] = []

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(TREES, st.lists(CONTENTS, min_size=1, max_size=4), st.integers(0, 3))
    def holds(names: set[str], contents: list[str], links: int) -> None:
        root = tmp_path_factory.mktemp("tree")
        LAYOUTS[layout](root)
        for number, name in enumerate(sorted(names)):
            path = root / name
            if path.exists() or any(part.is_file() for part in path.parents):
                continue
            if path.suffix in (".jpg", ".png") and number % 3:
                image(path)
            else:
                text(path, contents[number % len(contents)])
        for number in range(links):
            (root / f"link{number}").symlink_to([".", "images", "gone"][number])
        try:
            found = read(root, layout)
        except UserError:  # such as a bad classes.txt, or two labels of the only picture
            refused.append(root)
            return
        counted.append(root)
        reading = found.reading
        assert reading is not None
        files = [path for path in root.rglob("*") if path.is_symlink() or path.is_file()]
        total = reading.used + reading.labels + reading.passed_over.counts.total()
        assert total + reading.omitted.total() == len(files), reading
        assert reading.frames == len(found.frames)
        assert str(reading).startswith("read as ")
        said = re.search(r"; (\d+) pictures? used", reading.line)
        assert said
        assert int(said[1]) == reading.used

    holds()
    assert len(counted) >= 4, f"{len(refused)} of the trees are refused"


def test_the_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The example of the issue, with other numbers."""
    source = yolo(tmp_path, "a", "b", "c", "d")
    (source / "labels/d.txt").unlink()
    (source / "images/c.jpg").write_bytes(b"")
    text(source / "images/.hidden.jpg", "x")
    text(source / "images/e.heic", "x")
    text(source / "data.yaml", "names: [cat]\ntrain: train.txt\nval: val.txt\n")
    text(source / "train.txt", "images/a.jpg\nimages/b.jpg\nimages/c.jpg\n")
    text(source / "val.txt", "images/d.jpg\n")
    with caplog.at_level(logging.INFO):
        log_reading(read_frames(source))
    assert caplog.messages[0] == (
        f"{source}: read as YOLO: names from data.yaml, split from train.txt and val.txt of "
        "data.yaml; 3 pictures used, 6 label files, 2 passed over (1 hidden, 1 HEIC), 1 without "
        "label kept as negatives, 1 left out (empty)"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name, contents in SEEDS.items() for content in contents],
)
def test_seeds_are_one_line(tmp_path: Path, name: str, content: str) -> None:
    make = {"annotations": as_coco, "Annotations": as_voc, "run_0": as_capture}
    make.get(name.split("/")[0], as_yolo)(tmp_path)
    text(tmp_path / name, content)
    try:
        problems = read_frames(tmp_path).problems
    except UserError as error:
        problems = [str(error)]
    assert problems
    assert all("\n" not in problem and len(problem) < 500 for problem in problems)


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a")
    long = "x" * (255 - 4)
    image(source / f"images/{long}.jpg")
    text(source / f"labels/{long}.txt", ROW)
    lines = ["images/a.jpg", "y" * 300 + ".jpg", "images/b\x01.jpg", f"images/{long}.jpg"]
    text(source / "train.txt", "\n".join(lines))
    text(source / "val.txt", "images/a.jpg")
    text(source / "data.yaml", "names: [cat]\ntrain: train.txt\nval: val.txt\n")
    found = read_frames(source)
    assert [frame.name for frame in found.frames] == [f"images/{long}.jpg"]
    assert len(found.problems) == 3
    assert all("\n" not in problem for problem in found.problems)


def test_a_list_below_a_file_is_no_hang(tmp_path: Path) -> None:
    source = yolo(tmp_path, "a")
    os.mkfifo(source / "train.txt")
    found = read_frames(source)
    assert len(found.frames) == 1
    assert found.passed_over.counts == {"no regular file": 1}
