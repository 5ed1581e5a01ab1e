from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from research.data.frames.annotations import read_frames
from research.data.frames.capture import MANIFEST, prune, read_capture
from research.data.frames.run_writer import RunWriter
from tests.conftest import user_error
from tests.data.frames.drawn import draw, means, pixel_boxes

SIZE = (64, 48)


def label(**changes: Any) -> dict[str, Any]:
    """A label of the earlier schema with one good box."""
    return {
        "frame_id": 0,
        "sim_time": 0.0,
        "unix_time": 0.0,
        "image": "images/frame_00000.jpg",
        "image_present": True,
        "camera_active": True,
        "polyp_seed": 1,
        "polyp_labels": [entry()],
        **changes,
    }


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "center_world": [0, 0, 0],
        "bbox_px": [16, 12, 48, 36],
        "bbox_norm": [0.25, 0.25, 0.75, 0.75],
        **changes,
    }


def write_run(folder: Path, labels: list[dict[str, Any] | str]) -> Path:
    """A run with an image for every label, which is a document or the text of a file."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    manifest = {"schema_version": 1, "run_dir": folder.name, "started_at_unix": 1.7e9}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for number, document in enumerate(labels):
        stem = f"frame_{number:05d}"
        Image.new("RGB", SIZE, (number, 90, 90)).save(folder / f"images/{stem}.jpg")
        if isinstance(document, dict):
            if document["image"] == "images/frame_00000.jpg":
                document = {**document, "image": f"images/{stem}.jpg"}
            document = json.dumps(document)
        (folder / f"labels/{stem}.json").write_text(document)
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two runs: valid, empty, blank image, missing file, bad JSON; and two valid ones."""
    root = tmp_path / "tree"
    first = write_run(
        root / "run_a",
        [label(), label(polyp_labels=[]), label(image=" "), label(), "{"],
    )
    (first / "images/frame_00003.jpg").unlink()
    (first / "overlays").mkdir()
    for number in (0, 1):
        (first / f"overlays/frame_{number:05d}.png").write_bytes(b"drawn")
    write_run(root / "run_b", [label(), label()])
    return root


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_counts_frames_and_problems_of_every_run(tree: Path) -> None:
    found = read_capture(tree)
    names = [frame.name for frame in found.frames]
    assert names == [
        "run_a/images/frame_00000.jpg",
        "run_a/images/frame_00001.jpg",
        "run_b/images/frame_00000.jpg",
        "run_b/images/frame_00001.jpg",
    ]
    assert [frame.boxes for frame in found.frames[:2]] == [((0.25, 0.25, 0.75, 0.75),), ()]
    assert [frame.labels for frame in found.frames[:2]] == [(0,), ()]
    assert {frame.group for frame in found.frames} == {"run_a", "run_b"}
    a, b = found.runs
    assert (a.name, a.total, a.non_empty, a.empty) == ("run_a", 2, 1, 1)
    assert (a.missing_image, a.missing_file, a.invalid, a.seen) == (1, 1, 1, 5)
    assert (b.total, b.seen) == (2, 2)
    assert [line.partition(":")[0] for line in found.problems] == [
        f"run_a/labels/frame_0000{number}.json" for number in (2, 3, 4)
    ]
    assert found.classes == ["polyp"]
    assert found.format == "capture"


def test_both_schemas_are_read(tmp_path: Path) -> None:
    later = label(label_seed=1, labels=[{**entry(), "source": "human", "source_confidence": 1.0}])
    del later["polyp_labels"], later["polyp_seed"]
    found = read_capture(write_run(tmp_path / "run", [label(), later]))
    assert found.frames[0].boxes == found.frames[1].boxes == ((0.25, 0.25, 0.75, 0.75),)


def test_pixel_boxes_are_shares_of_the_real_size(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [label(polyp_labels=[entry(bbox_norm=None)])])
    assert read_capture(run).frames[0].boxes == ((0.25, 0.25, 0.75, 0.75),)


def test_an_entry_without_any_box_is_out_of_view(tmp_path: Path) -> None:
    hidden = entry(bbox_norm=None, bbox_px=None)
    run = write_run(tmp_path / "run", [label(polyp_labels=[hidden])])
    assert read_capture(run).runs[0].empty == 1


