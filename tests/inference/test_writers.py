"""The contact sheet of a classifier shows images drawn from all."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from research.data.frames.media import Still
from research.inference import writers
from research.inference.writers import ClassWriter
from research.tasks.detection import Detection
from research.viz import pictures


def written(folder: Path, count: int, seed: int) -> tuple[list[int], list[str]]:
    """Which of ``count`` images a sheet shows, by their colour and by their captions; its lines."""
    writer = ClassWriter(folder, ["a", "b"])
    writer.chance = np.random.default_rng(seed)
    with writer:
        for start in range(0, count, 7):
            numbers = range(start, min(count, start + 7))
            stills = [Still(f"{n}.png", "images", f"{n}", Path(f"{n}.png")) for n in numbers]
            panels = [[Image.new("RGB", (2, 2), (n, 0, 0))] for n in numbers]
            writer.add(stills, panels, torch.zeros(len(stills), 2))
    shown = sorted(writer.shown.values(), key=lambda cell: cell[0])
    found = [cell.getpixel((80, 80))[0] for _, cell, _ in shown]  # type: ignore[index]
    assert [caption.splitlines()[0] for *_, caption in shown] == [str(n) for n in found]
    return found, writer.where()


def test_the_images_of_a_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as often as every other: in 60 sheets of 10 of 50, about 12 times."""
    monkeypatch.setattr(writers, "SHOWN", 10)
    monkeypatch.setattr(ClassWriter, "_append", lambda *_: None)
    titles: list[str] = []
    drawn: Any = pictures.titled
    monkeypatch.setattr(pictures, "titled", lambda im, text: titles.append(text) or drawn(im, text))
    assert written(tmp_path / "few", 10, 0)[0] == list(range(10))
    assert titles == ["10 images"]
    monkeypatch.setattr(writers, "save", lambda *_: None)
    times = np.zeros(50)
    for seed in range(60):
        found, lines = written(tmp_path / "many", 50, seed)
        assert len({*found}) == 10
        assert found == sorted(found)
        times[found] += 1
    assert titles[-1] == "10 of 50 images"
    assert "(10 of 50)" in lines[1]
    assert abs(times - 12).max() < 4.5 * (60 * 0.2 * 0.8) ** 0.5


def test_equal_logits_are_in_the_order_of_the_classes(tmp_path: Path) -> None:
    """As they are evaluated."""
    names = [f"{n}" for n in range(100)]
    with ClassWriter(tmp_path, names) as writer:
        stills = [Still(f"{n}.png", "images", f"{n}", Path(f"{n}.png")) for n in range(2)]
        logits = torch.zeros(2, 100)
        logits[1, 50:] = 900.0  # of a probability that leaves none to the others
        writer.add(stills, [[Image.new("RGB", (2, 2))]] * 2, logits)
    rows = list(csv.reader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [row[1::2] for row in rows[1:]] == [names[:5], names[50:55]]


def test_scores_that_are_not_finite_name_no_class(tmp_path: Path) -> None:
    """Softmax of half precision that overflows, or of a network that diverged."""
    logits = torch.tensor([[1.0, 3.0], [torch.nan, 1.0], [0.0, torch.inf], [-torch.inf, 0.0]])
    stills = [Still(f"{n}.png", "images", f"{n}", Path(f"{n}.png")) for n in range(4)]
    with ClassWriter(tmp_path, ["a", "b"]) as writer:
        overlays = writer.add(stills, [[Image.new("RGB", (2, 2))]] * 4, logits)
    assert [overlay.caption for overlay in overlays] == ["b 88%", "no class", "no class", "b 100%"]
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["b", "", "", "b"]
    assert writer.summary() == {"classes": {"b": 2}, "undefined": 2}
    assert "no class: 2 images, scores are not finite" in writer.where()


def test_boxes_of_a_class_agnostic_task_are_of_its_one_class(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30))
    picture.save(tmp_path / "a.png")
    task = Detection(["car", "bus", "van"], True, 0.5, 0.3, 0.5, "val/mAP50:max")
    found = {
        "boxes": torch.tensor([[1.0, 2, 10, 12], [3, 4, 9, 9]]),
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([2, 0]),
    }
    with task.writer(tmp_path / "out") as writer:
        still = Still("a.png", "images", "a", tmp_path / "a.png")
        writer.add([still], [[picture]], [found])
    coco = COCO(tmp_path / "out" / "predictions.json")
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == ["object"]
    assert len(coco.getAnnIds(catIds=coco.getCatIds())) == 2


def test_the_classes_of_a_few_images_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "LISTED", 3)
    first, *files = written(tmp_path / "one", 1, 0)[1]
    assert first == "0.png  a 50%, b 50%"
    assert written(tmp_path / "three", 3, 0)[1][0:3] == [f"{n}.png  a 50%, b 50%" for n in range(3)]
    assert written(tmp_path / "four", 4, 0)[1][0] == "classes:  a 4"
    assert [line.split()[0] for line in files] == ["pictures:", "table:"]


def test_a_video_of_more_frames_than_a_run_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100,000 are an hour; the others are in further runs, and all in one COCO document."""
    monkeypatch.setattr(writers, "MAX_FRAMES", 2)
    task = Detection(["polyp"], False, 0.5, 0.3, 0.5, "val/mAP50:max")
    image = Image.new("RGB", (16, 16))
    found = {
        "boxes": torch.tensor([[2.0, 2.0, 8.0, 8.0]]),
        "scores": torch.tensor([0.9]),
        "labels": torch.tensor([0]),
    }
    with task.writer(tmp_path) as writer:
        for number in range(5):
            still = Still(f"v frame {number}", "v", f"v_{number}", tmp_path / "gone.npy")
            writer.add([still], [[image]], [found])
    runs = [tmp_path / name for name in ("v", "v_from_2", "v_from_4")]
    assert writer.summary()["runs"] == list(map(str, runs))
    assert [len(list((run / "labels").iterdir())) for run in runs] == [2, 2, 1]
    assert any("capture runs: 3;" in line for line in writer.where())
    assert len(COCO(tmp_path / "predictions.json").imgs) == 5
