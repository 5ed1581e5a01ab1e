"""``python -m research.prepare``: in process, and for real where that shows more."""

from __future__ import annotations

import json
import logging
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from research import prepare
from research.config import cli, compose_config
from research.data.loader import SampleKey
from research.data.warehouse.kinds import FrameSamples
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.store import Store
from research.engine import build
from research.utils.errors import UserError
from tests.conftest import ROOT, advised, make_folders, picture, user_error


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches stay in the test."""
    monkeypatch.chdir(tmp_path)


def make_runs(root: Path, runs: int = 4, frames: int = 3) -> Path:
    """Capture runs as guide 5 has them; the first frame of each is empty."""
    for number in range(runs):
        run = root / f"run_{number}"
        for folder in ("images", "labels"):
            (run / folder).mkdir(parents=True)
        about = {"schema_version": 1, "output_root": ".", "run_dir": run.name}
        (run / "run_manifest.json").write_text(json.dumps({**about, "started_at_unix": 1.0}))
        for index in range(frames):
            name = f"frame_{index:05d}"
            picture("spots", 10 * number + index, (64, 48)).save(run / "images" / f"{name}.jpg")
            boxes = [{"bbox_px": [8.0, 12.0, 40.0, 36.0], "bbox_norm": None}] if index else []
            label = {"image": f"images/{name}.jpg", "image_present": True, "polyp_labels": boxes}
            (run / "labels" / f"{name}.json").write_text(json.dumps({"frame_id": index} | label))
    return root


def run(*words: str) -> None:
    prepare.main(list(words))


def command(folder: Path, *words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "research.prepare", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )


SMALL = ("size=32", "shard_samples=5", "workers=1")


def test_capture_runs_become_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_runs(tmp_path / "runs")
    run("frames", str(source), "out", *SMALL, "val=0.25", "test=0.25", "max_boxes=2")
    manifest = Manifest.load(Path("out"))
    assert manifest.samples == 12
    assert {split: len(manifest.split(split)) for split in manifest.splits} == {
        "train": 6,
        "val": 3,
        "test": 3,
    }
    assert manifest.runs["run_2"]["empty"] == 1
    store = Store(manifest)
    expected = np.array([8 / 64, (12 + 8) / 64, 40 / 64, (36 + 8) / 64])  # 64×48 in a square
    np.testing.assert_allclose(store.rows("boxes", 1)[0], expected, atol=1e-6)
    assert store.gather("mask", range(3)).sum(1).tolist() == [0, 1, 1]
    output, logged = capsys.readouterr()
    assert f"prepared: {manifest.folder}" in output
    assert "train 6 samples of 2 groups" in output
    assert "4 of 12 frames are empty, kept as negatives" in logged
    assert (
        f"python train.py model=tinydet dataset=warehouse dataset.manifest={manifest.path}"
        in logged
    )


def test_the_reading_is_printed_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    for number in range(4):
        save = source / f"images/{number}.jpg"
        save.parent.mkdir(parents=True, exist_ok=True)
        picture("spots", number, (64, 48)).save(save)
        (source / "labels").mkdir(exist_ok=True)
        (source / f"labels/{number}.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (source / "images/3.jpg").write_bytes(b"")
    (source / "data.yaml").write_text("names: [cat]\n")
    (source / "old.yaml").write_text("names: [dog]\n")
    (source / "old.xml").write_text("<annotation><filename>images/0.jpg</filename></annotation>")
    with user_error("format", "VOC and YOLO", "format=voc or format=yolo"):
        run("frames", str(source), "out", *SMALL)
    with user_error("data_yaml", "data_yaml=data.yaml or data_yaml=old.yaml"):
        run("frames", str(source), "out", *SMALL, "format=yolo")
    run("frames", str(source), "out", *SMALL, "format=yolo", "data_yaml=data.yaml")
    manifest = Manifest.load(Path("out"))
    line = (
        "read as YOLO: names from data.yaml, no split; 3 pictures used, 5 label files, "
        "2 passed over (1 XML, 1 YAML), 1 left out (empty)"
    )
    assert manifest.reading == line
    assert f"{source}: {line}" in capsys.readouterr().err
    assert manifest.samples == 3
    words = ["model=tinydet", "dataset=warehouse", f"dataset.manifest={manifest.path}"]
    with caplog.at_level(logging.INFO):
        data = build.data_module(compose_config([*words, "device=cpu"]).config)
        data.prepare(0)
    assert f"{manifest.folder}: {line}" in caplog.messages


def test_the_advised_commands_are_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("frames", str(make_runs(tmp_path / "runs")), "a store, mine", *SMALL)
    path = str(Manifest.load(Path("a store, mine")).path)
    check, train = (shlex.split(line) for line in capsys.readouterr().err.splitlines()[-2:])
    assert check == ["check:", "python", "-m", "research.prepare", "lint", path]
    assert train[:3] == ["next:", "python", "train.py"]
    assert compose_config(train[3:]).config["dataset"]["manifest"] == path


def test_splits_can_be_named(tmp_path: Path) -> None:
    source = make_runs(tmp_path / "runs")
    run("frames", str(source), "out", *SMALL, "val_runs=run_0,run_3", "test_runs=[run_1]")
    manifest = Manifest.load(Path("out"))
    assert {group.name: group.split for group in manifest.groups} == {
        "run_0": "val",
        "run_1": "test",
        "run_2": "train",
        "run_3": "val",
    }


@pytest.mark.parametrize("layout", ["split", "whole", "spelled"])
def test_image_folders_become_a_store(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "images"
    if layout != "whole":
        for seed, (split, images) in enumerate({"train": 4, "val": 2, "test": 1}.items()):
            name = {"train": "Train", "val": "valid"}.get(split, split)
            make_folders(source / (split if layout == "split" else name), images, seed=seed)
        expected = {"train": 12, "val": 6, "test": 3}
        for name in ("a\nb", "c.txt", "d", "e", "f"):
            (source / name).touch()
    else:
        make_folders(source, 5)
        expected = {"train": 12, "val": 3}
    run("coefficients", str(source), "out", "image_size=32", "compression.window=4", "val=0.2")
    manifest = Manifest.load(Path("out"))
    assert manifest.transform == {"image_size": 32, "window": 4, "source": "bitstream"}
    assert {split: len(manifest.split(split)) for split in manifest.splits} == expected
    assert manifest.classes == ["bars", "field", "spots"]
    assert (
        np.bincount(Store(manifest).whole("labels")).tolist() == [sum(expected.values()) // 3] * 3
    )
    printed = capsys.readouterr().err
    assert (
        "next:  python train.py model=resnet34_compressed compression.window=4 "
        f"dataset=warehouse dataset.manifest={manifest.path}" in printed
    )
    if layout == "split":
        beside = "passed over beside test, train, val: 'a\\nb', 'c.txt', 'd' and 2 more\n"
        assert beside in printed


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make_folders(tmp_path / "images", 4)
    os.rename(tmp_path / "images" / "bars", tmp_path / "images" / "train")
    run("coefficients", "images", "out", "image_size=32", "compression.source=pixels")
    assert Manifest.load(Path("out")).classes == ["field", "spots", "train"]


def test_two_folders_of_one_split_are_no_guess(tmp_path: Path) -> None:
    for name in ("train", "val", "Validation"):
        make_folders(tmp_path / "images" / name, 1)
    with user_error("SOURCE", "Validation and val are both of val", "keep one"):
        run("coefficients", "images", "out")


def make_pairs(root: Path, frames: int = 4) -> Path:
    """RGB and thermal pictures with a YOLO row each; the first frame has no label file."""
    for folder in ("visible", "infrared", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(frames):
        picture("spots", number, (64, 48)).save(root / f"visible/{number}.png")
        picture("field", number, (64, 48)).convert("L").save(root / f"infrared/{number}.png")
        if number:
            (root / f"labels/{number}.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (root / "classes.txt").write_text("person\ncar\n")
    return root


def test_paired_folders_become_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pairs(tmp_path / "pairs")
    run("rgbx", "pairs", "out", "workers=1", "size=64")
    output, logged = capsys.readouterr()
    manifest = Manifest.load(Path("out"))
    assert f"prepared: {manifest.folder}\n  train 4 samples of 4 groups\n" in output
    assert "  red green blue thermal, uint8\n" in output
    assert "1 of 4 frames are empty, kept as negatives" in logged
    command = f"model=rgbx_mit_b0 dataset=rgbx dataset.root={manifest.folder}"
    assert f"next:  python train.py {command} dataset.image_size=64\n" in logged
    image = Store(manifest).rows("images", 2)[8:56]
    np.testing.assert_array_equal(image[..., :3], Image.open("pairs/visible/2.png"))
    np.testing.assert_array_equal(image[..., 3], Image.open("pairs/infrared/2.png"))
    run("lint", "out")
    output = capsys.readouterr().out
    assert "most 3 (person), total 3" in output
    assert "0 errors, 1 warning;" in output  # no car
    with Image.open(f"out/lint-{manifest.folder.name}/samples.png") as sheet:
        assert sheet.width > 2 * 192
    with user_error("labels", "visible/0.png"):
        run("rgbx", "pairs", "other", "missing_labels=error")
    with pytest.raises(UserError, match="visible"):
        run("rgbx", "pairs", "other", "thermal=visible")
    assert not Path("other").exists()


def test_ignore_regions_of_pairs_are_kept(tmp_path: Path) -> None:
    """From COCO to a batch of frames of several channels."""
    make_pairs(tmp_path / "pairs")
    shutil.rmtree("pairs/labels")
    Path("pairs/classes.txt").unlink()
    rows = [(0, 2, [16, 12, 32, 24], 1), (1, 2, [0, 0, 16, 24], 0), (1, 1, [32, 0, 32, 48], 1)]
    document = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(4)],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}],
        "annotations": [
            {"id": at, "image_id": n, "category_id": c, "bbox": b, "iscrowd": crowd}
            for at, (n, c, b, crowd) in enumerate(rows)
        ],
    }
    Path("pairs/annotations.json").write_text(json.dumps(document))
    run("rgbx", "pairs", "out", "workers=1", "size=64")
    manifest = Manifest.load(Path("out"))
    samples = FrameSamples(Store(manifest), np.arange(4), None)
    batch = samples.__getitems__([SampleKey(0, index) for index in range(4)])
    assert batch.ignored is not None
    found = {
        Path(record["name"]).stem: [
            [(int(batch.labels[row, slot]), batch.boxes[row, slot].tolist()) for slot in slots]
            for slots in (
                kind[row].nonzero()[:, 0].tolist() for kind in (batch.mask, batch.ignored)
            )
        ]
        for row, record in enumerate(manifest.records())
    }
    # 64×48 in 64×64: bars of 8 rows.
    assert found["0"] == [[], [(1, [0.25, 0.3125, 0.75, 0.6875])]]
    assert found["1"] == [[(1, [0, 0.125, 0.25, 0.5])], [(0, [0.5, 0.125, 1, 0.875])]]
    assert found["2"] == found["3"] == [[], []]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("max_invalid=1", "max_invalid=1: 2 of 8 frames are invalid (2), 1 of them found when"),
        ("max_invalid_ratio=0.2", "max_invalid_ratio=0.2: 2 of 8"),
        ("max_missing=0", "max_missing=0: 1 of 8"),
        ("max_empty_ratio=0.1", "max_empty_ratio=0.1: 1 of 8 frames in pairs are empty"),
    ],
)
def test_limits_apply_to_pairs(
    tmp_path: Path, limit: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file shows in its header that it is bad, the other when it is decoded."""
    source = make_pairs(tmp_path / "pairs", 8)
    (source / "infrared/3.png").unlink()
    (source / "visible/4.png").write_text("x")
    file = source / "infrared/5.png"
    file.write_bytes(file.read_bytes()[:-99])
    with user_error(limit.partition("=")[0], words):
        run("rgbx", "pairs", "out", "workers=1", limit)
    assert not [*Path(".").glob("out/v*")]
    enough = limit.partition("=")[0] + ("=0.5" if "ratio" in limit else "=2")
    run("rgbx", "pairs", "out", "workers=1", enough)
    output, logged = capsys.readouterr()
    assert "left out: labels/3.txt: its thermal image infrared/3.* does not exist" in logged
    assert "left out: labels/4.txt: visible/4.png: not an image: replace it" in logged
    assert "left out: visible/5.png: pairs/infrared/5.png: " in logged
    assert "  train 5 samples of" in output
    assert "  left out 1 truncated\n" in output


