"""Evaluate a trained run on a split: ``python -m research.evaluate RUN split=val``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.config import cli
from research.config.rules import PATH, one_of
from research.utils.errors import UserError
from research.utils.files import to_json


@dataclass(frozen=True)
class EvaluateOptions(cli.RunOptions):
    """Options of the command."""

    split: str = cli.option(
        "val",
        one_of("val", "train", "test"),
        "val, train (with validation crops) or test (if the data set has one)",
    )
    out: Path | None = cli.option(
        None,
        PATH,
        "folder for pictures and tables; by default evaluate_SPLIT in the run folder",
        placeholder="FOLDER",
    )


USAGE = cli.usage(
    "python -m research.evaluate RUN [key=value …]",
    "RUN is a run folder or a checkpoint file.",
    EvaluateOptions,
    "Any setting of the run may follow, such as dataset.test_dir=FOLDER or batch_size=64.",
)


def evaluate(
    run: Path,
    split: str,
    which: str,
    device: str,
    overrides: list[str],
    out: Path | None = None,
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate one checkpoint on one split, as in training.

    Args:
        run: run folder or checkpoint file.
        split: ``train``, ``val`` or ``test``.
        which: ``best`` or ``last``, of a run folder.
        device: as in the settings of a run.
        overrides: other settings of the run, ``key=value``.
        out: folder for the task's pictures and tables; None: they are not written.
        trust: names of the user's own code that the run's configuration may contain.

    Returns:
        ``metrics``, the epoch of the checkpoint, ``logged`` (those of the metrics that the run
        logged for that epoch on this split) and ``damage``, the number of skipped samples by kind.
    """
    from research.engine.evaluation import load_eval_run
    from research.engine.run import draw
    from research.tracking.files import FileTracker

    loaded = load_eval_run(run, split, which, device, overrides, trust)
    model, state, result = loaded.predictor, loaded.saved["state"], loaded.evaluate(split)
    epoch = state["epoch"]
    if out is not None:
        draw(model.task, model.transform, result, FileTracker(out), epoch)
    row = state["history"][-1]
    logged = {name: row.get(f"{split}/{name}") for name in result.metrics}
    return {
        "split": split,
        "epoch": epoch,
        "metrics": result.metrics,
        "logged": {name: value for name, value in logged.items() if value is not None},
        "damage": result.skipped,
    }


def main(words: list[str]) -> None:
    paths, options, overrides = cli.parse(EvaluateOptions, words, others="")
    if len(paths) != 1:
        raise UserError("RUN", "pass one RUN folder or checkpoint first, then key=value settings")
    # Imported late: mistakes are reported before torch is imported.
    from research.utils import logs

    # Standard output is for the result only.
    logs.to_terminal(sys.stderr)
    run, split = Path(paths[0]), options.split
    out = options.out or cli.folder_in_run(run, f"evaluate_{split}")
    result = evaluate(run, split, options.checkpoint, options.device, overrides, out, options.trust)
    print(to_json({**result, "files": str(out)}), end="")


if __name__ == "__main__":
    cli.command(USAGE, main)
