"""Before its first optimizer step a run imports torch and the model's library only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.golden.configurations import DATA, overrides

HEAVY = {
    "IPython", "av", "faster_coco_eval", "matplotlib", "mlflow", "onnx", "open_clip", "optuna",
    "pandas", "pyjpegio", "scipy", "sklearn", "sqlalchemy", "tensorboard", "timm", "torchmetrics",
    "torchvision",
}  # fmt: skip
SCRIPT = """
import json, os, sys
import train
from research.config import command_line

def imported(*ignored):
    print(json.dumps([name for name in sys.modules if "." not in name]), flush=True)
    os._exit(0)

def stopped_at_the_first_step(*arguments):
    from research.engine.run import EpochEnd
    EpochEnd.step = imported
    original(*arguments)

original, train.train = train.train, stopped_at_the_first_step
command_line(train.main)
"""


@pytest.mark.parametrize(
    ("name", "more", "needed"),
    [
        ("dct_from_pixels", (), {"timm", "torchvision"}),
        ("fastnet_bf16", ("ema=null", "ema_warmup=false"), set()),  # timm has the average
        ("tinydet", (), {"torchvision"}),
    ],
)
def test_only_what_the_model_needs_is_imported_before_the_first_step(
    name: str, more: tuple[str, ...], needed: set[str], tmp_path: Path
) -> None:
    for folder in ("data", "stores"):
        (tmp_path / folder).symlink_to(DATA / folder)
    # The first record connects to MLflow: it comes later.
    words = [*overrides(name), *more, "logging=mlflow", "log_every=100", "run_dir=runs/new"]
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(json.loads(found.stdout.splitlines()[-1]))
    assert {"torch", "numpy"} <= modules
    assert modules & HEAVY == needed
