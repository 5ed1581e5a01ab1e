"""A COCO-format set through store, loader and evaluation: pycocotools' numbers on the files."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

import research
from research.batch import DetectionBatch
from research.config import compose_config
from research.data.frames.annotations import read_frames
from research.data.loader import SampleKey
from research.data.transforms import DeviceTransform
from research.data.warehouse.build import build
from research.data.warehouse.encoders import FrameEncoder
from research.data.warehouse.kinds import FrameSamples
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.plan import plan_frames
from research.data.warehouse.store import Store
from research.engine.evaluation import evaluate
from research.tasks.detection import Detection
from research.tasks.detection_metrics import TWELVE
from research.tracking.files import typed_rows
from research.viz.colours import IGNORED_BOX, TRUE_BOX
from tests.conftest import run

CPU = torch.device("cpu")
SIZES = ((320, 240), (200, 320), (257, 131), (96, 96), (333, 221))
NAMES = ["cat", "dog", "owl", "yak"]
MONITOR = "val/mAP50:max"
Found = list[dict[str, Tensor]]


def coco_set(root: Path, frames: int, *, classes: int = 3) -> Path:
    """Pictures with 0…6 boxes on whole pixels or hundredths, some of exactly 32² and 96²; every
    fourth has a crowd, every eighth a crowd alone; areas are those of outlines in two of three.
    """
    rng = np.random.default_rng(5)
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    (root / "images").mkdir(parents=True)
    for number in range(frames):
        width, height = SIZES[number % len(SIZES)]
        name = f"{number:04d}.png"
        grey = np.full((height, width), 5 * number % 256, np.uint8)
        Image.fromarray(grey).save(root / "images" / name)
        images.append({"id": 7 * number + 3, "file_name": name, "width": width, "height": height})
        crowd = number % 4 == 1
        count = 0 if number % 8 == 1 else int(rng.integers(0, 7))
        for box in range(count + crowd):
            sides = np.exp(rng.uniform(np.log(8), np.log(110), 2)).round(2 * (box % 2))
            sides = [sides, np.array([32, 32]), np.array([96, 96])][
                rng.choice(3, p=[0.6, 0.2, 0.2])
            ]
            if is_crowd := box == count:
                sides = np.array([width, height]) * rng.uniform(0.3, 0.7, 2)
            sides = np.minimum(sides, [width, height])
            corner = (rng.random(2) * ([width, height] - sides)).round(2 * (box % 2))
            share = 1 if number % 3 == 0 else rng.uniform(0.3, 1)
            x, y, w, h = (float(value) for value in (*corner, *sides))
            rows.append({
                "id": 2 * len(rows) + 5, "image_id": images[-1]["id"], "bbox": [x, y, w, h],
                "category_id": 3 * int(rng.integers(classes)) + 2, "area": w * h * share,
                "iscrowd": int(is_crowd),
            })  # fmt: skip
    categories = [{"id": 3 * label + 2, "name": name} for label, name in enumerate(NAMES)]
    document = {"images": images, "annotations": rows, "categories": categories[: classes + 1]}
    (root / "annotations").mkdir()
    (root / "annotations" / "all.json").write_text(json.dumps(document))
    return root


def stored(source: Path, out: Path, size: int = 128) -> Manifest:
    frame_set = read_frames(source)
    assert not frame_set.problems
    splits = {frame.group: "val" for frame in frame_set.frames}
    splits |= {frame.group: "train" for frame in frame_set.frames[: len(splits) // 8]}
    return build(plan_frames(frame_set, FrameEncoder(size, 8), splits, {}), out, workers=1)


def predictions_for(data: DetectionBatch, seed: int, classes: int = 4) -> Found:
    """Near objects, inside and beside ignore regions, in the border, made up; some 130 a frame."""
    rng = np.random.default_rng(seed)
    assert data.ignored is not None
    found = []
    for boxes, mask, ignored, labels in zip(
        data.boxes, data.mask, data.ignored, data.labels, strict=True
    ):
        own = boxes[mask | ignored].numpy()
        number = rng.integers(0, 4, len(own))
        near = np.repeat(own, number, axis=0)
        near = near + rng.normal(0, 0.012, near.shape)
        corners = np.sort(rng.random((130 if rng.random() < 0.1 else 6, 2, 2)), 1).reshape(-1, 4)
        inside = np.repeat(boxes[ignored].numpy(), 3, axis=0)
        inside[:, 2:] -= rng.random((len(inside), 2)) * (inside[:, 2:] - inside[:, :2])
        border = np.array([[0.0, 0.0, 1.0, 0.005], [0.0, 0.0, 0.005, 1.0]])
        all_boxes = np.concatenate([near, corners, inside, border]).clip(0, 1)
        all_boxes = np.concatenate(
            [all_boxes[:, :2], np.maximum(all_boxes[:, 2:], all_boxes[:, :2])], 1
        )
        said = np.concatenate([
            np.repeat(labels[mask | ignored].numpy(), number),
            rng.integers(classes, size=len(corners)),
            np.repeat(labels[ignored].numpy(), 3),
            rng.integers(classes, size=2),
        ])  # fmt: skip
        scores = rng.random(len(all_boxes)) / 2
        scores[: len(near)] += 0.3
        order = np.argsort(-scores)
        found.append({
            "boxes": torch.from_numpy(all_boxes[order]).float(),
            "scores": torch.from_numpy(scores[order]).float(),
            "labels": torch.from_numpy(said[order]),
        })  # fmt: skip
    return found


def pycocotools(
    source: Path, names: list[str], results: Found, *, agnostic: bool
) -> dict[str, float]:
    """Its 12 numbers on the annotation file, for detections in pixels of the files."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(source / "annotations" / "all.json"))
        ids = {f"images/{image['file_name']}": image["id"] for image in truth.imgs.values()}
        rows = []
        for name, one in zip(names, results, strict=True):
            boxes = one["boxes"].double()
            boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
            rows += [
                {"image_id": ids[name], "category_id": 3 * label + 2, "bbox": box, "score": score}
                for box, score, label in zip(
                    boxes.tolist(), one["scores"].tolist(), one["labels"].tolist(), strict=True
                )
            ]
        judge = COCOeval(truth, truth.loadRes(rows), "bbox")
        judge.params.imgIds = sorted(ids[name] for name in names)
        judge.params.useCats = int(not agnostic)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(TWELVE, judge.stats.tolist(), strict=True))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DetectionBatch, list[str]]:
    """The set, all its frames as one batch, and their names."""
    root = tmp_path_factory.mktemp("coco")
    source = coco_set(root / "set", 48)
    manifest = stored(source, root / "store")
    samples = FrameSamples(Store(manifest, cache=root / "cache"), np.arange(48), None)
    names = [record["name"] for record in manifest.records()]
    return source, samples.__getitems__([SampleKey(0, index) for index in range(48)]), names


