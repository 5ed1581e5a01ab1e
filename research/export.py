"""A trained run as an ONNX file: ``python -m research.export RUN [out=FILE]``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli
from research.config.rules import PATH, one_of, or_null, whole
from research.utils.errors import UserError
from research.utils.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

    from research.engine.predictor import Predictor

USAGE = """
python -m research.export RUN [key=value …]

Writes the model of RUN (a run folder or a checkpoint file) as ONNX, with any number of images a
batch, and compares it with the run's own on batches of 2 and 3 through onnxruntime.
  out=               the file; RUN/model.onnx, or beside a checkpoint file, when left out
  checkpoint=best    best or last, of a run folder
  opset=             ONNX operator set; the exporter's own when left out
  trust=[]           classes and functions of your own that the run names: [my_models.Net]
Inputs are float32 as the network takes them, that is after what the metadata of the file say:
images minus mean, over std (detectors: 0…1). Compressed models have the inputs y and cbcr.
Classifiers give logits; detectors give boxes (xyxy, shares of the frame) and scores of every
cell, before suppression.
Needs the extra export: pip install -e '.[export]'
"""

TOLERANCE = 1e-3
"""Largest difference, as a share of the largest output, that passes."""

BATCHES = (2, 3)
OLDEST = 18
"""The oldest operator set that the exporter writes without converting."""

OPTIONS = {
    "out": ("", or_null(PATH)),
    "checkpoint": ("best", one_of("best", "last")),
    "opset": ("", whole(OLDEST)),
    **cli.TRUST,
}


@dataclass(frozen=True)
class Exported:
    """An ONNX file that was written.

    Attributes:
        file: where.
        opset: its operator set.
        inputs: their shapes by name; ``batch`` is open.
        outputs: likewise.
        difference: largest from the run's own outputs, absolute.
        relative: the same as a share of the largest output.
    """

    file: Path
    opset: int
    inputs: dict[str, list[Any]]
    outputs: dict[str, list[Any]]
    difference: float
    relative: float

    def __str__(self) -> str:
        shapes = [
            f"{kind:8} {name} {shape}".replace("'", "")
            for kind, named in (("inputs", self.inputs), ("outputs", self.outputs))
            for name, shape in named.items()
        ]
        return "\n".join(
            [
                f"{self.file}: {self.file.stat().st_size / 1e6:.1f} MB, opset {self.opset}",
                *shapes,
                f"largest difference from the run's model {self.difference:.1e}, "
                f"{self.relative:.1e} of the largest output (batches of 2 and 3)",
            ]
        )


def export(
    run: Path, out: Path | None, which: str, opset: int | None, trust: Sequence[str] = ()
) -> Exported:
    """Write a checkpoint's model as ONNX and check it.

    Args:
        run: run folder or checkpoint file.
        out: the file; null: ``model.onnx`` in the run folder or beside the checkpoint.
        which: ``best`` or ``last`` of a run folder.
        opset: operator set; null: the exporter's own.
        trust: names of the user's own that the run's configuration may have.

    Raises:
        UserError: when packages are missing, the model cannot be exported, or the file's outputs
            differ by more than ``TOLERANCE``; no file is left then.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise UserError(
            "RUN", f"export needs the package {error.name}: pip install -e '.[export]'"
        ) from None
    from research.engine import predictor

    out = out or (run if run.is_dir() else run.parent) / "model.onnx"
    if out.suffix != ".onnx":
        raise UserError("out", f"out={out}: expected a name that ends in .onnx")
    loaded, saved = predictor.load(run, which, ["device=cpu", "precision=fp32"], trust)
    network, names, shown = _dense(loaded)
    program = _program(network, names, _noise(loaded, saved["data"], BATCHES[0]), opset)
    about = {**_about(loaded, saved["data"]), **shown, "run": _name(run)}
    program.model.metadata_props.update(
        {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}
    )
    for node in program.model.graph.all_nodes():
        # The exporter's notes on each node: traces with the paths of this machine.
        node.metadata_props.clear()
    found: list[Exported] = []

    def write(temporary: Path) -> None:
        program.save(temporary)
        try:
            session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
            pairs = [
                pair
                for count in BATCHES
                for pair in _both(network, session, _noise(loaded, saved["data"], count))
            ]
        except Exception as error:
            # onnxruntime's exceptions are not Python's: one for each of its status codes.
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                "RUN", f"{out}: not written, onnxruntime cannot run it ({reason})"
            ) from None
        found.append(_judged(out, program, session, pairs))

    write_atomic(out, write)
    return found[0]


