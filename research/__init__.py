"""Backbone Lab: vision backbones on pixels and on JPEG DCT coefficients.

``research.load("runs/…")`` gives a trained model with its preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from research.engine.predictor import Predictor


def load(
    run: str | Path,
    device: str = "auto",
    trust: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Predictor:
    """A trained model and its preprocessing, ready to predict.

    Of a file that does not lie under ``runs/`` here, only model, task, preprocessing and what is
    known of the data are used: no file and no address that it names.

    Args:
        run: a run folder (its best checkpoint is taken) or a checkpoint file; a run's
            ``final.safetensors``, the weights of its last epoch, is one and needs no other file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        trust: classes and functions of your own that its configuration names, such as
            ``["my_models.Net"]``; others than those of this project are refused.
        overrides: settings of the run, ``key=value`` each.

    Raises:
        UserError: when there is no checkpoint that can be read, or its configuration is refused.
    """
    from research.engine import predictor

    return predictor.load(Path(run), overrides=[f"device={device}", *overrides], trust=trust)[0]
