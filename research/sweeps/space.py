"""Search spaces: Hydra's sweep syntax, parsed into Optuna's distributions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from hydra.types import HydraContext
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from omegaconf import DictConfig
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from research.config.messages import quoted
from research.utils.errors import UserError, one_line

Point = Mapping[str, Any]
"""A value for every swept key, as Optuna stores it."""

MAX_POINTS: Final = 10_000
"""Larger spaces count as infinite: they are sampled, not enumerated."""
MAX_COMBINATIONS: Final = 100
"""Of options of swept groups that are all composed."""
MAX_EXPRESSION: Final = 10_000
"""Characters of a stored expression that is parsed."""
NOT_OF_SEARCH: Final = ("device=", "logging", "log_every=")


@dataclass(frozen=True)
class Space:
    """Swept keys, and the overrides that all trials share.

    Attributes:
        axes: the distribution of each swept key.
        expressions: the same as written on the command line, such as ``interval(0,1)``.
        fixed: the shared overrides, ``key=value`` each.
        words: all overrides as written; of a key that was given twice, the last.
    """

    axes: dict[str, BaseDistribution]
    expressions: dict[str, str]
    fixed: list[str]
    words: list[str]

    @classmethod
    def parse(
        cls, params: Mapping[str, Any], overrides: Sequence[str], recipe: str | None = None
    ) -> Space:
        """The space of a preset's ``params`` and a command line, which takes precedence.

        Args:
            params: ``KEY: VALUES``.
            overrides: ``key=value`` each, some with several values.
            recipe: the chosen option of ``experiment``. If the preset has chosen it, it becomes one
                of the shared overrides, with which a trial is repeated without the preset.

        Raises:
            UserError: for values that may change between calls, such as a glob or a shuffle, and
                for values that Optuna does not distinguish, ``true`` and 1.
        """
        brought = [f"experiment={recipe}"] if recipe not in (None, "null") else []
        words = [f"{key}={values}" for key, values in params.items()] + brought + list(overrides)
        last: dict[str, str] = {}
        for override in OverridesParser.create().parse_overrides(words):
            key, value = override.get_key_element(), override.value()
            if isinstance(value, Glob) or getattr(value, "shuffle", False):
                raise UserError(
                    key,
                    f"{override.input_line}: a study needs the same values on every call",
                    "list them",
                )
            last.pop(key, None)
            last[key] = override.input_line or ""
        try:
            axes, values, others = create_params_from_overrides(list(last.values()))
        except ValueError as error:
            raise UserError(
                ", ".join(last), f"{' '.join(last.values())}: {one_line(error)}"
            ) from error
        for key, axis in axes.items():
            _check_distinct(key, last[key], axis)
        expressions = {key: last[key].partition("=")[2] for key in axes}
        fixed = [f"{key}={value}" for key, value in values.items()] + others
        return cls(axes, expressions, fixed, list(last.values()))

    @property
    def size(self) -> int | None:
        """The number of points; ``None`` for an infinite space."""
        values = [axis_values(axis) for axis in self.axes.values()]
        if any(choices is None for choices in values):
            return None
        size = math.prod(len(choices or ()) for choices in values)
        return size if size <= MAX_POINTS else None

    def points(self) -> Iterator[Point]:
        """All points of a finite space; the last key changes fastest."""
        values = [axis_values(axis) or () for axis in self.axes.values()]
        for point in itertools.product(*values):
            yield dict(zip(self.axes, point, strict=True))

    def overrides(self, point: Point) -> list[str]:
        """The shared overrides and those of a point, ``key=value`` each, as Hydra parses them."""
        return [*self.fixed, *(f"{key}={to_override(value)}" for key, value in point.items())]

    def point(self, words: Sequence[str]) -> Point:
        """The point of a job's overrides (``key=value`` each), with the values of the axes."""
        texts = {key: value for key, _, value in (word.partition("=") for word in words)}
        return {key: _axis_value(axis, texts[key]) for key, axis in self.axes.items()}

    @property
    def identity(self) -> list[str]:
        """The shared overrides, sorted, without those of where and how a sweep runs."""
        return sorted(word for word in self.fixed if not word.startswith(NOT_OF_SEARCH))

    def configurations(self, context: HydraContext, base: DictConfig) -> dict[str, DictConfig]:
        """The configuration for each combination of the swept options of groups.

        Other keys have their first values. Of many combinations, each option is combined only with
        the first ones of the other groups.

        Returns:
            by overrides, such as ``model=a compression=b``; under an empty text if no options are
            swept.
        """
        first = {key: _first(axis) for key, axis in self.axes.items()}
        loader = context.config_loader
        options = {
            key: axis_values(axis) or ()
            for key, axis in self.axes.items()
            if loader.get_group_options(key.partition("@")[0])
        }
        if math.prod(map(len, options.values())) <= MAX_COMBINATIONS:
            combinations = [
                dict(zip(options, each, strict=True))
                for each in itertools.product(*options.values())
            ]
        else:
            combinations = [{key: v} for key, values in options.items() for v in values]
        points = [{**first, **chosen} for chosen in combinations]
        return {
            " ".join(f"{key}={point[key]}" for key in options): loader.load_sweep_config(
                base, self.overrides(point)
            )
            for point in points
        }


