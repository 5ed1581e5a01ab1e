from __future__ import annotations

import hashlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from research.compression.selection import Selection, select_frequencies
from research.compression.stems import StemSpec
from research.models.densenet import densenet
from research.models.mit import VARIANTS, MixTransformer
from research.models.resnet import resnet
from research.models.siamese import siamese_e2e
from research.models.weight_files import FOLDER, find_weights
from research.models.zoo import backbone
from tests.conftest import save_state, user_error
from tests.models.test_rgbx import SMALL
from tests.models.test_rgbx import build as rgbx

COMMIT = "c" * 40
ALL = select_frequencies(4, "corner")
TAG = "r160_in1k"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and empty caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network; the addresses that were asked for."""
    asked: list[str] = []

    def fail(host: str, *_: Any, **__: Any) -> None:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    return asked


def in_hub(repository: str, name: str = "model.safetensors") -> Path:
    """Where the hub's cache has a file."""
    folder = Path("hub") / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
    return folder / "snapshots" / COMMIT / name


def in_folder(name: str) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FOLDER / name


def in_torch(name: str) -> Path:
    folder = Path("torch/hub/checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


# -- every form, for every kind of model -----------------------------------------------------------


def tiny_densenet(source: str | bool | None, classes: int, stem: StemSpec | None = None) -> Any:
    return densenet("densenet121", classes, 96, (1, 1), 4, 8, "auto", 0.0, False, source, stem)


MODELS: dict[str, tuple[Callable[[str | bool | None, int], nn.Module], str]] = {
    "timm": (lambda p, n: backbone("test_vit", n, 160, p, 0.0, 0.0, None), "test_vit"),
    "timm with a tag": (
        lambda p, n: backbone(f"test_resnet.{TAG}", n, 64, p, 0.0, 0.0, None), "test_resnet",
    ),
    "resnet": (
        lambda p, n: resnet("test_resnet", n, p, 0.0, 0.0, None, None, None), "test_resnet",
    ),
    "compressed": (
        lambda p, n: resnet("test_resnet", n, p, 0.0, 0.0, None, None,
                            StemSpec("reconstruction", Selection(ALL, ALL), "full", "blocks")),
        "test_resnet",
    ),
    "siamese": (
        lambda p, n: siamese_e2e("test_resnet", p, "none", "bradley_terry", [], 0.0, 64),
        "test_resnet",
    ),
    "densenet": (tiny_densenet, "densenet121"),
    "rgbx": (lambda p, n: rgbx(pretrained=p, num_classes=n, **SMALL), "rgbx_mit_b0"),
}  # fmt: skip
"""Builders with ``model.pretrained`` and the number of classes, and the network's name."""
HUB = "somebody/a-model"
FORMS: dict[str, Callable[[str], tuple[str | bool, Path]]] = {
    "true": lambda name: (True, DEFAULTS[name]()),
    "timm": lambda name: ("timm", in_hub(f"timm/{name}.{TAGS[name]}")),
    "torchvision": lambda name: ("torchvision", in_torch("densenet121-a639ec97.pth")),
    "tag": lambda name: (TAGS[name], in_hub(f"timm/{name}.{TAGS[name]}")),
    "tag of torchvision": lambda _: ("IMAGENET1K_V1", in_torch("densenet121-a639ec97.pth")),
    "whole name": lambda name: (f"{name}.{TAGS[name]}", in_folder(f"{name}.{TAGS[name]}.pth")),
    "hub": lambda _: (f"hf-hub:{HUB}", in_hub(HUB, "pytorch_model.bin")),
    "hub, by hand": lambda _: (f"hf-hub:{HUB}", in_folder("somebody--a-model.safetensors")),
    "safetensors": lambda _: ("w.safetensors", Path("w.safetensors")),
    "pth": lambda _: ("w.pth", Path("w.pth")),
    "no suffix": lambda _: ("weights", Path("weights")),
}
"""From a network's name to the setting and the place of its file."""
TAGS = {"test_vit": TAG, "test_resnet": TAG, "densenet121": "ra_in1k"}
DEFAULTS: dict[str, Callable[[], Path]] = {
    "test_vit": lambda: in_hub(f"timm/test_vit.{TAG}"),
    "test_resnet": lambda: in_hub(f"timm/test_resnet.{TAG}"),
    "densenet121": lambda: in_torch("densenet121-a639ec97.pth"),
    "rgbx_mit_b0": lambda: in_hub("nvidia/mit-b0", "pytorch_model.bin"),
}
CASES = [
    (model, form)
    for model, (_, name) in MODELS.items()
    for form in FORMS
    if ("torchvision" not in form or model == "densenet")
    and (model != "rgbx" or form not in ("timm", "tag", "whole name"))
]


def weights_for(model: str) -> dict[str, Tensor]:
    """A state dict as it is published: of 7 classes, for images."""
    if model == "densenet":
        network = tiny_densenet(None, 7)
    elif model == "rgbx":
        network = MixTransformer(3, VARIANTS["b0"].dims, VARIANTS["b0"].depths)
    else:
        network = timm.create_model(MODELS[model][1], num_classes=7)
    return {
        key: torch.rand_like(t) if t.is_floating_point() else t
        for key, t in network.state_dict().items()
    }


@pytest.mark.parametrize(("model", "form"), CASES)
def test_a_form_for_a_model(
    model: str, form: str, offline: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """All but the classifier is loaded, from a file or a cache, and counted in one line."""
    caplog.set_level(logging.INFO)
    build, name = MODELS[model]
    setting, path = FORMS[form](name)
    state = weights_for(model)
    save_state(state, path)
    network = build(setting, 5)
    lines = [r.getMessage() for r in caplog.records if r.name == "research.models.pretrained"]
    assert len(lines) == (2 if model == "rgbx" else 1)
    assert lines[0].startswith(f"model.pretrained={'true' if setting is True else setting}")
    parts = {"compressed": "backbone.", "siamese": "backbone.", "rgbx": "encoder.rgb."}
    own = network.state_dict()
    head = "fc." if "resnet" in name else "head." if name == "test_vit" else "classifier."
    loaded = 0
    for key, value in state.items():
        if key.startswith(head):
            assert model == "siamese" or f"{key}: 7" in lines[0]
            continue
        assert torch.equal(own[parts.get(model, "") + key], value), key
        loaded += 1
    assert f"loaded {loaded} of " in lines[0]
    assert not offline


def test_a_file_that_is_put_in_the_folder_comes_first(offline: list[str]) -> None:
    """Then the cache of the hub, then that of torch.hub."""
    tag = "resnet34.a1_in1k"
    places = [
        in_torch("resnet34_a1_0-46f8f793.pth"),
        in_hub(f"timm/{tag}", "pytorch_model.bin"),
        in_hub(f"timm/{tag}"),
        in_folder("resnet34_a1_0-46f8f793.pth"),
        in_folder(f"{tag}.safetensors"),
    ]
    for place in places:
        place.touch()
        found = find_weights("a1_in1k", "resnet34", "timm")
        assert found.path.samefile(place), place
        assert found.name == tag


@pytest.mark.parametrize("source", [True, "timm", "torchvision", "a1_in1k", "hf-hub:a/b"])
def test_a_word_is_no_file_of_this_name(source: Any, offline: list[str]) -> None:
    """But for a name of weights, which is a file if it is there."""
    Path("a").mkdir()
    for name in ("true", "timm", "torchvision", "a1_in1k"):
        Path(name).touch()
    if source == "a1_in1k":
        assert find_weights(source, "resnet34", "timm").path == Path(source)
        return
    with user_error("model.pretrained", "cannot get the weights"):
        find_weights(source, "resnet34", "timm")


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "network", "words"),
    [
        ("a1_in1kk", "resnet34", ["no such weights of resnet34", "did you mean a1_in1k?"]),
        ("resnet50.a1_in1k", "resnet34", ["no such weights of resnet34", "There are a1_in1k"]),
        ("IMAGENET1K_V2", "resnet34", ["no such weights", "did you mean IMAGENET1K_V1?"]),
        ("timm", "densenet264", ["timm has no weights of densenet264"]),
        ("torchvision", "densenet264", ["torchvision has no weights of densenet264"]),
        ("timm", "resnet34.nothing", ["timm has no weights of resnet34.nothing"]),
        ("anything", "densenet264", ["no such weights of densenet264", "set a weights file"]),
        ("anything", "rgbx_mit_b0", ["no such weights of rgbx_mit_b0"]),
    ],
)
def test_a_name_that_is_unknown_is_refused(
    source: str, network: str, words: list[str], offline: list[str]
) -> None:
    with user_error("model.pretrained", f"model.pretrained={source}: ", *words):
        find_weights(source, network, "timm")
    assert not offline


