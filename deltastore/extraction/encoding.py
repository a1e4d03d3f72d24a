"""The heart of ``extract``: two checkpoints in, tensor parts out, in one pass.

Threads take chunks in the table's order. Each reads its two sides, lets both tensors' BLAKE3
pass in order, subtracts, proves that base + Δ gives post back (what does not goes into the
restore patch), encodes, decodes what it encoded and compares, and hands the frame on. Frames are
put into parts in the table's order, so that the parts do not depend on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltastore.artifact.parts import PartBuilder
from deltastore.blobs import BlobSink, StoredBlob
from deltastore.checkpoint import TensorInfo, Weights
from deltastore.codecs.values import CODEC as VALUES
from deltastore.execution.crew import Crew, InOrder, Turns
from deltastore.execution.progress import Progress
from deltastore.extraction.chunk import EncodedChunk, encode_chunk
from deltastore.extraction.forms import Plan
from deltastore.lineage.pairing import Chunk, Pair, chunks_of
from deltastore.manifest import DeltaError, Stream, TensorEntry, TensorSide
from deltastore.manifest.format import CHUNK_ELEMENTS, DTYPE_BYTES
from deltastore.system.threads import Workers

_PARTS_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tensor table and the parts, as ``(digest, size)`` in order."""

    entries: tuple[TensorEntry, ...]
    parts: list[tuple[str, int]]


def encode(
    blobs: BlobSink,
    base: Weights,
    post: Weights,
    plans: Sequence[Plan],
    codec: str,
    jobs: int,
    progress: Progress,
) -> Encoded:
    """Read both checkpoints once and put their parts into ``blobs``.

    Raises:
        RestoreFailedError: What was encoded does not decode to the same delta.
        CheckpointError: A checkpoint cannot be read.
        StoreError: A part cannot be stored.
    """
    crew = Crew(jobs)
    with _PartWriter(blobs, crew) as writer:
        assembler = _Assembler(PartBuilder(writer.hand_over), codec)
        in_order = InOrder(crew, assembler.take)

        def tasks() -> Iterator[tuple[Plan, Chunk, Turns, int]]:
            for item in plans:
                turns = Turns(crew)
                for number, chunk in enumerate(chunks_of(item.pair, CHUNK_ELEMENTS)):
                    yield item, chunk, turns, number

        def work(sequence: int, task: tuple[Plan, Chunk, Turns, int]) -> None:
            item, chunk, turn, number = task
            in_order.wait_for_room(sequence)
            result = encode_chunk(base, post, item, chunk, turn, number)
            in_order.put(sequence, result)
            progress.advance(_bytes_read(item.pair, chunk))

        for item in plans:
            item.chunks = sum(1 for _ in chunks_of(item.pair, CHUNK_ELEMENTS))
        crew.run(tasks(), work)
        entries = assembler.finish(plans)
        parts = writer.finish()
    return Encoded(entries, parts)


def _bytes_read(pair: Pair, chunk: Chunk) -> int:
    sides = ((chunk.base, pair.base), (chunk.post, pair.post))
    return sum(
        chunk.count * DTYPE_BYTES[info.dtype] for used, info in sides if used and info is not None
    )


