"""Changed checkpoints, weights and run folders, read by every command; a process of its own.

``python -m tests.fuzz_runs FIRST COUNT`` prints what ``fuzz.campaign`` does.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import research
from research import compare, export, leaderboard, reproduce
from research.config import compose_config, resolved
from research.engine import build, checkpoint, initial_weights, run, run_folder, weights_file
from research.sweeps import record
from research.utils import weights
from tests import fuzz
from tests.conftest import verb
from tests.fuzz import Reader
from tests.test_train import assert_same

ASSETS = Path(__file__).parent / "assets" / "runs_v1"
RUN = Path("runs/fuzzed")
WORDS = (
    "dataset=imagefolder", "dataset.train_dirs=[data/pictures/train]", "workers=0",
    "dataset.val_dir=data/pictures/val", "dataset.image_size=32", "batch_size=12",
    "model=densenet_bc_40_12", "model.block_layers=[1,1]", "model.growth_rate=4", "device=cpu",
    "model.initial_features=8",
    "logging=csv", "optimizer=adamw", "epochs=2", "ema=0.9", "scheduler.warmup_epochs=0",
    "save_every_minutes=1e-9", f"run_dir={RUN}",
)  # fmt: skip
IMAGE = Path("data/pictures/test/bars/000.jpg")
TEXTS = ("summary.json", "config.yaml", "overrides.yaml", "environment.json")
TABLES = ("epoch_metrics.csv", "batch_metrics.csv")


class Project:
    """A folder with a trained run whose files are changed, one at a time.

    Args:
        folder: an empty folder, which becomes the working directory.
    """

    def __init__(self, folder: Path) -> None:
        os.chdir(folder)
        self.resumed = -1
        shutil.copytree(ASSETS / "data/pictures", "data/pictures")
        self.environment = run_folder.environment()
        self.config = resolved(compose_config(list(WORDS))[0])
        begin = run.start(self.config, "fuzzed")
        assert begin is not None
        with run.opened(begin):
            run.train(self.config, "fuzzed", WORDS, begin)
        shutil.copytree(RUN, "kept")
        shutil.copytree(RUN, "runs/good")
        self.files = {name: Path("kept", name).read_bytes() for name in (*TEXTS, *TABLES)}
        folder = Path("kept/checkpoints")
        self.points = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.contents = {name: weights.read(folder / name) for name in ("last.pt", "previous.pt")}
        self.kept_weights = load_file(folder / "final.safetensors")
        with safe_open(folder / "final.safetensors", "pt") as file:
            self.header = json.loads(file.metadata()[weights_file.METADATA_KEY])

    def restore(self) -> None:
        """The run as it was."""
        for folder in (RUN, "seen", "again"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree("kept", RUN)

    # -- readers -------------------------------------------------------------------------------

    def resume(self) -> None:
        """Train an epoch; without the commands of Git, and curves are drawn one time in ten."""
        self.resumed, known = self.resumed + 1, self.environment
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(run_folder, "environment", return_value=known))
            stack.enter_context(mock.patch.object(run_folder, "changes", bytes))
            if self.resumed % 10:
                small = Image.new("RGB", (8, 8))
                curves = mock.patch.object(run.pictures, "learning_curves", return_value=small)
                stack.enter_context(curves)
            self.train()

    def train(self) -> None:
        config = {**self.config, "epochs": 3, "resume": str(RUN), "run_dir": None}
        begin = run.start(config, "fuzzed")
        assert begin is not None
        with run.opened(begin):
            run.train(config, "fuzzed", WORDS, begin)

    def resume_auto(self) -> None:
        config = {**self.config, "epochs": 3, "resume": "auto", "run_dir": None}
        found = run_folder.find_unfinished(config, 3)
        if found is not None:
            run.resume(found, config)

    def init_from(self, path: Path) -> None:
        config = {**self.config, "init_from": str(path)}
        build.experiment(config, weights=initial_weights.read(config))

    def pretrained(self, path: Path) -> None:
        build.experiment(
            {**self.config, "model": {**self.config["model"], "pretrained": str(path)}}
        )

    def readers(self, path: Path) -> dict[str, Reader]:
        """Of a checkpoint or a file of weights."""
        words = ["device=cpu", "out=seen"]
        data = ["dataset.train_dirs=[data/pictures/train]", "dataset.val_dir=data/pictures/val"]
        return {
            "load": lambda: research.load(path, device="cpu")([IMAGE]),
            "predict": lambda: verb("predict").main([str(path), str(IMAGE), *words]),
            "evaluate": lambda: verb("evaluate").main([str(path), *data, *words]),
            "export": lambda: export.main([str(path), "out=seen.onnx"]),
            "leaderboard": lambda: leaderboard.main(
                [str(path), "runs/good", "rounds=1", "batch=1", *words]
            ),
            "init_from": lambda: self.init_from(path),
            "pretrained": lambda: self.pretrained(path),
        }

    # -- inputs --------------------------------------------------------------------------------

    def case(self, rng: random.Random) -> tuple[str, Reader]:
        """Change a file, and a reader of it."""
        self.restore()
        kind = rng.choices(
            ["content", "pickle", "bytes", "weights", "weights bytes", "folder"],
            [45, 12, 10, 10, 6, 17],
        )[0]
        if kind == "folder":
            return self.folder(rng)
        if kind.startswith("weights"):
            return self.weights(rng, by_byte=kind == "weights bytes")
        name = rng.choice(list(self.contents))
        path = RUN / "checkpoints" / "last.pt"
        path.unlink()
        if kind == "content":
            torch.save(fuzz.documents(self.contents[name], rng, pickled=True), path)
        else:
            change = fuzz.pickles if kind == "pickle" else fuzz.octets
            path.write_bytes(change(self.points[name], rng))
        for other in RUN.glob("checkpoints/*.pt"):
            if other != path and rng.random() < 0.7:
                other.unlink()
        readers = self.readers(path)
        names = ["resume", "resume=auto", *readers]
        chosen = rng.choices(names, [40, 6, 16, 8, 8, 1, 3, 10, 8])[0]
        if kind == "bytes" and chosen not in ("resume", "resume=auto"):
            return f"{kind}: same", lambda: self.is_same(path, name)
        mine = {"resume": self.resume, "resume=auto": self.resume_auto}
        return f"{kind}: {chosen}", {**mine, **readers}[chosen]

    def is_same(self, path: Path, name: str) -> None:
        """What is read of a file with wrong bytes is what was written, if anything is."""
        assert_same(weights.read(path), self.contents[name])

    def weights(self, rng: random.Random, *, by_byte: bool) -> tuple[str, Reader]:
        path = Path("weights.safetensors")
        if by_byte:
            path.write_bytes(fuzz.octets(self.points["final.safetensors"], rng))

            def is_same() -> None:
                found = checkpoint.load(path)
                assert_same(found["model"], self.kept_weights)

            return "weights bytes: same", is_same
        header, tensors = self.header, self.kept_weights
        if rng.random() < 0.8:
            header = fuzz.documents(header, rng)
        else:
            changed = fuzz.documents(tensors, rng, pickled=True)
            changed = changed if isinstance(changed, dict) else {}
            tensors = {
                str(name)[:99]: tensor.detach().contiguous()
                for name, tensor in changed.items()
                if isinstance(tensor, torch.Tensor)
                and tensor.numel() < 10**6
                and weights.is_dense(tensor)
                and tensor.dtype is not torch.complex64
            }
        text = json.dumps(header)
        if rng.random() < 0.1:
            text = fuzz.octets(text.encode(), rng).decode(errors="replace")
        checksum = weights_file.checksum(tensors, text)
        metadata = {weights_file.METADATA_KEY: text, weights_file.CHECKSUM: checksum}
        save_file({n.replace("\ud800", "?"): t for n, t in tensors.items()}, path, metadata)
        readers = self.readers(path)
        chosen = rng.choice(list(readers) if rng.random() < 0.1 else ["load", "init_from"])
        return f"weights: {chosen}", readers[chosen]

    def folder(self, rng: random.Random) -> tuple[str, Reader]:
        name = rng.choice((*TEXTS, *TEXTS, *TABLES))
        path = RUN / name
        if name in TABLES or rng.random() < 0.3:
            path.write_bytes(fuzz.octets(self.files[name], rng))
        elif name.endswith(".json"):
            path.write_text(json.dumps(fuzz.documents(json.loads(self.files[name]), rng)))
        else:
            changed = fuzz.documents(yaml.safe_load(self.files[name]), rng)
            try:
                path.write_text(yaml.safe_dump(changed), encoding="utf-8", errors="replace")
            except (ValueError, RecursionError):  # too deep, or too large a number
                path.write_bytes(fuzz.octets(self.files[name], rng))
        readers: dict[str, Reader] = {
            "resume": self.resume,
            "resume=auto": self.resume_auto,
            "compare": lambda: compare.main([str(RUN), "out=seen"]),
            "reproduce": lambda: reproduce.main([str(RUN), "out=again"]),
            "sweep": lambda: record._run_keys(Path(RUN)),
            "evaluate": lambda: verb("evaluate").main([str(RUN), "device=cpu"]),
        }
        chosen = rng.choices(list(readers), [3, 3, 3, 2, 1, 1])[0]
        return f"{name}: {chosen}", readers[chosen]


def intact(project: Project) -> dict[str, float]:
    """Seconds that each reader needs for an intact file, which it must accept."""
    mine = {"resume": project.resume, "resume=auto": project.resume_auto}
    readers = {**mine, **project.readers(RUN / "checkpoints" / "last.pt")}
    readers["compare"] = lambda: compare.main([str(RUN), "out=seen"])
    readers["reproduce"] = lambda: reproduce.main([str(RUN), "out=again"])
    seconds = {}
    for name, read in readers.items():
        project.restore()
        verdict = fuzz.judged(read, math.inf)
        assert verdict.outcome == "accepted", (name, verdict)
        seconds[name] = round(verdict.seconds, 2)
    return seconds


def main(first: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        fuzz.campaign(project.case, lambda: intact(project), first, count)
        os.chdir("/")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
