"""Run folders as a run leaves them, without a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from research.comparison.collect import RecordedRun
from research.comparison.page import page
from research.comparison.verdicts import compare
from research.config.keys import setting_values
from research.tracking.files import csv_text


def config(model: str = "resnet34", lr: float = 0.1, seed: int = 0, **other: Any) -> dict[str, Any]:
    """A resolved configuration, as small as one can be."""
    return {
        "name": None,
        "tags": {},
        "seed": seed,
        "epochs": 3,
        "device": "auto",
        "model": {"_target_": f"research.models.{model}", "name": model},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": lr},
        **other,
    }


def record(
    folder: Path,
    settings: dict[str, Any],
    top1: Sequence[float],
    *,
    overrides: Sequence[str] = (),
    status: str = "FINISHED",
    parameters: int = 1000,
    monitor: tuple[str, str] = ("val/top1", "max"),
    n: int | None = 480,
    global_batch: int | None = None,
    data: str = "",
) -> Path:
    """A run with a value of ``val/top1`` an epoch; ``val/loss`` is 1 minus it.

    ``n`` is None for a run of an earlier version, which did not count its samples; so is
    ``global_batch``, and ``data``, the hash of its data, is empty.
    """
    folder.mkdir(parents=True)
    rows = [
        {
            "epoch": epoch,
            "epoch_time_sec": 2.0,
            "is_best": True,
            "timestamp": "2026-01-01T00:00:00.000+00:00",
            "train/loss": 1.1 - value,
            "val/loss": 1 - value,
            "val/top1": value,
            **({} if n is None else {"train/n": 2040, "val/n": n}),
        }
        for epoch, value in enumerate(top1, 1)
    ]
    best = max(range(len(top1)), key=top1.__getitem__)
    values = {"val/top1": top1[best], "val/loss": 1 - top1[best]}
    summary = {
        "status": status,
        "name": folder.name,
        "model": settings["model"]["name"],
        "parameters": parameters,
        "monitor": list(monitor),
        **({} if n is None else {"unit": "images", "best_n": n}),
        **({} if global_batch is None else {"global_batch": global_batch}),
        "epochs_done": len(top1),
        "best_epoch": best + 1,
        "best_value": values[monitor[0]],
        "total_time_sec": 2.0 * len(top1),
        "configuration": settings,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (folder / "epoch_metrics.csv").write_text(csv_text(list(rows[0]), rows))
    if data:
        environment = {"data": {"name": "photos", "hash": data}}
        (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def study(root: Path) -> Path:
    """Two models, three seeds each: 0.90, 0.91, 0.93 and 0.898, 0.912, 0.925 at their best."""
    for model, values in (("resnet34", (0.9, 0.91, 0.93)), ("densenet121", (0.898, 0.912, 0.925))):
        for seed, best in enumerate(values):
            record(
                root / f"{model}_{seed}",
                config(model, seed=seed),
                [0.5, best, best - 0.01],
                overrides=[f"model={model}", f"seed={seed}"],
                parameters=len(model) * 1000,
            )
    return root


def many(count: int, seeds: int = 4, epochs: int = 60) -> list[RecordedRun]:
    """As many runs as after a large sweep: groups of some seeds with six curves, without files."""
    drawn = np.random.default_rng(0)
    runs = []
    for number in range(count):
        group, seed = divmod(number, seeds)
        top1 = 0.5 + 0.3 * (1 - np.exp(-np.arange(epochs) / 15)) + drawn.normal(0, 0.01, epochs)
        top1 += 0.1 * np.sin(group)
        best = int(top1.argmax())
        settings = config(("resnet34", "densenet121")[group % 2], 0.001 * (1 + group), seed)
        runs.append(
            RecordedRun(
                folder=Path("/runs") / f"trial_{number:04d}",
                status="FINISHED",
                model=settings["model"]["name"],
                seed=seed,
                monitor=("val/top1", "max"),
                best_epoch=best + 1,
                best_value=float(top1[best]),
                settings=dict(setting_values(settings)),
                overrides=[],
                epochs=list(range(1, epochs + 1)),
                curves={
                    f"{split}/{name}": (top1 - drawn.random(epochs) / 50).tolist()
                    for split in ("train", "val")
                    for name in ("top1", "top5", "loss")
                },
                results={},
                counts={"train/n": 2040, "val/n": 480},
                unit="images",
                costs={
                    "parameters": 1e6 * (1 + group % 40),
                    "seconds": 100 + 10 * group + float(drawn.normal()),
                    "epochs": epochs,
                    "latency_ms": 1 + group % 17 + 0.1 * float(drawn.normal()),
                },
                data="",
            )
        )
    return runs


def many_runs_page(path: Path, count: int = 1000) -> Path:
    """The page that compares ``many`` runs."""
    result = compare(many(count), "val/top1", "max", ("model", "optimizer.lr"), "", 0.95, {})
    path.write_text(page(result, f"{count} runs", "today", [], ["a note"], path.parent))
    return path
