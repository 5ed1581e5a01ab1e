"""A study from its definition to its page: trained, evaluated, interrupted, failed, repeated."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from research.config import command_line
from research.engine import evaluation
from research.studies import measuring, record, results, running
from research.studies.definition import StudyDefinition, StudyRun, load_study
from research.studies.plan import plan
from research.utils import progress
from research.utils.errors import UserError
from tests.conftest import ROOT, interrupted_at, verb
from tests.golden.configurations import DATA
from tests.studies.made import define, keep
from tests.test_commands import module, outcome

TINY: dict[str, Any] = {
    "seeds": [0, 1],
    "evaluate": {"split": "val", "checkpoint": "last"},
    "stores": None,
    "base": {
        "model": "fastnet",
        "dataset": "imagefolder",
        "dataset.train_dirs": ["${data.pictures}/train"],
        "dataset.val_dir": "${data.pictures}/val",
        "dataset.image_size": 32,
        "epochs": 2,
        "batch_size": 8,
        "device": "cpu",
        "logging": "csv",
        "keep": 0,
    },
    "arms": {
        "narrow": {"settings": {"model.widths": [4, 8, 8]}},
        "wide": {"settings": {"model.widths": [8, 8, 8]}},
    },
}
PICTURES = DATA / "data" / "pictures"
Calls = list[Sequence[str]]


TOOK = 0.25
"""Seconds that each process of a study is said to take."""


def in_process(calls: Calls) -> Callable[..., float]:
    """Runs commands of a study in this process, and remembers them."""

    def call(words: Sequence[str], beside: Path, *, trains: bool = False) -> float:
        calls.append(words)
        before = sys.argv
        try:
            if words[1] == "-m":
                assert words[2] == "research.studies.measuring"
                measuring.main(list(words[3:]))
                return TOOK
            from train import main

            sys.argv = ["train.py", *words[2:]]
            command_line(main)
        except SystemExit as ended:
            if ended.code == 128 + signal.SIGINT:
                raise KeyboardInterrupt from None
            if ended.code:
                raise running.Failed(f"status {ended.code}") from None
        except UserError as error:
            raise running.Failed(str(error)) from None
        finally:
            sys.argv = before
        return TOOK

    return call


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A working directory in which the processes of studies run in this one."""
    found: Calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "_call", in_process(found))
    monkeypatch.setattr(evaluation, "draw", lambda *of: None)  # most of the time
    return found


def do(docs: Path, *words: str) -> None:
    verb("study").main([*words, f"data.pictures={PICTURES}", f"docs={docs}"])


def trained(calls: Calls) -> list[str]:
    """The folders that ``train.py`` was called for."""
    words = (next((w for w in call if w.startswith("run_dir=")), None) for call in calls)
    return [Path(word).name for word in words if word]


