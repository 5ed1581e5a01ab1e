from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, box_iou

from research.batch import Targets
from research.config.options import option_node
from research.models.mit import STEM, VARIANTS
from research.models.rgbx import RgbxDetector, rgbx_detector
from tests.conftest import as_if_trained, user_error

CONF = Path(__file__).parents[2] / "conf" / "model"
PARTS = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
ANCHORS = (8, 16, 32, 64, 128)
FEW = {"rois": 32, "proposals_train": 100, "proposals": 100}
SMALL = {"fpn_channels": 16, "representation_size": 32, "anchor_sizes": ANCHORS, **FEW}
FUSIONS = ("cross_attention", "sum", "concat", "rgb_only", "x_only")


def build(variant: str = "b0", **changed: Any) -> RgbxDetector:
    """A detector of one class with the defaults of the configuration."""
    settings = option_node("model", "_rgbx")
    settings = {key: value for key, value in settings.items() if key != "_target_"}
    given = {"name": f"rgbx_mit_{variant}", "num_classes": 1, "x_channels": 2, **changed}
    return rgbx_detector(**{**settings, **given})


def small(**changed: Any) -> RgbxDetector:
    """One of two classes and few proposals, always of the same start."""
    return copy.deepcopy(_small(**changed))


@cache
def _small(**changed: Any) -> RgbxDetector:
    torch.manual_seed(0)
    return build(**{**SMALL, "num_classes": 2, "drop_path_rate": 0.0, **changed})


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def frames(number: int = 2, size: int = 64, channels: int = 5) -> Tensor:
    return torch.randn(number, channels, size, size, generator=torch.Generator().manual_seed(1))


def targets() -> Targets:
    """Two boxes in the first of two frames, none in the second."""
    boxes = torch.zeros(2, 2, 4)
    boxes[0] = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 0.9, 0.75]])
    return Targets(boxes, boxes.any(-1), torch.tensor([[1, 0], [0, 0]]))


def losses(model: nn.Module, images: Tensor, true: Any) -> dict[str, Tensor]:
    """With the samplers' draws of one seed."""
    torch.manual_seed(3)
    result: dict[str, Tensor] = model.train()(images, true)
    return result


@pytest.mark.parametrize(
    ("variant", "encoder", "detector"),
    [
        ("b0", 10_794_152, 27_786_433),
        ("b1", 42_891_592, 60_014_945),
        ("b2", 64_981_320, 82_104_673),
        ("b3", 104_733_000, 121_856_353),
        ("b4", 138_274_120, 155_397_473),
        ("b5", 179_474_760, 196_598_113),
    ],
)
def test_parameters_are_the_published_ones(variant: str, encoder: int, detector: int) -> None:
    with torch.device("meta"):
        model = build(variant)
    assert (count(model.encoder), count(model)) == (encoder, detector)


def test_each_further_class_adds_5125_parameters() -> None:
    with torch.device("meta"):
        assert count(build(num_classes=4)) == 27_786_433 + 3 * 5125


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_has_a_configuration(variant: str) -> None:
    settings = OmegaConf.load(CONF / f"rgbx_mit_{variant}.yaml")
    assert settings.name == f"rgbx_mit_{variant}"
    assert settings.defaults == ["_rgbx", "_self_"]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_learns(fusion: str) -> None:
    model = small(fusion=fusion)
    parts = losses(model, frames(), targets())
    assert parts.keys() == PARTS
    sum(parts.values()).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias before a softmax over the keys, or before a norm, has no effect.
        if name.endswith("weight"):
            assert parameter.grad.any(), name


class _Pyramid(nn.Module):
    def __init__(self, model: RgbxDetector) -> None:
        super().__init__()
        self.encoder, self.fpn = model.encoder, model.fpn
        self.out_channels = SMALL["fpn_channels"]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pyramid: dict[str, Tensor] = self.fpn(dict(zip("0123", self.encoder(images), strict=True)))
        return pyramid


MODES = ("train", "test")


