"""Writes the inputs of the golden losses, once: ``python -m tests.golden.make_batches [NAME …]``.

They stay as they are: a new one is added beside them, whatever decoders and renderers do later.
"""

from __future__ import annotations

import os
import sys

from research.config import compose_config, resolved
from research.engine import build
from tests.golden import stored
from tests.golden.configurations import DATA, GOLDEN, STEPS, VALIDATED, overrides


def main(names: list[str]) -> None:
    os.chdir(DATA)
    for name in names or GOLDEN:
        config = resolved(compose_config([*overrides(name), "dataset.cache_dir=/tmp/cache"])[0])
        data = build.data_module(config)
        data.prepare(config["seed"])
        train = STEPS * config["batch_size"] * config["accumulate"]
        stored.save(name, data, {"train": train, "val": VALIDATED}, config["seed"])


if __name__ == "__main__":
    main(sys.argv[1:])
