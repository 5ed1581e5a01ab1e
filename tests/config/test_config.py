"""Every mistake is reported in one line with advice, before a job starts; every option composes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from hydra.errors import InstantiationException
from hydra.utils import get_object
from omegaconf import OmegaConf

from research.config import check_jobs, command_line, compose_config, jobs, register
from research.config.compose import Composed
from research.config.group_rules import group_rules
from research.config.help import help_text
from research.config.options import options, read_option
from research.config.schema import GROUPS, RUN_RULES
from research.utils.errors import UserError
from research.utils.installation import CONF
from tests.conftest import arguments

TRAIN = CONF.parent / "train.py"
COMPRESSED = "experiment=imagenet_resnet34_compressed 'dataset.train_dirs=[a]'"
FOLDERS = "dataset=imagefolder 'dataset.train_dirs=[a]'"
ALL_GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
ALL_OPTIONS = [(group, option) for group in ALL_GROUPS for option in options(group)]

# A wrong command line; the same mistake as one of several values with -m, if possible; and words of
# the message: the key, allowed or similar values, what to do.
MISTAKES: list[tuple[str, str, list[str]]] = [
    # keys
    ("epoch=1", "epoch=1,2", ["no key 'epoch'", "'epochs'"]),
    ("lr=0.1", "lr=0.1,0.2", ["no key 'lr'", "'optimizer.lr'"]),
    ("modle=resnet34", "modle=resnet34,x", ["no key 'modle'", "'model'"]),
    ("comprssion.window=2", "comprssion.window=2,4", ["'compression.window'"]),
    (
        "compression.windw=2",
        "compression.windw=2,4",
        ["compression=block_stem", "'compression.window'", "Keys:", "count_luma"],
    ),
    ("optimizer=adamw optimizer.momentum=0", "optimizer=adamw optimizer.momentum=0,0.9", ["|sgd"]),
    (
        "model=resnet34 compression.window=2",
        "model=resnet34 compression.window=2,4",
        ["compression=none has no such key", "block_stem|late_concat|luma_fusion"],
    ),
    ("+foo=1", "+foo=1,2", ["no key 'foo'", "--help"]),
    ("+optimizer.foo=1", "+optimizer.foo=1,2", ["no key 'optimizer.foo'", "lr, momentum"]),
    ("+epochs=2", "+epochs=2,3", ["epochs", "without +"]),
    ("~dataset.mean", "~dataset.mean seed=0,1", ["dataset.mean was removed"]),
    ("dataset.demo.rot=x", "dataset.demo.rot=x,y", ["'dataset.demo.root'"]),
    # groups and their options
    (
        "model=resnet43",
        "model=resnet34,resnet43",
        ["no model 'resnet43'", "'resnet34'", "Options:"],
    ),
    ("compression=lumafusion", "compression=block_stem,lumafusion", ["'luma_fusion'", "none"]),
    ("experiment=x", "experiment=imagenet_resnet34,x 'dataset.train_dirs=[a]'", ["no experiment"]),
    (
        "dataset=_base",
        "dataset=demo,_base",
        ["part of other options", "demo_rgbx, demo_runs"],
    ),
    ("model=null", "model=resnet34,null", ["model=null", "resnet34_compressed"]),
    ("scheduler=7", "scheduler=cosine,7", ["scheduler=7", "cosine, exponential, linear"]),
    ("~scheduler", "~scheduler seed=0,1", ["scheduler is required", "cosine, exponential, linear"]),
    # types
    ("epochs=x", "epochs=1,x", ["epochs=x", "whole number at least 1"]),
    ("epochs=1.5", "epochs=1,1.5", ["epochs=1.5", "whole number"]),
    ("epochs=null", "epochs=1,null", ["epochs=null", "whole number"]),
    ("compile=maybe", "compile=true,maybe", ["compile=maybe", "true or false"]),
    ("optimizer.lr=fast", "optimizer.lr=0.1,fast", ["optimizer.lr=fast", "a number above 0"]),
    ("dataset.random_flip=1", "dataset.random_flip=true,1", ["true or false, or alternating"]),
    ("dataset.train_dirs=a", "dataset.train_dirs=[a],b", ["dataset.train_dirs=", "a list"]),
    ("tags=a", "tags=a,b", ["tags=a", "a mapping"]),
    ("dataset.name=3", "dataset.name=a,3", ["dataset.name=3", "text"]),
    # ranges
    ("epochs=0", "epochs=1,0", ["epochs=0", "at least 1"]),
    ("seed=-1", "'seed=range(-1,2)'", ["seed=-1", "from 0"]),
    ("optimizer.lr=0", "'optimizer.lr=interval(0,1)'", ["optimizer.lr=0", "above 0"]),
    ("optimizer.momentum=1", "optimizer.momentum=0.9,1", ["optimizer.momentum=1", "below 1"]),
    ("optimizer.lr=nan", "optimizer.lr=0.1,nan", ["optimizer.lr=nan", "above 0"]),
    ("compression.window=9", "compression.window=4,9", ["compression.window=9", "from 1 to 8"]),
    ("precision=fp61", "precision=bf16,fp61", ["fp32, bf16, fp16", "'fp16'"]),
    ("device=cuda:x", "device=cpu,cuda:x", ["device=cuda:x", "cuda:N"]),
    ("monitor=val/top1", "monitor=val/top1,val/top1:max", ["METRIC:max", "null"]),
    ("compression.order=zizag", "compression.order=corner,zizag", ["'zigzag'"]),
    ("'dataset.crop_scale=[1,0.5]'", "'dataset.crop_scale=[0.5,1],[1,0.5]'", ["low ≤ high"]),
    ("'dataset.std=[0,1,1]'", "'dataset.std=[1,1,1],[0,1,1]'", ["dataset.std", "above 0"]),
    (
        "scheduler=multistep 'scheduler.milestones=[2,1]'",
        "scheduler=multistep 'scheduler.milestones=[1,2],[2,1]'",
        ["scheduler.milestones=[2, 1]", "increasing"],
    ),
    # syntax
    ("'epochs=[1'", "'epochs=[1' seed=0,1", ["bracket is not closed", "close it"]),
    ("'dataset.train_dirs=[a'", "", ["write 'dataset.train_dirs=[a]'"]),
    ("foo", "foo seed=0,1", ["'foo' is not key=value"]),
    ("'dataset.val_dir=a(b'", "'dataset.val_dir=a(b' seed=0,1", ["dataset.val_dir", "bracket"]),
    ("'dataset.val_dir=a)'", "'dataset.val_dir=a)' seed=0,1", ["bracket"]),
    (
        "'dataset.val_dir=a:b c{}:'",
        "'dataset.val_dir=a:b c{}:' seed=0,1",
        ["second pair of quotes"],
    ),
    ("'dataset.val_dir=${nope}'", "'dataset.val_dir=a,${nope}'", ["dataset.val_dir", "nope"]),
    ("--epochs=5", "--epochs=5 seed=0,1", ["unknown flag --epochs", "epochs=5"]),
    ("--batch-size 4", "--batch-size 4", ["unknown flag", "batch_size="]),
    ("--cfg jbo", "--cfg jbo", ["--cfg", "job"]),
    # combinations
    ("compression=none", "compression=block_stem,none", ["add compression=block_stem", "resnet34"]),
    (
        "model=densenet121 compression=late_concat",
        "model=densenet121,resnet34_compressed compression=late_concat",
        ["compression=late_concat needs a ResNet", "add compression=block_stem"],
    ),
    (
        "compression=late_concat model.layers=[3,4,6,3]",
        "compression=late_concat,block_stem model.layers=[3,4,6,3]",
        ["luma enters at stage 2", "set the first to 0"],
    ),
    ("model.layers=[0,4,0,3]", "model.layers=[0,4,0,3]", ["only the first stage"]),
    (
        "model=fastnet dataset=cifar10 model.widths=[24,24,24,24,24]",
        "model=fastnet dataset=cifar10 'model.widths=[24],[24,24,24,24,24]'",
        ["model.widths", "5 groups halve 31 px", "dataset.image_size=33"],
    ),
    (
        f"{COMPRESSED} model=resnet34",
        f"{COMPRESSED} model=resnet34_compressed,resnet34",
        ["experiment=imagenet_resnet34_compressed", "model=resnet34", "add compression=none"],
    ),
    ("dataset.image_size=72", "dataset.image_size=64,72", ["multiple of 16", "64 or 80"]),
    (
        "precision=fp16 device=cpu",
        "precision=fp32,fp16 device=cpu",
        ["use precision=bf16 or precision=fp32"],
    ),
    ("compression.count_luma=4", "compression.count_luma=null,4", ["order=zigzag"]),
    (
        "compression.order=zigzag compression.count_luma=4 compression.window_luma=2",
        "compression.order=zigzag compression.count_luma=null,4 compression.window_luma=2",
        ["compression.window_luma=2 with compression.count_luma=4"],
    ),
    (
        "compression.order=zigzag compression.count_luma=0 compression.count_chroma=0",
        "compression.order=zigzag compression.count_luma=4,0 compression.count_chroma=0",
        ["count_luma=0", "increase one"],
    ),
    ("dataset=imagefolder", "dataset=demo,imagefolder", ["dataset.train_dirs is required"]),
    ("resume=. init_from=.", "", ["only one of them"]),
    (
        "model=densenet121 model.name=densenet169",
        "model=densenet121 model.name=densenet121,densenet169",
        ["choose model=densenet169"],
    ),
    (
        "dataset=cifar10 dataset.classes=100",
        "dataset=cifar10 dataset.classes=10,100",
        ["choose dataset=cifar100", "dataset.num_classes"],
    ),
    (
        "dataset=cifar10 dataset.padding_mode=reflect dataset.padding=32",
        "dataset=cifar10 dataset.padding_mode=constant,reflect dataset.padding=32",
        ["dataset.padding=32 with dataset.padding_mode=reflect", "set at most 31"],
    ),
    (
        f"{COMPRESSED} task.views=flip",
        f"{COMPRESSED} task.views=none,flip",
        ["task.views=flip with compression=reconstruction", "remove it"],
    ),
    (
        "model=densenet121 compile=true model.memory_efficient=true",
        "model=densenet121 compile=true model.memory_efficient=false,true",
        ["compile=true with model.memory_efficient=true"],
    ),
    (
        "model=tinydet dataset=cifar10",
        "model=tinydet dataset=demo_runs,cifar10",
        ["task=single_object needs boxes", "choose dataset=demo_runs|warehouse"],
    ),
    (
        "model=tinydet dataset=demo_rgbx",
        "model=tinydet dataset=demo_runs,demo_rgbx",
        ["model=tinydet needs images", "choose dataset=demo_runs|warehouse"],
    ),
    (
        "model=rgbx_mit_b0 dataset=demo_runs",
        "model=rgbx_mit_b0 dataset=demo_rgbx,demo_runs",
        ["needs channels", "choose dataset=demo_rgbx|rgbx"],
    ),
    (
        "model=rgbx_mit_b0 dataset=rgbx",
        "model=rgbx_mit_b0,rgbx_mit_b1 dataset=rgbx",
        ["dataset.root is required for dataset=rgbx", "dataset.root=FOLDER"],
    ),
    (
        "model=rgbx_mit_b0 model.fusion=attention",
        "model=rgbx_mit_b0 model.fusion=sum,attention",
        ["model.fusion=attention", "cross_attention"],
    ),
    (
        "model=rgbx_mit_b0 'model.anchor_sizes=[8,16,32]'",
        "model=rgbx_mit_b0 'model.anchor_sizes=[8,16,32,64,128],[8,16,32]'",
        ["model.anchor_sizes=[8, 16, 32]", "a list of 5"],
    ),
    (
        "model=rgbx_mit_b0 'dataset.group_by=\"seq(.*\"'",
        "model=rgbx_mit_b0 'dataset.group_by=seq,\"seq(.*\"'",
        ["dataset.group_by", "a regular expression"],
    ),
    (
        "'dataset.mean=[0.5,0.5,0.5,0.5]'",
        "'dataset.mean=[0.5,0.5,0.5],[0.5,0.5,0.5,0.5]'",
        ["dataset.mean=[0.5, 0.5, 0.5, 0.5]", "a list of 3"],
    ),
    (
        "model=resnet34 dataset=demo_runs",
        "model=resnet34 dataset=demo,demo_runs",
        ["task=classification needs classes", "choose dataset=cifar10|"],
    ),
    (
        "model=resnet34 task=detection dataset=demo_runs",
        "model=tinydet,resnet34 task=detection dataset=demo_runs",
        ["task=detection needs detections", "choose model=bigdet|tinydet"],
    ),
    (
        "model=tinydet task=multiclass_detection",
        "model=tinydet task=single_object,multiclass_detection",
        ["task.class_agnostic=false needs class_labels", "add task.class_agnostic=true"],
    ),
    (
        "model=bigdet task.class_agnostic=false",
        "model=bigdet task.class_agnostic=true,false",
        ["task.class_agnostic=false needs class_labels", "add task.class_agnostic=true"],
    ),
    (
        "model=siamese_e2e dataset=demo_photo_features",
        "model=siamese_e2e dataset=demo_photos,demo_photo_features",
        ["model=siamese_e2e needs photos", "choose dataset=demo_photos|phototriage"],
    ),
    (
        "model.needs=[]",
        "model.needs=[],[a]",
        ["model.needs is declared in conf/model/", "remove it"],
    ),
    (
        "experiment=cifar10_densenet121 optimizer=adamw",
        "experiment=cifar10_densenet121 optimizer=sgd,adamw",
        ["experiment=cifar10_densenet121 sets optimizer.momentum", "another experiment"],
    ),
    (
        "model=densenet121 'model.block_layers=[]'",
        "model=densenet121 'model.block_layers=[],[2]'",
        ["model.block_layers=[]"],
    ),
    ("resume=runs/none", "", ["resume=runs/none", "pass a run folder"]),
    ("init_from=none.pt", "init_from=null,none.pt", ["init_from=none.pt", "no such file"]),
    (
        "model.pretrained=none.pt",
        "model.pretrained=null,none.pt",
        ["model.pretrained=none.pt: no such file or run", "hf-hub:ORG/NAME, a weights file"],
    ),
    ("model.pretrained=runs/none", "", ["model.pretrained=runs/none: no such file or run"]),
    ("model.pretrained=/", "", ["model.pretrained=/: this folder has no checkpoint"]),
    ("model.pretrained=hf-hub:a", "model.pretrained=hf-hub:a/b,hf-hub:a", ["hf-hub:ORG/NAME"]),
    ("model.pretrained=hf-hub:a/../b", "", ["expected hf-hub:ORG/NAME"]),
    ("model.pretrained=false", "model.pretrained=true,false", ["expected true, a name", "null"]),
    ("model.pretrained=3", "", ["model.pretrained=3: expected true, a name of weights"]),
    (
        "model=rgbx_mit_b0 model.pretrained=timm",
        "model=rgbx_mit_b0 model.pretrained=true,timm",
        ["model.pretrained=timm: there are no weights of this name for MiT"],
    ),
    (
        "optimizer.nesterov=true optimizer.momentum=0",
        "optimizer.nesterov=true optimizer.momentum=0.9,0",
        ["nesterov needs a momentum"],
    ),
    (
        "dataset._target_=research.data.warehouse.dataset.Warehouse",
        "dataset=demo dataset._target_=research.data.folder.ImageFolders,"
        "research.data.warehouse.dataset.Warehouse",
        ["dataset._target_=", "choose dataset=demo_runs|warehouse"],
    ),
    (
        "optimizer._target_=os.system",
        "optimizer._target_=torch.optim.SGD,os.system",
        ["torch.optim.SGD"],
    ),
    ("ema_warmup=true", "", ["such as ema=0.9998"]),
    ("model=timm", "", ["model.name is required", "model.name=vit_tiny_patch16_224"]),
    ("model=bigdet dataset=warehouse", "", ["dataset.manifest=FOLDER"]),
    (f"{FOLDERS} dataset.stored_size=256", "", ["add compression.source=bitstream"]),
    (
        f"{FOLDERS} dataset.stored_size=256 dataset.image_size=null compression.source=bitstream",
        "",
        ["add dataset.image_size=SIZE"],
    ),
    (
        f"{FOLDERS} dataset.augmentation.policy=randaugment compression.source=bitstream",
        "",
        ["but only coefficients are read", "add compression.source=pixels"],
    ),
    (
        "model=resnet34_compressed dataset=cifar10 compression.source=bitstream",
        "",
        ["not JPEG files", "add compression.source=pixels"],
    ),
    # several values, in the wrong place
    ("epochs=1,2", "hydra.job.num=1,2", ["1,2"]),
    ("optimizer=adamw optimizer.betas=0.9,0.99", "", ["a list 'optimizer.betas=[0.9,0.99]'"]),
]


@pytest.fixture(autouse=True)
def _schema() -> None:
    register()


@pytest.fixture
def answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Any]:
    """A function from a command line to the line of its error; checks that no job was started."""

    def job() -> NoReturn:
        pytest.fail("a job was started")

    def run(line: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(line)])
        with pytest.raises(SystemExit) as stop:
            command_line(job)
        printed = capsys.readouterr()
        assert stop.value.code == 2
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert "add +" not in printed.err
        assert "+key" not in printed.err
        return printed.err

    monkeypatch.chdir(tmp_path)
    yield run
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("line", "expected"), [(case[0], case[2]) for case in MISTAKES])
def test_mistake_alone(answer: Any, line: str, expected: list[str]) -> None:
    printed = answer(line)
    assert [part for part in expected if part not in printed] == []


SETTING = re.compile(
    r"\b(?:add|choose|example|or|set|such as|use|write|write a list) "
    r"(?:'([\w.]+=[^']+)'|([\w.]+=[^\s;,]+))"
)
CHOICES = re.compile(
    r"(?:Options:|expected one of|allowed:) ([\w./-]+)(?:, [\w./:-]+)*, ([\w./-]+)"
)
SIMILAR = re.compile(r"did you mean '([^']+)'")
REMOVE = re.compile(r"remove (it|[\w.]+)")
PLACEHOLDERS = {"NAME": "resnet18", "FOLDER": "folder", "DIR": "a", "SIZE": "64"}


def advised(error: UserError, words: list[str]) -> Iterator[list[str]]:
    """The command lines that the message of an error advises instead of ``words``."""
    value_of = {_key(word): word.partition("=")[2] for word in words}
    given, text = value_of.get(error.key, ""), str(error)
    settings = [quoted or plain for quoted, plain in SETTING.findall(text)]
    settings += [f"{error.key}={value}" for match in CHOICES.findall(text) for value in match]
    for similar in SIMILAR.findall(text):
        is_key = text.startswith("no key")
        settings.append(f"{similar}={given}" if is_key else f"{error.key}={similar}")
    for setting in settings:
        key, _, values = setting.partition("=")
        for value in values.split("|"):
            for placeholder, example in {**PLACEHOLDERS, "VALUE": given, "…": given}.items():
                value = value.replace(placeholder, example)
            # A word that is not a setting is replaced; otherwise the advised setting is added.
            wrong = {key, error.key} if text.startswith(("no key", "'")) else {key}
            yield [*(word for word in words if _key(word) not in wrong), f"{key}={value}"]
    for removed in REMOVE.findall(text):
        key = error.key if removed == "it" else removed
        yield [word for word in words if _key(word) != key]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


@pytest.mark.parametrize("line", [case[0] for case in MISTAKES if not case[0].startswith("--")])
def test_the_error_names_its_key_and_its_advice_is_accepted(line: str) -> None:
    """A command line that follows the advice of a message is not refused for the same key."""
    words = shlex.split(line)
    with pytest.raises(UserError) as caught:
        compose_config(words)
    error = caught.value
    assert re.fullmatch(r"[\w./@-]+", error.key)
    assert error.key in str(error)
    assert str(error) == "; ".join(part for part in (error.message, error.hint) if part)
    if "add -m" in str(error):
        check_jobs(words, multirun=True)
        return
    lines = list(advised(error, words))
    assert lines or not re.search(r"\b(add|choose|write) |did you mean|Options", str(error))
    for other in lines:
        assert _key_of_error(other) != error.key, f"{other} after {error}"


def _key_of_error(words: list[str]) -> str | None:
    try:
        compose_config(words)
    except UserError as error:
        return error.key
    return None


@pytest.mark.whole
@pytest.mark.parametrize(("line", "expected"), [(case[1], case[2]) for case in MISTAKES if case[1]])
def test_mistake_under_multirun(answer: Any, line: str, expected: list[str]) -> None:
    printed = answer(f"-m {line}")
    assert [part for part in expected if part not in printed] == []


def test_one_invalid_combination_of_a_large_grid_is_found(answer: Any) -> None:
    # Each value is valid with the first values of the other keys: all jobs must be checked.
    printed = answer(
        "-m model=resnet34 dataset.image_size=64,72 compression=none,block_stem "
        f"seed={','.join(map(str, range(25)))}"
    )
    assert "dataset.image_size=72 with compression=block_stem" in printed


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sweep=tpe epochs=3", "python train.py -m sweep=tpe epochs=3"),
        ("-m seed=0,1 run_dir=out", "run_dir=out with -m: each trial has its own folder"),
        ("-m seed=0,1 resume=auto", "resume=auto with -m: a sweep is resumed by"),
        (
            "-m sweep=densenet_random model=resnet34",
            "model.dropout: model=resnet34 has no such key",
        ),
    ],
)
def test_mistakes_of_sweeps(answer: Any, line: str, expected: str) -> None:
    assert expected in answer(line)


def test_the_command_that_is_advised_for_a_sweep_is_accepted(answer: Any) -> None:
    advice = re.search(r"python train\.py -m (.*)", answer("sweep=tpe epochs=3"))
    assert advice is not None
    check_jobs(shlex.split(advice[1]), multirun=True)


def test_the_last_value_of_a_large_grid_is_checked(answer: Any) -> None:
    seeds = ",".join(map(str, range(100)))
    assert "compression.window=9" in answer(f"-m seed={seeds} compression.window=1,2,9")


def test_the_end_of_a_long_range_is_checked(answer: Any) -> None:
    assert "epochs=0" in answer("-m seed=range(0,100) epochs=range(99,-1,-1)")


def test_the_far_end_of_the_longest_range_is_checked(answer: Any) -> None:
    assert "epochs=0" in answer("-m seed=0,1 epochs=range(1100,-1,-1)")


@pytest.mark.parametrize(
    "values", ["range(0.1,1.19,0.01)", "range(1.18,0.1,-0.01)", "0.5," * 40 + "1.18"]
)
def test_the_far_end_of_many_decimals_is_checked(
    answer: Any, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_VALUES", 5)
    line = answer(f"-m optimizer=sgd optimizer.momentum={values}")
    assert "optimizer.momentum=1.18" in line


def test_every_value_of_a_list_is_checked(answer: Any) -> None:
    rates = ",".join(["0.1"] * 31 + ["abc"] + ["0.2"] * 29)
    assert "optimizer.lr=abc" in answer(f"-m optimizer.lr={rates} seed=range(0,20)")


def test_one_invalid_combination_of_a_small_grid_is_found(answer: Any) -> None:
    printed = answer(
        "-m seed=0,1 dataset.image_size=64,72 model=resnet34 compression=none,block_stem"
    )
    assert "dataset.image_size=72 with compression=block_stem" in printed


def test_the_sweepers_own_parameters_are_checked(answer: Any) -> None:
    printed = answer("-m 'hydra.sweeper.params={compression.window: \"4,9\"}'")
    assert "compression.window=9" in printed


@pytest.mark.parametrize(
    "line",
    [
        "device=cuda:1 precision=fp16",
        "monitor=val/loss:min patience=3",
        "tags.paper=a tags.try=b",
        "'tags={paper: a}'",
        "name=2024 seed=4294967295",
        "optimizer=adamw optimizer.lr=1",
        "grad_clip=1 keep=0",
        "model=resnet34 dataset.image_size=50",
        "model=resnet34 compression=luma_fusion",
        "compression.order=zigzag compression.count_luma=64 compression.count_chroma=0",
        "compression.window=8 compression.window_chroma=1",
        "dataset.val_dir=null workers=0 pin_memory=false",
        "dataset=imagefolder 'dataset.train_dirs=[a,b]' dataset.val_dir=v",
        "scheduler=multistep 'scheduler.milestones=[1,3]'",
        "'logging=[mlflow,csv]'",
        "'logging=[mlflow,tensorboard]'",
        "optimizer=timm optimizer.name=lion 'optimizer.kwargs={betas: [0.9, 0.99]}'",
        "resume=auto",
        "init_from=.",
        f"{COMPRESSED} model=resnet34 compression=none",
        f"{COMPRESSED} model=resnet34 compression=luma_fusion",
    ],
)
def test_valid_command_lines(line: str) -> None:
    words = shlex.split(line)
    cfg, choices, *_ = compose_config(words)
    for key, _, text in (word.partition("=") for word in words):
        if key in choices:
            assert choices[key] == text
        elif key not in ALL_GROUPS:
            value = yaml.safe_load(text)
            assert OmegaConf.select(cfg, key) in (value, str(value))


MODEL_FOR = {
    "none": "resnet34",
    "detection": "bigdet",
    "single_object": "bigdet",
    "multiclass_detection": "rgbx_mit_b0",
    "rgbx": "rgbx_mit_b0",
    "demo_rgbx": "rgbx_mit_b0",
    "demo_runs": "bigdet",
    "ranking": "siamese_e2e",
    "phototriage": "siamese_e2e",
    "demo_photos": "siamese_e2e",
    "demo_photo_features": "siamese_frozen",
}
"""Models for options that do not fit the default model."""


@pytest.mark.parametrize(("group", "option"), ALL_OPTIONS)
def test_every_option_is_valid_and_its_targets_have_its_keys(group: str, option: str) -> None:
    composed = _composed_option(group, option)
    config = composed.config
    assert composed.choices[group] == option
    assert set(config) == {*RUN_RULES, *GROUPS}
    for node in _targets(config):
        keys = {key for key in node if key not in ("_target_", "_partial_")}
        assert keys <= arguments(get_object(node["_target_"])), node["_target_"]


@cache
def _composed_option(group: str, option: str) -> Composed:
    """An option with a model that fits it, and with the keys that it requires."""
    lines = [f"{group}={option}"]
    if option in MODEL_FOR:
        lines.append(f"model={MODEL_FOR[option]}")
    required = {
        "dataset.train_dirs": "[a]",
        "dataset.manifest": "store",
        "dataset.root": "folder",
        "model.name": "resnet18",
    }
    try:
        return compose_config(lines)
    except UserError as error:
        return compose_config([*lines, f"{error.key}={required[error.key]}"])


def _targets(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from _targets(value)


def test_every_rule_is_used() -> None:
    """Each rule is for a key of an option whose ``_target_`` selects the file of the rule."""
    used: set[str] = set()
    ruled = set(group_rules({}))
    for group, option in ALL_OPTIONS:
        config = _composed_option(group, option).config
        used |= set(_paths(config))
        ruled |= set(group_rules(config))
    assert [key for key in ruled - used if not key.startswith("hydra.")] == []


def _paths(node: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{path}{name}"
        if isinstance(value, dict):
            yield from _paths(value, f"{path}{name}.")


@pytest.mark.parametrize(("group", "option"), ALL_OPTIONS)
def test_every_option_declares_what_it_provides_and_needs(group: str, option: str) -> None:
    kinds = {
        "dataset": {"provides"},
        "compression": {"provides"},
        "model": {"provides", "needs"},
        "task": {"needs"},
    }
    assert kinds.get(group, set()) <= set(read_option(group, option))
    known = {word for g in kinds for name in options(g) for word in _words(g, name)}
    assert set(_words(group, option)) <= known


def _words(group: str, option: str) -> list[str]:
    declared = read_option(group, option).get("provides") or []
    return [word for entry in declared for word in re.findall(r"\b[a-z_]+\b", str(entry))]


def test_a_model_alone_selects_what_fits_it() -> None:
    assert compose_config(["model=resnet34"])[1]["compression"] == "none"
    assert compose_config(["model=resnet34_compressed"])[1]["compression"] == "block_stem"


def test_an_experiment_overrides_the_model_and_the_command_line_overrides_both() -> None:
    line = ["experiment=imagenet_resnet34_compressed", "dataset.train_dirs=[a]", "epochs=3"]
    cfg, choices, *_ = compose_config(line)
    assert choices["dataset"] == "imagenet"
    assert cfg.precision == "bf16"
    assert cfg.epochs == 3


def test_help_lists_groups_settings_and_examples() -> None:
    text = help_text(["compression=luma_fusion"])
    named = [*RUN_RULES, *ALL_GROUPS, *(option for _, option in ALL_OPTIONS)]
    assert [word for word in named if word not in text] == []
    assert "luma_fusion*" in text
    assert text.count("\n  python train.py") == 6


def test_a_mistake_in_the_job_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job() -> NoReturn:
        raise InstantiationException("Error in call") from UserError(
            "dataset.train_dirs", "no folder a"
        )

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stop:
        command_line(job)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: no folder a\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def job() -> NoReturn:
        raise InstantiationException("Error in call") from ZeroDivisionError("a bug")

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(InstantiationException):
        command_line(job)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(ZeroDivisionError):
        command_line(lambda: 1 // 0)
    assert "HYDRA_FULL_ERROR" not in os.environ


@pytest.mark.parametrize(
    ("interrupt", "name", "code"),
    [(KeyboardInterrupt(), "SIGINT", 130), (KeyboardInterrupt(15), "SIGTERM", 143)],
)
def test_an_interruption_ends_with_128_and_its_signal(
    interrupt: KeyboardInterrupt,
    name: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def job() -> NoReturn:
        raise interrupt

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stop:
        command_line(job)
    assert stop.value.code == code
    assert capsys.readouterr().err == f"interrupted by {name}\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("epoch=1", "did you mean 'epochs'?"),
        ("model=resnet43", "did you mean 'resnet34'?"),
        ("--cfg job model=7", "expected one of bigdet, cspdarknet53"),
        ("-m compression.window=4,9", "compression.window=9"),
        ("-m 'epochs=[1'", "bracket"),
        ("--lr=3", "optimizer.lr=3"),
    ],
)
def test_the_command_itself(tmp_path: Path, line: str, expected: str) -> None:
    began = time.perf_counter()
    done = _train(line, tmp_path)
    seconds = time.perf_counter() - began
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert seconds < 5  # 2 s on an idle machine


def test_cfg_job_prints_and_runs_nothing(tmp_path: Path) -> None:
    done = _train("--cfg job model=resnet34", tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "variant: none" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_error_for_broken_yaml_has_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("lr: 1\nbetas: [1\nmore: 2\n")
    done = _train(f"--config-dir {tmp_path} optimizer=mine", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "optimizer/mine.yaml, line 3: " in done.stderr


def test_the_configuration_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'torchvision', 'timm', 'mlflow', 'numpy', 'optuna'}"
    code = (
        "import sys; from research.config import compose_config; compose_config([]); "
        f"print({heavy} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CONF.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def _train(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TRAIN), *shlex.split(line)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
