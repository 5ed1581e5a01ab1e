"""Rules of the keys of ``conf/hydra/launcher``: Slurm and Ray."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from research.config.group_rules import LAUNCHER, Job
from research.config.rules import COUNT, MAPPING, TEXT, Rule, list_of, number, or_null, whole
from research.utils.errors import UserError

PACKAGES = {"SlurmLauncher": ("slurm", "submitit"), "RayLauncher": ("ray", "ray")}
"""Of each launcher: its option, which is also the extra, and the package that it needs."""
_TEXT = or_null(TEXT)
_WORDS = or_null(list_of(TEXT))

RULES: dict[str, Rule] = {
    # Slurm
    "array_parallelism": COUNT,
    "timeout_min": COUNT,
    "signal_delay_s": COUNT,
    "cpus_per_task": or_null(COUNT),
    "gpus_per_node": or_null(whole(0)),
    "mem_gb": or_null(number(above=0)),
    "name": TEXT,
    "partition": _TEXT,
    "account": _TEXT,
    "qos": _TEXT,
    "gres": _TEXT,
    "constraint": _TEXT,
    "exclude": _TEXT,
    "additional_parameters": MAPPING,
    "setup": _WORDS,
    "srun_args": _WORDS,
    # Ray
    "address": _TEXT,
    "n_jobs": COUNT,
    "num_cpus": number(at_least=0),
    "num_gpus": number(at_least=0),
}


def faults(job: Job) -> Iterator[UserError]:
    """A package that is not installed."""
    launcher = str(job.settings[LAUNCHER]["_target_"]).rpartition(".")[2]
    option, package = PACKAGES[launcher]
    if find_spec(package) is None:
        yield UserError(
            "hydra/launcher",
            f"hydra/launcher={option}: the package {package} is not installed",
            f"pip install -e '.[{option}]'",
        )
