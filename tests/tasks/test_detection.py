"""Detection metrics against COCO's own tools and against references that loop over boxes."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from research.batch import DetectionBatch, Targets
from research.data.transforms import DeviceTransform
from research.tasks.detection import Detection
from research.tasks.detection_metrics import COCO as AVERAGES
from research.tasks.detection_metrics import DetectionMetrics
from research.tasks.evaluated_frames import match_detections
from research.viz import pictures
from research.viz.colours import PREDICTED_BOXES, TRUE_BOX

CPU = torch.device("cpu")
NAMES = DeviceTransform().names
SIZE = 384
MONITOR = "val/mAP50:max"
Found = list[dict[str, Tensor]]


def task(**changed: Any) -> Detection:
    usual = {"class_agnostic": True, "iou": 0.5, "score": 0.3, "presence": 0.5, "monitor": MONITOR}
    return Detection(["cat", "dog", "owl"], **{**usual, **changed})


def batch(boxes: Tensor, mask: Tensor, labels: Tensor | None = None) -> DetectionBatch:
    count = len(boxes)
    labels = torch.zeros_like(mask, dtype=torch.int64) if labels is None else labels
    inputs = torch.zeros(count, 3, SIZE, SIZE).expand(count, 3, SIZE, SIZE)
    sizes = torch.tensor([[288, 384]] * count, dtype=torch.int32)
    return DetectionBatch(torch.arange(count), inputs, boxes, mask, labels, sizes)


def in_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes in pixels of a file that is wider than high, float64, cut off at its edges."""
    height, width = size
    bars = (width - height) / 2
    corners = boxes.double() * width - torch.tensor([0, bars, 0, bars])
    return corners.clamp(min=0).minimum(torch.tensor([width, height, width, height]))


def by_frame(
    predictions: Found, data: DetectionBatch
) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Detections that have an area, true boxes and their labels, in pixels of the files."""
    return [
        (
            with_area({**one, "boxes": in_pixels(one["boxes"], size)}),
            in_pixels(boxes[mask], size),
            labels[mask],
        )
        for one, boxes, mask, labels, size in zip(
            predictions, *data.targets[:3], data.sizes.tolist(), strict=True
        )
    ]


def with_area(one: dict[str, Tensor]) -> dict[str, Tensor]:
    sides = one["boxes"][:, 2:] - one["boxes"][:, :2]
    return {name: values[sides.amin(1) > 0.01] for name, values in one.items()}


def frames(true: list[list[list[float]]]) -> DetectionBatch:
    """Frames with these boxes."""
    slots = max(1, *map(len, true))
    boxes, mask = torch.zeros(len(true), slots, 4), torch.zeros(len(true), slots, dtype=torch.bool)
    for frame, own in enumerate(true):
        for slot, box in enumerate(own):
            boxes[frame, slot], mask[frame, slot] = torch.tensor(box), True
    return batch(boxes, mask)


def found(*scored: tuple[float, list[float]]) -> dict[str, Tensor]:
    """One frame's detections, best first."""
    return {
        "boxes": torch.tensor([box for _, box in scored]).view(-1, 4),
        "scores": torch.tensor([score for score, _ in scored]),
        "labels": torch.zeros(len(scored), dtype=torch.int64),
    }


