"""Sources of RGB + X frames, arrays or images of each modality, and the plan of their store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from research.data.frames.frame import Frame, FrameSet
from research.data.frames.yolo import read_yolo, yolo_folders
from research.data.listing import list_files
from research.data.rgbx.arrays import COLOURS, HeaderCollector
from research.data.rgbx.encoder import ChannelEncoder
from research.data.rgbx.layout import DESCRIPTION, LEDGER, channel_names
from research.data.rgbx.paired_folders import PairedFolders
from research.data.warehouse.plan import BuildPlan, plan_frames
from research.utils.errors import UserError


class RgbxSource(NamedTuple):
    """The frames of a source.

    Attributes:
        frame_set: the usable frames.
        channels: names of all channels.
        dtype: type of the pixels, ``uint8`` or ``uint16``.
        path: path of a frame below its folder of images.
        files: the files of a frame: one array, or one image for each modality, RGB first.
    """

    frame_set: FrameSet
    channels: list[str]
    dtype: str
    path: Callable[[Frame], str]
    files: Callable[[Frame], tuple[Path, ...]]


def of_pictures(folders: PairedFolders, frame_set: FrameSet) -> RgbxSource:
    """A source with a folder of images for each modality, and its frames."""
    names = {frame.name: folders.frame_of(frame.image) for frame in frame_set.frames}
    is_16bit = any(folders.is_16bit[name] for name in names.values())
    return RgbxSource(
        frame_set,
        [*COLOURS, *(name for name in folders.folders if name != "rgb")],
        "uint16" if is_16bit else "uint8",
        lambda frame: f"{names[frame.name]}{frame.image.suffix}",
        lambda frame: tuple(folders.files(names[frame.name]).values()),
    )


def holds_arrays(root: Path) -> bool:
    """Whether a folder holds arrays with YOLO labels, see ``read_arrays``."""
    return any(list_files(images, {".npy"}).paths for images in yolo_folders(root))


def read_arrays(
    root: Path,
    x: Sequence[str] | None,
    class_names: Sequence[str] | None,
    require_labels: bool,
    data_yaml: str = "",
) -> RgbxSource:
    """The frames of a folder of arrays with YOLO labels.

    Args:
        root: the folder.
        x: see ``RgbxFolder``.
        class_names: see ``RgbxFolder``.
        require_labels: refuse arrays without a label file.
        data_yaml: see ``read_declared``.

    Raises:
        UserError: for a folder without arrays, arrays of different channels, or no class.
    """
    if (root / LEDGER).exists() and not (root / DESCRIPTION).exists():
        raise UserError(
            "dataset.root",
            f"dataset.root: {root} is not completely prepared, by an earlier version",
            "run python -m research.prepare rgbx again with a new OUT",
        )
    folders = yolo_folders(root)
    if not folders:
        raise UserError(
            "dataset.root",
            f"dataset.root: {root} has no folders images/ and labels/",
            "set the folder that has, or make a store with python -m research.prepare rgbx",
        )
    collector = HeaderCollector()
    frame_set = read_yolo(root, folders, collector.files, require_labels, class_names, data_yaml)
    spec = collector.common_spec()
    if not frame_set.classes:
        raise UserError(
            "dataset.class_names",
            f"{root}: no label file has a box, and there is no classes.txt",
            "add labels or classes.txt, or set dataset.class_names=[a,b]",
        )

    def path(frame: Frame) -> str:
        own = (folder for folder in folders if frame.image.is_relative_to(folder))
        folder = next(own, root)
        return frame.image.relative_to(folder).as_posix()

    names = channel_names(root, spec, x)
    return RgbxSource(frame_set, names, spec.dtype, path, lambda frame: (frame.image,))


def plan_channels(source: RgbxSource, image_size: int, limits: Mapping[str, float]) -> BuildPlan:
    """Plan a store of frames with more than three channels.

    Groups without a split of the source are in ``train``: training draws the others.

    Args:
        source: the frames.
        image_size: side of the stored canvas in pixels.
        limits: the limits that the source was checked against.
    """
    frame_set = source.frame_set
    slots = max([1, *(len(frame.boxes) for frame in frame_set.frames)])
    encoder = ChannelEncoder(image_size, slots, channels=tuple(source.channels), dtype=source.dtype)
    groups = {frame.group for frame in frame_set.frames}
    splits = {group: frame_set.split.get(group, "train") for group in groups}
    plan = plan_frames(frame_set, encoder, splits, limits)
    frames = {frame.name: frame for frame in frame_set.frames}
    samples = []
    for sample in plan.samples:
        file, *parts = source.files(frames[sample.name])
        target = {**sample.target, "path": source.path(frames[sample.name])}
        samples.append(replace(sample, file=file, parts=tuple(parts), target=target))
    return replace(plan, samples=samples)
