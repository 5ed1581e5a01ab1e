"""Whole runs, small: what the run folder holds, exact resume, damage, evaluation."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import research
from research.engine import build, checkpoint, run_folder
from research.utils.errors import UserError
from tests.conftest import (
    TINY,
    data_overrides,
    evaluated,
    interrupted_at,
    make_folders,
    picture,
    prepared,
    run,
    trained_epoch,
)

Compose = Callable[..., dict[str, Any]]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(path: Path) -> list[dict[str, str]]:
    clocks = ("epoch_time_sec", "batch_time_sec", "timestamp")
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows(path)]


def test_a_run_folder_has_all_that_is_promised(small: Compose) -> None:
    folder = run(small("epochs=2", "save_every=1", "keep=1"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "FINISHED"
    assert summary["epochs_done"] == 2
    assert len(summary["epochs"]) == 2
    weights = research.load(folder, device="cpu").model.parameters()
    assert summary["parameters"] == sum(tensor.numel() for tensor in weights)
    for name in ("config.yaml", "overrides.yaml", "environment.json", "model_summary.txt"):
        assert (folder / name).stat().st_size > 0
    for name in ("confusion_matrix", "sample_predictions", "learning_curves"):
        with Image.open(folder / "pictures" / f"{name}.png") as image:
            assert image.width > 100
    epochs = rows(folder / "epoch_metrics.csv")
    columns = [
        "epoch",
        "avg_loss",
        "total_loss",
        "epoch_time_sec",
        "learning_rate",
        "is_best",
        "checkpoint_path",
        "timestamp",
    ]
    assert list(epochs[0])[:8] == columns
    assert {"train/loss", "val/loss", "val/top1"} <= set(epochs[0])
    assert (folder / epochs[-1]["checkpoint_path"]).exists()
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {"last.pt", "best.pt", "final.safetensors"} < names
    assert sum(name.startswith("epoch_") for name in names) == 1
    batches = rows(folder / "batch_metrics.csv")
    assert [int(row["batch"]) for row in batches] == [1, 2, 3, 1, 2, 3]
    assert {"epoch", "loss", "cross_entropy", "batch_time_sec", "timestamp"} <= set(batches[0])
    mean = np.mean([float(row["loss"]) for row in batches[:3]])
    assert float(epochs[0]["avg_loss"]) == pytest.approx(mean)
    assert float(epochs[0]["total_loss"]) == pytest.approx(3 * mean)


AVERAGED = (
    "model=resnet34",
    "model.name=resnet10t",
    "compression=none",
    "optimizer=timm",
    "optimizer.name=lion",
    "scheduler=one_cycle",
    "ema=0.9",
    "decay_norms=false",
    "dataset.augmentation.mixup=0.4",
    "dataset.augmentation.policy=trivialaugment",
)


@pytest.mark.parametrize("extra", [(*TINY, "optimizer=adamw"), AVERAGED])
def test_resume_is_exact(small: Compose, monkeypatch: pytest.MonkeyPatch, extra: Any) -> None:
    settings = (*extra, "epochs=4", "optimizer.lr=0.001", "model.drop_rate=0.3")
    whole = run(small(*settings, "run_dir=whole"))

    # The second run is killed in its third epoch, after some of its batches were recorded.
    with interrupted_at(8, monkeypatch):
        run(small(*settings, "run_dir=parts", "log_every=1"))
    assert json.loads(Path("parts/summary.json").read_text())["status"] == "KILLED"
    assert len(rows(Path("parts/batch_metrics.csv"))) == 7
    resumed = run(small(*settings, "run_dir=parts", "log_every=1", "resume=auto"))
    assert resumed == Path("parts")

    one, two = (checkpoint.load(path / "checkpoints" / "last.pt") for path in (whole, resumed))
    for part in ("model", "ema", "optimizer", "scheduler", "scaler", "transform", "rng"):
        assert_same(one[part], two[part])
    for table in ("epoch_metrics.csv", "batch_metrics.csv"):
        assert without_times(whole / table) == without_times(resumed / table)
    assert len(rows(resumed / "batch_metrics.csv")) == 12


def assert_same(one: Any, two: Any) -> None:
    """Equal to the last bit, through any nesting."""
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two


def test_resume_auto_takes_only_the_same_unfinished_run(small: Compose) -> None:
    done = run(small("resume=auto"), "first")
    assert run_folder.find_unfinished(small("resume=auto"), epochs=1) is None
    (done / "mlflow_spool.jsonl").touch()  # records wait: the run is resumed to deliver them
    assert run_folder.find_unfinished(small("resume=auto"), epochs=1) == done
    (done / "mlflow_spool.jsonl").unlink()
    assert run_folder.find_unfinished(small("resume=auto", "epochs=2"), epochs=2) == done
    assert run_folder.find_unfinished(small("resume=auto", "epochs=2", "seed=1"), epochs=2) is None
    with run_folder.run_lock(done):
        assert run_folder.find_unfinished(small("epochs=2"), epochs=2) is None
        with pytest.raises(UserError, match="another process"), run_folder.run_lock(done):
            pass
    longer = run(small("resume=auto", "epochs=2"), "second")
    assert longer == done
    assert [row["epoch"] for row in rows(done / "epoch_metrics.csv")] == ["1", "2"]


def test_evaluate_repeats_the_logged_numbers(small: Compose) -> None:
    folder = run(small("epochs=2"))
    for which in ("best", "last"):
        result = evaluated(folder, "val", which)
        assert result.logged
        assert {name: result.metrics[name] for name in result.logged} == result.logged
    with pytest.raises(UserError, match=r"dataset\.test_dir"):
        evaluated(folder, "test", "best")
    test = evaluated(folder, "test", "best", f"dataset.test_dir={Path('data/val').resolve()}")
    again = evaluated(folder, "val", "best")
    assert test.metrics == again.metrics


@pytest.mark.parametrize("compression", ["none", "block_stem"])
def test_load_gives_the_validation_predictions(small: Compose, compression: str) -> None:
    model = "resnet34" if compression == "none" else "resnet34_compressed"
    folder = run(small(f"model={model}", "model.name=resnet18", f"compression={compression}"))
    loaded = research.load(folder, device="cpu")
    files = sorted(Path("data/val").glob("*/*.jpg"))
    guess = loaded(files).argmax(1)
    truth = torch.tensor([loaded.classes.index(path.parent.name) for path in files])
    logged = json.loads((folder / "summary.json").read_text())["best_value"]
    assert (guess == truth).float().mean().item() == pytest.approx(logged)


def test_early_stopping(small: Compose) -> None:
    # With a learning rate of almost nothing the best epoch is soon behind.
    folder = run(small("epochs=9", "patience=1", "optimizer.lr=1e-12", "monitor=train/loss:max"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped_early"]
    assert summary["epochs_done"] == summary["best_epoch"] + 1 < 9


def test_unknown_monitor_is_refused_before_training(small: Compose) -> None:
    with pytest.raises(UserError, match=r"val/mAP50.*val/top1"):
        run(small("monitor=val/mAP50:max"))


def test_a_loss_that_explodes_ends_the_run_in_one_line(small: Compose) -> None:
    with pytest.raises(UserError, match="no longer finite"):
        run(small("optimizer.lr=1e30", "epochs=3", "run_dir=bad"))
    assert json.loads(Path("bad/summary.json").read_text())["status"] == "FAILED"


def test_init_from_takes_weights_alone(small: Compose) -> None:
    folder = run(small())
    config = small(f"init_from={folder}")
    given = checkpoint.load(folder / "checkpoints" / "best.pt")["model"]
    built = build.experiment(config)
    assert_same(dict(built.state.model.state_dict()), dict(given))
    assert not built.state.optimizer.state_dict()["state"]
    weights = folder / "checkpoints" / "final.safetensors"
    assert_same(
        dict(build.experiment(small(f"init_from={weights}")).state.model.state_dict()),
        dict(checkpoint.load(folder / "checkpoints" / "last.pt")["model"]),
    )
    with pytest.raises(UserError, match="do not fit"):
        build.experiment(small(f"init_from={folder}", "compression.window=2"))


def test_a_run_begun_from_weights_goes_on_without_them(small: Compose) -> None:
    first = run(small(*TINY))
    begun = run(small(*TINY, f"init_from={first}"))
    (first / "checkpoints" / "best.pt").unlink()
    resumed = run(small(*TINY, f"init_from={first}", "epochs=2", "resume=auto"))
    assert resumed == begun
    assert run(small(*TINY, "epochs=3", f"resume={begun}")) == begun
    assert len(rows(begun / "epoch_metrics.csv")) == 3


def damage_folder(folder: Path) -> None:
    """Six files that cannot be read as they are, each wrong in its own way."""
    whole = (folder / "000.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not a picture\n" * 20)
    picture("bars", 7).convert("CMYK").save(folder / "cmyk.jpg")
    picture("bars", 8).resize((1, 1)).save(folder / "dot.jpg")
    frame = whole.index(b"\xff\xc0")
    lie = whole[: frame + 5] + b"\xff\xdc\xff\xdc" + whole[frame + 9 :]
    (folder / "oversized.jpg").write_bytes(lie)


@pytest.mark.parametrize("source", ["pixels", "bitstream"])
def test_damaged_files_are_counted_by_kind(small: Compose, source: str) -> None:
    damage_folder(Path("data/train/bars"))
    # 26 files survive the index; the batch size divides them, so that each is read every epoch.
    folder = run(small("epochs=2", f"compression.source={source}", "batch_size=13"))
    for row in rows(folder / "epoch_metrics.csv"):
        counts = {key: row[key] for key in row if key.startswith(("train/left", "train/fall"))}
        assert counts == {
            "train/left_out/empty": "1",
            "train/left_out/not_an_image": "1",
            "train/left_out/oversized": "1",
            "train/left_out/too_small": "1",
            "train/left_out/truncated": "1",
            "train/fallback/cmyk": "1",
        }


def test_nothing_readable_ends_in_one_line(small: Compose, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "bad" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bad" / "a" / f"{number}.jpg").write_text("no")
    with pytest.raises(UserError, match="no readable image in the train split") as caught:
        run(small(f"dataset.train_dirs=[{tmp_path / 'bad'}]", "dataset.val_dir=null"))
    assert "\n" not in str(caught.value)
    assert "3 not_an_image" in str(caught.value)
    # Headers that are whole, with nothing behind them.
    make_folders(tmp_path / "cut", 4)
    for path in (tmp_path / "cut").glob("*/*.jpg"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match="no sample of the training split could be read"):
        run(small(f"dataset.train_dirs=[{tmp_path / 'cut'}]", "compression.source=bitstream",
                  "compression=reconstruction"))  # fmt: skip


def test_order_and_augmentation_do_not_depend_on_workers(small: Compose) -> None:
    batches = []
    for workers in (0, 2):
        config = small(f"workers={workers}")
        data = prepared(config)
        loader = build.loader(config, data, "train", torch.device("cpu"), train=True)
        batches.append([(b.index, b.inputs) for b in loader.epoch(3)])  # type: ignore[attr-defined]
    for (index, inputs), (index_2, inputs_2) in zip(*batches, strict=True):
        assert torch.equal(index, index_2)
        assert torch.equal(inputs, inputs_2)


def test_accumulation_equals_the_large_batch(small: Compose) -> None:
    # Without batch statistics in play, four batches of 6 give the gradient of one of 24: to the
    # last digits of float64, so that nothing but the order of the additions can differ.

    states = []
    for batch, accumulate in ((24, 1), (6, 4)):
        config = small(
            f"batch_size={batch}",
            f"accumulate={accumulate}",
            "grad_clip=0.5",
            "dataset.random_crop=false",
            "dataset.random_flip=false",
        )
        built = build.experiment(config)
        built.state.model.double()
        built.state.transform = Doubled(built.state.transform)  # type: ignore[assignment]
        for module in built.state.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0
                module.track_running_stats = False
                module.forward = module_eval(module)  # type: ignore[method-assign]
        began = {name: tensor.clone() for name, tensor in built.state.model.state_dict().items()}
        for _ in range(2):
            trained_epoch(built)
        states.append(built.state.model.state_dict())
    assert not torch.allclose(
        states[0]["backbone.fc.weight"], began["backbone.fc.weight"], atol=1e-4
    )
    for name in states[0]:
        assert states[0][name].dtype in (torch.float64, torch.int64)
        assert torch.allclose(states[0][name], states[1][name], rtol=0, atol=1e-12), name


class Doubled(torch.nn.Module):
    """A device transform whose inputs come out in float64."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, batch: Any, generator: Any) -> Any:
        made = self.transform(batch, generator)
        return replace(made, inputs=type(made.inputs)(*(x.double() for x in made.inputs)))


