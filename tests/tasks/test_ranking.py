"""Ranking metrics against slow reference code, scipy and torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import BinaryCalibrationError

from research.batch import PairBatch, PhotoBatch
from research.tasks.ranking import Ranking
from research.tasks.ranking_metrics import RankingMetrics
from research.viz import pictures
from tests.conftest import user_error

CPU = torch.device("cpu")
BINS = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
NAMES = [
    "pair_accuracy",
    *(f"accuracy_{low}_{low + 10}" for low in (50, 60, 70, 80, 90)),
    "constant_accuracy",
    "log_loss",
    "ece",
    "series_top1",
    "kendall_tau",
]


def ranking(target: str = "soft") -> Ranking:
    return Ranking([], target, BINS, "val/pair_accuracy:max")


def batch(
    preference: Sequence[float], series: Sequence[int], photos: Sequence[tuple[int, int]]
) -> PairBatch:
    count = len(preference)
    return PairBatch(
        torch.arange(count),
        torch.arange(count * 6.0).view(count, 2, 3),
        torch.tensor(preference, dtype=torch.float32),
        torch.tensor(series),
        torch.tensor(photos),
    )


def part(whole: PairBatch, chosen: Any) -> PairBatch:
    return whole.map(lambda tensor: tensor[chosen])


def swapped(whole: PairBatch) -> PairBatch:
    return replace(
        whole,
        inputs=whole.inputs.flip(1),
        preference=1 - whole.preference,
        photos=whole.photos.flip(1),
    )


def random_pairs(
    seed: int, sizes: Sequence[int], fraction: float = 0.8
) -> tuple[Tensor, PairBatch]:
    """Logits and shuffled pairs of series of these sizes; some pairs are missing, some are ties."""
    rng = np.random.default_rng(seed)
    rows, start = [], 0
    for number, size in enumerate(sizes):
        pairs = [*combinations(range(start, start + size), 2)]
        chosen = [pair for pair in pairs if rng.random() < fraction] or pairs[:1]
        rows += [(rng.integers(0, 101) / 100, number + 7, pair) for pair in chosen]
        start += size
    rows = [rows[index] for index in rng.permutation(len(rows))]
    logits = torch.from_numpy(rng.normal(0, 2, len(rows)).round(2)).float()
    pairs = batch(*([row[column] for row in rows] for column in range(3)))
    pairs.preference[rng.random(len(rows)) < 0.1] = 0.5
    return logits, pairs


def evaluate(
    logits: Tensor, whole: PairBatch, size: int = 10**6, target: str = "soft"
) -> RankingMetrics:
    metrics = ranking(target).metrics(CPU)
    for start in range(0, len(logits), size):
        chosen = slice(start, start + size)
        metrics.update(logits[chosen], part(whole, chosen))
    return metrics


# -- metrics -------------------------------------------------------------------------------------


def accuracy(logits: Tensor, preference: Tensor, low: float = 0.5, high: float = 1.1) -> float:
    fractions = preference.double().round(decimals=4).tolist()
    points = [
        0.5 if logit == 0 else float((logit > 0) == (votes > 0.5))
        for logit, votes in zip(logits.tolist(), fractions, strict=True)
        if votes != 0.5 and low <= round(max(votes, 1 - votes), 4) < high
    ]
    return sum(points) / len(points)


def orders(logits: Tensor, whole: PairBatch) -> tuple[float, float]:
    """Top-1 and Kendall's τ over series, photo by photo."""
    tops, taus = [], []
    for series in whole.series.unique().tolist():
        votes: dict[int, list[float]] = {}
        predicted: dict[int, list[float]] = {}
        for row in (whole.series == series).nonzero()[:, 0].tolist():
            first, second = whole.photos[row].tolist()
            voted, probability = float(whole.preference[row]), float(logits[row].double().sigmoid())
            votes.setdefault(first, []).append(voted)
            votes.setdefault(second, []).append(1 - voted)
            predicted.setdefault(first, []).append(probability)
            predicted.setdefault(second, []).append(1 - probability)
        true = [round(float(np.mean(votes[photo])), 5) for photo in votes]
        model = [round(float(np.mean(predicted[photo])), 8) for photo in votes]
        if len({*true}) == 1:
            continue
        best = [n for n, value in enumerate(model) if value == max(model)]
        tops.append(np.mean([true[n] == max(true) for n in best]))
        tau = kendalltau(true, model).statistic
        taus.append(0.0 if math.isnan(tau) else tau)
    return float(np.mean(tops)), float(np.mean(taus))


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_the_reference(seed: int) -> None:
    logits, whole = random_pairs(seed, [2] * 30 + [3, 4, 5, 8] * 8)
    logits[:3] = 0
    values = evaluate(logits, whole, 10).compute()
    assert list(values) == ranking().metrics(CPU).names == NAMES
    assert values["pair_accuracy"] == pytest.approx(accuracy(logits, whole.preference))
    for low in (50, 60, 70, 80, 90):
        high = 1.1 if low == 90 else low / 100 + 0.1
        expected = accuracy(logits, whole.preference, low / 100, high)
        assert values[f"accuracy_{low}_{low + 10}"] == pytest.approx(expected), low
    first = accuracy(torch.ones_like(logits), whole.preference)
    assert values["constant_accuracy"] == pytest.approx(max(first, 1 - first))
    expected = F.binary_cross_entropy_with_logits(logits.double(), whole.preference.double())
    assert values["log_loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert (values["series_top1"], values["kendall_tau"]) == pytest.approx(orders(logits, whole))
    assert 0 < values["kendall_tau"] + 1 < 2


def test_calibration_is_torchmetrics() -> None:
    logits, whole = random_pairs(3, [3] * 60)
    logits = logits[whole.preference != 0.5]
    whole = part(whole, whole.preference != 0.5)
    values = evaluate(logits, whole, target="majority").compute()
    right = ((logits > 0) == (whole.preference > 0.5)).long()
    theirs = BinaryCalibrationError(n_bins=20, norm="l1")(logits.abs().sigmoid(), right)
    assert values["ece"] == pytest.approx(theirs.item(), abs=1e-6)
    assert theirs > 0.05
    won = (whole.preference > 0.5).double()
    expected = F.binary_cross_entropy_with_logits(logits.double(), won).item()
    assert values["log_loss"] == pytest.approx(expected, rel=1e-9)


def test_calibration_against_the_fraction_of_votes_by_hand() -> None:
    # Predicted 0.75 for votes of 0.6 and 0.7; the third pair is predicted the other way round.
    logits = torch.tensor([1.0, 1.0, -1.0]) * math.log(3)
    values = evaluate(logits, batch([0.6, 0.7, 0.2], [0, 1, 2], [(0, 1), (2, 3), (4, 5)])).compute()
    assert values["ece"] == pytest.approx(0.75 - (0.6 + 0.7 + 0.8) / 3)
    assert values["pair_accuracy"] == 1


def test_a_smaller_last_batch_is_weighted_by_its_size() -> None:
    # The mean of batch means would be 3/4.
    whole = batch([0.9] * 3, [0, 1, 2], [(0, 1), (2, 3), (4, 5)])
    logits = torch.tensor([1.0, -1.0, 1.0])
    assert evaluate(logits, whole, 2).compute()["pair_accuracy"] == pytest.approx(2 / 3)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    sizes=st.lists(st.integers(2, 6), min_size=1, max_size=12),
    size=st.integers(1, 9),
    target=st.sampled_from(["soft", "majority"]),
)
def test_neither_swaps_nor_batches_nor_their_order_change_a_metric(
    seed: int, sizes: list[int], size: int, target: str
) -> None:
    logits, whole = random_pairs(seed, sizes)
    metrics = evaluate(logits, whole, target=target)
    expected, intervals = metrics.compute(), metrics.intervals()
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    for other in (
        evaluate(-logits, swapped(whole), target=target),
        evaluate(logits, whole, size, target),
        evaluate(logits[order], part(whole, order), target=target),
    ):
        assert other.compute() == pytest.approx(expected, abs=1e-6, nan_ok=True)
        for one, two in zip(other.intervals(), intervals, strict=True):
            assert one["metric"] == two["metric"]
            for name in ("value", "low", "high", "constant"):
                assert one[name] == pytest.approx(two[name], abs=1e-6, nan_ok=True)


