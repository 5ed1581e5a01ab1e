"""Features on disk: computed once for the bytes of a photo, whoever asks and under whatever name.

``CACHE/features/KEY/*.safetensors``, where KEY is the extractor's: another network, other weights
or another preprocessing never meet the same folder. A shard holds ``photos`` [m, 32], the SHA-256
of each file's bytes, and ``features`` [m, D]. Shards are never changed: processes that fill one
folder at the same moment add theirs side by side, and readers take all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from research.data.index import ProgressCallback
from research.data.pairs.extractors import Extractor
from research.data.readers import decode
from research.utils.errors import DamagedImage, UserError, one_line
from research.utils.files import write_atomic

log = logging.getLogger(__name__)

FORMAT: Final = "photo features 1"
SHARD: Final = 512
"""Photos after which a shard is written; a run that is killed loses no more than so many."""
THREADS: Final = 8


class Found(NamedTuple):
    """Features of files.

    Attributes:
        features: [n, D] float32; NaN in the rows of damaged files.
        damaged: files that cannot be read, by kind.
        extracted: how many photos were computed rather than recalled.
    """

    features: Tensor
    damaged: dict[Path, str]
    extracted: int


def features_of(
    files: Sequence[Path],
    extract: Extractor,
    cache: Path,
    batch_size: int = 32,
    progress: ProgressCallback | None = None,
) -> Found:
    """A feature of every file: recalled where the cache has it, else computed and kept.

    Args:
        files: photos; the same bytes under two names are computed once.
        extract: what computes the feature.
        cache: folder of everything that is kept.
        batch_size: photos a batch through the network.
        progress: told meanwhile.

    Raises:
        UserError: when the extractor gives something else than finite numbers.
    """
    folder = cache / "features" / extract.key
    with ThreadPoolExecutor(THREADS) as pool:
        digests = dict(zip(files, pool.map(_digest, files), strict=True))
    wanted = {digest: file for file, digest in digests.items() if isinstance(digest, bytes)}
    known: dict[bytes, Tensor | str] = dict(_recalled(folder, extract, wanted))
    missing = {digest: file for digest, file in wanted.items() if digest not in known}
    fresh: dict[bytes, Tensor] = {}
    extracted = 0
    for done, (digest, vector) in enumerate(_computed(missing, extract, batch_size), start=1):
        known[digest] = vector
        if isinstance(vector, Tensor):
            fresh[digest] = vector
            extracted += 1
        if fresh and (len(fresh) == SHARD or done == len(missing)):
            _write(folder, extract, fresh)
            fresh = {}
        if progress is not None:
            progress(f"computing {extract.name} features", done, len(missing))
    damaged: dict[Path, str] = {}
    features = torch.full((len(files), extract.size), torch.nan)
    for row, file in enumerate(files):
        content = digests[file]
        found = known[content] if isinstance(content, bytes) else content
        if isinstance(found, str):
            damaged[file] = found
        else:
            features[row] = found
    return Found(features, damaged, extracted)


def _digest(file: Path) -> bytes | str:
    """SHA-256 of a file's bytes, or the kind of damage."""
    try:
        with file.open("rb") as opened:
            return file_digest(opened, "sha256").digest()
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "unreadable"


def _computed(
    files: Mapping[bytes, Path], extract: Extractor, batch_size: int
) -> Iterator[tuple[bytes, Tensor | str]]:
    """The vector of every file, or the kind of damage; photos are read ahead of the network."""

    def read(digest: bytes, file: Path) -> Tensor | str:
        try:
            ready = extract.ready(decode(file))
        except DamagedImage as error:
            return error.kind
        if _digest(file) != digest:
            raise UserError(
                "dataset.features", f"{file}: changed while its features were computed", "run again"
            )
        return ready

    if not files:
        return
    entries = list(files.items())
    batches = [entries[at : at + batch_size] for at in range(0, len(entries), batch_size)]
    with ThreadPoolExecutor(THREADS) as pool:

        def submit(batch: Sequence[tuple[bytes, Path]]) -> list[Future[Tensor | str]]:
            return [pool.submit(read, *entry) for entry in batch]

        ahead = submit(batches[0])
        for batch, following in zip(batches, [*batches, []][1:], strict=True):
            photos, ahead = ahead, submit(following)
            ready = [photo.result() for photo in photos]
            whole = [photo for photo in ready if isinstance(photo, Tensor)]
            vectors = iter(_checked(extract, whole, batch[0][1]))
            for (digest, _), photo in zip(batch, ready, strict=True):
                yield digest, photo if isinstance(photo, str) else next(vectors)


def _checked(extract: Extractor, ready: Sequence[Tensor], file: Path) -> Tensor:
    vectors = extract.embed(ready)
    if vectors.shape != (len(ready), extract.size):
        raise UserError(
            "dataset.features",
            f"feature {extract.name}: gives {tuple(vectors.shape)} for {len(ready)} photos, not "
            f"{extract.size} numbers each",
            "choose another network",
        )
    if not vectors.isfinite().all():
        raise UserError(
            "dataset.features",
            f"feature {extract.name}: not a finite number in the batch that starts with {file}",
            "give other weights",
        )
    return vectors


def _recalled(
    folder: Path, extract: Extractor, wanted: Mapping[bytes, Path]
) -> Iterator[tuple[bytes, Tensor]]:
    """What the shards of a folder know of these photos; shards that are not whole are told."""
    for shard in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(shard, framework="pt") as file:
                photos, features = file.get_tensor("photos"), file.get_tensor("features")
                described = file.metadata()
        except (SafetensorError, OSError) as error:
            log.warning("%s: passed over (%s); delete it", shard, one_line(error))
            continue
        if described is None or described != _description(extract, photos, features):
            log.warning("%s: passed over, it is not as it was written; delete it", shard)
            continue
        for photo, feature in zip(photos, features, strict=True):
            digest = photo.numpy().tobytes()
            if digest in wanted:
                yield digest, feature


def _write(folder: Path, extract: Extractor, vectors: Mapping[bytes, Tensor]) -> None:
    photos = torch.frombuffer(bytearray(b"".join(vectors)), dtype=torch.uint8).reshape(-1, 32)
    features = torch.stack(list(vectors.values()))
    described = _description(extract, photos, features)
    # Who computes the same photos writes the same name, and replaces a shard that was torn.
    shard = folder / f"{sha256(photos.numpy().tobytes()).hexdigest()[:32]}.safetensors"
    content = {"photos": photos, "features": features}
    write_atomic(shard, lambda path: save_file(content, path, described))


def _description(extract: Extractor, photos: Tensor, features: Tensor) -> dict[str, str] | None:
    """What a shard says of itself; null where it cannot be one of this extractor."""
    count = len(photos)
    if photos.shape != (count, 32) or features.shape != (count, extract.size):
        return None
    if photos.dtype != torch.uint8 or features.dtype != torch.float32:
        return None
    digest = sha256(photos.numpy().tobytes())
    digest.update(features.numpy().tobytes())
    return {"format": FORMAT, "extractor": extract.key, "sha256": digest.hexdigest()}
