"""Rules of the keys of ResNets."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import COUNT, Rule, list_of, or_null, whole
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "layers": or_null(list_of(whole(0), length=4)),
    "widths": or_null(list_of(COUNT, length=4)),
}


def faults(job: Job) -> Iterator[UserError]:
    layers = job.settings["model"].get("layers")
    if layers is None:
        return
    given = "[" + ",".join(map(str, layers)) + "]"
    if 0 in layers[1:]:
        yield UserError(
            "model.layers",
            f"model.layers={given}: only the first stage may have no blocks",
            "use 1 or more for the others",
        )
    elif layers[0] and job.settings["compression"]["variant"] == "late_concat":
        yield UserError(
            "model.layers",
            f"model.layers={given} with compression={job.choices.get('compression')}: luma enters "
            "at stage 2, so the first stage has no blocks",
            "set the first to 0",
        )