def test_a_perfect_and_a_constant_ranker() -> None:
    votes = [0.9, 0.7, 0.6, 0.2]
    whole = batch(votes, [0, 0, 0, 1], [(0, 1), (1, 2), (0, 2), (3, 4)])
    logits = torch.logit(whole.preference)
    perfect = evaluate(logits, whole).compute()
    entropy = -np.mean([p * math.log(p) + (1 - p) * math.log(1 - p) for p in votes])
    assert perfect["log_loss"] == pytest.approx(entropy, abs=1e-6)
    assert perfect["ece"] == pytest.approx(0, abs=1e-6)
    assert [perfect[n] for n in ("pair_accuracy", "series_top1", "kendall_tau")] == [1, 1, 1]
    blind = evaluate(torch.zeros(4), whole).compute()
    assert blind["log_loss"] == pytest.approx(math.log(2))
    assert blind["pair_accuracy"] == 0.5
    assert blind["series_top1"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert blind["kendall_tau"] == 0
    assert blind["constant_accuracy"] == 0.75


def test_ties_are_left_out_and_edges_belong_to_the_upper_bin() -> None:
    # 0.7 in single precision is less than 0.7.
    votes = [0.5, 0.7, 0.3, 1.0, 0.0, 0.9]
    whole = batch(votes, range(6), [(2 * n, 2 * n + 1) for n in range(6)])
    values = evaluate(torch.tensor([5.0, 1.0, 1.0, 1.0, 1.0, 1.0]), whole).compute()
    assert values["pair_accuracy"] == pytest.approx(3 / 5)
    assert values["accuracy_70_80"] == 0.5
    assert values["accuracy_90_100"] == pytest.approx(2 / 3)
    assert math.isnan(values["accuracy_50_60"])
    assert math.isnan(values["accuracy_60_70"])
    ties = evaluate(torch.ones(1), part(whole, slice(0, 1))).compute()
    assert math.isnan(ties["pair_accuracy"])
    assert math.isnan(ties["series_top1"])
    assert ties["log_loss"] == pytest.approx(math.log(1 + math.exp(-1)) + 0.5)


def test_reset_and_no_pairs() -> None:
    logits, whole = random_pairs(0, [4] * 5)
    metrics = evaluate(logits, whole)
    first = metrics.compute()
    metrics.reset()
    assert metrics.compute() == {}
    assert metrics.worst is None
    metrics.update(logits, whole)
    assert metrics.compute() == pytest.approx(first, nan_ok=True)


def test_nan_logits_are_evaluated() -> None:
    _, whole = random_pairs(0, [3] * 10)
    metrics = evaluate(torch.full((len(whole),), math.nan), whole)
    values = metrics.compute()
    undefined = ("pair_accuracy", "log_loss", "ece", "series_top1", "kendall_tau")
    assert all(math.isnan(values[name]) for name in undefined)
    assert ranking().tables(metrics, names)["confident_mistakes"] == []
    infinite = evaluate(torch.full((len(whole),), math.inf), whole).compute()
    assert infinite["pair_accuracy"] == pytest.approx(
        evaluate(torch.ones(len(whole)), whole).compute()["pair_accuracy"]
    )
    assert ranking().pictures(metrics, whole, torch.ones(len(whole)), shown)


# -- intervals -----------------------------------------------------------------------------------


def row_of(metrics: RankingMetrics, name: str = "pair_accuracy") -> dict[str, Any]:
    return {row["metric"]: dict(row) for row in metrics.intervals()}[name]


def test_intervals_of_single_pairs_are_the_binomials() -> None:
    count, right = 400, 280
    whole = batch([0.8] * count, range(count), [(2 * n, 2 * n + 1) for n in range(count)])
    logits = torch.where(torch.arange(count) < right, 1.0, -1.0)
    row = row_of(evaluate(logits, whole))
    error = 1.96 * math.sqrt(0.7 * 0.3 / count)
    assert row["value"] == pytest.approx(0.7)
    assert (row["low"], row["high"]) == pytest.approx((0.7 - error, 0.7 + error), abs=0.006)
    assert (row["constant"], row["pairs"], row["series"]) == (1.0, count, count)


def test_pairs_of_one_series_are_not_independent() -> None:
    count = 60
    logits = torch.where(torch.arange(count) % 3 > 0, 1.0, -1.0)
    once = batch([0.8] * count, range(count), [(2 * n, 2 * n + 1) for n in range(count)])
    often = part(once, torch.arange(count).repeat(5))
    one, five = row_of(evaluate(logits, once)), row_of(evaluate(logits.repeat(5), often))
    assert (five["low"], five["high"]) == pytest.approx((one["low"], one["high"]))
    assert five["pairs"] == 5 * one["pairs"]
    assert one["low"] < 0.6 < 0.72 < one["high"]


def test_every_metric_has_the_value_of_the_constant_baseline() -> None:
    logits, whole = random_pairs(1, [3] * 40)
    first = ((whole.preference > 0.5).sum() / (whole.preference != 0.5).sum()).item()
    still = evaluate(torch.full_like(logits, math.log(first / (1 - first))), whole).compute()
    for row in evaluate(logits, whole).intervals():
        assert row["constant"] == pytest.approx(still[str(row["metric"])], abs=1e-6)
        assert row["low"] <= row["value"] <= row["high"]


# -- losses and predictions ----------------------------------------------------------------------


class Fixed(nn.Module):
    """A model with constant logits; a photo's score is the sum of its inputs."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits

    def score(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1).sum(1)


def test_the_soft_loss_is_the_cross_entropy_with_the_votes() -> None:
    logits, whole = random_pairs(0, [4] * 10)
    losses = ranking().losses(Fixed(logits), whole)
    probability, votes = logits.double().sigmoid(), whole.preference.double()
    expected = -(votes * probability.log() + (1 - votes) * (1 - probability).log()).mean()
    assert list(losses) == ["preference"]
    assert losses["preference"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_ties_have_no_weight_in_the_majority_loss() -> None:
    logits, whole = random_pairs(0, [4] * 10)
    decided = whole.preference != 0.5
    assert 0 < decided.sum() < len(logits)
    model = Fixed(logits)
    loss = ranking("majority").losses(model, whole)["majority"]
    won = torch.where(whole.preference > 0.5, logits, -logits)[decided]
    assert loss.item() == pytest.approx(-won.double().sigmoid().log().mean().item(), rel=1e-6)
    loss.backward()
    assert torch.equal(model.logits.grad != 0, decided)
    tied = replace(whole, preference=torch.full_like(whole.preference, 0.5))
    nothing = ranking("majority").losses(model, tied)
    assert nothing["majority"].item() == 0


def test_swapping_every_pair_does_not_change_the_loss() -> None:
    logits, whole = random_pairs(4, [4] * 10)
    for task in (ranking(), ranking("majority")):
        one = task.losses(Fixed(logits), whole)
        two = task.losses(Fixed(-logits), swapped(whole))
        torch.testing.assert_close(one, two)


def test_photos_are_scored_and_pairs_compared() -> None:
    logits, whole = random_pairs(0, [4] * 3)
    task, model = ranking(), Fixed(logits.bfloat16())
    assert task.predict(model, whole).dtype == torch.float32
    photos = PhotoBatch(torch.arange(4), torch.arange(12.0).view(4, 3))
    scores = task.predict(model, photos)
    assert scores.tolist() == [3.0, 12.0, 21.0, 30.0]
    assert torch.equal(task.postprocess(scores, photos), scores)


# -- tables and pictures -------------------------------------------------------------------------


def test_the_most_confident_mistakes_over_all_batches() -> None:
    logits, whole = random_pairs(5, [4] * 30)
    metrics = evaluate(logits, whole, 7)
    wrong = (logits > 0) != (whole.preference > 0.5)
    wrong &= (logits != 0) & (whole.preference != 0.5)
    assert wrong.sum() > 12
    expected = logits[wrong].abs().sort(descending=True).values[:12]
    assert metrics.worst is not None
    mistakes, worst_logits = metrics.worst
    torch.testing.assert_close(worst_logits.abs().float(), expected)
    rows = ranking().tables(metrics, names)["confident_mistakes"]
    for row, sample in zip(rows, mistakes.index.tolist(), strict=True):
        assert list(row) == ["sample", "first", "preference", "predicted"]
        assert row["sample"] == sample
        assert row["first"] == f"{whole.photos[sample, 0]}.JPG"
        assert row["preference"] == round(whole.preference[sample].item(), 4)
        assert row["predicted"] == pytest.approx(logits[sample].sigmoid().item(), abs=6e-5)
    torch.testing.assert_close(mistakes.inputs, whole.inputs[mistakes.index])


def shown(batch: PairBatch) -> list[Tensor]:
    """Grey photos; the brightness is the first input value of each."""
    grey = (batch.inputs.flatten(2)[..., 0] * 255).to(torch.uint8)
    return list(grey[..., None, None, None].expand(-1, -1, 3, 8, 8).unbind(1))


def names(batch: PairBatch) -> dict[str, list[str]]:
    return {"first": [f"{photo}.JPG" for photo in batch.photos[:, 0].tolist()]}


@pytest.mark.parametrize("shape", [(3, 8, 8), (5,)])
def test_series_are_drawn_from_best_to_worst(shape: tuple[int, ...]) -> None:
    # Photos of grey levels 0.1, 0.5 and 0.9; the model ranks them 2, 0, 1, the votes 2, 1, 0.
    whole = batch([0.4, 0.1, 0.2], [3, 3, 3], [(0, 1), (0, 2), (1, 2)])
    levels = torch.tensor([0.1, 0.5, 0.9])[whole.photos]
    inputs = levels.view(3, 2, *[1] * len(shape)).expand(3, 2, *shape)
    whole = replace(whole, inputs=inputs)  # images, or features of them
    logits = torch.tensor([1.0, -2.0, -3.0])
    drawn = ranking().pictures(evaluate(logits, whole), whole, logits, shown)
    assert {*drawn} == {"reliability", "ranked_series", "confident_mistakes"}
    sheet = np.asarray(drawn["ranked_series"])[-8 - 32 - 128 :]  # above two lines of text
    assert [sheet[40, 40 + 136 * n, 0] for n in range(3)] == [229, 25, 127]
    assert sheet.shape[1] == 3 * 136 + 8  # no place is empty
    for column, right in enumerate([True, False, False]):
        caption = sheet[128:160, 8 + 136 * column : 136 + 136 * column].reshape(-1, 3)
        red, _, blue = caption.mean(0)  # thin letters do not have the full colour
        assert (blue > red) == right
        assert min(red, blue) < 253
    pair = np.asarray(drawn["confident_mistakes"])
    left = (pair.shape[1] - 256) // 2
    levels = pair[-100, left + 40, 0], pair[-100, left + 40 + 128, 0]
    assert levels == (25, 127)


def test_training_pairs_are_shown_with_their_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "sheet", lambda *args: drawn.append(args))
    _, whole = random_pairs(1, [3] * 30)
    ranking().training_pictures(whole, shown)
    [(cells, captions, marks, *_)] = drawn
    assert len(cells) == len(captions) == len(marks) == len(whole)
    assert captions == [f"votes {votes:.0%}" for votes in whole.preference.tolist()]
    assert cells[0].size == (256, 128)


def test_only_the_drawn_photos_of_a_batch_are_rendered() -> None:
    logits, whole = random_pairs(1, [3] * 30)
    rendered: list[int] = []

    def counted(batch: PairBatch) -> list[Tensor]:
        rendered.append(len(set(batch.photos.flatten().tolist())))
        return shown(batch)

    ranking().pictures(evaluate(logits, whole), whole, logits, counted)
    assert max(rendered) == 8 * 3  # eight series; twelve mistakes have no more photos


def test_a_split_without_mistakes() -> None:
    few = batch([0.9, 0.5], [0, 0], [(0, 1), (1, 2)])
    right = torch.tensor([1.0, 1.0])
    metrics = evaluate(right, few)
    values = ranking().pictures(metrics, few, right, shown)["confident_mistakes"]
    assert values.size[1] == 32
    # In place of the table of an earlier epoch.
    assert ranking().tables(metrics, names)["confident_mistakes"] == []


@pytest.mark.parametrize(
    ("key", "target", "bins"),
    [
        ("task.target", "hard", BINS),
        ("task.bins", "soft", [0.5]),
        ("task.bins", "soft", [0.7, 0.6]),
        ("task.bins", "soft", [0.4, 1.0]),
    ],
)
def test_invalid_settings(key: str, target: str, bins: list[float]) -> None:
    with user_error(key, target if key == "task.target" else bins):
        Ranking([], target, bins, "val/pair_accuracy:max")