def test_store_has_the_regions_and_areas_of_the_file(
    prepared: tuple[Path, DetectionBatch, list[str]],
) -> None:
    source, data, names = prepared
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(source / "annotations" / "all.json"))
    ids = {f"images/{image['file_name']}": image["id"] for image in truth.imgs.values()}
    crowds = 0
    assert data.areas is not None
    assert data.ignored is not None
    assert not (data.mask & data.ignored).any()
    for row, name in enumerate(names):
        items = truth.loadAnns(truth.getAnnIds(imgIds=[ids[name]]))
        count = len(items)
        flags = torch.tensor([bool(item["iscrowd"]) for item in items], dtype=torch.bool)
        assert torch.equal(data.ignored[row, :count], flags)
        assert torch.equal(data.mask[row, :count], ~flags)
        assert not (data.mask | data.ignored)[row, count:].any()
        assert data.areas[row, :count].tolist() == [np.float32(item["area"]) for item in items]
        crowds += int(flags.sum())
    assert crowds == 12


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_evaluation_has_the_numbers_of_pycocotools(
    prepared: tuple[Path, DetectionBatch, list[str]], seed: int, agnostic: bool
) -> None:
    source, data, names = prepared
    task = Detection(NAMES, agnostic, iou=0.5, score=0.3, presence=0.5, monitor=MONITOR)
    predictions = predictions_for(data, seed)
    metrics = task.metrics(CPU)
    for start in range(0, len(data), 7):
        part = data.map(lambda tensor, start=start: tensor[start : start + 7])  # type: ignore[misc]
        metrics.update(predictions[start : start + 7], part)
    values = metrics.compute()
    for row in task.tables(metrics, DeviceTransform().names)["coco"]:
        assert row["metric"] not in values or row["value"] == values[row["metric"]]
        assert (row["frames"], row["boxes"]) == (48, int(data.mask.sum()))
        values[row["metric"]] = row["value"]
    delivered = task.postprocess(predictions, data)
    expected = pycocotools(source, names, delivered, agnostic=agnostic)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-6), name
    assert 0.05 < expected["mAP"] < 0.95
    assert len({round(value, 6) for value in expected.values()}) == 12
    # Without regions, areas or classes the numbers are others: each of them has an effect.
    blind = data.map(lambda tensor: tensor)
    blind.ignored = None
    other = task.metrics(CPU)
    other.update(predictions, blind)
    assert other.compute()["mAP"] < values["mAP"] - 1e-3
    blind = data.map(lambda tensor: tensor)
    blind.areas = None
    other = task.metrics(CPU)
    other.update(predictions, blind)
    assert abs(other.compute()["mAP_small"] - values["mAP_small"]) > 1e-3
    # Boxes in the border of the letterbox are neither delivered nor judged.
    sides = torch.cat([one["boxes"][:, 2:] - one["boxes"][:, :2] for one in delivered])
    assert sides.min() >= 0.01
    assert sum(map(len, (one["boxes"] for one in delivered))) < sum(
        len(one["boxes"]) for one in predictions
    )


