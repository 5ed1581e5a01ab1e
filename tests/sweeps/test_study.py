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
from research.sweeps.job import TrialPruner
from research.sweeps.space import Space
from research.sweeps.study import MOST_ATTEMPTS, STORE, Claim, Study

pytestmark = pytest.mark.usefixtures("study_folder")

SPACE = Space.of({}, ["a=1,2,3", "b=x,y"])
ALL_FREQUENCIES = list(SPACE.points())


def opened(name: str = "one") -> Study:
    study = Study(name, None, RandomSampler, directions=["maximize"])
    study.describe({"study": name})
    return study


def claimed(study: Study, total: int = 6, retry: set[int] | None = None) -> Claim:
    claim = study.claim(SPACE, total, 0, set() if retry is None else retry, grid=True)
    assert claim is not None
    return claim


def end(study: Study, claim: Claim) -> None:
    study.tell(claim.number, [1.0])
    claim.held.release()


def test_a_grid_is_walked_once_whatever_process_asks() -> None:
    seen = []
    for _ in range(6):
        study = opened()
        claim = claimed(study)
        seen.append(claim.point)
        end(study, claim)
    assert seen == ALL_FREQUENCIES
    assert opened().claim(SPACE, 6, 0, set(), grid=True) is None


def test_two_who_ask_at_once_share_the_trials() -> None:
    studies = [opened() for _ in range(4)]

    def work(study: Study) -> list[int]:
        numbers = []
        while claim := study.claim(SPACE, 5, 0, set(), grid=True):
            numbers.append(claim.number)
            end(study, claim)
        return numbers

    with ThreadPoolExecutor(4) as pool:
        done = [number for numbers in pool.map(work, studies) for number in numbers]
    assert sorted(done) == list(range(5))
    assert [trial.params for trial in studies[0].trials()] == ALL_FREQUENCIES[:5]


@pytest.mark.parametrize("kind", [RandomSampler, TPESampler])
def test_no_sampler_repeats_a_point_of_a_finite_space(kind: type[BaseSampler]) -> None:
    def sampler(seed: int) -> BaseSampler:
        return kind(seed=seed)  # type: ignore[call-arg]

    study = Study("one", None, sampler, directions=["maximize"])
    while claim := study.claim(SPACE, 6, 0, set(), grid=False):
        end(study, claim)
    points = [trial.params for trial in study.trials()]
    assert sorted(map(str, points)) == sorted(map(str, ALL_FREQUENCIES))


def test_a_trial_whose_process_was_interrupted_keeps_its_attempts() -> None:
    study = opened()
    claim = claimed(study)
    study.excuse(claim.number)
    assert "reason" not in study.trial(claim.number).user_attrs  # it had not begun
    study.note(claim.number, attempts=2, reason="")
    study.excuse(claim.number)
    assert study.trial(claim.number).user_attrs["attempts"] == 2  # somebody is at it
    claim.held.release()
    study.excuse(claim.number)
    study.excuse(claim.number)
    facts = study.trial(claim.number).user_attrs
    assert (facts["attempts"], facts["reason"]) == (1, "interrupted")


def test_a_trial_that_was_to_be_stopped_is_stopped_after_an_interruption() -> None:
    class AtTwo(BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return bool(trial.last_step == 2)

    study = Study("one", None, RandomSampler, AtTwo(), ["maximize"])
    number = claimed(study).number
    for epochs, stopped in ((4, True), (2, False)):  # the last epoch is not worth stopping
        watch = TrialPruner(study, number, epochs)
        watch.epoch(1, 0.5)
        assert not watch.stopped
        watch.epoch(2, 0.5)
        assert watch.stopped is stopped
    assert list(study.trial(number).intermediate_values) == [1, 2]


def test_a_study_that_goes_on_draws_other_points() -> None:
    space = Space.of({}, ["a=interval(0.0,1.0)"])
    points = []
    for _ in range(3):
        study = opened()
        claim = study.claim(space, 3, 0, set(), grid=False)
        assert claim is not None
        points.append(claim.point["a"])
        end(study, claim)
    assert len(set(points)) == 3


def test_a_trial_in_other_hands_is_left_alone_and_one_left_behind_is_taken_up() -> None:
    study = opened()
    first = claimed(study)
    assert claimed(opened()).number == 1
    first.held.release()  # as the system does when a process dies
    again = claimed(opened())
    assert (again.number, again.point) == (0, first.point)


def test_a_trial_whose_run_still_trains_is_not_taken_up() -> None:
    study = opened()
    first = claimed(study)
    folder = study.run_folder(0, 1)
    folder.mkdir()
    study.note(0, run=str(folder))
    first.held.release()
    with run_folder.occupied(folder):
        assert claimed(study).number == 1
    assert claimed(study).number == 0


def test_a_trial_that_always_dies_is_given_up() -> None:
    study = opened()
    first = claimed(study)
    study.note(0, attempts=MOST_ATTEMPTS)
    first.held.release()
    assert claimed(study).number == 1
    trial = study.trial(0)
    assert trial.state is TrialState.FAIL
    assert "died 3 times" in trial.user_attrs["reason"]


def test_failures_are_tried_again_when_asked_and_not_before() -> None:
    study = opened()
    first = claimed(study)
    study.fail(0, "it burnt")
    first.held.release()
    second = claimed(study)
    assert second.point == ALL_FREQUENCIES[1]
    end(study, second)
    retry = {0}
    again = claimed(study, retry=retry)
    assert (again.number, again.point) == (2, ALL_FREQUENCIES[0])
    assert not retry
    end(study, again)
    assert [trial.number for trial in study.trials()] == [1, 2]
    assert claimed(study).point == ALL_FREQUENCIES[2]


def test_a_record_cut_short_is_dropped() -> None:
    study = opened()
    end(study, claimed(study))
    with STORE.open("ab") as file:
        file.write(b'{"op_code":5,"study_')
    other = opened()
    assert claimed(other).number == 1
    assert len(opened().trials()) == 2


def test_a_proposal_that_nobody_took_is_no_trial() -> None:
    study = opened()
    study.optuna.ask()  # whoever asked died before the point was drawn
    claim = claimed(study)
    assert claim.point == ALL_FREQUENCIES[0]
    assert [trial.number for trial in study.trials()] == [claim.number]


def test_attempts_that_got_further_do_not_count() -> None:
    study = opened()
    first = claimed(study)
    last = study.run_folder(0, 1) / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    study.note(0, attempts=MOST_ATTEMPTS, run=str(study.run_folder(0, 1)), checkpoint=0.0)
    last.touch()
    first.held.release()
    assert claimed(study).number == 0


def test_a_study_whose_folder_was_deleted_begins_anew() -> None:
    study = opened()
    end(study, claimed(study))
    assert len(opened().trials()) == 1
    shutil.rmtree(study.folder)
    assert opened().trials() == []


def test_a_proposal_left_in_the_queue_is_no_point_run_twice() -> None:
    study = opened()
    study.optuna.enqueue_trial(ALL_FREQUENCIES[0])  # whoever queued it died before he took it
    claims = [claimed(study) for _ in range(6)]
    assert [claim.point for claim in claims] == ALL_FREQUENCIES


def test_the_store_is_one_for_all_studies() -> None:
    for name in ("one", "two"):
        study = opened(name)
        end(study, claimed(study))
    assert sorted(path.name for path in Path("runs").iterdir() if path.suffix == ".journal") == [
        "studies.journal"
    ]
