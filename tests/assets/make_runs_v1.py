"""Makes the project folder that tests/test_stored_runs.py goes on with.

Run once, in a clean checkout of commit c79b266 (the last one before the engine was rebuilt), with
one thread: ``OMP_NUM_THREADS=1 python make_runs_v1.py OUT``. It is kept to show how the files came
about; what it wrote must not be made again, since the files stand for those that users have.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path.cwd()
PICTURES = ("dataset=imagefolder", "dataset.train_dirs=[data/pictures/train]")
PICTURES += ("dataset.val_dir=data/pictures/val", "dataset.test_dir=data/pictures/test")
SMALL = ("device=cpu", "logging=csv", "log_every=1", "dataset.batch_size=8", "keep=0")
FASTNET = ("model=fastnet", "model.widths=[4,8,8]", *PICTURES, "dataset.image_size=32", *SMALL)
NARROW = ("model=densenet_bc_40_12", "model.block_layers=[2,2]", "model.growth_rate=4")
NARROW += ("model.initial_features=8", "compression=block_stem", "compression.window=2")

RUNS = {
    "classification": (
        "model=densenet_bc_40_12", "model.block_layers=[2,2]", "model.growth_rate=4",
        "model.initial_features=8", *PICTURES, "dataset.image_size=32", *SMALL, "keep=1",
        "epochs=3", "optimizer.lr=0.02", "tags.paper=first",
    ),
    "timm": (
        "model=timm", "model.name=test_resnet", *PICTURES, "dataset.image_size=32", *SMALL,
        "epochs=1",
    ),
    "coefficients": (
        *NARROW, *SMALL, "dataset=warehouse", "dataset.manifest=stores/coefficients",
        "dataset.image_size=32", "epochs=2", "optimizer=adamw",
    ),
    "tinydet": (
        "model=tinydet", "model.width=4", "dataset=warehouse", "dataset.manifest=stores/frames",
        *SMALL, "epochs=2",
    ),
    "bigdet": (
        "model=bigdet", "model.width=4", "dataset=warehouse", "dataset.manifest=stores/frames",
        *SMALL, "epochs=2", "dataset.folds=3", "dataset.fold=1",
    ),
    "ranking_frozen": (
        "model=siamese_frozen", "model.mlp_hidden_dims=[8]", "dataset=phototriage",
        "dataset.root=data/photos", "dataset.features=[quality]", *SMALL, "epochs=2",
    ),
    "ranking_e2e": (
        "model=siamese_e2e", "model.backbone=test_resnet", "dataset=phototriage",
        "dataset.root=data/photos", "dataset.image_size=64", *SMALL, "epochs=2",
    ),
    "rgbx": (
        "model=rgbx_mit_b0", "model.fpn_channels=16", "model.representation_size=16",
        "dataset=rgbx", "dataset.root=data/rgbx", "dataset.image_size=64",
        "dataset.group_by='seq(\\d+)_'", *SMALL, "dataset.batch_size=2", "epochs=1",
        "max_train_batches=2",
    ),
}  # fmt: skip
INTERRUPTED = (
    *NARROW, "compression=luma_fusion", "compression.source=bitstream", *PICTURES, *SMALL,
    "logging=mlflow", "logging.mlflow.system_metrics=false",
    "dataset.image_size=64", "ema=0.9", "accumulate=2", "scheduler=one_cycle", "optimizer.lr=0.02",
    "dataset.augmentation.mixup=0.2", "epochs=4",
)  # fmt: skip
SWEEP = (*FASTNET, "epochs=2", "optimizer.lr=0.02,0.05", "seed=0,1", "hydra/sweeper/pruner=median")
WEIGHTS = (*FASTNET, "epochs=1", "ema=0.9", "name=weights")
KILLED = """
import os, signal, sys
from research.config import command_line
from research.engine.loss_log import BatchJournal
import train
add, left = BatchJournal.add, [{steps}]
def die(self, *rest):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, *rest)
BatchJournal.add = die
sys.argv = ["train.py", *{words}]
command_line(train.main)
"""


def run(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True)


def killed(steps: int, *words: str) -> None:
    code = KILLED.format(steps=steps, words=list(words))
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": "."})
    assert ended.returncode == -signal.SIGKILL, ended


def rendered() -> None:
    sys.path.insert(0, str(CHECKOUT))
    from PIL import Image

    from research.demos.capture_runs import CaptureDemo
    from research.demos.photos import PhotoDemo
    from research.demos.rgbx import RgbxDemo
    from tests.conftest import make_folders

    for seed, (split, images) in enumerate({"train": 8, "val": 4, "test": 4}.items()):
        make_folders(Path("data/pictures") / split, images, seed=seed)
    PhotoDemo("data/photos", 12, 0).render()
    Path("data/photos/photo_demo.json").unlink()
    for file in Path("data/photos").rglob("*.JPG"):
        photo = Image.open(file)
        photo.load()
        photo.resize((photo.width // 2, photo.height // 2)).save(file, quality=80)
    CaptureDemo("data/captures", 9, 5, 0).render()
    RgbxDemo("data/rgbx", 20, 0, 64).render()


def prepared() -> None:
    for path in ("train.py", "research", "conf"):
        Path(path).symlink_to(CHECKOUT / path)
    prepare = ("-m", "research.prepare")
    run(*prepare, "frames", "data/captures", "stores/frames", "size=64", "max_boxes=4",
        "test=0.2", "shard_samples=16")  # fmt: skip
    run(*prepare, "coefficients", "data/pictures", "stores/coefficients", "image_size=48",
        "compression.window=4", "shard_samples=16")  # fmt: skip
    shutil.copytree("data/captures/run_001/images", "data/frames")
    shutil.rmtree("data/captures")


def trained() -> None:
    for name, words in RUNS.items():
        run("train.py", *words, f"run_dir=runs/{name}")
    run("train.py", *WEIGHTS, "run_dir=runs/weights")
    Path("handed_on").mkdir()
    Path("runs/weights/checkpoints/final.safetensors").rename("handed_on/fastnet.safetensors")
    run("train.py", *[word for word in INTERRUPTED if "mlflow" not in word], "run_dir=runs/whole")
    # In the third epoch of four, after its first batch.
    killed(7, *INTERRUPTED, "run_dir=runs/interrupted")
    # Two trials and an epoch and a batch of the third.
    killed(16, "-m", *SWEEP)


def expected() -> None:
    """What the runs say: of a few files, and after what was interrupted has gone on."""
    import research

    looked_at = {
        "classification": "data/pictures/test",
        "coefficients": "data/pictures/test",
        "tinydet": "data/frames",
        "bigdet": "data/frames",
        "ranking_frozen": "data/photos/train_val/train_val_imgs",
        "ranking_e2e": "data/photos/train_val/train_val_imgs",
    }
    found: dict[str, object] = {}
    for name, source in looked_at.items():
        files = sorted(p for p in Path(source).rglob("*") if p.suffix.lower() in (".jpg", ".png"))
        said = research.load(f"runs/{name}", device="cpu")([str(file) for file in files[:4]])
        found[name] = plain(said)
    files = sorted(Path("data/pictures/test").rglob("*.jpg"))
    found["handed_on"] = plain(
        research.load("handed_on/fastnet.safetensors", device="cpu")([str(f) for f in files[:4]])
    )
    with Path("runs/whole/epoch_metrics.csv").open(newline="") as file:
        found["whole"] = list(csv.DictReader(file))
    Path("expected.json").write_text(json.dumps(found, indent=1) + "\n")


def packed() -> None:
    """Leave out what is large and what no reader asks for."""
    import sqlite3

    from tests.assets import skeleton

    for path in [*Path().rglob("*.lock"), Path("train.py"), Path("conf"), Path("research")]:
        path.unlink()
    for pictures in Path("runs").rglob("pictures"):
        if pictures.parent.name != "classification":
            shutil.rmtree(pictures)
    shutil.rmtree("runs/whole")
    for name in ("timm", "ranking_e2e", "rgbx"):
        for file in list(skeleton.files(Path("runs", name))):
            skeleton.strip(file)
    with sqlite3.connect("runs/mlflow.db") as store:
        Path("runs/mlflow.sql").write_text("\n".join(store.iterdump()) + "\n")
    Path("runs/mlflow.db").unlink()


def plain(said: object) -> object:
    """Tensors, and records of them, as lists of numbers."""
    import torch

    if isinstance(said, torch.Tensor):
        return said.tolist()
    if isinstance(said, dict):
        return {key: plain(value) for key, value in said.items()}
    if isinstance(said, tuple) and hasattr(said, "_fields"):
        return {key: plain(getattr(said, key)) for key in said._fields}
    if isinstance(said, list | tuple):
        return [plain(value) for value in said]
    if hasattr(said, "__dict__"):
        return {key: plain(value) for key, value in vars(said).items()}
    return said


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True)
    os.chdir(sys.argv[1])
    rendered()
    prepared()
    trained()
    expected()
    packed()
