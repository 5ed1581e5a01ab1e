"""Classification against torchmetrics and formulae by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.data.transforms import DeviceTransform
from research.tasks.classification import Classification, ClassificationMetrics
from research.viz import pictures

CPU = torch.device("cpu")
NAMES = DeviceTransform().names


def batch(labels: Tensor) -> ClassificationBatch:
    index = torch.arange(len(labels))
    return ClassificationBatch(index, torch.zeros(len(labels), 3, 8, 8), labels)


def data(classes: int, count: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    return logits + F.one_hot(labels, classes), labels


def evaluate(metrics: ClassificationMetrics, logits: Tensor, labels: Tensor) -> dict[str, float]:
    # Batches of unequal length: 10, 10 and 3.
    for part, truth in zip(logits.split(10), labels.split(10), strict=True):
        metrics.update(part, batch(truth))
    return metrics.compute()


@pytest.mark.parametrize("classes", [3, 6, 20])
def test_metrics_are_torchmetrics_over_all_samples(classes: int) -> None:
    logits, labels = data(classes)
    metrics = ClassificationMetrics(classes, CPU)
    values = evaluate(metrics, logits, labels)
    top1 = MulticlassAccuracy(classes, average="micro")(logits, labels).item()
    assert values["top1"] == pytest.approx(top1, abs=1e-7)
    assert 0 < values["top1"] < 1
    assert values["loss"] == pytest.approx(
        F.cross_entropy(logits.double(), labels).item(), rel=1e-12
    )
    if classes > 5:
        top5 = MulticlassAccuracy(classes, average="micro", top_k=5)(logits, labels).item()
        assert values["top5"] == pytest.approx(top5, abs=1e-7)
        assert values["top5"] > values["top1"]
    top5s = ["top5"] if classes > 5 else []
    assert metrics.names == list(values) == ["loss", "top1", *top5s, "ece"]


def test_every_sample_weighs_the_same() -> None:
    # The mean of batch means would be 2/3.
    logits = torch.tensor([[9.0, 0.0]] * 4)
    metrics = ClassificationMetrics(2, CPU)
    for truth in ([0], [0], [1, 1]):
        metrics.update(logits[: len(truth)], batch(torch.tensor(truth)))
    assert metrics.compute()["top1"] == 0.5


def test_the_order_of_batches_does_not_matter_to_the_counts() -> None:
    logits, labels = data(6)
    one = evaluate(ClassificationMetrics(6, CPU), logits, labels)
    two = evaluate(ClassificationMetrics(6, CPU), logits.flip(0), labels.flip(0))
    assert one["top1"] == two["top1"]
    assert one["top5"] == two["top5"]
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-12)


def test_reset_and_no_samples() -> None:
    metrics = ClassificationMetrics(6, CPU)
    assert metrics.compute() == {}
    logits, labels = data(6)
    first = evaluate(metrics, logits, labels)
    metrics.reset()
    assert metrics.compute() == {}
    assert evaluate(metrics, logits, labels) == first
    assert int(metrics.confusion.sum()) == len(labels)


def test_confusion_counts_truth_by_row() -> None:
    metrics = ClassificationMetrics(3, CPU)
    pred, labels = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 0, 2])
    metrics.update(F.one_hot(pred, 3).float(), batch(labels))
    assert metrics.confusion.tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 1]]


class Fixed(nn.Module):
    """A model whose output does not depend on its input."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs: Any) -> Tensor:
        return self.logits


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_training_loss_is_smoothed_cross_entropy(smoothing: float) -> None:
    logits, labels = data(6)
    task = Classification([str(n) for n in range(6)], smoothing, "none")
    losses = task.losses(Fixed(logits), batch(labels))
    log = logits.log_softmax(1)
    truth = -log[torch.arange(len(labels)), labels].mean()
    expected = (1 - smoothing) * truth - smoothing * log.mean(1).mean()
    assert list(losses) == ["cross_entropy"]
    torch.testing.assert_close(losses["cross_entropy"], expected)
    # The validation loss is not smoothed.
    metrics = task.metrics(CPU)
    metrics.update(task.predict(Fixed(logits), batch(labels)), batch(labels))
    assert metrics.compute()["loss"] == pytest.approx(truth.item(), rel=1e-5)


