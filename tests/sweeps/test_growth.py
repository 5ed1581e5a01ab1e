"""A trial costs as much after many trials as after a few: what is done for it is counted."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.samplers import RandomSampler

from research.sweeps import parent, plots, record
from research.sweeps import storage as storage_module
from research.sweeps import study as study_module
from research.sweeps.storage import STORE, open_storage
from research.sweeps.study import Study
from research.utils import files
from tests.sweeps.test_hostile_studies import CONFIG, SEARCH
from tests.sweeps.test_plots import LOG, TOP1, summary, trial

SPACE = SEARCH.space.parse({}, ["optimizer.lr=range(0,1000)"])


@pytest.fixture
def study(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr("research.sweeps.plots.pictures", lambda summary: {})
    monkeypatch.setattr(record, "FRACTION", math.inf)
    study = Study("one", None, RandomSampler, directions=["maximize"])
    description = {
        "study": "one", "command": [], "space": {}, "fixed": [], "configuration": {},
        "objectives": [{"name": "val/top1", "direction": "maximize"}], "monitor": "val/top1:max",
        "storage": "journal", "sampler": "random", "pruner": None, "n_trials": 1000,
        "started": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    (study.folder / "study.json").write_text(json.dumps(description))
    record.update(study, CONFIG)
    return study


def run_trial(study: Study, *, grid: bool) -> None:
    """What a sweep does for a trial, without training."""
    claim = study.claim_trial(SPACE, 1000, 0, set(), grid=grid)
    assert claim is not None
    job = Study("one", None)
    assert job.last_beginning(claim.number) == 0
    run = job.run_folder(claim.number, 1)
    run.mkdir()
    summary = dict.fromkeys(record.RUN_KEYS, 1) | {"paths": {"run": str(run)}}
    (run / "summary.json").write_text(json.dumps(summary))
    job.set_attrs(claim.number, run=str(run), beginnings=1, attempts=1, seconds=1.0)
    job.report(claim.number, [0.5])
    record.update_at_times(job, CONFIG)
    claim.lock.release()
    assert study.failed() == []


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of what takes time: documents that are read, checked or encoded, records replayed."""
    counts: Counter[str] = Counter()

    def counted(place: Any, name: str) -> None:
        function = getattr(place, name)

        def call(*arguments: Any, **named: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **named)

        monkeypatch.setattr(place, name, call)

    counted(study_module, "check")
    counted(record, "read_json")
    counted(record, "_entry")
    counted(files, "_finite")  # once for each value that is encoded
    counted(parent, "update")
    counted(storage_module.json, "loads")
    return counts


@pytest.mark.parametrize("grid", [True, False])
def test_what_is_done_for_a_trial_does_not_grow(
    study: Study, counts: Counter[str], grid: bool
) -> None:
    done = []
    for _ in range(41):
        counts.clear()
        run_trial(study, grid=grid)
        done.append(dict(counts))
    assert done[5]["read_json"] == 1
    assert "update" not in done[5]
    # Counts of records differ by one where a point is proposed twice.
    assert sum(done[40].values()) <= 1.1 * sum(done[5].values())


def test_the_summary_is_that_of_a_process_that_knows_nothing(study: Study) -> None:
    for _ in range(3):
        run_trial(study, grid=True)
    assert study.claim_trial(SPACE, 1000, 0, set(), grid=True) is not None
    known = record.update(study, CONFIG)
    anew = record.summary(Study("one", None, RandomSampler, directions=["maximize"]))
    times = {"timestamp": "", "total_time_sec": 0}
    assert known | times == anew | times
    text = (study.folder / "final_summary.json").read_text()
    assert json.loads(text) | times == json.loads(json.dumps(known | times))
    assert text == files.to_json(known)


def test_the_summary_takes_a_share_of_the_time(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "FRACTION", 1e-9)  # after the next one, not for years
    run_trial(study, grid=True)
    run_trial(study, grid=True)
    content = json.loads((study.folder / "final_summary.json").read_text())
    assert content["counts"] == {"FINISHED": 1}
    assert record.update(study, CONFIG)["counts"] == {"FINISHED": 2}
    content = json.loads((study.folder / "final_summary.json").read_text())
    assert content["counts"] == {"FINISHED": 2}


def test_a_failure_is_known_at_once(study: Study) -> None:
    run_trial(study, grid=True)
    claim = study.claim_trial(SPACE, 1000, 0, set(), grid=True)
    assert claim is not None
    Study("one", None).fail(claim.number, "an error")
    (failed,) = study.failed()
    assert failed.user_attrs["reason"] == "an error"
    assert record.update(study, CONFIG)["counts"] == {"FAILED": 1, "FINISHED": 1}


def test_jobs_share_what_their_process_has_opened(study_folder: Path) -> None:
    first = open_storage(None, repair=True)
    assert open_storage(None, repair=False) is first
    assert open_storage(None, repair=True) is not first
    second = open_storage(None, repair=False)
    content = STORE.read_bytes()
    STORE.unlink()
    STORE.with_suffix(".other").touch()  # so that the number of the file is not used again
    STORE.write_bytes(content)
    assert open_storage(None, repair=False) is not second


def test_a_study_that_was_created_anew_is_read_anew(study: Study) -> None:
    import optuna

    for _ in range(3):
        run_trial(study, grid=True)
    assert len(study.trials()) == 3
    optuna.delete_study(study_name="one", storage=study.store)
    again = Study("one", None, RandomSampler, directions=["maximize"])
    assert again.trials() == []
    again.store.ended["one"] = study.store.ended["one"]
    assert again.trials() == []


def test_many_trials_are_drawn_as_the_last_and_the_best() -> None:
    trials = [
        trial(n, params={"lr": 0.1}, values={"val/top1": 0.5}, epochs={"1": 0.4, "2": 0.5})
        for n in range(300)
    ]
    figure = plots.figures(summary(trials, {"lr": LOG}, (TOP1,), best=7))["learning_curves"]
    (axes,) = figure.axes
    curves = [line for line in axes.get_lines() if len(line.get_xydata()) == 2]
    assert len(curves) == 100
    first, *others = [int(text.get_text()) for text in axes.texts]  # as many as there is room for
    assert first == 7
    assert {*others} <= {*range(201, 300)}
    assert "100 of 300" in axes.get_xlabel()


@pytest.mark.parametrize("beginnings", [(1,), (1, 2), (2,), (3, 7)])
def test_the_last_run_of_a_trial_is_found_although_others_were_deleted(
    study: Study, beginnings: tuple[int, ...]
) -> None:
    """Without listing the folders of all trials; the next run must get a folder of its own."""
    for beginning in beginnings:
        run = study.run_folder(3, beginning)
        run.mkdir()
        (run / "config.yaml").touch()
    study.run_folder(3, 30).mkdir()  # a start that failed has no config.yaml
    assert study.last_beginning(3) == max(beginnings)
    assert study.last_beginning(30) == 0
