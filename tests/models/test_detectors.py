from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss

from research.batch import Targets
from research.models.detectors import BigDet, TinyDet, giou_loss
from research.models.matching import affinity, greedy
from tests.conftest import user_error

PARTS = {"box", "objectness", "giou"}


def tiny(**changed: Any) -> TinyDet:
    weights = {f"lambda_{part}": 1 for part in ("box", "obj", "iou", "att")}
    return TinyDet(**{"width": 8, **weights, **changed})


def big(**changed: Any) -> BigDet:
    usual = {
        "width": 8,
        "max_boxes": 4,
        "matching": "greedy",
        "lambda_box": 1,
        "lambda_obj": 1,
        "lambda_iou": 1,
        "ignore_iou": 0.7,
        "nms_iou": 0.5,
    }
    return BigDet(**{**usual, **changed})


BOTH = pytest.mark.parametrize("make", [tiny, big])


def scenes(count: int, size: int = 96, most: int = 1, seed: int = 0) -> tuple[Tensor, Targets]:
    """Bright ellipses that do not touch on a dark, noisy ground; every fourth frame is empty."""
    rng = np.random.default_rng(seed)
    images, boxes = [], torch.zeros(count, 4, 4)
    for frame in range(count):
        image = Image.new("RGB", (size, size), (40, 60, 50))
        draw = ImageDraw.Draw(image)
        quarters = rng.permutation(4)[: 0 if frame % 4 == 3 else 1 + frame % most]
        for slot, quarter in enumerate(quarters):
            corner = rng.uniform(0.02, 0.18, 2) + np.array(divmod(quarter, 2)) / 2
            box = np.concatenate([corner, corner + rng.uniform(0.15, 0.28, 2)])
            boxes[frame, slot] = torch.from_numpy(box)
            draw.ellipse((box * size).tolist(), fill=(220, 180, 90))
        images.append(np.asarray(image) + rng.normal(0, 5, (size, size, 3)))
    pixels = torch.from_numpy(np.stack(images)).clamp(0, 255).permute(0, 3, 1, 2).float() / 255
    mask = boxes.any(-1)
    return pixels, Targets(boxes, mask, torch.zeros(mask.shape, dtype=torch.int64))


def empty(count: int) -> Targets:
    mask = torch.zeros(count, 4, dtype=torch.bool)
    return Targets(torch.zeros(count, 4, 4), mask, mask.long())


def train(model: nn.Module, images: Tensor, targets: Targets, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    totals = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        totals.append(loss.item())  # type: ignore[union-attr]
    return totals


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_sizes_of_the_published_widths() -> None:
    with torch.device("meta"):
        assert 0.25e6 < parameters(tiny(width=16)) <= 0.5e6
        assert 0.5e6 < parameters(big(width=24, max_boxes=16)) < 1.5e6


@BOTH
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (128, 128)])
def test_detections_are_boxes_of_the_frame_best_first(make: Any, height: int, width: int) -> None:
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.head.parameters():  # anything but the sane start
        nn.init.normal_(parameter, std=2)
    with torch.no_grad():
        detections = model(torch.rand(3, 3, height, width))
    assert len(detections) == 3
    for one in detections:
        boxes, scores, labels = one["boxes"], one["scores"], one["labels"]
        assert len(boxes) == len(scores) == len(labels) <= (1 if make is tiny else 4)
        assert boxes.shape[1:] == (4,)
        assert boxes.min() >= 0
        assert boxes.max() <= 1
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (scores.diff() <= 0).all()
        assert (labels == 0).all()
        assert labels.dtype == torch.int64


def test_suppression_removes_overlapping_boxes() -> None:
    torch.manual_seed(0)
    model = big(max_boxes=16, nms_iou=0.3).eval()
    with torch.no_grad():
        model.head.bias[2:4] = 0.0  # boxes of half the frame: all neighbours overlap
        (detections,) = model(torch.rand(1, 3, 128, 128))
    overlap = box_iou(detections["boxes"], detections["boxes"]).fill_diagonal_(0)
    assert 1 < len(overlap) <= 16
    assert overlap.max() <= 0.3


