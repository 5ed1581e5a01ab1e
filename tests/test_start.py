"""What a run imports before its first optimizer step, and how the start is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from research.benchmarks.start import TO_FIRST_STEP, Project
from research.utils.errors import UserError
from tests.conftest import ROOT
from tests.golden.configurations import DATA, overrides

HEAVY = {
    "IPython", "av", "faster_coco_eval", "matplotlib", "mlflow", "onnx", "open_clip", "optuna",
    "pandas", "pyjpegio", "scipy", "sklearn", "sqlalchemy", "tensorboard", "timm", "torchmetrics",
    "torchvision",
}  # fmt: skip
PRINTED = 'print("step", flush=True)'
MODULES = """
    import json, sys
    print(json.dumps([name for name in sys.modules if "." not in name]), flush=True)
""".strip()


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
    assert PRINTED in TO_FIRST_STEP
    found = subprocess.run(
        [sys.executable, "-c", TO_FIRST_STEP.replace(PRINTED, MODULES), *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(json.loads(found.stdout.splitlines()[-1]))
    assert {"torch", "numpy"} <= modules
    assert modules & HEAVY == needed


def test_a_start_is_timed_up_to_its_step_and_its_imports_are_counted(tmp_path: Path) -> None:
    project = Project(tmp_path, threads=1)
    assert project.to_step(["-c", "print('step')"]) > 0
    imported = project.imports(["-c", "import json.tool"])
    assert imported["json"] > 0
    assert "decoder" not in imported  # a part of json
    with pytest.raises(UserError, match="failed"):
        project.to_step(["-c", "print('stop')"])
