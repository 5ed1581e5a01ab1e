"""Feature cache on disk, keyed by the bytes of a photo.

Shards are ``CACHE/features/KEY/*.safetensors``. KEY is the key of the extractor: another network,
other weights or another preprocessing use another folder. A shard contains ``photos`` [m, 32], the
SHA-256 of each file, and ``features`` [m, D]. Shards are never modified: several processes can fill
one folder at the same time, each with shards of its own, and readers read all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final, NamedTuple

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from research.data.image_files import decode, reading_tag
from research.data.index import ProgressCallback
from research.data.pairs.extractors import Extractor
from research.utils.conditions import is_exhausted
from research.utils.errors import DamagedImage, UserError, one_line
from research.utils.files import remove_leftovers, write_atomic

log = logging.getLogger(__name__)

FORMAT: Final = "photo features 1"
SHARD: Final = 512
"""Photos in a shard, which is the most that a killed run loses."""
THREADS: Final = 8


class ExtractedFeatures(NamedTuple):
    """Features of files.

    Attributes:
        features: [n, D] float32; NaN in the rows of damaged files.
        damaged: unreadable files, with the kind of damage.
        extracted: number of photos that were computed, not loaded from the cache.
    """

    features: Tensor
    damaged: dict[Path, str]
    extracted: int


def extract_features(
    files: Sequence[Path],
    extractor: Extractor,
    cache: Path,
    batch_size: int = 32,
    progress: ProgressCallback | None = None,
) -> ExtractedFeatures:
    """Features of files: loaded from the cache, or computed and added to it.

    Args:
        files: photos; files with the same bytes are computed once.
        extractor: computes the features.
        cache: cache folder.
        batch_size: photos in a batch through the network.
        progress: called while features are computed.

    Raises:
        UserError: if the extractor returns the wrong shape or values that are not finite.
    """
    folder = cache / "features" / extractor.key
    with ThreadPoolExecutor(THREADS) as pool:
        digests = dict(zip(files, pool.map(_digest, files), strict=True))
    wanted = {digest: file for file, digest in digests.items() if isinstance(digest, bytes)}
    known: dict[bytes, Tensor | str] = dict(_load_shards(folder, extractor, wanted))
    missing = {digest: file for digest, file in wanted.items() if digest not in known}
    shard: dict[bytes, Tensor] = {}
    extracted = 0
    for done, (digest, feature) in enumerate(_compute(missing, extractor, batch_size), start=1):
        known[digest] = feature
        if isinstance(feature, Tensor):
            shard[digest] = feature
            extracted += 1
        if shard and (len(shard) == SHARD or done == len(missing)):
            _write_shard(folder, extractor, shard)
            shard = {}
        if progress is not None:
            progress(f"computing {extractor.name} features", done, len(missing))
    damaged: dict[Path, str] = {}
    features = torch.full((len(files), extractor.size), torch.nan)
    for row, file in enumerate(files):
        digest_or_kind = digests[file]
        feature = known[digest_or_kind] if isinstance(digest_or_kind, bytes) else digest_or_kind
        if isinstance(feature, str):
            damaged[file] = feature
        else:
            features[row] = feature
    return ExtractedFeatures(features, damaged, extracted)


def _digest(file: Path) -> bytes | str:
    """SHA-256 of a file, and of how it is read; or the kind of damage."""
    try:
        with file.open("rb") as opened:
            digest = file_digest(opened, "sha256")
        digest.update(reading_tag(file).encode())
        return digest.digest()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        if is_exhausted(error):
            raise
        return "unreadable"


def _compute(
    files: Mapping[bytes, Path], extractor: Extractor, batch_size: int
) -> Iterator[tuple[bytes, Tensor | str]]:
    """The feature of every file, or the kind of damage; the next batch is read meanwhile."""

    def read(digest: bytes, file: Path) -> Tensor | str:
        try:
            inputs = extractor.preprocess(decode(file))
        except DamagedImage as error:
            return error.kind
        if _digest(file) != digest:
            raise UserError(
                "dataset.root", f"{file}: changed while its features were computed", "run again"
            )
        return inputs

    if not files:
        return
    entries = list(files.items())
    batches = [entries[i : i + batch_size] for i in range(0, len(entries), batch_size)]
    with ThreadPoolExecutor(THREADS) as pool:

        def submit(batch: Sequence[tuple[bytes, Path]]) -> list[Future[Tensor | str]]:
            return [pool.submit(read, *entry) for entry in batch]

        ahead = submit(batches[0])
        for batch, following in zip(batches, [*batches, []][1:], strict=True):
            futures, ahead = ahead, submit(following)
            results = [future.result() for future in futures]
            inputs = [result for result in results if isinstance(result, Tensor)]
            features = iter(_embed(extractor, inputs, batch[0][1]))
            for (digest, _), result in zip(batch, results, strict=True):
                yield digest, result if isinstance(result, str) else next(features)


def _embed(extractor: Extractor, inputs: Sequence[Tensor], file: Path) -> Tensor:
    """Features of a batch that starts with ``file``, checked."""
    features = extractor.embed(inputs)
    if features.shape != (len(inputs), extractor.size):
        raise UserError(
            "dataset.features",
            f"feature {extractor.name}: shape {tuple(features.shape)} for {len(inputs)} photos, "
            f"expected {extractor.size} numbers each",
            "use another network",
        )
    if not features.isfinite().all():
        raise UserError(
            "dataset.feature_weights",
            f"feature {extractor.name}: not finite in the batch that starts with {file}",
            "set other weights",
        )
    return features


def _load_shards(
    folder: Path, extractor: Extractor, wanted: Mapping[bytes, Path]
) -> Iterator[tuple[bytes, Tensor]]:
    """Cached features of these photos; damaged shards are logged and ignored."""
    for shard in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(shard, framework="pt") as file:
                photos, features = file.get_tensor("photos"), file.get_tensor("features")
                metadata = file.metadata()
        except (SafetensorError, OSError) as error:
            log.warning("%s: ignored (%s); delete it", shard, one_line(error))
            continue
        if metadata is None or metadata != _shard_metadata(extractor, photos, features):
            log.warning("%s: ignored, its checksum or extractor is wrong; delete it", shard)
            continue
        for photo, feature in zip(photos, features, strict=True):
            digest = photo.numpy().tobytes()
            if digest in wanted:
                yield digest, feature


def _write_shard(folder: Path, extractor: Extractor, entries: Mapping[bytes, Tensor]) -> None:
    photos = torch.frombuffer(bytearray(b"".join(entries)), dtype=torch.uint8).reshape(-1, 32)
    features = torch.stack(list(entries.values()))
    metadata = _shard_metadata(extractor, photos, features)
    # Named by its photos: computing the same photos again replaces a damaged shard.
    shard = folder / f"{sha256(photos.numpy().tobytes()).hexdigest()[:32]}.safetensors"
    content = {"photos": photos, "features": features}
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        remove_leftovers(folder)
        write_atomic(shard, lambda path: save_file(content, path, metadata))


def _shard_metadata(
    extractor: Extractor, photos: Tensor, features: Tensor
) -> dict[str, str] | None:
    """Metadata of a shard; ``None`` if its shapes or types do not fit the extractor."""
    count = len(photos)
    if photos.shape != (count, 32) or features.shape != (count, extractor.size):
        return None
    if photos.dtype != torch.uint8 or features.dtype != torch.float32:
        return None
    digest = sha256(photos.numpy().tobytes())
    digest.update(features.numpy().tobytes())
    return {"format": FORMAT, "extractor": extractor.key, "sha256": digest.hexdigest()}
