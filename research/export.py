"""Export a trained run to ONNX: ``python -m research.export RUN out=FILE``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli, outputs
from research.config.rules import PATH, is_model_address, whole
from research.config.run_files import is_own
from research.utils import logs
from research.utils.conditions import explain
from research.utils.errors import UserError
from research.utils.files import write_atomic
from research.utils.progress import Phase

if TYPE_CHECKING:
    from torch import Tensor, nn

    from research.engine.predictor import Predictor
    from research.models.export import ExportForm

TOLERANCE = 1e-3
"""Largest accepted difference, as a fraction of the largest output."""

BATCHES = (2, 3)
OLDEST = 18
"""The oldest operator set that the exporter writes without converting."""


@dataclass(frozen=True)
class ExportOptions(cli.CheckpointOptions):
    """Options of the command."""

    out: Path | None = cli.option(
        None, PATH, "the file; by default model.onnx in the run folder or beside a checkpoint file"
    )
    opset: int | None = cli.option(
        None, whole(OLDEST), "ONNX operator set; by default that of the exporter"
    )


USAGE = cli.usage(
    "python -m research.export RUN [key=value …]",
    """
Writes the model of RUN (a run folder or a checkpoint file) as ONNX with a dynamic batch size, and
compares its outputs with those of the run on batches of 2 and 3 in onnxruntime.
""",
    ExportOptions,
    """
Inputs are float32 after the preprocessing that the metadata of the file describe: images minus
mean, divided by std (detectors: 0…1). Compressed models have the inputs y and cbcr. Classifiers
return logits; detectors return boxes (xyxy, as fractions of the frame) and scores of every cell,
before non-maximum suppression. Needs the extra export: pip install -e '.[export]'
""",
)


@dataclass(frozen=True)
class Exported:
    """An ONNX file that was written.

    Attributes:
        file: the ONNX file.
        opset: its operator set.
        inputs: shape by name; ``batch`` is a dynamic dimension.
        outputs: likewise.
        difference: largest absolute difference from the outputs of the run.
        relative: the same as a fraction of the largest output.
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
        out: the file; None: ``model.onnx`` in the run folder or beside the checkpoint.
        which: ``best`` or ``last`` of a run folder.
        opset: operator set; None: that of the exporter.
        trust: names of the user's own code that the run's configuration may contain.

    Raises:
        UserError: if packages are missing, the model cannot be exported, or the outputs of the file
            differ by more than ``TOLERANCE``; then no file is written.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise UserError(
            "RUN", f"export needs the package {error.name}: pip install -e '.[export]'"
        ) from None
    if out is None and is_model_address(run):
        raise UserError("out", f"{run}: a model in MLflow has no folder", "set out=FILE.onnx")
    from research.engine import predictor
    from research.models.export import export_form

    out = out or (run if run.is_dir() else run.parent) / "model.onnx"
    if out.suffix != ".onnx":
        raise UserError("out", f"out={out}: expected a name that ends in .onnx")
    loaded, saved = predictor.load(run, which, ["device=cpu", "precision=fp32"], trust)
    coefficients = loaded.config["compression"]["variant"] != "none"
    form = export_form(loaded.model, coefficients=coefficients)
    with Phase("exporting to ONNX"):
        program = _program(form, _random_inputs(loaded, saved["data"], BATCHES[0]), opset)
    name = outputs.run_dir_of(run).resolve().name
    metadata = {**described(loaded, saved["data"]), **form.metadata, "run": name}
    program.model.metadata_props.update(
        {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    )
    for node in program.model.graph.all_nodes():
        # Stack traces with the paths of this machine.
        node.metadata_props.clear()
    results: list[Exported] = []

    def write(temporary: Path) -> None:
        program.save(temporary)
        try:
            session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
            pairs = [
                pair
                for count in BATCHES
                for pair in _outputs(
                    form.network, session, _random_inputs(loaded, saved["data"], count)
                )
            ]
        except Exception as error:
            if explain(error) is not None:
                raise
            # onnxruntime has an exception for each of its status codes, without a common base.
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                "RUN", f"{out}: not written, onnxruntime cannot run it ({reason})"
            ) from None
        results.append(_compared(out, program, session, pairs))

    with Phase("comparing in onnxruntime"):
        write_atomic(out, write)
    return results[0]


def _random_inputs(
    loaded: Predictor, metadata: Mapping[str, Any], count: int
) -> tuple[Tensor, ...]:
    """Preprocessed random images, the same for the same ``count``."""
    import torch

    from research.engine import build

    size = build.input_size(loaded.config, metadata)
    generator = torch.Generator().manual_seed(count)

    def images(number: int) -> Tensor:
        shape = (number, 3, size, size)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    batch = loaded.task.example_batch(count, images, metadata)
    with torch.no_grad():
        inputs = loaded.transform(batch, None).inputs
    return (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)