class Weighing(nn.Module):
    """A model whose logits are weighted sums of the pixels, different for each place."""

    def __init__(self, classes: int, height: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(classes, 3, height, width, generator=generator)
        self.weight = nn.Parameter(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", inputs, self.weight).tanh()


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(8, 8, 1, 1), (64, 100, 2, 3)])
def test_predictions_of_views_are_mean_logits(
    height: int, width: int, rows: int, columns: int
) -> None:
    model = Weighing(6, height, width)
    images = torch.randn(5, 3, height, width, generator=torch.Generator().manual_seed(1))
    inputs = ClassificationBatch(torch.arange(5), images, torch.zeros(5).long())

    def predicted(views: str, of: ClassificationBatch = inputs) -> Tensor:
        task = Classification([str(n) for n in range(6)], 0.0, views)
        return task.predict(model, of).detach()

    def both(pixels: Tensor) -> Tensor:
        return (model(pixels) + model(pixels.flip(-1))).detach() / 2

    def shifted(down: int, right: int) -> Tensor:
        padded = np.pad(images, ((0, 0), (0, 0), (rows, rows), (columns, columns)), "reflect")
        top, left = rows + down, columns + right
        return torch.from_numpy(padded[..., top : top + height, left : left + width].copy())

    torch.testing.assert_close(predicted("none"), model(images).detach())
    torch.testing.assert_close(predicted("flip"), both(images))
    shifts = (both(shifted(-rows, -columns)) + both(shifted(rows, columns))) / 2
    torch.testing.assert_close(predicted("flip_shift"), (both(images) + shifts) / 2)
    mirrored = replace(inputs, inputs=images.flip(-1))
    torch.testing.assert_close(predicted("flip", mirrored), predicted("flip"))
    # The training loss is of one view.
    task = Classification([str(n) for n in range(6)], 0.0, "flip_shift")
    loss = F.cross_entropy(model(images), inputs.labels)
    torch.testing.assert_close(task.losses(model, inputs)["cross_entropy"], loss)


def test_half_precision_logits_are_evaluated_in_float32() -> None:
    logits, labels = data(6)
    task = Classification([str(n) for n in range(6)], 0.0, "none")
    model = Fixed(logits.bfloat16())
    assert task.losses(model, batch(labels))["cross_entropy"].dtype == torch.float32
    assert task.predict(model, batch(labels)).dtype == torch.float32


@pytest.mark.parametrize("classes", [2, 6, 40])
def test_calibration_is_torchmetrics(classes: int) -> None:
    logits, labels = data(classes, 300)
    logits *= torch.linspace(0.1, 4, 300)[:, None]
    metrics = ClassificationMetrics(classes, CPU)
    for part, truth in zip(logits.split(70), labels.split(70), strict=True):
        metrics.update(part, batch(truth))
    theirs = MulticlassCalibrationError(classes, n_bins=15, norm="l1")(logits, labels).item()
    assert metrics.compute()["ece"] == pytest.approx(theirs, abs=1e-6)
    assert theirs > 0.01
    assert int(metrics.counts.sum()) == 300
    assert int(metrics.correct.sum()) == round(300 * metrics.compute()["top1"])


def test_calibration_by_hand() -> None:
    # Confidence 0.6, correct half of the time; confidence 1, always correct.
    logits = torch.tensor([[0.6, 0.4]] * 4 + [[1.0, 0.0]] * 4).log().clamp(min=-200)
    metrics = ClassificationMetrics(2, CPU)
    metrics.update(logits, batch(torch.tensor([0, 1, 0, 1, 0, 0, 0, 0])))
    assert metrics.compute()["ece"] == pytest.approx(0.5 * 0.1, abs=1e-7)
    assert metrics.counts.tolist() == [0] * 9 + [4] + [0] * 4 + [4]


def test_nan_logits_are_evaluated() -> None:
    metrics = ClassificationMetrics(6, CPU)
    metrics.update(torch.full((3, 6), torch.nan), batch(torch.arange(3)))
    values = metrics.compute()
    assert np.isnan(values["loss"])
    assert np.isnan(values["ece"])
    assert int(metrics.counts.sum()) == 3


