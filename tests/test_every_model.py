"""Every model on every demo data set that its task can read, from the first step to ONNX."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import research
from research import evaluate, export
from research.config import compose_config, resolved
from research.config.options import options
from research.data.cifar_files import FAMILIES
from research.utils.errors import UserError
from tests.conftest import run
from tests.data.test_cifar import TEST, TRAIN, write_binary

DATA = {
    "demo": ["dataset.demo.train_images=24", "dataset.demo.val_images=12"],
    "cifar10": ["dataset.root=cifar", "dataset.val_images=20"],
    "demo_runs": ["dataset.demo.runs=8", "dataset.demo.frames=5", "dataset.image_size=64"],
    "demo_photo_features": ["dataset.demo.series=12"],
    "demo_photos": ["dataset.demo.series=12", "dataset.image_size=64", "model.backbone=resnet10t"],
    "demo_rgbx": [
        *("dataset.demo.images=32", "dataset.image_size=64", "model.fpn_channels=32"),
        *("model.representation_size=64", "model.rois=16", "model.proposals_train=50"),
    ],
}
CLASSIFIERS = (
    "cspdarknet53", "densenet121", "densenet169", "densenet201", "densenet264",
    "densenet_bc_100_12", "densenet_bc_190_40", "densenet_bc_250_24", "densenet_bc_40_12",
    "efficientvit_m4", "fastnet", "resnet34", "resnet34_compressed", "timm",
)  # fmt: skip
DETECTORS = ("bigdet", "tinydet")
RGBX = "rgbx_mit_b0"
REFUSED = {
    RGBX: r"RGB \+ X detectors cannot be exported",
    "siamese_e2e": "rankers of photos cannot be exported",
    "siamese_frozen": "rankers of photos cannot be exported",
}
"""What export says of those that it does not write."""
NOT_HERE = tuple(f"rgbx_mit_b{number}" for number in range(1, 6))
"""Hundreds of millions of parameters: tests/models/test_rgbx.py steps them without files."""
OFTEN = (
    ("fastnet", "cifar10"),
    ("resnet34_compressed", "demo"),
    ("bigdet", "demo_runs"),
    ("tinydet", "demo_runs"),
    (RGBX, "demo_rgbx"),
    ("siamese_frozen", "demo_photo_features"),
)
"""The rows that every merge goes through: one of each family; the whole table takes minutes."""
TABLE = [
    *((model, dataset) for model in CLASSIFIERS for dataset in ("demo", "cifar10")),
    *((model, "demo_runs") for model in DETECTORS),
    (RGBX, "demo_rgbx"),
    ("siamese_frozen", "demo_photo_features"),
    ("siamese_e2e", "demo_photos"),
]
NAMES = {"timm": "mobilenetv3_small_050"}
LAYERED = tuple(name for name in CLASSIFIERS if name.startswith("densenet"))
"""Exported with few layers: for hundreds of one kind the exporter takes a minute."""


def test_the_table_has_every_model_and_every_demo_data_set() -> None:
    assert {*NOT_HERE, *(model for model, _ in TABLE)} == set(options("model"))
    assert {name for name in options("dataset") if name.startswith("demo")} <= set(DATA)


def _marked(row: tuple[str, str]) -> Any:
    return pytest.param(*row, marks=pytest.mark.long if row in OFTEN else pytest.mark.whole)


@pytest.mark.parametrize(("model", "dataset"), [_marked(row) for row in TABLE])
def test_it_trains_is_judged_kept_loaded_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, dataset: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if dataset == "cifar10":
        few = replace(FAMILIES[10], images={"train": TRAIN, "test": TEST})
        monkeypatch.setitem(FAMILIES, 10, few)
        write_binary(tmp_path / "cifar", 10)
    lines = [
        *(f"model={model}", f"dataset={dataset}", *DATA[dataset], "dataset.batch_size=4"),
        *("epochs=1", "max_train_batches=1", "max_val_batches=1", "device=cpu", "logging=csv"),
    ]
    if model in NAMES:
        lines.append(f"model.name={NAMES[model]}")
    config = resolved(compose_config(lines)[0])
    folder = run(config, model)
    assert json.loads((folder / "summary.json").read_text())["status"] == "FINISHED"
    judged = evaluate.evaluate(folder, "val", "last", "cpu", [])
    assert judged["logged"]
    for name, value in judged["logged"].items():
        assert judged["metrics"][name] == pytest.approx(value, nan_ok=True), name
    kept = [folder / "checkpoints" / name for name in ("last.pt", "final.safetensors")]
    one, two = (research.load(path, device="cpu").model.state_dict() for path in kept)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    if model in REFUSED:
        with pytest.raises(UserError, match=REFUSED[model]):
            export.export(folder, None, "last", None)
        return
    if model in LAYERED:
        layers = ",".join("2" for _ in config["model"]["block_layers"])
        short = resolved(compose_config([*lines, f"model.block_layers=[{layers}]"])[0])
        folder = run(short, f"{model}_short")
    written = export.export(folder, None, "last", None)
    assert written.file.stat().st_size > 0
    assert written.relative <= export.TOLERANCE
