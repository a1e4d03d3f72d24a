"""A plan and its two sides become an artifact: what ``extract`` and ``compose`` share."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from deltastore.artifact import small_files
from deltastore.blobs import CountedBlobs
from deltastore.checkpoint import Weights
from deltastore.codecs import get_codec
from deltastore.digest import content_digest, fingerprint, sha256_digest
from deltastore.errors import MAKE_ROOM, FormatError, IntegrityError, NoSpaceError
from deltastore.execution.progress import Progress
from deltastore.execution.thread_pool import ThreadPool
from deltastore.extraction.assembling import assemble
from deltastore.extraction.encoding import Encoding
from deltastore.extraction.plan import ExtractPlan, PlannedSide
from deltastore.extraction.result import Made
from deltastore.lineage import digests, samples
from deltastore.manifest import (
    Config,
    Descriptor,
    Manifest,
    SourceModel,
    TensorSide,
    config_bytes,
)
from deltastore.manifest.format import CONFIG_MEDIA_TYPE, SAMPLES_MEDIA_TYPE, TENSORS_MEDIA_TYPE
from deltastore.store import Store

_MARGIN_BYTES = 1 << 20
"""For the documents of an artifact."""


def encode_pair(
    store: Store,
    plan: ExtractPlan,
    base: Weights,
    post: Weights,
    files: small_files.SmallFiles,
    *,
    doing: str,
    pool: ThreadPool,
    progress: Progress,
) -> Made:
    """Read both sides once and put all blobs of their artifact but config and manifest.

    Args:
        store: Where to.
        plan: What is to be done.
        base: The weights before post-training.
        post: The weights after it.
        files: The small files that the plan names.
        doing: What the progress is called.
        pool: Whose threads do it.
        progress: Who is told how far the work is.

    Raises:
        NoSpaceError: The artifact will not fit.
        RestoreFailedError: What was encoded does not decode to the same delta.
        CheckpointError: A side cannot be read.
        StoreError: A blob cannot be stored.
    """
    blobs = CountedBlobs(store.blobs)
    encoding = Encoding(plan, base, post)
    estimate = encoding.choose_forms(pool) + sum(map(len, files.values()))
    _require_space(store, estimate, fingerprint((t.name, t.shape) for t in plan.own("base")))
    progress.start(doing, sum(t.nbytes for side in ("base", "post") for t in plan.own(side)))
    assembled = assemble(blobs, plan, encoding, pool, progress)
    entries = assembled.entries
    pieces = samples.read_runs(base, [entry.source for entry in entries], plan.samples)
    stored_samples = store.blobs.put([piece.data for piece in pieces])
    layers = [Descriptor(TENSORS_MEDIA_TYPE, d, size) for d, size in assembled.parts]
    layers.append(Descriptor(SAMPLES_MEDIA_TYPE, stored_samples.digest, stored_samples.size))
    stored_files = small_files.store_files(store.blobs, files, layers)
    config = Config(
        codec=plan.codec,
        exactness=get_codec(plan.codec).exactness,
        chunk=plan.chunk,
        base=_source(plan.base, [(e.name, e.own_base) for e in entries]),
        post=_source(plan.post, [(e.name, e.post) for e in entries]),
        tensors=entries,
        parts=len(assembled.parts),
        samples=plan.samples,
        files=stored_files,
        restore_only=plan.restore_only,
        not_stored=plan.not_stored,
    )
    data = config_bytes(config)
    descriptor = Descriptor(CONFIG_MEDIA_TYPE, sha256_digest(data), len(data))
    return Made(
        Manifest(config=descriptor, layers=tuple(layers)),
        config,
        cosine=plan.kinship.cosine,
        resumed_bytes=blobs.reused_bytes,
    )


def _source(side: PlannedSide, tensors: Sequence[tuple[str, TensorSide | None]]) -> SourceModel:
    """What the artifact says of one side."""
    rows = digests.rows(tensors)
    own = [tensor for _, tensor in tensors if tensor is not None]
    return SourceModel(
        content=content_digest(rows),
        fingerprint=fingerprint((name, shape) for name, _, shape, _ in rows),
        nbytes=sum(tensor.nbytes for tensor in own),
        parameters=sum(tensor.elements for tensor in own),
        repo=side.repo,
        revision=side.revision,
    )


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
