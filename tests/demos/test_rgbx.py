from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from research.demos.rgbx import CLASSES, RECORD, MovingObject, RgbxDemo, RoadScene
from tests.conftest import Update, user_error

SIZE = 96


def scenes(count: int) -> list[RoadScene]:
    return [RoadScene((3, number), number, SIZE) for number in range(count)]


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_larger_set_starts_with_the_files_of_a_smaller_one(tmp_path: Path) -> None:
    few = files(RgbxDemo(str(tmp_path / "a"), 13, 0, SIZE).render())
    more = files(RgbxDemo(str(tmp_path / "b"), 16, 0, SIZE).render())
    other = files(RgbxDemo(str(tmp_path / "c"), 13, 1, SIZE).render())
    assert len(few) == 13 + 13 + 3
    assert all(more[name] == content for name, content in few.items() if name != RECORD)
    assert other["seq000_00.npy"] != few["seq000_00.npy"]


def test_rendered_once(tmp_path: Path, updates: list[Update]) -> None:
    demo = RgbxDemo(str(tmp_path / "demo"), 13, 0, SIZE)
    root = demo.render()
    assert updates == [("rendering demo frames", done, 3) for done in (1, 2, 3)]
    written = (root / "images" / "seq000_00.npy").stat().st_mtime_ns
    demo.render()
    assert (root / "images" / "seq000_00.npy").stat().st_mtime_ns == written
    RgbxDemo(str(root), 14, 0, SIZE).render()
    assert len(list((root / "images").iterdir())) == 14
    (root / "images" / "mine.npy").write_bytes(b"")
    with user_error("dataset.root", root):
        demo.render()


@pytest.mark.parametrize(
    ("settings", "key"),
    [((12, 0, SIZE), "images"), ((13, -1, SIZE), "seed"), ((13, 0, 63), "size")],
)
def test_invalid_settings(tmp_path: Path, settings: tuple[int, int, int], key: str) -> None:
    with user_error(f"dataset.demo.{key}", "at least"):
        RgbxDemo(str(tmp_path / "demo"), *settings).render()


def test_files_contain_the_frames_of_the_scenes(tmp_path: Path) -> None:
    root = RgbxDemo(str(tmp_path / "demo"), 20, 3, SIZE).render()
    assert (root / "classes.txt").read_text().split() == list(CLASSES)
    channels = json.loads((root / "rgbx.json").read_text())["channels"]
    assert channels == ["red", "green", "blue", "thermal", "event"]
    sizes = set()
    for number, scene in enumerate(scenes(3)):
        for index in range(6):
            pixels, objects = scene.frame(index)
            name = f"seq{number:03d}_{index:02d}"
            stored = np.load(root / "images" / f"{name}.npy")
            np.testing.assert_array_equal(stored, pixels)
            assert (stored.dtype, stored.shape[2]) == (np.uint8, 5)
            sizes.add(stored.shape)
            rows = (root / "labels" / f"{name}.txt").read_text().splitlines()
            for row, (label, _, box) in zip(rows, objects, strict=True):
                class_id, x, y, width, height = map(float, row.split())
                assert class_id == label
                edges = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                np.testing.assert_allclose(edges, box, atol=2e-6)
    assert len(sizes) == 3


def test_sensors_and_classes_are_balanced_and_some_sequences_are_empty() -> None:
    sensors, labels, counts = [0, 0, 0], [0, 0], []
    for scene in scenes(48):
        counts.append(len(scene.objects))
        for item in scene.objects:
            sensors[item.sensor] += 1
            labels[item.label] += 1
            longest, shortest = item.extent.max(), item.extent.min()
            assert 14 * SIZE / 160 * 0.85 < shortest < longest < 61 * SIZE / 160
    assert counts.count(0) == 6
    assert {count for count in counts if count} == {2, 3, 4}
    assert max(sensors) < 1.15 * min(sensors)
    assert max(labels) < 1.4 * min(labels)


@pytest.mark.parametrize("sensor", [0, 1, 2])
def test_an_object_is_visible_in_one_sensor_only(
    sensor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with the same scenes without the objects of one sensor."""
    own = [(0, 1, 2), (3,), (4,)][sensor]
    others = [channel for channel in range(5) if channel not in own]
    with_them = [scene.frame(0) for scene in scenes(8)]
    cover = MovingObject.cover

    def hidden(self: MovingObject, *where: object) -> object:
        covered, inner = cover(self, *where)  # type: ignore[arg-type]
        return (covered * (self.sensor != sensor), inner)

    monkeypatch.setattr(MovingObject, "cover", hidden)
    monkeypatch.setattr(MovingObject, "box", staticmethod(lambda cover: (0, 0, 1, 1)))
    visible = 0
    for scene, (pixels, objects) in zip(scenes(8), with_them, strict=True):
        without, _ = scene.frame(0)
        np.testing.assert_array_equal(pixels[..., others], without[..., others])
        changed = np.abs(pixels[..., own].astype(int) - without[..., own]).max(-1) > 30
        height, width = changed.shape
        rest = changed.copy()
        for _, which, (x0, y0, x1, y1) in objects:
            inner = np.s_[
                round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)
            ]
            if which == sensor:
                visible += 1
                rest[inner] = False
                # The box is tight: pixels have changed along each of its sides.
                inside = changed[inner]
                edges = (inside[:2], inside[-2:], inside[:, :2], inside[:, -2:])
                assert all(edge.any() for edge in edges)
                assert inside.mean() > 0.35
        # Only pixels at the edge that are covered by less than half.
        assert rest.sum() < 0.02 * rest.size
    assert visible > 5


def test_objects_do_not_overlap_and_stay_within_the_frame() -> None:
    for scene in scenes(9):
        for index in (0, 5):
            _, objects = scene.frame(index)
            boxes = np.array([box for _, _, box in objects]).reshape(-1, 4)
            assert (boxes >= 0).all()
            assert (boxes <= 1).all()
            for number, one in enumerate(boxes):
                for two in boxes[:number]:
                    low, high = np.maximum(one[:2], two[:2]), np.minimum(one[2:], two[2:])
                    assert (high <= low).any()