def random_case(
    seed: int, count: int = 12, classes: int = 3, empty: float = 0.25
) -> tuple[Found, DetectionBatch]:
    """Frames with 0…5 boxes of all sizes; detections near them, doubled, missed and made up.

    The files are as large as the canvas, twice and half as large, all 4:3, so that a quarter of
    the canvas is black.
    """
    rng = np.random.default_rng(seed)
    boxes, mask = np.zeros((count, 5, 4), np.float32), np.zeros((count, 5), bool)
    labels = rng.integers(classes, size=(count, 5))
    predictions = []
    for frame in range(count):
        number = 0 if rng.random() < empty else rng.integers(1, 6)
        mask[frame, :number] = True
        corners = rng.uniform(0, 0.7, (number, 2))
        sides = np.exp(rng.uniform(np.log(0.03), np.log(0.3), (number, 2)))
        placed = np.concatenate([corners, corners + sides], 1)
        boxes[frame, :number] = placed * [1, 0.75, 1, 0.75] + [0, 0.125, 0, 0.125]
        near = np.repeat(boxes[frame, :number], rng.integers(0, 3, number), axis=0)
        near += rng.normal(0, 0.015, near.shape)
        made_up = np.sort(rng.uniform(0, 1, (rng.integers(0, 4), 2, 2)), 1).reshape(-1, 4)
        said = np.concatenate([near, made_up]).clip(0, 1)
        said = np.concatenate([said[:, :2], np.maximum(said[:, 2:], said[:, :2] + 0.01)], 1)
        score = -np.sort(-rng.random(len(said)))
        predictions.append(
            {
                "boxes": torch.from_numpy(rng.permutation(said)).float(),
                "scores": torch.from_numpy(score).float(),
                "labels": torch.from_numpy(rng.integers(classes, size=len(said))),
            }
        )
    data = batch(*(torch.from_numpy(a) for a in (boxes, mask, labels)))
    data.sizes = (data.sizes * torch.tensor([1, 2, 0.5]).repeat(count)[:count, None]).int()
    return predictions, data


def measured(
    metrics: DetectionMetrics, predictions: Found, data: DetectionBatch
) -> dict[str, float]:
    """In two batches."""
    for part in (slice(0, 5), slice(5, None)):
        some = data.map(lambda tensor, part=part: tensor[part])  # type: ignore[misc]
        if len(some):
            metrics.update(predictions[part], some)
    return metrics.compute()


def coco_tools(
    predictions: Found, data: DetectionBatch, *, class_agnostic: bool, only: int | None = None
) -> dict[str, float]:
    """COCO's averages by pycocotools, in pixels of the files, xywh; of all classes or of one."""

    def xywh(boxes: Tensor) -> list[list[float]]:
        return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()

    def category(label: int) -> int:
        return 1 if class_agnostic else label + 1

    truths, answers = [], []
    for image, (one, boxes, labels) in enumerate(by_frame(predictions, data), start=1):
        for box, label in zip(xywh(boxes), labels.tolist(), strict=True):
            truths.append(
                {
                    "id": len(truths) + 1,
                    "image_id": image,
                    "category_id": category(label),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        for box, score, label in zip(
            xywh(one["boxes"]), one["scores"].tolist(), one["labels"].tolist(), strict=True
        ):
            answers.append(
                {"image_id": image, "category_id": category(label), "bbox": box, "score": score}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(1, len(predictions) + 1)],
            "categories": [{"id": index} for index in range(1, 4)],
            "annotations": truths,
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(answers), "bbox")
        if only is not None:
            judge.params.catIds = [only + 1]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(AVERAGES, judge.stats.tolist()[:9], strict=True))


@pytest.mark.parametrize("class_agnostic", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_averages_are_cocos(seed: int, class_agnostic: bool) -> None:
    predictions, data = random_case(seed, count=40)
    metrics = task(class_agnostic=class_agnostic).metrics(CPU)
    values = measured(metrics, predictions, data)
    expected = coco_tools(predictions, data, class_agnostic=class_agnostic)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-6), name
    assert 0 < values["mAP"] < values["mAP50"] < 1
    # The files' sizes and the number of detections make a difference here.
    sizes = [expected[f"mAP_{size}"] for size in ("small", "medium", "large")]
    assert len(set(sizes)) == 3
    assert min(sizes) > -1
    assert expected["mAR_1"] < expected["mAR_10"]


@pytest.mark.parametrize("seed", range(3))
def test_the_table_of_classes_is_cocos(seed: int) -> None:
    predictions, data = random_case(seed)
    data.labels[data.labels == 1] = 2  # no true dog, but dogs are found
    judge = task(class_agnostic=False)
    metrics = judge.metrics(CPU)
    measured(metrics, predictions, data)
    rows = judge.tables(metrics, NAMES)["per_class"]
    assert [row["class"] for row in rows] == ["cat", "dog", "owl"]
    for label, row in enumerate(rows):
        assert row["boxes"] == int((data.labels[data.mask] == label).sum())
        expected = coco_tools(predictions, data, class_agnostic=False, only=label)
        if label == 1:
            assert expected["mAP"] == -1
            assert all(math.isnan(float(row[name])) for name in ("AP", "AP50", "AR"))
            continue
        assert row["AP"] == pytest.approx(expected["mAP"], abs=1e-6)
        assert row["AP50"] == pytest.approx(expected["mAP50"], abs=1e-6)
        assert row["AR"] == pytest.approx(expected["mAR_100"], abs=1e-6)
        assert float(row["AP50"]) > 0


