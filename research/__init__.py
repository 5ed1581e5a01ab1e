"""Backbone Lab: vision backbones on pixels and on JPEG DCT coefficients.

``research.load("runs/…")`` gives a trained model with its preprocessing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from research.trained import Trained


def load(run: str | Path, device: str = "auto") -> Trained:
    """A trained model and its preprocessing, ready to predict.

    Args:
        run: a run folder (its best checkpoint is taken) or a checkpoint file; a run's
            ``final.safetensors``, the weights of its last epoch, is one and needs no other file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UserError: when there is no checkpoint that can be read.
    """
    from research import checkpoint, trained

    saved = checkpoint.load(checkpoint.find(Path(run)))
    return trained.restore({**saved["config"], "device": device}, saved)