def test_rounding_beyond_the_edge_is_clipped(tmp_path: Path) -> None:
    rounded = entry(bbox_norm=[-1e-7, 0, 1.0000001, 1], bbox_px=[-0.5, 0, 64.5, 48])
    run = write_run(tmp_path / "run", [label(polyp_labels=[rounded])])
    assert read_capture(run).frames[0].boxes == ((0, 0, 1, 1),)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (entry(bbox_norm=[0.7, 0.2, 0.3, 0.8]), "inverted"),
        (entry(bbox_norm=[0.3, 0.2, 0.3, 0.8]), "inverted or empty"),
        (entry(bbox_norm=[0.1, 0.2, 1.3, 0.8]), "exceeds the image"),
        (entry(bbox_norm=None, bbox_px=[0, 0, 70, 20]), "exceeds the image (64×48)"),
        (entry(bbox_px=[0, 0, 70, 20]), "bbox_px"),
        (entry(bbox_norm=[-0.1, 0, 0.5, 0.5]), "exceeds the image"),
        (entry(bbox_norm=[0, 0, float("nan"), 1]), "four finite numbers"),
        (entry(bbox_norm=[0, 0, float("inf"), 1]), "four finite numbers"),
        (entry(bbox_norm=[0, 0, 10**400, 1]), "four finite numbers"),
        (entry(bbox_norm=[0, 0, True, 1]), "four finite numbers"),
        (entry(bbox_norm=[0, 0, 1]), "four finite numbers"),
        (entry(bbox_norm="0 0 1 1"), "four finite numbers"),
        ("box", "not a JSON object"),
    ],
)
def test_a_bad_box_makes_the_frame_invalid(tmp_path: Path, bad: Any, words: str) -> None:
    run = write_run(tmp_path / "run", [label(), label(polyp_labels=[entry(), bad])])
    found = read_capture(run)
    assert found.runs[0].invalid == 1
    assert len(found.frames) == len(found.problems) == 1
    assert found.problems[0].startswith("labels/frame_00001.json: polyp_labels[1]")
    assert words in found.problems[0]
    assert "\n" not in found.problems[0]


@pytest.mark.parametrize(
    ("document", "kind", "words"),
    [
        ("", "invalid", "bad JSON at line 1"),
        ("[" * 100_000, "invalid", "bad JSON"),
        ("[]", "invalid", "JSON object"),
        (label(polyp_labels=None), "invalid", "not a list"),
        (label(image=7), "invalid", "image is 7"),
        (label(image=None), "missing_image", "names no image"),
        (label(image_present=False), "missing_image", "names no image"),
        (label(image="../../etc/passwd"), "invalid", "outside the folder"),
        (label(image="images/../../run_x/a.jpg"), "invalid", "outside the folder"),
        (label(image="/etc/passwd"), "invalid", "outside the folder"),
        (label(image="C:\\frames\\a.jpg"), "invalid", "outside the folder"),
        (label(image="..\\a.jpg"), "invalid", "outside the folder"),
        (label(image="images"), "missing_file", "does not exist"),
        (label(image="."), "missing_file", "does not exist"),
        (label(image="images/frame_00009.jpg"), "missing_file", "does not exist"),
    ],
)
def test_a_bad_label_is_skipped_and_reported(
    tmp_path: Path, document: dict[str, Any] | str, kind: str, words: str
) -> None:
    run = write_run(tmp_path / "run", [label(), document])
    found = read_capture(run)
    assert getattr(found.runs[0], kind) == 1
    assert len(found.frames) == 1
    assert found.problems[0].startswith("labels/frame_00001.json: ")
    assert words in found.problems[0]


def test_a_path_written_under_windows_is_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [label(image="images\\frame_00000.jpg")])
    assert read_capture(run).frames[0].name == "images/frame_00000.jpg"


def test_a_damaged_image_is_invalid(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [label(), label(), label()])
    (run / "images/frame_00001.jpg").write_bytes(b"")
    (run / "images/frame_00002.jpg").write_bytes(b"no image")
    found = read_capture(run)
    assert found.runs[0].invalid == 2
    assert "is empty" in found.problems[0]
    assert "not an image" in found.problems[1]


def test_two_labels_of_one_image_and_a_strange_name_are_invalid(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [label(), label()])
    second = run / "labels/frame_00001.json"
    second.write_text((run / "labels/frame_00000.json").read_text())
    shutil.copy(second, run / "labels/frame_2.json")
    (run / "labels/._frame_00000.json").write_bytes(b"\0")  # metadata files of some file systems
    found = read_capture(run)
    assert found.runs[0].invalid == 2
    assert "names the image of frame_00000.json" in found.problems[0]
    assert "five digits" in found.problems[1]


