"""The benchmark of a long sweep, at a length of a test."""

from __future__ import annotations

import pytest

from research.benchmarks import sweep
from research.benchmarks.options import BenchmarkOptions
from research.utils.errors import UserError


@pytest.mark.whole
def test_trials_are_timed_stage_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "HUNDRED", 3)
    (result,) = sweep.run(BenchmarkOptions(trials=8), [], ["logging=csv"])
    names = [row.name for row in result.rows]
    assert names == [
        "trials 1-3", "trials 1-3 of another sweep, afterwards (control)", "trials 2-4",
        "trials 6-8",
    ]  # fmt: skip
    for row in result.rows:
        assert len(row.seconds) == 3
        stages = [row.columns[f"{stage} ms"] for stage in sweep.STAGES if stage != "parent"]
        assert 0 < sum(stages) < row.columns["mean ms"]


def test_a_sweep_is_long_enough_to_be_compared() -> None:
    with pytest.raises(UserError, match="trials"):
        sweep.run(BenchmarkOptions(trials=150), [], [])
