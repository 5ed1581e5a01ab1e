"""Rules of the keys of DenseNets."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.options import options
from research.config.rules import COUNT, Rule, list_of, one_of
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "block_layers": list_of(COUNT, min_length=1),
    "growth_rate": COUNT,
    "initial_features": COUNT,
    "stem": one_of("auto", "cifar", "imagenet"),
}


def faults(job: Job) -> Iterator[UserError]:
    model, option = job.settings["model"], job.choices.get("model")
    if option in options("model") and model["name"] != option:
        yield UserError(
            "model.name",
            f"model.name={model['name']} with model={option}",
            f"for another DenseNet choose model={model['name']}",
        )
    if job.settings["compile"] and model["memory_efficient"]:
        yield UserError(
            "compile",
            "compile=true with model.memory_efficient=true: torch.compile chooses itself which "
            "activations to recompute",
            "set one of them to false",
        )