# -- without and with a network --------------------------------------------------------------------

ADDRESSES = {
    ("true", "resnet34", "timm"): (
        "resnet34.a1_in1k", "https://huggingface.co/timm/resnet34.a1_in1k/resolve/main/"
        "model.safetensors", "resnet34.a1_in1k.safetensors",
    ),
    ("true", "resnet34.tv_in1k", "timm"): (
        "resnet34.tv_in1k", "https://huggingface.co/timm/resnet34.tv_in1k/resolve/main/"
        "model.safetensors", "resnet34.tv_in1k.safetensors",
    ),
    ("true", "densenet121", "torchvision"): (
        "densenet121.IMAGENET1K_V1", "https://download.pytorch.org/models/densenet121-a639ec97.pth",
        "densenet121.IMAGENET1K_V1.pth",
    ),
    ("true", "rgbx_mit_b2", "hf-hub:nvidia/mit-b2"): (
        "nvidia--mit-b2", "https://huggingface.co/nvidia/mit-b2/resolve/main/model.safetensors",
        "nvidia--mit-b2.safetensors",
    ),
    ("hf-hub:a/b@v2", "resnet34", "timm"): (
        "a--b@v2", "https://huggingface.co/a/b/resolve/v2/model.safetensors",
        "a--b@v2.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "network", "default"), ADDRESSES)
def test_without_a_network_one_line_says_which_file_is_needed_and_where(
    source: str,
    network: str,
    default: str,
    offline: list[str],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One question, no retry, nothing else is printed, and the advice works."""
    caplog.set_level(logging.INFO)
    name, address, file = ADDRESSES[source, network, default]
    typed: str | bool = source == "true" or source
    with user_error("model.pretrained") as caught:
        find_weights(typed, network, default)
    assert str(caught.value) == (
        f"model.pretrained={source}: cannot get the weights {name} ([Errno -2] Name or service not "
        f"known); save {address} as runs/cache/weights/{file}, or set model.pretrained=FILE"
    )
    assert len(offline) == 1
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    in_folder(file).touch()
    found = find_weights(typed, network, default)
    assert (found.path, found.origin) == (FOLDER / file, str(FOLDER / file))


def test_the_hub_may_be_switched_off(monkeypatch: pytest.MonkeyPatch, offline: list[str]) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with user_error("model.pretrained", "(HF_HUB_OFFLINE is set); save https://"):
        find_weights(True, "resnet34", "timm")
    assert not offline


Answers = dict[str, tuple[int, bytes]]


class Server(BaseHTTPRequestHandler):
    """A hub: answers by path, and the requests so far."""

    def __init__(self, answers: Answers, asked: list[str], *args: Any) -> None:
        self.answers, self.asked = answers, asked
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        status, content = self.answers.get(self.path, (404, b""))
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        if status == 401:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(content):x}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Answers, list[str]]]:
    """Address, answers and requests of a server in place of the hub."""
    answers: Answers = {}
    asked: list[str] = []
    own = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, answers, asked))
    threading.Thread(target=own.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{own.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield address, answers, asked
    own.shutdown()
    own.server_close()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_is_downloaded_once_from_the_hub(
    name: str, server: tuple[str, Answers, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "research")
    address, answers, asked = server
    answers[f"/timm/resnet34.a1_in1k/resolve/main/{name}"] = 200, b"weights"
    found = find_weights(True, "resnet34", "timm")
    assert found.path.read_bytes() == b"weights"
    assert found.path.is_relative_to(Path("hub").resolve())
    assert found.origin == f"{address}/timm/resnet34.a1_in1k/resolve/main/{name}"
    assert [r.getMessage() for r in caplog.records] == [f"downloading {found.origin}"]
    asked.clear()
    assert find_weights("a1_in1k", "resnet34", "timm") == found
    assert not asked


@pytest.mark.parametrize("digest", ["9a129038", "00000000"])
def test_a_file_is_downloaded_once_from_its_address(
    digest: str, server: tuple[str, Answers, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And compared with the digits of its SHA-256 that are in its name."""
    address, answers, asked = server
    record = PretrainedCfg(url=f"{address}/net-{digest}.pth", architecture="resnet34", tag="any")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: record)
    answers[f"/net-{digest}.pth"] = 200, b"weights"
    assert hashlib.sha256(b"weights").hexdigest().startswith("9a129038")
    if digest == "00000000":
        with user_error("model.pretrained", "invalid hash value"):
            find_weights(True, "resnet34", "timm")
        assert not list(Path("torch").rglob("*.pth"))
        return
    found = find_weights(True, "resnet34", "timm")
    assert found.path.read_bytes() == b"weights"
    assert found.origin == record.url
    assert found.name == "resnet34.any"
    asked.clear()
    assert find_weights(True, "resnet34", "timm") == found
    assert not asked


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, "timm/resnet34.a1_in1k has none of model.safetensors, pytorch_model.bin"),
        (401, "the hub has no public repository timm/resnet34.a1_in1k"),
        (503, "503"),
    ],
)
def test_a_hub_without_the_file_is_asked_once(
    status: int, reason: str, server: tuple[str, Answers, list[str]], capfd: Any
) -> None:
    _, answers, asked = server
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        answers[f"/timm/resnet34.a1_in1k/resolve/main/{name}"] = status, b""
    with user_error("model.pretrained", "model.pretrained=true", reason, "runs/cache/weights/"):
        find_weights(True, "resnet34", "timm")
    assert len(asked) == len(names if status == 404 else names[:1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", [404, 503])
def test_an_address_without_the_file_is_asked_once(
    status: int, server: tuple[str, Answers, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, answers, asked = server
    record = PretrainedCfg(url=f"{address}/net.pth", architecture="resnet34", tag="any")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: record)
    answers["/net.pth"] = status, b""
    with user_error("model.pretrained", f"{address}/net.pth as runs/cache/weights/"):
        find_weights(True, "resnet34", "timm")
    assert asked == ["HEAD /net.pth"]
