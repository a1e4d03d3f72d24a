"""``extract``: measure a delta once and store it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from deltastore.blobs import LocalBlobs, StoredBlob
from deltastore.checkpoint import Checkpoint, open_checkpoint, quantisation
from deltastore.codecs import get_codec
from deltastore.digest import content_digest, fingerprint, sha256_digest
from deltastore.errors import (
    FormatError,
    IntegrityError,
    NoSpaceError,
    QuantisedCheckpointError,
)
from deltastore.manifest import (
    Config,
    Descriptor,
    Manifest,
    SourceModel,
    config_bytes,
)
from deltastore.manifest.format import (
    CHUNK_ELEMENTS,
    CONFIG_MEDIA_TYPE,
    SAMPLES_MEDIA_TYPE,
    TENSORS_MEDIA_TYPE,
)
from deltastore.operations import encoding, hashing, planning, samples, small_files
from deltastore.operations.pairing import pair_up
from deltastore.operations.pipeline import job_count
from deltastore.operations.progress import Progress, Silent, Staged
from deltastore.refs import default_name, validate_name, validate_tag
from deltastore.store import Store

_MARGIN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ExtractResult:
    """What ``extract`` did.

    Attributes:
        name: The artifact's name.
        version: Its version of that name.
        digest: The manifest's digest.
        codec: The codec.
        raw_bytes: Bytes of post's tensors.
        stored_bytes: Bytes of the manifest and all blobs.
        bits_per_weight: 8 x bytes of the tensor parts over the elements of all post tensors.
        tensors: Rows of the tensor table.
        unchanged: How many of them are equal in base and post.
        patched: How many carry a restore patch.
        reused: Whether the artifact was in the store already.
        resumed_bytes: Of the tensor parts of a new artifact, those that were in the store already,
            stored by a run that was stopped; they were compared, not written again.
        seconds: Wall time.
    """

    name: str
    version: int
    digest: str
    codec: str
    raw_bytes: int
    stored_bytes: int
    bits_per_weight: float
    tensors: int
    unchanged: int
    patched: int
    reused: bool
    resumed_bytes: int
    seconds: float

    @property
    def ref(self) -> str:
        """The ref that means just this version."""
        return f"{self.name}:v{self.version}"


def extract(
    store: Store,
    base: str | PathLike[str],
    post: str | PathLike[str],
    *,
    name: str | None = None,
    tags: Sequence[str] = (),
    codec: str = "exact",
    jobs: int | None = None,
    rehash: bool = False,
    restore_only: bool = False,
    progress: Progress | None = None,
) -> ExtractResult:
    """Store the delta between two checkpoints.

    The pair is read once. The same pair and codec again gives the stored artifact.

    Args:
        store: Where to.
        base: The checkpoint before post-training: a local path, or a Hub id.
        post: The checkpoint after it.
        name: The artifact's name; the last part of post's path or id if None.
        tags: Tags to set on the version.
        codec: The codec's name.
        jobs: Threads; one for each core if None.
        rehash: Read the files even where their digests are remembered.
        restore_only: Accept quantised checkpoints; the artifact can then only restore post from
            this very base.
        progress: Who is told how far the work is.

    Raises:
        CheckpointError: One of the checkpoints cannot be read.
        QuantisedCheckpointError: One of them is quantised, and ``restore_only`` is false.
        NoSpaceError: The artifact will not fit.
        StoreError: The store cannot be written.
        RefSyntaxError: The name or a tag cannot be one.
        CodecUnknownError: There is no such codec.
        SourceChangedError: A file changed while it was read.
    """
    started = time.monotonic()
    progress = Staged(progress or Silent())
    chosen = get_codec(codec)
    if name is not None:
        validate_name(name)
    for tag in tags:
        validate_tag(tag)
    store.require_writable()
    with (
        open_checkpoint(base, downloads=progress) as before,
        open_checkpoint(post, downloads=progress) as after,
    ):
        if not restore_only:
            for checkpoint in (before, after):
                _refuse_quantised(checkpoint)
        name = name or default_name(after.repo or after.path.name)
        labels = {"base": _label(before), "post": _label(after)}
        files = (hashing.identities(before), hashing.identities(after))
        wanted = _Wanted(small_files.collect(before, after), restore_only, thorough=rehash)
        with store.lease("extract"):
            found = None
            if not rehash:
                pairs = _already_there(store, before, after, codec, progress, jobs)
                found = _reusable(store, pairs, wanted)
            reused = found is not None
            blobs = _CountedBlobs(store)
            if found is None:
                manifest, config = _extract(
                    store, blobs, before, after, chosen.name, wanted, job_count(jobs), progress
                )
                known = (hashing.digests(config, "base"), hashing.digests(config, "post"))
                for checkpoint, identities, digests in zip(
                    (before, after), files, known, strict=True
                ):
                    checkpoint.check_unchanged()
                    hashing.remember(store, checkpoint, identities, digests)
                # The same pair, encoded by another version of deltastore, stays what it was.
                pairs = store.find_pair(config.base.content, config.post.content, codec)
                found = _reusable(store, pairs, wanted)
                reused = found is not None
            if found is not None:
                manifest, config = found
            published = store.publish(manifest, config, name=name, labels=labels, tags=tags)
    return ExtractResult(
        name=published.name,
        version=published.version,
        digest=published.digest,
        codec=config.codec,
        raw_bytes=config.post.nbytes,
        stored_bytes=published.stored_bytes,
        bits_per_weight=config.bits_per_weight(manifest),
        tensors=len(config.tensors),
        unchanged=sum(entry.kind == "unchanged" for entry in config.tensors),
        patched=sum(entry.patch is not None for entry in config.tensors),
        reused=reused or published.reused,
        resumed_bytes=0 if reused or published.reused else blobs.reused_bytes,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What an artifact of the same weights must have in common to be the same artifact.

    ``thorough``: all its bytes are compared with their digests, rather than their sizes.
    """

    files: small_files.SmallFiles
    restore_only: bool
    thorough: bool


