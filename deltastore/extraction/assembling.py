"""Encoded chunks, in the table's order, become parts and the tensor table.

Both depend on the chunks and their order and on nothing else: they are the same wherever the chunks
were encoded, and by however many threads.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltastore.artifact.parts import PartBuilder
from deltastore.blobs import BlobSink, StoredBlob
from deltastore.checkpoint import TensorSpec
from deltastore.codecs import get_codec
from deltastore.codecs.values import CODEC as VALUES
from deltastore.digest import TensorHasher
from deltastore.execution.progress import Progress
from deltastore.execution.thread_pool import ThreadPool
from deltastore.extraction.chunk import EncodedChunk
from deltastore.extraction.encoding import Encoding
from deltastore.extraction.plan import ExtractPlan
from deltastore.extraction.proof import NO_ERROR
from deltastore.lineage.pairing import chunks_of
from deltastore.manifest import DeltaError, Stream, TensorEntry, TensorSide
from deltastore.system.threads import Workers

_PARTS_IN_FLIGHT = 2
_OF_NOTHING = TensorHasher().hexdigest()


@dataclass(frozen=True, slots=True)
class Assembled:
    """The tensor table and the parts, as ``(digest, size)`` in order."""

    entries: tuple[TensorEntry, ...]
    parts: list[tuple[str, int]]


def assemble(
    blobs: BlobSink, plan: ExtractPlan, encoding: Encoding, pool: ThreadPool, progress: Progress
) -> Assembled:
    """Encode all of a plan and put its parts into ``blobs``.

    Raises:
        RestoreFailedError: What was encoded does not decode to the same delta.
        CheckpointError: A checkpoint cannot be read.
        StoreError: A part cannot be stored.
    """
    with _PartWriter(blobs, pool) as writer:
        assembler = Assembler(plan, PartBuilder(writer.hand_over))
        encoding.run(assembler.take, pool, progress)
        entries = assembler.finish()
        return Assembled(entries, writer.finish())


class Assembler:
    """Puts frames into streams and streams into the tensor table.

    Args:
        plan: Of which all chunks come.
        builder: Makes the parts.
    """

    def __init__(self, plan: ExtractPlan, builder: PartBuilder) -> None:
        self._plan = plan
        self._builder = builder
        self._exact = get_codec(plan.codec).exactness == "exact"
        self._entries: list[TensorEntry] = []
        self._row: _OpenRow | None = None

    def take(self, result: EncodedChunk) -> None:
        """The next chunk.

        Raises:
            ValueError: It is another one.
        """
        if self._row is None:
            self._skip_to(result.row)
            self._row = self._open(result.row)
        self._row.take(result)
        self._builder.settle()
        if self._row.is_complete:
            self._entries.append(self._row.end())
            self._row = None

    def finish(self) -> tuple[TensorEntry, ...]:
        """The table; closes the last part.

        Raises:
            ValueError: Chunks are missing.
        """
        self._skip_to(len(self._plan.tensors))
        self._builder.finish()
        return tuple(self._entries)

    def _open(self, number: int) -> _OpenRow:
        return _OpenRow(self._plan, number, self._builder, exact=self._exact)

    def _skip_to(self, number: int) -> None:
        """Enter the rows up to one, which have not a single chunk: empty tensors."""
        while len(self._entries) < number:
            row = self._open(len(self._entries))
            if not row.is_complete:
                raise ValueError(f"chunks of row {len(self._entries)} are missing")
            self._entries.append(row.end())


class _OpenRow:
    """A row of the tensor table whose chunks are coming in."""

    def __init__(
        self, plan: ExtractPlan, number: int, builder: PartBuilder, *, exact: bool
    ) -> None:
        self._number = number
        self._pair = plan.tensors[number]
        self._codec = plan.codec
        self._exact = exact
        self._builder = builder
        self._chunks = chunks_of(self._pair, plan.chunk)
        self._next = next(self._chunks, None)
        self._params: Mapping[str, Any] = {}
        self._arrays: Mapping[str, Any] = {}
        self._digests: tuple[str | None, str | None] | None = (_OF_NOTHING, _OF_NOTHING)
        self._kept = 0
        self._differs = False
        self._changed = 0
        self._squares = 0.0
        self._base_squares = 0.0
        self._error = NO_ERROR
        builder.begin(self._key("values"), VALUES, {}, {})
        builder.begin(self._key("patch"), VALUES, {}, {})

    @property
    def is_complete(self) -> bool:
        """Whether all chunks have come."""
        return self._next is None

    def take(self, result: EncodedChunk) -> None:
        """The next chunk."""
        if (result.row, result.chunk) != (self._number, self._next):
            raise ValueError(f"{result.chunk} of row {result.row} does not come next")
        self._next = next(self._chunks, None)
        self._digests = result.digests
        if result.chunk.role == "values":
            self._builder.add(self._key("values"), result.chunk.index, result.frame)
        elif result.difference is not None:
            self._take_delta(result)

    def end(self) -> TensorEntry:
        """The row, done."""
        pair, kind = self._pair, self._pair.kind
        assert self._digests is not None
        base, post = map(_side, (pair.base, pair.post), self._digests)
        if kind == "delta" and base == post:
            kind = "unchanged"
        if kind in ("delta", "resized") and not self._differs:
            self._open_delta()
        delta = None
        if self._differs:
            delta = self._builder.end(self._key("delta")) or Stream(self._codec, {}, (), 0)
        values = self._builder.end(self._key("values"))
        further = pair.post.elements - pair.common_elements if pair.post is not None else 0
        if kind in ("added", "replaced") or (kind == "resized" and further > 0):
            values = values or Stream(VALUES, {}, (), 0)
        error = None
        if delta is not None and not self._exact:
            error = DeltaError(l2=float(np.sqrt(self._error.squares)), max=self._error.max)
        return TensorEntry(
            name=pair.name,
            kind=kind,
            base=base,
            post=post,
            delta=delta,
            values=values,
            patch=self._builder.end(self._key("patch")),
            changed=self._changed,
            l2=float(np.sqrt(self._squares)),
            base_l2=float(np.sqrt(self._base_squares)),
            base_name=pair.base_name,
            error=error,
        )

    def _take_delta(self, result: EncodedChunk) -> None:
        assert result.difference is not None
        index = result.chunk.index
        self._params, self._arrays = result.params, result.arrays
        self._changed += result.difference.changed
        self._squares += result.difference.squares
        self._base_squares += result.difference.base_squares
        self._error += result.error
        if result.frame and not self._differs:
            self._open_delta()
        if self._differs:
            self._builder.add(self._key("delta"), index, result.frame)
        else:
            self._kept += 1
        if result.patch:
            self._builder.add(self._key("patch"), index, result.patch)

    def _open_delta(self) -> None:
        """The first chunk that differs; those before it had nothing to say."""
        self._differs = True
        key = self._key("delta")
        self._builder.begin(key, self._codec, dict(self._params), self._arrays)
        for index in range(self._kept):
            self._builder.add(key, index, b"")

    def _key(self, role: str) -> str:
        return f"{self._pair.name}/{role}"


def _side(tensor: TensorSpec | None, blake3: str | None) -> TensorSide | None:
    if tensor is None:
        return None
    assert blake3 is not None
    return TensorSide(tensor.dtype, tensor.shape, blake3)


class _PartWriter:
    """Stores parts beside the encoding, at most two at a time so that memory stays bounded."""

    def __init__(self, blobs: BlobSink, pool: ThreadPool) -> None:
        self._blobs = blobs
        self._pool = pool
        self._writer = Workers(1, name="parts")
        self._room = threading.BoundedSemaphore(_PARTS_IN_FLIGHT)
        self._futures: list[Future[StoredBlob]] = []

    def __enter__(self) -> _PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown(wait=True, cancel_futures=True)

    def hand_over(self, _number: int, pieces: Sequence[bytes]) -> None:
        """Store one part; waits while two are still being stored."""
        self._room.acquire()
        self._pool.check()
        self._futures.append(self._writer.submit(self._store, pieces))

    def finish(self) -> list[tuple[str, int]]:
        """Digest and size of every part, in order, all on disk."""
        stored = [future.result() for future in self._futures]
        return [(blob.digest, blob.size) for blob in stored]

    def _store(self, pieces: Sequence[bytes]) -> StoredBlob:
        try:
            return self._blobs.put(pieces)
        except BaseException as error:
            self._pool.fail(error)
            raise
        finally:
            self._room.release()
