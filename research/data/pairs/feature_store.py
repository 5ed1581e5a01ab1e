"""Features of photos in stores, keyed by the bytes of a photo.

``CACHE/features/KEY`` is a folder of versions; KEY is the key of the extractor: another network,
other weights or another preprocessing use another folder. A version holds the photos that were
missing when it was written, and is never modified: readers read all versions. A sample is named by
the SHA-256 of its photo, and stores it as ``photos`` uint8 [32], beside ``features`` float32 [D].
Earlier versions of this code wrote shards ``KEY/*.safetensors`` of the same tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from research.data.image_files import decode, reading_tag
from research.data.pairs.extractors import Extractor
from research.data.warehouse.build import build
from research.data.warehouse.encoders import Encoded, SampleEncoder, SampleSpec
from research.data.warehouse.manifest import MANIFEST, Manifest, TensorSpec
from research.data.warehouse.plan import BuildPlan
from research.data.warehouse.store import Store
from research.utils.conditions import is_exhausted
from research.utils.errors import DamagedImage, UserError, one_line
from research.utils.threads import map_threads

log = logging.getLogger(__name__)

FORMAT: Final = "photo features 1"
"""Of the shards of earlier versions."""
GROUP: Final = "photos"
SHARD: Final = 512
"""Photos in a shard, which is the most that a killed run loses."""
THREADS: Final = 8


class ExtractedFeatures(NamedTuple):
    """Features of files.

    Attributes:
        features: [n, D] float32; NaN in the rows of damaged files.
        damaged: unreadable files, with the kind of damage.
        extracted: number of photos that were computed, not loaded.
    """

    features: Tensor
    damaged: dict[Path, str]
    extracted: int


def extract_features(
    files: Sequence[Path],
    extractor: Extractor,
    cache: Path,
    batch_size: int = 32,
) -> ExtractedFeatures:
    """Features of files: loaded, or computed and stored.

    Args:
        files: photos; files with the same bytes are computed once.
        extractor: computes the features.
        cache: cache folder.
        batch_size: photos in a batch through the network.

    Raises:
        UserError: if the extractor returns the wrong shape or values that are not finite.
    """
    folder = cache / "features" / extractor.key
    hashed = map_threads(_digest, files, THREADS, "hashing", "photos")
    digests = dict(zip(files, hashed, strict=True))
    wanted = {digest: file for file, digest in digests.items() if isinstance(digest, bytes)}
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".fill.lock"):  # no photo is computed by two processes
        known = _stored(folder, extractor, cache)
        missing = {digest: file for digest, file in wanted.items() if digest not in known}
        if missing:
            samples = [SampleSpec(digest.hex(), GROUP, missing[digest], None) for digest in missing]
            encoder = FeatureEncoder(extractor, batch_size)
            plan = BuildPlan(encoder, [], samples, {GROUP: "train"}, may_be_empty=True)
            known |= _rows(build(plan, folder, shard_samples=SHARD, workers=1, cache=cache), cache)
    damaged: dict[Path, str] = {}
    features = torch.full((len(files), extractor.size), torch.nan)
    for row, file in enumerate(files):
        digest_or_kind = digests[file]
        feature = known[digest_or_kind] if isinstance(digest_or_kind, bytes) else digest_or_kind
        if isinstance(feature, str):
            damaged[file] = feature
        else:
            features[row] = feature
    extracted = sum(isinstance(known[digest], Tensor) for digest in missing)
    return ExtractedFeatures(features, damaged, extracted)


class FeatureEncoder(SampleEncoder):
    """Photos as features of a frozen network, in batches; the next batch is read meanwhile.

    Args:
        extractor: computes the features.
        batch_size: photos in a batch through the network.
    """

    def __init__(self, extractor: Extractor, batch_size: int) -> None:
        self.extractor = extractor
        self.batch_size = batch_size

    @property
    def kind(self) -> str:
        return "features"

    def transform(self) -> dict[str, Any]:
        return {
            "feature": self.extractor.name,
            "key": self.extractor.key,
            **self.extractor.specification,
        }

    def tensors(self) -> dict[str, TensorSpec]:
        size = TensorSpec("float32", (self.extractor.size,))
        return {"photos": TensorSpec("uint8", (32,)), "features": size}

    def index_entry(self, sample: SampleSpec) -> dict[str, Any]:
        return {"file": sample.file.name}

    def encode_all(self, samples: Sequence[SampleSpec]) -> Iterator[Encoded | DamagedImage]:
        size = self.batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        with ThreadPoolExecutor(THREADS) as pool:

            def submit(batch: Sequence[SampleSpec]) -> list[Future[Tensor | DamagedImage]]:
                return [pool.submit(self._read, sample) for sample in batch]

            ahead = submit(batches[0])
            for batch, following in zip(batches, [*batches[1:], []], strict=True):
                futures, ahead = ahead, submit(following)
                results = [future.result() for future in futures]
                inputs = [result for result in results if isinstance(result, Tensor)]
                features = iter(self._embed(inputs, batch[0].file))
                for sample, result in zip(batch, results, strict=True):
                    if isinstance(result, DamagedImage):
                        yield result
                        continue
                    photo = np.frombuffer(bytes.fromhex(sample.name), np.uint8)
                    yield Encoded({"photos": photo, "features": next(features).numpy()})

    def _read(self, sample: SampleSpec) -> Tensor | DamagedImage:
        try:
            inputs = self.extractor.preprocess(decode(sample.file))
        except DamagedImage as error:
            return error
        digest = _digest(sample.file)
        if not isinstance(digest, bytes) or digest.hex() != sample.name:
            text = f"{sample.file}: changed while its features were computed"
            raise UserError("dataset.root", text, "run again")
        return inputs

    def _embed(self, inputs: Sequence[Tensor], file: Path) -> Tensor:
        """Features of a batch that starts with ``file``, checked."""
        extractor = self.extractor
        features = extractor.embed(inputs)
        if features.shape != (len(inputs), extractor.size):
            raise UserError(
                "dataset.features",
                f"feature {extractor.name}: shape {tuple(features.shape)} for {len(inputs)} "
                f"photos, expected {extractor.size} numbers each",
                "use another network",
            )
        if not features.isfinite().all():
            raise UserError(
                "dataset.feature_weights",
                f"feature {extractor.name}: not finite in the batch that starts with {file}",
                "set other weights",
            )
        return features


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


def _stored(folder: Path, extractor: Extractor, cache: Path) -> dict[bytes, Tensor | str]:
    """All stored features, and the kinds of damage; damaged files are logged and ignored."""
    known: dict[bytes, Tensor | str] = {}
    for file in sorted(folder.glob(f"v*/{MANIFEST}")):
        try:
            manifest = Manifest.load(file)
            if manifest.transform.get("key") == extractor.key:
                known |= _rows(manifest, cache)
            else:
                log.warning("%s: ignored, it is of another extractor; delete it", file.parent)
        except UserError as error:
            log.warning("%s: ignored (%s); delete it", file.parent, error.message)
    for shard in sorted(folder.glob("*.safetensors")):
        known |= _former(shard, extractor)
    return known


def _rows(manifest: Manifest, cache: Path) -> Mapping[bytes, Tensor | str]:
    store = Store(manifest, "once", cache)
    store.open()
    photos, features = store.whole("photos").numpy(), store.whole("features")
    rows = {photo.tobytes(): row for photo, row in zip(photos, features, strict=True)}
    return rows | {bytes.fromhex(name): kind for name, kind in manifest.left_out.items()}


def _former(shard: Path, extractor: Extractor) -> Mapping[bytes, Tensor]:
    """The features in a shard of an earlier version."""
    try:
        with safe_open(shard, framework="pt") as file:
            photos, features = file.get_tensor("photos").numpy(), file.get_tensor("features")
            metadata = file.metadata()
        digest = sha256(photos.tobytes())
        digest.update(features.numpy().tobytes())
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: not a type of NumPy
        log.warning("%s: ignored (%s); delete it", shard, one_line(error))
        return {}
    own = {"format": FORMAT, "extractor": extractor.key, "sha256": digest.hexdigest()}
    if metadata != own or features.shape != (len(photos), extractor.size):
        log.warning("%s: ignored, its checksum or extractor is wrong; delete it", shard)
        return {}
    pairs = zip(photos, features, strict=True)
    return {photo.tobytes(): feature for photo, feature in pairs}
