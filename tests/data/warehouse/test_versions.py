"""Two versions differ if and only if data or transform differ."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from research.data.frames.frame import FrameSet
from research.data.warehouse.encoders import CoefficientEncoder, SampleSpec
from research.data.warehouse.plan import (
    BuildPlan,
    plan_frames,
    stamp_files,
    version_of,
)
from tests.data.warehouse.conftest import (
    ENCODER,
    SPLITS,
    make_frames,
    make_images,
    plan_images,
    plan_of,
)


def version(plan: BuildPlan) -> str:
    return version_of(plan, stamp_files(plan.samples, 1, None))


def moved(found: FrameSet, to: Path) -> FrameSet:
    """The same frames in another place, with other dates."""
    shutil.copytree(found.root, to)
    for file in to.rglob("*.jpg"):
        os.utime(file, (1, 2))
    frames = [replace(frame, image=to / frame.name) for frame in found.frames]
    return replace(found, root=to, frames=frames)


def changed(found: FrameSet, **changes: Any) -> FrameSet:
    """The second frame other than it was."""
    frames = list(found.frames)
    frames[1] = replace(frames[1], **changes)
    return replace(found, frames=frames)


def touched(found: FrameSet) -> FrameSet:
    os.utime(found.frames[0].image, (1, 2))
    return found


def other_byte(found: FrameSet) -> FrameSet:
    file = found.frames[3].image
    file.write_bytes(file.read_bytes() + b"\0")
    return found


SAME: dict[str, Callable[[FrameSet, Path], BuildPlan]] = {
    "as it was": lambda found, _: plan_of(found),
    "touched": lambda found, _: plan_of(touched(found)),
    "elsewhere": lambda found, tmp: plan_of(moved(found, tmp / "elsewhere")),
    "frames in another order": lambda found, _: plan_of(replace(found, frames=found.frames[::-1])),
    "splits in another order": lambda found, _: plan_frames(
        found, ENCODER, dict(reversed(SPLITS.items())), {}
    ),
    "thresholds": lambda found, _: plan_of(found, thresholds={"max_invalid": 3}),
    "problems": lambda found, _: plan_of(replace(found, problems=["a problem"])),
}

OTHER: dict[str, Callable[[FrameSet, Path], BuildPlan]] = {
    "a byte": lambda found, _: plan_of(other_byte(found)),
    "a box": lambda found, _: plan_of(changed(found, boxes=((0.1, 0.2, 0.6, 0.75001),))),
    "no box": lambda found, _: plan_of(changed(found, boxes=(), labels=())),
    "a label": lambda found, _: plan_of(changed(found, labels=(1,))),
    "a name": lambda found, _: plan_of(changed(found, name="run_1/frame_x.jpg")),
    "one frame fewer": lambda found, _: plan_of(replace(found, frames=found.frames[:-1])),
    "classes": lambda found, _: plan_of(replace(found, classes=["polyp", "scar"])),
    "what was left out": lambda found, _: plan_of(
        replace(found, runs=[replace(found.runs[0], invalid=1), *found.runs[1:]])
    ),
    "size": lambda found, _: plan_of(found, encoder=replace(ENCODER, image_size=48)),
    "max_boxes": lambda found, _: plan_of(found, encoder=replace(ENCODER, max_boxes=4)),
    "a split": lambda found, _: plan_of(found, splits={**SPLITS, "run_3": "test"}),
}


@pytest.mark.parametrize("change", list(SAME))
def test_the_same_data_have_the_same_version(tmp_path: Path, change: str) -> None:
    found = make_frames(tmp_path / "source")
    before = version(plan_of(found))
    assert version(SAME[change](found, tmp_path)) == before


def test_other_data_or_another_transform_have_another_version(tmp_path: Path) -> None:
    versions = {}
    for number, (name, change) in enumerate(OTHER.items()):
        found = make_frames(tmp_path / f"source_{number}")
        versions["unchanged"] = version(plan_of(found))
        versions[name] = version(change(found, tmp_path))
    assert len(set(versions.values())) == len(versions) == len(OTHER) + 1


def test_every_setting_of_coefficients_counts(tmp_path: Path) -> None:
    root, folders = make_images(tmp_path / "images")
    plans = {
        "": plan_images(root, folders),
        "size": plan_images(root, folders, size=48),
        "window": plan_images(root, folders, window=4),
        "source": plan_images(root, folders, source="pixels"),
    }
    folders.splits["train"].labels[0] = 2
    plans["label"] = plan_images(root, folders)
    folders.splits["val"].skipped = {"empty": 1}
    plans["left out"] = plan_images(root, folders)
    folders.splits["test"] = folders.splits.pop("val")
    plans["split"] = plan_images(root, folders)
    assert len({version(plan) for plan in plans.values()}) == len(plans)


def test_it_is_the_hash_of_a_text_that_anyone_can_write(tmp_path: Path) -> None:
    """Users cite versions: what is hashed, and in which order, is part of the format."""
    file = tmp_path / "a.jpg"
    file.write_bytes(b"bytes")
    encoder = CoefficientEncoder(32, 8, "bitstream")
    plan = BuildPlan(encoder, ["x"], [SampleSpec("a.jpg", "train", file, 0)], {"train": "train"})
    text = (
        '{"classes":["x"],"damage":{},"kind":"coefficients","reports":{},"runs":{},"schema":1,'
        '"splits":{"train":["train"]},'
        '"transform":{"image_size":32,"source":"bitstream","window":8}}\n'
        f'["a.jpg","train","{hashlib.sha256(b"bytes").hexdigest()}",0]\n'
    )
    assert version(plan) == hashlib.sha256(text.encode()).hexdigest()[:16]
