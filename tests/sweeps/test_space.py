from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from optuna.samplers import RandomSampler

from research.config import register
from research.config.compose import composed
from research.sweeps.space import Space
from research.sweeps.study import Study
from tests.conftest import user_error


def test_a_grid_goes_in_the_order_of_nested_loops() -> None:
    space = Space.parse({}, ["seed=0,1", "epochs=3", "optimizer.lr=0.1,1e-2", "model=a,b"])
    assert space.fixed == ["epochs=3"]
    assert space.size == 8
    expected = [
        ["epochs=3", f"seed={seed}", f"optimizer.lr={lr}", f"model={model}"]
        for seed, lr, model in itertools.product((0, 1), (0.1, 0.01), "ab")
    ]
    assert [space.overrides(point) for point in space.points()] == expected


def test_values_are_written_as_hydra_parses_them() -> None:
    space = Space.parse({}, ["a=null,true", "b=[1,2],[3]", "c=range(1,4)", "d='x y','z'"])
    first, *_ = space.points()
    assert space.overrides(first) == ["a=null", "b=[1,2]", "c=1", "d='x y'"]
    assert space.size == 2 * 2 * 3 * 2


@pytest.mark.parametrize("values", [r"x\,y,z", r"\(x,y", r"choice('x,y',z)", "'it\\'s, or',b"])
def test_values_with_hydras_own_characters_stay_one_value(values: str) -> None:
    swept = OverridesParser.create().parse_override(f"a={values}").value()
    assert isinstance(swept, ChoiceSweep)
    space = Space.parse({}, [f"a={values}"])
    lines = [line for point in space.points() for line in space.overrides(point)]
    parsed = [OverridesParser.create().parse_override(line).value() for line in lines]
    assert [text(value) for value in parsed] == [text(value) for value in swept.list]
    assert [space.point([line]) for line in lines] == list(space.points())


def text(value: object) -> object:
    return value.text if isinstance(value, QuotedString) else value


@pytest.mark.parametrize("values", ["true,1", "0,2,false", "1.0,true"])
def test_values_that_optuna_does_not_distinguish_are_refused(values: str) -> None:
    with user_error("a", f"a={values}: a study does not distinguish"):
        Space.parse({}, [f"a={values}"])
    assert Space.parse({}, ["a=true,false,2", "b=0,1"]).size == 6


def test_the_command_line_takes_precedence() -> None:
    params = {"optimizer.lr": "0.1,0.2", "seed": "0,1", "epochs": "1,2"}
    space = Space.parse(params, ["optimizer.lr=0.3,0.4,0.5", "seed=7"])
    assert space.size == 6
    assert space.fixed == ["seed=7"]
    assert Space.parse({}, ["a=1", "b=2", "a=3,4"]).expressions == {"a": "3,4"}
    assert space.expressions == {"optimizer.lr": "0.3,0.4,0.5", "epochs": "1,2"}


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ("interval(0.1,0.2)", None),
        ("int(interval(1,5))", 5),
        ("int(interval(1,1000000))", None),
        ("range(0.0,0.3,0.1)", 3),
        ("tag(log, interval(1e-4,1e-1))", None),
    ],
)
def test_what_is_finite(values: str, size: int | None) -> None:
    assert Space.parse({"x": values}, []).size == size


def test_the_random_preset_covers_its_ranges(study_folder: Path) -> None:
    register()
    params = composed(["sweep=densenet_random", "model=densenet121"]).sweeper["params"]
    space = Space.parse(params, [])
    study = Study("draws", None, RandomSampler, directions=["maximize"])
    points = []
    for _ in range(200):
        claim = study.claim_trial(space, 200, 0, set(), grid=False)
        assert claim is not None
        points.append(claim.point)
        study.report(claim.number, [0.0])
        claim.lock.release()
    assert study.claim_trial(space, 200, 0, set(), grid=False) is None
    for key, low, high in [
        ("optimizer.lr", 1e-4, 1e-1),
        ("optimizer.weight_decay", 1e-5, 1e-2),
    ]:
        drawn = np.log10([point[key] for point in points])
        assert drawn.min() >= np.log10(low)
        assert drawn.max() <= np.log10(high)
        uniform = scipy.stats.uniform(np.log10(low), np.log10(high / low))
        assert scipy.stats.kstest(drawn, uniform.cdf).pvalue > 0.01
    dropout = [point["model.dropout"] for point in points]
    assert scipy.stats.kstest(dropout, scipy.stats.uniform(0, 0.3).cdf).pvalue > 0.01
    assert len({tuple(point.items()) for point in points}) == 200