def same_values(then: str, now: str) -> bool:
    """Whether two expressions of an axis have the same values, such as ``1e-4`` and ``0.0001``."""
    if then == now:
        return True
    if len(then) > MAX_EXPRESSION:
        return False
    try:
        return _parsed(then) == _parsed(now)
    except HydraException:
        return False


def _check_distinct(key: str, word: str, axis: BaseDistribution) -> None:
    """Refuse choices that are equal in Python, but not the same setting."""
    choices = axis.choices if isinstance(axis, CategoricalDistribution) else ()
    for flag in (choice for choice in choices if isinstance(choice, bool)):
        for other in choices:
            if flag == other and not isinstance(other, bool):
                raise UserError(
                    key,
                    f"{word}: a study does not distinguish {to_override(flag)} from {other}",
                    "write one of them",
                )


def _first(axis: BaseDistribution) -> Any:
    if isinstance(axis, CategoricalDistribution):
        return axis.choices[0]
    assert isinstance(axis, IntDistribution | FloatDistribution)
    return axis.low


def _axis_value(axis: BaseDistribution, text: str) -> Any:
    """The value of an axis that an override's text stands for."""
    if isinstance(axis, CategoricalDistribution):
        # Compared after parsing: 1e30 and 1e+30 are the same value.
        values = {_parsed(to_override(value)): value for value in axis.choices}
        return values[_parsed(text)]
    return int(text) if isinstance(axis, IntDistribution) else float(text)


def _parsed(text: str) -> str:
    """The value that Hydra parses from an override's text, in a canonical form."""
    return repr(OverridesParser.create().parse_override(f"key={text}").value())


def to_override(value: Any) -> str:
    """A value as written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quoted(value) if isinstance(value, str) and _lacks_quotes(value) else str(value)


@cache
def _lacks_quotes(text: str) -> bool:
    """Whether it is no single value: Hydra's encoding loses what escaped a comma or a quote."""
    try:
        return OverridesParser.create().parse_override(f"key={text}").is_sweep_override()
    except HydraException:
        return True


def axis_values(axis: BaseDistribution) -> Sequence[Any] | None:
    """The values of a finite axis; ``None`` for a continuous one."""
    if isinstance(axis, CategoricalDistribution):
        return [v for n, v in enumerate(axis.choices) if v not in axis.choices[:n]]
    if axis.single():
        assert isinstance(axis, IntDistribution | FloatDistribution)
        return (axis.low,)
    if isinstance(axis, IntDistribution):
        return range(axis.low, axis.high + 1, axis.step)
    assert isinstance(axis, FloatDistribution)
    if axis.step is None:
        return None
    count = round((axis.high - axis.low) / axis.step)
    # Rounded as Optuna does, so that 0.1 + 2 · 0.1 is 0.3.
    return [round(axis.low + number * axis.step, 12) for number in range(count + 1)]