def test_initial_objectness_is_low_and_boxes_are_centred_in_their_cells() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        boxes, logits = big().raw_outputs(torch.rand(2, 3, 128, 128))
    assert logits.sigmoid().mean() == pytest.approx(0.01, rel=0.2)
    grid = (torch.arange(4) + 0.5) / 4
    expected = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1).view(-1, 2)
    torch.testing.assert_close(
        (boxes[..., :2] + boxes[..., 2:]) / 2, expected.expand(2, -1, -1), atol=0.03, rtol=0
    )
    torch.testing.assert_close(
        boxes[..., 2:] - boxes[..., :2], torch.full((2, 16, 2), 0.25), atol=0.03, rtol=0
    )


@BOTH
def test_a_frame_of_another_size_is_refused(make: Any) -> None:
    with user_error("dataset.image_size", "100×96", "dataset.image_size=96"):
        make()(torch.rand(1, 3, 96, 100))


def test_an_unknown_matching_is_refused() -> None:
    with user_error("model.matching", "nearest", "greedy, hungarian"):
        big(matching="nearest")


def test_big_losses_are_those_of_a_loop_over_boxes() -> None:
    torch.manual_seed(1)
    model = big(lambda_box=2, lambda_obj=3, lambda_iou=5, ignore_iou=0.15)
    images, targets = scenes(4, most=3)
    with torch.no_grad():
        model.head.bias[2:4] = -0.5  # large boxes, so that some are to be ignored
    with torch.no_grad():
        boxes, logits = model.raw_outputs(images)
    matches = greedy(affinity(targets.boxes, boxes), targets.mask)
    distance, giou, entropy, matched, ignored = 0.0, 0.0, 0.0, 0, 0
    for frame in range(4):
        true = targets.boxes[frame][targets.mask[frame]]
        indices = matches[frame][targets.mask[frame]].tolist()
        for box, cell in zip(true, indices, strict=True):
            distance += float((boxes[frame, cell] - box).abs().sum())
            giou += float(generalized_box_iou_loss(boxes[frame, cell], box))
            matched += 1
        for cell, logit in enumerate(logits[frame]):
            if cell in indices:
                entropy += float(F.softplus(-logit))
            elif len(true) and float(box_iou(boxes[frame, cell][None], true).max()) > 0.15:
                ignored += 1
            else:
                entropy += float(F.softplus(logit))
    assert matched >= 4  # as many as frames, or the floor would count
    assert ignored > 0
    losses = model._losses(boxes, logits, targets)
    assert set(losses) == PARTS
    assert float(losses["box"]) == pytest.approx(2 * distance / matched, rel=1e-5)
    assert float(losses["objectness"]) == pytest.approx(3 * entropy / matched, rel=1e-5)
    assert float(losses["giou"]) == pytest.approx(5 * giou / matched, rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=8, max_size=64))