def _dense(loaded: Predictor) -> tuple[nn.Module, dict[str, list[str]], dict[str, Any]]:
    """The network with tensors for inputs and outputs, their names, and what its user must do."""
    from torch import nn

    from research.compression.blocks import Blocks
    from research.models.detectors import BigDet, TinyDet
    from research.models.rgbx import RgbxDetector
    from research.models.siamese import Siamese

    if isinstance(loaded.model, Siamese):
        raise UserError("RUN", "rankers of photos cannot be exported yet", "use research.load(RUN)")
    if isinstance(loaded.model, RgbxDetector):
        raise UserError(
            "RUN",
            "RGB + X detectors cannot be exported: how many boxes their second stage looks at "
            "changes from frame to frame",
            "use research.load(RUN)",
        )
    model = loaded.model.requires_grad_(False)

    class OnBlocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, y: Tensor, cbcr: Tensor) -> Tensor:
            return self.model(Blocks(y, cbcr))

    class BeforeSuppression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = detector

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            boxes, logits, *_ = detector.raw_outputs(images)
            count = images.shape[0]  # len would fix the number for good
            return boxes.reshape(count, -1, 4), logits.sigmoid().reshape(count, -1)

    if isinstance(model, TinyDet | BigDet):
        detector = model
        limits = {"nms_iou": 1.0, "max_boxes": 1}
        if isinstance(model, BigDet):
            limits = {"nms_iou": model.nms_iou, "max_boxes": model.max_boxes}
        names = {"inputs": ["images"], "outputs": ["boxes", "scores"]}
        return BeforeSuppression().eval(), names, limits
    if loaded.config["compression"]["variant"] == "none":
        return model.eval(), {"inputs": ["images"], "outputs": ["logits"]}, {}
    return OnBlocks().eval(), {"inputs": ["y", "cbcr"], "outputs": ["logits"]}, {}


def _noise(loaded: Predictor, metadata: Mapping[str, Any], count: int) -> tuple[Tensor, ...]:
    """Random images as the network takes them, the same for the same count."""
    import torch

    from research.batch import ClassificationBatch, DetectionBatch
    from research.engine import build
    from research.tasks.detection import Detection

    size = build.input_size(loaded.config, metadata)
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    index = torch.arange(count)
    batch: Any = ClassificationBatch(index, images, index)
    if isinstance(loaded.task, Detection):
        boxes = torch.zeros(count, 1, 4)
        sizes = torch.full((count, 2), size, dtype=torch.int32)
        batch = DetectionBatch(index, images, boxes, boxes.any(-1), index[:, None], sizes)
    with torch.no_grad():
        inputs = loaded.transform(batch, None).inputs
    return (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)


def _program(
    network: nn.Module, names: dict[str, list[str]], inputs: tuple[Tensor, ...], opset: int | None
) -> Any:
    import torch

    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), torch.no_grad():
        # Of no use here: notes on the exporter's own deprecations and renamed axes.
        warnings.simplefilter("ignore")
        network(*inputs)  # lets networks fill the caches that they keep for evaluation
        try:
            return torch.onnx.export(
                network,
                inputs,
                dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                input_names=names["inputs"],
                output_names=names["outputs"],
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:
            # The exporter wraps whatever went wrong in exceptions of its own, pages long.
            cause = error.__cause__ or error
            reason = " ".join(str(cause).split())[:200] or type(cause).__name__
            raise UserError("RUN", f"this model cannot be exported to ONNX ({reason})") from None


def _both(
    network: nn.Module, session: Any, inputs: tuple[Tensor, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Outputs of the network beside those of the file."""
    import torch

    given = zip(session.get_inputs(), inputs, strict=True)
    theirs = session.run(None, {entry.name: value.numpy() for entry, value in given})
    with torch.no_grad():
        ours = network(*inputs)
    ours = [ours] if isinstance(ours, torch.Tensor) else list(ours)
    return [(a, torch.from_numpy(b)) for a, b in zip(ours, theirs, strict=True)]


def _judged(out: Path, program: Any, session: Any, pairs: list[tuple[Tensor, Tensor]]) -> Exported:
    difference = max((a - b).abs().max().item() for a, b in pairs)
    relative = max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)
    if not relative <= TOLERANCE:
        raise UserError(
            "RUN",
            f"{out}: not written, its outputs differ from the run's by {difference:.1e} "
            f"({relative:.1e} of the largest; allowed {TOLERANCE:.0e})",
            "try another opset=",
        )
    return Exported(
        out,
        program.model.opset_imports[""],
        {entry.name: entry.shape for entry in session.get_inputs()},
        {entry.name: entry.shape for entry in session.get_outputs()},
        difference,
        relative,
    )


def _about(loaded: Predictor, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a user of the file must know of its inputs and outputs."""
    from research.engine import build

    about: dict[str, Any] = {
        "task": str(loaded.config["task"]["_target_"]).rpartition(".")[2].lower(),
        "classes": loaded.classes,
        "image_size": build.input_size(loaded.config, metadata),
    }
    asked = loaded.config["dataset"].get("crop_pct", 1.0)
    about["crop_pct"] = asked or build.network_input(loaded.config).crop_pct
    for name, value in loaded.transform.state_dict().items():
        about[name] = value[..., 0, 0].tolist()  # without the image's own axes
    stem = build.stem_spec(loaded.config["compression"])
    if stem is not None:
        about["range"] = stem.range_
        about["luma"], about["chroma"] = list(stem.selection.luma), list(stem.selection.chroma)
    return about


def _name(run: Path) -> str:
    """A run's folder name, also for a file in its ``checkpoints/``."""
    return cli.run_dir_of(run).resolve().name


def main(words: list[str]) -> None:
    paths, settings = cli.split(words)
    if len(paths) != 1:
        raise UserError("RUN", "give one RUN folder or checkpoint first, then key=value settings")
    chosen = cli.typed(settings, OPTIONS, "research.export")
    out = None if chosen["out"] is None else Path(chosen["out"])
    which, opset, trust = chosen["checkpoint"], chosen["opset"], chosen["trust"]
    print(export(Path(paths[0]), out, which, opset, trust))


if __name__ == "__main__":
    cli.command(USAGE, main)
