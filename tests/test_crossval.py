from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research import crossval, prepare
from research.config import compose_config, resolved
from research.crossval import Fold
from research.errors import UserError
from tests.conftest import run
from tests.test_prepare import make_runs


def fold(name: str, groups: list[str], iou: list[float], constant: list[float]) -> Fold:
    return Fold(Path(name), {"mAP50": 0.5}, groups, np.array(iou), np.array(constant))


def test_the_interval_is_that_of_resampled_groups() -> None:
    rng = np.random.default_rng(1)
    groups = [f"run_{number}" for number in range(9) for _ in range(3 + number)]
    values = rng.normal(0.1, 0.05, 9).repeat(np.arange(3, 12)) + rng.normal(0, 0.01, len(groups))
    low, high = crossval.interval(values, groups)
    members = [np.flatnonzero(np.array(groups) == name) for name in sorted(set(groups))]
    rng = np.random.default_rng(2)
    means = []
    for _ in range(4000):
        chosen = np.concatenate([members[k] for k in rng.integers(0, 9, 9)])
        means.append(values[chosen].mean())
    np.testing.assert_allclose([low, high], np.percentile(means, [2.5, 97.5]), atol=2e-3)
    # Frames alone, taken for independent, would promise far too much.
    assert high - low > 3 * 2 * 1.96 * values.std() / len(values) ** 0.5 / 2


def test_the_same_frames_twice_are_no_cross_validation() -> None:
    folds = [fold("a", ["x", "y"], [0.5, 0.5], [0.1, 0.1]), fold("b", ["y"], [0.5], [0.1])]
    with pytest.raises(UserError, match="y is in the test splits of a and b"):
        crossval.table(folds)


@pytest.mark.long
def test_of_real_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path / "runs_of_frames", runs=5, frames=4)
    prepare.main(["frames", "runs_of_frames", "store", "size=64", "workers=1"])
    folders = []
    for number in range(3):
        config: dict[str, Any] = resolved(
            compose_config(
                [
                    "experiment=tinydet_folds",
                    "dataset.manifest=store",
                    "dataset.folds=3",
                    f"dataset.fold={number}",
                    "model.width=4",
                    "epochs=1",
                    "logging=csv",
                    "device=cpu",
                ]
            )[0]
        )
        folders.append(str(run(config, f"fold{number}")))
    capsys.readouterr()
    crossval.main([*folders, "device=cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    # 5 runs of 4 frames, of which the first is empty.
    assert sum(int(row[2]) for row in cells[2:5]) == int(cells[5][2]) == 15
    assert cells[5][:2] == ["all", "5"]
    assert float(cells[5][5]) == pytest.approx(1.0, abs=0.01)  # all boxes are the same box
    assert "[" in cells[5][6]


@pytest.mark.parametrize(
    ("words", "told"),
    [([], "RUN folders"), (["x", "splt=a"], "splt=a"), (["x", "checkpoint=worst"], "allowed")],
)
def test_mistakes(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        crossval.main(words)


def test_a_classifier_has_no_folds_of_frames(small: Callable[..., dict[str, Any]]) -> None:
    folder = run(small())
    with pytest.raises(UserError, match="no detector trained from a warehouse"):
        crossval.main([str(folder), "device=cpu"])
