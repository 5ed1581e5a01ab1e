"""Results of a run's checkpoints on whole splits, kept in its folder ``evaluations``.

``evaluations/test.json`` is the run's own result: of the best checkpoint, with the settings of the
run. Another file or other settings have a name of their own, so that none replaces it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from research.utils import documents

FOLDER: Final = "evaluations"
BEST: Final = "best"


def own_metrics(folder: Path, split: str, epoch: int) -> dict[str, Any]:
    """What a run's own result has under its names in trackers, such as ``test/top1``, ``test/n``.

    Args:
        folder: of the run.
        split: ``val`` or ``test``.
        epoch: the best; the result of another, since when the run has gone on, does not count.

    Raises:
        UserError, KeyError, AttributeError: if the file is damaged.
    """
    path = folder / FOLDER / f"{split}.json"
    if not path.exists():
        return {}
    content = documents.load(path, dict, "RUN")
    values = {**content["metrics"], "n": content["n"]} if content["epoch"] == epoch else {}
    return {f"{split}/{name}": value for name, value in values.items()}


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a checkpoint on a split; written to ``NAME.json`` under the names of fields.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        epoch: completed epochs of the checkpoint.
        metrics: by name, without the split; of ``n`` samples.
        n: number of samples.
        logged: those of the metrics that the run logged for this epoch on this split.
        damage: number of samples by kind that were skipped or read by a fallback.
        checkpoint: the file, relative to the run folder.
        changed: settings that are not those of the run, and on which the metrics depend.
        overrides: settings as they were typed.
        command: of the process.
        date: in UTC.
        versions: of this project, of torch, and the commit of a checkout.
    """

    split: str
    epoch: int
    metrics: dict[str, float]
    n: int
    logged: dict[str, float]
    damage: dict[str, int]
    checkpoint: str
    changed: dict[str, Any]
    overrides: Sequence[str]
    command: Sequence[str]
    date: str
    versions: Mapping[str, str | None]

    @property
    def name(self) -> str:
        """The split, for the run's own result: ``test``.

        The file follows if it is not ``best.pt``, and a hash of the changed settings if there are
        any: ``test_last``, ``test_1a2b3c4d``.
        """
        return f"{self.split}{self._suffix}"

    @property
    def row(self) -> dict[str, float]:
        """The metrics and ``n`` under their names in trackers: ``test/top1``, ``test/n``.

        Those of the training split are ``train_eval/…``: ``train/…`` are of training, where each
        batch meets other weights.
        """
        split = "train_eval" if self.split == "train" else self.split
        values = {**self.metrics, "n": float(self.n)}
        return {f"{split}{self._suffix}/{name}": value for name, value in values.items()}

    @property
    def _suffix(self) -> str:
        stem = Path(self.checkpoint).stem
        file = f"_{stem}" if stem != BEST else ""
        changes = json.dumps(self.changed, sort_keys=True, default=str)
        return f"{file}_{sha256(changes.encode()).hexdigest()[:8]}" if self.changed else file