def test_a_class_that_never_occurs_has_a_row() -> None:
    judge = task(class_agnostic=False)
    metrics = judge.metrics(CPU)
    metrics.update([found((0.9, BOX))], frames([[BOX]]))
    rows = judge.tables(metrics, NAMES)["per_class"]
    assert [(row["boxes"], row["AP"]) for row in rows[:1]] == [(1, pytest.approx(1))]
    assert all(row["boxes"] == 0 and math.isnan(float(row["AP"])) for row in rows[1:])
    # Without class there is one row; without a frame there are rows of nothing.
    agnostic = task()
    assert [row["class"] for row in agnostic.tables(agnostic.metrics(CPU), NAMES)["per_class"]] == [
        "object"
    ]


def slow_confusion(
    one: dict[str, Tensor], boxes: Tensor, labels: Tensor, iou: float, score: float
) -> list[tuple[int, int]]:
    """(true, found) of every box: first within the class, then whatever the class; 3: nothing."""
    said = [place for place, value in enumerate(one["scores"].tolist()) if value >= score]
    free, pairs = set(range(len(boxes))), {}
    for same in (True, False):
        for place in said:
            near = [
                (overlap(one["boxes"][place].tolist(), boxes[true].tolist()), true)
                for true in free
                if not same or labels[true] == one["labels"][place]
            ]
            near = [(share, true) for share, true in near if share >= iou]
            if place not in pairs and near:
                pairs[place] = max(near)[1]
                free.remove(pairs[place])
    found_ = [
        (int(labels[pairs[place]]) if place in pairs else 3, int(one["labels"][place]))
        for place in said
    ]
    return found_ + [(int(labels[true]), 3) for true in free]


@pytest.mark.parametrize(("iou", "score"), [(0.5, 0.3), (0.2, 0.0), (0.5, 0.9)])
@pytest.mark.parametrize("seed", range(3))
def test_confusions_are_counted_box_by_box(seed: int, iou: float, score: float) -> None:
    predictions, data = random_case(seed)
    judge = task(iou=iou, score=score, class_agnostic=False)
    metrics = judge.metrics(CPU)
    values = measured(metrics, predictions, data)
    expected = np.zeros((4, 4), int)
    for one, boxes, labels in by_frame(predictions, data):
        for pair in slow_confusion(one, boxes, labels, iou, score):
            expected[pair] += 1
    assert metrics.confusion.tolist() == expected.tolist()
    assert expected[:3].sum() == int(data.mask.sum())
    # What precision and recall call right stands on the diagonal.
    right = expected.trace()
    assert values["precision"] == pytest.approx(right / expected[:, :3].sum())
    assert values["recall"] == pytest.approx(right / expected[:3].sum())
    rows = judge.tables(metrics, NAMES)["confusion"]
    assert [row["true class"] for row in rows] == ["cat", "dog", "owl", "(background)"]
    assert [list(row.values())[1:] for row in rows] == expected.tolist()


def slow_hits(one: dict[str, Tensor], boxes: Tensor, labels: Tensor, iou: float) -> list[bool]:
    """Each detection, best first, takes the free box of its class that it overlaps most."""
    free = list(range(len(boxes)))
    hits = []
    for said, label in zip(one["boxes"].tolist(), one["labels"].tolist(), strict=True):
        near = [(overlap(said, boxes[true].tolist()), true) for true in free]
        near = [(share, true) for share, true in near if labels[true] == label and share >= iou]
        hits.append(bool(near))
        if near:
            free.remove(max(near)[1])
    return hits


def overlap(one: list[float], two: list[float]) -> float:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two))
    return shared / (areas - shared)


