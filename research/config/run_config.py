"""``RunConfig``: the checked configuration of one run, as it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research.config import targets
from research.config.compose import Composed, resolved
from research.config.names import base_name, run_name


@dataclass(frozen=True, eq=False)
class RunConfig(Mapping[str, Any]):
    """The configuration of one run: a mapping that cannot be changed.

    ``config["epochs"]`` and ``config["model"]["name"]`` are settings; another value is composed
    again, so that it is checked.

    Attributes:
        settings: the same as a plain dictionary: resolved, checked, without secrets.
        name: of the run.
        overrides: of the command line that trains it from the start, ``key=value`` each.
        choices: the chosen option of each group; of a resumed run as far as they were composed.
        config_dir: folder with options of the user's own.
    """

    settings: dict[str, Any]
    name: str
    overrides: list[str]
    choices: Mapping[str, str | None]
    config_dir: Path | None = None

    @classmethod
    def of(
        cls,
        cfg: DictConfig,
        choices: Mapping[str, str | None],
        overrides: list[str],
        config_dir: Path | None = None,
        *,
        is_trial: bool = False,
    ) -> RunConfig:
        """That of a configuration that was composed and checked.

        The name of a trial is without the settings of the command line; the sweep adds the swept
        ones.
        """
        settings = resolved(cfg)
        settings["trust"] = targets.user_targets(settings)
        name = base_name(settings, choices) if is_trial else run_name(settings, choices, overrides)
        return cls(settings, name, overrides, choices, config_dir)

    def __getitem__(self, key: str) -> Any:
        return self.settings[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)

    @property
    def composed(self) -> Composed:
        """The same, as a configuration that was composed from ``conf/``."""
        tags = {key: text.replace("${", r"\${") for key, text in self.settings["tags"].items()}
        cfg = OmegaConf.create({**self.settings, "tags": tags})
        return Composed(cfg, dict(self.choices), {}, {})