def test_giou_is_that_of_torchvision_and_so_is_its_gradient(corners: list[int]) -> None:
    """Boxes on a coarse grid: equal, apart, touching, without area, with corners the wrong way."""
    pairs = torch.tensor(corners[: len(corners) // 8 * 8]).view(-1, 2, 4) / 4
    found, expected = (pairs.clone().requires_grad_() for _ in range(2))
    values = giou_loss(found[:, 0], found[:, 1])
    theirs = generalized_box_iou_loss(expected[:, 0], expected[:, 1])
    torch.testing.assert_close(values, theirs, rtol=1e-6, atol=1e-6)
    values.sum().backward()
    theirs.sum().backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-5)


def test_tiny_learns_the_largest_box_of_frames_that_have_one() -> None:
    torch.manual_seed(1)
    model = tiny(lambda_box=2, lambda_obj=3, lambda_iou=5, lambda_att=7)
    small, large = [0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.9, 0.8]
    boxes = torch.tensor([[small, large, [0.0] * 4], [[0.0] * 4] * 3, [small, [0.0] * 4, small]])
    mask = boxes.any(-1)
    outputs, logits, attention = model.raw_outputs(torch.rand(3, 3, 64, 64))
    losses = model._losses(outputs, logits, attention, Targets(boxes, mask, mask.long()))
    true = torch.tensor([large, small])
    expected = {
        "box": 2 * (outputs[[0, 2]] - true).abs().sum() / 2,
        "objectness": 3 * F.binary_cross_entropy(logits.sigmoid(), torch.tensor([1.0, 0, 1])),
        "giou": 5 * generalized_box_iou_loss(outputs[[0, 2]], true).mean(),
        # Centres (0.6, 0.55) and (0.15, 0.15) in a 2×2 grid of cells.
        "attention": -7 * attention.flatten(1).log_softmax(1)[[0, 2], [3, 0]].mean(),
    }
    assert set(losses) == PARTS | {"attention"}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


@BOTH
def test_empty_frames_have_an_objectness_loss_alone(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    losses = model(torch.rand(2, 3, 64, 64), empty(2))
    assert losses["box"].item() == losses["giou"].item() == 0
    assert losses["objectness"].item() > 0
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 10
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert losses["box"].requires_grad


@BOTH
def test_an_empty_frame_does_not_change_the_box_losses(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    images, targets = scenes(4, most=1)  # the last one is empty
    outputs = model.raw_outputs(images)
    whole = model._losses(*outputs, targets)
    part = model._losses(*(s[:3] for s in outputs), Targets(*(t[:3] for t in targets[:3])))
    torch.testing.assert_close(whole["box"], part["box"])
    torch.testing.assert_close(whole["giou"], part["giou"])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_gets_a_finite_gradient(make: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = make()
    images, targets = scenes(8, size=64)
    # What stands before the head, which starts near zero, gets its gradient all the same.
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        losses = model(images, targets)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@BOTH
def test_half_precision_agrees_with_full_precision(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    images, targets = scenes(8, size=64)
    train(model, images, targets, 20)
    model.eval()
    with torch.no_grad():
        full = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(images)
    for one, two in zip(full, half, strict=True):
        assert two["boxes"].dtype == two["scores"].dtype == torch.float32
        torch.testing.assert_close(one["scores"][0], two["scores"][0], atol=0.05, rtol=0)


def best_overlaps(model: nn.Module, images: Tensor, targets: Targets) -> Tensor:
    """Of every true box: its overlap with the nearest of as many detections as there are boxes."""
    model.eval()
    with torch.no_grad():
        detections = model(images)
    return torch.cat(
        [
            box_iou(boxes[mask], one["boxes"][: int(mask.sum())]).amax(1)
            for one, boxes, mask in zip(detections, targets.boxes, targets.mask, strict=True)
            if mask.any()
        ]
    )


def test_tiny_overfits_eight_frames() -> None:
    torch.manual_seed(0)
    images, targets = scenes(8)
    model = tiny(lambda_box=5, lambda_iou=2)
    totals = train(model, images, targets, 120)
    assert np.mean(totals[-5:]) < 0.25 * np.mean(totals[:5])
    assert best_overlaps(model, images, targets).mean() > 0.8
    with torch.no_grad():
        scores = torch.tensor([one["scores"][0] for one in model(images)])
    assert ((scores > 0.5) == targets.mask.any(1)).all()


@pytest.mark.parametrize("matching", ["greedy", "hungarian"])
def test_big_overfits_eight_frames(matching: str) -> None:
    torch.manual_seed(0)
    images, targets = scenes(8, most=3)
    assert targets.mask.sum(1).max() == 3
    model = big(matching=matching, lambda_box=5, lambda_iou=2)
    totals = train(model, images, targets, 120)
    assert np.mean(totals[-5:]) < 0.25 * np.mean(totals[:5])
    assert best_overlaps(model, images, targets).mean() > 0.8
    with torch.no_grad():
        counts = [(one["scores"] > 0.5).sum() for one in model(images)]
    assert counts == targets.mask.sum(1).tolist()


@BOTH
def test_the_state_dict_has_no_constants(make: Any) -> None:
    assert not [name for name in make().state_dict() if name.endswith((".mean", ".std"))]
