from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn

from research.compression.selection import ALL_FREQUENCIES, stored_order
from research.data.crops import CentreCrop
from research.data.readers import BitstreamReader
from research.data.warehouse.build import build
from research.data.warehouse.encoders import CoefficientEncoder, FrameEncoder, SampleSpec
from research.data.warehouse.plan import assign_splits, plan_folders, plan_frames
from research.data.warehouse.store import Store
from research.utils.errors import DamagedImage
from tests.conftest import picture, user_error
from tests.data.warehouse.conftest import (
    ENCODER,
    SPLITS,
    make_frames,
    make_images,
    plan_images,
)

BOXES = [[0.25, 0.25, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0]]


def sample_spec(path: Path, image: Image.Image, boxes: list[list[float]]) -> SampleSpec:
    image.save(path)
    return SampleSpec(path.name, "run", path, {"boxes": boxes, "labels": [1, 0][: len(boxes)]})


def test_a_frame_by_hand(tmp_path: Path) -> None:
    """64×32 in 32²: scale 1/2, 16 rows of image between bars of 8."""
    sample = sample_spec(tmp_path / "a.png", Image.new("RGB", (64, 32), (200, 100, 50)), BOXES)
    encoded = FrameEncoder(32, 3).encode(sample)
    rows = encoded.arrays
    assert encoded.fallback == ""
    assert rows["images"][8:24].reshape(-1, 3).tolist() == [[200, 100, 50]] * 512
    assert not rows["images"][:8].any()
    assert not rows["images"][24:].any()
    expected = [[0.25, 0.375, 0.5, 0.625], [0, 0.25, 1, 0.75], [0, 0, 0, 0]]
    np.testing.assert_allclose(rows["boxes"], expected, atol=1e-7)
    assert rows["mask"].tolist() == [1, 1, 0]
    assert rows["labels"].tolist() == [1, 0, 0]
    assert rows["sizes"].tolist() == [32, 64]
    assert {n: (str(a.dtype), a.shape) for n, a in rows.items()} == {
        n: (t.dtype, t.shape) for n, t in FrameEncoder(32, 3).tensors().items()
    }


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_frames_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (40, 1))
    image = Image.fromarray(grey)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    suffix = ".tif" if mode == "CMYK" else ".png"
    encoded = FrameEncoder(40, 1).encode(sample_spec(tmp_path / f"a{suffix}", image, []))
    expected = np.repeat(grey[..., None], 3, axis=2).astype(int)
    assert np.abs(encoded.arrays["images"].astype(int) - expected).max() <= 1
    assert encoded.arrays["mask"].tolist() == [0]


def test_a_damaged_frame_is_reported(tmp_path: Path) -> None:
    sample = sample_spec(tmp_path / "a.jpg", picture("spots", 0), [])
    sample.file.write_bytes(sample.file.read_bytes()[:500])
    with pytest.raises(DamagedImage) as caught:
        ENCODER.encode(sample)
    assert caught.value.kind == "truncated"


def test_too_many_boxes_name_the_frame_and_the_remedy(tmp_path: Path) -> None:
    frame_set = make_frames(tmp_path / "source")
    with user_error("max_boxes", "frame_00003.jpg", "max_boxes=3"):
        plan_frames(frame_set, replace(ENCODER, max_boxes=2), SPLITS, {})


def test_frames_without_any_class_are_refused(tmp_path: Path) -> None:
    """A detector of no classes would be trained, to scores that are all NaN."""
    frame_set = make_frames(tmp_path / "source")
    negatives = [replace(frame, boxes=(), labels=()) for frame in frame_set.frames]
    frame_set = replace(frame_set, frames=negatives)
    assert plan_frames(frame_set, ENCODER, SPLITS, {}).classes == frame_set.classes != []
    with user_error("labels", str(frame_set.root), "no file names the classes"):
        plan_frames(replace(frame_set, classes=[]), ENCODER, SPLITS, {})


def test_coefficients_are_those_of_the_bitstream_in_stored_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture("spots", 1, (70, 60)).save(path, quality=92, subsampling=2)
    rows = CoefficientEncoder(32, 4, "bitstream").encode(SampleSpec("a", "train", path, 7)).arrays
    reader = BitstreamReader(32, ALL_FREQUENCIES)
    y, cbcr = reader.read(path, CentreCrop(1.0), np.random.default_rng(0)).arrays
    order = list(stored_order(4))
    np.testing.assert_array_equal(rows["y"], y[..., order])
    np.testing.assert_array_equal(rows["cbcr"], cbcr[..., order])
    assert rows["labels"] == 7
    assert rows["labels"].shape == ()


def test_coefficients_of_pixels_are_rounded_dcts(tmp_path: Path) -> None:
    """Against scipy, on a grey image: its luma is its pixels, its chroma nothing."""
    path = tmp_path / "a.png"
    image = picture("bars", 1, (64, 64)).convert("L")
    image.save(path)
    rows = CoefficientEncoder(32, 8, "pixels").encode(SampleSpec("a", "train", path, 0)).arrays
    small = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float64)
    blocks = (small - 128).reshape(4, 8, 4, 8).transpose(0, 2, 1, 3)
    exact = dctn(blocks, axes=(2, 3), norm="ortho").reshape(4, 4, 64)[..., list(stored_order(8))]
    assert rows["y"].dtype == np.int16
    assert np.abs(rows["y"] - exact).max() <= 0.5 + 1e-3
    assert not rows["cbcr"].any()