def torchvisions(model: RgbxDetector, size: tuple[int, int]) -> FasterRCNN:
    """torchvision's own Faster R-CNN, with its defaults but for ``FEW``, around the same layers."""
    anchors = tuple((side,) for side in ANCHORS)
    limits = {f"rpn_{when}_nms_top_n_{mode}": 100 for when in ("pre", "post") for mode in MODES}
    reference = FasterRCNN(
        _Pyramid(model),
        num_classes=3,
        box_batch_size_per_image=32,
        **limits,
        min_size=min(size),
        max_size=max(size),
        image_mean=[0] * 5,
        image_std=[1] * 5,
        rpn_anchor_generator=AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * 5),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=model.roi_heads.box_head,
    )
    # The box head is given, so torchvision takes 1024 channels for granted.
    reference.roi_heads.box_predictor = model.roi_heads.box_predictor
    reference.rpn.head = model.rpn.head
    return reference


@pytest.mark.parametrize("size", [(96, 96), (64, 160), (75, 130)])
def test_detections_are_torchvisions(size: tuple[int, int]) -> None:
    model = small()
    as_if_trained(model)
    images = torch.randn(3, 5, *size)
    frame = torch.tensor([size[1], size[0]] * 2)
    with torch.no_grad():
        detections = model.eval()(images)
        expected = torchvisions(model, size).eval()(list(images))
    for ours, theirs in zip(detections, expected, strict=True):
        assert len(ours["boxes"]) > 10
        torch.testing.assert_close(ours["boxes"] * frame, theirs["boxes"])
        torch.testing.assert_close(ours["scores"], theirs["scores"])
        assert torch.equal(ours["labels"] + 1, theirs["labels"])
        assert (ours["scores"].diff() <= 0).all()
        assert (ours["boxes"] >= 0).all()
        assert (ours["boxes"] <= 1).all()


def test_losses_are_torchvisions() -> None:
    model, images, true = small(norm="group"), frames(2, 96), targets()
    # torchvision's transform draws a size before the samplers draw.
    model.rpn.head.register_forward_pre_hook(lambda *_: torch.manual_seed(3) and None)
    theirs = [
        {"boxes": boxes[mask] * 96, "labels": labels[mask] + 1}
        for boxes, mask, labels in zip(*true[:3], strict=True)
    ]
    expected = torchvisions(model, (96, 96)).train()(list(images), theirs)
    result = model.train()(images, true)
    assert expected["loss_box_reg"] > 0
    assert result.keys() == expected.keys() == PARTS
    for name in PARTS:
        torch.testing.assert_close(result[name], expected[name])


def test_frames_without_boxes_train() -> None:
    true = targets()
    none = Targets(torch.zeros_like(true.boxes), torch.zeros_like(true.mask), true.labels)
    model = small()
    parts = losses(model, frames(), none)
    assert parts["loss_box_reg"] == parts["loss_rpn_box_reg"] == 0
    sum(parts.values()).backward()  # type: ignore[union-attr]
    stem = model.encoder.get_submodule("x").get_parameter(STEM)
    assert stem.grad is not None
    assert stem.grad.isfinite().all()
    assert stem.grad.any()


def test_degenerate_boxes_are_ignored() -> None:
    nan = float("nan")
    degenerate = {
        "no width": (0.3, 0.3, 0.3, 0.6),
        "no height": (0.3, 0.3, 0.6, 0.3),
        "inverted": (0.6, 0.3, 0.3, 0.6),
        "nothing": (0.0, 0.0, 0.0, 0.0),
        "nan": (nan, nan, nan, nan),
    }
    true, model = targets(), small(norm="group")
    expected = losses(model, frames(), true)
    extra = torch.tensor(list(degenerate.values())).expand(2, -1, 4)
    boxes = torch.cat([true.boxes, extra], 1)
    mask = torch.cat([true.mask, torch.ones(2, len(degenerate), dtype=torch.bool)], 1)
    labels = torch.cat([true.labels, torch.zeros(2, len(degenerate), dtype=torch.int64)], 1)
    parts = losses(model, frames(), Targets(boxes, mask, labels))
    assert {name: part.item() for name, part in parts.items()} == {
        name: part.item() for name, part in expected.items()
    }


