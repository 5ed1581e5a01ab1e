"""Disturbances against arithmetic on small arrays, and on a detector that sees by one rule."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import research
from research import robustness
from research.batch import DetectionBatch
from research.config import compose_config
from research.data.loader import EpochLoader, SampleKey
from research.data.transforms import DeviceTransform
from research.engine import disturbances, evaluation
from research.tasks.detection import Detection
from research.utils.errors import UserError
from tests.conftest import evaluated, refusal, run, verb

CHANNELS = ("red", "green", "blue", "thermal", "event")
SIZE = 32


def boxed(height: int = SIZE, width: int = SIZE, count: int = 2) -> DetectionBatch:
    """Frames [count, 5, 32, 32] of ones everywhere, bars of the letterbox included."""
    index = torch.arange(count)
    boxes, sizes = torch.zeros(count, 1, 4), torch.tensor([[height, width]] * count)
    inputs = torch.ones(count, 5, SIZE, SIZE)
    return DetectionBatch(index, inputs, boxes, boxes.any(-1), index[:, None], sizes)


class Plain(DeviceTransform):
    """Leaves a batch as it is."""

    def forward(self, batch: Any, generator: torch.Generator | None) -> Any:
        return batch

    def to_images(self, batch: Any) -> list[Tensor]:
        return [batch.inputs[:, :3].to(torch.uint8)]


# -- what goes wrong ----------------------------------------------------------------------------


def test_every_sensor_and_all_beside_rgb() -> None:
    assert disturbances.sensors(CHANNELS) == {
        "RGB": [0, 1, 2],
        "thermal": [3],
        "event": [4],
        "all but RGB": [3, 4],
    }
    assert disturbances.sensors(CHANNELS[:4]) == {"RGB": [0, 1, 2], "thermal": [3]}


@pytest.mark.parametrize(("count", "expected"), [(5, 1 + 4 + 2 + 3 * 3), (4, 1 + 2 + 2 + 2 * 3)])
def test_all_cases_once(count: int, expected: int) -> None:
    found = disturbances.cases(CHANNELS[:count], [2, 4], [0.25, 0.5, 1])
    reported = [(case.kind, case.sensor, case.amount) for case in found]
    assert len(set(reported)) == len(reported) == expected
    assert reported[0] == ("clean", "", 0)
    moved = "thermal" if count == 4 else "all but RGB"
    assert [case[1:] for case in reported if case[0] == "shifted"] == [(moved, 2), (moved, 4)]


@pytest.mark.parametrize("name", ["RGB", "thermal", "event", "all but RGB"])
def test_a_missing_sensor_is_at_its_mean_and_no_other(name: str) -> None:
    places = disturbances.sensors(CHANNELS)[name]
    inputs = torch.rand(2, 5, 8, 8) + 1
    kept = inputs.clone()
    found = disturbances.missing(places)(inputs)
    for channel in range(5):
        expected = torch.zeros(2, 8, 8) if channel in places else kept[:, channel]
        assert torch.equal(found[:, channel], expected)
    assert torch.equal(inputs, kept)


@pytest.mark.parametrize("pixels", [1, 3, 8, 20])
def test_a_shift_is_to_the_right_and_nothing_comes_round(pixels: int) -> None:
    inputs = torch.rand(2, 5, 8, 8) + 1
    kept = inputs.clone()
    found = disturbances.shifted([3, 4], pixels)(inputs)
    expected = np.zeros((2, 5, 8, 8), np.float32)
    expected[:, :3] = kept[:, :3]
    for x in range(pixels, 8):
        expected[:, 3:, :, x] = kept[:, 3:, :, x - pixels]
    assert np.array_equal(found, expected)
    assert torch.equal(inputs, kept)


def test_noise_has_the_deviation_asked_for_and_is_the_same_every_time() -> None:
    inputs = torch.zeros(4, 5, 64, 64)
    disturb = disturbances.noisy([4], 0.25)
    first, second = disturb(inputs), disturb(inputs)
    assert not torch.equal(first, second)
    assert first[:, 4].std().item() == pytest.approx(0.25, rel=0.03)
    assert first[:, 4].mean().item() == pytest.approx(0, abs=0.01)
    assert not first[:, :4].any()
    assert torch.equal(disturbances.noisy([4], 0.25)(inputs), first)
    # Each case of a list starts anew as well.
    case = disturbances.cases(CHANNELS, [1], [0.25])[-1]
    assert torch.equal(case.disturb()(inputs), case.disturb()(inputs))
    assert (case.kind, case.sensor) == ("noisy", "event")


@pytest.mark.parametrize(("height", "width"), [(16, 32), (32, 16), (10, 20), (32, 32)])
def test_only_the_frame_is_disturbed(height: int, width: int) -> None:
    transform = disturbances.disturbed(Plain(), lambda inputs: inputs + 5)
    found = transform(boxed(height, width), None).inputs
    wide, high = (np.array([width, height]) * SIZE // max(width, height)).tolist()
    left, top = (SIZE - wide) // 2, (SIZE - high) // 2
    assert (found[:, :, top : top + high, left : left + wide] == 6).all()
    assert found.sum().item() == 2 * 5 * wide * high * 6


# -- what is left of a detector -----------------------------------------------------------------


class Scenes:
    """Eight frames; an object of 12 × 12 pixels is bright in channel 3 alone."""

    skipped: dict[str, int] = {}  # noqa: RUF012

    def __len__(self) -> int:
        return 8

    def __getitems__(self, keys: list[SampleKey]) -> DetectionBatch:
        batch = boxed(count=len(keys))
        batch.index = torch.tensor([key.index for key in keys])
        batch.inputs.zero_()
        for slot, at in enumerate(batch.index.tolist()):
            batch.inputs[slot, 3, 10:22, at : at + 12] = 4
            batch.boxes[slot, 0] = torch.tensor([at, 10, at + 12, 22]) / SIZE
        batch.mask[:] = True
        batch.labels.zero_()
        return batch


class Sees(nn.Module):
    """Boxes whatever is bright in channel 3."""

    def forward(self, inputs: Tensor) -> list[dict[str, Tensor]]:
        found = []
        for plane in inputs[:, 3]:
            rows, columns = (plane > 2).nonzero(as_tuple=True)
            box = torch.empty(0, 4)
            if len(rows):
                edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                box = torch.stack(edges)[None] / SIZE
            labels = torch.zeros(len(box), dtype=torch.int64)
            found.append({"boxes": box, "scores": torch.full((len(box),), 0.9), "labels": labels})
        return found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A run of five channels takes the place of whatever run is asked for; its calls."""
    calls = []
    config = compose_config(["model=tinydet", "device=cpu"]).config
    task = Detection(["car"], False, 0.5, 0.5, 0.5, "val/mAP50:max")
    device = torch.device("cpu")

    def made(*asked: Any, channels: Sequence[str] = CHANNELS) -> evaluation.EvalRun:
        calls.append(asked)
        data: Any = SimpleNamespace(classes=["car"])
        loaded = evaluation.Predictor(config, ["car"], task, Sees(), data, Plain(), device)
        loader = EpochLoader(Scenes(), 4, seed=0, train=False)
        channels = channels if asked[0].name != "colours" else channels[:3]
        saved = {"data": {"channels": list(channels)}}
        return evaluation.EvalRun(loaded, loader, saved, "val", asked[0])

    monkeypatch.setattr(evaluation, "load_eval_run", made)
    return calls