def test_pruned_runs_are_a_source_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_runs(tmp_path / "runs")
    (source / "run_0" / "labels" / "frame_00001.json").write_text("{")
    (source / "run_1" / "images" / "frame_00002.jpg").unlink()
    run("prune", str(source), "pruned", "empty=true", "not_runs=run_3")
    output, logged = capsys.readouterr()
    assert "kept    4 frames of 3 runs" in output
    assert "without the runs run_3" in output
    _, _, module, *words = advised(logged)
    assert (module, words) == ("research.prepare", ["frames", "pruned", "pruned_store"])
    run("frames", "pruned", "out", *SMALL)
    manifest = Manifest.load(Path("out"))
    assert manifest.samples == 4
    assert all(
        sum(r[k] for k in ("empty", "invalid", "missing_file")) == 0 for r in manifest.runs.values()
    )
    run("prune", str(source), "again", "runs=run_0,run_2")
    assert "kept    5 frames of 2 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("max_invalid=0", "max_invalid=0: 1 of 12 frames in"),
        ("max_invalid_ratio=0.05", "1 of 12 frames in"),
        ("max_missing=1", "max_missing=1: 2 of 12 frames in"),
        ("max_missing_ratio=0.1", "are missing (0.167)"),
        ("max_empty=3", "max_empty=3: 4 of 12 frames in"),
        ("max_empty_ratio=0", "are empty (0.333)"),
    ],
)
def test_limits_stop_it_before_anything_is_written(
    tmp_path: Path, limit: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_runs(tmp_path / "runs")
    (source / "run_0" / "labels" / "frame_00001.json").write_text("{")
    for number in (1, 2):
        (source / f"run_{number}" / "images" / "frame_00002.jpg").unlink()
    with user_error(limit.partition("=")[0], words):
        run("frames", str(source), "out", *SMALL, limit)
    assert not Path("out").exists()
    enough = limit.partition("=")[0] + ("=0.5" if "ratio" in limit else "=5")
    run("frames", str(source), "out", *SMALL, enough)
    manifest = Manifest.load(Path("out"))
    assert manifest.samples == 9
    key, value = enough.split("=")
    assert manifest.thresholds == {key: float(value)}
    output = capsys.readouterr().err
    assert "left out: run_0/labels/frame_00001.json: bad JSON" in output
    assert "1 of 12 frames are invalid, left out" in output
    assert "2 of 12 frames are missing, left out" in output


MISTAKES = [
    ([], "KIND", "frames, coefficients, rgbx, prune, lint"),
    (["frame", "a", "b"], "KIND", "KIND=frame; did you mean 'frames'?"),
    (["frames", "a"], "SOURCE", "prepare frames takes SOURCE and OUT"),
    (["lint"], "MANIFEST", "prepare lint takes MANIFEST"),
    (["frames", "nowhere", "b"], "SOURCE", "nowhere: no such file or folder"),
    *(
        ([kind, __file__, "b"], "SOURCE", f"is no folder; pass its folder {Path(__file__).parent}")
        for kind in ("frames", "coefficients", "rgbx", "prune")
    ),
    (["frames", ".", "b"], "OUT", "b: is inside the source"),
    (["frames", ".", "../b", "max_boxs=3"], "max_boxs", "did you mean 'max_boxes'?"),
    (["frames", ".", "../b", "epochs=3"], "epochs", "the options are size, max_boxes"),
    (["frames", ".", "../b", "size=16"], "size", "size=16: expected a whole number at least 32"),
    (["frames", ".", "../b", "size="], "size", "size=: expected a whole number at least 32"),
    (["frames", ".", "../b", "val=1"], "val", "val=1: expected a number"),
    (["frames", ".", "../b", "val=[a"], "val", "val=[a: expected a number"),
    (["frames", ".", "../b", "workers=0"], "workers", "expected a whole number at least 1"),
    (["coefficients", ".", "../b", "image_size=40"], "image_size", "expected a multiple of 16"),
    (
        ["coefficients", ".", "../b", "compression.window=9"],
        "compression.window",
        "a whole number from 1 to 8",
    ),
    (
        ["coefficients", ".", "../b", "compression.source=bitsream"],
        "compression.source",
        "compression.source=bitsream; did you mean 'bitstream'?",
    ),
    (["coefficients", ".", "../b", "val=0"], "val", "val=0: expected a number above 0"),
    (["rgbx", "a"], "SOURCE", "prepare rgbx takes SOURCE and OUT"),
    (["rgbx", ".", "b"], "OUT", "b: is inside the source"),
    (["rgbx", ".", "../b", "ir=lwir"], "ir", "the options are rgb, thermal, event"),
    (["rgbx", ".", "../b", "missing_labels=negativ"], "missing_labels", "mean 'negative'?"),
    (["rgbx", ".", "../b", "max_invalid=-1"], "max_invalid", "expected a whole number at least 0"),
    (["prune", ".", "../b", "empty=maybe"], "empty", "empty=maybe allowed: true, false"),
    (["lint", ".", "out"], "MANIFEST", "prepare lint takes MANIFEST"),
    (["lint", "."], "manifest", ".: no warehouse"),
]


@pytest.mark.parametrize(("arguments", "key", "words"), MISTAKES)
def test_mistakes_are_one_line(arguments: list[str], key: str, words: str) -> None:
    with user_error(key, words):
        run(*arguments)


def test_mistakes_are_reported_before_torch_is_imported(tmp_path: Path) -> None:
    script = f"""
import sys
from research import prepare
from research.utils.errors import UserError
for words, *_ in {MISTAKES[:-1]!r}:
    try:
        prepare.main(words)
    except UserError:
        continue
    raise SystemExit(f"{{words}} passed")
assert not {{"torch", "numpy", "PIL"}} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.whole
def test_the_command_for_real_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    """Files of at most 30,000 bytes: one line. Without the limit it resumes; lint finds nothing."""
    make_runs(tmp_path / "runs")
    words = ("frames", "runs", "out", "size=64", "shard_samples=3")

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    full = command(tmp_path, *words, preexec_fn=small_files)
    assert full.returncode == 2
    [line] = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: out: File too large; ")
    assert full.stderr.endswith(f"{line}\n")
    assert "Traceback" not in full.stderr
    done = command(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    linted = command(tmp_path, "lint", "out")
    assert linted.returncode == 0, linted.stderr
    assert "0 errors, 0 warnings; pictures: out/lint-v" in linted.stdout
    folder = Manifest.load(tmp_path / "out").folder
    names = ["box_centres", "box_sizes", "class_balance", "samples"]
    pictures = sorted((tmp_path / "out" / f"lint-{folder.name}").iterdir())
    assert [path.name for path in pictures] == [f"{name}.png" for name in names]
    Image.open(pictures[0]).verify()


def test_lint_reports_errors_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("frames", str(make_runs(tmp_path / "runs")), "out", *SMALL)
    folder = Manifest.load(Path("out")).folder
    (folder / "notes.txt").write_text("mine")
    capsys.readouterr()
    run("lint", str(folder), "out=drawn")
    printed, logged = capsys.readouterr()
    assert f"warning: {folder / 'notes.txt'}: orphan" in printed
    settings = compose_config(advised(logged)[2:]).config
    assert settings["dataset"]["manifest"] == str(folder / "manifest.json")
    assert (tmp_path / "drawn" / "samples.png").exists()
    with user_error("out", "notes.txt: File exists"):
        run("lint", "out", f"out={folder / 'notes.txt'}")
    (folder / "shard_00001.safetensors").unlink()
    with pytest.raises(SystemExit) as caught:
        run("lint", str(folder / "manifest.json"))
    assert caught.value.code == 1
    output = capsys.readouterr().out
    assert f"error: {folder / 'shard_00001.safetensors'}: No such file" in output
    assert "1 error, 1 warning;" in output


def test_the_usage_names_every_option() -> None:
    for kind, options in prepare.OPTIONS.items():
        assert kind in prepare.USAGE
        for option in cli.declared(options).values():
            assert f"{option.key}={option.default_text}" in prepare.USAGE
