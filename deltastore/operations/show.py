"""``show``: one artifact with its sources, files and tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deltastore.manifest import SourceModel, TensorEntry
from deltastore.store import Store


@dataclass(frozen=True, slots=True)
class Source:
    """One of the two source checkpoints. ``label`` is what the user called it."""

    label: str
    repo: str | None
    revision: str | None
    content: str
    fingerprint: str
    parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class File:
    """A small file of base or post that travels with the artifact. ``size`` is in bytes."""

    side: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Error:
    """How far decoded deltas are from post - base.

    ``l2`` is the norm of the differences, ``relative`` that over the norm of the deltas (None where
    that is 0), ``max`` the largest of them.
    """

    l2: float
    relative: float | None
    max: float

    @classmethod
    def of(cls, entries: Sequence[TensorEntry]) -> Error | None:
        """That of several tensors together; None where none was measured."""
        measured = [(entry.error, entry.l2) for entry in entries if entry.error is not None]
        if not measured:
            return None
        # Not a sum of squares, which anybody's numbers may overflow.
        l2 = math.hypot(*(error.l2 for error, _ in measured))
        whole = math.hypot(*(norm for _, norm in measured))
        largest = max(error.max for error, _ in measured)
        return cls(l2, l2 / whole if whole else None, largest)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: dtype and shape of post (of base where it was removed), stored bytes.

    ``l2`` is the norm of its delta and ``relative_change`` that over the norm of the base; both
    are None where there is no delta. ``error`` is None where it is encoded exactly.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    codec: str | None
    bytes: int
    changed: int | None
    l2: float | None
    relative_change: float | None
    error: Error | None


@dataclass(frozen=True, slots=True)
class Details:
    """An artifact in full. ``unchanged`` and ``tensors`` are about post's tensors and base's.

    ``error`` is that of all deltas; None where the codec is exact.
    """

    name: str
    version: int
    digest: str
    tags: tuple[str, ...]
    base: str
    post: str
    codec: str
    raw_bytes: int
    stored_bytes: int
    created: str
    created_by: str
    tool: str
    exactness: str
    error: Error | None
    restore_only: bool
    bits_per_weight: float
    parameters: int
    unchanged: int
    sources: dict[str, Source]
    files: tuple[File, ...]
    not_stored: tuple[str, ...]
    tensors: tuple[Tensor, ...]


def show(store: Store, ref: str) -> Details:
    """Everything about the artifact that ``ref`` means.

    Raises:
        RefError: ``ref`` means none, or several.
        IntegrityError: Its manifest or config is missing or damaged.
        ManifestInvalidError: Its manifest or config breaks the format.
    """
    artifact = store.resolve(ref)
    manifest, config = store.load(artifact.digest)
    return Details(
        name=artifact.name,
        version=artifact.version,
        digest=artifact.digest,
        tags=artifact.tags,
        base=artifact.base,
        post=artifact.post,
        codec=config.codec,
        raw_bytes=config.post.nbytes,
        stored_bytes=artifact.stored_bytes,
        created=artifact.created,
        created_by=artifact.created_by,
        tool=artifact.tool,
        exactness=config.exactness,
        error=Error.of(config.tensors),
        restore_only=config.restore_only,
        bits_per_weight=config.bits_per_weight(manifest),
        parameters=config.post.parameters,
        unchanged=artifact.unchanged,
        sources={
            "base": _source(artifact.base, config.base),
            "post": _source(artifact.post, config.post),
        },
        files=tuple(
            File(entry.side, entry.path, manifest.layers[entry.layer].size)
            for entry in config.files
        ),
        not_stored=config.not_stored,
        tensors=tuple(_tensor(entry) for entry in config.tensors),
    )


def _source(label: str, source: SourceModel) -> Source:
    return Source(
        label=label,
        repo=source.repo,
        revision=source.revision,
        content=source.content,
        fingerprint=source.fingerprint,
        parameters=source.parameters,
        nbytes=source.nbytes,
    )


def _tensor(entry: TensorEntry) -> Tensor:
    side = entry.post or entry.base
    assert side is not None
    stream = entry.delta or entry.values
    has_delta = entry.delta is not None
    return Tensor(
        name=entry.name,
        shape=side.shape,
        dtype=side.dtype,
        kind=entry.kind,
        codec=stream.codec if stream is not None else None,
        bytes=entry.stored_bytes,
        changed=entry.changed if has_delta else None,
        l2=entry.l2 if has_delta else None,
        relative_change=entry.relative_change,
        error=Error.of([entry]),
    )