def test_half_precision_leaves_anchors_losses_and_boxes_in_float32() -> None:
    model, kinds = small(norm="group"), []
    model.rpn.anchor_generator.register_forward_hook(
        lambda *given: kinds.append(given[-1][0].dtype)
    )
    model.rpn.head.register_forward_hook(lambda *given: kinds.append(given[-1][0][0].dtype))
    model.roi_heads.box_predictor.register_forward_hook(lambda *g: kinds.append(g[-1][0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        half = losses(model, frames(), targets())
        detections = model.eval()(frames())
    assert set(kinds) == {torch.float32}
    assert {part.dtype for part in half.values()} == {torch.float32}
    assert {d[key].dtype for d in detections for key in ("boxes", "scores")} == {torch.float32}
    whole = losses(model, frames(), targets())
    for name in ("loss_classifier", "loss_objectness", "loss_rpn_box_reg"):
        torch.testing.assert_close(half[name], whole[name], rtol=0.1, atol=0.01)


def test_settings_reach_torchvision() -> None:
    model = small(
        score_threshold=0.3,
        nms_iou=0.0,
        max_detections=7,
        rpn_samples=10,
        rois=20,
        proposals_train=30,
        proposals=40,
        rpn_nms_iou=0.6,
    ).eval()
    with torch.no_grad():
        (detections,) = model(frames(1))
    assert 1 < len(detections["scores"]) <= 7
    assert (detections["scores"] > 0.3).all()
    for label in (0, 1):
        boxes = detections["boxes"][detections["labels"] == label]
        assert (box_iou(boxes, boxes).fill_diagonal_(0) == 0).all()
    rpn, heads = model.rpn, model.roi_heads
    assert rpn.fg_bg_sampler.batch_size_per_image == 10
    assert heads.fg_bg_sampler.batch_size_per_image == 20
    assert (rpn.train().pre_nms_top_n(), rpn.post_nms_top_n()) == (30, 30)
    assert (rpn.eval().pre_nms_top_n(), rpn.post_nms_top_n()) == (40, 40)
    assert rpn.nms_thresh == 0.6


@pytest.mark.parametrize(
    ("changed", "key", "words"),
    [
        ({"name": "rgbx_mit_b6"}, "model.name", ("rgbx_mit_b6", "rgbx_mit_b0, ")),
        ({"fusion": "mean"}, "model.fusion", ("mean", "cross_attention, sum, ")),
        ({"norm": "layer"}, "model.norm", ("layer", "batch, frozen, group")),
        ({"x_channels": 0}, "model.fusion", ("model.fusion=rgb_only",)),
        ({"anchor_sizes": (8, 16)}, "model.anchor_sizes", (5, 2)),
    ],
)
def test_invalid_settings_are_refused(
    changed: dict[str, Any], key: str, words: tuple[object, ...]
) -> None:
    with user_error(key, *words):
        small(**changed)


def test_frames_of_other_channels_are_refused() -> None:
    with user_error("model.x_channels", 5, 4):
        small().eval()(frames(1, 64, 4))


@pytest.mark.whole
def test_it_learns_objects_that_only_x_shows() -> None:
    """Four frames by heart: dark or bright squares in thermal, noise in the rest."""
    images, boxes = frames(4), torch.zeros(4, 1, 4)
    for frame in range(4):
        left, top = 8 * frame, 16 * (frame // 2)
        images[frame, 3, top : top + 24, left : left + 24] += 6 if frame % 2 else -6
        boxes[frame, 0] = torch.tensor([left, top, left + 24, top + 24]) / 64
    labels = torch.arange(4)[:, None] % 2
    true = Targets(boxes, torch.ones(4, 1, dtype=torch.bool), labels)
    model = small(norm="group").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(40):
        loss = sum(model(images, true).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        detections = model.eval()(images)
    for frame, best in enumerate(detections):
        assert box_iou(best["boxes"][:1], boxes[frame]) > 0.5
        assert best["labels"][0] == labels[frame]


@pytest.mark.whole
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_steps_and_infers(variant: str) -> None:
    torch.manual_seed(0)
    model = build(variant, num_classes=2, rois=16, proposals_train=50, proposals=50)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    sum(losses(model, frames(), targets()).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    with torch.no_grad():
        detections = model.eval()(frames())
    assert len(detections) == 2
    assert all(d["boxes"].isfinite().all() for d in detections)
