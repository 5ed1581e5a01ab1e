"""Layouts of published RGB + thermal data sets, with small files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from research.data.frames.frame import FrameSet
from research.data.rgbx.modality_names import find_folders as folders_of
from research.data.rgbx.modality_names import without_last_word
from research.data.rgbx.paired_folders import PairedFolders, find_folders
from tests.conftest import user_error

SIZE = (40, 20)
YOLO = "0 0.5 0.75 0.5 0.5\n"
BOX = (0.25, 0.5, 0.75, 1.0)
VOC = (
    "<annotation><object><name>car</name><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax>"
    "<ymax>20</ymax></bndbox></object></annotation>"
)
KAIST = (
    "<annotation><filename>{}</filename><object><name>person</name><bndbox><x>10</x><y>10</y>"
    "<w>20</w><h>10</h></bndbox></object></annotation>"
)


def save(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(SIZE[::-1], 90, np.uint8)).save(path)


def text(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def coco(*names: str) -> str:
    return json.dumps(
        {
            "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "bbox": [10, 10, 20, 10]}
                for n in range(len(names))
            ],
            "categories": [{"id": 1, "name": "car"}],
        }
    )


def read(source: Path, **named: str) -> tuple[FrameSet, PairedFolders]:
    folders = PairedFolders(source, find_folders(source, named))
    return folders.read(False), folders


def frames(source: Path, **named: str) -> dict[str, dict[str, str]]:
    """Frame → modality → file; all have one box and both pictures."""
    found, folders = read(source, **named)
    assert found.problems == []
    assert {frame.boxes for frame in found.frames} == {(BOX,)}
    names = [folders.frame_of(frame.image) for frame in found.frames]
    assert found.reading is not None
    assert found.reading.frames == len(names)
    assert found.reading.used == 2 * len(names)
    return {
        name: {m: p.relative_to(source).as_posix() for m, p in folders.files(name).items()}
        for name in names
    }


def test_kaist(tmp_path: Path) -> None:
    for video in ("set00/V000", "set06/V001"):
        for modality in ("visible", "lwir"):
            save(tmp_path, f"images/{video}/{modality}/I00000.jpg")
    xml = {
        f"annotations-xml-new/{video}/I00000.xml": KAIST.format(f"{video}/I00000")
        for video in ("set00/V000", "set06/V001")
    }
    text(tmp_path, xml)
    assert frames(tmp_path) == {
        f"images/{video}/I00000": {
            "rgb": f"images/{video}/visible/I00000.jpg",
            "thermal": f"images/{video}/lwir/I00000.jpg",
        }
        for video in ("set00/V000", "set06/V001")
    }


def test_kaist_with_text_files(tmp_path: Path) -> None:
    row = "person {} 0 0 0 0 {} 0\n"
    for modality in ("visible", "lwir"):
        save(tmp_path, *(f"set00/V000/{modality}/I0000{n}.jpg" for n in range(3)))
    boxes = row.format("10 10 20 10 0", 0), row.format("10 10 20 10 0", 1), ""
    text(
        tmp_path,
        {
            f"annotations/set00/V000/I0000{n}.txt": f"% bbGt version=3\n{rows}"
            for n, rows in enumerate(boxes)
        },
    )
    found, _ = read(tmp_path)
    assert found.problems == []
    assert [(frame.boxes, frame.ignored) for frame in found.frames] == [
        ((BOX,), ()),
        ((BOX,), (True,)),
        ((), ()),
    ]


def test_m3fd(tmp_path: Path) -> None:
    for number in ("00000", "00001"):
        save(tmp_path, f"Vis/{number}.png", f"Ir/{number}.png")
        text(tmp_path, {f"Annotation/{number}.xml": VOC})
    assert frames(tmp_path)["00001"] == {"rgb": "Vis/00001.png", "thermal": "Ir/00001.png"}


def test_llvip(tmp_path: Path) -> None:
    for split, number in (("train", "010001"), ("test", "190001")):
        save(tmp_path, f"visible/{split}/{number}.jpg", f"infrared/{split}/{number}.jpg")
        text(tmp_path, {f"Annotations/{number}.xml": VOC})
    assert list(frames(tmp_path)) == ["test/190001", "train/010001"]
    assert set(read(tmp_path)[0].split.values()) == {"train", "test"}


def test_flir_1(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save(tmp_path, f"{split}/RGB/FLIR_00001.jpg", f"{split}/thermal_8_bit/FLIR_00001.jpeg")
        text(tmp_path, {f"{split}/labels/FLIR_00001.txt": YOLO})
    assert frames(tmp_path)["val/FLIR_00001"] == {
        "rgb": "val/RGB/FLIR_00001.jpg",
        "thermal": "val/thermal_8_bit/FLIR_00001.jpeg",
    }
    assert set(read(tmp_path)[0].split.values()) == {"train", "val"}


def test_flir_2(tmp_path: Path) -> None:
    """Its pictures for training are no pairs; those of the videos are listed."""
    pairs = {f"video-a-frame-{n}-x{n}.jpg": f"video-b-frame-{n}-y{n}.jpg" for n in range(2)}
    save(tmp_path, *(f"video_rgb_test/data/{name}" for name in pairs))
    save(tmp_path, *(f"video_thermal_test/data/{name}" for name in pairs.values()))
    save(tmp_path, "images_rgb_train/data/video-c-1.jpg", "images_thermal_train/data/video-d-2.jpg")
    text(
        tmp_path,
        {
            "rgb_to_thermal_vid_map.json": json.dumps(pairs),
            "video_thermal_test/coco.json": coco(*(f"data/{name}" for name in pairs.values())),
        },
    )
    found, folders = read(tmp_path)
    assert [folders.frame_of(frame.image) for frame in found.frames] == [
        f"video_test/data/video-a-frame-{n}-x{n}" for n in range(2)
    ]
    assert found.reading is not None
    assert found.reading.omitted == {"without an image of each modality": 2}
    text(tmp_path, {"rgb_to_thermal_vid_map.json": '{"a": 1}'})
    with user_error("labels", "rgb_to_thermal_vid_map.json", "expected RGB name"):
        read(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("images/train/{}_rgb.png", "images/train/{}_thermal.png", "labels/train/{}.txt"),
        ("images/{}_co.png", "images/{}_ir.png", "labels/{}_co.txt"),
        ("all/{}-visible.png", "all/{}-infrared.png", "all/labels/{}.txt"),
        ("rgb/{}_rgb.png", "thermal/{}_thermal.png", "labels/{}.txt"),
        ("rgb/{}_visible.png", "thermal/{}_infrared.png", "labels/{}_infrared.txt"),
        ("images/vi/{}.jpg", "images/ir/{}.jpg", "labels/vi/{}.txt"),
        ("a/visible/{}.jpg", "a/lwir/{}.jpg", "a/labels/{}.txt"),
        (
            "JPEGImages/{}_RGB.jpg",
            "JPEGImages/{}_PreviewData.jpeg",
            "Annotations/{}_PreviewData.xml",
        ),
    ],
)
def test_names_that_differ_by_a_word(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number in ("001", "002"):
        rgb, thermal, label = (name.format(number) for name in names)
        save(tmp_path, rgb, thermal)
        text(tmp_path, {label: VOC if label.endswith("xml") else YOLO})
    found = frames(tmp_path)
    assert len(found) == 2
    for frame, files in found.items():
        number = "001" if "001" in frame else "002"
        assert files == {"rgb": names[0].format(number), "thermal": names[1].format(number)}


def test_frames_that_are_not_complete_are_counted(tmp_path: Path) -> None:
    save(tmp_path, "rgb/a.png", "thermal/a.png", "rgb/b.png", "thermal/c.png", "rgb/d.png")
    save(tmp_path, "thermal/d.png", "docs/figure.png")
    text(tmp_path, {"labels/a.txt": YOLO, "labels/b.txt": YOLO, "labels/d.txt": "x"})
    found, _ = read(tmp_path)
    assert found.reading is not None
    assert found.reading.line == (
        "read as YOLO: classes by number, no split; 2 pictures used in 1 frame, 3 label files, "
        "1 passed over (1 outside images), 4 left out (2 bad label row, 1 missing file, "
        "1 without an image of each modality)"
    )


@pytest.mark.parametrize(
    ("modality", "name", "stem"),
    [
        ("rgb", "FLIR_00001_RGB", "FLIR_00001"),
        ("thermal", "FLIR_00001_PreviewData", "FLIR_00001"),
        ("thermal", "a.ir", "a"),
        ("rgb", "a_ir", ""),
        ("thermal", "air", ""),
        ("thermal", "ir", ""),
    ],
)
def test_the_word_of_a_modality(modality: str, name: str, stem: str) -> None:
    assert without_last_word(modality, name) == stem


def test_a_folder_counts_as_a_whole_word(tmp_path: Path) -> None:
    pictures: Any = ["rgb/a.png", "stairs/a.png"]
    with user_error("thermal", "no folder thermal"):
        folders_of(tmp_path, pictures, {})
