"""Train one model: ``python train.py model=resnet34_compressed compression.window=4``.

``--help`` lists all groups, options and settings; ``-m`` trains on a grid of their values.
"""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig

import research
from research.config import (
    CONF,
    RunConfig,
    check,
    command_line,
    exit_on_user_error,
    register,
    targets,
)
from research.config.compose import config_dir
from research.sweeps.hydra_sweepers import RecordedBasicSweeper, RecordedOptunaSweeper
from research.sweeps.launchers import RayLauncher, SlurmLauncher
from research.sweeps.sweeper import StudySweeper

register()
for plugin in (
    StudySweeper,
    RecordedBasicSweeper,
    RecordedOptunaSweeper,
    SlurmLauncher,
    RayLauncher,
):
    Plugins.instance().register(plugin)


@hydra.main(config_path=str(CONF), config_name="config", execution_whitelist=("research.*",))
def main(cfg: DictConfig | RunConfig) -> float | None:
    """Compose, check, build, fit; returns the best value of the monitored metric."""
    if isinstance(cfg, RunConfig):  # of resume=RUN
        return train(cfg)
    hydra_cfg = HydraConfig.get()
    with exit_on_user_error():
        choices, overrides = hydra_cfg.runtime.choices, list(hydra_cfg.overrides.task)
        own = targets.config_dir_targets(hydra_cfg.runtime.config_sources)
        check(cfg, choices, own=own)
        is_trial = hydra_cfg.mode is RunMode.MULTIRUN
        config = RunConfig.of(cfg, choices, overrides, config_dir(), is_trial=is_trial)
        if not is_trial:
            return train(config)
        # Imported late, so that a mistake is reported before torch is imported.
        from research.sweeps import job
        from research.utils import logs

        logs.to_terminal()
        return job.run_trial(hydra_cfg, config.settings, config.name)


def train(config: RunConfig) -> float | None:
    """Train or resume one run, or verify that it can be resumed."""
    if config["verify_resume"]:
        from research.engine.verify_resume import verify
        from research.utils import logs
        from research.utils.launch import require_one_process

        require_one_process("verify_resume=true")
        logs.to_terminal()
        raise SystemExit(verify(config.settings, config.name))
    return research.train(config).best


if __name__ == "__main__":
    command_line(main)
