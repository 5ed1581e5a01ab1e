"""Rules of keys that several models have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from research.config.group_rules import Job
from research.config.rules import BELOW_ONE, COUNT, NOTHING, PATH, TEXT, Rule
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "num_classes": COUNT,
    "coefficients": NOTHING,
    "image_size": NOTHING,
    "pretrained": replace(PATH, choices=("timm", "torchvision")),
    "name": TEXT,
    "dropout": BELOW_ONE,
    "drop_rate": BELOW_ONE,
    "drop_path_rate": BELOW_ONE,
}


def faults(job: Job) -> Iterator[UserError]:
    pretrained = job.settings["model"].get("pretrained")
    sources = job.rules["model.pretrained"].choices
    if pretrained is None or pretrained in sources or job.settings["resume"] is not None:
        return
    if not Path(pretrained).is_file():
        yield UserError(
            "model.pretrained",
            f"model.pretrained={pretrained}: no such file",
            f"set it to {', '.join(['a weights file', *sources])} or null",
        )
