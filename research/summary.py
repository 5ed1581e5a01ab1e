"""Size, cost and speed of models, side by side: ``python -m research.summary model=…``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from research.config import cli, compose_config
from research.config.rules import COUNT, DEVICE, TRUTH
from research.data.rules import RGB
from research.utils.errors import UserError
from research.utils.timing import median_times, synchronize

if TYPE_CHECKING:
    from torch import nn

    from research.engine.build import Config


@dataclass(frozen=True)
class SummaryOptions:
    """Options of the command."""

    latency: bool = cli.option(
        True, TRUTH, "false omits this column; the others are the same on every machine"
    )
    rounds: int = cli.option(20, COUNT, "number of times that each row is timed")
    batch: int = cli.option(1, COUNT, "images per timed batch")
    device: str = cli.option(
        "auto", DEVICE, "device of the timing; precision= and channels_last= apply as well"
    )


USAGE = cli.usage(
    "python -m research.summary key=value[,value…] …",
    """
Prints a Markdown table with one row for each combination of the values, for example
  python -m research.summary model=resnet34,densenet121 dataset.image_size=224
  python -m research.summary model=resnet34_compressed compression=luma_fusion \\
      compression.window=1,2,4,8 dataset.image_size=224
Columns
  parameters      trainable parameters
  GMAC            multiply-adds of the forward pass of one image, in units of 10^9
  activations MB  memory that one image of a training batch keeps for the backward pass (half of
                  that of a batch of two), in float32
  size MB         weights and buffers in float32, as in a weights file
  latency ms      median time of one batch in evaluation mode; the rows take turns
Options
""",
    SummaryOptions,
    """
An image of a ranker is a pair of photos. Without model.num_classes the number of classes is that of
the data set, if one is selected by dataset= or experiment= and its files can be read; otherwise
1000 for classifiers and 1 for detectors. Without dataset.image_size each model has the size that
its data set or the model itself sets.
""",
)

CLASSES = 1000
SLOTS = 16
EXTRA = ("thermal", "event")
"""Channels besides RGB, if the data set does not name them."""
MB = 1e6


@dataclass(frozen=True)
class ModelSummary:
    """One configured network.

    Attributes:
        varied: the values of the keys that have several.
        parameters: number of trainable parameters.
        macs: multiply-adds of the forward pass of one image.
        activations: bytes that one image of a training batch keeps for the backward pass.
        size: bytes of the state dict.
        latency: median seconds of one batch; None if not measured.
    """

    varied: list[str]
    parameters: int
    macs: int
    activations: float
    size: int
    latency: float | None


def rows(
    settings: list[str], latency: bool = False, rounds: int = 1, batch: int = 1, device: str = "cpu"
) -> list[ModelSummary]:
    """One summary for each combination of the values in ``settings``.

    Args:
        settings: ``key=value[,value…]`` each.
        latency: whether to measure it.
        rounds: number of times that each network is timed.
        batch: images per timed batch.
        device: of the timing, as in the settings of a run.

    Raises:
        UserError: for a mistake in any combination, before the first network is built.
    """
    choices = [(key, _values(value)) for key, _, value in (s.partition("=") for s in settings)]
    combinations = []
    for values in itertools.product(*(values for _, values in choices)):
        overrides = [f"{key}={value}" for (key, _), value in zip(choices, values, strict=True)]
        varied = [v for (_, all_), v in zip(choices, values, strict=True) if len(all_) > 1]
        config = compose_config(overrides).config
        combinations.append((varied, {**config, "device": device}))
    measured, timed = [], []
    chosen = any(key in ("dataset", "experiment") for key, _ in choices)
    for varied, config in combinations:
        network, metadata = _build(config, chosen=chosen)
        measured.append((varied, *measure(network, config, metadata)))
        if latency:
            timed.append(_timed_pass(network, config, metadata, batch))
    times = median_times(timed, rounds) if latency else [None] * len(measured)
    return [
        ModelSummary(*columns, seconds) for columns, seconds in zip(measured, times, strict=True)
    ]


def measure(
    network: nn.Module, config: Config, metadata: dict[str, Any]
) -> tuple[int, int, float, int]:
    """Parameters, multiply-adds, bytes of activations and of weights, see ``ModelSummary``.

    Args:
        network: as configured, on the CPU.
        config: resolved.
        metadata: of the data set, for ``build.model``.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from research.engine import build

    task = build.build_task(config, metadata["classes"])
    network.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(_batch(config, metadata, 1).inputs)
    network.train()
    weights = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}
    saved: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # A reference, so that no later storage gets the same address.
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = task.losses(network, _batch(config, metadata, 2))
    activations = sum(storage.nbytes() for storage in saved.values()) / 2
    del losses
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    return parameters, int(counter.get_total_flops()) // 2, activations, size


