"""Size, cost and speed of models, side by side: ``python -m research.summary model=…``."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from research.config import cli, compose_config
from research.config.rules import COUNT, DEVICE, TRUTH
from research.utils import logs
from research.utils.conditions import explained
from research.utils.progress import track
from research.utils.tables import TextTable, terminal_width
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
    from research.engine import build, cost

    choices = [(key, _values(value)) for key, _, value in (s.partition("=") for s in settings)]
    combinations = []
    for values in itertools.product(*(values for _, values in choices)):
        overrides = [f"{key}={value}" for (key, _), value in zip(choices, values, strict=True)]
        varied = [v for (_, all_), v in zip(choices, values, strict=True) if len(all_) > 1]
        config = compose_config(overrides).config
        combinations.append((varied, {**config, "device": device}))
    measured, timed = [], []
    chosen = any(key in ("dataset", "experiment") for key, _ in choices)
    for varied, config in track(combinations, "measuring networks", unit="networks"):
        metadata = build.data_module(config).expected_metadata(config["model"], own_classes=chosen)
        network = build.model(config, metadata)
        measured.append((varied, *cost.measure(network, config, metadata)))
        if latency:
            timed.append(_timed_pass(network, config, metadata, batch))
    times = median_times(timed, rounds, "timing networks") if latency else [None] * len(measured)
    return [
        ModelSummary(*columns, seconds) for columns, seconds in zip(measured, times, strict=True)
    ]


def table(
    settings: list[str], latency: bool = False, rounds: int = 1, batch: int = 1, device: str = "cpu"
) -> TextTable:
    """A row for each summary."""
    keys = [s.partition("=")[0] for s in settings if len(_values(s.partition("=")[2])) > 1]
    columns = ["parameters", "GMAC", "activations MB", "size MB", *["latency ms"] * latency]
    lines = []
    for row in rows(settings, latency, rounds, batch, device):
        numbers = [
            f"{row.parameters:,}",
            f"{row.macs / 1e9:.2f}",
            f"{row.activations / MB:.1f}",
            f"{row.size / MB:.1f}",
        ]
        if row.latency is not None:
            numbers.append(f"{1000 * row.latency:.1f}")
        lines.append([*row.varied, *numbers])
    sides = "l" * len(keys) + "r" * len(columns)
    return TextTable([*keys, *columns], lines, sides, keys=len(keys))


def _timed_pass(
    network: nn.Module, config: Config, metadata: Mapping[str, Any], batch: int
) -> Callable[[], None]:
    """A function that runs one batch through the network and waits for the result."""
    import torch

    from research.engine import build, cost, placement
    from research.engine.loop import autocast

    device = build.select_device(config["device"], config["precision"])
    layout = placement.memory_format(config, device, network)
    network = network.to(memory_format=layout).to(device).eval()
    inputs = cost.blank_batch(config, metadata, batch).to(device).in_format(layout).inputs

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
    logs.to_terminal(sys.stderr)
    with explained({"batch": options.batch} if options.latency else {}):
        summaries = table(settings, options.latency, options.rounds, options.batch, options.device)
    print(summaries.text(terminal_width()))


if __name__ == "__main__":
    cli.command(USAGE, main)
