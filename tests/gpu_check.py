"""What one GPU can show: ``python tests/gpu_check.py [device=cuda] [out=FOLDER]``, in 10 minutes.

Trains every task for a few steps in every precision, layout and mode against the CPU, resumes
runs, keeps stores and CIFAR on the device, and times training. Writes ``gpu_check.json`` and
``gpu_check.md``, tables for docs/results.md, to a temporary folder by default, and leaves nothing
else behind. A section runs in a process of its own: one that fails is reported, and the others go
on. The exit status is 1 if any failed. ``device=cpu`` is a tiny form of the same, for tests.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # instead of tests/
    sys.dont_write_bytecode = True
MODULES = ("research.engine.run", "timm", "torchmetrics.detection")
MODULES += ("tests.gpu_training", "tests.gpu_speed")
"""Imported once, before the processes of the sections are forked."""
LONGEST = 60
"""Characters of the path of temporary files: with the rest, a socket of worker processes has at
most 107, or they would wait for ever."""
LIMIT = 530.0
"""Seconds after which nothing more is started."""
GRACE = 60.0
"""Seconds that a check may then go on."""
CACHES = ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
CACHES += ("XDG_CACHE_HOME", "MPLCONFIGDIR")
"""Variables that say where libraries write."""
SECTIONS: dict[str, str] = {
    "environment": "tests.gpu_speed:environment",
    "losses": "tests.gpu_training:losses",
    "waits": "tests.gpu_training:waits",
    "resume": "tests.gpu_training:resume",
    "data": "tests.gpu_training:data",
    "speed": "tests.gpu_speed:speed",
    "compression": "tests.gpu_speed:compression",
    "matrix product": "tests.gpu_speed:matrix_product",
    "compile": "tests.gpu_training:compiled",
}
"""Sections in their order, as ``MODULE:FUNCTION``; the slowest is the last."""
TITLES = {
    "environment": "Machine",
    "losses": "Losses against those of the CPU",
    "waits": "Steps in which the host does not wait",
    "resume": "Stopped within an epoch and resumed, `deterministic=true`",
    "data": "Data on the device against data from the host",
    "speed": "Training steps",
    "compression": "Training steps of the compressed ResNet-34",
    "matrix product": "ResNet-34 in bf16 and a matrix product of bf16",
    "compile": "`compile=true`",
}


@dataclass(frozen=True)
class Settings:
    """Settings of all sections.

    Attributes:
        device: ``cuda``, ``cuda:1`` or ``cpu``.
        work: folder of everything that a section writes.
        until: ``time.monotonic()`` after which no check is started.
    """

    device: str
    work: Path
    until: float

    @property
    def tiny(self) -> bool:
        return self.device == "cpu"


@dataclass
class Section:
    """Results of a section: a row for each check, and one line for each that failed."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Checks:
    """Runs the checks of a section; each result is written to a file at once."""

    def __init__(self, settings: Settings, file: Path) -> None:
        self.settings = settings
        self.file = file
        self.section = Section()
        self.start = time.monotonic()

    def run(self, name: str, check: Callable[[], Mapping[str, Any]]) -> None:
        """Add the row that ``check`` returns, or its failure.

        A value of ``failed`` in the row is a failure of its own.
        """
        start = time.monotonic()
        failure, row = None, {}
        if start > self.settings.until:
            failure = "not run: the time is over"
        else:
            try:
                row = dict(check())
                failure = row.pop("failed", None)
            except Exception as error:
                traceback.print_exc()
                failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        now = time.monotonic()
        if failure is not None:
            self.section.failures.append(f"{name}: {failure}")
        if row:
            self.section.rows.append({"check": name, **row, "seconds": now - start})
        self.section.seconds = now - self.start
        print(f"  {name}: {failure or 'ok'} ({now - start:.1f} s)", flush=True)
        self.file.write_text(json.dumps(asdict(self.section)))


def main(words: Sequence[str]) -> int:
    """Run all sections; returns the exit status."""
    given = dict(word.partition("=")[::2] for word in words)
    if unknown := given.keys() - {"device", "out"}:
        print(f"{', '.join(sorted(unknown))}: expected device=cuda or out=FOLDER", file=sys.stderr)
        return 2
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu_") as work:
        if len(work) > LONGEST:
            print(f"TMPDIR: {work} is too long for sockets, set TMPDIR=/tmp", file=sys.stderr)
            return 2
        out = Path(given.get("out") or tempfile.mkdtemp(prefix="gpu_check_")).resolve()
        out.mkdir(parents=True, exist_ok=True)
        with (
            patch.dict(os.environ, dict.fromkeys(CACHES, work)),
            patch.object(tempfile, "tempdir", work),
        ):
            # CUDA is not started here: a forked process could not use it.
            for module in MODULES:
                try:
                    importlib.import_module(module)
                except ImportError as error:
                    print(f"{module}: {error}", file=sys.stderr)
            settings = Settings(given.get("device", "cuda"), Path(work), start + LIMIT)
            results = {name: _in_a_process(name, settings) for name in SECTIONS}
    failed = any(section.failures for section in results.values())
    content = {name: asdict(section) for name, section in results.items()}
    (out / "gpu_check.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "gpu_check.md").write_text(markdown(results))
    print(f"{'some checks failed' if failed else 'all passed'}: {out / 'gpu_check.md'}")
    return int(failed)


def _in_a_process(name: str, settings: Settings) -> Section:
    print(f"{name}:", flush=True)
    file = settings.work / f"{name.replace(' ', '_')}.json"
    start = time.monotonic()
    process = multiprocessing.get_context("fork").Process(
        target=_section, args=(SECTIONS[name], settings, file)
    )
    process.start()
    process.join(max(0.0, settings.until - start) + GRACE)
    alive = process.is_alive()
    if alive:
        process.kill()
        process.join()
    section = Section(**json.loads(file.read_text())) if file.exists() else Section()
    if alive or process.exitcode:
        how = "was ended, it took too long" if alive else f"ended with status {process.exitcode}"
        section.failures.append(f"{name}: its process {how}")
        print(f"  {section.failures[-1]}", flush=True)
    section.seconds = time.monotonic() - start
    return section


def _section(target: str, settings: Settings, file: Path) -> None:
    folder = settings.work / f"{file.stem}_files"
    folder.mkdir()
    os.chdir(folder)  # relative paths, such as runs/, are below it
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(Checks(settings, file))


def markdown(results: Mapping[str, Section]) -> str:
    """A heading and a table for each section."""
    lines = ["# Checks on a GPU", ""]
    for name, section in results.items():
        lines += [f"## {TITLES[name]}", ""]
        columns = [*dict.fromkeys(column for row in section.rows for column in row)]
        if columns:
            lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
            for row in section.rows:
                cells = (_cell(row.get(column, "")) for column in columns)
                lines.append("| " + " | ".join(cells) + " |")
            lines.append("")
        lines += [f"- **failed**: {failure}" for failure in section.failures]
        lines += [f"{section.seconds:.0f} s.", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
