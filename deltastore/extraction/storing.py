"""A pair that can be read becomes an artifact: what ``extract`` and ``compose`` share."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from deltastore.artifact import small_files
from deltastore.blobs import CountedBlobs
from deltastore.checkpoint import Weights
from deltastore.codecs import get_codec
from deltastore.digest import content_digest, fingerprint, sha256_digest
from deltastore.errors import MAKE_ROOM, FormatError, IntegrityError, NoSpaceError
from deltastore.execution.progress import Progress
from deltastore.extraction import encoding, forms
from deltastore.lineage import digests, samples
from deltastore.lineage.pairing import Pair
from deltastore.manifest import Config, Descriptor, Manifest, SourceModel, config_bytes
from deltastore.manifest.format import (
    CHUNK_ELEMENTS,
    CONFIG_MEDIA_TYPE,
    SAMPLES_MEDIA_TYPE,
    TENSORS_MEDIA_TYPE,
)
from deltastore.store import Store

_MARGIN_BYTES = 1 << 20
"""For the documents of an artifact."""


@dataclass(frozen=True, slots=True)
class Source:
    """One side of a pair: what is read, and the Hub id and commit that it is known by."""

    weights: Weights
    repo: str | None
    revision: str | None

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.weights.tensors.values())

    def model(self, sides: Sequence[tuple[str, object]]) -> SourceModel:
        """What the artifact says of it, from ``(name, TensorSide or None)`` pairs."""
        rows = digests.rows(sides)
        return SourceModel(
            content=content_digest(rows),
            fingerprint=fingerprint((name, shape) for name, _, shape, _ in rows),
            nbytes=self.nbytes,
            parameters=sum(tensor.elements for tensor in self.weights.tensors.values()),
            repo=self.repo,
            revision=self.revision,
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an artifact of the same weights must have in common to be the same artifact.

    ``not_stored`` is None where it is not known what lies beside post.
    ``thorough``: all its bytes are compared with their digests, rather than their sizes.
    """

    files: small_files.FileDigests
    not_stored: tuple[str, ...] | None = None
    restore_only: bool = False
    thorough: bool = False


def reusable(
    store: Store, digests: Sequence[str], wanted: Wanted
) -> tuple[Manifest, Config] | None:
    """The first of these artifacts that is what is wanted and whole; a damaged one is replaced."""
    for digest in digests:
        try:
            manifest, config = store.load(digest)
            if wanted.thorough:
                for blob in manifest.blobs:
                    store.blobs.check(blob.digest, blob.size)
        except (IntegrityError, FormatError):
            continue
        if any(store.blobs.size(blob.digest) != blob.size for blob in manifest.blobs):
            continue
        same = small_files.stored_digests(manifest, config) == wanted.files
        same = same and wanted.not_stored in (None, config.not_stored)
        if same and config.restore_only == wanted.restore_only:
            return manifest, config
    return None


def encode_pair(
    store: Store,
    blobs: CountedBlobs,
    base: Source,
    post: Source,
    *,
    codec: str,
    files: small_files.SmallFiles,
    pairs: Sequence[Pair],
    not_stored: tuple[str, ...],
    restore_only: bool,
    doing: str,
    jobs: int,
    progress: Progress,
) -> tuple[Manifest, Config]:
    """Read both sides once and put all blobs of their artifact but config and manifest.

    Args:
        store: Where to.
        blobs: Its blobs, by which the tensor parts are put.
        base: The weights before post-training.
        post: The weights after it.
        codec: The codec's name.
        files: The small files.
        pairs: Their tensors.
        not_stored: Names of what lies beside post and is not among them.
        restore_only: Whether the artifact only restores this pair.
        doing: What the progress is called.
        jobs: Threads.
        progress: Who is told how far the work is.

    Raises:
        NoSpaceError: The artifact will not fit.
        RestoreFailedError: What was encoded does not decode to the same delta.
        CheckpointError: A side cannot be read.
        StoreError: A blob cannot be stored.
    """
    before, after = base.weights, post.weights
    progress.start("planning", 0)
    plans, estimate = forms.plan(before, after, pairs, codec, jobs)
    estimate += sum(map(len, files.values()))
    structure = fingerprint((tensor.name, tensor.shape) for tensor in before.tensors.values())
    _require_space(store, estimate, structure)
    progress.start(doing, base.nbytes + post.nbytes)
    encoded = encoding.encode(blobs, before, after, plans, codec, jobs, progress)
    entries = encoded.entries
    runs = samples.choose_runs([(entry.name, entry.own_base) for entry in entries])
    pieces = samples.read_runs(before, [entry.source for entry in entries], runs)
    stored_samples = store.blobs.put([piece.data for piece in pieces])
    layers = [Descriptor(TENSORS_MEDIA_TYPE, d, size) for d, size in encoded.parts]
    layers.append(Descriptor(SAMPLES_MEDIA_TYPE, stored_samples.digest, stored_samples.size))
    stored_files = small_files.store_files(store.blobs, files, layers)
    config = Config(
        codec=codec,
        exactness=get_codec(codec).exactness,
        chunk=CHUNK_ELEMENTS,
        base=base.model([(e.name, e.own_base) for e in entries]),
        post=post.model([(e.name, e.post) for e in entries]),
        tensors=entries,
        parts=len(encoded.parts),
        samples=runs,
        files=stored_files,
        restore_only=restore_only,
        not_stored=not_stored,
    )
    data = config_bytes(config)
    descriptor = Descriptor(CONFIG_MEDIA_TYPE, sha256_digest(data), len(data))
    return Manifest(config=descriptor, layers=tuple(layers)), config


def _require_space(store: Store, estimate: int, structure: str) -> None:
    """Refuse at once what would not fit in the end.

    Raises:
        NoSpaceError: It would not.
    """
    needed = estimate + estimate // 10 + _MARGIN_BYTES
    free = store.free_bytes()
    if free >= needed:
        return
    # What is there is not written again. Which blobs those are only encoding can tell, so that
    # all that may be among them count, and the last word is the disk's.
    present = _may_be_reused(store, structure)
    if free >= needed - present or present >= estimate:
        return
    raise NoSpaceError(
        f"The artifact will take about {needed / 1e6:.1f} MB in the store at {store.path}, "
        f"and {free / 1e6:.1f} MB are free.",
        hint=f"{MAKE_ROOM} Or use `--store` with another place.",
        path=str(store.path),
        needed=needed,
        available=free,
    )


def _may_be_reused(store: Store, structure: str) -> int:
    """The bytes of the blobs that an artifact of a base of this structure may have as well."""
    sizes = {digest: store.blobs.size(digest) or 0 for digest in store.blobs.digests()}
    for digest in {a.digest for a in store.artifacts() if a.base_fingerprint != structure}:
        with contextlib.suppress(IntegrityError, FormatError):
            for blob in store.load(digest)[0].blobs:
                sizes.pop(blob.digest, None)
    return sum(sizes.values())
