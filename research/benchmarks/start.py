"""``train.py`` up to its first optimizer step, and everything of it outside the epochs.

Each candidate is a new process. The reference imports torch and timm, builds the network and makes
one step, without anything of this project.
"""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from research.benchmarks.measure import Candidate, Result, measure
from research.benchmarks.options import BenchmarkOptions
from research.config import compose_config
from research.tracking.files import typed_rows
from research.utils.errors import UserError
from research.utils.installation import IS_COPY, PACKAGE

TRAIN: Final = "research.train" if IS_COPY else "train"
"""The module of ``train.py``."""
BARE: Final = """
import os
import sys
import torch
import timm

name, classes, batch, size = sys.argv[1], *map(int, sys.argv[2:])
network = timm.create_model(name, num_classes=classes)
optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
labels = torch.zeros(batch, dtype=torch.int64)
torch.nn.functional.cross_entropy(network(torch.zeros(batch, 3, size, size)), labels).backward()
optimizer.step()
print("step", flush=True)
os._exit(0)
"""
TO_FIRST_STEP: Final = f"""
import os
import {TRAIN} as train
from research.config import command_line

def stop(*ignored):
    print("step", flush=True)
    os._exit(0)

def stopped_at_the_first_step(*arguments):
    from research.engine.epoch_end import EpochEnd
    EpochEnd.step = stop
    return original(*arguments)

original, train.train = train.train, stopped_at_the_first_step
command_line(train.main)
"""
"""``train.py`` as a script that ends with its first step."""
IMPORT: Final = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)")
CLASSES: Final = 12
"""Outputs of the bare network: as many as the demo's classes."""
SHOWN: Final = 10
"""Packages in the table of imports."""


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    words = ["device=cpu", *overrides]
    config = compose_config(words).config
    with tempfile.TemporaryDirectory() as scratch:
        project = Project(Path(scratch), options.threads)
        bare = ["-c", BARE, *_network(config)]
        ours = ["-c", TO_FIRST_STEP, *words]
        # The first command of all renders the data, and has MLflow's tables made.
        first = project.outside_epochs([*words, "epochs=1"])
        scripts = {
            "torch, timm, the network": bare,
            "torch, timm, the network (control)": bare,
            "train.py": ours,
        }
        processor: dict[str, list[float]] = {name: [] for name in scripts}

        def started(name: str) -> float:
            before = _processor_seconds()
            seconds = project.to_step(scripts[name])
            processor[name].append(_processor_seconds() - before)
            return seconds

        starts: dict[str, Candidate] = {name: partial(started, name) for name in scripts}
        start = measure(starts, options.rounds, unit="start", name="to the first optimizer step")
        for name, (_, *seconds) in processor.items():  # without the warm-up
            start.row(name).columns["s of processor"] = statistics.median(seconds)
        start.notes.extend(_shares(project.imports(bare), project.imports(ours)))
        commands: dict[str, Candidate] = {
            name: lambda: project.outside_epochs([*words, "epochs=1"])
            for name in ("train.py epochs=1", "train.py epochs=1 (control)")
        }
        whole = measure(commands, options.rounds, unit="command", name="outside the epochs")
        whole.notes.append(f"the first command in a new project: {first:.2f} s")
    return [start, whole]


class Project:
    """Starts Python in a folder of its own.

    Args:
        folder: an empty one; ``runs/`` in it is that of the commands.
        threads: of PyTorch.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.runs = 0
        self.environment = {
            **{key: os.environ[key] for key in os.environ if key != "PYTHONDONTWRITEBYTECODE"},
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": str(PACKAGE.parent),
        }

    def to_step(self, words: Sequence[str]) -> float:
        """Seconds from the start of Python to the line that a script prints after its step."""
        begin = time.perf_counter()
        end = None
        with self._started(words) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line == "step\n":
                    end = time.perf_counter()
        if end is None:
            raise _failed(words)
        return end - begin

    def outside_epochs(self, words: Sequence[str]) -> float:
        """Seconds of a whole command without those of its epochs."""
        self.runs += 1
        run_dir = f"runs/start_{self.runs}"
        whole = ["-m", TRAIN, *words, f"run_dir={run_dir}"]
        begin = time.perf_counter()
        with self._started(whole) as process:
            process.communicate()
        seconds = time.perf_counter() - begin
        if process.returncode:
            raise _failed(whole)
        rows = typed_rows(self.folder / run_dir / "epoch_metrics.csv")
        return seconds - sum(float(row["epoch_time_sec"]) for row in rows)

    def imports(self, words: Sequence[str]) -> Counter[str]:
        """Microseconds that the modules of each package take to import (``-X importtime``)."""
        with self._started(["-X", "importtime", *words], stderr=subprocess.PIPE) as process:
            _, printed = process.communicate()
        if process.returncode:
            raise _failed(words)
        times: Counter[str] = Counter()
        for microseconds, package in IMPORT.findall(printed):
            times[package] += int(microseconds)
        return times

    def _started(self, words: Sequence[str], **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603 - our scripts
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            **more,
        )


def _processor_seconds() -> float:
    """Of all processes that were started and have ended; other programs do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _failed(words: Sequence[str]) -> UserError:
    return UserError("NAME", f"start: python {words[0]} … failed; its error is above")


def _network(config: dict[str, Any]) -> list[str]:
    """Arguments of the bare script: the network of timm, its outputs, batch and input."""
    name = config["model"].get("name")
    if name is None:
        raise UserError("model", "start compares with a network of timm", "add model=resnet34")
    size = config["dataset"]["image_size"] or 224
    return [str(value) for value in (name, CLASSES, config["batch_size"], size)]


def _shares(bare: Counter[str], ours: Counter[str]) -> list[str]:
    """Lines of a table: the time of the imports of each package, without those inside it."""
    total = ours.total()
    lines = ["imports up to the first step (-X importtime), without and with this project:"]
    lines += ["", "| package | without | with | share |", "| --- | ---: | ---: | ---: |"]
    rows = [(name, bare[name], own) for name, own in ours.most_common(SHOWN)]
    for name, without, own in [*rows, ("all", bare.total(), total)]:
        share = f"{own / total:.0%}"
        lines.append(f"| {name} | {without / 1e6:.2f} s | {own / 1e6:.2f} s | {share} |")
    return lines
