from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from research.engine import run_folder
from research.sweeps.hydra_sweepers import RecordingLauncher
from research.sweeps.job import TrialPruner
from research.sweeps.space import Space
from research.sweeps.storage import STORE
from research.sweeps.study import MAX_ATTEMPTS, Claim, Study
from tests.conftest import user_error

pytestmark = pytest.mark.usefixtures("study_folder")

SPACE = Space.parse({}, ["a=1,2,3", "b=x,y"])
ALL_POINTS = list(SPACE.points())


def opened(name: str = "one") -> Study:
    return Study(name, None, RandomSampler, directions=["maximize"])


def claimed(study: Study, total: int = 6, retry: set[int] | None = None) -> Claim:
    claim = study.claim_trial(SPACE, total, 0, set() if retry is None else retry, grid=True)
    assert claim is not None
    return claim


def end(study: Study, claim: Claim) -> None:
    study.report(claim.number, [1.0])
    claim.lock.release()


def test_a_grid_runs_once_across_processes() -> None:
    seen = []
    for _ in range(6):
        study = opened()
        claim = claimed(study)
        seen.append(claim.point)
        end(study, claim)
    assert seen == ALL_POINTS
    assert opened().claim_trial(SPACE, 6, 0, set(), grid=True) is None


def test_concurrent_claims_share_the_trials() -> None:
    studies = [opened() for _ in range(4)]

    def work(study: Study) -> list[int]:
        numbers = []
        while claim := study.claim_trial(SPACE, 5, 0, set(), grid=True):
            numbers.append(claim.number)
            end(study, claim)
        return numbers

    with ThreadPoolExecutor(4) as pool:
        done = [number for numbers in pool.map(work, studies) for number in numbers]
    assert sorted(done) == list(range(5))
    assert [trial.params for trial in studies[0].trials()] == ALL_POINTS[:5]


@pytest.mark.parametrize("kind", [RandomSampler, TPESampler])
def test_no_sampler_repeats_a_point_of_a_finite_space(kind: type[BaseSampler]) -> None:
    def sampler(seed: int) -> BaseSampler:
        return kind(seed=seed)  # type: ignore[call-arg]

    study = Study("one", None, sampler, directions=["maximize"])
    while claim := study.claim_trial(SPACE, 6, 0, set(), grid=False):
        end(study, claim)
    points = [trial.params for trial in study.trials()]
    assert sorted(map(str, points)) == sorted(map(str, ALL_POINTS))


def test_a_trial_whose_process_was_interrupted_keeps_its_attempts() -> None:
    study = opened()
    claim = claimed(study)
    study.forgive(claim.number)
    assert "reason" not in study.trial(claim.number).user_attrs  # it had not started
    study.set_attrs(claim.number, attempts=2, reason="")
    study.forgive(claim.number)
    assert study.trial(claim.number).user_attrs["attempts"] == 2  # a process is running it
    claim.lock.release()
    study.forgive(claim.number)
    study.forgive(claim.number)
    attrs = study.trial(claim.number).user_attrs
    assert (attrs["attempts"], attrs["reason"]) == (1, "interrupted")


