"""Losses, learning rates and metrics that no refactor may move; see CONTRIBUTING.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from research.config import compose_config, resolved
from research.engine import build
from research.engine.loop import EpochCallback, fit
from research.tracking.tracker import Row, Table, Tracker
from tests.conftest import Golden
from tests.golden import stored
from tests.golden.configurations import GOLDEN, overrides

METRICS = ("val/", "train/")


class Recorder(Tracker):
    """What is compared, of every batch and every epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.found: dict[str, list[Any]] = {"losses": [], "learning_rates": [], "epochs": []}

    def log(self, table: Table, step: int, row: Row) -> None:
        if table == "batch":
            self.found["losses"].append(row["loss"])
            self.found["learning_rates"].append(self.optimizer.param_groups[-1]["lr"])
        else:
            kept = {key: value for key, value in row.items() if key.startswith(METRICS)}
            self.found["epochs"].append({**kept, "learning_rate": row["learning_rate"]})


@pytest.mark.parametrize("name", GOLDEN)
def test_losses_and_metrics(
    name: str, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolved(compose_config(overrides(name))[0])
    real = build.data_module(config)
    monkeypatch.setattr(build, "data_module", lambda _: stored.load(name, real))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    experiment = build.experiment(config)
    task, state = experiment.task, experiment.state
    predict = task.predict

    def in_double(model: Any, batch: Any) -> Any:
        predictions = predict(model, batch)
        return predictions.double() if isinstance(predictions, torch.Tensor) else predictions

    monkeypatch.setattr(task, "predict", in_double)
    recorder = Recorder(state.optimizer)
    fit(
        state,
        task,
        experiment.train,
        experiment.val,
        experiment.monitor,
        experiment.cfg,
        experiment.device,
        recorder,
        EpochCallback(),
    )
    torch.set_num_threads(threads)
    assert len(recorder.found["losses"]) >= 10
    golden(f"losses/{name}", recorder.found, rel=1e-5)
