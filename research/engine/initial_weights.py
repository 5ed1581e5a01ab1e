"""The weights that a run starts from: ``init_from``, and a run in ``model.pretrained``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from research.data.datamodule import DataModule
from research.engine import checkpoint, distributed
from research.engine.state import load_weights
from research.models.pretrained import classifier_tensors, compare, report
from research.models.rules import is_local
from research.models.weight_files import WeightsFile
from research.utils.errors import UserError

log = logging.getLogger(__name__)

Config = Mapping[str, Any]


def read(config: Config) -> dict[str, Any] | None:
    """The content of ``init_from``: the checkpoint of a run folder, a checkpoint or a state dict.

    Raises:
        UserError: for a file that is missing, damaged or refused.
    """
    if config["init_from"] is None:
        return None
    return checkpoint.read(checkpoint.find(Path(config["init_from"])), config["trust"])


def load(network: nn.Module, content: Mapping[str, Any], config: Config, data: DataModule) -> None:
    """Load all weights of a checkpoint or of a state dict, and log how many they are.

    Only a classifier for another number of classes keeps its initial values. Other classes of the
    same number are a warning.

    Raises:
        UserError: if the weights are of another model, or of one for other data.
    """
    where = f"init_from={config['init_from']}"
    state = checkpoint.weights_of(content) if "format" in content else content
    reason = data.check_compatible(content["data"]) if "format" in content else None
    if reason:
        raise UserError("init_from", f"{where}: {reason}")
    own = network.state_dict()
    kept = {n: own[n] for n in classifier_tensors(network) if _differs(state.get(n), own[n])}
    load_weights(network, {**state, **kept}, "init_from", where)
    classes = content["data"].get("classes") if "format" in content else None
    if classes and classes != data.classes and not kept and distributed.is_main():
        named = ", ".join(classes[:3])
        log.warning("%s: its classes are others (%s, …); their classifier is kept", where, named)
    path = checkpoint.find(Path(config["init_from"]))
    report(compare(network, state), where, WeightsFile(path, "", str(path)))


def _differs(value: Any, own: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape != own.shape


def of_run(pretrained: str | bool | None) -> str | bool | None:
    """``model.pretrained``, where a run folder is replaced by its best checkpoint.

    Raises:
        Damaged: if the folder has none.
    """
    if not isinstance(pretrained, str) or not is_local(pretrained):
        return pretrained
    path = Path(pretrained)
    return str(checkpoint.find(path)) if path.is_dir() else pretrained
