"""Records: read back as written, refused if they are hostile, damaged or of another run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from research.studies import record, recording
from research.studies.record import RecordedEvaluation, RecordedTiming, StudyRecord
from research.utils.errors import UserError
from tests.studies.made import baseline, define, keep, made


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    study = define(tmp_path)
    return keep(tmp_path, study.runs()[0], 0.5, baseline=baseline((10, 7.5, 2.0), (3, 1.0, 1.0)))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = define(tmp_path, folds=3).runs()[1]
    timing = RecordedTiming("steps", "step", "bare loop", 0.0125, (1.0, 0.9, 1.1), 5)
    evaluation = RecordedEvaluation("test", "last", 2, 50, {"top1": 1 / 3, "mAP": None})
    written = made(
        run, None, evaluation=evaluation, timings=[timing], baseline=baseline((10, 7.5, 2.0)),
        epochs={"val/top1": [1 / 3, math.nan], "train/loss": [123456.789, 1e-9]},
        configuration={"optimizer.lr": 0.05, "model.layers": [0, 2]},
    )  # fmt: skip
    path = record.path_of(tmp_path, run)
    record.write(path, written)
    found = record.read(path)
    assert found == replace(
        written,
        evaluation=replace(evaluation, metrics={"top1": 0.333333, "mAP": None}),
        epochs={"val/top1": [0.333333, None], "train/loss": [123457.0, 1e-9]},
    )
    assert found.metric("top1") == 0.333333
    assert (found.metric("mAP"), found.metric("nothing")) == (None, None)
    assert path.stat().st_size < 3000
    record.write(path, found)
    assert record.read(path) == found


def test_a_record_is_a_few_lines_of_json(kept: Path) -> None:
    text = kept.read_text()
    assert json.loads(text)["evaluation"]["metrics"] == {"top1": 0.5, "loss": 1.25}
    assert text.startswith('{\n "study": "nets",\n "arm": "narrow",\n "seed": 0,\n')
    assert text.endswith("\n}\n")
    assert max(map(len, text.splitlines())) < 120


def test_costs_are_those_of_the_run(tmp_path: Path) -> None:
    found = made(define(tmp_path).runs()[0], 0.5)
    assert found.cost("seconds") == 2 * 50  # the faster one of two epochs
    assert found.cost("macs") == 2_500_000
    assert found.cost("ms_per_image") == 125
    assert replace(found, epochs={}).cost("seconds") is None
    assert found.total == 120
    assert replace(found, seconds={"training": 400.0, "total": 420.0}).total == 120
    assert replace(found, epochs={}).total == 120
    assert replace(found, seconds={}).total is None
    assert replace(found, costs={}).cost("ms_per_image") is None


def test_the_time_of_an_image_is_of_the_fastest_epoch(tmp_path: Path) -> None:
    (tmp_path / "epoch_metrics.csv").write_text(
        "epoch,epoch_time_sec,train/n\n1,900,100\n2,50,80\n3,70,\n"
    )
    rows = ["epoch,batch,loss,batch_time_sec", "1,1,0.5,400", "1,2,0.5,4", "2,1,0.5,10"]
    rows += ["2,2,0.4,", "2,3,0.4,30", "3,1,0.4,1"]
    (tmp_path / "batch_metrics.csv").write_text("\n".join(rows) + "\n")
    assert recording.time_per_image(tmp_path) == {"ms_per_image": 1000 * (10 + 30) / 80}
    (tmp_path / "batch_metrics.csv").unlink()
    assert recording.time_per_image(tmp_path) == {}


Change = Callable[[dict[str, Any]], None]


def put(*keys: Any) -> Change:
    """Sets a value: the last of the keys."""

    def change(content: dict[str, Any]) -> None:
        node: Any = content
        for key in keys[:-2]:
            node = node[key]
        node[keys[-2]] = keys[-1]

    return change


HOSTILE = ("<b>", "a|b", "`a`", "[a](b)", "![a](b)", "a\nb", "a\u2028b", "**a**", "https://a.b")
HOSTILE += ("www.a.b", "\x1b[31m", "&lt;", "#1", "~a~", "$(a)", '"a"', "a\\b", "x" * 101)


@pytest.mark.parametrize(
    "keys",
    [
        ("hardware", "cpu"), ("hardware", "platform"), ("python",), ("packages", "torch"),
        ("baseline", "names", "groups"), ("date",), ("commit",), ("study",), ("arm",), ("data",),
    ],
)  # fmt: skip
def test_no_text_is_a_sign_of_the_page(keys: tuple[str, ...], kept: Path) -> None:
    content = json.loads(kept.read_text())
    for text in HOSTILE:
        put(*keys, text)(content)
        kept.write_text(json.dumps(content))
        with pytest.raises(UserError) as caught:
            record.read(kept)
        assert caught.value.key == "records"
        assert "\n" not in str(caught.value)
        assert str(kept) in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        put("hardware", "gpus", ["<b>"]),
        put("commands", ["python train.py <b>"]),
        put("commands", []),
        put("packages", "<b>", "1"),
        put("configuration", {"a": ["<b>"]}),
        put("configuration", {"<b>": 1}),
        put("configuration", {"[a](b)": 1}),
        put("configuration", {"a`b": 1}),
        put("epochs", "<b>", [1.0, 2.0]),
        put("epochs", "val/loss", [1.0]),
        put("evaluation", "metrics", {"a|b": 1.0}),
        put("evaluation", "metrics", {"top1": math.inf}),
        put("evaluation", "metrics", {"top1": "high"}),
        put("evaluation", "n", -1),
        put("evaluation", "split", "train"),
        put("costs", "macs", math.nan),
        put("costs", "money", 1.0),
        put("seconds", "training", -1.0),
        put("seconds", "total", 99.0),
        put("seed", 1),
        put("seed", True),
        put("fold", 0),
        put("arm", "wide"),
        put("definition", "../../x"),
        put("version", 2),
        put("more", 1),
        put("python", "3" * 70_000),
        lambda content: content.clear(),
    ],
)
def test_what_no_run_writes_is_refused(change: Change, kept: Path) -> None:
    content = json.loads(kept.read_text())
    change(content)
    kept.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        record.read(kept)
    assert caught.value.key == "records"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"seed": 0, "seed": 1}'])
def test_a_damaged_file_is_named(content: bytes, kept: Path) -> None:
    kept.write_bytes(content)
    with pytest.raises(UserError, match=str(kept)):
        record.read(kept)


def test_a_record_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    run = define(tmp_path).runs()[0]
    path = record.path_of(tmp_path, run)
    wrong: list[StudyRecord] = [
        made(run, 0.5, python="<b>"),
        made(run, 0.5, commands=["python train.py"] * 11),
        made(run, 0.5, epochs={f"metric{n}": [1.0] * 9000 for n in range(20)}),
    ]
    for each in wrong:
        with pytest.raises(UserError):
            record.write(path, each)
        assert not path.exists()
