"""Finds the file of the weights that ``model.pretrained`` names: here, in a cache, or on the web.

No name reaches the web unless it was typed: those in files of somebody else are not used, see
``research.config.stored``.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch

from research.config.stored import CACHE
from research.models.rules import HUB, LIBRARIES, SUFFIXES, is_local
from research.utils.errors import UserError, one_line

log = logging.getLogger(__name__)

KEY: Final = "model.pretrained"
TIMM, TORCHVISION = LIBRARIES
FOLDER: Final = Path(CACHE) / "weights"
"""Where a user puts files by hand, such as on a machine without network."""
HUB_FILES: Final = ("model.safetensors", "pytorch_model.bin")
TIMEOUT: Final = 5
"""Seconds for the one question whether a server has the file."""
DIGEST: Final = re.compile(r"-([0-9a-f]{8,})\.")
"""In the names of PyTorch's files: the first digits of their SHA-256."""


@dataclass(frozen=True)
class WeightsFile:
    """A file with weights on this machine.

    Attributes:
        name: such as ``resnet34.a1_in1k``; empty if the setting is a path.
        origin: where it comes from: an address, or its path.
    """

    path: Path
    name: str
    origin: str


@dataclass(frozen=True)
class _Published:
    """Weights on the web.

    Attributes:
        name: of the network and the weights.
        repository: ORG/NAME on the hub, with or without @REVISION; empty if there is none.
        url: of a single file; empty if there is none.
    """

    name: str
    repository: str = ""
    url: str = ""

    @property
    def url_name(self) -> str:
        """Name of the file at ``url``; empty if it is none of ``SUFFIXES``."""
        name = Path(urlparse(self.url).path).name
        return name if name.endswith(SUFFIXES) else ""


def setting_text(source: str | bool) -> str:
    """``model.pretrained=SOURCE``, as it is typed."""
    return f"{KEY}={'true' if source is True else source}"


def find_weights(source: str | bool, network: str, default: str) -> WeightsFile:
    """The file of a source.

    A named file is looked for in ``FOLDER``, in the caches of the hub (``HF_HOME``) and of
    ``torch.hub`` (``TORCH_HOME``), and is then downloaded to one of these caches.

    Args:
        source: ``True`` for the weights ``default``; ``timm`` or ``torchvision`` for the default
            ones of that library; the name of others (``a1_in1k``, ``resnet34.a1_in1k``,
            ``IMAGENET1K_V1``); ``hf-hub:ORG/NAME``; or a file.
        network: timm's or torchvision's name of the network.
        default: ``timm``, ``torchvision`` or ``hf-hub:ORG/NAME``.

    Raises:
        UserError: if there are no such weights, or no server has them.
    """
    if source is not True and is_local(source):
        return WeightsFile(Path(str(source)), "", str(source))
    weights = _published(source, network, default)
    return _cached(weights) or _downloaded(weights, setting_text(source))


def _published(source: str | bool, network: str, default: str) -> _Published:
    word = default if source is True else str(source)
    if word.startswith(HUB):
        repository = word.removeprefix(HUB)
        return _Published(repository.replace("/", "--"), repository)
    architecture = network.partition(".")[0]
    if word == TIMM:
        weights = _of_timm(network)
    elif word == TORCHVISION:
        weights = _of_torchvision(architecture, "DEFAULT")
    else:
        other, _, tag = word.rpartition(".")
        known = _names(architecture)
        weights = _of_timm(f"{architecture}.{tag}") or _of_torchvision(architecture, tag)
        if other not in ("", architecture) or weights is None:
            near = get_close_matches(tag, known, 1, 0.6) if other in ("", architecture) else []
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                KEY,
                f"{setting_text(source)}: no such weights of {architecture}",
                f"{hint}There are {', '.join(known)}" if known else "set a weights file or a run",
            )
    if weights is None:
        raise UserError(
            KEY, f"{setting_text(source)}: {word} has no weights of {network}", "use a file"
        )
    return weights


def _names(architecture: str) -> list[str]:
    """Names of the weights of a network, of both libraries."""
    import timm

    names = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    return [*names, *_torchvision_weights(architecture)]


