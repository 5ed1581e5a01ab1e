"""What a run says about itself: in its log, its summary and the tags of trackers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from research.engine import distributed, placement
from research.engine.build import Experiment
from research.utils.counts import counted


def batch(experiment: Experiment) -> dict[str, Any]:
    """The batch over all processes, and the learning rate to which ``scale_lr`` scales for it."""
    return {
        "processes": distributed.count(),
        "global_batch": experiment.train.global_batch,
        "lr": experiment.state.optimizer.defaults["lr"],
    }


def describe(experiment: Experiment) -> str:
    """Model, device, batch and data, in one line."""
    data = experiment.data
    counts = ", ".join(f"{samples} {name}" for name, (samples, _) in data.counts().items())
    skipped = {
        f"{kind} in {name}": count
        for name, (_, kinds) in data.counts().items()
        for kind, count in sorted(kinds.items())
    }
    skipped_text = "; skipped: " + ", ".join(f"{n} {kind}" for kind, n in skipped.items())
    classes = f"{counted(len(data.classes), 'classes')}, " if data.classes else ""
    return (
        f"{experiment.parameters:,} parameters on {experiment.device}"
        f"{_processes(experiment)}{_placement(experiment)}; "
        f"{data.name}: {classes}{counts} {data.unit}{skipped_text if skipped else ''}"
    )


def device(experiment: Experiment) -> list[str]:
    """Device, precision, and how the network is placed and called, in words."""
    return [str(experiment.device), experiment.cfg.precision, *_placements(experiment)]


def batches(experiment: Experiment) -> list[str]:
    """The batch of a training step over all processes, and its parts, in words."""
    processes, train, accumulate = distributed.count(), experiment.train, experiment.cfg.accumulate
    each = f"({processes} processes of {train.batch_size})"
    together = f"{accumulate} for a step"
    total, limit = train.sampler.samples, experiment.cfg.max_train_batches
    left = total - len(train) * train.global_batch  # below 0: one batch, smaller than it is set
    is_partial = left > 0 and limit is None
    return [
        counted(train.global_batch, experiment.data.unit),
        *[each] * (processes > 1),
        *[together] * (accumulate > 1),
        *[f"({left} of {total} left over in each epoch)"] * is_partial,
    ]


def _processes(experiment: Experiment) -> str:
    """The number of processes and their batches, in words; empty for one."""
    processes, train = distributed.count(), experiment.train
    each = f"{processes} × {train.batch_size} = {train.global_batch}"
    return f", {processes} processes, batches of {each}" * (processes > 1)


def _placement(experiment: Experiment) -> str:
    return "".join(f", {word}" for word in _placements(experiment))


def _placements(experiment: Experiment) -> list[str]:
    """What the memory format, optimizer and compilation are, in words; empty if plain."""
    state, compile_ = experiment.state, experiment.state.config["compile"]
    words = {
        "channels_last": state.transform.memory_format == torch.channels_last,
        "fused optimizer": state.optimizer.defaults.get("fused"),
        f"compiled ({placement.mode(compile_)})": compile_,
    }
    return [word for word, chosen in words.items() if chosen]


def model_summary(model: nn.Module, parameters: int) -> str:
    """Parameters of the outer modules, and PyTorch's description of all."""
    lines = [
        f"{sum(p.numel() for p in child.parameters()):>12,}  {name}"
        for name, child in model.named_modules()
        if name and name.count(".") < 2 and any(True for _ in child.parameters())
    ]
    return "\n".join([f"{parameters:>12,}  trainable parameters in total", *lines, "", str(model)])
