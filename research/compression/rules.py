"""Rules of the keys of ``compression``, and of their combinations with model and data set."""

from __future__ import annotations

from collections.abc import Iterator

from research.compression.selection import Selection
from research.config.compose import with_options
from research.config.declarations import COEFFICIENTS
from research.config.group_rules import Job
from research.config.options import options
from research.config.rules import COUNT, Rule, one_of, or_null, whole
from research.utils.errors import UserError

SELECTION = ("window", "order", "window_luma", "window_chroma", "count_luma", "count_chroma")

RULES: dict[str, Rule] = {
    "variant": one_of(
        "none",
        "reconstruction",
        "block_stem",
        "luma_fusion",
        "luma_fusion_pruned",
        "late_concat",
    ),
    "refinement": or_null(one_of("blocks", "pixels")),
    "source": one_of("pixels", "bitstream"),
    "range": one_of("studio", "full"),
    "order": one_of("corner", "zigzag"),
    "window": whole(1, 8),
    "window_luma": whole(1, 8),
    "window_chroma": whole(1, 8),
    "count_luma": whole(0, 64),
    "count_chroma": whole(0, 64),
    "statistics_images": COUNT,
}


BLOCK = 16
"""Side in pixels of the image region of an 8×8 block of subsampled chroma."""


def faults(job: Job) -> Iterator[UserError]:
    compression = job.settings["compression"]
    yield from _preset(job)
    if compression["variant"] == "none":
        return
    size = job.settings["dataset"]["image_size"]
    if size is not None and size % BLOCK:
        low = size - size % BLOCK
        nearby = f"{low} or {low + BLOCK}" if low >= 2 * BLOCK else f"{low + BLOCK}"
        yield UserError(
            "dataset.image_size",
            f"dataset.image_size={size} with compression={compression['variant']}: expected a "
            f"multiple of {BLOCK} (the 8×8 blocks of 4:2:0 chroma)",
            f"use {nearby}",
        )
    for plane in ("luma", "chroma"):
        window, count = compression[f"window_{plane}"], compression[f"count_{plane}"]
        if window is not None and count is not None:
            yield UserError(
                f"compression.window_{plane}",
                f"compression.window_{plane}={window} with compression.count_{plane}={count}: "
                f"set compression.window_{plane}=null or compression.count_{plane}=null",
            )
        if count is not None and compression["order"] != "zigzag":
            yield UserError(
                f"compression.count_{plane}",
                f"compression.count_{plane}={count} with compression.order={compression['order']}: "
                "a count needs zigzag order",
                "add compression.order=zigzag",
            )
    try:
        Selection.from_settings(**{name: compression[name] for name in SELECTION})
    except ValueError as error:
        yield UserError("compression", f"compression: {error}")
    if compression["source"] == "bitstream" and "bitstream" not in job.declared.provided:
        yield UserError(
            "compression.source",
            f"compression.source=bitstream with dataset={job.choices.get('dataset')}: its images "
            "are not JPEG files",
            "add compression.source=pixels",
        )


def _preset(job: Job) -> Iterator[UserError]:
    """A model without the coefficients that it needs, or a preset compression that it does not."""
    model, experiment = job.choices.get("model"), job.choices.get("experiment")
    chosen = job.choices.get("compression")
    if model is None:
        return
    preset = with_options((f"model={model}",)).choices.get("compression")
    needed = COEFFICIENTS in job.declared.of("model", "needs")
    if needed and COEFFICIENTS not in job.declared.provided:
        pixels = model.removesuffix("_compressed")
        other = f", or use model={pixels}" if pixels in options("model") else ""
        yield UserError(
            "model",
            f"model={model} reads coefficients but compression={chosen}: "
            f"add compression={preset}{other}",
        )
    overrides = job.overrides
    by_user = overrides is None or any(o.startswith("compression=") for o in overrides)
    if experiment is not None and preset == "none" and chosen != "none" and not by_user:
        yield UserError(
            "experiment",
            f"experiment={experiment} selects compression={chosen} but model={model} reads pixels: "
            f"add compression=none, or compression={chosen} if the model is to read coefficients",
        )