def test_pruning_is_repeated_after_an_interruption() -> None:
    class AtTwo(BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return bool(trial.last_step == 2)

    study = Study("one", None, RandomSampler, AtTwo(), ["maximize"])
    number = claimed(study).number
    for epochs, stopped in ((4, True), (2, False)):  # never in the last epoch
        pruner = TrialPruner(study, number, epochs)
        pruner.epoch(1, 0.5)
        assert not pruner.stopped
        pruner.epoch(2, 0.5)
        assert pruner.stopped is stopped
    assert list(study.trial(number).intermediate_values) == [1, 2]


def test_no_trial_is_stopped_by_a_metric_that_is_not_the_objective() -> None:
    class Always(BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return True

    study = Study("one", None, RandomSampler, Always(), ["minimize"])  # of latency
    pruner = TrialPruner(study, claimed(study).number, 4, reports=False)
    pruner.epoch(1, 0.5)
    pruner.finish()
    assert not pruner.stopped
    assert not study.trial(0).intermediate_values


def test_a_resumed_study_samples_new_points() -> None:
    space = Space.parse({}, ["a=interval(0.0,1.0)"])
    points = []
    for _ in range(3):
        study = opened()
        claim = study.claim_trial(space, 3, 0, set(), grid=False)
        assert claim is not None
        points.append(claim.point["a"])
        end(study, claim)
    assert len(set(points)) == 3


def test_running_trials_are_skipped_and_unfinished_ones_resumed() -> None:
    study = opened()
    first = claimed(study)
    assert claimed(opened()).number == 1
    first.lock.release()  # as the system does when a process dies
    again = claimed(opened())
    assert (again.number, again.point) == (0, first.point)


def test_a_job_of_hydras_sweepers_that_another_process_runs_is_not_said_to_be_finished(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    study = opened()
    first = claimed(study)
    launcher: Any = RecordingLauncher(None, opened(), SPACE)  # type: ignore[arg-type]
    words = [f"{key}={value}" for key, value in first.point.items()]
    [running] = launcher.launch([words], 0)
    end(study, first)
    [ended] = launcher.launch([words], 0)
    assert (running.return_value, ended.return_value) == (None, 1.0)
    said = [line for line in caplog.messages if line.startswith("sweep: trial")]
    assert said == [
        "sweep: trial 0 is run by another process",
        "sweep: trial 0 was finished before",
    ]


def test_a_value_that_another_process_is_computing_is_not_a_failed_point() -> None:
    study = opened()
    first = claimed(study)
    launcher: Any = RecordingLauncher(None, opened(), SPACE, needs_values=True)  # type: ignore[arg-type]
    words = [f"{key}={value}" for key, value in first.point.items()]
    with user_error("hydra/sweeper", "another process", "trial 0"):
        launcher.launch([words], 0)
    end(study, first)
    [ended] = launcher.launch([words], 0)
    assert ended.return_value == 1.0


def test_a_trial_with_a_locked_run_folder_is_not_resumed() -> None:
    study = opened()
    first = claimed(study)
    folder = study.run_folder(0, 1)
    folder.mkdir()
    study.set_attrs(0, run=str(folder))
    first.lock.release()
    with run_folder.run_lock(folder):
        assert claimed(study).number == 1
    assert claimed(study).number == 0


def test_a_trial_that_always_dies_fails() -> None:
    study = opened()
    first = claimed(study)
    study.set_attrs(0, attempts=MAX_ATTEMPTS)
    first.lock.release()
    assert claimed(study).number == 1
    trial = study.trial(0)
    assert trial.state is TrialState.FAIL
    assert "died 3 times" in trial.user_attrs["reason"]


def test_failures_are_retried_on_request_only() -> None:
    study = opened()
    first = claimed(study)
    study.fail(0, "an error")
    first.lock.release()
    second = claimed(study)
    assert second.point == ALL_POINTS[1]
    end(study, second)
    retry = {0}
    again = claimed(study, retry=retry)
    assert (again.number, again.point) == (2, ALL_POINTS[0])
    assert not retry
    end(study, again)
    assert [trial.number for trial in study.trials()] == [1, 2]
    assert claimed(study).point == ALL_POINTS[2]


def test_a_record_cut_short_is_dropped() -> None:
    study = opened()
    end(study, claimed(study))
    with STORE.open("ab") as file:
        file.write(b'{"op_code":5,"study_')
    other = opened()
    assert claimed(other).number == 1
    assert len(opened().trials()) == 2


def test_an_unclaimed_proposal_is_no_trial() -> None:
    study = opened()
    study.optuna.ask()  # the process died before the point was sampled
    claim = claimed(study)
    assert claim.point == ALL_POINTS[0]
    assert [trial.number for trial in study.trials()] == [claim.number]


def test_attempts_before_a_new_checkpoint_do_not_count() -> None:
    study = opened()
    first = claimed(study)
    last = study.run_folder(0, 1) / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    study.set_attrs(0, attempts=MAX_ATTEMPTS, run=str(study.run_folder(0, 1)), checkpoint=0.0)
    last.touch()
    first.lock.release()
    assert claimed(study).number == 0


def test_deleting_the_folder_deletes_the_study() -> None:
    study = opened()
    end(study, claimed(study))
    assert len(opened().trials()) == 1
    shutil.rmtree(study.folder)
    assert opened().trials() == []


def test_a_queued_proposal_is_not_run_twice() -> None:
    study = opened()
    study.optuna.enqueue_trial(ALL_POINTS[0])  # the process died before claiming it
    claims = [claimed(study) for _ in range(6)]
    assert [claim.point for claim in claims] == ALL_POINTS


def test_all_studies_share_one_storage() -> None:
    for name in ("one", "two"):
        study = opened(name)
        end(study, claimed(study))
    assert sorted(path.name for path in Path("runs").iterdir() if path.suffix == ".journal") == [
        "studies.journal"
    ]
