"""Damaged checkpoints are found, and answered by the one before; leftovers of kills are removed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from research.engine import checkpoint, predictor, weights_file
from research.engine import run as engine_run
from research.engine.checkpoint import Checkpoints
from research.utils import files, weights
from research.utils.errors import Damaged, UserError
from tests.conftest import TINY, run, user_error
from tests.test_train import assert_same, without_times

Compose = Callable[..., dict[str, Any]]
CONTENT = {
    "format": 2, "model": {"a": torch.arange(5.0), "b": torch.zeros(2, 3, dtype=torch.int64)},
    "history": [{"x": 1.5}], "pair": (1, None), "text": "é",
}  # fmt: skip


def flips(data: bytes, count: int) -> Iterator[bytes]:
    """The data with one wrong bit, anywhere."""
    for bit in random.Random(0).sample(range(8 * len(data)), count):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        yield bytes(wrong)


def test_no_flipped_bit_of_a_checkpoint_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(CONTENT, path)
    taken = 0
    for wrong in flips(path.read_bytes(), 400):
        path.write_bytes(wrong)
        try:
            found = weights.read(path)
        except Damaged:
            continue
        taken += 1  # padding, dates
        assert_same(found, CONTENT)
    assert 100 < taken < 250


def test_no_flipped_bit_of_the_weights_is_taken(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    data = (trained / "checkpoints/final.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    whole = checkpoint.load(trained / "checkpoints/final.safetensors")
    for wrong in [
        *flips(data[:header], 60),
        *(data[:header] + w for w in flips(data[header:], 10)),
    ]:
        path.write_bytes(wrong + data[len(wrong) :])
        try:
            found = checkpoint.load(path)
        except UserError:
            continue
        assert_same(found, whole)


def test_weights_without_their_checksum_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    text = json.dumps({"format": 2, weights_file.CHECKSUM: True, "transform": {}})
    save_file({"w": torch.zeros(3)}, path, {weights_file.METADATA_KEY: text})
    with user_error("checkpoint", "a.safetensors: damaged file (its metadata or checksum)"):
        checkpoint.load(path)


# -- the one before ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A project with a run of two epochs, saved after every step, and its configuration."""
    from research.config import compose_config, resolved
    from tests.conftest import SMALL, data_overrides, make_folders

    root = tmp_path_factory.mktemp("kept")
    make_folders(root / "data" / "train", 4)
    make_folders(root / "data" / "val", 2, seed=1)
    words = [*SMALL, *data_overrides(root / "data"), *TINY, "epochs=2", "save_every_minutes=1e-9"]
    words += ["batch_size=6", "run_dir=runs/a", "keep=2"]
    config = resolved(compose_config(words)[0])
    before = Path.cwd()
    os.chdir(root)
    run(config)
    os.chdir(before)
    return root, config


