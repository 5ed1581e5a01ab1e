"""How a file becomes a sample of a store, and what a source makes of that: a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.compression.selection import Selection, stored_order
from research.config.cli import choose
from research.data.crops import CentreCrop
from research.data.folder import ImageFolders
from research.data.frames.frame import FrameSet
from research.data.frames.letterbox import Letterbox
from research.data.readers import BitstreamReader, PixelReader, Reader, decode, to_rgb
from research.data.transforms import CoefficientTransform
from research.data.warehouse.manifest import Tensor
from research.data.warehouse.plan import Item, Made, Plan
from research.utils.errors import UserError


@dataclass(frozen=True)
class FrameRecipe:
    """Letterboxed frames with their boxes.

    Tensors of a sample: ``images`` uint8 [S, S, 3] RGB, ``boxes`` float32 [M, 4] xyxy as shares
    of the canvas, ``mask`` uint8 [M] (1 for a slot that is filled; they are filled from the
    first on), ``labels`` int64 [M], ``sizes`` int32 [2] height and width of the source.

    Attributes:
        image_size: S, side of the canvas in pixels.
        max_boxes: M, slots a frame.
    """

    image_size: int
    max_boxes: int

    @property
    def kind(self) -> str:
        return "frames"

    def transform(self) -> dict[str, Any]:
        return {**asdict(self), "resize": "letterbox"}

    def tensors(self) -> dict[str, Tensor]:
        size, slots = self.image_size, self.max_boxes
        return {
            "images": Tensor("uint8", (size, size, 3)),
            "boxes": Tensor("float32", (slots, 4)),
            "mask": Tensor("uint8", (slots,)),
            "labels": Tensor("int64", (slots,)),
            "sizes": Tensor("int32", (2,)),
        }

    def line(self, item: Item) -> dict[str, Any]:
        return {"boxes": len(item.target["boxes"])}

    def make(self, item: Item) -> Made:
        image = to_rgb(decode(item.file))
        letterbox = Letterbox.of(image.height, image.width, self.image_size)
        boxes = np.array(item.target["boxes"], dtype=np.float64).reshape(-1, 4)
        slots = {
            name: np.zeros(tensor.shape, tensor.dtype)
            for name, tensor in self.tensors().items()
            if name in ("boxes", "mask", "labels")
        }
        slots["boxes"][: len(boxes)] = letterbox.boxes(boxes)
        slots["mask"][: len(boxes)] = 1
        slots["labels"][: len(boxes)] = item.target["labels"]
        sizes = np.array([image.height, image.width], dtype=np.int32)
        return Made({"images": letterbox.image(image), "sizes": sizes, **slots})


@dataclass(frozen=True)
class CoefficientRecipe:
    """Whole images (their centred squares) as block-major DCT coefficients on JPEG's scale.

    Tensors of a sample: ``y`` int16 [S/8, S/8, window²], ``cbcr`` int16 [2, S/16, S/16, window²],
    ``labels`` int64 []. Frequencies stand in ``selection.stored_order``, so that a smaller
    window is a prefix of each block.

    Attributes:
        image_size: S, a multiple of 16, in pixels.
        window: 1…8, side of the corner of frequencies that is kept.
        source: ``bitstream``: the file's own coefficients, see ``BitstreamReader``; ``pixels``:
            those of the decoded and resized image, rounded.
    """

    image_size: int
    window: int
    source: str

    @property
    def kind(self) -> str:
        return "coefficients"

    def transform(self) -> dict[str, Any]:
        return asdict(self)

    def tensors(self) -> dict[str, Tensor]:
        grid, kept = self.image_size // 8, self.window**2
        return {
            "y": Tensor("int16", (grid, grid, kept)),
            "cbcr": Tensor("int16", (2, grid // 2, grid // 2, kept)),
            "labels": Tensor("int64", ()),
        }

    def line(self, item: Item) -> dict[str, Any]:
        return {"label": item.target}

    def make(self, item: Item) -> Made:
        sample = self.reader.read(item.file, CentreCrop(1.0), np.random.default_rng(0))
        y, cbcr = sample.arrays if self.source == "bitstream" else self._dct(sample.arrays[0])
        label = np.array(item.target, dtype=np.int64)
        return Made({"y": y, "cbcr": cbcr, "labels": label}, sample.detour)

    @property
    def selection(self) -> Selection:
        order = stored_order(self.window)
        return Selection(order, order)

    @cached_property
    def reader(self) -> Reader:
        if self.source == "bitstream":
            return BitstreamReader(self.image_size, self.selection)
        return PixelReader(self.image_size)

    @cached_property
    def on_pixels(self) -> CoefficientTransform:
        return CoefficientTransform(self.selection, "full", None, flip=False).eval()

    def _dct(self, pixels: NDArray[np.generic]) -> tuple[NDArray[np.int16], ...]:
        index = torch.zeros(1, dtype=torch.int64)
        batch = ClassificationBatch(index, torch.from_numpy(pixels.copy())[None], index)
        blocks = self.on_pixels(batch, None).inputs
        assert isinstance(blocks, Blocks)
        block_major = blocks.y[0].permute(1, 2, 0), blocks.cbcr[0].permute(0, 2, 3, 1)
        return tuple(part.round().to(torch.int16).numpy() for part in block_major)

    def __getstate__(self) -> dict[str, Any]:
        # To another process go the settings alone.
        return asdict(self)


def plan_frames(
    found: FrameSet,
    recipe: FrameRecipe,
    splits: Mapping[str, str],
    thresholds: Mapping[str, float],
) -> Plan:
    """Frames in the order of their groups.

    Args:
        found: a source, with at least one usable frame.
        recipe: how frames are stored.
        splits: of every group that has a usable frame.
        thresholds: the limits that the source was held to.

    Raises:
        UserError: for a frame with more boxes than the recipe has slots.
    """
    frames = sorted(found.frames, key=lambda frame: (frame.group, frame.name))
    fullest = max(frames, key=lambda frame: len(frame.boxes))
    if len(fullest.boxes) > recipe.max_boxes:
        raise UserError(
            "max_boxes",
            f"{fullest.image}: {len(fullest.boxes)} boxes for {recipe.max_boxes} slots",
            f"give max_boxes={len(fullest.boxes)} (no frame has more)",
        )
    items = [
        Item(
            frame.name,
            frame.group,
            frame.image,
            {"boxes": [list(box) for box in frame.boxes], "labels": list(frame.labels)},
        )
        for frame in frames
    ]
    runs = {}
    for report in found.runs:
        counts = asdict(report)
        runs[counts.pop("name")] = counts
    return Plan(
        recipe,
        found.classes,
        items,
        {group: splits[group] for group in sorted(splits)},
        runs=runs,
        thresholds=dict(thresholds),
    )


def plan_folders(folders: ImageFolders, source: Path, recipe: CoefficientRecipe) -> Plan:
    """Image folders, prepared, in the order of their splits; a split is a group.

    Args:
        folders: whose splits and classes are taken as they are.
        source: what names are relative to.
        recipe: how the files are read.
    """
    items, reports, damage = [], {}, Counter[str]()
    for split, files in folders.splits.items():
        for file, label in zip(files.files, files.labels, strict=True):
            items.append(Item(file.relative_to(source).as_posix(), split, file, label))
        damage.update(files.left_out)
        reports[split] = {f"left_out/{kind}": n for kind, n in sorted(files.left_out.items())}
    splits = {split: split for split in folders.splits}
    left_out = dict(sorted(damage.items()))
    return Plan(recipe, folders.classes, items, splits, reports, damage=left_out)


def assign_splits(
    groups: Collection[str],
    own: Mapping[str, str],
    *,
    val: float,
    test: float,
    seed: int,
    named: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """Which split each group is in.

    Groups named by the user go where they are told; else where the source itself puts them; for
    a split of which neither speaks, a share of the remaining groups is drawn.

    Args:
        groups: their names.
        own: what the source says, group to split; groups it does not mention are training data.
        val: share of the groups drawn for validation, at least one; 0 for none.
        test: the same for the test split.
        seed: of the draw.
        named: split to the groups that the user named for it.

    Raises:
        UserError: for a name that is no group, a group in two splits, or a split left empty.
    """
    groups = sorted(groups)
    splits = {group: own.get(group, "train") for group in groups}
    asked = {split: list(names) for split, names in named.items() if names}
    if asked and own:
        raise UserError(
            "val",
            f"{next(iter(asked))}_runs: the source has a split of its own",
            "leave the setting out",
        )
    for split, names in asked.items():
        for name in names:
            choose(f"{split}_runs", name, groups)
            if splits[name] != "train":
                raise UserError("val", f"{split}_runs={name}: {name} is in {splits[name]} already")
            splits[name] = split
    rng = np.random.default_rng((seed, 3))
    for split, share in (("test", test), ("val", val)):
        if share and split not in splits.values():
            rest = _of(splits, "train")
            count = max(1, round(len(groups) * share))
            for name in rng.permutation(rest)[: min(count, len(rest))]:
                splits[str(name)] = split
    if "train" not in splits.values():
        raise UserError(
            "val",
            f"validation and test take all of {len(groups)} groups and leave none for training",
            "name or draw fewer, or hold nothing out with val=0",
        )
    return splits


def _of(splits: Mapping[str, str], wanted: str) -> list[str]:
    return [group for group, split in splits.items() if split == wanted]