class Shown(nn.Module):
    """Returns given detections, batch after batch."""

    def __init__(self, found: Found) -> None:
        super().__init__()
        self.found = found

    def forward(self, images: Tensor) -> Found:
        first, self.found = self.found[: len(images)], self.found[len(images) :]
        return first


@pytest.mark.parametrize("found", [[[0.0, 0.0, 1.0, 0.1]], [[0.2, 0.3, 0.2, 0.6]], []])
def test_boxes_without_area_do_not_count(found: list[list[float]]) -> None:
    """In the border of a letterbox, or of no width: as if the model had found nothing."""
    task = Detection(["cat"], False, iou=0.5, score=0.3, presence=0.5, monitor=MONITOR)
    boxes = torch.tensor([[[0.2, 0.3, 0.5, 0.6]], [[0.0, 0.0, 0.0, 0.0]]])
    data = DetectionBatch(
        torch.arange(2), torch.zeros(2, 3, 64, 64), boxes, boxes.any(-1),
        torch.zeros(2, 1, dtype=torch.int64), torch.tensor([[32, 64], [32, 64]]),
    )  # fmt: skip
    one = {
        "boxes": torch.tensor(found).view(-1, 4),
        "scores": torch.full((len(found),), 0.9),
        "labels": torch.zeros(len(found), dtype=torch.int64),
    }
    predictions = task.predict(Shown([one, one]), data)
    assert [len(each["boxes"]) for each in task.postprocess(predictions, data)] == [0, 0]
    metrics = task.metrics(CPU)
    metrics.update(predictions, data)
    values = metrics.compute()
    assert (values["mAP"], values["recall"], values["presence_accuracy"]) == (0, 0, 0.5)
    assert np.isnan(values["precision"])  # no detection, not a wrong one
    assert metrics.confusion.tolist() == [[0, 1], [0, 0]]


def judged(
    regions: list[list[float]], found: list[list[float]], true: list[list[float]] | None = None
) -> Any:
    """Metrics of one frame of 64×64 px: ``cat``s, ignore regions of cats, detected cats."""
    everything = torch.tensor([*(true or []), *regions]).view(1, -1, 4)
    mask = torch.tensor([[True] * len(true or []) + [False] * len(regions)])
    data = DetectionBatch(
        torch.arange(1), torch.zeros(1, 3, 64, 64), everything, mask,
        torch.zeros(mask.shape, dtype=torch.int64), torch.tensor([[64, 64]]), ignored=~mask,
    )  # fmt: skip
    task = Detection(["cat", "dog"], False, iou=0.5, score=0.3, presence=0.5, monitor=MONITOR)
    metrics = task.metrics(CPU)
    scores = torch.linspace(0.9, 0.8, len(found))
    labels = torch.zeros(len(found), dtype=torch.int64)
    one = {"boxes": torch.tensor(found).view(-1, 4), "scores": scores, "labels": labels}
    metrics.update([one], data)
    return metrics


