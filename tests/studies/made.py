"""Studies and records for tests, made without a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from research.studies import record
from research.studies.definition import StudyDefinition, StudyRun, load_study
from research.studies.record import (
    Hardware,
    RecordedBaseline,
    RecordedEvaluation,
    StudyRecord,
)

DEFINITION: dict[str, Any] = {
    "title": "Two networks",
    "question": "Which is better?",
    "protocol": "The last epoch.",
    "limits": ["Anything."],
    "hours": 0.5,
    "metric": "top1",
    "also": ["loss"],
    "reference": "narrow",
    "seeds": [0, 1, 2],
    "evaluate": {"split": "test", "checkpoint": "last"},
    "costs": ["parameters", "macs", "bytes_per_image", "ms_per_image", "seconds"],
    "picture": ["macs"],
    "data": {"pictures": "folders train and val of CLASS/image"},
    "base": {"model": "fastnet", "dataset.root": "${data.pictures}/train"},
    "arms": {
        "narrow": {"about": "4 channels"},
        "wide": {"settings": {"model.widths": [8, 16, 16]}, "hours": 1.0},
    },
}

ARMS_OF_THREE: dict[str, Any] = {**DEFINITION["arms"], "deep": {"settings": {"epochs": 3}}}


def define(docs: Path, name: str = "nets", **changes: Any) -> StudyDefinition:
    """Write a definition, and a template with its line; entries that are None are left out."""
    content = {**DEFINITION, **changes}
    path = docs / "studies" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False)
    )
    template = path.with_name("results.md")
    lines = [f"<!-- study {each.stem} -->" for each in sorted(path.parent.glob("*.yaml"))]
    template.write_text("# Results\n\n" + "\n\n".join(lines) + "\n")
    return load_study(path)


def made(run: StudyRun, value: float | None, **more: Any) -> StudyRecord:
    """A record of a run with a value of its metric."""
    study = run.study
    fields: dict[str, Any] = {
        "study": study.name,
        "arm": run.arm,
        "seed": run.seed,
        "fold": run.fold,
        "definition": run.definition,
        "commands": [f"python train.py seed={run.seed}"],
        "seconds": {"training": 100.0, "total": 120.0},
        "hardware": Hardware(cpu="AMD EPYC", cores=2, threads=1),
        "python": "3.11.7",
        "packages": {"torch": "2.14.1"},
        "date": "2026-11-30",
        "samples": {"train": 400, "val": 40, "test": 50},
        "monitor": ["val/top1", "max"],
        "best_epoch": 2,
        "epochs": {"epoch_time_sec": [75.0, 50.0], "val/top1": [0.25, 0.5]},
        "evaluation": RecordedEvaluation(
            "test", "last", 2, 50, {study.metric: value, "loss": 1.25}
        ),
        "costs": {
            "parameters": 12345,
            "macs": 2_500_000,
            "bytes_per_image": 3072.0,
            "ms_per_image": 125.0,
        },
        "commit": "0123456789abcdef",
    }
    return StudyRecord(**{**fields, **more})


def keep(docs: Path, run: StudyRun, value: float | None, **more: Any) -> Path:
    """Write a record; returns its file."""
    path = record.path_of(docs, run)
    record.write(path, made(run, value, **more))
    return path


def keep_all(docs: Path, study: StudyDefinition, values: Mapping[str, list[float]]) -> None:
    """Write the records of arms, a value for each of the first seeds."""
    for run in study.runs():
        place = study.seeds.index(run.seed)
        if place < len(values.get(run.arm, [])):
            keep(docs, run, values[run.arm][place])


def baseline(*groups: tuple[int, float, float]) -> RecordedBaseline:
    """Groups of frames beside the constant box."""
    names = {"groups": "runs", "units": "frames", "metric": "mAP50"}
    return RecordedBaseline(
        {**names, "values": "mean IoU", "baseline": "constant box"}, list(groups)
    )