@pytest.fixture
def project(
    kept: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A copy of the project, to be changed; the configuration of one more epoch."""
    shutil.copytree(kept[0] / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return {**kept[1], "epochs": 3, "resume": "runs/a", "run_dir": None}


@pytest.fixture
def trained(kept: tuple[Path, dict[str, Any]]) -> Path:
    return kept[0] / "runs/a"


FOLDER = Path("runs/a/checkpoints")
LAST = FOLDER / "last.pt"
DAMAGE: dict[str, Callable[[], object]] = {
    "missing": lambda: None,
    "empty": LAST.touch,
    "cut": lambda: LAST.write_bytes((FOLDER / "best.pt").read_bytes()[:-200]),
    "zeros": lambda: LAST.write_bytes(bytes(5000)),
    "text": lambda: LAST.write_text("<html>not found</html>" * 9),
    "a pipe": lambda: os.mkfifo(LAST),
    "a folder": LAST.mkdir,
    "a link to nothing": lambda: LAST.symlink_to("nowhere"),
    "a link to itself": lambda: LAST.symlink_to("last.pt"),
    "huge": lambda: os.truncate(os.open(LAST, os.O_CREAT | os.O_RDWR), 2**30),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_answered_by_the_one_before(
    damage: str, project: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    LAST.unlink()
    DAMAGE[damage]()
    path, content = checkpoint.load_newest(Path("runs/a"))
    assert (content["state"]["epoch"], content["state"]["step"]) == (2, 4)
    (message,) = caplog.messages
    assert "last.pt" in message
    assert f"resuming from {path}, after epoch 2, step 4" in message
    # A command for this file itself names one that is intact.
    with user_error("checkpoint", "last.pt", f"use {FOLDER}/previous.pt, which is intact"):
        predictor.load(Path("runs/a"), "last")
    assert predictor.load(FOLDER / "previous.pt", "last")


def damage_in_place(path: Path, at: float = 0.5) -> None:
    """64 wrong bytes, more than the padding between two records, in all names of a file."""
    data = bytearray(path.read_bytes())
    start = int(len(data) * at)
    data[start : start + 64] = bytes(byte ^ 1 for byte in data[start : start + 64])
    with path.open("r+b") as file:
        file.write(data)


def leftovers(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of the user, and temporary files of a killed process."""
    left = [
        folder / ".summary.json.a1b2c3d4", folder / ".mlflow_run_id.abcdefg_",
        FOLDER / ".last.pt.x2345678", folder / "pictures/.learning_curves.png.12345678",
    ]  # fmt: skip
    kept = [
        folder / ".env.template", folder / ".config.yaml.swp", folder / "notes.md.12345678",
        FOLDER / "mine.last.pt.12345678", folder / ".lock",
    ]  # fmt: skip
    for path in (*left, *kept):
        path.touch()
    return kept, left


def test_a_run_continues_exactly_from_the_one_before(
    project: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Weights and rows are those of a run whose last checkpoint was intact."""
    shutil.copytree("runs/a", "runs/b")
    data = LAST.read_bytes()
    for path in checkpoint.paths(Path("runs/a")):
        if path.read_bytes() == data:  # its other names
            damage_in_place(path)
    kept, left = leftovers(Path("runs/a"))
    run(project)
    assert not [path for path in left if path.exists()]
    assert all(path.exists() for path in kept)
    assert "runs/a/checkpoints/last.pt: damaged file (" in caplog.text
    assert "previous.pt, after epoch 1, step 4" in caplog.text
    run({**project, "resume": "runs/b"})
    one, two = (checkpoint.load(Path(f"runs/{name}/checkpoints/last.pt")) for name in "ab")
    for part in ("model", "optimizer", "scheduler", "rng"):
        assert_same(one[part], two[part])
    for table in ("epoch", "batch"):
        rows = [without_times(Path(f"runs/{name}/{table}_metrics.csv")) for name in "ab"]
        assert rows[0] == rows[1]
    for path in checkpoint.paths(Path("runs/a")):
        weights.check(path)


def test_what_is_saved_next_does_not_keep_the_damaged_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1, 0)
    for epoch in (1, 2):
        checkpoints.save({"epoch": epoch}, "last.pt", is_best=False)
    damage_in_place(tmp_path / "last.pt")
    again = Checkpoints(tmp_path, 1, 0, newest=tmp_path / "previous.pt")
    again.save({"epoch": 2}, "last.pt", is_best=False)
    assert weights.read(tmp_path / "previous.pt")["epoch"] == 1
    assert weights.read(tmp_path / "last.pt")["epoch"] == 2
    with pytest.raises(TypeError):  # nothing is written: the one before stays as well
        again.save({"epoch": (n for n in ())}, "last.pt", is_best=False)
    assert [weights.read(path)["epoch"] for path in sorted(tmp_path.glob("*.pt"))] == [2, 1]


def test_a_run_without_an_intact_checkpoint(
    project: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for path in checkpoint.paths(Path("runs/a")):
        path.write_bytes(b"")
    hint = "start a new run, or delete runs/a to use this folder again"
    with user_error("checkpoint", "runs/a: none of its checkpoints is intact", "last.pt", hint):
        engine_run.start(project, "a")
    # It does not stop another run.
    begin = engine_run.start({**project, "resume": "auto"}, "a")
    assert begin is not None
    assert begin.last is None
    assert "resume=auto ignores runs/a, which is damaged: " in caplog.text


def test_a_refused_checkpoint_is_not_answered_by_another(project: dict[str, Any]) -> None:
    """It is not damaged: the others would be refused as well, or should not be used unasked."""
    content = torch.load(LAST, weights_only=True)
    LAST.unlink()
    torch.save({**content, "hook": Path("x")}, LAST)
    with user_error("checkpoint", "last.pt: refused, it holds pickled objects"):
        engine_run.start(project, "a")


# -- leftovers -----------------------------------------------------------------------------------


def test_leftovers_are_of_killed_processes(tmp_path: Path) -> None:
    """What ``write_atomic`` leaves when its process is killed is what is removed."""
    script = (
        "import os, sys; from pathlib import Path; from research.utils.files import write_atomic\n"
        "write_atomic(Path(sys.argv[1]), lambda path: os.kill(os.getpid(), 9))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "last.pt"], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".last.pt.")
    files.remove_leftovers(tmp_path, name="best.pt")
    assert left.exists()
    files.remove_leftovers(tmp_path)
    assert not left.exists()
