"""The best weights of a run as a model of MLflow: made once, and read back by address."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

import research
from research.config import compose_run
from research.config.run_files import is_own
from research.engine import checkpoint, initial_weights
from research.tracking import mlflow_models, mlflow_store, mlflow_tags
from research.tracking.mlflow import MLflowTracker
from research.tracking.spool import NAME, REFUSED
from research.tracking.tracker import Position, Run
from research.utils.files import write_text
from tests.conftest import ROOT, histories, result_of, user_error

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
ASSETS = ROOT / "tests/assets/runs_v1"
STEPS = (
    "search_logged_models", "create_logged_model", "log_model_artifacts", "log_model_artifact",
    "finalize_logged_model", "log_outputs", "log_batch", "search_model_versions",
    "create_registered_model", "create_model_version", "set_logged_model_tags",
)  # fmt: skip
"""Requests by which a model is delivered, in their order; a run without rows has no other batch."""


def begun(uri: str, folder: Path, resumed: int = 0, register: str | None = None) -> MLflowTracker:
    tracker = MLflowTracker(uri, "ours", False, register)
    position = Position(resumed, step=resumed)
    tracker.start(Run(folder, "a.run", {"epochs": 4}, {}, ("data", "1"), position))
    return tracker


def weights(folder: Path, content: str) -> Path:
    path = folder / "checkpoints" / mlflow_models.FILE
    write_text(path, content)  # as a run does: never in place
    return path


def epochs(tracker: MLflowTracker, *numbers: int) -> None:
    for number in numbers:
        row = {"epoch": number, "val/top1": number / 4, "train/loss": 1.0, "lr": 0.1}
        tracker.log("epoch", number, row)


def models(uri: str) -> list[Any]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("ours")
    assert found is not None
    every = client.search_logged_models([found.experiment_id])
    return sorted(every, key=lambda model: int(model.tags["epoch"]))


def versions(uri: str, name: str = "net") -> list[Any]:
    every = MlflowClient(uri).search_model_versions(f"name = '{name}'")
    return sorted(every, key=lambda version: int(version.version))


def folder_of(location: str) -> Path:
    return Path(location.removeprefix("file://"))


def files(location: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder_of(location).iterdir()}


def test_checkpoints_are_linked_and_logs_copied(store: str, tmp_path: Path) -> None:
    tracker = begun(store, tmp_path)
    epochs(tracker, 1)
    model, best, log = weights(tmp_path, "one"), tmp_path / "best.pt", tmp_path / "train.csv"
    write_text(best, "best")
    write_text(log, "row")
    for file in (best, log):
        tracker.artifact(file)
    tracker.model(model, 1)
    tracker.finish("FINISHED")
    artifacts = folder_of(MlflowClient(store).get_run(tracker.run_id).info.artifact_uri)
    (logged,) = models(store)
    assert (artifacts / best.name).samefile(best)
    assert (folder_of(logged.artifact_location) / model.name).samefile(model)
    assert not (artifacts / log.name).samefile(log)
    write_text(best, "better")  # that of the run is replaced
    assert (artifacts / best.name).read_text() == "best"


@pytest.mark.parametrize("uri", ["{0}/a", "file://{0}/a", "{0}/a%20b", "file://{0}/a%20b"])
def test_a_link_has_its_place_below_the_artifacts(uri: str, tmp_path: Path) -> None:
    source = tmp_path / "x.pt"
    write_text(source, "x")
    uri = uri.format(tmp_path)
    root = tmp_path / ("a b" if uri.startswith("file") and "%" in uri else Path(uri).name)
    mlflow_store.link_artifact(uri, source, "checkpoints")
    assert (root / "checkpoints" / "x.pt").samefile(source)
    mlflow_store.link_artifact(uri, source, "../..")
    assert not (tmp_path.parent / "x.pt").exists()


@pytest.mark.parametrize("uri", ["s3://bucket/a", "mlflow-artifacts:/a", "file://host/a"])
def test_artifacts_elsewhere_are_not_linked(uri: str, tmp_path: Path) -> None:
    write_text(tmp_path / "x.pt", "x")
    before = os.getcwd(), sorted(Path().iterdir())
    mlflow_store.link_artifact(uri, tmp_path / "x.pt")
    assert (os.getcwd(), sorted(Path().iterdir())) == before
    assert not Path("/a").exists()


def test_a_disk_without_links_has_copies(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links")

    monkeypatch.setattr(mlflow_store.os, "link", refuse)
    tracker = begun(store, tmp_path)
    best = tmp_path / "best.pt"
    write_text(best, "best")
    tracker.artifact(best)
    tracker.finish("FINISHED")
    artifacts = folder_of(MlflowClient(store).get_run(tracker.run_id).info.artifact_uri)
    assert (artifacts / best.name).read_text() == "best"
    assert not (artifacts / best.name).samefile(best)


def test_a_run_has_a_model_for_each_best_epoch(store: str, tmp_path: Path) -> None:
    tracker = begun(store, tmp_path, register="net")
    epochs(tracker, 1, 2, 3)
    tracker.model(weights(tmp_path, "two"), 2)
    tracker.finish("FINISHED")
    (model,) = models(store)
    assert (model.name, str(model.status), model.source_run_id) == (
        "a_run",
        "READY",
        tracker.run_id,
    )
    assert {metric.key: (metric.value, metric.step) for metric in model.metrics} == {
        "val/top1": (0.5, 2)
    }
    found = files(model.artifact_location)
    assert found.keys() == {"MLmodel", mlflow_models.FILE}
    assert found[mlflow_models.FILE] == b"two"
    assert yaml.safe_load(found["MLmodel"])["flavors"].keys() == {"backbone_lab"}
    assert [version.source for version in versions(store)] == [model.artifact_location]
    assert tracker.locations()[1] == "model: models:/net/1"
    # The same end again, as of a run that is resumed; then a better epoch.
    for best, content in ((2, "again"), (4, "four")):
        tracker = begun(store, tmp_path, resumed=3, register="net")
        epochs(tracker, *range(4, best + 1))
        tracker.model(weights(tmp_path, content), best)
        tracker.finish("FINISHED")
    contents = [files(each.artifact_location)[mlflow_models.FILE] for each in models(store)]
    assert contents == [b"two", b"four"]
    assert [version.version for version in versions(store)] == [1, 2]
    outputs = MlflowClient(store).get_run(tracker.run_id).outputs.model_outputs
    assert {output.model_id: output.step for output in outputs} == {
        each.model_id: int(each.tags["epoch"]) for each in models(store)
    }
    assert len(outputs) == 2
    shown = [json.loads(each.tags["mlflow.modelVersions"]) for each in models(store)]
    assert shown == [[{"name": "net", "version": 1}], [{"name": "net", "version": 2}]]
    values = histories(MlflowClient(store), tracker.run_id)["val/top1"]
    assert values == [(number, number / 4) for number in (1, 2, 3, 4)]  # not a second time


def test_a_later_evaluation_reaches_the_model_of_its_epoch(store: str, tmp_path: Path) -> None:
    tracker = begun(store, tmp_path)
    epochs(tracker, 1, 2)
    tracker.model(weights(tmp_path, "two"), 2)
    tracker.finish("FINISHED")
    for epoch in (1, 2):
        result = result_of(epoch=epoch, metrics={"top1": epoch / 8})
        assert tracker.deliver_evaluation(tmp_path, result, tmp_path, []) == ""
    (model,) = models(store)
    values = {metric.key: metric.value for metric in model.metrics}
    assert values == {"val/top1": 0.5, "test/top1": 0.25, "test/n": 8}


def test_without_a_name_it_is_not_registered_but_later_it_is(store: str, tmp_path: Path) -> None:
    tracker = begun(store, tmp_path)
    tracker.model(weights(tmp_path, "x"), 1)
    tracker.finish("FINISHED")
    (model,) = models(store)
    assert tracker.locations()[1] == f"model: models:/{model.model_id}"
    assert versions(store) == []
    tracker = begun(store, tmp_path, resumed=1, register="net")
    tracker.model(weights(tmp_path, "x"), 1)
    tracker.finish("FINISHED")
    assert len(models(store)) == len(versions(store)) == 1


def test_a_step_that_fails_is_repeated_without_a_trace(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request fails before it is executed, or its answer is lost, as by a kill after it."""
    for step, executed in itertools.product(STEPS, (False, True)):
        folder, name = tmp_path / f"{step}_{executed}", f"{step} {executed}"
        folder.mkdir()
        tracker = begun(store, folder, register=name)
        tracker.flush()  # opens the run, with batches of its own
        original = getattr(MlflowClient, step)

        def fail(
            *rest: Any, executed: bool = executed, original: Any = original, **more: Any
        ) -> None:
            if executed:
                original(*rest, **more)
            raise ConnectionError("gone")

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, step, fail)
            tracker.model(weights(folder, "x"), 1)
            tracker.finish("FINISHED")
        assert (folder / NAME).exists(), name
        tracker = begun(store, folder, resumed=1, register=name)
        tracker.finish("FINISHED")
        assert not (folder / NAME).exists(), name
        (model,) = [each for each in models(store) if each.source_run_id == tracker.run_id]
        (version,) = versions(store, name)
        assert str(model.status) == "READY", name
        assert files(model.artifact_location)[mlflow_models.FILE] == b"x", name
        assert version.source == model.artifact_location, name
        assert len(MlflowClient(store).get_run(tracker.run_id).outputs.model_outputs) == 1, name