def _reusable(
    store: Store, digests: Sequence[str], wanted: _Wanted
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
        same = small_files.same_files(wanted.files, manifest, config)
        if same and config.restore_only == wanted.restore_only:
            return manifest, config
    return None


def _already_there(
    store: Store,
    before: Checkpoint,
    after: Checkpoint,
    codec: str,
    progress: Progress,
    jobs: int | None,
) -> list[str]:
    """The stored artifacts of this pair of weights, found without encoding anything.

    Files whose digests are not remembered are only read ahead of time where the store holds an
    artifact of this structure, so that it is likely that it pays.
    """
    known_base, known_post = (
        hashing.remembered(store, side, trust_cache=True) for side in (before, after)
    )
    if known_base is None or known_post is None:
        structure = fingerprint((t.name, t.shape) for t in before.tensors.values())
        alike = [
            artifact
            for artifact in store.artifacts()
            if artifact.base_fingerprint == structure
            and artifact.codec == codec
            and artifact.raw_bytes == after.nbytes
        ]
        if not alike:
            return []
        contents = {artifact.base_content for artifact in alike}
        if known_base is None:
            known_base = hashing.hash_checkpoint(store, before, job_count(jobs), progress)
        if hashing.content_of(before, known_base) not in contents:
            return []
        if known_post is None:
            known_post = hashing.hash_checkpoint(store, after, job_count(jobs), progress)
    return store.find_pair(
        hashing.content_of(before, known_base), hashing.content_of(after, known_post), codec
    )


class _CountedBlobs(LocalBlobs):
    """The store's blobs, counting the bytes that are put and were there already."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.parts.layout.blobs, store.parts.layout.temp)
        self.reused_bytes = 0

    def put(
        self, pieces: Sequence[bytes | bytearray | memoryview], *, digest: str | None = None
    ) -> StoredBlob:
        """See ``BlobStore.put``; one thread at a time puts parts."""
        stored = super().put(pieces, digest=digest)
        if stored.reused:
            self.reused_bytes += stored.size
        return stored


def _extract(
    store: Store,
    blobs: _CountedBlobs,
    before: Checkpoint,
    after: Checkpoint,
    codec: str,
    wanted: _Wanted,
    jobs: int,
    progress: Progress,
) -> tuple[Manifest, Config]:
    pairs = pair_up(before, after)
    progress.start("planning", 0)
    plans, estimate = planning.plan(before, after, pairs, codec, jobs)
    _require_space(store, estimate)
    progress.start("extracting", before.nbytes + after.nbytes)
    encoded = encoding.encode(blobs, before, after, plans, codec, jobs, progress)
    entries = encoded.entries
    runs = samples.choose_runs(entries)
    pieces = samples.read_runs(before, [entry.source for entry in entries], runs)
    stored_samples = store.blobs.put([piece.data for piece in pieces])
    layers = [Descriptor(TENSORS_MEDIA_TYPE, d, size) for d, size in encoded.parts]
    layers.append(Descriptor(SAMPLES_MEDIA_TYPE, stored_samples.digest, stored_samples.size))
    files = small_files.store_files(store.blobs, wanted.files, layers)
    config = Config(
        codec=codec,
        exactness=get_codec(codec).exactness,
        chunk=CHUNK_ELEMENTS,
        base=_source(before, [(e.name, e.own_base) for e in entries]),
        post=_source(after, [(e.name, e.post) for e in entries]),
        tensors=entries,
        parts=len(encoded.parts),
        samples=runs,
        files=files,
        restore_only=wanted.restore_only,
    )
    data = config_bytes(config)
    descriptor = Descriptor(CONFIG_MEDIA_TYPE, sha256_digest(data), len(data))
    return Manifest(config=descriptor, layers=tuple(layers)), config


def _source(checkpoint: Checkpoint, sides: Sequence[tuple[str, object]]) -> SourceModel:
    rows = hashing.rows(sides)
    return SourceModel(
        content=content_digest(rows),
        fingerprint=fingerprint((name, shape) for name, _, shape, _ in rows),
        nbytes=checkpoint.nbytes,
        parameters=checkpoint.parameters,
        repo=checkpoint.repo,
        revision=checkpoint.revision,
    )


def _label(checkpoint: Checkpoint) -> str:
    """What listings call a checkpoint: its Hub id, or the last part of its path."""
    return checkpoint.repo or checkpoint.path.resolve().name


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    reason = quantisation(checkpoint)
    if reason is not None:
        raise QuantisedCheckpointError(
            f"{checkpoint.path} is quantised ({reason}); a delta needs weights in floating point.",
            hint="Dequantise it first, or give `--restore-only` to keep it for this base alone.",
            path=str(checkpoint.path),
        )


def _require_space(store: Store, estimate: int) -> None:
    needed = estimate + estimate // 10 + _MARGIN_BYTES
    free = store.free_bytes()
    if free < needed:
        raise NoSpaceError(
            f"The artifact will take about {needed / 1e9:.2f} GB in the store at {store.path}, "
            f"and {free / 1e9:.2f} GB are free.",
            hint="Free some space, or use `--store` with another place.",
            needed=needed,
            available=free,
        )
