from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from research.errors import UserError
from research.sweeps.record import NAME, recorded
from tests.conftest import TINY, run

Compose = Callable[..., dict[str, Any]]


def entries(sweep: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((sweep / NAME).read_text())
    return summary


def test_a_finished_job_tells_what_its_run_tells(small: Compose, tmp_path: Path) -> None:
    folder = Path("runs/one")
    with recorded(tmp_path / "sweep", 0, ["seed=3"]) as job:
        job.run = run(small(*TINY, "run_dir=runs/one", "max_train_batches=1", "max_val_batches=1"))
    own = json.loads((folder / "summary.json").read_text())
    (entry,) = entries(tmp_path / "sweep")["jobs"]
    assert (entry["status"], entry["reason"], entry["overrides"]) == ("FINISHED", "", ["seed=3"])
    for key in ("model", "parameters", "best_value", "best_epoch", "paths"):
        assert entry[key] == own[key]
    assert entry["seconds"] >= own["total_time_sec"]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (UserError("optimizer.lr: too high"), "FAILED", "UserError: optimizer.lr: too high"),
        (MemoryError(), "FAILED", "MemoryError: MemoryError"),
        (KeyboardInterrupt(), "KILLED", "interrupted"),
    ],
)
def test_a_job_that_fails_is_entered_with_its_reason(
    tmp_path: Path, error: BaseException, status: str, reason: str
) -> None:
    with recorded(tmp_path, 0, []):
        pass

    def fail() -> None:
        with recorded(tmp_path, 1, []) as job:
            job.run = tmp_path / "bad"
            raise error

    with pytest.raises(type(error)):
        fail()
    found = entries(tmp_path)
    assert found["counts"] == {"FINISHED": 1, status: 1}
    assert found["jobs"][1]["reason"] == reason
    assert found["jobs"][1]["paths"] == {"run": str(tmp_path / "bad")}


def test_what_a_failed_job_held_is_free_while_its_error_is_kept(tmp_path: Path) -> None:
    class Network:
        pass

    alive: list[weakref.ref[Network]] = []

    def train() -> None:
        network = Network()
        alive.append(weakref.ref(network))
        raise MemoryError

    def job() -> None:
        with recorded(tmp_path, 0, []):
            train()

    with pytest.raises(MemoryError) as kept:
        job()
    assert alive[0]() is None
    assert kept.value.__traceback__ is not None


def test_jobs_that_end_at_once_are_all_entered(tmp_path: Path) -> None:
    def job(number: int) -> None:
        with recorded(tmp_path, number, [f"seed={number}"]):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(job, range(24)))
    found = entries(tmp_path)
    assert [entry["job"] for entry in found["jobs"]] == list(range(24))
    assert found["counts"] == {"FINISHED": 24}


def test_a_job_that_is_run_again_is_entered_once(tmp_path: Path) -> None:
    for _ in range(2):
        with recorded(tmp_path, 0, []):
            pass
    assert len(entries(tmp_path)["jobs"]) == 1