@pytest.mark.parametrize("class_agnostic", [True, False])
@pytest.mark.parametrize(("iou", "score"), [(0.5, 0.3), (0.3, 0.8), (0.75, 0.0)])
@pytest.mark.parametrize("seed", range(4))
def test_all_else_is_what_a_loop_over_boxes_says(
    seed: int, iou: float, score: float, class_agnostic: bool
) -> None:
    predictions, data = random_case(seed)
    metrics = task(iou=iou, score=score, class_agnostic=class_agnostic).metrics(CPU)
    values = measured(metrics, predictions, data)
    hits, said, real, present, best, gaps = 0, 0, 0, 0, [], []
    for one, boxes, labels in by_frame(predictions, data):
        if class_agnostic:
            one["labels"], labels = torch.zeros_like(one["labels"]), torch.zeros_like(labels)
        kept = {name: value[one["scores"] >= score] for name, value in one.items()}
        hits += sum(slow_hits(kept, boxes, labels, iou))
        said += len(kept["boxes"])
        real += len(boxes)
        present += bool(len(boxes)) == any(value >= 0.5 for value in one["scores"].tolist())
        if len(boxes):
            shares = [
                [overlap(box, other) for other in one["boxes"].tolist()] for box in boxes.tolist()
            ]
            best.append(max((row[0] for row in shares), default=0.0) if shares[0] else 0.0)
            gaps.append((optimum(shares) - by_greed(shares)) / len(shares))
    assert values["precision"] == pytest.approx(hits / said)
    assert values["recall"] == pytest.approx(hits / real)
    assert values["presence_accuracy"] == pytest.approx(present / len(predictions))
    assert values["mean_iou"] == pytest.approx(np.mean(best), abs=1e-6)
    assert values["matching_gap"] == pytest.approx(np.mean(gaps), abs=1e-6)


def optimum(shares: list[list[float]]) -> float:
    """The greatest total over every assignment of rows to columns, some of them to none."""
    columns = [*range(len(shares[0])), *[None] * len(shares)]
    return max(
        sum(row[column] for row, column in zip(shares, chosen, strict=True) if column is not None)
        for chosen in set(itertools.permutations(columns, len(shares)))
    )


def by_greed(shares: list[list[float]]) -> float:
    pairs = sorted(
        (
            (share, row, column)
            for row, own in enumerate(shares)
            for column, share in enumerate(own)
        ),
        reverse=True,
    )
    total, rows, columns = 0.0, set(), set()
    for share, row, column in pairs:
        if row not in rows and column not in columns:
            total += share
            rows.add(row)
            columns.add(column)
    return total


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.99]))
def test_no_true_box_is_found_twice(seed: int, iou: float) -> None:
    predictions, data = random_case(seed, count=3, empty=0)
    for one, boxes, mask, labels in zip(predictions, *data.targets[:3], strict=True):
        pairs = match_detections(one, boxes[mask], labels[mask], iou)
        hits = [true >= 0 for true in pairs]
        assert len(hits) == len(one["boxes"])
        assert sum(hits) <= int(mask.sum())
        assert hits == slow_hits(one, boxes[mask], labels[mask], iou)
        matched = [true for true in pairs if true >= 0]
        assert len(set(matched)) == len(matched) == sum(hits)


BOX, OTHER = [0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9]


def judged(predictions: Found, data: DetectionBatch, **changed: Any) -> dict[str, float]:
    metrics = task(**changed).metrics(CPU)
    metrics.update(predictions, data)
    return metrics.compute()


def test_perfect_detections() -> None:
    values = judged([found((0.9, BOX), (0.8, OTHER)), found()], frames([[BOX, OTHER], []]))
    # Boxes of 115 pixels, two a frame.
    undefined = {"mAP_small", "mAP_medium"}
    assert {name for name, value in values.items() if math.isnan(value)} == undefined
    names = set(values) - {"matching_gap", "mAR_1"} - undefined
    assert all(values[name] == pytest.approx(1) for name in names)
    assert values["mAR_1"] == 0.5
    assert values["matching_gap"] == 0
    assert list(values) == task().metrics(CPU).names


def test_a_second_detection_of_the_same_object_is_false() -> None:
    values = judged([found((0.9, BOX), (0.8, BOX), (0.7, BOX))], frames([[BOX, OTHER]]))
    assert values["precision"] == pytest.approx(1 / 3)
    assert values["recall"] == 0.5


