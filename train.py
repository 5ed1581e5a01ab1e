"""Train one model: ``python train.py model=resnet34_compressed compression.window=4``.

``--help`` lists all groups, options and settings; ``-m`` trains on a grid of their values.
"""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig

from research.config import (
    CONF,
    check,
    command_line,
    exit_on_user_error,
    register,
    resolved,
    targets,
)
from research.sweeps.hydra_sweepers import RecordedBasicSweeper, RecordedOptunaSweeper
from research.sweeps.sweeper import StudySweeper

register()
for sweeper in (StudySweeper, RecordedBasicSweeper, RecordedOptunaSweeper):
    Plugins.instance().register(sweeper)


@hydra.main(config_path=str(CONF), config_name="config", execution_whitelist=("research.*",))
def main(cfg: DictConfig) -> float | None:
    """Compose, check, build, fit; returns the best value of the monitored metric."""
    hydra_cfg = HydraConfig.get()
    with exit_on_user_error():
        own = targets.config_dir_targets(hydra_cfg.runtime.config_sources)
        check(cfg, hydra_cfg.runtime.choices, own=own)
        # Imported late, so that a mistake is reported before torch is imported.
        from research.engine import run, run_folder
        from research.utils import logs

        logs.to_terminal()
        config = resolved(cfg)
        config["trust"] = targets.user_targets(config)
        name = config["name"] or hydra_cfg.runtime.choices["model"]
        if hydra_cfg.mode is RunMode.MULTIRUN:
            from research.sweeps import job

            return job.run_trial(hydra_cfg, config, name)
        if config["verify_resume"]:
            from research.engine.verify_resume import verify

            raise SystemExit(verify(config, name))
        begin = run.start(config, name)
        if begin is None:
            return None
        with run_folder.run_lock(begin.folder), logs.to_file(begin.folder):
            return run.train(config, name, hydra_cfg.overrides.task, begin).best


if __name__ == "__main__":
    command_line(main)