@pytest.mark.parametrize("classes", [2, 5, 6, 100, 1000])
@pytest.mark.parametrize("kind", ["half", "equal", "nan", "some nan", "infinite"])
def test_equal_logits_are_in_the_order_of_the_classes(classes: int, kind: str) -> None:
    """In every metric alike; that of topk among equal values differs with their number."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (256,), generator=generator)
    drawn = torch.randn(256, classes, generator=generator)
    logits = {
        "half": (drawn / 4 + F.one_hot(labels, classes) / 8).bfloat16().float(),
        "equal": torch.zeros_like(drawn),
        "nan": torch.full_like(drawn, torch.nan),
        "some nan": drawn.masked_fill(drawn > 1, torch.nan),
        "infinite": drawn.masked_fill(drawn > 1, torch.inf).masked_fill(drawn < -1, -torch.inf),
    }[kind]
    metrics = ClassificationMetrics(classes, CPU)
    metrics.update(logits, batch(labels))
    order = np.argsort(-np.where(logits.isnan(), np.inf, logits), axis=1, kind="stable")
    hits = order == labels.numpy()[:, None]
    values = metrics.compute()
    for k in metrics.ranks:
        assert values[f"top{k}"] == hits[:, :k].sum() / 256
    assert values["top1"] == (logits.argmax(1) == labels).sum().item() / 256
    assert values["top1"] == int(metrics.confusion.diagonal().sum()) / 256
    assert int(metrics.correct.sum()) == int(metrics.confusion.diagonal().sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_mixed_labels_is_that_of_soft_targets(smoothing: float) -> None:
    logits, labels = data(6)
    generator = torch.Generator().manual_seed(0)
    lam = torch.rand(len(labels), generator=generator)
    lam[:2] = torch.tensor([0.0, 1.0])
    mixed = replace(batch(labels), labels_b=labels.flip(0), lam=lam)
    task = Classification([str(n) for n in range(6)], smoothing, "none")
    values = task.losses(Fixed(logits), mixed)["cross_entropy"]
    soft = lam[:, None] * F.one_hot(labels, 6)
    soft += (1 - lam[:, None]) * F.one_hot(labels.flip(0), 6)
    expected = F.cross_entropy(logits.double(), soft.double(), label_smoothing=smoothing)
    assert values.item() == pytest.approx(expected.item(), rel=1e-6)
    # With lam = 1 it is the loss of the first labels.
    whole = replace(mixed, lam=torch.ones_like(lam))
    plain = task.losses(Fixed(logits), batch(labels))["cross_entropy"]
    torch.testing.assert_close(task.losses(Fixed(logits), whole)["cross_entropy"], plain)
    assert abs(values.item() - plain.item()) > 0.01


def test_the_table_of_classes_is_torchmetrics() -> None:
    logits, labels = data(6, 200)
    task = Classification([f"class {n}" for n in range(6)], 0.0, "none")
    metrics = task.metrics(CPU)
    metrics.update(logits, batch(labels))
    rows = task.tables(metrics, NAMES)["per_class"]
    assert [row["class"] for row in rows] == task.classes
    assert [row["support"] for row in rows] == labels.bincount(minlength=6).tolist()
    for name, theirs in (
        ("precision", MulticlassPrecision),
        ("recall", MulticlassRecall),
        ("f1", MulticlassF1Score),
    ):
        expected = theirs(6, average="none")(logits, labels).tolist()
        assert [row[name] for row in rows] == pytest.approx(expected, abs=1e-6)
    pred = logits.argmax(1)
    for label, row in enumerate(rows):
        wrong = pred[(labels == label) & (pred != label)].bincount(minlength=6)
        assert row["confused"] == wrong.max()
        assert row["most_confused_with"] == f"class {int(wrong.argmax())}"


def test_classes_without_samples_or_predictions() -> None:
    task = Classification(["a", "b", "c"], 0.0, "none")
    metrics = task.metrics(CPU)
    metrics.update(F.one_hot(torch.tensor([0, 0, 1]), 3).float(), batch(torch.tensor([0, 2, 1])))
    a, b, c = task.tables(metrics, NAMES)["per_class"]
    assert (a["support"], a["precision"], a["recall"]) == (1, 0.5, 1.0)
    assert (b["f1"], b["most_confused_with"], b["confused"]) == (1.0, "", 0)
    assert (c["recall"], c["f1"], c["most_confused_with"]) == (0.0, 0.0, "a")
    assert np.isnan(c["precision"])


@pytest.mark.parametrize("blocks", [False, True])
def test_the_most_confident_mistakes_of_the_whole_split(blocks: bool) -> None:
    logits, labels = data(6, 400)
    metrics = ClassificationMetrics(6, CPU)
    index = torch.arange(400)
    pixels: Any = index.view(400, 1, 1, 1).float().expand(400, 3, 4, 4)
    for rows in index.split(90):
        inputs = Blocks(pixels[rows, 0], pixels[rows, :2, None]) if blocks else pixels[rows]
        metrics.update(logits[rows], ClassificationBatch(index[rows], inputs, labels[rows]))
    probability, pred = logits.double().softmax(1).max(1)
    wrong = (pred != labels).nonzero()[:, 0]
    expected = wrong[probability[wrong].argsort(descending=True)][:24]
    worst = metrics.worst
    assert worst is not None
    assert worst.batch.index.tolist() == expected.tolist()
    assert worst.pred.tolist() == pred[expected].tolist()
    assert worst.batch.labels.tolist() == labels[expected].tolist()
    assert worst.probability.tolist() == probability[expected].tolist()
    seen = worst.batch.inputs.y if blocks else worst.batch.inputs[:, 0]
    assert seen[:, 0, 0].tolist() == expected.tolist()
    if blocks:
        assert worst.batch.inputs.cbcr[:, 1, 0, 0, 0].tolist() == expected.tolist()


@pytest.mark.parametrize(("count", "margin"), [(3, 9), (3, -9), (30, 1)])
def test_pictures(count: int, margin: int) -> None:
    logits, labels = data(6, count)
    logits += margin * F.one_hot(labels, 6)  # all correct, all wrong, mixed
    task = Classification([f"class {n}" for n in range(6)], 0.0, "none")
    metrics = task.metrics(CPU)
    metrics.update(logits, batch(labels))

    def panels(seen: ClassificationBatch) -> list[Tensor]:
        return [torch.full((len(seen), 3, 16, 16), 77, dtype=torch.uint8)]

    values = task.pictures(metrics, batch(labels), logits, panels)
    assert set(values) == {
        "confusion_matrix", "sample_predictions", "confident_mistakes", "reliability",
    }  # fmt: skip
    sheet = values["sample_predictions"]
    # The images, with blue captions for correct and red ones for wrong predictions.
    red, _, blue = np.asarray(sheet).astype(int).transpose(2, 0, 1)
    assert (np.asarray(sheet) == 77).all(2).sum() == min(24, count) * 128 * 128
    right = (logits.argmax(1) == labels)[:24]
    assert (blue - red > 60).any() == right.any()
    assert (red - blue > 60).any() == (~right).any()
    wrong = int((logits.argmax(1) != labels).sum())
    mistakes = np.asarray(values["confident_mistakes"])
    if wrong:
        assert (mistakes == 77).all(2).sum() == min(24, wrong) * 128 * 128
    else:
        assert mistakes.shape[0] < 64  # a line of text
        assert mistakes.min() < 64
    assert values["confusion_matrix"].width > 100
    assert values["reliability"].width > 100


def test_mixed_labels_are_shown_with_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(pictures, "contact_sheet", lambda *args: shown.append(args))
    task = Classification(["cat", "dog"], 0.0, "none")
    plain = batch(torch.tensor([1, 0]))
    mixed = replace(plain, labels_b=1 - plain.labels, lam=torch.tensor([0.7, 1.0]))
    for each in (plain, mixed):
        task.training_pictures(each, lambda seen: [torch.zeros(len(seen), 3, 4, 4)])
    captions = [args[1] for args in shown]
    assert captions == [["dog", "cat"], ["70% dog\n30% cat", "100% cat\n0% dog"]]


def test_top1_selects_the_best_epoch() -> None:
    assert tuple(Classification.monitor) == ("val/top1", "max")
