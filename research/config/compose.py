"""Composes the configuration with Hydra, outside of ``hydra.main``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from research.config.declarations import split
from research.config.keys import leaves
from research.config.options import options, stamp, without_declarations
from research.config.schema import GROUPS, OPTIONAL
from research.config.targets import targets_in
from research.utils import secrets
from research.utils.errors import UserError
from research.utils.installation import CONF

CONFIG_DIR = "--config-dir"


class Composed(NamedTuple):
    """A composed configuration.

    Attributes:
        cfg: the configuration without Hydra's own node.
        choices: the chosen option of every group, except Hydra's own; None if none is chosen.
        sweeper: settings of Hydra's sweeper.
        launcher: settings of Hydra's launcher.
    """

    cfg: DictConfig
    choices: dict[str, str | None]
    sweeper: dict[str, Any]
    launcher: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as a plain dictionary, with every interpolation resolved."""
        return resolved(self.cfg)

    @property
    def unresolved(self) -> dict[str, Any]:
        """The configuration as a plain dictionary with its interpolations, without declarations."""
        return {
            name: without_declarations(value) if isinstance(value, dict) else value
            for name, value in _to_dict(self.cfg, resolve=False).items()
        }


COMMAND_LINE = "command-line"
"""Hydra's name for the source of the options of ``--config-dir``."""


@contextmanager
def hydra_ready(own: Path | None = None) -> Iterator[None]:
    """Initialise Hydra with ``conf/``, unless it is initialised already, as in ``hydra.main``.

    Args:
        own: folder with the user's own options, as ``--config-dir`` names it.

    Raises:
        UserError: if there is no such folder.
    """
    if own is not None and not own.is_dir():
        raise UserError(
            CONFIG_DIR, f"{CONFIG_DIR} {own}: no such folder", "it contains GROUP/OPTION.yaml"
        )
    if _is_ready():
        yield
        return
    with _without_callers(), initialize_config_dir(str(CONF), job_name="train"):
        if own is not None:
            search_path = create_config_search_path(str(CONF))
            # Where ``hydra.main`` has it: an option of conf/ takes precedence.
            search_path.prepend(
                COMMAND_LINE, f"file://{own.resolve()}", SearchPathQuery(provider="schema")
            )
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("train", search_path)
        yield


def _is_ready() -> bool:
    """Whether Hydra is initialised with ``conf/``."""
    hydra = GlobalHydra.instance()
    if not hydra.is_initialized():
        return False
    return any(Path(each.path) == CONF for each in hydra.config_loader().get_sources())


@contextmanager
def _without_callers() -> Iterator[None]:
    """Without the Hydra of a program that calls this package, and has options of its own."""
    callers, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = callers


def config_dir() -> Path | None:
    """The folder of ``--config-dir`` with which Hydra is initialised."""
    if not GlobalHydra.instance().is_initialized():
        return None
    sources = GlobalHydra.instance().config_loader().get_sources()
    return next((Path(each.path) for each in sources if each.provider == COMMAND_LINE), None)


def own_targets() -> set[str]:
    """The ``_target_`` names in the option files of ``--config-dir``."""
    folder = config_dir()
    paths = {} if folder is None else targets_in(folder)
    return {name for names in paths.values() for name in names}


def composed(overrides: Sequence[str]) -> Composed:
    """Compose ``conf/config.yaml`` with ``overrides``.

    Raises:
        HydraException: if it cannot be composed; ``messages.explain`` makes one line of it.
    """
    with hydra_ready():
        try:
            cfg = compose("config", list(overrides), return_hydra_config=True)
        except ValueError as error:
            if isinstance(error, OmegaConfBaseException):
                raise
            raise _not_an_option(overrides) or UserError("config", str(error)) from error
    choices = our_choices(cfg.hydra.runtime.choices)
    sweeper = _to_dict(cfg.hydra.sweeper, resolve=False)
    launcher = _to_dict(cfg.hydra.launcher, resolve=False)
    with open_dict(cfg):
        del cfg["hydra"]
    return Composed(cfg, choices, sweeper, launcher)


def _not_an_option(overrides: Sequence[str]) -> UserError | None:
    """The error for an option that is not a name, such as null or a number."""
    for override in overrides:
        group, _, option = override.partition("=")
        if (CONF / group).is_dir() and option not in options(group):
            message = f"{override}: expected one of {', '.join(options(group))}"
            return UserError(group, message)
    return None


def our_choices(choices: Any) -> dict[str, str | None]:
    """Hydra's choices without those of its own groups; None where no option is chosen."""
    return {
        group: None if option in (None, "null") else option
        for group, option in choices.items()
        if not group.startswith("hydra/")
    }


def defaults_of(choices: frozenset[tuple[str, str | None]]) -> dict[str, Any]:
    """The configuration with the chosen options and no other overrides.

    Those of ``OPTIONAL`` groups, which set keys of others, are not applied.
    """
    return _defaults_of(choices, _own_files())


@lru_cache(maxsize=256)
def _defaults_of(choices: frozenset[tuple[str, str | None]], own: Any) -> dict[str, Any]:
    chosen = dict(choices)
    overrides = [
        f"{group}={option or 'null'}" for group, option in chosen.items() if group not in OPTIONAL
    ]
    for group in GROUPS:
        if group not in chosen:  # a list of options was chosen; Hydra does not record their names
            overrides.append(f"{group}=[{','.join(options(group))}]")
    return composed(overrides).config


def with_options(words: Sequence[str]) -> Composed:
    """The same for words that choose options of groups; composed only once. Not to be changed."""
    return _with_options(tuple(words), _own_files())


@lru_cache(maxsize=32)
def _with_options(words: tuple[str, ...], own: Any) -> Composed:
    return composed(words)


def _own_files() -> Any:
    """What identifies the user's own options."""
    folder = config_dir()
    return None if folder is None else (folder, stamp(folder))


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The settings as plain values, interpolations resolved, secrets hidden, no declarations."""
    return split(resolved_with_declarations(cfg))[0]


def resolved_with_declarations(cfg: DictConfig) -> dict[str, Any]:
    """The same with the declarations of the options, see ``research.config.declarations``."""
    if "hydra" in cfg:
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    plain: dict[str, Any] = secrets.hidden(_to_dict(cfg, resolve=True))
    return plain


def without_secrets(cfg: DictConfig) -> DictConfig:
    """A copy of a configuration, with its interpolations, in which secrets are hidden."""
    copy: DictConfig = deepcopy(cfg)
    with read_write(copy), open_dict(copy):
        for key, value in leaves(_to_dict(copy, resolve=False)):
            if isinstance(value, str) and secrets.hide(value) != value:
                OmegaConf.update(copy, key, secrets.hide(value))
    return copy


def _to_dict(cfg: DictConfig, *, resolve: bool) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
