"""Ignore regions in the losses: neither objects nor background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from research.batch import Targets
from research.models.matching import affinity, coverage, greedy, lies_in
from research.utils import whole_batch
from tests.models.test_detectors import big, scenes, tiny
from tests.models.test_rgbx import frames as rgbx_frames
from tests.models.test_rgbx import losses as rgbx_losses
from tests.models.test_rgbx import small as rgbx
from tests.models.test_rgbx import targets as rgbx_targets

BOTH = pytest.mark.parametrize("make", [tiny, big])


def with_regions(targets: Targets, *regions: tuple[int, list[float]]) -> Targets:
    """The targets with ignore regions (frame, box) in slots of their own behind the others."""
    count = len(targets.mask)
    boxes, ignored = torch.zeros(count, len(regions), 4), torch.zeros(count, len(regions)).bool()
    for slot, (frame, box) in enumerate(regions):
        boxes[frame, slot], ignored[frame, slot] = torch.tensor(box), True
    empty = torch.zeros_like(ignored)
    return Targets(
        torch.cat([targets.boxes, boxes], 1),
        torch.cat([targets.mask, empty], 1),
        torch.cat([targets.labels, empty.long()], 1),
        torch.cat([torch.zeros_like(targets.mask), ignored], 1),
    )


def test_coverage_is_cocos_overlap_with_crowds() -> None:
    rng = np.random.default_rng(0)
    boxes, regions = (
        np.sort(rng.integers(0, 20, (count, 2, 2)), 1).reshape(-1, 4) + np.array([0, 0, 1, 1])
        for count in (40, 9)
    )
    found = coverage(torch.from_numpy(boxes).double(), torch.from_numpy(regions).double())
    xywh = [
        np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1).astype(float) for b in (boxes, regions)
    ]
    expected = coco_mask.iou(*xywh, [1] * 9)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert 0 < (found >= 0.5).float().mean() < 1
    flat = torch.tensor([[0.2, 0.2, 0.2, 0.8], [0.3, 0.3, 0.1, 0.1], [float("nan")] * 4])
    assert not coverage(flat, torch.tensor([[0.0, 0, 1, 1]])).any()
    # The share of the box alone counts, and only regions do.
    small, large = torch.tensor([[0.4, 0.4, 0.5, 0.5]]), torch.tensor([[0.0, 0, 1, 1]])
    assert lies_in(small, large, torch.tensor([True])).item()
    assert not lies_in(large, small, torch.tensor([True])).item()
    assert not lies_in(small, large, torch.tensor([False])).item()


def step(model: nn.Module, images: Tensor, targets: Targets) -> tuple[dict[str, Tensor], Any]:
    """Losses and gradients, with one draw of everything random."""
    model.zero_grad()
    parts = rgbx_losses(model, images, targets)
    sum(parts.values()).backward()  # type: ignore[union-attr]
    return parts, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("make", [tiny, big, rgbx])
def test_flags_that_are_all_false_change_no_bit(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    images, plain = (rgbx_frames(), rgbx_targets()) if make is rgbx else scenes(8, most=3)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    expected = step(model, images, plain)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    found = step(model, images, plain._replace(ignored=torch.zeros_like(plain.mask)))
    for name, value in expected[0].items():
        assert torch.equal(found[0][name], value), name
    assert all(torch.equal(*pair) for pair in zip(expected[1], found[1], strict=True))


def test_big_learns_nothing_from_cells_in_a_region() -> None:
    torch.manual_seed(1)
    model = big(lambda_obj=3)
    images, targets = scenes(4, most=3)
    with torch.no_grad():
        model.head.bias[2:4] = -1.0
        boxes, logits = model.raw_outputs(images)
    # In frame 0 around an object, in frame 3 (which is empty) nearly all of the frame.
    region = [0.0, 0.0, 0.6, 0.7], [0.05, 0.05, 0.9, 0.9]
    targets = with_regions(targets, (0, region[0]), (3, region[1]))
    logits.requires_grad_()
    losses = model._losses(boxes, logits, targets)
    losses["objectness"].backward()
    matches = greedy(affinity(targets.boxes, boxes), targets.mask)
    assert not (matches[targets.ignored] >= 0).any()
    entropy, inside = 0.0, 0
    for frame in range(4):
        true = targets.boxes[frame][targets.mask[frame]]
        found = matches[frame][targets.mask[frame]].tolist()
        for cell, logit in enumerate(logits[frame].detach()):
            box = boxes[frame, cell]
            own = region[frame // 3] if frame in (0, 3) else None
            ignored = own is not None and share(box.tolist(), own) >= 0.5
            near = len(true) and float(box_iou(box[None], true).max()) > 0.7
            if cell in found:
                entropy += float(F.softplus(-logit))
                assert logits.grad[frame, cell] != 0
            elif ignored or near:
                inside += ignored
                assert logits.grad[frame, cell] == 0
            else:
                entropy += float(F.softplus(logit))
                assert logits.grad[frame, cell] > 0
    assert 0 < inside < 18
    matched = int((matches >= 0).sum())
    assert losses["objectness"].item() == pytest.approx(3 * entropy / max(matched, 4), rel=1e-5)


def share(box: list[float], region: list[float]) -> float:
    width = min(box[2], region[2]) - max(box[0], region[0])
    height = min(box[3], region[3]) - max(box[1], region[1])
    return max(width, 0) * max(height, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


def test_tiny_knows_no_presence_of_frames_with_regions_alone() -> None:
    torch.manual_seed(1)
    model = tiny(lambda_obj=3)
    images, plain = scenes(8)  # frames 3 and 7 are empty
    region = [0.1, 0.1, 0.3, 0.3]
    targets = with_regions(plain, (0, region), (3, region))
    boxes, logits, attention = (part.detach() for part in model.raw_outputs(images))
    logits.requires_grad_()
    losses = model._losses(boxes, logits, attention, targets)
    losses["objectness"].backward()
    assert (logits.grad == 0).tolist() == [frame == 3 for frame in range(8)]
    rest = torch.tensor([0, 1, 2, 4, 5, 6, 7])
    expected = F.binary_cross_entropy_with_logits(logits[rest], plain.mask.any(1)[rest].float())
    torch.testing.assert_close(losses["objectness"], 3 * expected)
    without = model._losses(boxes, logits, attention, plain)
    for name in ("box", "giou", "attention"):
        assert torch.equal(losses[name], without[name])


@pytest.fixture
def processes() -> Iterator[Callable[[list[Callable[[], dict[str, Tensor]]]], dict[str, Tensor]]]:
    """Runs losses of parts of a batch as in several processes; returns their means."""

    def run(parts: list[Callable[[], dict[str, Tensor]]]) -> dict[str, Tensor]:
        counts: list[list[Tensor]] = []
        for part in parts:
            counts.append([])
            whole_batch.sum_with(lambda t: (counts[-1].append(t) or t, 1))  # type: ignore[func-returns-value]
            part()
        results = []
        for part in parts:
            sums = iter([torch.stack(each).sum(0) for each in zip(*counts, strict=True)])
            whole_batch.sum_with(lambda _, sums=sums: (next(sums), len(parts)))  # type: ignore[misc]
            results.append(part())
        return {name: torch.stack([r[name] for r in results]).mean() for name in results[0]}

    yield run
    whole_batch.sum_with(None)


@BOTH
def test_several_processes_have_the_losses_of_the_whole_batch(make: Any, processes: Any) -> None:
    torch.manual_seed(0)
    model = make()
    images, targets = scenes(8, most=2)
    everything = [0.0, 0.0, 1.0, 1.0]
    targets = with_regions(targets, (3, everything), (1, [0.2, 0.2, 0.9, 0.9]), (7, everything))
    outputs = [part.detach() for part in model.raw_outputs(images)]
    expected = model._losses(*outputs, targets)
    parts = [slice(0, 3), slice(3, 4), slice(4, 8)]
    found = processes(
        [
            lambda rows=rows: model._losses(
                *(part[rows] for part in outputs), Targets(*(part[rows] for part in targets))
            )
            for rows in parts
        ]
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_anchors_and_proposals_in_a_region_are_no_negatives() -> None:
    model, images, plain = rgbx(norm="group"), rgbx_frames(2, 96), rgbx_targets()
    # The region contains the second object of frame 0, and the left of the empty frame 1.
    regions = [0.443, 0.457, 0.961, 0.803], [0.0, 0.0, 0.537, 0.991]
    targets = with_regions(plain, (0, regions[0]), (1, regions[1]))
    sampled: list[tuple[Tensor, Tensor]] = []
    anchors: list[Tensor] = []
    proposals: list[Tensor] = []
    logits: list[Tensor] = []

    def sampler(labels: list[Tensor]) -> None:
        sampled.append(tuple(labels))  # type: ignore[arg-type]

    for part in (model.rpn, model.roi_heads):
        original = part.fg_bg_sampler
        part.fg_bg_sampler = Spy(original, sampler)
    model.rpn.anchor_generator.register_forward_hook(lambda *given: anchors.extend(given[-1]))
    model.rpn.head.register_forward_hook(lambda *given: keep(logits, given[-1][0]))
    model.roi_heads.box_roi_pool.register_forward_pre_hook(lambda _, g: proposals.extend(g[1]))
    parts = rgbx_losses(model, images, targets)
    parts["loss_objectness"].backward()
    gradients = torch.cat([x.grad.permute(0, 2, 3, 1).flatten(1) for x in logits], 1)
    negatives = 0
    for frame in range(2):
        visible = anchors[frame].clamp(0, 96)
        inside = coverage(visible, torch.tensor([regions[frame]]) * 96)[:, 0] >= 0.5
        labels = sampled[0][frame]
        assert not (labels[inside] == 0).any()
        assert ((labels == 1) & inside).any() == (frame == 0)  # the object in the region is found
        negatives += int((labels[~inside] == 0).sum())
        untouched = inside & (labels != 1)
        assert untouched.any()
        assert not gradients[frame][untouched].any()
        assert gradients[frame][~inside].any()
    assert negatives > 100
    for boxes, labels, region in zip(proposals, sampled[1], regions, strict=True):
        assert (labels >= 0).all()
        true = torch.tensor([[0.0] * 4])
        if region is regions[0]:
            true = plain.boxes[0] * 96
        inside = coverage(boxes, torch.tensor([region]) * 96)[:, 0] >= 0.5
        assert (box_iou(boxes[inside], true).amax(1) >= 0.5).all()


def keep(kept: list[Tensor], outputs: list[Tensor]) -> None:
    for output in outputs:
        output.retain_grad()
        kept.append(output)


class Spy(nn.Module):
    """A sampler of anchors or proposals that shows its labels."""

    def __init__(self, sampler: Any, show: Callable[[list[Tensor]], None]) -> None:
        super().__init__()
        self.sampler, self.show = sampler, show

    def forward(self, labels: list[Tensor]) -> Any:
        self.show([part.clone() for part in labels])
        return self.sampler(labels)

    @property
    def count(self) -> Tensor:
        count: Tensor = self.sampler.count
        return count


def test_frames_that_are_one_region_have_no_loss_and_finite_gradients() -> None:
    model, images, plain = rgbx(norm="group"), rgbx_frames(), rgbx_targets()
    none = plain._replace(mask=torch.zeros_like(plain.mask))
    whole = with_regions(none, *((frame, [0.0, 0.0, 1.0, 1.0]) for frame in range(2)))
    parts, gradients = step(model, images, whole)
    assert all(value == 0 for value in parts.values())
    assert all(gradient.isfinite().all() and not gradient.any() for gradient in gradients)