@pytest.mark.parametrize(
    ("step", "code", "remedy", "left"),
    [
        ("search_logged_models", "ENDPOINT_NOT_FOUND", "models need a server of MLflow 3", 0),
        ("create_model_version", "INVALID_PARAMETER_VALUE", "register=NAME registers it later", 1),
        ("create_registered_model", "PERMISSION_DENIED", "MLFLOW_TRACKING_USERNAME", 1),
    ],
)
def test_a_refusal_is_one_line_with_a_remedy(
    step: str, code: str, remedy: str, left: int, store: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("not here", getattr(databricks_pb2, code))

    tracker = begun(store, tmp_path, register="net")
    epochs(tracker, 1)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, refuse)
        tracker.model(weights(tmp_path, "x"), 1)
        tracker.finish("FINISHED")
    said = [line for line in caplog.messages if "model" in line]
    assert len(said) == 1
    assert "not here" in said[0]
    assert remedy in said[0]
    assert not (tmp_path / NAME).exists()  # holds nothing up
    assert (tmp_path / REFUSED).exists()
    assert MlflowClient(store).get_run(tracker.run_id).info.status == "FINISHED"
    assert len(models(store)) == left
    begun(store, tmp_path, resumed=1, register="net").finish("FINISHED")
    assert len(models(store)) == len(versions(store)) == 1


