"""Train one model: ``python train.py model=resnet34_compressed compression.window=4``.

``--help`` lists all groups, options and settings; ``-m`` trains on a grid of their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig

from research.config import (
    CONF,
    Resumed,
    check,
    command_line,
    exit_on_user_error,
    register,
    resolved,
    targets,
)
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
def main(cfg: DictConfig | Resumed) -> float | None:
    """Compose, check, build, fit; returns the best value of the monitored metric."""
    if isinstance(cfg, Resumed):
        return train(cfg.config, cfg.name, cfg.overrides)
    hydra_cfg = HydraConfig.get()
    with exit_on_user_error():
        own = targets.config_dir_targets(hydra_cfg.runtime.config_sources)
        check(cfg, hydra_cfg.runtime.choices, own=own)
        config = resolved(cfg)
        config["trust"] = targets.user_targets(config)
        name = config["name"] or hydra_cfg.runtime.choices["model"]
        if hydra_cfg.mode is not RunMode.MULTIRUN:
            return train(config, name, hydra_cfg.overrides.task)
        # Imported late, so that a mistake is reported before torch is imported.
        from research.sweeps import job
        from research.utils import logs

        logs.to_terminal()
        return job.run_trial(hydra_cfg, config, name)


def train(config: dict[str, Any], name: str, overrides: Sequence[str]) -> float | None:
    """Train or resume one run."""
    from research.utils import garbage, logs
    from research.utils.launch import require_one_process

    with garbage.paused():
        from research.engine import distributed, run, run_folder

    if config["verify_resume"]:
        from research.engine.verify_resume import verify

        require_one_process("verify_resume=true")
        logs.to_terminal()
        raise SystemExit(verify(config, name))
    with distributed.processes(config["device"]):
        rank = distributed.rank()
        logs.to_terminal(rank=rank)
        begin = run.start(config, name, overrides)
        if begin is None:
            return None
        lock = run_folder.watching if rank else run_folder.run_lock
        with lock(begin.folder), logs.to_file(begin.folder, rank):
            return run.train(config, name, overrides, begin).best


if __name__ == "__main__":
    command_line(main)