class _Assembler:
    """Puts frames into streams and streams into the tensor table; called in order."""

    def __init__(self, builder: PartBuilder, codec: str) -> None:
        self._builder = builder
        self._codec = codec
        self._current: Plan | None = None
        self._seen = 0
        self._kept = 0
        self._entries: dict[str, TensorEntry] = {}

    def take(self, result: EncodedChunk) -> None:
        """One chunk, in the table's order."""
        item, chunk = result.plan, result.chunk
        if self._current is not item:
            self._begin(item)
        self._seen += 1
        name = item.pair.name
        if chunk.role == "values":
            self._builder.add(f"{name}/values", chunk.index, result.frame)
        elif result.difference is not None:
            self._take_delta(item, result)
        self._builder.settle()
        if self._seen == item.chunks:
            self._end(item)

    def finish(self, plans: Sequence[Plan]) -> tuple[TensorEntry, ...]:
        """The table, in the order of ``plans``; closes the last part."""
        for item in plans:
            if item.pair.name not in self._entries:  # not a single chunk: an empty tensor
                self._begin(item)
                self._end(item)
        self._builder.finish()
        return tuple(self._entries[item.pair.name] for item in plans)

    def _begin(self, item: Plan) -> None:
        self._current, self._seen, self._kept = item, 0, 0
        self._builder.begin(f"{item.pair.name}/values", VALUES, {}, {})
        self._builder.begin(f"{item.pair.name}/patch", VALUES, {}, {})

    def _take_delta(self, item: Plan, result: EncodedChunk) -> None:
        assert result.difference is not None
        name, index = item.pair.name, result.chunk.index
        item.changed += result.difference.changed
        item.squares += result.difference.squares
        item.base_squares += result.difference.base_squares
        item.error += result.error
        if result.frame and not item.differs:
            self._open_delta(item)
        if item.differs:
            self._builder.add(f"{name}/delta", index, result.frame)
        else:
            self._kept += 1
        if result.patch:
            self._builder.add(f"{name}/patch", index, result.patch)

    def _open_delta(self, item: Plan) -> None:
        """The first chunk that differs; those before it had nothing to say."""
        key = f"{item.pair.name}/delta"
        item.differs = True
        params = item.encoder.params if item.encoder is not None else {}
        arrays = item.encoder.arrays if item.encoder is not None else {}
        self._builder.begin(key, self._codec, params, arrays)
        for index in range(self._kept):
            self._builder.add(key, index, b"")

    def _end(self, item: Plan) -> None:
        pair = item.pair
        name = pair.name
        kind = pair.kind
        base = _side(pair.base, item.base_hash)
        post = _side(pair.post, item.post_hash)
        if kind == "delta" and base == post:
            kind = "unchanged"
        if kind in ("delta", "resized") and not item.differs:
            self._open_delta(item)
        delta = None
        if item.differs:
            delta = self._builder.end(f"{name}/delta") or Stream(self._codec, {}, (), 0)
        values = self._builder.end(f"{name}/values")
        further = pair.post.elements - pair.common_elements if pair.post is not None else 0
        if kind in ("added", "replaced") or (kind == "resized" and further > 0):
            values = values or Stream(VALUES, {}, (), 0)
        patch = self._builder.end(f"{name}/patch")
        error = None
        if delta is not None and item.codec.exactness != "exact":
            error = DeltaError(l2=float(np.sqrt(item.error.squares)), max=item.error.max)
        self._entries[name] = TensorEntry(
            name=name,
            kind=kind,
            base=base,
            post=post,
            delta=delta,
            values=values,
            patch=patch,
            changed=item.changed,
            l2=float(np.sqrt(item.squares)),
            base_l2=float(np.sqrt(item.base_squares)),
            base_name=pair.base_name,
            error=error,
        )
        item.encoder = item.decoder = None


def _side(info: TensorInfo | None, hasher: Any) -> TensorSide | None:
    return None if info is None else TensorSide(info.dtype, info.shape, hasher.hexdigest())


class _PartWriter:
    """Stores parts beside the encoding, at most two at a time so that memory stays bounded."""

    def __init__(self, blobs: BlobSink, crew: Crew) -> None:
        self._blobs = blobs
        self._crew = crew
        self._pool = Workers(1, name="parts")
        self._room = threading.BoundedSemaphore(_PARTS_IN_FLIGHT)
        self._futures: list[Future[StoredBlob]] = []

    def __enter__(self) -> _PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def hand_over(self, _number: int, pieces: Sequence[bytes]) -> None:
        """Store one part; waits while two are still being stored."""
        self._room.acquire()
        self._crew.check()
        self._futures.append(self._pool.submit(self._store, pieces))

    def finish(self) -> list[tuple[str, int]]:
        """Digest and size of every part, in order, all on disk."""
        stored = [future.result() for future in self._futures]
        return [(blob.digest, blob.size) for blob in stored]

    def _store(self, pieces: Sequence[bytes]) -> StoredBlob:
        try:
            return self._blobs.put(pieces)
        except BaseException as error:
            self._crew.fail(error)
            raise
        finally:
            self._room.release()
