"""What a sweep searches: Hydra's own sweep syntax as Optuna's distributions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.types import HydraContext
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from omegaconf import DictConfig
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from research.utils.errors import UserError, one_line

NOT_COMPARED: Final = ("device=", "logging", "log_every=")
"""Of two commands that differ in these alone the second goes on with the first's study."""
Point = Mapping[str, Any]
"""A value for every swept key; as Optuna keeps it."""

MOST_POINTS: Final = 10_000
"""Spaces of more points count as infinite: nobody runs them all."""


@dataclass(frozen=True)
class Space:
    """Swept keys, and the overrides that all trials share.

    Attributes:
        axes: of each swept key what it may be.
        told: the same as it was written.
        fixed: ``key=value`` each.
        words: both as they were written, of a key that was given twice the last.
    """

    axes: dict[str, BaseDistribution]
    told: dict[str, str]
    fixed: list[str]
    words: list[str]

    @classmethod
    def of(cls, params: Mapping[str, Any], overrides: Sequence[str]) -> Space:
        """The space of a preset's ``params`` and of a command line, which has the last word.

        Args:
            params: ``KEY: VALUES``.
            overrides: ``key=value`` each, some with several values.

        Raises:
            UserError: for values that are others each time.
        """
        words = [f"{key}={values}" for key, values in params.items()] + list(overrides)
        parsed = OverridesParser.create().parse_overrides(words)
        last: dict[str, str] = {}
        for override in parsed:
            key, value = override.get_key_element(), override.value()
            if isinstance(value, Glob) or getattr(value, "shuffle", False):
                raise UserError(
                    key,
                    f"{override.input_line}: a study must find the same values again",
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
        told = {key: last[key].partition("=")[2] for key in axes}
        fixed = [f"{key}={value}" for key, value in values.items()] + others
        return cls(axes, told, fixed, list(last.values()))

    @property
    def size(self) -> int | None:
        """How many points there are; null when there is no end of them."""
        values = [values_of(axis) for axis in self.axes.values()]
        if any(choices is None for choices in values):
            return None
        size = math.prod(len(choices or ()) for choices in values)
        return size if size <= MOST_POINTS else None

    def points(self) -> Iterator[Point]:
        """All points of a finite space, the last key's values changing fastest."""
        values = [values_of(axis) or () for axis in self.axes.values()]
        for point in itertools.product(*values):
            yield dict(zip(self.axes, point, strict=True))

    def overrides(self, point: Point) -> list[str]:
        """A point and what all share, ``key=value`` each, as Hydra reads it."""
        return [*self.fixed, *(f"{key}={written(value)}" for key, value in point.items())]

    def point(self, words: Sequence[str]) -> Point:
        """The point of a job's overrides, ``key=value`` each, its values as the axes have them."""
        told = {key: value for key, _, value in (word.partition("=") for word in words)}
        return {key: _on(axis, told[key]) for key, axis in self.axes.items()}

    @property
    def compared(self) -> list[str]:
        """Of what all share, that by which one sweep is told from another, sorted."""
        return sorted(word for word in self.fixed if not word.startswith(NOT_COMPARED))

    def monitor(self, context: HydraContext, base: DictConfig) -> str:
        """``METRIC:max`` or ``:min`` of the first point's configuration."""
        from research.sweeps.objectives import monitor

        first = {key: _first(axis) for key, axis in self.axes.items()}
        return monitor(context.config_loader.load_sweep_config(base, self.overrides(first)))


def _first(axis: BaseDistribution) -> Any:
    if isinstance(axis, CategoricalDistribution):
        return axis.choices[0]
    assert isinstance(axis, IntDistribution | FloatDistribution)
    return axis.low


def _on(axis: BaseDistribution, text: str) -> Any:
    """A value as it is written, as an axis has it."""
    if isinstance(axis, CategoricalDistribution):
        # Written in any way that means the same, such as 1e30 and 1e+30.
        values = {_meant(written(value)): value for value in axis.choices}
        return values[_meant(text)]
    return int(text) if isinstance(axis, IntDistribution) else float(text)


def _meant(text: str) -> str:
    """What Hydra reads out of a value."""
    return repr(OverridesParser.create().parse_override(f"key={text}").value())


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def values_of(axis: BaseDistribution) -> Sequence[Any] | None:
    """The values of a finite axis; null for one without end."""
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