def test_load_reads_a_model_by_its_address(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run = Path("runs/weights")
    shutil.copytree(ASSETS / run, run)
    saved = checkpoint.load(checkpoint.find(run))
    checkpoint.save_weights(saved, run / "checkpoints" / mlflow_models.FILE)
    tracker = begun(store, run, register="net")
    tracker.model(run / "checkpoints" / mlflow_models.FILE, 1)
    tracker.finish("FINISHED")
    client = MlflowClient(store)
    client.set_registered_model_alias("net", "champion", "1")
    (model,) = models(store)
    pictures = sorted((ASSETS / "data/pictures").rglob("*.jpg"))[:4]
    expected = research.load(run, "cpu")(pictures)
    addresses = ("net/1", "net/latest", "net@champion", model.model_id)
    for address in addresses:
        assert torch.equal(research.load(f"models:/{address}", "cpu")(pictures), expected)
    file = mlflow_models.fetch("models:/net/1")
    assert file.is_relative_to("runs/cache/models")
    assert not is_own(file)  # it may be from elsewhere: its paths are not used
    assert is_own(run / "checkpoints/best.pt")
    config = research.compose(["init_from='models:/net/1'"])
    start = initial_weights.read(config.settings)
    assert start is not None
    assert start["model"].keys() == saved["model"].keys()
    written = research.predict("models:/net/1", pictures, device="cpu")
    assert Path(written["out"]).name.startswith("net_1-")
    with user_error("out", "set out=FOLDER"):
        research.evaluate("models:/net/1", device="cpu")
    for address in ("net/2", "net@other", "other/latest", "m-" + 32 * "0"):
        with user_error("RUN", f"models:/{address}", "MLFLOW_TRACKING_URI"):
            research.load(f"models:/{address}")
    for address in ("net", "net/1/x", ""):
        with user_error("RUN", "models:/NAME/VERSION"):
            research.load(f"models:/{address}")
    client.create_model_version("net", (tmp_path / "elsewhere").as_uri())
    with user_error("RUN", "no model of this project"):
        research.load("models:/net/2")
    # A model of the store that is none of ours is not read as one.
    mlflow_models.fetch(f"models:/{model.model_id}").write_bytes(b"x" * 100)
    with user_error("checkpoint"):
        research.load(f"models:/{model.model_id}")


def test_no_store_is_made_to_look_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with user_error("RUN", "no runs/mlflow.db"):
        research.load("models:/net/1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["net", "Netz 1.0_b-c", "é"])
def test_a_name_for_the_registry(name: str) -> None:
    config = compose_run([f"logging.mlflow.register={name!r}"])
    assert config["logging"]["mlflow"]["register"] == name


@pytest.mark.parametrize("name", ["a/b", "a:b", "..", "'", "a@b", "x" * 300, "7"])
def test_no_name_for_the_registry(name: str) -> None:
    with user_error("logging.mlflow.register", "a name of letters"):
        compose_run(
            [f'logging.mlflow.register="{name}"' if name != "7" else "logging.mlflow.register=7"]
        )


Documents = Callable[..., Path]


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    """Writes what a run folder says of its run."""

    def write(**summary: Any) -> Path:
        environment = {
            "description": "net: 5 parameters; data: 3 train, 2 val samples",
            "command": ["train.py", "epochs=1"],
            "git": {"commit": "abc1234"},
        }
        (tmp_path / "environment.json").write_text(json.dumps(environment))
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        return tmp_path

    return write


def test_a_run_is_described(documents: Documents, store: str) -> None:
    folder = documents(monitor=["val/top1", "max"], best_epoch=0, best_value=None)
    tracker = begun(store, folder)
    epochs(tracker, 1)
    shown = MlflowClient(store).get_run(tracker.run_id)
    assert shown.info.user_id == shown.data.tags["mlflow.user"] != ""
    assert shown.data.tags["mlflow.source.name"] == "train.py"
    assert shown.data.tags["mlflow.source.git.commit"] == "abc1234"
    about = "net: 5 parameters; data: 3 train, 2 val samples"
    assert shown.data.tags["mlflow.note.content"] == about
    documents(
        monitor=["val/top1", "max"], best_epoch=1, best_value=0.25, best_n=1000, unit="images"
    )
    tracker.finish("FINISHED")
    note = MlflowClient(store).get_run(tracker.run_id).data.tags["mlflow.note.content"]
    assert note == f"{about}\n\n**best val/top1 0.2500** (n=1000 images) at epoch 1"
    experiment = MlflowClient(store).get_experiment_by_name("ours")
    assert experiment is not None
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "val/top1"
    assert experiment.tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "True"


def test_an_experiment_keeps_the_tags_that_it_has(
    documents: Documents, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(store)
    kind = "mlflow.experimentKind"
    number = client.create_experiment("ours", (tmp_path / "a").as_uri(), {kind: "theirs"})
    folder = documents(monitor=["val/loss", "min"])
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_experiment_tag", _refuse)
        tracker = begun(store, folder)
        tracker.finish("FINISHED")
    assert tracker.run_id  # although the tags were refused
    begun(store, folder).finish("FINISHED")
    tags = client.get_experiment(number).tags
    assert tags[kind] == "theirs"
    assert tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "False"


def _refuse(*_: Any) -> None:
    raise MlflowException("not yours", databricks_pb2.PERMISSION_DENIED)


def test_damaged_documents_describe_nothing(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text("[")
    assert mlflow_tags.note(tmp_path) == ""
    assert mlflow_tags.of_experiment(tmp_path) == mlflow_tags.KIND
    assert mlflow_tags.NOTE not in mlflow_tags.of_run(tmp_path)
