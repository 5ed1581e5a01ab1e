"""Parameters and cost of models, side by side: ``python -m research.summary model=…``."""

from __future__ import annotations

import itertools
import re
from typing import Any

from research import cli
from research.config import compose_config, resolved
from research.errors import UserError

USAGE = """
python -m research.summary key=value[,value…] …

Prints a Markdown table of trainable parameters and multiply-adds (one image, forward) with a row
for every combination of the values given, for example
  python -m research.summary model=resnet34,resnet34_compressed dataset.image_size=224
  python -m research.summary model=resnet34_compressed compression=luma_fusion \\
      compression.window=1,2,4,8 dataset.image_size=224
Without model.num_classes the networks have 1000 classes.
"""

CLASSES = 1000
SLOTS = 16


def rows(settings: list[str]) -> list[tuple[list[str], int, float]]:
    """(values of the keys with several values, parameters, giga-multiply-adds) a combination."""
    choices = [(key, _values(value)) for key, _, value in (s.partition("=") for s in settings)]
    combinations = [
        (values, [f"{key}={value}" for (key, _), value in zip(choices, values, strict=True)])
        for values in itertools.product(*(values for _, values in choices))
    ]
    for _, overrides in combinations:
        # A mistake in the last is answered before the first is built.
        compose_config(overrides)
    found = []
    for values, overrides in combinations:
        varied = [v for (_, all_), v in zip(choices, values, strict=True) if len(all_) > 1]
        parameters, macs = measure(overrides)
        found.append((varied, parameters, macs / 1e9))
    return found


def measure(overrides: list[str]) -> tuple[int, int]:
    """Trainable parameters of the configured model, and multiply-adds of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from research import build
    from research.compression.blocks import Blocks

    config = resolved(compose_config(overrides)[0])
    classes = [str(number) for number in range(config["model"].get("num_classes") or CLASSES)]
    slots = config["model"].get("max_boxes") or SLOTS
    facts = {"classes": classes, "transform": {"max_boxes": slots}}
    network = build.model(config, facts).eval()
    size = config["dataset"]["image_size"]
    if size is None:
        raise UserError("dataset.image_size is what the store holds; give it")
    inputs: Any = torch.zeros(1, 3, size, size)
    stem = build.stem_spec(config["compression"])
    if stem is not None:
        grid, kept = size // 8, stem.selection
        inputs = Blocks(
            torch.zeros(1, len(kept.luma), grid, grid),
            torch.zeros(1, 2, len(kept.chroma), grid // 2, grid // 2),
        )
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(inputs)
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return parameters, counter.get_total_flops() // 2


def table(settings: list[str]) -> str:
    """The rows as Markdown."""
    keys = [s.partition("=")[0] for s in settings if len(_values(s.partition("=")[2])) > 1]
    lines = [
        "| " + " | ".join([*keys, "parameters", "GMAC"]) + " |",
        "|" + " --- |" * len(keys) + " ---: | ---: |",
    ]
    for values, parameters, gmac in rows(settings):
        lines.append("| " + " | ".join([*values, f"{parameters:,}", f"{gmac:.2f}"]) + " |")
    return "\n".join(lines)


def _values(text: str) -> list[str]:
    """``a,b`` is two values; ``[a,b]`` is one."""
    return re.split(r",(?![^\[({]*[\])}])", text)


def main(words: list[str]) -> None:
    print(table(cli.key_values(words)))


if __name__ == "__main__":
    cli.command(USAGE, main)