def _torchvision_weights(architecture: str) -> dict[str, Any]:
    """torchvision's weights of a network by their names; ``DEFAULT`` is one of them."""
    from torchvision import models

    if architecture not in models.list_models(module=models):
        return {}
    return dict(models.get_model_weights(architecture).__members__)


def _of_timm(name: str) -> _Published | None:
    """Weights of ``architecture`` (the default ones) or ``architecture.tag``; None if unknown."""
    import timm

    if not timm.is_model(name.partition(".")[0]):
        return None
    try:
        record = timm.get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        return None
    if record is None or not (record.hf_hub_id or record.url):
        return None
    full = ".".join(part for part in (record.architecture, record.tag) if part)
    url = record.url if isinstance(record.url, str) else ""
    return _Published(full, record.hf_hub_id or "", url)


def _of_torchvision(architecture: str, tag: str) -> _Published | None:
    weights = _torchvision_weights(architecture).get(tag)
    return weights and _Published(f"{architecture}.{weights.name}", url=weights.url)


def _cached(weights: _Published) -> WeightsFile | None:
    """The file, if it is on this machine."""
    names = [f"{weights.name}{suffix}" for suffix in SUFFIXES]
    places = [(FOLDER / name, str(FOLDER / name)) for name in (*names, weights.url_name) if name]
    if weights.repository:
        from huggingface_hub import try_to_load_from_cache

        repository, revision = _repository(weights)
        for name, address in zip(HUB_FILES, _addresses(weights), strict=True):
            found = try_to_load_from_cache(repository, name, revision=revision)
            places += [(Path(found), address)] if isinstance(found, str) else []
    if weights.url_name:
        places.append((_torch_cache() / weights.url_name, weights.url))
    for path, origin in places:
        if path.is_file():
            return WeightsFile(path, weights.name, origin)
    return None


def _downloaded(weights: _Published, setting: str) -> WeightsFile:
    """Download a file, after one question whether the server has it.

    The libraries' own downloads ask many times, with a line for each, if there is no network.

    Raises:
        UserError: if it does not, or does not answer.
    """
    try:
        if weights.repository:
            return _from_hub(weights)
        return _from_url(weights)
    except Exception as error:
        # Downloads fail in many ways; each library has exceptions of its own for them.
        address = _addresses(weights)[0]
        raise UserError(
            KEY,
            f"{setting}: cannot get the weights {weights.name} ({one_line(error)})",
            f"save {address} as {FOLDER / weights.name}{Path(address).suffix}, or set {KEY}=FILE",
        ) from None


def _from_hub(weights: _Published) -> WeightsFile:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    repository, revision = _repository(weights)
    for name, address in zip(HUB_FILES, _addresses(weights), strict=True):
        try:
            get_hf_file_metadata(address, timeout=TIMEOUT)
        except EntryNotFoundError:
            continue
        except OfflineModeIsEnabled:
            raise ValueError("HF_HUB_OFFLINE is set") from None
        except RepositoryNotFoundError:
            raise ValueError(f"the hub has no public repository {repository}") from None
        log.info("downloading %s", address)
        path = hf_hub_download(repository, name, revision=revision)
        return WeightsFile(Path(path), weights.name, address)
    raise ValueError(f"{repository} has none of {', '.join(HUB_FILES)}")


def _from_url(weights: _Published) -> WeightsFile:
    target, url = _torch_cache() / weights.url_name, weights.url
    try:
        with urlopen(Request(url, method="HEAD"), timeout=TIMEOUT):  # noqa: S310 - of the library
            pass
    except HTTPError as error:
        error.close()  # it holds the connection
        raise ValueError(f"{error.code} {error.reason}") from None
    except URLError as error:
        raise ValueError(error.reason) from None
    log.info("downloading %s", url)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = DIGEST.search(target.name)
    torch.hub.download_url_to_file(url, str(target), digest[1] if digest else None)
    return WeightsFile(target, weights.name, url)


def _addresses(weights: _Published) -> list[str]:
    """Where the file may be; one for each name if it is on the hub."""
    if not weights.repository:
        return [weights.url]
    from huggingface_hub import hf_hub_url

    repository, revision = _repository(weights)
    return [hf_hub_url(repository, name, revision=revision) for name in HUB_FILES]


def _repository(weights: _Published) -> tuple[str, str | None]:
    repository, _, revision = weights.repository.partition("@")
    return repository, revision or None


def _torch_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"