def test_a_study_that_was_interrupted_goes_on_to_its_page(
    calls: Calls,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    docs = tmp_path / "docs"
    study = define(docs, **TINY)
    first = record.path_of(docs, study.runs()[0])
    with interrupted_at(4, monkeypatch):  # in the second epoch, of three steps each
        do(docs)
    assert not first.exists()
    assert (
        json.loads(Path("runs/studies/nets/narrow_seed0/summary.json").read_text())["epochs_done"]
        == 1
    )
    verb("study").main(["dry=true", f"docs={docs}"])
    listed = capsys.readouterr().out
    assert re.search(r"narrow_seed0 +undone +30 minutes, epoch 1 of 2\n", listed)
    do(docs)
    assert trained(calls) == [
        "narrow_seed0", "narrow_seed0", "wide_seed0", "narrow_seed1", "wide_seed1",
    ]  # fmt: skip
    for run in study.runs():
        check_record(study, run.name, record.read(record.path_of(docs, run)), tmp_path)
    assert list(results.outdated(results.build(docs))) == []
    assert "All 4 runs are recorded." in (docs / "results.md").read_text()

    # Nothing is done again, and a record that is lost is made anew from the finished run.
    del calls[:]
    do(docs)
    assert calls == []
    before = first.read_text()
    first.unlink()
    do(docs)
    assert trained(calls) == ["narrow_seed0"]
    assert first.read_text() == before

    # Another definition: the former run is set aside, not overwritten.
    del calls[:]
    wide = {"settings": {"model.widths": [4, 4, 4]}}
    study = define(docs, **{**TINY, "seeds": [0], "arms": {**TINY["arms"], "wide": wide}})
    assert [each.run.name for each in plan(study, docs).of("stale")] == ["wide_seed0"]
    do(docs)
    assert trained(calls) == ["wide_seed0"]
    folders = [path.name for path in Path("runs/studies/nets").iterdir() if path.is_dir()]
    assert len(folders) == 5
    assert sorted({name.partition(".")[0] for name in folders}) == [
        "narrow_seed0", "narrow_seed1", "wide_seed0", "wide_seed1",
    ]  # fmt: skip


def check_record(
    study: StudyDefinition, name: str, found: record.StudyRecord, tmp_path: Path
) -> None:
    """What a record says is what the run folder says."""
    folder = tmp_path / "runs" / "studies" / study.name / name
    evaluated = json.loads((folder / "evaluations" / "val_last.json").read_text())
    assert found.evaluation is not None
    assert found.evaluation.metrics == {
        name: float(f"{value:.6g}") for name, value in evaluated["metrics"].items()
    }
    assert (found.evaluation.epoch, found.evaluation.n) == (2, 12)
    assert found.samples == {"train": 24, "val": 12}
    summary = json.loads((folder / "summary.json").read_text())
    assert found.best_epoch == summary["best_epoch"]
    assert found.costs["parameters"] == summary["parameters"]
    assert found.costs["bytes_per_image"] == 32 * 32 * 3
    assert 0 < found.costs["ms_per_image"] < 1000 * summary["total_time_sec"] / (2 * 24)
    assert found.seconds == pytest.approx(  # the time of processes is not known here
        {"training": summary["total_time_sec"], "total": summary["total_time_sec"] + TOOK}, rel=1e-5
    )
    assert found.epochs["val/top1"][-1] == found.evaluation.metrics["top1"]
    assert len(found.epochs["train/loss"]) == 2
    assert found.hardware.threads == 1
    assert (found.commit is None) or len(found.commit) == 40
    assert found.configuration["dataset.train_dirs"] == ["PICTURES/train"]
    assert found.configuration["model.widths"][0] == (4 if found.arm == "narrow" else 8)
    text = record.path_of(tmp_path / "docs", study.runs()[0]).read_text()
    assert str(PICTURES) not in text
    assert len(text) < 5000
    train, evaluate = found.commands
    assert "'dataset.train_dirs=[PICTURES/train]'" in train
    assert train.endswith(f"seed={found.seed} run_dir=runs/studies/nets/{name} resume=auto")
    assert evaluate.endswith(f"runs/studies/nets/{name} split=val checkpoint=last")


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs take no time: each is recorded with the value 0.5; the names of those done.

    Those of an arm whose name begins with ``wrong`` fail.
    """
    found: list[str] = []
    monkeypatch.chdir(tmp_path)

    def made(run: StudyRun, folder: Path, places: Mapping[str, str]) -> record.StudyRecord:
        if run.arm.startswith("wrong"):
            raise running.Failed("no such setting")
        found.append(run.name)
        return record.read(keep(tmp_path / "docs", run, 0.5))

    monkeypatch.setattr(running, "_train", made)
    return found


def test_a_run_that_fails_is_reported_and_the_others_go_on(
    tmp_path: Path, done: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    docs = tmp_path / "docs"
    define(docs, seeds=[0, 1], arms={"wrong": {}, "narrow": {}})
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        do(docs)
    assert ended.value.code == 1
    assert "failed: nets wrong_seed0: no such setting" in caplog.text
    assert done == ["narrow_seed0", "narrow_seed1"]
    assert "2 of 4 runs are recorded" in (docs / "results.md").read_text()


def test_two_processes_share_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    docs = tmp_path / "docs"
    study = define(docs, seeds=[0, 1])
    other = study.runs()[2]
    keep(docs, study.runs()[1], 0.5)
    folder = Path("runs/studies/nets")
    folder.mkdir(parents=True)
    with FileLock(folder / f"{other.name}.lock"):
        planned = [plan(study, docs)]
        record.path_of(docs, study.runs()[1]).touch()
        state = running.run_plans(planned, docs, {"pictures": PICTURES}, None)
    assert done == ["narrow_seed0", "wide_seed1"]
    assert state.failed == {}
    assert [each.run.name for each in plan(study, docs).undone] == [other.name]


def test_no_run_is_started_that_would_end_too_late(tmp_path: Path, done: list[str]) -> None:
    docs = tmp_path / "docs"
    study = define(docs, seeds=[0])  # 0.5 hours, and 1 of the arm wide
    running.run_plans([plan(study, docs)], docs, {"pictures": PICTURES}, 0.75)
    assert done == ["narrow_seed0"]


def test_the_reason_of_a_failure_is_the_last_error(tmp_path: Path) -> None:
    script = "print('x'); print('error: no such file'); print('end'); raise SystemExit(2)"
    with pytest.raises(running.Failed, match=r"^no such file; its output is in .*run.log$"):
        running._call([sys.executable, "-c", script], tmp_path / "run")
    with pytest.raises(running.Failed, match="ended with status 3 and no output"):
        running._call([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "run")
    killed = "import os, signal; print('epoch 3', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(running.Failed, match=r"^it was ended by SIGKILL; its output is in"):
        running._call([sys.executable, "-c", killed], tmp_path / "run")
    running._call([sys.executable, "-c", "print('fine')"], tmp_path / "run")
    text = (tmp_path / "run.log").read_text()
    assert text.count("$ ") == 4
    assert text.endswith("fine\n")


def test_epochs_done_before_an_interruption_are_not_part_of_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, int, int | None]] = []

    def update(phase: progress.Phase, done: int) -> None:
        shown.append((phase.first, done, phase.total))

    monkeypatch.setattr(progress.Phase, "update", update)
    monkeypatch.setattr(running, "BETWEEN_LOOKS", 0.01)
    folder = tmp_path / "run"
    folder.mkdir()
    summary = {"epochs_done": 12, "configuration": {"epochs": 14}}
    (folder / "summary.json").write_text(json.dumps(summary))
    running._call([sys.executable, "-c", "import time; time.sleep(0.1)"], folder, trains=True)
    assert {*shown} == {(12, 12, 14)}


def test_a_benchmark_that_was_run_by_the_same_words_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    docs = tmp_path / "docs"
    arms = {"loop": {"benchmark": "loop", "settings": {"rounds": 5, "model": "tinydet"}}}
    plain = dict.fromkeys(("metric", "reference"))
    study = define(docs, **plain, also=[], costs=[], picture=[], base={}, arms=arms)
    row = {"name": "bare loop", "seconds": [0.1, 0.2], "median": 0.15}
    row["speed"] = {"median": 1.0, "lowest": 0.9, "highest": 1.1}
    content = {
        "benchmark": "loop",
        "command": "python -m research.benchmark loop rounds=5 model=tinydet out=elsewhere",
        "python": "3.11.7",
        "packages": {"torch": "2.14.1"},
        "git": {},
        "threads": 1,
        "hardware": {"cpu": "AMD EPYC", "cores": 2, "gpus": []},
        "results": [{"name": "steps", "unit": "step", "rows": [row]}],
    }
    folder = tmp_path / "runs/studies/nets/loop_seed0"
    folder.mkdir(parents=True)
    (folder / "loop.json").write_text(json.dumps(content))
    asked: Calls = []
    monkeypatch.setattr(running, "_call", lambda words, beside: asked.append(words))
    running.run_plans([plan(study, docs)], docs, {}, None)
    found = record.read(record.path_of(docs, study.runs()[0]))
    assert asked == []
    assert found.hardware.threads == 1
    assert found.commands == ["python -m research.benchmark loop rounds=5 model=tinydet"]
    assert (found.timings[0].seconds, found.timings[0].rounds) == (0.15, 2)
    other = load_study(docs / "studies/nets.yaml")
    content["command"] = "python -m research.benchmark loop rounds=6 model=tinydet"
    (folder / "loop.json").write_text(json.dumps(content))
    record.path_of(docs, study.runs()[0]).unlink()
    running.run_plans([plan(other, docs)], docs, {}, None)
    assert [words[1:] for words in asked] == [
        [
            "-m",
            "research.benchmark",
            "loop",
            "rounds=5",
            "model=tinydet",
            f"out={folder.relative_to(tmp_path)}",
        ]
    ]


def test_a_store_is_prepared_once_before_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    docs = tmp_path / "docs"
    stores = {"small": {"kind": "frames", "source": "pictures", "options": {"size": 64}}}
    base = {"dataset.manifest": "${store.small}"}
    study = define(docs, stores=stores, base=base, seeds=[0])
    asked: Calls = []
    monkeypatch.setattr(running, "_call", lambda words, beside: asked.append(words))
    running.run_plans([plan(study, docs)], docs, {"pictures": PICTURES}, None)
    [words] = asked
    assert words[1:5] == ["-m", "research.prepare", "frames", str(PICTURES)]
    assert words[6:] == ["size=64"]
    assert done == ["narrow_seed0", "wide_seed0"]


def test_a_study_imports_no_torch() -> None:
    script = "import sys, research.study, research.studies.running; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"


@pytest.mark.whole
def test_a_study_of_real_processes_is_stopped_and_goes_on(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    base = {**TINY["base"], "epochs": 40, "log_every": 1}
    study = define(docs, **{**TINY, "seeds": [0], "base": base})
    words = [f"data.pictures={PICTURES}"]
    table = tmp_path / "runs/studies/nets/narrow_seed0/epoch_metrics.csv"
    with module(tmp_path, "study", *words) as started:
        give_up = time.monotonic() + 300
        while not table.exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        started.send_signal(signal.SIGTERM)
        status, _, errors = outcome(started)
    assert (status, errors.splitlines()[-1]) == (128 + signal.SIGTERM, "interrupted by SIGTERM")
    summary = json.loads((table.parent / "summary.json").read_text())
    assert summary["status"] == "KILLED"
    assert 0 < summary["epochs_done"] < 40
    with module(tmp_path, "study", *words) as resumed:
        status, _, errors = outcome(resumed)
    assert status == 0
    assert "run 1 of 2" in errors
    assert "resume: continuing after epoch" in (table.parent.with_suffix(".log")).read_text()
    assert plan(study, docs).undone == []
    found = record.read(record.path_of(docs, study.runs()[0]))
    assert found.seconds["total"] > found.seconds["training"]
    assert list(results.outdated(results.build(docs))) == []