def test_detections_in_a_region_are_neither_right_nor_wrong() -> None:
    crowd, cat = [0.0, 0.0, 0.5, 1.0], [0.1, 0.1, 0.3, 0.3]
    small, half_out, out = [0.3, 0.6, 0.4, 0.7], [0.4, 0.5, 0.59, 0.7], [0.4, 0.5, 0.7, 0.7]
    metrics = judged([crowd], [cat, small, half_out, out], [cat])
    values = metrics.compute()
    # The cat in the crowd is found; two detections are ignored; one is wrong.
    assert (values["precision"], values["recall"]) == (0.5, 1)
    assert metrics.hits == [True, False]
    assert metrics.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert metrics.positives.tolist() == [1, 0]
    assert [row["boxes"] for row in metrics.per_class()] == [1, 0]
    assert values["mAP"] == pytest.approx(1)
    assert (values["presence_accuracy"], metrics.known_presence) == (1, 1)
    # The region alone: no object, no wrong detection, no presence, but a frame.
    metrics = judged([crowd], [small])
    values = metrics.compute()
    assert np.isnan([values[name] for name in ("mAP", "precision", "presence_accuracy")]).all()
    assert (metrics.frames, metrics.known_presence, metrics.best_iou) == (1, 0, [])
    # The best detection of an object is looked for outside of regions.
    far = [0.7, 0.7, 0.9, 0.9]
    assert judged([crowd], [small, far], [far]).compute()["mean_iou"] == pytest.approx(1)


def test_regions_are_hatched() -> None:
    task = Detection(["cat"], False, iou=0.5, score=0.3, presence=0.5, monitor=MONITOR)
    boxes = torch.tensor([[[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]]])
    mask = torch.tensor([[True, False]])
    data = DetectionBatch(
        torch.arange(1), torch.zeros(1, 3, 64, 64), boxes, mask,
        torch.zeros(mask.shape, dtype=torch.int64), torch.tensor([[64, 64]]), ignored=~mask,
    )  # fmt: skip
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
    metrics = task.metrics(CPU)
    metrics.update([none], data)
    black = lambda batch: [torch.zeros(len(batch), 3, 64, 64, dtype=torch.uint8)]  # noqa: E731
    sheet = np.asarray(task.pictures(metrics, data, [none], black)["detections"])
    left = (sheet.shape[1] - 256) // 2
    sheet = sheet[-280:-24, left : left + 256]
    grey = (sheet == IGNORED_BOX).all(-1)
    assert grey[128, 128:230].all()
    assert 0.05 < grey[130:228, 130:228].mean() < 0.15
    assert not grey[:120].any()
    assert 0.3 < (sheet == TRUE_BOX).all(-1)[26:102, 26].mean() < 0.7  # dashes


@pytest.mark.whole
def test_the_command_evaluates_as_pycocotools_does_what_load_delivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = coco_set(tmp_path / "set", 300)
    manifest = stored(source, tmp_path / "store", 64)
    config = compose_config([
        "model=bigdet", "model.width=8", "dataset=warehouse", "dataset.manifest=store",
        "batch_size=8", "epochs=2", "device=cpu", "logging=csv", "run_dir=run",
    ]).config  # fmt: skip
    folder = run(config)
    words = ["dataset.manifest=store"]
    metrics = evaluate(folder, "val", device="cpu", overrides=words, out=tmp_path / "out").metrics
    for row in typed_rows(tmp_path / "out" / "val" / "tables" / "coco.csv"):
        metrics[row["metric"]] = row["value"]
    chosen = manifest.split("val").tolist()
    names = [manifest.records()[position]["name"] for position in chosen]
    results = research.load(folder, "cpu")([source / name for name in names])
    expected = pycocotools(source, names, results, agnostic=True)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-6), name
    assert expected["mAR_100"] > 0
