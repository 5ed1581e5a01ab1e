"""Size, cost and speed of models, side by side: ``python -m research.summary model=…``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli, compose_config, outputs
from research.config.overrides import train_command
from research.config.rules import COUNT, DEVICE, PATH, TRUTH
from research.utils import logs
from research.utils.conditions import explained
from research.utils.files import write_text
from research.utils.progress import track
from research.utils.tables import TextTable, terminal_width
from research.utils.timing import median_times, synchronize

if TYPE_CHECKING:
    from torch import nn

    from research.engine.build import Config
    from research.engine.shapes import Shapes


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
    csv: Path | None = cli.option(
        None, PATH, "also write the table to this file, with the shapes", placeholder="FILE"
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
Columns of csv= are these and shapes of one image, 64x56x56 for channels, height and width
  model           name of the network
  input           what the network takes: pixels, or coefficients of both planes
  stages          the last module at each size of the feature maps, with the shape of its output
  features        input of the last linear layer
  output          logits, or what else comes out
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
        model: name of the network.
        shapes: of the network and its parts; None if not asked for.
    """

    varied: list[str]
    model: str
    shapes: Shapes | None
    parameters: int
    macs: int
    activations: float
    size: int
    latency: float | None


def rows(
    settings: list[str],
    latency: bool = False,
    rounds: int = 1,
    batch: int = 1,
    device: str = "cpu",
    *,
    with_shapes: bool = False,
) -> list[ModelSummary]:
    """One summary for each combination of the values in ``settings``.

    Args:
        settings: ``key=value[,value…]`` each.
        latency: whether to measure it.
        rounds: number of times that each network is timed.
        batch: images per timed batch.
        device: of the timing, as in the settings of a run.
        with_shapes: whether to look at the shapes.

    Raises:
        UserError: for a mistake in any combination, before the first network is built.
    """
    from research.engine import build, cost
    from research.engine.shapes import shapes

    choices = [(setting.partition("=")[0], _values(setting)) for setting in settings]
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
        seen = shapes(network, config, metadata) if with_shapes else None
        name = build.model_name(config)
        measured.append((varied, name, seen, *cost.measure(network, config, metadata)))
        if latency:
            timed.append(_timed_pass(network, config, metadata, batch))
    times = median_times(timed, rounds, "timing networks") if latency else [None] * len(measured)
    return [
        ModelSummary(*columns, seconds) for columns, seconds in zip(measured, times, strict=True)
    ]


FORMATS = {
    "parameters": ",", "GMAC": ".2f", "activations MB": ".1f", "size MB": ".1f",
    "latency ms": ".1f",
}  # fmt: skip
"""Of the numbers in the printed table."""


def numbers(row: ModelSummary) -> dict[str, float]:
    """The measured values by column."""
    latency = {} if row.latency is None else {"latency ms": 1000 * row.latency}
    return {
        "parameters": row.parameters,
        "GMAC": row.macs / 1e9,
        "activations MB": row.activations / MB,
        "size MB": row.size / MB,
        **latency,
    }


def table(keys: list[str], summaries: list[ModelSummary]) -> TextTable:
    """A row for each summary.

    Args:
        keys: that have several values.
        summaries: from ``rows``.
    """
    columns = list(numbers(summaries[0]))
    lines = [
        [*row.varied, *(f"{value:{FORMATS[name]}}" for name, value in numbers(row).items())]
        for row in summaries
    ]
    return TextTable([*keys, *columns], lines, "l" * len(keys) + "r" * len(columns), keys=len(keys))


def write_csv(path: Path, keys: list[str], summaries: list[ModelSummary]) -> None:
    """Write the summaries, which have shapes, as CSV."""
    from research.tracking.files import csv_text

    lines = [
        {
            "model": row.model,
            **dict(zip(keys, row.varied, strict=True)),
            **numbers(row),
            **({} if row.shapes is None else asdict(row.shapes)),
        }
        for row in summaries
    ]
    with outputs.writing_to(path):
        write_text(path, csv_text(list(lines[0]), lines))


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


def _values(setting: str) -> list[str]:
    """The values of ``key=value[,value…]`` in Hydra's grammar: ``[a,b]`` is one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, IntervalSweep
    from hydra.errors import HydraException

    whole = [setting.partition("=")[2]]
    try:
        override = OverridesParser.create().parse_override(setting)
    except HydraException:
        return whole  # composing explains it
    is_list = override.is_sweep_override() and not isinstance(
        override.value(), Glob | IntervalSweep
    )
    return list(override.sweep_string_iterator()) if is_list else whole


def main(words: list[str]) -> None:
    paths, options, settings = cli.parse(SummaryOptions, words, others="")
    cli.no_paths(paths)
    logs.to_terminal()
    with explained({"batch": options.batch} if options.latency else {}):
        measured = rows(
            settings,
            options.latency,
            options.rounds,
            options.batch,
            options.device,
            with_shapes=options.csv is not None,
        )
    keys = [setting.partition("=")[0] for setting in settings if len(_values(setting)) > 1]
    # Printed before the file is written: a full disk must not lose it.
    print(table(keys, measured).text(terminal_width()))
    if options.csv is not None:
        write_csv(options.csv, keys, measured)
    outputs.print_next(train_command(settings, multirun=bool(keys)))


if __name__ == "__main__":
    cli.command(USAGE, main)
