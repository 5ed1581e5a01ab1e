"""Photos of a user in order: the table, the sheet, and the command that writes them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import research
from research.config import compose_config, resolved
from research.data.frames.media import Still
from research.engine.evaluation import load_eval_run
from research.inference.ranking import RankingWriter
from research.inference.writers import SHOWN
from research.tasks.ranking import Ranking
from research.utils.errors import UserError
from tests.conftest import run, verb


def still(name: str) -> Still:
    return Still(name, "photos", Path(name).stem, Path(name))


def grey(level: int, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    return [Image.new("RGB", size, (level, level, level))]


def ranked(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "ranking.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["rank", "file", "score"]
    return [(rank, name, score) for rank, name, score in rows]


def write(
    folder: Path, scores: Sequence[float], names: Sequence[str], levels: Sequence[int], size: int
) -> RankingWriter:
    report = RankingWriter(folder)
    with report:
        for start in range(0, len(scores), size):
            chosen = slice(start, start + size)
            report.add(
                [still(name) for name in names[chosen]],
                [grey(level) for level in levels[chosen]],
                torch.tensor(scores[chosen]),
            )
    return report


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_table_and_the_sheet_are_in_order_of_score(tmp_path: Path, size: int) -> None:
    scores, names = [0.5, -2.0, 3.25, 0.5], ["d.jpg", "b.jpg", "c.jpg", "a.jpg"]
    report = write(tmp_path / "out", scores, names, [10, 60, 110, 160], size)
    # Those of one score are in the order of their names.
    assert ranked(tmp_path / "out") == [
        ("1", "c.jpg", "3.25"),
        ("2", "a.jpg", "0.5"),
        ("3", "d.jpg", "0.5"),
        ("4", "b.jpg", "-2"),
    ]
    sheet = np.asarray(Image.open(tmp_path / "out" / "contact_sheet.png"))
    assert [sheet[88, 88 + 168 * n, 0] for n in range(4)] == [110, 160, 10, 60]
    assert report.summary() == {"photos": 4, "best": "c.jpg"}
    assert "c.jpg" in report.where()[0]
    assert str(tmp_path / "out" / "ranking.csv") in report.where()[2]


def test_of_many_photos_the_best_are_shown_and_all_are_listed(tmp_path: Path) -> None:
    count = SHOWN + 20
    order = np.random.default_rng(0).permutation(count).tolist()
    names = [f"{number:03d}.png" for number in order]
    report = write(tmp_path, [float(n) for n in order], names, [3 * n for n in order], 7)
    assert [name for _, name, _ in ranked(tmp_path)] == sorted(names, reverse=True)
    sheet = np.asarray(Image.open(tmp_path / "contact_sheet.png"))
    assert sheet.shape[0] == SHOWN // 6 * (160 + 40) + 8
    best, last = sheet[88, 88, 0], sheet[-40 - 80, 88 + 168 * 5, 0]
    assert (best, last) == (3 * (count - 1), 3 * 20)
    assert f"the best {SHOWN}" in report.where()[1]


def test_what_has_no_score_is_last(tmp_path: Path) -> None:
    write(tmp_path, [float("nan"), -9.0, float("inf")], ["a", "b", "c"], [1, 2, 3], 3)
    assert [name for _, name, _ in ranked(tmp_path)] == ["c", "b", "a"]


def test_nothing_is_written_where_nothing_was_seen_or_the_work_broke_off(tmp_path: Path) -> None:
    with RankingWriter(tmp_path / "empty") as report:
        pass
    assert report.summary() == {"photos": 0}
    with pytest.raises(ValueError, match="zip"), RankingWriter(tmp_path / "broken") as report:
        report.add([still("a"), still("b")], [grey(0)], torch.ones(1))
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set another out=FOLDER") as caught:
        write(tmp_path / "file" / "out", [1.0], ["a"], [0], 1)
    assert "\n" not in str(caught.value)


def test_the_task_writes_rankings(tmp_path: Path) -> None:
    task = Ranking([], "soft", [0.5, 1.0], "val/pair_accuracy:max")
    assert isinstance(task.writer(tmp_path), RankingWriter)


def test_the_command_ranks_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "model=siamese_e2e", "model.backbone=test_resnet", "dataset=demo_photos",
        "dataset.demo.series=10", "dataset.image_size=64", "epochs=1", "device=cpu",
        "logging=csv", "run_dir=runs/r", "max_train_batches=2",
    ]  # fmt: skip
    folder = run(resolved(compose_config(words)[0]))
    photos = tmp_path / "mine"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(7):
        pixels = rng.integers(0, 30 * number + 30, (50 + 4 * number, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    (photos / "torn.jpg").write_bytes((photos / "0.png").read_bytes()[:400])
    verb("predict").main([str(folder), str(photos), "out=seen", "batch_size=3", "device=cpu"])

    found = ranked(tmp_path / "seen")
    model = research.load(folder, "cpu")
    expected = model([photos / f"{number}.png" for number in range(7)])
    order = expected.argsort(descending=True).tolist()
    assert [Path(name).name for _, name, _ in found] == [f"{number}.png" for number in order]
    said = torch.tensor([float(score) for *_, score in found])
    torch.testing.assert_close(said, expected[order], atol=1e-5, rtol=1e-4)
    assert len(expected.unique()) == 7
    summary = json.loads((tmp_path / "seen" / "summary.json").read_text())
    assert (summary["frames"], summary["photos"], sum(summary["damage"].values())) == (7, 7, 1)
    assert Path(summary["best"]).name == f"{order[0]}.png"
    assert (tmp_path / "seen" / "contact_sheet.png").exists()

    # The scores of photos explain the accuracy on pairs of the test split.
    loaded = load_eval_run(folder, "test", "best", "cpu", [])
    pairs = loaded.predictor.data.splits["test"]
    scores = model(pairs.photos).tolist()
    right = [
        (scores[pair.first] > scores[pair.second]) == (pair.preference > 0.5)
        for pair in pairs.pairs
        if pair.preference != 0.5
    ]
    kept = loaded.measure()[0]
    assert 2 < len(right) <= kept.n == len(pairs)
    assert kept.metrics["pair_accuracy"] == pytest.approx(sum(right) / len(right))
