"""That all loops train the same; how fast they are is nothing for a test."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from research.benchmarks import loop, peers
from research.config import compose_config
from research.engine import build
from tests.conftest import SMALL, TINY, data_overrides, user_error

STEPS = 3
Words = Callable[..., list[str]]
# Lightning's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def words(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Words:
    """Gives the words of a run of seconds on the folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "trackers", lambda config: [])  # no MLflow

    def of(*more: str) -> list[str]:
        return [*SMALL[:-1], *data_overrides(folders), "batch_size=4", *more]

    return of


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path


def losses_of_train_py(
    config: dict[str, Any], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    @contextmanager
    def kept(scratch: Path) -> Iterator[Path]:
        yield scratch / "run"

    with monkeypatch.context() as patch:
        patch.setattr(peers, "folder_in", kept)
        times = loop.train_py(config, scratch)
    assert 0 < times.steps < times.epoch
    with (scratch / "run" / "batch_metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_the_loops_compute_the_same_losses(
    words: Words, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = loop.configuration(words(*TINY, "optimizer.lr=0.2"), STEPS, scratch)
    expected = losses_of_train_py(config, scratch, monkeypatch)
    assert len(set(expected)) == STEPS
    for memory_format in peers.FORMATS:
        losses: list[Any] = []
        times = peers.bare_loop(config, scratch, memory_format, losses)
        assert torch.stack(losses).tolist() == pytest.approx(expected, rel=1e-4)
        assert 0 < times.steps < times.epoch
    losses = []
    times = peers.lightning_trainer(config, scratch, losses)
    assert torch.stack(losses).tolist() == pytest.approx(expected, rel=1e-4)
    assert 0 < times.steps < times.epoch


def test_timms_loop_trains_as_many_steps_of_the_same_files(
    words: Words, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.utils import CheckpointSaver

    read: list[str] = []
    saved: list[CheckpointSaver] = []
    real = peers.PictureFiles.__getitem__

    def spy(self: peers.PictureFiles, index: int) -> Any:
        read.append(str(self.files[index]))
        assert self.files[index].parent.name == built.data.classes[self.labels[index]]
        return real(self, index)

    monkeypatch.setattr(peers.PictureFiles, "__getitem__", spy)
    monkeypatch.setattr(
        CheckpointSaver, "save_checkpoint", lambda self, *args, **kwargs: saved.append(self)
    )
    config = loop.configuration(words("model=resnet34"), STEPS, scratch)
    built = build.experiment(config)
    times = peers.timm_loop(config, scratch)
    assert 0 < times.steps <= times.epoch
    assert len(read) in (4 * STEPS, 4 * (STEPS + 1))  # its loader reads one batch ahead
    assert {Path(file).parts[-3] for file in read} == {"train"}
    (saver,) = saved
    assert type(saver.optimizer) is type(built.state.optimizer)
    steps = {float(state["step"]) for state in saver.optimizer.state.values() if "step" in state}
    assert steps <= {STEPS}
    before, after = (list(net.parameters()) for net in (built.state.model, saver.model))
    assert not any(map(torch.equal, before, after))


def test_timms_loader_fits_pictures_in_folders_only(words: Words) -> None:
    def fits(*words: str) -> bool:
        return peers.has_picture_files(compose_config(words).config)

    assert fits(*words("model=resnet34"))
    assert not fits(*words(*TINY))
    assert not fits("model=tinydet")


@pytest.mark.parametrize(
    "setting", ["accumulate=2", "ema=0.9", "grad_clip=1.0", "skip_nonfinite=3", "compile=true"]
)
def test_settings_of_one_loop_alone_are_refused(setting: str, words: Words, scratch: Path) -> None:
    key = setting.partition("=")[0]
    with user_error(key, "have no") as caught:
        loop.configuration(words(*TINY, setting), STEPS, scratch)
    hint = str(caught.value).rpartition("set ")[2]
    config = loop.configuration(words(*TINY, hint), STEPS, scratch)  # typed
    assert config[key] == loop.PLAIN[key]
