"""Train one model: ``python train.py model=resnet34_compressed compression.window=4``.

``--help`` lists every group, option and setting; ``-m`` runs a grid of them.
"""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from research.config import (
    EXECUTION_WHITELIST,
    check,
    command_line,
    register,
    resolved,
    told_in_one_line,
)

register()


@hydra.main(config_path="conf", config_name="config", execution_whitelist=EXECUTION_WHITELIST)
def main(cfg: DictConfig) -> float | None:
    """Compose, check, build, fit; gives the best value of the monitored metric to a sweep."""
    choices = HydraConfig.get().runtime.choices
    check(cfg, choices)
    # Imported late: a mistake is answered before torch is there.
    from research import logs, runs, session
    from research.sweeps import record

    logs.to_terminal()
    config = resolved(cfg)
    name = config["name"] or choices["model"]
    with record.of_job(HydraConfig.get()) as job:
        folder, last = session.open_folder(config, name)
        job.run = folder
        with runs.occupied(folder), logs.to_file(folder), told_in_one_line():
            return session.train(config, name, HydraConfig.get().overrides.task, folder, last).best


if __name__ == "__main__":
    command_line(main)
