"""The tables before the first batch and after the last, at every width and without a terminal."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest

from research.data.loader import EpochLoader, ProcessShard
from research.engine.description import batches
from research.utils import logs, terminal
from tests.conftest import advised, run, verb
from tests.data.test_loader import Numbers

Compose = Callable[..., dict[str, Any]]
Records = list[logging.LogRecord]
LONG = re.compile(r"/|mlflow ui|tensorboard")
"""Parts that are not broken at any width: paths and commands, which are copied."""


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


def labelled(records: Records) -> dict[str, str]:
    """The rows of a table by label."""
    pairs = (re.split(r"  +", each.getMessage().strip(), maxsplit=1) for each in records)
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def check_width(width: int, records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tables fit a terminal."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(terminal, "width", lambda stream: width)
    screen = Screen()
    for of_results in (False, True):
        handler = logs._Terminal(screen, of_results=of_results)
        for record in records:
            handler.handle(record)
    lines = screen.getvalue().splitlines()
    assert [line for line in lines if len(line) > width and not LONG.search(line)] == []
    assert "\x1b" not in screen.getvalue()
    columns = {len(m[0]) for line in lines if (m := re.match(r"  \S[\w ]*?\S(?=  )  +", line))}
    assert len(columns) <= 2  # one for each table


@pytest.mark.parametrize("samples", [5, 8, 24, 110])
@pytest.mark.parametrize("shard", [ProcessShard(), ProcessShard(0, 3)])
def test_samples_that_no_batch_of_an_epoch_has_are_shown(samples: int, shard: ProcessShard) -> None:
    train = EpochLoader(Numbers(samples), 8, seed=0, train=True, shard=shard)
    parts = [ProcessShard(rank, shard.processes) for rank in range(shard.processes)]
    loaders = [EpochLoader(Numbers(samples), 8, seed=0, train=True, shard=p) for p in parts]
    seen = {index for each in loaders for keys in each.sampler for index in keys}

    def shown(limit: int | None) -> str:
        cfg, data = (
            SimpleNamespace(accumulate=1, max_train_batches=limit),
            SimpleNamespace(unit="n"),
        )
        return " ".join(batches(SimpleNamespace(train=train, cfg=cfg, data=data)))  # type: ignore

    left = samples - len(seen)
    assert (f"({left} of {samples} left over in each epoch)" in shown(None)) == (left > 0)
    assert ("left over" in shown(None)) == (left > 0)
    assert "left over" not in shown(1)


def test_what_is_about_to_happen_and_what_has_come_of_it(
    small: Compose,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "research")
    words = ("epochs=2", "max_val_batches=1", "evaluate_at_end=val", "patience=5")
    folder = run(small(*words))
    logged = [each for each in caplog.records if each.name == "research.engine.overview"]
    for width in (60, 80, 120):
        check_width(width, logged, monkeypatch)
    start = [each for each in logged if not getattr(each, "is_result", False)]
    end = [each for each in logged if getattr(each, "is_result", False)]
    assert start[0].getMessage().startswith("training: ")
    before = labelled(start)
    assert re.fullmatch(r"imagefolder:  3 classes  train \d+  val \d+  images", before["data"])
    assert before["read as"].startswith("CLASS/image folders in ")
    assert re.fullmatch(r"\S+  [\d,]+ parameters", before["model"])
    assert re.match(r"\d+×\d+ px  ", before["input"])
    assert before["device"].startswith("cpu  fp32")
    assert re.match(r"\w+  lr [\d.e-]+  \w+", before["optimizer"])
    assert re.fullmatch(r"\d+ images", before["batches"])
    assert re.match(r"2 × \d+ steps = \d+  patience 5  val on \d+ images", before["epochs"])
    assert (before["run"], before["tracking"]) == (str(folder), "csv files in the run folder")
    assert re.fullmatch(r"best val/top1 [\d.]+ \(n=\d+ images\) at epoch [12] of 2",
                        end[0].getMessage())  # fmt: skip
    after = labelled(end)
    assert all(re.search(r"\(n=\d+ images\)$", after[split]) for split in ("train", "val"))
    assert re.match(r"\d+:\d\d  \S+ s an epoch  [\d.]+ training images a second", after["time"])
    assert after["run"] == str(folder)
    for name in after["in it"].split():
        assert (folder / name).exists()
    _, _, module, *words = advised(logged[-1].getMessage())
    verb(module.removeprefix("research.")).main(words)
    assert '"split": "val"' in capsys.readouterr().out
