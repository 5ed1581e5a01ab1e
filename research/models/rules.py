"""Rules of keys that several models have, and the forms of ``model.pretrained``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from research.config.group_rules import Job
from research.config.rules import BELOW_ONE, COUNT, NOTHING, PATH, TEXT, Rule
from research.utils.errors import UserError

LIBRARIES: Final = ("timm", "torchvision")
HUB: Final = "hf-hub:"
REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
"""ORG/NAME on the Hugging Face hub, with or without @REVISION."""
SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".bin")
"""Of files with weights."""
FORMS: Final = "true, a name of weights such as a1_in1k, hf-hub:ORG/NAME, a weights file or a run"

RULES: dict[str, Rule] = {
    "num_classes": COUNT,
    "coefficients": NOTHING,
    "image_size": NOTHING,
    # A path, so that none of these words counts in a file of somebody else.
    "pretrained": Rule(
        FORMS,
        lambda value: value is True or PATH.is_valid(value),
        ("true", *LIBRARIES),
        is_path=True,
    ),
    "name": TEXT,
    "dropout": BELOW_ONE,
    "drop_rate": BELOW_ONE,
    "drop_path_rate": BELOW_ONE,
}


def is_local(pretrained: Any) -> bool:
    """Whether it is a file or a folder here, or would be: a name has no slash and no suffix."""
    if pretrained is True or pretrained in LIBRARIES or pretrained.startswith(HUB):
        return False
    looks_like_it = Path(pretrained).name != pretrained or pretrained.endswith(SUFFIXES)
    return looks_like_it or Path(pretrained).exists()


def faults(job: Job) -> Iterator[UserError]:
    pretrained = job.settings["model"].get("pretrained")
    if pretrained is None or job.settings["resume"] is not None:
        return
    key, where = "model.pretrained", str(pretrained)
    hint = f"set it to {FORMS}, or null"
    if is_local(pretrained):
        path = Path(where)
        if not path.exists():
            yield UserError(key, f"{key}={where}: no such file or run", hint)
        elif path.is_dir() and not any((path / "checkpoints").glob("*.pt")):
            yield UserError(key, f"{key}={where}: this folder has no checkpoint", hint)
    elif where.startswith(HUB) and not REPOSITORY.fullmatch(where.removeprefix(HUB)):
        yield UserError(key, f"{key}={where}: expected {HUB}ORG/NAME")
