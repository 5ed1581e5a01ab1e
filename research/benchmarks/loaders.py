"""Loaders of batches that several benchmarks time: timm's, and ``EpochLoader`` on a store."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data import create_loader
from torch.utils.data import Dataset
from torchvision.datasets.folder import pil_loader

from research.benchmarks.measure import Candidate, in_process, per_unit
from research.data.loader import BatchSource, EpochLoader
from research.data.warehouse.build import build
from research.data.warehouse.plan import BuildPlan
from research.data.warehouse.store import Store
from research.utils.allocator import keep_freed_memory


class PictureFiles(Dataset[Any]):
    """Files as a data set of timm, which sets ``transform``.

    Args:
        files: the picture files.
        labels: a class for each; None: class 0.
    """

    transform: Any = None

    def __init__(self, files: list[Path], labels: list[int] | None = None) -> None:
        self.files = files
        self.labels = labels or [0] * len(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(pil_loader(self.files[index])), self.labels[index]


def timm_candidates(files: list[Path], size: int, batch: int) -> dict[str, Candidate]:
    """timm's training loader on files: decode, random resized crop, flip, normalise, collate.

    By default it changes the colours too, which a store does not; the reference does not either.
    """

    def candidate(**settings: Any) -> Candidate:
        loader = create_loader(
            PictureFiles(files),
            input_size=(3, size, size),
            batch_size=min(batch, len(files)),
            is_training=True,
            use_prefetcher=False,
            num_workers=0,
            persistent_workers=False,
            pin_memory=False,
            **settings,
        )
        return per_unit(lambda: sum(len(images) for images, _ in loader))

    same = candidate(color_jitter=None)
    return {"timm": same, "timm (control)": same, "timm, with its change of colours": candidate()}


def prepared(plan: BuildPlan, stack: ExitStack, repeats: int) -> tuple[Store, NDArray[np.intp]]:
    """A store in a temporary folder, and its training positions, ``repeats`` times each.

    So an epoch has many batches, as with a large store: what begins an epoch counts little.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    manifest = build(plan, folder / "store")
    opened = Store(manifest, "never", folder)
    opened.open()
    return opened, np.tile(manifest.split("train"), repeats)


def batches(samples: BatchSource, batch: int) -> Candidate:
    """An epoch of an ``EpochLoader``."""
    loader = EpochLoader(samples, min(batch, len(samples)), seed=0, train=True)
    return per_unit(lambda: sum(len(batch) for batch in loader.epoch(0)))


def side_by_side(
    theirs: Mapping[str, Candidate], ours: Mapping[str, Candidate], stack: ExitStack
) -> dict[str, Candidate]:
    """Each candidate in a process of its own, as it runs where nothing else does.

    Ours keep freed memory, as a run does, which other loaders would gain from, too.

    Args:
        theirs: loaders of others, by name; the first is the reference.
        ours: of this project, by name.
        stack: ends the processes.
    """
    pairs = [(theirs, None), (ours, keep_freed_memory)]
    return {  # forked, since the data are built, and timm is imported
        name: in_process(work, stack, begin, method="fork")
        for candidates, begin in pairs
        for name, work in candidates.items()
    }