def test_images_without_labels_and_folders_without_manifest_are_reported(tree: Path) -> None:
    Image.new("RGB", SIZE).save(tree / "run_b/images/other.png")
    (tree / "run_a" / MANIFEST).unlink()
    found = read_capture(tree)
    assert [run.name for run in found.runs] == ["run_b"]
    assert found.problems[0].startswith("run_b/images: images without a label file: 1")
    assert found.problems[1].startswith("run_a: no run_manifest.json")


def test_a_single_run_is_named_by_its_manifest_wherever_it_is(tree: Path) -> None:
    run = tree / "run_b"
    (run / MANIFEST).write_text('{"schema_version": "V1", "run_dir": "C:\\\\out\\\\run_b"}')
    before = read_capture(run)
    moved = run.rename(tree / "elsewhere")
    after = read_capture(moved)
    assert [(f.name, f.group) for f in before.frames] == [(f.name, f.group) for f in after.frames]
    assert after.runs[0].name == "run_b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "bad JSON"),
        ("[]", "Input should be an object"),
        ('{"schema_version": "x"}', "schema_version is 'x'"),
        ('{"schema_version": 2, "seed": "x"}', "update"),
        ('{"schema_version": "V3"}', "update"),
        ("{}", "has no 'schema_version'"),
        ('{"schema_version": 1, "max_frames": 0}', "max_frames is 0"),
        ('{"schema_version": 1, "started_at_unix": -1}', "started_at_unix is -1"),
        ('{"schema_version": 1, "started_at_unix": NaN}', "started_at_unix is nan"),
        ('{"schema_version": 1, "seed": "x"}', "seed is 'x'"),
    ],
)
def test_a_bad_run_manifest_is_a_clear_error(tree: Path, text: str, words: str) -> None:
    (tree / "run_a" / MANIFEST).write_text(text)
    with user_error("SOURCE", f"run_a/{MANIFEST}", words):
        read_frames(tree)


def test_a_source_without_a_usable_frame_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["{"])
    with user_error("SOURCE", "1 left out", "labels/frame_00000.json"):
        read_capture(run)


def test_prune_copies_wanted_frames_and_reports_the_others(tree: Path, tmp_path: Path) -> None:
    before = files(tree)
    out = tmp_path / "deep" / "pruned"
    report = prune(tree, out, empty=True, missing=True, invalid=True)
    assert files(out) == {
        "prune_report.json",
        "run_a/run_manifest.json",
        "run_a/images/frame_00000.jpg",
        "run_a/labels/frame_00000.json",
        "run_a/overlays/frame_00000.png",
        "run_b/run_manifest.json",
        *(f"run_b/images/frame_0000{number}.jpg" for number in (0, 1)),
        *(f"run_b/labels/frame_0000{number}.json" for number in (0, 1)),
    }
    for name in files(out) - {"prune_report.json"}:
        assert (out / name).read_bytes() == (tree / name).read_bytes()
    assert report.runs == {"run_a": 1, "run_b": 2}
    assert report.dropped == {"empty": 1, "invalid": 1, "missing_file": 1, "missing_image": 1}
    assert set(report.files) == {f"run_a/labels/frame_0000{number}.json" for number in (1, 2, 3, 4)}
    written = json.loads((out / "prune_report.json").read_text())
    assert written["dropped"] == report.dropped
    assert read_frames(out).problems == []
    assert files(tree) == before
    assert {path.name for path in out.parent.iterdir()} == {"pruned"}


def test_prune_drops_only_what_is_asked(tree: Path, tmp_path: Path) -> None:
    report = prune(tree, tmp_path / "all")
    assert report.dropped == {}
    assert files(tmp_path / "all") - {"prune_report.json"} == files(tree) - {
        "run_a/images/frame_00002.jpg",  # not named by a label file
        "run_a/images/frame_00004.jpg",
    }
    before, after = read_frames(tree), read_frames(tmp_path / "all")
    assert (before.runs, before.problems) == (after.runs, after.problems)
    assert prune(tree, tmp_path / "no_empty", empty=True).dropped == {"empty": 1}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [(["run_a"], {"run_a"}), (["-run_a"], {"run_b"}), ([], {"run_a", "run_b"})],
)
def test_prune_keeps_or_drops_named_runs(
    tree: Path, tmp_path: Path, runs: list[str], expected: set[str]
) -> None:
    report = prune(tree, tmp_path / "out", runs=runs)
    assert set(report.runs) == expected
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == expected
    assert set(report.runs_dropped) == {"run_a", "run_b"} - expected


