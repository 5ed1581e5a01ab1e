"""ONNX files, read with onnxruntime and judged against the run's own predictions."""

from __future__ import annotations

import builtins
import json
import math
import re
import runpy
import warnings
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.ops import box_iou, nms

import research
from research import export
from research.config import compose_config
from research.engine import build, predictor, weights_file
from research.engine.predictor import Predictor
from research.utils.errors import UserError
from tests.conftest import as_if_trained, user_error

CLASSES = ["bars", "field", "spots"]
SMALL = ("dataset=imagefolder", "dataset.train_dirs=[none]", "dataset.image_size=32", "device=cpu")
TINY = (*SMALL, "model=densenet_bc_40_12", "model.block_layers=[1,1]", "model.growth_rate=4")


def saved(folder: Path, *overrides: str, metadata: dict[str, Any] | None = None) -> Path:
    """A run's weights file as training leaves it, of a network whose norms are not idle."""
    torch.manual_seed(0)
    config = compose_config(list(overrides)).config
    metadata = {"name": "test", "classes": CLASSES, **(metadata or {})}
    network = build.model(config, metadata)
    as_if_trained(network)
    data = build.data_module(config)
    data.load_metadata(metadata)
    header = {
        "config": config,
        "data": metadata,
        "state": {
            "epoch": 1,
            "step": 1,
            "best": 0.5,
            "best_epoch": 1,
            "history": [{"epoch": 1, "epoch_time_sec": 0.5}],
        },
        "transform": data.transform(measured=False).state_dict(),
    }
    path = folder / "a_run" / "checkpoints" / "final.safetensors"
    weights_file.save(network.state_dict(), path, header)
    return path