def test_detections_below_the_score_do_not_count() -> None:
    values = judged([found((0.3, BOX), (0.29, OTHER))], frames([[BOX, OTHER]]))
    assert (values["precision"], values["recall"]) == (1, 0.5)
    assert values["presence_accuracy"] == 0  # from 0.5 on
    assert values["mean_iou"] == pytest.approx(1)  # whatever the score


def test_classes_count_unless_they_are_not_told_apart() -> None:
    one, data = found((0.9, BOX)), frames([[BOX]])
    data.labels += 2
    assert judged([one], data)["mAP50"] == pytest.approx(1)
    assert judged([one], data, class_agnostic=False)["mAP50"] == 0
    assert judged([one], data, class_agnostic=False)["precision"] == 0
    assert (data.labels == 2).all()
    assert (one["labels"] == 0).all()


def test_frames_without_objects_leave_much_undefined() -> None:
    values = judged([found(), found((0.9, BOX))], frames([[], []]))
    undefined = {*AVERAGES, "recall", "mean_iou", "matching_gap"}
    assert {name for name, value in values.items() if math.isnan(value)} == undefined
    assert values["precision"] == 0
    assert values["presence_accuracy"] == 0.5
    assert list(values) == task().metrics(CPU).names
    # The loop never takes it for the best.
    assert not task().monitor.better(values["mAP50"], None)
    assert not task().monitor.better(values["mAP50"], 0.1)


def test_no_detections_find_nothing() -> None:
    values = judged([found(), found()], frames([[BOX], []]))
    undefined = {"precision", "mAP_small", "mAP_medium"}
    assert {name for name, value in values.items() if math.isnan(value)} == undefined
    rest = {name: value for name, value in values.items() if name not in undefined}
    assert rest == {
        **{name: 0 for name in AVERAGES if name not in undefined},
        "recall": 0,
        "presence_accuracy": 0.5,
        "mean_iou": 0,
        "matching_gap": 0,
    }


def test_nothing_seen_gives_nothing_and_reset_starts_anew() -> None:
    predictions, data = random_case(3)
    metrics = task().metrics(CPU)
    assert metrics.compute() == {}
    first = measured(metrics, predictions, data)
    metrics.reset()
    assert metrics.compute() == {}
    assert measured(metrics, predictions, data) == first


def test_recall_of_the_first_ten_and_of_the_first_hundred() -> None:
    one = found(*((0.9 - n / 100, OTHER) for n in range(15)), (0.1, BOX))
    values = judged([one], frames([[BOX]]))
    assert (values["mAR_1"], values["mAR_10"]) == (0, 0)
    assert values["mAR_100"] == pytest.approx(1)


def test_many_detections_are_all_taken() -> None:
    # COCO looks at a hundred; recall at a score looks at all, without a warning on the way.
    one = found(*((1 - n / 200, OTHER) for n in range(120)), (0.35, BOX))
    values = judged([one], frames([[BOX]]))
    assert (values["recall"], values["mAR_100"]) == (1, 0)


class Fixed(nn.Module):
    """Answers in evaluation with the detections that it is given."""

    def __init__(self, predictions: Found) -> None:
        super().__init__()
        self.predictions = predictions

    def forward(self, images: Tensor, targets: Targets | None = None) -> Any:
        if targets is None:
            return self.predictions
        return {"box": images.mean() + targets.boxes.sum(), "objectness": targets.mask.sum()}


def test_the_model_is_given_targets_for_losses_alone() -> None:
    predictions, data = random_case(0)
    losses = task().losses(Fixed(predictions), data)
    assert set(losses) == {"box", "objectness"}
    torch.testing.assert_close(losses["box"], data.boxes.sum())
    assert task().predict(Fixed(predictions), data) is predictions


