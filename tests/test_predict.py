"""Predictions for a user's own images, by runs trained here for a moment."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import box_iou

import research
from research.batch import DetectionBatch
from research.config import compose_config
from research.data.frames.annotations import read_frames
from research.data.frames.frame import image_size
from research.data.frames.run_writer import RunWriter
from research.data.warehouse.build import build
from research.data.warehouse.encoders import FrameEncoder
from research.data.warehouse.plan import plan_frames
from research.inference.writers import BoxWriter
from research.tasks.detection import Detection
from research.utils.errors import DamagedImage, UserError
from research.viz.colours import PREDICTED_BOXES, class_colours
from tests.browser import Page, needs_browser
from tests.conftest import TINY, picture, refusal, run, user_error, verb
from tests.test_commands import complaints, module
from tests.videos import colours, write_video

predict = verb("predict")

Compose = Callable[..., dict[str, Any]]
SIZE = 64


class Detectors(NamedTuple):
    """Capture runs (two, of three frames each) and detectors trained on them for an epoch."""

    captures: Path
    tiny: Path
    big: Path


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> Detectors:
    root = tmp_path_factory.mktemp("detectors")
    for number, size in enumerate([(80, 60), (48, 72)]):
        with RunWriter(root / "captures" / f"run_{number}") as writer:
            for frame in range(3):
                boxes = [(0.2, 0.25, 0.6, 0.75)] * min(frame, 1)
                image = picture("spots", 10 * number + frame, size)
                writer.add(image, boxes, source="human", suffix=".jpg" if number else ".png")
    plan = plan_frames(
        read_frames(root / "captures"),
        FrameEncoder(SIZE, max_boxes=4),
        {"run_0": "train", "run_1": "val"},
        {},
    )
    build(plan, root / "store")
    with chdir(root):
        folders = [
            run(compose_config([
                f"model={name}", "model.width=4", "dataset=warehouse", "dataset.manifest=store",
                "batch_size=3", "epochs=1", "device=cpu", "logging=csv",
                f"run_dir={root / name}",
            ]).config)
            for name in ("tinydet", "bigdet")
        ]  # fmt: skip
    return Detectors(root / "captures", *folders)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels(folder: Path) -> list[list[dict[str, Any]]]:
    """Of every frame of a capture run, what its label file says."""
    files = sorted((folder / "labels").iterdir())
    return [json.loads(file.read_text())["labels"] for file in files]


# -- what is written ----------------------------------------------------------------------------


def test_a_tree_of_runs_comes_back_with_the_models_boxes(detectors: Detectors, here: Path) -> None:
    predict.main([str(detectors.big), str(detectors.captures), "objectness=0.005", "out=seen"])
    found = read_frames(here / "seen")
    assert (found.format, found.problems) == ("capture", [])
    assert [(report.name, report.total) for report in found.runs] == [("run_0", 3), ("run_1", 3)]

    model = research.load(detectors.big, "cpu")
    boxes = 0
    for name in ("run_0", "run_1"):
        images = sorted((detectors.captures / name / "images").iterdir())
        copies = sorted((here / "seen" / name / "images").iterdir())
        assert [file.read_bytes() for file in copies] == [file.read_bytes() for file in images]
        for image, reported, answer in zip(
            images, labels(here / "seen" / name), model(images), strict=True
        ):
            width, height = image_size(image)[:2]
            # research.load has left out boxes without area already: both give the same.
            assert ((answer["boxes"][:, 2:] - answer["boxes"][:, :2]) >= 0.01).all()
            kept = answer["scores"] >= 0.005
            expected = answer["boxes"][kept] / torch.tensor([width, height, width, height])
            assert np.allclose([t["bbox_norm"] for t in reported] or np.empty((0, 4)), expected)
            assert np.allclose([t["source_confidence"] for t in reported], answer["scores"][kept])
            assert {t["source"] for t in reported} <= {"model"}
            boxes += len(reported)
            drawn = Image.open(here / "seen" / "boxed" / f"{name}_{image.stem}_boxed.png")
            assert drawn.size == (width, height)
            for number, (x0, _, _, y1) in enumerate(t["bbox_px"] for t in reported):
                if number == len(reported) - 1:  # no other box covers it
                    corner = round(x0), min(round(y1), height) - 1
                    assert drawn.getpixel(corner) == PREDICTED_BOXES[min(number, 1)]
    assert boxes > 6
    coco = json.loads((here / "seen" / "predictions.json").read_text())
    assert [(i["width"], i["height"]) for i in coco["images"]] == [(80, 60)] * 3 + [(48, 72)] * 3
    everything = [
        t for name in ("run_0", "run_1") for found in labels(here / "seen" / name) for t in found
    ]
    assert np.allclose(
        [a["score"] for a in coco["annotations"]], [t["source_confidence"] for t in everything]
    )
    corners = np.array([a["bbox"] for a in coco["annotations"]])
    corners[:, 2:] += corners[:, :2]
    assert np.allclose(corners, [t["bbox_px"] for t in everything], atol=1e-3)
    summary = json.loads((here / "seen" / "summary.json").read_text())
    assert (summary["frames"], summary["boxes"]) == (6, boxes)
    assert summary["latency_ms"]["batches"] == 1
    assert summary["damage"] == {}
    assert summary["frames_per_second"] > 0


def test_what_is_written_can_be_prepared_and_trained_on(detectors: Detectors, here: Path) -> None:
    from research import prepare

    words = ["objectness=0", "out=seen"]
    predict.main([str(detectors.tiny), str(detectors.captures), *words])
    prepare.main(["frames", "seen", "store", "size=64", "val_runs=run_1", "workers=1"])
    config = compose_config([
        "model=tinydet", "model.width=4", "dataset=warehouse", "dataset.manifest=store",
        "batch_size=3", "epochs=1", "device=cpu", "logging=csv", "run_dir=again",
    ]).config  # fmt: skip
    assert (run(config) / "checkpoints" / "best.pt").exists()


def test_thresholds(detectors: Detectors, here: Path) -> None:
    def boxes(name: str, *words: str) -> list[list[dict[str, Any]]]:
        predict.main([str(detectors.big), str(detectors.captures), f"out={name}", *words])
        return [found for group in ("run_0", "run_1") for found in labels(here / name / group)]

    everything = boxes("all", "objectness=0", "iou=1")
    assert all(len(reported) == 4 for reported in everything)  # as many as the model has slots
    scores = [t["source_confidence"] for reported in everything for t in reported]
    middle = sorted(scores)[len(scores) // 2]
    some = boxes("some", f"objectness={middle:.12f}", "iou=1")
    assert sum(map(len, some)) == sum(score >= float(f"{middle:.12f}") for score in scores) < 24
    for reported in boxes("apart", "objectness=0", "iou=0.1"):
        corners = torch.tensor([t["bbox_norm"] for t in reported])
        assert (box_iou(corners, corners).fill_diagonal_(0) < 0.15).all()
    # Neither was given: those of the run, score 0.3 and IoU 0.5.
    assert sum(map(len, boxes("own"))) == sum(score >= 0.3 for score in scores)


def test_a_video_and_single_images(detectors: Detectors, here: Path) -> None:
    write_video(here / "clip.mkv", colours(5))
    picture("bars", 1).save(here / "photo.webp")
    words = ["objectness=0", "max_frames=5", "batch_size=2", "out=seen"]
    predict.main([str(detectors.tiny), "photo.webp", "clip.mkv", *words])
    assert [len(reported) for reported in labels(here / "seen" / "clip")] == [1] * 4
    written = [np.asarray(Image.open(f)) for f in sorted((here / "seen/clip/images").iterdir())]
    assert all(np.array_equal(*pair) for pair in zip(written, colours(4), strict=True))
    [photo] = (here / "seen" / "images" / "images").iterdir()
    assert np.array_equal(np.asarray(Image.open(photo)), np.asarray(Image.open("photo.webp")))
    assert sorted(file.name for file in (here / "seen" / "boxed").iterdir()) == [
        *(f"clip_0000{number}_boxed.png" for number in range(4)), "photo_boxed.png",
    ]  # fmt: skip
    latency = json.loads((here / "seen" / "summary.json").read_text())["latency_ms"]
    assert (latency["batches"], latency["batch_size"]) == (2, 2)  # not of single frames


def test_the_weights_alone_do(detectors: Detectors, here: Path) -> None:
    shutil.copy(detectors.big / "checkpoints" / "final.safetensors", here / "w.safetensors")
    for weights, words in ((here / "w.safetensors", ()), (detectors.big, ("checkpoint=last",))):
        out = f"out={'alone' if weights.is_file() else 'run'}"
        predict.main([str(weights), str(detectors.captures), "objectness=0", out, *words])
    for group in ("run_0", "run_1"):
        assert labels(here / "alone" / group) == labels(here / "run" / group)
    predict.main(["w.safetensors", str(detectors.captures), "max_frames=1"])
    [out] = (here / "runs" / "predict").iterdir()
    assert re.fullmatch(r"w-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", out.name)
    latency = json.loads((out / "summary.json").read_text())["latency_ms"]
    assert (latency["batch_size"], latency["batches"]) == (1, 1)  # of the frame that there was


def test_a_classifier_writes_a_table(small: Compose, tmp_path: Path) -> None:
    folder = run(small(*TINY, "run_dir=r"))
    images = sorted((tmp_path / "data" / "val").rglob("*.jpg"))
    write_video(tmp_path / "clip.mkv", colours(2))
    predict.main(["r", "data/val", "clip.mkv", "out=seen", "batch_size=5"])
    with (tmp_path / "seen" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "class", "score", *(
        f"{word}_{place}" for place in (2, 3) for word in ("class", "score")
    )]  # fmt: skip
    assert [row["file"] for row in rows[:-2]] == [
        str(image.relative_to(tmp_path)) for image in images
    ]
    assert rows[-1]["file"] == "clip.mkv frame 1"
    model = research.load(folder, "cpu")
    shares = model(images).softmax(1)
    for row, share in zip(rows, shares, strict=False):
        order = share.argsort(descending=True)
        names = [model.classes[index] for index in order]
        assert [row["class"], row["class_2"], row["class_3"]] == names
        assert float(row["score"]) == pytest.approx(share.max().item(), abs=6e-5)
    with Image.open(tmp_path / "seen" / "contact_sheet.png") as sheet:
        assert sheet.width > 5 * 160  # 14 pictures: rows of five, five and four
    summary = json.loads((tmp_path / "seen" / "summary.json").read_text())
    assert sum(summary["classes"].values()) == summary["frames"] == 14
    latency = summary["latency_ms"]
    assert (latency["batch_size"], latency["batches"]) == (5, 2)  # not that of the last four


# -- damage and mistakes ------------------------------------------------------------------------


def test_damage_is_counted_and_not_fatal(
    detectors: Detectors, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        (here / "photos").mkdir(exist_ok=True)
        picture("spots", number).save(here / "photos" / f"{number}.jpg")
    whole = (here / "photos" / "1.jpg").read_bytes()
    (here / "photos" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (here / "photos" / "3.png").write_bytes(b"")
    predict.main([str(detectors.tiny), "photos", "objectness=0", "out=seen"])
    summary = json.loads((here / "seen" / "summary.json").read_text())
    assert summary["damage"] == {"truncated": 1, "empty": 1}
    assert summary["frames"] == 2
    assert len(labels(here / "seen" / "photos")) == 2
    assert [m.split(":")[1].strip() for m in caplog.messages if m.startswith("left out")] == [
        "photos/1.jpg", "photos/3.png",
    ]  # fmt: skip


def test_what_only_another_reader_dislikes_is_left_out_too(here: Path) -> None:
    class Picky:
        def load_image(self, path: Path) -> list[Image.Image]:
            return [to_rgb(decode(path))]

        def read(self, paths: list[Path]) -> Any:
            for path in paths:
                if path.stem == "1":
                    raise DamagedImage("unreadable", f"{path}: coefficients")
            return [path.stem for path in paths]

    from research.data.frames.media import Media
    from research.data.image_files import decode
    from research.data.image_modes import to_rgb
    from research.engine import prediction

    for number in range(4):
        picture("bars", number).save(here / f"{number}.jpg")
    damaged: list[DamagedImage] = []
    [batch] = Media([here]).batches(8)
    stills, images, read = prediction.read_frames(Picky(), batch, damaged)  # type: ignore[arg-type]
    assert [still.stem for still in stills] == read == ["0", "2", "3"]  # type: ignore[comparison-overlap]
    assert len(images) == 3
    assert [str(error) for error in damaged] == [f"{here / '1.jpg'}: coefficients"]


def test_a_full_disk_is_one_line(
    detectors: Detectors, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("research.viz.pictures.Image.Image.save", full)
    with pytest.raises(UserError, match=r"No space left on device.*free space"):
        predict.main([str(detectors.tiny), str(detectors.captures), "out=seen"])


@pytest.fixture
def mistakes(detectors: Detectors, here: Path) -> Path:
    """A folder with what mistakes are made of."""
    (here / "empty").mkdir()
    (here / "bad").mkdir()
    (here / "bad" / "a.jpg").write_text("no image")
    (here / "clip.mp4").write_bytes(b"no video")
    (here / "full").mkdir()
    (here / "full" / "a.txt").touch()
    picture("bars", 0).save(here / "photo.jpg")
    (here / "run").symlink_to(detectors.tiny)
    return here


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["out=x"], "pass a RUN folder or a WEIGHTS file first"),
        (["run"], "no SOURCE after run; pass images"),
        (["run", "none.jpg"], "none.jpg: no such file or folder"),
        (["run", "empty"], "empty: no image in it"),
        (["run", "bad"], "no frame could be read (1 not_an_image); the first: bad/a.jpg"),
        (["run", "clip.mp4"], "clip.mp4: neither an image nor a video that can be read"),
        (["run", "photo.jpg", "objctness=1"], "no key 'objctness'; did you mean 'objectness'?"),
        (["run", "photo.jpg", "epochs=1"], "no key 'epochs'; the options are objectness, iou"),
        (["run", "photo.jpg", "objectness=2"], "objectness=2: expected a number from 0 to 1"),
        (["run", "photo.jpg", "iou=high"], "iou=high: expected a number from 0 to 1"),
        (["run", "photo.jpg", "max_frames=0"], "max_frames=0: expected a whole number"),
        (["run", "photo.jpg", "show=yess"], "show=yess allowed: true, false"),
        (["run", "photo.jpg", "port=70000"], "port=70000: expected a whole number from 0"),
        (["run", "photo.jpg", "device=cuda:9"], "device=cuda:9: this machine has"),
        (["run", "photo.jpg", "precision=fp16", "device=cpu"], "precision=fp16 needs a GPU"),
        (["run", "photo.jpg", "out=full"], "out=full: is not empty; set a new folder"),
        (["run", "photo.jpg", "out=photo.jpg"], "out=photo.jpg: is not empty"),
        (["none", "photo.jpg"], "none: no such run or checkpoint; pass a run folder"),
        (["photo.jpg", "photo.jpg"], "photo.jpg: refused, it holds pickled objects"),
    ],
)
def test_a_mistake_is_one_line(mistakes: Path, words: list[str], reported: str) -> None:
    assert reported in refusal(predict.main, words)
    assert not (mistakes / "runs").exists()


def test_thresholds_for_a_classifier_are_refused(small: Compose, tmp_path: Path) -> None:
    run(small(*TINY, "run_dir=r"))
    with user_error("objectness", "objectness=0.5", "the task of r has no score threshold"):
        predict.main(["r", "data/val", "objectness=0.5", "out=seen"])
    assert not (tmp_path / "seen").exists()


# -- the report of frames -----------------------------------------------------------------------


def test_boxes_in_the_black_of_the_letterbox_are_nothing(here: Path) -> None:
    from research.data.frames.media import Media

    picture("bars", 0, (40, 20)).save(here / "a.png")
    raw = {  # in a square canvas, black in its upper and lower quarter
        "boxes": torch.tensor([[0.1, 0.0, 0.8, 0.25], [0.1, 0.3, 0.5, 0.75]]),
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([0, 0]),
    }
    none = torch.zeros(1, 1)
    frames = DetectionBatch(
        torch.arange(1), torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 4), none.bool(), none.long(),
        torch.tensor([[20, 40]]),
    )  # fmt: skip
    task = Detection(["cat"], True, iou=0.5, score=0.3, presence=0.5, monitor="val/mAP50:max")
    answers = task.postprocess([raw], frames)
    [batch] = Media([here / "a.png"]).batches(8)
    with report_of(here / "seen", ["cat"]) as report, Image.open(here / "a.png") as image:
        [seen] = report.add(batch, [[image]], answers)
    assert np.allclose(seen.boxes, [[0.1, 0.1, 0.5, 1.0]])
    assert seen.texts == ["0 0.8"]
    [[reported]] = labels(here / "seen" / "images")
    assert reported["bbox_px"] == pytest.approx([4, 2, 20, 20])
    assert (report.summary()["boxes"], report.summary()["frames_with_boxes"]) == (1, 1)


def test_boxes_are_drawn_on_every_panel_and_written_in_cocos_form(here: Path) -> None:
    from research.data.frames.media import Media

    for name in ("a", "b"):
        np.save(here / f"{name}.npy", np.zeros((20, 40, 5), np.uint8))
    answer = {
        "boxes": torch.tensor([[4.0, 2.0, 20.0, 12.0], [8.0, 4.0, 40.0, 20.0], [0, 0, 5.0, 5.0]]),
        "scores": torch.tensor([0.9, 0.8, 0.1]),
        "labels": torch.tensor([1, 0, 0]),
    }
    nothing = {name: values[:0] for name, values in answer.items()}
    panels = [Image.new("RGB", (40, 20), (grey,) * 3) for grey in (50, 60, 70)]
    [batch] = Media([here]).batches(8)
    with report_of(here / "seen", ["cat", "dog"]) as report:
        report.add(batch, [panels, panels], [answer, nothing])
    # A capture run's labels name no class, so two would become one in it.
    assert sorted(path.name for path in (here / "seen").iterdir()) == ["boxed", "predictions.json"]
    drawn = np.asarray(Image.open(here / "seen" / "boxed" / "a_boxed.png"))
    assert drawn.shape == (20, 120, 3)
    parts = np.split(drawn, 3, axis=1)
    for grey, part in zip((50, 60, 70), parts, strict=True):
        assert (part == grey).all(-1).any()
        marks = (part != grey).any(-1)
        assert marks.any()
        assert (marks == (parts[0] != 50).any(-1)).all()

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(here / "seen" / "predictions.json")
        again = coco.loadRes(list(coco.anns.values()))  # what COCO's tools judge
    assert [image["file_name"] for image in coco.imgs.values()] == [
        str(here / "a.npy"), str(here / "b.npy"),
    ]  # fmt: skip
    assert {(image["width"], image["height"]) for image in coco.imgs.values()} == {(40, 20)}
    assert {c["id"]: c["name"] for c in coco.cats.values()} == {1: "cat", 2: "dog"}
    reported = [
        (a["image_id"], a["category_id"], a["bbox"], pytest.approx(a["score"]))
        for a in again.anns.values()
    ]
    assert reported == [(1, 2, [4, 2, 16, 10], 0.9), (1, 1, [8, 4, 32, 16], 0.8)]


def report_of(folder: Path, classes: list[str]) -> BoxWriter:
    return BoxWriter(
        folder,
        0.5,
        lambda label, score: f"{label} {score:.1f}",
        class_colours,
        classes,
    )


def test_arrays_are_looked_at_where_there_is_no_picture(here: Path) -> None:
    from research.data.frames.media import Media

    for folder in ("arrays", "both"):
        (here / folder / "deep").mkdir(parents=True)
        np.save(here / folder / "deep" / "a.npy", np.zeros((20, 40, 5), np.uint8))
    picture("bars", 0).save(here / "both" / "b.png")

    def stems(*sources: Path) -> list[str]:
        return [still.stem for batch in Media(sources).batches(8) for still in batch]

    assert stems(here / "arrays") == ["deep_a"]
    assert stems(here / "both") == ["b"]
    assert stems(here / "both" / "deep" / "a.npy") == ["a"]


def test_an_array_is_no_picture_to_a_model_of_pictures(detectors: Detectors, here: Path) -> None:
    np.save(here / "a.npy", np.zeros((20, 40, 5), np.uint8))
    picture("bars", 0).save(here / "b.png")
    predict.main([str(detectors.tiny), "a.npy", "b.png", "objectness=0", "out=seen"])
    summary = json.loads((here / "seen" / "summary.json").read_text())
    assert (summary["frames"], summary["damage"]) == (1, {"not_an_image": 1})


# -- the command --------------------------------------------------------------------------------


@needs_browser
@pytest.mark.whole
def test_the_command_plays_in_a_browser_until_ctrl_c(detectors: Detectors, here: Path) -> None:
    write_video(here / "clip.mkv", colours(6))
    words = ["objectness=0", "show=true", "batch_size=2", "out=seen"]
    with module(here, "predict", str(detectors.big), "clip.mkv", *words) as command:
        line = command.stdout.readline()
        assert re.fullmatch(r"watch:    (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", line)
        with Page(line.split()[1]) as page:
            page.wait("document.querySelector('#counter').textContent === '6 / 6'")
            assert page.evaluate("document.querySelectorAll('#boxes rect').length") > 1
            assert page.text("#name") == "clip.mkv frame 5"
            seen = page.screenshot().reshape(-1, 3).astype(int)
            for colour in PREDICTED_BOXES:
                assert (np.abs(seen - colour).max(1) <= 3).sum() > 20
            assert (page.text("#problem"), page.problems) == ("", [])
        os.kill(command.pid, signal.SIGINT)
        printed, errors = command.communicate(timeout=60)
        assert (command.returncode, complaints(errors)) == (0, [])
        assert "6 of 6 frames have boxes" in printed
        assert printed.endswith("ended\n")
    assert len(read_frames(here / "seen").frames) == 6
