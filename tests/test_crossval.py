from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research import crossval, prepare
from research.comparison.statistics import group_interval
from research.config import compose_config
from research.config.names import run_name
from research.crossval import Fold
from research.data.folds import FoldColumns, FoldResult
from research.data.pairs.source import PAIRS
from research.data.warehouse.dataset import FRAMES
from research.utils.errors import UserError
from tests.conftest import run
from tests.data.pairs.test_source import SERIES, write_photos
from tests.test_prepare import make_runs


def fold(
    name: str,
    groups: list[str],
    values: list[float],
    baseline: list[float],
    columns: FoldColumns = FRAMES,
    config: Mapping[str, Any] | None = None,
) -> Fold:
    result = FoldResult(columns, groups, np.array(values), np.array(baseline))
    return Fold(Path(name), 0.5, len(values) + 1, result, config or {})


def trained(*overrides: str) -> str:
    """A fold's run folder."""
    words = [*overrides, "epochs=1", "logging=csv", "device=cpu"]
    composed = compose_config(words)
    return str(run(composed.config, run_name(composed.config, composed.choices, words)))


def cells(text: str) -> list[list[str]]:
    """Those of a table; ``prepare.main`` has left a log on standard output."""
    lines = (line for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_interval_is_that_of_resampled_groups() -> None:
    rng = np.random.default_rng(1)
    groups = [f"run_{number}" for number in range(9) for _ in range(3 + number)]
    values = rng.normal(0.1, 0.05, 9).repeat(np.arange(3, 12)) + rng.normal(0, 0.01, len(groups))
    low, high = group_interval(values, groups) or (0, 0)
    members = [np.flatnonzero(np.array(groups) == name) for name in sorted(set(groups))]
    rng = np.random.default_rng(2)
    means = []
    for _ in range(4000):
        chosen = np.concatenate([members[k] for k in rng.integers(0, 9, 9)])
        means.append(values[chosen].mean())
    np.testing.assert_allclose([low, high], np.percentile(means, [2.5, 97.5]), atol=2e-3)
    # Frames alone, taken for independent, would promise far too much.
    assert high - low > 3 * 2 * 1.96 * values.std() / len(values) ** 0.5 / 2


def test_one_group_has_no_interval() -> None:
    """The bootstrap would promise that its mean is exact."""
    every = crossval.table([fold("a", ["x", "x"], [0.5, 0.7], [0.1, 0.1])]).rows[-1]
    assert every[-1] == "+0.500"


def test_the_same_frames_twice_are_no_cross_validation() -> None:
    folds = [fold("a", ["x", "y"], [0.5, 0.5], [0.1, 0.1]), fold("b", ["y"], [0.5], [0.1])]
    with pytest.raises(UserError, match="y is in the test splits of a and b"):
        crossval.table(folds)


def test_frames_and_pairs_are_not_mixed() -> None:
    folds = [fold("a", ["x"], [0.5], [0.1]), fold("b", ["y"], [1], [0], PAIRS)]
    with pytest.raises(UserError, match=r"^a is evaluated on frames, b on pairs; pass runs of one"):
        crossval.table(folds)


def test_what_is_no_cross_validation_of_one_recipe_is_said() -> None:
    def made(number: int, *words: str, folds: int = 3) -> Fold:
        own = ("experiment=tinydet_folds", "dataset.manifest=store", f"dataset.folds={folds}")
        more = (f"dataset.fold={number}", f"seed={number}", f"workers={number}")
        config = compose_config([*own, *more, *words]).config
        return fold(f"f{number}", [str(number)], [0.5], [0.1], config=config)

    assert not [*crossval.remarks([made(0), made(2), made(1)])]
    [line] = crossval.remarks([made(0), made(2, folds=4), made(1), made(2)])
    assert line == "f0 and f2 differ in settings (dataset.folds: 3 → 4)"
    changed, missing = crossval.remarks([made(0), made(2, "epochs=2")])
    assert changed.startswith("f0 and f2 differ in settings (epochs: ")
    assert missing == "dataset.fold=1 of 3 folds is missing: the last row is of the others"


@pytest.mark.whole
def test_of_real_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path / "runs_of_frames", runs=5, frames=4)
    prepare.main(["frames", "runs_of_frames", "store", "size=64", "workers=1"])
    store = ("experiment=tinydet_folds", "dataset.manifest=store", "dataset.folds=3")
    folders = [trained(*store, f"dataset.fold={number}", "model.width=4") for number in range(3)]
    capsys.readouterr()
    crossval.main([*folders, "device=cpu"])
    head, _, *folds, every = cells(capsys.readouterr().out)
    assert head[1:4] == ["groups", "frames", "n"]
    assert head[4:] == ["mAP50", "mean IoU", "constant box", "difference"]
    # 5 runs of 4 frames, of which the first is empty.
    assert len(folds) == 3
    assert sum(int(row[2]) for row in folds) == int(every[2]) == 15
    assert sum(int(row[3]) for row in folds) == int(every[3]) == 20
    assert every[:2] == ["all", "5"]
    assert float(every[6]) == pytest.approx(1.0, abs=0.01)  # all boxes are the same box
    assert "[" in every[7]


@pytest.mark.long
def test_of_real_folds_of_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_photos(tmp_path / "photos")
    with (root / "train_val" / "val_pairlist.txt").open("a") as file:
        file.write("4 1 3 0.9 1 3\n")  # with 0.1 before a tie, which nobody can be right about
    folders = [
        trained(
            "experiment=phototriage_folds",
            f"dataset.root={root}",
            "dataset.features=[quality]",
            "dataset.folds=3",
            f"dataset.fold={number}",
            f"name=fold{number}",
        )
        for number in range(2)
    ]
    pictures = Path(folders[0]) / "pictures"
    drawn = {path.name.partition("_epoch")[0] for path in pictures.iterdir()}
    assert len({name for name in drawn if name.startswith(("ranked", "confident"))}) == 2
    capsys.readouterr()
    crossval.main([*folders, "device=cpu"])
    printed = capsys.readouterr()
    assert "dataset.fold=2 of 3 folds is missing" in " ".join(printed.err.split())
    assert "differ in settings" not in printed.err
    head, _, *folds, every = cells(printed.out)
    assert head[1:5] == ["series", "pairs", "n", "constant_accuracy"]
    assert head[5:] == ["pair accuracy", "sharper photo", "difference"]
    assert [row[0].rpartition("_")[2] for row in folds] == ["fold0", "fold1"]
    assert sum(int(row[2]) for row in folds) == int(every[2]) == 2 * SERIES - 1
    assert every[:2] == ["all", str(2 * SERIES // 3)]
    assert float(every[6]) == 1  # speckles are sharp, and preferred
    difference = float(every[5]) - 1
    assert every[7].startswith(f"{difference:+.3f} [")


@pytest.mark.parametrize(
    ("words", "reported"),
    [([], "RUN folders"), (["x", "trsut=a"], "trust"), (["x", "checkpoint=worst"], "allowed")],
)
def test_mistakes(words: list[str], reported: str) -> None:
    with pytest.raises(UserError, match=reported):
        crossval.main(words)


def test_a_classifier_has_no_folds_of_frames(small: Callable[..., dict[str, Any]]) -> None:
    folder = run(small())
    with pytest.raises(UserError, match="its data set imagefolder has no baseline"):
        crossval.main([str(folder), "device=cpu"])
