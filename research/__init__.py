"""Backbone Lab: vision backbones on pixels and on JPEG DCT coefficients.

``research.load("runs/…")`` loads a trained model with its preprocessing.
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
    """Load a trained model with its preprocessing.

    From a file outside of ``runs/`` in the working directory, only model, task, preprocessing and
    metadata of the data set are used; files and addresses that it names are not.

    Args:
        run: run folder, of which the best checkpoint is loaded, or checkpoint file. The file
            ``final.safetensors`` of a run contains the weights of the last epoch and everything
            else that is needed.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        trust: your own classes and functions that the configuration may name, such as
            ``["my_models.Net"]``. Other names that are not from this project are refused.
        overrides: changed settings of the run, ``key=value`` each.

    Returns:
        A callable: ``model(paths)`` reads image files and returns the predictions of its task.

    Raises:
        UserError: if no checkpoint can be read, or its configuration is refused.
    """
    from research.engine import predictor

    return predictor.load(Path(run), overrides=[f"device={device}", *overrides], trust=trust)[0]