def test_what_is_left_is_what_arithmetic_says(
    fake: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["split=val", "shifts=2,8", "noise=0.01", "device=cpu", f"out={out}"]
    robustness.main([str(tmp_path / "run"), *words])
    assert fake == [(tmp_path / "run", "val", "best", "cpu", [], ())]
    reported = json.loads((out / "robustness.json").read_text())
    assert reported["metric"] == "mAP50"
    found = {(c["kind"], c["sensor"], c["amount"]): c for c in reported["cases"]}
    reached = {case: values["mAP50"] for case, values in found.items()}
    # An object of 12 pixels, 2 off: IoU 10/14, found at 0.50 but not at 0.75; 8 off: 4/20.
    assert reached == {
        ("clean", "", 0): pytest.approx(1),
        ("missing", "RGB", 0): pytest.approx(1),
        ("missing", "thermal", 0): 0,
        ("missing", "event", 0): pytest.approx(1),
        ("missing", "all but RGB", 0): 0,
        ("shifted", "all but RGB", 2): pytest.approx(1),
        ("shifted", "all but RGB", 8): 0,
        ("noisy", "RGB", 0.01): pytest.approx(1),
        ("noisy", "thermal", 0.01): pytest.approx(1),
        ("noisy", "event", 0.01): pytest.approx(1),
    }
    moved = found["shifted", "all but RGB", 2]
    assert moved["mAP75"] == 0
    assert moved["mean_iou"] == pytest.approx(10 / 14)
    assert found["missing", "thermal", 0]["precision"] is None  # nothing was detected

    with (out / "robustness.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mAP50"]) for row in rows] == list(reached.values())
    with Image.open(out / "robustness.png") as chart:
        assert chart.width > 1000
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(rows)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed]
    assert cells[0][:6] == ["disturbance", "sensor", "amount", "n", "mAP50", "Δ mAP50"]
    assert {row[3] for row in cells[2:]} == {row["n"] for row in rows} == {str(len(Scenes()))}
    lost = {cells[2][0]: cells[2][5], **{row[0] + row[1]: row[5] for row in cells[3:7]}}
    assert lost["clean"] == ""
    assert lost["missingRGB"] == "+0.000"
    assert lost["missingthermal"] == "-1.000"