def table(
    settings: list[str], latency: bool = False, rounds: int = 1, batch: int = 1, device: str = "cpu"
) -> str:
    """The summaries as a Markdown table."""
    keys = [s.partition("=")[0] for s in settings if len(_values(s.partition("=")[2])) > 1]
    columns = ["parameters", "GMAC", "activations MB", "size MB", *["latency ms"] * latency]
    lines = [
        "| " + " | ".join([*keys, *columns]) + " |",
        "|" + " --- |" * len(keys) + " ---: |" * len(columns),
    ]
    for row in rows(settings, latency, rounds, batch, device):
        numbers = [
            f"{row.parameters:,}",
            f"{row.macs / 1e9:.2f}",
            f"{row.activations / MB:.1f}",
            f"{row.size / MB:.1f}",
        ]
        if row.latency is not None:
            numbers.append(f"{1000 * row.latency:.1f}")
        lines.append("| " + " | ".join([*row.varied, *numbers]) + " |")
    return "\n".join(lines)


def _build(config: Config, *, chosen: bool) -> tuple[nn.Module, dict[str, Any]]:
    """A network on the CPU, and the metadata of its data set.

    Args:
        config: resolved.
        chosen: the user selected the data set, whose classes then count.
    """
    from research.engine import build

    if _ranks(config):
        metadata = build.source(config).metadata()
        return build.model(config, metadata), metadata
    known = build.source(config).known_classes() if chosen else None
    count = len(known or ()) or (1 if _detects(config) else CLASSES)
    count = config["model"].get("num_classes") or count
    slots = config["model"].get("max_boxes") or SLOTS
    extra = config["model"].get("x_channels") or len(config["dataset"].get("x") or EXTRA)
    metadata = {
        "classes": [str(number) for number in range(count)],
        "transform": {"max_boxes": slots},
        "channels": [*RGB, *map(str, range(extra if "x_channels" in config["model"] else 0))],
    }
    if config["dataset"]["image_size"] is None and _detects(config):
        raise UserError("dataset.image_size", "dataset.image_size is that of a store", "set it")
    return build.model(config, metadata), metadata


def _ranks(config: Config) -> bool:
    return str(config["task"]["_target_"]).startswith("research.tasks.ranking.")


def _detects(config: Config) -> bool:
    return str(config["task"]["_target_"]).startswith("research.tasks.detection.")


def _batch(config: Config, metadata: dict[str, Any], count: int) -> Any:
    """``count`` black images with targets, as after the device transform."""
    import torch

    from research.batch import ClassificationBatch, DetectionBatch, PairBatch
    from research.compression.blocks import Blocks
    from research.engine import build

    size = build.input_size(config, metadata)
    index = torch.arange(count)
    if _ranks(config):
        width = sum(metadata["feature_sizes"].values())
        inputs = torch.zeros(count, 2, width) if width else torch.zeros(count, 2, 3, size, size)
        photos = torch.stack([index, index], 1)
        return PairBatch(index, inputs, torch.full((count,), 0.5), index, photos)
    images = torch.zeros(count, len(metadata.get("channels", RGB)), size, size)
    if _detects(config):
        boxes = torch.zeros(count, metadata["transform"]["max_boxes"], 4)
        boxes[:, 0] = torch.tensor([0.25, 0.25, 0.75, 0.75])
        labels = torch.zeros(boxes.shape[:2], dtype=torch.int64)
        sizes = torch.full((count, 2), size, dtype=torch.int32)
        return DetectionBatch(index, images, boxes, boxes.any(-1), labels, sizes)
    stem = build.stem_spec(config["compression"])
    if stem is None:
        return ClassificationBatch(index, images, torch.zeros_like(index))
    grid, selection = size // 8, stem.selection
    blocks = Blocks(
        torch.zeros(count, len(selection.luma), grid, grid),
        torch.zeros(count, 2, len(selection.chroma), grid // 2, grid // 2),
    )
    return ClassificationBatch(index, blocks, torch.zeros_like(index))


def _timed_pass(
    network: nn.Module, config: Config, metadata: dict[str, Any], batch: int
) -> Callable[[], None]:
    """A function that runs one batch through the network and waits for the result."""
    import torch

    from research.engine import build
    from research.engine.loop import autocast

    device = build.select_device(config["device"], config["precision"])
    network = network.to(device).eval()
    if config["channels_last"]:
        network = network.to(memory_format=torch.channels_last)
    inputs = _batch(config, metadata, batch).to(device).inputs

    @torch.inference_mode()
    def once() -> None:
        with autocast(device, config["precision"]):
            network(inputs)
        synchronize(device)

    return once


def _values(text: str) -> list[str]:
    """``a,b`` is two values; ``[a,b]`` is one."""
    return re.split(r",(?![^\[({]*[\])}])", text)


def main(words: list[str]) -> None:
    paths, options, settings = cli.parse(SummaryOptions, words, others="")
    cli.no_paths(paths)
    print(table(settings, options.latency, options.rounds, options.batch, options.device))


if __name__ == "__main__":
    cli.command(USAGE, main)