def test_a_run_with_a_damaged_manifest_can_be_left_out(tree: Path, tmp_path: Path) -> None:
    (tree / "run_a" / MANIFEST).write_text("{")
    with user_error("SOURCE", "prune not_runs=run_a"):
        prune(tree, tmp_path / "out")
    prune(tree, tmp_path / "out", runs=["-run_a"])
    assert len(read_frames(tmp_path / "out").frames) == 2


def test_prune_of_a_single_run_is_a_run(tree: Path, tmp_path: Path) -> None:
    prune(tree / "run_a", tmp_path / "out", empty=True, missing=True, invalid=True)
    found = read_frames(tmp_path / "out")
    assert [frame.group for frame in found.frames] == ["run_a"]


def test_prune_refuses_invalid_arguments(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for out, runs, key, words in (
        (tmp_path / "there", [], "OUT", "there exists"),
        (tree / "inside", [], "OUT", "inside the source"),
        (tree / "run_a" / ".." / "inside", [], "OUT", "inside the source"),
        (
            tmp_path / "out",
            ["run_c"],
            "runs",
            "runs=run_c: no run of that name; did you mean 'run_",
        ),
        (tmp_path / "out", ["-run_c"], "not_runs", "not_runs=run_c: no run of that name"),
        (tmp_path / "out", ["run_a", "-run_a"], "runs", "no frame is left"),
    ):
        with user_error(key, words):
            prune(tree, out, runs=runs)
    with user_error("SOURCE", tmp_path / "there", MANIFEST):
        prune(tmp_path / "there", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"there", "tree"}
    assert not (tree / "inside").exists()


def test_prune_leaves_nothing_behind_when_the_disk_is_full(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copyfile, copied = shutil.copyfile, []

    def full(source: Path, target: Path) -> None:
        if len(copied) == 4:
            raise OSError(28, "No space left on device", str(target))
        copied.append(copyfile(source, target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with user_error("OUT", "No space left on device", "nothing was written"):
        prune(tree, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"tree"}


def test_a_written_run_is_read_back(tmp_path: Path) -> None:
    boxes = [[0.1, 0.2, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0]]
    photo = tmp_path / "photo.JPEG"
    Image.new("RGB", SIZE, (200, 10, 10)).save(photo)
    with RunWriter(tmp_path / "out" / "run", seed=5, max_frames=9, started_at=1e9, fps=4) as run:
        run.add(Image.new("RGB", SIZE), boxes, source="model", confidences=[0.9, 0.25])
        run.add(Image.new("RGB", SIZE), [], source="sim_auto", suffix=".jpg", quality=50)
        run.add(photo, boxes[:1], source="human", overlay=Image.new("RGB", SIZE))
    root = tmp_path / "out" / "run"
    assert files(root) == {
        MANIFEST,
        "images/frame_00000.png",
        "images/frame_00001.jpg",
        "images/frame_00002.jpg",
        *(f"labels/frame_0000{number}.json" for number in range(3)),
        "overlays/frame_00002.png",
    }
    found = read_frames(root)
    assert found.problems == []
    assert [frame.boxes for frame in found.frames] == [
        tuple(map(tuple, boxes)),
        (),
        (tuple(boxes[0]),),
    ]
    assert (root / "images/frame_00002.jpg").read_bytes() == photo.read_bytes()
    assert json.loads((root / MANIFEST).read_text()) == {
        "schema_version": 1,
        "seed": 5,
        "output_root": ".",
        "run_dir": "run",
        "started_at_unix": 1e9,
        "max_frames": 9,
    }
    document = json.loads((root / "labels/frame_00001.json").read_text())
    assert document == {
        "frame_id": 1,
        "sim_time": 0.25,
        "unix_time": 1e9 + 0.25,
        "image": "images/frame_00001.jpg",
        "image_present": True,
        "camera_active": True,
        "label_seed": 5,
        "labels": [],
    }
    document = json.loads((root / "labels/frame_00000.json").read_text())
    assert document["labels"][1] == {
        "center_world": [0.0, 0.0, 0.0],
        "bbox_px": [0.0, 0.0, 64.0, 48.0],
        "bbox_norm": [0.0, 0.0, 1.0, 1.0],
        "source": "model",
        "source_confidence": 0.25,
    }


def test_an_interrupted_run_holds_its_frames(tmp_path: Path) -> None:
    def infer() -> None:
        with RunWriter(tmp_path / "run") as run:
            run.add(Image.new("RGB", SIZE), [], source="model")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer()
    assert len(read_frames(tmp_path / "run").frames) == 1


def test_a_run_without_frames_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not valid"), RunWriter(tmp_path / "run") as run:
        run.add(Image.new("RGB", SIZE), [[0.5, 0, 0.5, 1]], source="model")
    assert files(tmp_path) == set()


def test_a_run_is_not_written_over_anything(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    with user_error("out", tmp_path, "not empty"), RunWriter(tmp_path):
        pass
    with user_error("out", "notes.txt"), RunWriter(tmp_path / "notes.txt" / "run"):
        pass
    assert files(tmp_path) == {"notes.txt"}


def test_a_full_disk_is_one_line_and_the_run_stays_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    def infer() -> None:
        with RunWriter(tmp_path / "run") as run:
            run.add(Image.new("RGB", SIZE), [], source="model")
            monkeypatch.setattr(Path, "write_bytes", full)
            run.add(Image.new("RGB", SIZE), [], source="model")

    with user_error("out", "No space left on device", "1 frame written"):
        infer()
    found = read_frames(tmp_path / "run")
    assert (len(found.frames), found.problems) == (1, [])


# What is declared twice


def half(**changes: Any) -> dict[str, Any]:
    """A box whose pixels are those of a picture of twice the size."""
    return entry(bbox_px=[32, 24, 96, 72], **changes)


def test_pixels_and_fractions_of_a_resized_picture_differ(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [label(), label(polyp_labels=[half()])])
    found = read_capture(run)
    assert [frame.name for frame in found.frames] == ["images/frame_00000.jpg"]
    assert "fit to 128×96, the image is 64×48" in found.problems[0]
    found = read_capture(run, scale_boxes=True)
    assert [frame.boxes for frame in found.frames] == [((0.25, 0.25, 0.75, 0.75),)] * 2
    assert found.problems == []
    assert "boxes scaled" in found.notes[0]


@pytest.mark.parametrize("scale_boxes", [False, True])
@pytest.mark.parametrize("pixels", [[30, 12, 60, 36], [10, 12, 20, 36], [48, 12, 16, 36]])
def test_pixels_and_fractions_of_other_boxes_are_no_label(
    tmp_path: Path, pixels: list[int], scale_boxes: bool
) -> None:
    run = write_run(tmp_path / "run", [label(), label(polyp_labels=[entry(bbox_px=pixels)])])
    found = read_capture(run, scale_boxes)
    assert [frame.name for frame in found.frames] == ["images/frame_00000.jpg"]
    assert "bbox_px" in found.problems[0]


def test_two_lists_of_labels_are_compared(tmp_path: Path) -> None:
    same, other = label(labels=[entry()]), label(labels=[])
    found = read_capture(write_run(tmp_path / "run", [same, other, label(labels=None)]))
    assert [frame.name for frame in found.frames] == ["images/frame_00000.jpg"]
    assert "labels and polyp_labels have other boxes" in found.problems[0]
    assert "labels is not a list" in found.problems[1]


def test_a_label_of_another_frame_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [label(image="images/frame_00001.jpg"), label()])
    found = read_capture(run)
    assert [frame.name for frame in found.frames] == ["images/frame_00001.jpg"]
    assert len(found.problems) == 1
    assert "frame_00000.json: names the image of frame_00001.json" in found.problems[0]
    assert found.passed_over.counts == {"not in any annotation file": 1}


def test_boxes_of_turned_frames_lie_on_the_object(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [label(), label()])
    for number, orientation in enumerate((1, 6)):
        path = run / f"images/frame_0000{number}.jpg"
        draw(path, SIZE, [(16, 12, 32, 24)], orientation)
    found = read_capture(run)
    assert pixel_boxes(found) == {frame.name: [(16, 12, 32, 24)] for frame in found.frames}
    assert all(abs(mean[0] - 228) <= 2 for mean in means(found))


def test_every_file_of_a_run_is_used_or_counted(tree: Path) -> None:
    Image.new("RGB", SIZE).save(tree / "run_b/images/other.png")
    (tree / "run_b/images/.hidden.png").write_bytes(b"x")
    (tree / "run_b/notes.txt").write_text("x")
    (tree / "prune_report.json").write_text("{}")
    found = read_capture(tree)
    # The pictures of damaged labels are left out with them.
    assert found.passed_over.counts == {
        "overlay": 2, "hidden": 1, "TXT": 1, "JSON": 1, "not in any annotation file": 1,
    }  # fmt: skip
