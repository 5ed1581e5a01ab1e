"""Writer of rankings: photos from best to worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from PIL import Image
from torch import Tensor

from research.data.frames.media import Still
from research.inference.writers import SHEET, SHOWN, Overlay, Panels, failed, save, thumbnail
from research.tracking.files import csv_text
from research.utils.counts import counted
from research.utils.files import write_text
from research.viz import pictures

TABLE: Final = "ranking.csv"
COLUMNS: Final = 6


class RankingWriter:
    """Photos from best to worst in ``FOLDER/ranking.csv``, and a contact sheet of the best.

    Photos with equal scores are sorted by name; NaN scores are last.

    Args:
        folder: output folder, created after the last photo.
    """

    score_threshold: float | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scores: list[tuple[float, str]] = []
        self.best: list[tuple[float, str, Image.Image]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.scores or kind is not None:
            return
        ranked = sorted(self.scores, key=lambda entry: (_sort_key(entry[0]), entry[1]))
        rows = [
            {"rank": rank, "file": name, "score": f"{score:.6g}"}
            for rank, (score, name) in enumerate(ranked, 1)
        ]
        try:
            write_text(self.folder / TABLE, csv_text(list(rows[0]), rows))
        except OSError as problem:
            raise failed(self.folder / TABLE, problem) from None
        captions = [
            f"{rank}. {Path(name).name[-20:]}\n{score:.3f}"
            for rank, (score, name, _) in enumerate(self.best, 1)
        ]
        cells = [image for *_, image in self.best]
        paper = pictures.sheet(cells, captions, [None] * len(cells), COLUMNS)
        save(paper, self.folder / SHEET)

    def add(
        self, stills: Sequence[Still], images: Sequence[Panels], predictions: Tensor
    ) -> list[Overlay]:
        """``predictions``: scores [B]."""
        overlays = []
        for still, panels, score in zip(stills, images, predictions.double().tolist(), strict=True):
            self.scores.append((score, still.name))
            # Only the pictures of the contact sheet stay in memory.
            if len(self.best) < SHOWN or _sort_key(score) <= _sort_key(self.best[-1][0]):
                self.best.append((score, still.name, thumbnail(panels[0])))
                self.best.sort(key=lambda entry: (_sort_key(entry[0]), entry[1]))
                del self.best[SHOWN:]
            overlays.append(Overlay(f"score {score:.3f}"))
        return overlays

    def summary(self) -> dict[str, Any]:
        if not self.scores:
            return {"photos": 0}
        best = min(self.scores, key=lambda entry: (_sort_key(entry[0]), entry[1]))
        return {"photos": len(self.scores), "best": best[1]}

    def where(self) -> list[str]:
        shown = f" (the best {SHOWN})" if len(self.scores) > SHOWN else ""
        return [
            f"best of {counted(len(self.scores), 'photos')}: {self.summary()['best']}",
            f"pictures: {self.folder / SHEET}{shown}",
            f"table:    {self.folder / TABLE}",
        ]


def _sort_key(score: float) -> float:
    """For sorting: highest score first, NaN last."""
    return math.inf if math.isnan(score) else -score
