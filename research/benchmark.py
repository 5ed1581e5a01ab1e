"""Benchmarks of speed: ``python -m research.benchmark NAME``."""

from __future__ import annotations

import importlib
import random
import shlex
import textwrap
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from research.benchmarks.options import BenchmarkOptions
from research.config import cli, outputs
from research.inspect import find_images
from research.utils import logs
from research.utils.counts import counted
from research.utils.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """A benchmark; ``run`` of the module of its name in ``research/benchmarks`` measures it.

    Attributes:
        help: what is compared.
        reads_images: whether IMAGES must follow its name.
        takes_settings: whether settings of ``train.py`` may follow.
    """

    help: str
    reads_images: bool = False
    takes_settings: bool = False


BENCHMARKS = {
    "input": Benchmark(
        "file → training sample: PIL, torchvision, timm, simplejpeg and cv2 (installed with the "
        "extra dev), and the pixels, bitstream and store of this project; how much their values "
        "differ",
        reads_images=True,
    ),
    "readers": Benchmark(
        "file → coefficients: pyjpegio and jpeglib (installed with the extra dev)",
        reads_images=True,
    ),
    "store": Benchmark(
        "→ shuffled, cropped batch of 256: timm's loader on the files, and stores of coefficients "
        "prepared from them with windows 8 and 4 (256 px, crops of 224)",
        reads_images=True,
    ),
    "frames": Benchmark(
        "→ batch of 32: timm's loader (resized to 384 px), and a store of letterboxed frames",
        reads_images=True,
    ),
    "start": Benchmark(
        "train.py up to its first optimizer step, and a script that only imports torch and timm, "
        "builds the network and makes one step; then the time of a whole command outside its "
        "epochs (by default the demo), and the share of each import",
        takes_settings=True,
    ),
    "loop": Benchmark(
        "an epoch of train.py with one written by hand, Lightning's Trainer and a loop of timm's "
        "own parts (of pictures in folders): the same model, data, optimizer and precision; the "
        "training steps alone, and with the end of the epoch",
        takes_settings=True,
    ),
    "scale": Benchmark(
        "cost per unit at three sizes: to open and to read stores (sparse files) of 10,000 to a "
        "million entries, the order of an epoch of 140,000 to 14 million samples, a comparison of "
        "10 to 1,000 runs"
    ),
    "sweep": Benchmark(
        "trials of one sweep, the first hundred with the last of trials=2000, and with the first "
        "of a second sweep; training is replaced by a result that is drawn, so that only the sweep "
        "itself is timed, stage by stage",
        takes_settings=True,
    ),
    "step": Benchmark(
        "training step and inference of the RGB ResNet-34 (the reference), of every variant "
        "of compression and of an RGB network of the depth of late_concat, at 224 px on batches of "
        "8; then the RGB network in fp32 and bf16, contiguous and channels_last",
        takes_settings=True,
    ),
    "tracking": Benchmark(
        "training steps of the composed configuration (by default the demo), without any tracker "
        "and with all those of train.py: tables, console, summary, MLflow on sqlite with its "
        "system metrics. Start and end of a run are not counted. The wall time, the processor "
        "time, and the time spent in the trackers",
        takes_settings=True,
    ),
    "processes": Benchmark(
        "the same training steps on one process, on two that train a run each, and on two that "
        "train one run, each with one thread and the batch of the configuration; and what the "
        "exchange between processes costs a single one that has no other",
        takes_settings=True,
    ),
}
FORMER = {"loading": "input"}
"""Former names of benchmarks."""


def _table(benchmarks: dict[str, Benchmark]) -> str:
    column = max(map(len, BENCHMARKS)) + 4
    return "\n".join(
        textwrap.fill(
            each.help,
            cli.WIDTH,
            initial_indent=f"  {name}".ljust(column),
            subsequent_indent=" " * column,
        )
        for name, each in benchmarks.items()
    )


USAGE = cli.usage(
    "python -m research.benchmark NAME [IMAGES…] [key=value …]",
    f"""
Times candidates round by round, each round in another order, after one for warm-up. Prints the
median time of each and its speed relative to the first in the same round: median, lowest and
highest. The second candidate is the first one again, as the control: the deviation of its speed
from 1 is the noise. Writes NAME.json, with all times, the machine and the versions, and NAME.png.

NAME of a benchmark that reads IMAGES
{_table({name: each for name, each in BENCHMARKS.items() if each.reads_images})}
NAME without IMAGES
{_table({name: each for name, each in BENCHMARKS.items() if not each.reads_images})}
Every setting of train.py may follow \
{", ".join(name for name, each in BENCHMARKS.items() if each.takes_settings)}.
Options
""",
    BenchmarkOptions,
)


def main(words: list[str]) -> None:
    known = BENCHMARKS.get(words[0]) if words else None
    others = "" if known is not None and known.takes_settings else None
    paths, options, overrides = cli.parse(BenchmarkOptions, words, others)
    if not paths:
        names = ", ".join(BENCHMARKS)
        raise UserError("NAME", f"pass a NAME ({names}), then IMAGES if it reads any")
    if paths[0] in FORMER:
        now = FORMER[paths[0]]
        raise UserError(
            "NAME", f"{paths[0]} has another name", f"python -m research.benchmark {now}"
        )
    name = cli.choose("NAME", paths[0], list(BENCHMARKS))
    chosen = BENCHMARKS[name]
    if paths[1:] and not chosen.reads_images:
        raise UserError(
            "NAME", f"{paths[1]}: {name} reads no IMAGES", "settings are written key=value"
        )
    if chosen.reads_images and not paths[1:]:
        raise UserError("NAME", f"{name}: pass IMAGES, files or folders, after it")
    logs.to_terminal()
    files = find_images(paths[1:]) if chosen.reads_images else []
    files = sorted(random.Random(0).sample(files, min(options.files, len(files))))  # noqa: S311 - no secret
    out = options.out or Path(f"runs/benchmarks/{name}_{datetime.now():%Y-%m-%d_%H-%M-%S}")
    _measure(name, options, files, overrides, out, shlex.join(words))


def _measure(
    name: str,
    options: BenchmarkOptions,
    files: list[Path],
    overrides: list[str],
    out: Path,
    words: str,
) -> None:
    """Run a benchmark, print its tables and write its files."""
    import torch

    from research.benchmarks import measure

    torch.set_num_threads(options.threads)
    module = importlib.import_module(f"research.benchmarks.{name}")
    results = module.run(options, files, overrides)
    under = measure.conditions(f"python -m research.benchmark {words}")
    read = [counted(len(files), "files")] if files else []
    print("; ".join([*read, counted(options.rounds, "rounds"), measure.machine(under)]))
    measure.print_tables(name, results)
    with outputs.writing_to(out):
        measure.write(name, results, under, out)
    outputs.print_files(out, f"{name}.json", f"{name}.png")


if __name__ == "__main__":
    cli.command(USAGE, main)