def _program(form: ExportForm, inputs: tuple[Tensor, ...], opset: int | None) -> Any:
    import torch

    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), torch.no_grad():
        # Deprecations and renamed axes inside the exporter.
        warnings.simplefilter("ignore")
        form.network(*inputs)  # fills the caches that networks have in evaluation mode
        try:
            return torch.onnx.export(
                form.network,
                inputs,
                dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                input_names=list(form.inputs),
                output_names=list(form.outputs),
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:
            # The exporter wraps the cause in exceptions of several pages.
            cause = error.__cause__ or error
            if explain(error) is not None:
                raise
            reason = " ".join(str(cause).split())[:200] or type(cause).__name__
            raise UserError("RUN", f"this model cannot be exported to ONNX ({reason})") from None


def _outputs(
    network: nn.Module, session: Any, inputs: tuple[Tensor, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of each output of the network and the same output of the file."""
    import torch

    entries = zip(session.get_inputs(), inputs, strict=True)
    exported = session.run(None, {entry.name: value.numpy() for entry, value in entries})
    with torch.no_grad():
        outputs = network(*inputs)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return [(a, torch.from_numpy(b)) for a, b in zip(outputs, exported, strict=True)]


def differences(out: Path, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Largest difference of outputs, and as a fraction of the largest output; NaN if one is NaN.

    Args:
        out: the file, for the message.
        pairs: each output of the run's model, and the same output of the file.

    Raises:
        UserError: if an output of the run's model is not finite.
    """
    import torch

    # Of tensors: Python's max passes over NaN.
    absolute = torch.tensor([(a - b).abs().max() for a, b in pairs])
    largest = torch.tensor([a.abs().max() for a, _ in pairs])
    if not largest.isfinite().all():
        raise UserError(
            "RUN",
            f"{out}: not written, the outputs of the run's own model are not finite",
            "its training has diverged: use another run",
        )
    smallest = torch.finfo(largest.dtype).tiny  # of outputs that are all 0
    return float(absolute.max()), float((absolute / largest.clamp(min=smallest)).max())


def _compared(
    out: Path, program: Any, session: Any, pairs: list[tuple[Tensor, Tensor]]
) -> Exported:
    difference, relative = differences(out, pairs)
    if not relative <= TOLERANCE:
        raise UserError(
            "RUN",
            f"{out}: not written, its outputs differ from the run's by {difference:.1e} "
            f"({relative:.1e} of the largest; allowed {TOLERANCE:.0e})",
            "set another opset=",
        )
    return Exported(
        out,
        program.model.opset_imports[""],
        {entry.name: entry.shape for entry in session.get_inputs()},
        {entry.name: entry.shape for entry in session.get_outputs()},
        difference,
        relative,
    )


def described(loaded: Predictor, data: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of the file: task, classes and preprocessing.

    ``crop_pct`` is that of validation, also of images that are first stored at one size, of which
    the network sees the centre.

    Args:
        loaded: the run.
        data: metadata of its data set.
    """
    from research.engine import build

    dataset, size = loaded.config["dataset"], build.input_size(loaded.config, data)
    stored = dataset.get("stored_size") or data.get("transform", {}).get("image_size")
    result: dict[str, Any] = {
        "task": str(loaded.config["task"]["_target_"]).rpartition(".")[2].lower(),
        "classes": loaded.classes,
        "image_size": size,
        "crop_pct": size / stored if stored else build.crop_pct(loaded.config),
    }
    for name, value in loaded.transform.state_dict().items():
        result[name] = value[..., 0, 0].tolist()  # [C, 1, 1]
    stem = build.stem_spec(loaded.config["compression"])
    if stem is not None:
        result["range"] = stem.range_
        result["luma"], result["chroma"] = list(stem.selection.luma), list(stem.selection.chroma)
    return result


def main(words: list[str]) -> None:
    paths, options, _ = cli.parse(ExportOptions, words)
    if len(paths) != 1:
        raise UserError("RUN", "pass one RUN folder or checkpoint first, then key=value settings")
    logs.to_terminal()
    path, which = Path(paths[0]), options.checkpoint
    print(export(path, options.out, which, options.opset, options.trust))
    if is_own(path):  # where the data of a stranger's file are is not known
        words = outputs.typed_options(options)
        outputs.print_next(outputs.command_of("evaluate", path, "split=val", *words))


if __name__ == "__main__":
    cli.command(USAGE, main)
