"""Composes the configuration with Hydra, outside of ``hydra.main``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from research.config.declarations import split
from research.config.options import CONF, options
from research.config.schema import GROUPS, OPTIONAL
from research.utils.errors import UserError


class Composed(NamedTuple):
    """A composed configuration.

    Attributes:
        cfg: the configuration without Hydra's own node.
        choices: the option of every group of ours; None where there is none.
        sweeper: Hydra's node of the sweeper.
    """

    cfg: DictConfig
    choices: dict[str, str | None]
    sweeper: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as a plain dictionary, with every interpolation resolved."""
        return resolved(self.cfg)


@contextmanager
def hydra_ready() -> Iterator[None]:
    """Hydra initialised on ``conf/``; inside ``hydra.main`` what it set up is used."""
    if GlobalHydra.instance().is_initialized():
        yield
    else:
        with initialize_config_dir(str(CONF), job_name="train"):
            yield


def composed(overrides: Sequence[str]) -> Composed:
    """Compose ``conf/config.yaml`` under ``overrides``.

    Raises:
        HydraException: for what cannot be composed; ``messages.explain`` puts it into one line.
    """
    with hydra_ready():
        try:
            cfg = compose("config", list(overrides), return_hydra_config=True)
        except ValueError as error:
            if isinstance(error, OmegaConfBaseException):
                raise
            raise _no_name(overrides) or UserError("config", str(error)) from error
    choices = our_choices(cfg.hydra.runtime.choices)
    sweeper = OmegaConf.to_container(cfg.hydra.sweeper)
    assert isinstance(sweeper, dict)
    with open_dict(cfg):
        del cfg["hydra"]
    return Composed(cfg, choices, {str(key): value for key, value in sweeper.items()})


def _no_name(overrides: Sequence[str]) -> UserError | None:
    """The error for an option that is no name, such as null or a number."""
    for override in overrides:
        group, _, option = override.partition("=")
        if (CONF / group).is_dir() and option not in options(group):
            message = f"{override}: expected one of {', '.join(options(group))}"
            return UserError(group, message)
    return None


def our_choices(choices: Any) -> dict[str, str | None]:
    """Hydra's choices, without those of Hydra itself and with one spelling of null."""
    return {
        group: None if option in (None, "null") else option
        for group, option in choices.items()
        if not group.startswith("hydra/")
    }


@lru_cache(maxsize=256)
def defaults_of(choices: frozenset[tuple[str, str | None]]) -> dict[str, Any]:
    """The configuration that ``choices`` of models, data sets and so on alone give."""
    chosen = dict(choices)
    overrides = [
        f"{group}={option or 'null'}" for group, option in chosen.items() if group not in OPTIONAL
    ]
    for group in GROUPS:
        if group not in chosen:  # a list of options was chosen, whose names Hydra does not keep
            overrides.append(f"{group}=[{','.join(options(group))}]")
    return composed(overrides).config


@lru_cache(maxsize=256)
def choices_of_model(model: str) -> dict[str, str | None]:
    """The options that ``model=…`` alone selects."""
    return composed([f"model={model}"]).choices


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The settings as plain values: interpolations resolved, without declarations and Hydra."""
    return split(resolved_with_declarations(cfg))[0]


def resolved_with_declarations(cfg: DictConfig) -> dict[str, Any]:
    """The same with what the options declare, see ``research.config.declarations``."""
    if "hydra" in cfg:
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