def module_eval(norm: torch.nn.BatchNorm2d) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return torch.nn.functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False
        )

    return forward


def test_held_out_share_is_seeded_and_disjoint(small: Compose, folders: Path) -> None:
    def splits(seed: int) -> tuple[set[Path], set[Path]]:
        config = small("dataset.val_dir=null", "dataset.val_fraction=0.25", f"seed={seed}")
        data = prepared(config)
        return set(data.splits["train"].files), set(data.splits["val"].files)

    train, val = splits(0)
    assert (len(train), len(val)) == (18, 6)
    assert not train & val
    assert splits(0) == (train, val)
    assert splits(1)[1] != val


def test_limits_spread_over_classes(small: Compose) -> None:
    config = small("dataset.max_train_images=7", "dataset.max_val_images=3")
    data = prepared(config)
    counts = np.bincount(data.splits["train"].labels)
    assert counts.sum() == 7
    assert counts.max() - counts.min() <= 1
    assert sorted(data.splits["val"].labels) == [0, 1, 2]


def test_class_folders_must_fit_together(small: Compose, tmp_path: Path) -> None:
    make_folders(tmp_path / "more" / "train", 2)
    two = f"dataset.train_dirs=[{tmp_path / 'data/train'},{tmp_path / 'more/train'}]"
    assert len(prepared(small(two)).splits["train"].files) == 30
    (tmp_path / "more/train/spots").rename(tmp_path / "more/train/sports")
    with pytest.raises(UserError, match="class folder 'sports'"):
        prepared(small(two))
    # Disjoint class folders are a data set cut up by classes.
    for name in ("bars", "field"):
        (tmp_path / "more/train" / name).rename(tmp_path / "more/train" / f"new_{name}")
    assert len(prepared(small(two)).classes) == 6
    (tmp_path / "data/val/other").mkdir()
    picture("bars", 1).save(tmp_path / "data/val/other/0.png")
    with pytest.raises(UserError, match="other"):
        prepared(small())


def test_overrides_name_real_places(folders: Path) -> None:
    assert all("=" in word for word in data_overrides(folders))