@pytest.mark.parametrize("source", ["bitstream", "pixels"])
@pytest.mark.parametrize("window", [1, 4])
def test_a_smaller_window_is_a_prefix_of_a_larger_one(
    tmp_path: Path, source: str, window: int
) -> None:
    root, folders = make_images(tmp_path / "images")
    large, small = (
        Store(
            build(
                plan_images(root, folders, window=w, source=source), tmp_path / f"{w}", workers=1
            ),
            cache=tmp_path / "cache",
        )
        for w in (8, window)
    )
    for name in ("y", "cbcr"):
        prefix = large.whole(name)[..., : window * window]
        np.testing.assert_array_equal(prefix, small.whole(name))


def test_folders_keep_their_order_names_and_counts(tmp_path: Path) -> None:
    root, folders = make_images(tmp_path / "images", images=2)
    folders.splits["train"].skipped = {"empty": 2}
    plan = plan_folders(folders, root, CoefficientEncoder(32, 1, "pixels"))
    assert [sample.name for sample in plan.samples[:3]] == [
        "train/bars/000.jpg",
        "train/bars/001.jpg",
        "train/field/000.jpg",
    ]
    assert [sample.target for sample in plan.samples] == [0, 0, 1, 1, 2, 2] * 2
    assert plan.splits == {"train": "train", "val": "val"}
    assert plan.skipped == {"empty": 2}
    assert plan.reports == {"train": {"left_out/empty": 2}, "val": {}}


GROUPS = st.sets(st.text("abcdef", min_size=1), min_size=3, max_size=30)
FRACTIONS = st.sampled_from([0.0, 0.1, 0.2, 0.3])


@given(GROUPS, FRACTIONS, FRACTIONS, st.integers(0, 99))
def test_drawn_splits_are_seeded_and_not_empty(
    groups: set[str], val: float, test: float, seed: int
) -> None:
    settings = {"val": val, "test": test, "seed": seed, "named": {}}
    splits = assign_splits(groups, {}, **settings)  # type: ignore[arg-type]
    assert splits == assign_splits(sorted(groups, reverse=True), {}, **settings)  # type: ignore[arg-type]
    assert set(splits) == groups
    counts = Counter(splits.values())
    assert counts["train"] > 0
    for name, fraction in (("val", val), ("test", test)):
        assert counts[name] == (max(1, round(len(groups) * fraction)) if fraction else 0)


def test_another_seed_draws_other_groups() -> None:
    groups = [f"run_{number:02d}" for number in range(24)]
    drawn = {
        tuple(assign_splits(groups, {}, val=0.2, test=0.0, seed=seed, named={}).items())
        for seed in range(5)
    }
    assert len(drawn) == 5


def test_named_groups_go_to_their_split_and_the_rest_is_drawn() -> None:
    named = {"val": ["a", "c"], "test": ["b"]}
    splits = assign_splits("abcde", {}, val=0.5, test=0.5, seed=0, named=named)
    assert splits == {"a": "val", "b": "test", "c": "val", "d": "train", "e": "train"}
    splits = assign_splits("abcde", {}, val=0.2, test=0.0, seed=0, named={"test": ["b"]})
    assert splits["b"] == "test"
    assert Counter(splits.values()) == {"train": 3, "val": 1, "test": 1}


def test_the_split_of_the_source_wins() -> None:
    own = {"a": "val", "b": "train", "c": "train", "d": "test"}
    splits = assign_splits("abcd", own, val=0.5, test=0.5, seed=0, named={})
    assert splits == own
    splits = assign_splits("abcde", {"a": "test"}, val=0.2, test=0.5, seed=0, named={})
    assert splits["a"] == "test"
    assert Counter(splits.values()) == {"train": 3, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("groups", "own", "settings", "named", "key", "words"),
    [
        ("a", {}, {}, {}, "val", "all of 1 groups"),
        ("ab", {}, {"test": 0.2}, {}, "val", "all of 2 groups"),
        ("ab", {}, {}, {"val": ["a", "b"]}, "val", "all of 2 groups"),
        (
            ["run_1", "run_2"],
            {},
            {},
            {"val": ["run1"]},
            "val_runs",
            "val_runs=run1; did you mean 'run_1'?",
        ),
        (
            "abc",
            {},
            {},
            {"val": ["a"], "test": ["a"]},
            "test_runs",
            "test_runs=a: a is in val already",
        ),
        ("abc", {"a": "val"}, {}, {"val": ["b"]}, "val_runs", "split"),
    ],
)
def test_impossible_splits_are_refused(
    groups: str, own: dict[str, str], settings: dict, named: dict, key: str, words: str
) -> None:
    asked = {"val": 0.2, "test": 0.0, **settings}
    with user_error(key, words):
        assign_splits(groups, own, seed=0, named=named, **asked)


def test_one_group_may_be_all_training() -> None:
    assert assign_splits("a", {}, val=0.0, test=0.0, seed=0, named={}) == {"a": "train"}


def test_an_encoder_is_pickled_without_its_tables(tmp_path: Path) -> None:
    encoder = CoefficientEncoder(32, 8, "pixels")
    path = tmp_path / "a.jpg"
    picture("bars", 0).save(path)
    sample = SampleSpec("a", "train", path, 0)
    before = encoder.encode(sample).arrays
    sent = pickle.dumps(encoder)
    assert len(sent) < 300
    arrived = pickle.loads(sent)
    assert arrived == encoder
    for name, rows in arrived.encode(sample).arrays.items():
        np.testing.assert_array_equal(rows, before[name])