def opened(file: Path) -> tuple[Any, dict[str, Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    return session, {key: json.loads(value) for key, value in meta.items()}


def test_a_classifier_is_written_checked_and_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved(tmp_path, *TINY, "precision=bf16", "model.memory_efficient=true")
    out = tmp_path / "deep" / "net.onnx"
    export.main([str(run), f"out={out}"])
    printed = capsys.readouterr().out
    assert f"{out}: " in printed
    assert "images [batch, 3, 32, 32]" in printed
    assert "logits [batch, 3]" in printed
    session, about = opened(out)
    assert about["classes"] == CLASSES
    assert (about["image_size"], about["crop_pct"]) == (32, 0.875)
    assert about["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert about["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert (about["task"], about["run"]) == ("classification", "a_run")
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = research.load(run, device="cpu").model(images)
    (logits,) = session.run(None, {"images": images.numpy()})
    assert np.abs(logits - expected.numpy()).max() < 1e-4 * expected.abs().max().item()
    # The example of the page, on a photo that lies on its side.
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo.save(out.with_name("photo.jpg"), exif=exif)
    out.rename(out := out.with_name("model.onnx"))
    page = Path(__file__).parents[1] / "docs" / "production.md"
    [example] = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    (script := tmp_path / "example.py").write_text(example)
    with chdir(out.parent):
        done = runpy.run_path(str(script))
        loaded = research.load(run, device="cpu", overrides=["precision=fp32"])
        known = loaded("photo.jpg").numpy()
    assert np.abs(done["logits"] - known).max() < 1e-3 * np.abs(known).max()
    # Nothing of the machine that wrote it.
    content = out.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(research.__file__).parent).encode() not in content


@pytest.mark.parametrize(
    ("settings", "stored", "expected"),
    [
        (("dataset=imagefolder", "dataset.train_dirs=[none]"), None, 0.875),
        (("dataset=imagefolder", "dataset.train_dirs=[none]", "dataset.crop_pct=0.5"), None, 0.5),
        (("dataset=imagefolder", "dataset.train_dirs=[none]", "dataset.stored_size=64"), None, 0.5),
        (("dataset=warehouse", "dataset.manifest=none"), 64, 0.5),
        (("dataset=warehouse", "dataset.manifest=none"), 32, 1.0),
    ],
)
def test_the_crop_is_the_one_that_predictions_see(
    tmp_path: Path, settings: tuple[str, ...], stored: int | None, expected: float
) -> None:
    """Of a picture that is black around this crop the network sees nothing black."""
    network = ("model=resnet34_compressed", "model.name=resnet10t", "compression=block_stem")
    source = ("compression.window=2", "compression.source=bitstream", "dataset.image_size=32")
    transform = {"image_size": stored, "window": 2, "source": "bitstream"}
    metadata = {"transform": transform} if stored else {}
    run = saved(tmp_path, *settings, *network, *source, "device=cpu", metadata=metadata)
    loaded, file = predictor.load(run, "best", [], ())
    about = export.described(loaded, file["data"])
    assert (about["image_size"], about["crop_pct"]) == (32, expected)
    side = round(512 * about["crop_pct"])
    photo = Image.new("L", (700, 512))
    left, top = (700 - side) // 2, (512 - side) // 2
    photo.paste(200, (left, top, left + side, top + side))
    photo.save(tmp_path / "a.png")
    y = loaded.transform(loaded.data.read([tmp_path / "a.png"]), None).inputs.y
    means = y[0, 0]  # of each block; the resize reads a little of what is beside its crop
    assert means.min() > 0.9 * means.max() > 0


@pytest.mark.long
def test_a_file_whose_outputs_differ_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path, *TINY)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    out = tmp_path / "out" / "net.onnx"
    with pytest.raises(UserError, match="not written, its outputs differ"):
        export.main([str(run), f"out={out}"])
    assert list(out.parent.iterdir()) == []


def test_the_largest_difference() -> None:
    out, one, nan, zero = (
        Path("a.onnx"),
        torch.ones(2),
        torch.tensor([1, torch.nan]),
        torch.zeros(2),
    )
    four, off = torch.tensor([-4.0, 1.0]), torch.tensor([-4.0, 1.5])
    assert export.differences(out, [(one, one), (four, off)]) == (0.5, 0.125)
    assert export.differences(out, [(zero, zero)]) == (0.0, 0.0)
    assert export.differences(out, [(zero, one)])[1] > 1
    # Of every output, whichever comes first.
    for pairs in ([(one, nan), (one, one)], [(one, one), (one, nan)]):
        assert all(math.isnan(value) for value in export.differences(out, pairs))
    for values in (nan, one / 0):
        with user_error("RUN", "are not finite"):
            export.differences(out, [(one, one), (values, values)])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "pass one RUN"),
        (["run", "more"], "pass one RUN"),
        (["run", "opset=9"], "opset=9: expected a whole number at least 18"),
        (["run", "checkpoint=worst"], "checkpoint=worst"),
        (["run", "ot=x.onnx"], "did you mean 'out'"),
        (["run", "out=net.pt"], "ends in .onnx"),
        (["run"], "run: no such run or checkpoint"),
        (["models:/net/1"], "a model in MLflow has no folder; set out="),
    ],
)
def test_mistakes_are_one_line(words: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        export.main(words)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "onnxscript":
            raise ImportError(name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs the package onnxscript: pip install"):
        export.main(["run"])


def test_a_network_that_cannot_be_exported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path, *TINY)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("step\n1 of 3\n failed") from ValueError("no\nsuch operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match=r"cannot be exported to ONNX \(no such operator\)"):
        export.main([str(run)])


@pytest.mark.whole
@pytest.mark.parametrize("variant", ["reconstruction", "block_stem", "late_concat"])
def test_compressed_models_take_y_and_cbcr(tmp_path: Path, variant: str) -> None:
    settings = ("model=resnet34_compressed", "model.name=resnet10t", f"compression={variant}")
    run = saved(tmp_path, *SMALL, *settings, "compression.window=2")
    export.main([str(run)])
    session, about = opened(run.with_name("model.onnx"))
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("y", ["batch", 4, 4, 4]),
        ("cbcr", ["batch", 2, 4, 2, 2]),
    ]
    assert about["luma"] == [0, 1, 8, 9]
    assert len(about["y_mean"]) == 4
    y, cbcr = torch.randn(4, 4, 4, 4), torch.randn(4, 2, 4, 2, 2)
    from research.compression.blocks import Blocks

    with torch.no_grad():
        expected = research.load(run, device="cpu").model(Blocks(y, cbcr)).numpy()
    (logits,) = session.run(None, {"y": y.numpy(), "cbcr": cbcr.numpy()})
    assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.whole
@pytest.mark.parametrize("option", ["tinydet", "bigdet"])
def test_detectors_give_what_suppression_takes(tmp_path: Path, option: str) -> None:
    transform = {"image_size": 128, "max_boxes": 16}
    run = saved(
        tmp_path,
        f"model={option}",
        "model.width=8",
        "dataset.image_size=128",
        metadata={"classes": ["thing"], "transform": transform},
    )
    export.main([str(run)])
    session, about = opened(run.with_name("model.onnx"))
    assert about["classes"] == ["thing"]
    images = torch.rand(3, 3, 128, 128)
    boxes, scores = (torch.from_numpy(a) for a in session.run(None, {"images": images.numpy()}))
    cells = 16 if option == "bigdet" else 1
    assert (boxes.shape, scores.shape) == ((3, cells, 4), (3, cells))
    loaded: Predictor = research.load(run, device="cpu")
    with torch.no_grad():
        expected = loaded.model(images)
    for box, score, known in zip(boxes.clamp(0, 1), scores, expected, strict=True):
        kept = nms(box, score, about["nms_iou"])[: about["max_boxes"]]
        torch.testing.assert_close(score[kept], known["scores"], atol=1e-4, rtol=0)
        assert (box_iou(box[kept], known["boxes"]).diagonal() > 0.99).all()


@pytest.mark.whole
def test_an_operator_set_may_be_chosen(tmp_path: Path) -> None:
    run = saved(tmp_path, *TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = export.export(run, tmp_path / "a.onnx", "best", 18)
    assert done.opset == 18
    assert done.relative < 1e-4