def test_answers_are_in_pixels_of_the_files() -> None:
    # 384×288 in 384×384: 48 black rows above and below.
    data = frames([[], []])
    data.sizes[1] = torch.tensor([768, 384], dtype=torch.int32)  # half the size, 96 columns
    box = [0.25, 0.125, 0.5, 0.5]
    one, two = task().postprocess(
        [found((0.9, box), (0.8, [0.0, 0.0, 1.0, 1.0])), found((0.9, box))], data
    )
    torch.testing.assert_close(
        one["boxes"], torch.tensor([[96.0, 0, 192, 144], [0, 0, 384, 288]]), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(two["boxes"], torch.tensor([[0.0, 96, 192, 384]]), atol=1e-3, rtol=0)
    assert one["scores"].tolist() == pytest.approx([0.9, 0.8])
    assert task().postprocess([found(), found()], data)[0]["boxes"].shape == (0, 4)


def panels(*greys: int) -> Any:
    def shown(batch: DetectionBatch) -> list[Tensor]:
        return [torch.full((len(batch), 3, SIZE, SIZE), grey, dtype=torch.uint8) for grey in greys]

    return shown


@pytest.mark.parametrize("class_agnostic", [True, False])
@pytest.mark.parametrize("count", [1, 14])
def test_pictures(count: int, class_agnostic: bool) -> None:
    predictions, data = random_case(5, count=count, empty=0)
    judge = task(class_agnostic=class_agnostic)
    metrics = judge.metrics(CPU)
    metrics.update(predictions, data)
    drawn = judge.pictures(metrics, data, predictions, panels(77))
    always = {"detections", "precision_recall", "confusion_matrix", "matching_audit"}
    assert set(drawn) == always | (set() if class_agnostic else {"precision_recall_per_class"})
    colours = {tuple(colour) for colour in np.asarray(drawn["detections"]).reshape(-1, 3)}
    assert {TRUE_BOX, (77, 77, 77)} <= colours  # true boxes, the frame
    assert (count == 1) or {*PREDICTED_BOXES} <= colours  # detections


def test_every_panel_of_a_frame_shows_the_same_boxes() -> None:
    data = frames([[BOX]])
    judge = task()
    metrics = judge.metrics(CPU)
    said = [found((0.9, OTHER))]
    metrics.update(said, data)
    sheet = np.asarray(judge.pictures(metrics, data, said, panels(70, 80, 90))["detections"])
    rows = sheet[-8 - 16 - 256 : -8 - 16]  # above one line of text
    left = (sheet.shape[1] - 3 * 256) // 2
    cells = [rows[:, left + 256 * n : left + 256 * (n + 1)] for n in range(3)]
    for grey, cell in zip((70, 80, 90), cells, strict=True):
        assert (cell == grey).all(-1).mean() > 0.8
        marks = (cell != grey).any(-1)
        assert (marks == (cells[0] != 70).any(-1)).all()
        assert {TRUE_BOX, PREDICTED_BOXES[0]} <= {tuple(c) for c in cell.reshape(-1, 3)}


def test_augmented_frames_are_shown_with_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are fractions of the augmented frame, whatever the size of the file."""
    shown: list[Any] = []
    monkeypatch.setattr(pictures, "sheet", lambda *args: shown.append(args))
    data = frames([[BOX, OTHER], []])
    data.sizes[:] = torch.tensor([9, 900])
    task().training_pictures(data, panels(70, 80))
    [(cells, captions, marks, *_)] = shown
    assert [cell.size for cell in cells] == [(512, 256)] * 2
    assert [caption.split()[0] for caption in captions] == ["2", "no"]
    assert marks == [None, None]
    first, second = (np.asarray(cell) for cell in cells)
    assert set(np.unique(second)) == {70, 80}
    marked = (first[:, :256] != 70).any(-1)
    x0, y0, x1, y1 = (round(256 * float(edge)) for edge in BOX)
    assert marked[y0, x0:x1].all()
    assert marked[y0:y1, x1 - 1].all()
    assert ((first[:, 256:] != 80).any(-1) == marked).all()


def test_pictures_of_nothing() -> None:
    data = frames([[], []])
    judge = task()
    metrics = judge.metrics(CPU)
    metrics.update([found(), found()], data)
    drawn = judge.pictures(metrics, data, [found(), found()], panels(77))
    always = {"detections", "precision_recall", "confusion_matrix", "matching_audit"}
    assert set(drawn) == always


def test_the_monitored_metric_is_chosen_by_name() -> None:
    assert tuple(task().monitor) == ("val/mAP50", "max")
    assert tuple(task(monitor="train/loss:min").monitor) == ("train/loss", "min")
