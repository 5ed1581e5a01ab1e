"""Matching against references of other makes: loops over pairs, and every assignment there is."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from research.models.matching import MATCHERS, Affinity, affinity, greedy, hungarian, total_iou

# Corners on a coarse grid: equal overlaps, equal distances and boxes without area all occur.
CORNER = st.integers(0, 6)


@st.composite
def frames(draw: st.DrawFn, slots: int = 5, predictions: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [B, M, 4] with a mask, and predictions [B, P, 4]."""
    count, m, p = (draw(st.integers(1, n)) for n in (3, slots, predictions))

    def boxes(number: int) -> Tensor:
        corners = draw(st.lists(CORNER, min_size=4 * number, max_size=4 * number))
        pairs = torch.tensor(corners).view(-1, 2, 2).sort(1).values
        return pairs.reshape(count, -1, 4) / 6

    mask = draw(st.lists(st.booleans(), min_size=count * m, max_size=count * m))
    return boxes(count * m), torch.tensor(mask).view(count, m), boxes(count * p)


def overlap(one: list[float], two: list[float]) -> float:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(0.0, width) * max(0.0, height)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)) - shared
    return shared / union if union > 0 else 0.0


def centre_distance(one: list[float], two: list[float]) -> float:
    return math.hypot(one[0] + one[2] - two[0] - two[2], one[1] + one[3] - two[1] - two[3]) / 2


def slow_greedy(iou: Tensor, distance: Tensor, mask: Tensor) -> list[int]:
    """One frame: sort all pairs by all four rules, walk down the list."""
    real = [index for index, holds in enumerate(mask.tolist()) if holds]
    pairs = sorted(
        (-iou[true, prediction].item(), distance[true, prediction].item(), true, prediction)
        for true in real
        for prediction in range(iou.shape[1])
    )
    matches = [-1] * len(mask)
    for _, _, true, prediction in pairs:
        if matches[true] == -1 and prediction not in matches:
            matches[true] = prediction
    return matches


def slow_optimum(iou: Tensor, mask: Tensor) -> float:
    """One frame: the greatest total IoU over every one-to-one assignment."""
    rows = iou[mask].tolist()
    if rows and len(rows) > len(rows[0]):
        rows = [list(column) for column in zip(*rows, strict=True)]
    columns = range(len(rows[0])) if rows else []
    return max(
        sum(row[column] for row, column in zip(rows, chosen, strict=True))
        for chosen in itertools.permutations(columns, len(rows))
    )


@settings(deadline=None, max_examples=60)
@given(frames())
def test_affinity_is_overlap_and_distance_of_each_pair(case: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes, _, predictions = case
    pairs = affinity(boxes, predictions)
    for frame, (true, prediction) in enumerate(
        zip(boxes.tolist(), predictions.tolist(), strict=True)
    ):
        iou = torch.tensor([[overlap(one, two) for two in prediction] for one in true])
        distance = torch.tensor([[centre_distance(one, two) for two in prediction] for one in true])
        torch.testing.assert_close(pairs.iou[frame], iou)
        torch.testing.assert_close(pairs.distance[frame], distance)


@settings(deadline=None, max_examples=150)
@given(frames())
def test_greedy_equals_a_loop_over_sorted_pairs(case: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes, mask, predictions = case
    pairs = affinity(boxes, predictions)
    matches = greedy(pairs, mask)
    expected = [slow_greedy(*one) for one in zip(pairs.iou, pairs.distance, mask, strict=True)]
    assert matches.tolist() == expected


@settings(deadline=None, max_examples=60)
@given(frames())
def test_hungarian_has_the_largest_total(case: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes, mask, predictions = case
    pairs = affinity(boxes, predictions)
    optimal = total_iou(pairs, hungarian(pairs, mask))
    expected = [slow_optimum(iou, real) for iou, real in zip(pairs.iou, mask, strict=True)]
    torch.testing.assert_close(optimal, torch.tensor(expected, dtype=torch.float32))


@settings(deadline=None, max_examples=100)
@given(frames(slots=8, predictions=10))
def test_no_prediction_is_matched_twice(case: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes, mask, predictions = case
    pairs = affinity(boxes, predictions)
    totals = {}
    for name, matcher in MATCHERS.items():
        matches = matcher(pairs, mask)
        assert matches.dtype == torch.int64
        for row, real in zip(matches, mask, strict=True):
            taken = row[row >= 0].tolist()
            assert len(set(taken)) == len(taken) == min(int(real.sum()), predictions.shape[1])
            assert set(taken) <= set(range(predictions.shape[1]))
            assert (row[~real] == -1).all()
        totals[name] = total_iou(pairs, matches)
    assert (totals["hungarian"] >= totals["greedy"] - 1e-6).all()


def test_hungarian_prefers_the_total_over_the_best_pair() -> None:
    iou = torch.tensor([[[0.9, 0.8], [0.8, 0.0]]])
    pairs, mask = Affinity(iou, torch.zeros_like(iou)), torch.ones(1, 2, dtype=torch.bool)
    assert greedy(pairs, mask).tolist() == [[0, 1]]
    assert hungarian(pairs, mask).tolist() == [[1, 0]]
    assert total_iou(pairs, hungarian(pairs, mask)).item() == pytest.approx(1.6)


@pytest.mark.parametrize("matcher", MATCHERS.values())
def test_boxes_without_overlap_get_the_nearest_prediction(matcher: object) -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.1, 0.1], [0.9, 0.9, 1.0, 1.0]]])
    predictions = torch.tensor([[[0.5, 0.5, 0.6, 0.6], [0.7, 0.7, 0.8, 0.8], [0.2, 0.2, 0.3, 0.3]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert matcher(affinity(boxes, predictions), mask).tolist() == [[2, 1]]  # type: ignore[operator]


def test_equal_pairs_are_ordered_by_index() -> None:
    box = [0.2, 0.2, 0.4, 0.4]
    boxes, mask = torch.tensor([[box] * 3]), torch.ones(1, 3, dtype=torch.bool)
    assert greedy(affinity(boxes, torch.tensor([[box] * 5])), mask).tolist() == [[0, 1, 2]]
    assert greedy(affinity(boxes, torch.tensor([[box] * 2])), mask).tolist() == [[0, 1, -1]]


@pytest.mark.parametrize("matcher", MATCHERS.values())
@pytest.mark.parametrize(("slots", "predictions"), [(0, 3), (2, 0), (0, 0), (2, 3)])
def test_nothing_to_match(matcher: object, slots: int, predictions: int) -> None:
    pairs = affinity(torch.zeros(2, slots, 4), torch.zeros(2, predictions, 4))
    mask = torch.zeros(2, slots, dtype=torch.bool)
    matches = matcher(pairs, mask)  # type: ignore[operator]
    assert matches.shape == (2, slots)
    assert (matches == -1).all()


@pytest.mark.parametrize("matcher", MATCHERS.values())
def test_nan_predictions_do_not_raise(matcher: object) -> None:
    # The loop reports the loss that is not finite.
    predictions = torch.tensor([[[math.nan] * 4, [0.1, 0.1, 0.3, 0.3]]])
    boxes, mask = torch.tensor([[[0.1, 0.1, 0.2, 0.3]]]), torch.ones(1, 1, dtype=torch.bool)
    assert matcher(affinity(boxes, predictions), mask).tolist() == [[1]]  # type: ignore[operator]


def test_no_gradient_through_matching() -> None:
    predictions = torch.rand(1, 4, 4, requires_grad=True)
    pairs = affinity(torch.rand(1, 2, 4), predictions)
    assert not pairs.iou.requires_grad
    assert not pairs.distance.requires_grad
