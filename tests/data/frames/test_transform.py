from __future__ import annotations

import pytest
import torch
from torch import Tensor

from research.batch import DetectionBatch
from research.data.frames.transform import FrameAugmentation, FrameTransform

NOTHING = {
    "flip": False,
    "flip_vertical": False,
    "zoom": (1.0, 1.0),
    "brightness": 0.0,
    "contrast": 0.0,
    "noise": 0.0,
}


def frames(count: int = 12, size: int = 64) -> DetectionBatch:
    """Each frame is dark but for one bright box; its second slot is empty."""
    generator = torch.Generator().manual_seed(0)
    images = torch.full((count, 3, size, size), 20, dtype=torch.uint8)
    boxes, mask = torch.zeros(count, 2, 4), torch.zeros(count, 2, dtype=torch.bool)
    for number in range(count):
        left, top = torch.randint(4, size // 2, (2,), generator=generator).tolist()
        width, height = torch.randint(8, size // 2 - 4, (2,), generator=generator).tolist()
        images[number, :, top : top + height, left : left + width] = 220
        boxes[number, 0] = torch.tensor([left, top, left + width, top + height]) / size
        mask[number, 0] = True
    labels = torch.zeros(count, 2, dtype=torch.int64)
    return DetectionBatch(torch.arange(count), images, boxes, mask, labels, labels.int())


def bright(image: Tensor) -> Tensor:
    """The box of the bright pixels, xyxy as fractions of the frame."""
    rows, columns = (image.mean(0) > 0.45).nonzero().T
    size = image.shape[-1]
    corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return torch.tensor([float(edge) / size for edge in corners])


def changed(seed: int = 0, **settings: object) -> DetectionBatch:
    transform = FrameTransform(FrameAugmentation(**{**NOTHING, **settings})).train()
    return transform(frames(), torch.Generator().manual_seed(seed))


def test_evaluation_makes_floats_and_nothing_else() -> None:
    batch = frames()
    transform = FrameTransform(FrameAugmentation(True, True, (0.5, 2.0), 0.5, 0.5, 0.5)).eval()
    found = transform(batch, None)
    assert torch.equal(found.inputs, batch.inputs.float() / 255)
    assert torch.equal(found.boxes, batch.boxes)
    assert torch.equal(transform.to_images(found)[0], batch.inputs)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"flip": True}, 1e-6),
        ({"flip_vertical": True}, 1e-6),
        ({"flip": True, "flip_vertical": True}, 1e-6),
        ({"zoom": (0.6, 1.0)}, 1.01 / 64),
        ({"flip": True, "zoom": (0.8, 1.5)}, 1.01 / 64),
    ],
)
def test_boxes_go_where_their_objects_go(settings: dict[str, object], tolerance: float) -> None:
    moved = 0
    for seed in range(4):
        found, before = changed(seed, **settings), frames()
        for image, box, real, old in zip(
            found.inputs, found.boxes, found.mask, before.boxes, strict=True
        ):
            if real[0]:
                torch.testing.assert_close(bright(image), box[0], atol=tolerance, rtol=0)
                moved += not torch.equal(box, old)
        assert not found.boxes[~found.mask].any()
    assert moved > 10


def test_a_box_that_leaves_the_frame_is_no_target() -> None:
    found = changed(zoom=(4.0, 4.0))
    assert 0 < found.mask.sum() < 12
    for image, real in zip(found.inputs, found.mask, strict=True):
        if real[0]:
            assert image.max() > 0.45


def test_light_changes_within_its_bounds() -> None:
    found = changed(brightness=0.1)
    shift = found.inputs[:, :, 0, 0] - 20 / 255
    assert shift.abs().max() <= 0.1 + 1e-6
    assert shift.std() > 0.02
    assert torch.equal(found.boxes, frames().boxes)
    ratio = changed(contrast=0.2).inputs.std((1, 2, 3)) / (frames().inputs / 255).std((1, 2, 3))
    assert ratio.min() < 0.95
    assert ratio.max() < 1.2 + 1e-6
    noise = changed(noise=0.02).inputs[0] - frames().inputs[0] / 255
    assert noise.std() == pytest.approx(0.02, rel=0.05)


def test_the_generator_decides() -> None:
    settings = {"flip": True, "zoom": (0.8, 1.2), "brightness": 0.1, "noise": 0.01}
    one, same, other = changed(1, **settings), changed(1, **settings), changed(2, **settings)
    assert torch.equal(one.inputs, same.inputs)
    assert not torch.equal(one.inputs, other.inputs)


def test_the_loaders_memory_is_left_alone() -> None:
    batch = frames()
    before = batch.inputs.clone(), batch.boxes.clone()
    everything = FrameAugmentation(True, True, (0.8, 1.2), 0.1, 0.1, 0.02)
    FrameTransform(everything).train()(batch, torch.Generator().manual_seed(0))
    assert torch.equal(batch.inputs, before[0])
    assert torch.equal(batch.boxes, before[1])
