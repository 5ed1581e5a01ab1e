"""The demo of prepared stores: rendered capture runs, prepared as a store of frames."""

from __future__ import annotations

from pathlib import Path

from research.data.frames.annotations import read_frames
from research.data.warehouse.build import build
from research.data.warehouse.encoders import FrameEncoder
from research.data.warehouse.plan import assign_splits, plan_frames
from research.demos.capture_runs import CaptureDemo


class DemoStore:
    """Renders capture runs and prepares a store from them.

    Args:
        root: folder of the runs.
        runs: number of runs.
        frames: frames of each run.
        seed: seed of the scenes and of the split.
        image_size: side of the stored frames in pixels.
        max_boxes: slots for boxes in a frame.
    """

    def __init__(
        self, root: str, runs: int, frames: int, seed: int, image_size: int, max_boxes: int
    ) -> None:
        self.capture = CaptureDemo(root, runs, frames, seed)
        self.encoder = FrameEncoder(image_size, max_boxes)

    def make(self, out: Path) -> Path:
        """Render and prepare what does not exist yet.

        A fifth of the runs is the validation split, another fifth the test split.

        Args:
            out: folder of the versions of the store.

        Returns:
            the folder of the version.
        """
        self.capture.render()
        frames = read_frames(Path(self.capture.root))
        groups = {frame.group for frame in frames.frames}
        splits = assign_splits(groups, {}, val=0.2, test=0.2, seed=self.capture.seed, named={})
        plan = plan_frames(frames, self.encoder, splits, {})
        return build(plan, out).folder