def test_a_run_without_another_sensor_is_refused(fake: list[tuple[Any, ...]]) -> None:
    with pytest.raises(UserError, match=r"colours: .*no channel besides red.*model=rgbx") as caught:
        robustness.main(["colours", "device=cpu"])
    assert "\n" not in str(caught.value)
    assert not Path("colours").exists()


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        ([], "pass one RUN folder"),
        (["a", "b"], "pass one RUN folder"),
        (["a", "shifts=0"], "shifts=0: expected a whole number from 1"),
        (["a", "shifts=1.5"], "shifts=1.5: expected a whole number from 1"),
        (["a", "noise=-1"], "noise=-1: expected a number above 0"),
        (["a", "noise=nan"], "noise=nan: expected a number above 0"),
        (["a", "split=tset"], "split=tset; did you mean 'test'?"),
        (["a", "shift=2"], "did you mean 'shifts'?"),
        (["a"], "a: no such run or checkpoint"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], reported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reported in refusal(robustness.main, words)


# -- of a run that was trained ------------------------------------------------------------------


@pytest.mark.whole
def test_a_trained_detector_is_judged_and_looks_at_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [
        "model=rgbx_mit_b0", "model.fpn_channels=16", "model.representation_size=32",
        "model.proposals=20", "dataset.root=scenes", "dataset.demo.images=24",
        "dataset.image_size=64", "batch_size=2", "max_train_batches=1",
        "dataset.max_val_images=4", "epochs=1", "device=cpu", "logging=csv", "run_dir=runs/r",
    ]  # fmt: skip
    run(compose_config(settings).config)
    capsys.readouterr()
    robustness.main(["runs/r", "split=val", "shifts=2", "noise=1", "device=cpu"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 1 + 4 + 1 + 3
    file = tmp_path / "runs" / "r" / "robustness_val" / "robustness.json"
    reported = json.loads(file.read_text())
    clean, *others = reported["cases"]
    expected = evaluated("runs/r").metrics
    for name, value in expected.items():
        assert clean[name] == (pytest.approx(value, abs=1e-6) if value == value else None)
    # What the network is shown makes a difference, even untrained.
    assert len({case["mean_iou"] for case in (clean, *others)}) > 5

    verb("predict").main(["runs/r", "scenes/images", "max_frames=2", "objectness=0.01", "out=seen"])
    coco = json.loads((tmp_path / "seen" / "predictions.json").read_text())
    names = [Path(image["file_name"]).name for image in coco["images"]]
    files = [tmp_path / "scenes" / "images" / name for name in names]
    model = research.load("runs/r", "cpu")
    assert len(files) == 2
    for number, (file, answer) in enumerate(zip(files, model(files), strict=True), start=1):
        frame = np.load(file)
        height, width, channels = frame.shape
        with Image.open(tmp_path / "seen" / "boxed" / f"{file.stem}_boxed.png") as drawn:
            assert drawn.size == ((channels - 2) * width, height)
        panels = [np.asarray(panel) for panel in model.data.load_image(file)]
        assert np.array_equal(panels[0], frame[..., :3])
        for extra, panel in enumerate(panels[1:], start=3):
            assert np.array_equal(panel, frame[..., extra, None].repeat(3, -1))
        inside = ((answer["boxes"][:, 2:] > answer["boxes"][:, :2]).all(1)).tolist()
        scores = [s for s, kept in zip(answer["scores"].tolist(), inside, strict=True) if kept]
        said = [a["score"] for a in coco["annotations"] if a["image_id"] == number]
        assert [s for s in said if s >= 0.05] == pytest.approx(scores, abs=1e-4)
    # Asked for more than the run's own model.score_threshold lets through.
    assert 0.01 <= min(answer["score"] for answer in coco["annotations"]) < 0.05
