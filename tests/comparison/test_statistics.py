"""Statistics against independent implementations, and their invariances."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from research.comparison.statistics import (
    POWER,
    Difference,
    Verdict,
    difference,
    holm_verdicts,
    seed_stats,
    seeds_needed,
)
from research.comparison.tables import p_text

NUMBERS = st.integers(-1000, 1000).map(lambda whole: whole / 1000)
SEEDS = st.dictionaries(st.integers(0, 6), NUMBERS, min_size=1, max_size=7)
NOISE = (0.0012, -0.0021, 0.0034, -0.0008, 0.0002)


def seeded(*values: float, first: int = 0) -> dict[int, float]:
    return dict(enumerate(values, first))


def verdict(found: Difference) -> Verdict:
    """Of a single comparison."""
    (only,) = holm_verdicts([found], 0.95, 1)
    assert only is not None
    return only


def test_statistics_over_seeds() -> None:
    found = seed_stats([0.9, 0.92, 0.94])
    assert (found.n, found.low, found.high) == (3, 0.9, 0.94)
    assert found.mean == pytest.approx(0.92)
    assert found.sd == pytest.approx(0.02)
    assert seed_stats([0.9]).sd is None


def test_paired_intervals_match_scipy() -> None:
    ours = seeded(0.912, 0.903, 0.921, 0.908, 0.917)
    theirs = seeded(0.905, 0.904, 0.909, 0.903, 0.911)
    found = difference(ours, theirs)
    differences = [ours[seed] - theirs[seed] for seed in ours]
    # Every resample there is, 5 to the power of 5.
    means = [sum(drawn) / 5 for drawn in itertools.product(differences, repeat=5)]
    assert found.bootstrap == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=3e-4)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.student == pytest.approx(tuple(expected))
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert found.paired
    assert found.mean == pytest.approx(np.mean(differences))


def test_unpaired_intervals_match_scipy() -> None:
    ours = seeded(0.912, 0.903, 0.921, 0.908)
    theirs = seeded(0.905, 0.904, 0.909, first=10)
    found = difference(ours, theirs, 0.9)
    sides = [
        np.array([*itertools.product(side.values(), repeat=len(side))]).mean(1)
        for side in (ours, theirs)
    ]
    means = sides[0][:, None] - sides[1]
    assert found.bootstrap == pytest.approx(np.percentile(means, [5, 95]), abs=3e-4)
    test = stats.ttest_ind([*ours.values()], [*theirs.values()], equal_var=False)
    assert found.student == pytest.approx(tuple(test.confidence_interval(0.9)))
    assert found.p == pytest.approx(test.pvalue)
    assert not found.paired


def test_a_difference_within_the_noise_is_not_significant() -> None:
    ours = seeded(*(0.934 + noise for noise in NOISE))
    theirs = seeded(*(0.932 + noise for noise in (*NOISE[1:], NOISE[0])))
    found = difference(ours, theirs)
    assert found.mean == pytest.approx(0.002)
    single = verdict(found)
    assert not single.significant
    differences = [ours[seed] - theirs[seed] for seed in ours]
    needed = seeds_needed(0.002 / float(np.std(differences, ddof=1)))
    assert needed is not None
    assert single.more_seeds == needed - 5
    # The same gap with hardly any noise of its own is significant: seeds are hard or easy for both.
    close = {seed: value - 0.002 + 0.0001 * (seed % 2) for seed, value in ours.items()}
    assert verdict(difference(ours, close)).significant


def test_three_seeds_that_agree_in_sign_are_not_enough() -> None:
    found = difference(seeded(0.95, 0.94, 0.93), seeded(0.949, 0.935, 0.921))
    assert found.bootstrap is not None
    assert found.bootstrap[0] > 0
    assert not verdict(found).significant


def test_one_seed_has_no_spread() -> None:
    for theirs in (seeded(0.8), seeded(0.8, first=4), seeded(0.8, 0.7)):
        found = difference(seeded(0.9), theirs)
        assert (found.bootstrap, found.student, found.sd, found.p) == (None, None, None, None)
        assert holm_verdicts([found, None], 0.95, 1) == [None, None]
    assert difference(seeded(0.9), seeded(0.8)).mean == pytest.approx(0.1)


def test_seeds_that_match_in_part() -> None:
    ours, theirs = seeded(0.9, 0.91, 0.92), seeded(0.8, 0.81, first=1)
    found = difference(ours, theirs)
    assert (found.paired, found.n) == (True, 2)
    assert found.mean == pytest.approx(0.11)
    # One seed in common is not enough of a pair.
    assert not difference(ours, seeded(0.8, 0.81, first=2)).paired


def test_no_difference_at_all() -> None:
    same = seeded(0.9, 0.91, 0.92)
    assert difference(same, same) == Difference(0, True, 3, None, None, None, None)


def test_without_a_spread_there_is_no_verdict() -> None:
    # Of a metric that counts, two seeds often differ by the same: that is no certainty.
    found = difference(seeded(0.91, 0.93), seeded(0.9, 0.92))
    assert found.mean == pytest.approx(0.01)
    assert (found.bootstrap, found.p) == (None, None)
    # Nor is what rounding leaves.
    rounded = difference(seeded(0.1 + 0.2, 0.3), seeded(0.3, 0.3))
    assert (rounded.mean, rounded.p) == (0, None)
    assert difference(seeded(0.9, 0.9), seeded(0.8, 0.8, first=5)).p is None
    assert holm_verdicts([found, rounded], 0.95, 3) == [None, None]


def test_the_best_of_counted_noise_is_rarely_significant() -> None:
    drawn = np.random.default_rng(1).binomial(100, 0.9, (60, 10, 2)) / 100
    wrong = 0
    for values in drawn:
        best = values.mean(1).argmax()
        found = [
            difference(seeded(*row), seeded(*values[best])) if index != best else None
            for index, row in enumerate(values)
        ]
        wrong += any(
            verdict is not None and verdict.significant
            for verdict in holm_verdicts(found, 0.95, 45)
        )
    assert wrong <= 6  # 5 % of 60, and two standard errors


def test_p_of_several_comparisons_is_holms() -> None:
    # The example of p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R.
    single = [Difference(1, True, 3, (0.5, 1.5), (0, 2), 1, p) for p in (0.01, 0.04, 0.03, 0.005)]
    found = holm_verdicts([*single, None], 0.95, 4)
    assert [verdict and verdict.p for verdict in found] == pytest.approx(
        [0.03, 0.06, 0.06, 0.02, None]
    )
    assert [verdict and verdict.significant for verdict in found] == [
        True,
        False,
        False,
        True,
        None,
    ]
    # Chosen among more, each counts for more.
    found = holm_verdicts(single, 0.95, 7)
    assert [verdict and verdict.p for verdict in found] == pytest.approx([0.06, 0.16, 0.15, 0.035])
    assert [verdict and verdict.significant for verdict in found] == [False, False, False, True]


def test_no_significance_if_the_bootstrap_interval_holds_zero() -> None:
    (found,) = holm_verdicts([Difference(1, True, 9, (0, 2), (0.5, 1.5), 1, 0.001)], 0.95, 1)
    assert found is not None
    assert not found.significant


def test_the_best_of_noise_is_rarely_significant() -> None:
    alone = together = 0
    for values in np.random.default_rng(5).normal(0.9, 0.01, (100, 6, 4)):
        best = values.mean(1).argmax()
        found = [
            difference(seeded(*row), seeded(*values[best])) if index != best else None
            for index, row in enumerate(values)
        ]
        alone += any(
            verdict is not None and verdict.significant for verdict in holm_verdicts(found, 0.95, 5)
        )
        together += any(
            verdict is not None and verdict.significant
            for verdict in holm_verdicts(found, 0.95, 15)
        )
    assert together <= 8  # 5 %, and two standard errors of 100 draws
    assert alone > together


def test_many_comparisons_need_more_seeds() -> None:
    found = difference(seeded(0.912, 0.903, 0.921), seeded(0.909, 0.905, 0.913))
    few, many = (holm_verdicts([found], 0.95, comparisons)[0] for comparisons in (1, 45))
    assert few is not None
    assert many is not None
    assert few.more_seeds is not None
    assert many.more_seeds is not None
    assert few.more_seeds < many.more_seeds


@pytest.mark.parametrize(
    ("effect", "paired", "seeds"),
    # G*Power's, of t tests at 5 % and 80 %; 0.5 of unpaired groups is 0.5/√2 of a difference.
    [(1.0, True, 10), (0.5, True, 34), (0.5 / 2**0.5, False, 64), (0.8 / 2**0.5, False, 26)],
)
def test_seeds_needed(effect: float, paired: bool, seeds: int) -> None:
    assert seeds_needed(effect, paired=paired) == seeds


@pytest.mark.parametrize("paired", [True, False])
def test_seeds_needed_are_those_of_another_implementation(paired: bool) -> None:
    n = np.arange(2, 1001)
    freedom = n - 1 if paired else 2 * n - 2
    for effect in np.linspace(0.2, 6, 60):
        for level in (0.05, 0.05 / 45):
            critical = stats.t.isf(level / 2, freedom)
            power = stats.nct.sf(critical, freedom, effect * np.sqrt(n))
            expected = n[np.flatnonzero(power >= POWER)[0]]
            assert seeds_needed(effect, 1 - level, paired=paired) == pytest.approx(expected, abs=1)


def test_as_many_seeds_as_needed_find_the_difference() -> None:
    n = seeds_needed(1.5)
    assert n is not None
    drawn = np.random.default_rng(3).normal(1.5, 1, (4000, n))
    fraction = float((stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean())
    assert POWER - 0.02 < fraction < POWER + 0.12
    assert seeds_needed(0.01) is None


@settings(max_examples=40, deadline=None)
@given(SEEDS, SEEDS)
def test_swapped_groups_flip_the_signs(ours: dict[int, float], theirs: dict[int, float]) -> None:
    one, other = difference(ours, theirs), difference(theirs, ours)
    assert one.mean == pytest.approx(-other.mean, abs=1e-12)
    for here, there in ((one.bootstrap, other.bootstrap), (one.student, other.student)):
        assert (here is None) == (there is None)
        if here is not None and there is not None:
            assert here == pytest.approx((-there[1], -there[0]), abs=1e-12)
    assert (one.paired, one.n, one.sd, one.p) == (other.paired, other.n, other.sd, other.p)
    assert holm_verdicts([one], 0.95, 3) == holm_verdicts([other], 0.95, 3)


@settings(max_examples=40, deadline=None)
@given(SEEDS, SEEDS, st.integers(-8, 8))
def test_a_constant_on_all_changes_nothing(
    ours: dict[int, float], theirs: dict[int, float], constant: int
) -> None:
    one = difference(ours, theirs)
    moved = [{seed: value + constant for seed, value in side.items()} for side in (ours, theirs)]
    other = difference(*moved)
    # Rounding may break a tie with zero.
    assume(all(abs(end) > 1e-9 for span in (one.bootstrap, one.student) for end in span or ()))
    assert other.mean == pytest.approx(one.mean, abs=1e-9)
    for here, there in ((one.bootstrap, other.bootstrap), (one.student, other.student)):
        if here is not None:
            assert there == pytest.approx(here, abs=1e-9)
    for here, there in zip(
        holm_verdicts([one], 0.95, 1), holm_verdicts([other], 0.95, 1), strict=True
    ):
        assert (here and here.significant) == (there and there.significant)


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0, "< 0.001"), (0.0004, "< 0.001"), (0.0005, "0.001"), (0.0314, "0.031"), (1.0, "1.000")],
)
def test_a_small_p_is_not_written_as_zero(p: float, text: str) -> None:
    assert p_text(p) == text
