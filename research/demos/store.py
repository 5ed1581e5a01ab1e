"""A store of rendered capture runs, for trying things out."""

from __future__ import annotations

from pathlib import Path

from research.data.frames.annotations import read_frames
from research.data.index import ProgressCallback
from research.data.warehouse import recipes
from research.data.warehouse.build import build
from research.demos.capture_runs import CaptureDemo


class DemoStore:
    """Rendered capture runs and the store prepared from them.

    Args:
        root: folder of the runs.
        runs: how many.
        frames: of each run.
        seed: of scenes and split.
        image_size: side of the stored frames in pixels.
        max_boxes: slots a frame.
    """

    def __init__(
        self, root: str, runs: int, frames: int, seed: int, image_size: int, max_boxes: int
    ) -> None:
        self.capture = CaptureDemo(root, runs, frames, seed)
        self.recipe = recipes.FrameRecipe(image_size, max_boxes)

    def make(self, out: Path, progress: ProgressCallback | None) -> Path:
        """Render and prepare what is not there yet.

        A fifth of the runs is for validation, another for testing.

        Args:
            out: folder of the store's versions.
            progress: told meanwhile.

        Returns:
            the version's folder.
        """
        self.capture.render(progress)
        found = read_frames(Path(self.capture.root))
        groups = {frame.group for frame in found.frames}
        nobody: dict[str, list[str]] = {"val": [], "test": []}
        splits = recipes.assign_splits(
            groups, {}, val=0.2, test=0.2, seed=self.capture.seed, named=nobody
        )
        plan = recipes.plan_frames(found, self.recipe, splits, {})
        return build(plan, out, progress=progress).folder
