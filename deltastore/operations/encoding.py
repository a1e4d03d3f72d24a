"""The heart of ``extract``: two checkpoints in, tensor parts out, in one pass.

Threads take chunks in the table's order. Each reads its two sides, lets both tensors' BLAKE3
pass in order, subtracts, proves that base + Δ gives post back (what does not goes into the
restore patch), encodes, decodes what it encoded and compares, and hands the frame on. Frames are
put into parts in the table's order, so that the parts do not depend on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.blobs import BlobStore, StoredBlob
from deltastore.checkpoint import Checkpoint, TensorInfo
from deltastore.codecs import Codec, Decoder, Encoder, get_codec
from deltastore.codecs.symbols import same_bits
from deltastore.codecs.values import CODEC as VALUES
from deltastore.codecs.values import encode_patch, encode_values
from deltastore.delta import Difference, are_differences, is_wide, subtract, subtract_to_tokens
from deltastore.digest import TensorHasher
from deltastore.errors import RestoreFailedError
from deltastore.manifest import Stream, TensorEntry, TensorSide
from deltastore.manifest.format import CHUNK_ELEMENTS, DTYPE_BYTES
from deltastore.operations.pairing import Chunk, Pair, byte_range, chunks_of
from deltastore.operations.pipeline import Crew, InOrder, Turns
from deltastore.operations.progress import Progress
from deltastore.parts import PartBuilder
from deltastore.scratch import scratch

_SAMPLE_RUNS = 8
_SAMPLE_ELEMENTS = 1 << 15
_PARTS_IN_FLIGHT = 2


@dataclass(slots=True)
class Plan:
    """One tensor pair on its way through: how it is encoded, and what was found so far."""

    pair: Pair
    encoder: Encoder | None
    decoder: Decoder | None
    chunks: int = 0
    base_hash: Any = field(default_factory=TensorHasher)
    post_hash: Any = field(default_factory=TensorHasher)
    differs: bool = False
    changed: int = 0
    squares: float = 0.0
    base_squares: float = 0.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tensor table and the parts, as ``(digest, size)`` in order."""

    entries: tuple[TensorEntry, ...]
    parts: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class _Result:
    """One chunk, done."""

    plan: Plan
    chunk: Chunk
    frame: bytes
    patch: bytes
    difference: Difference | None


def plan(
    base: Checkpoint, post: Checkpoint, pairs: Sequence[Pair], codec: str, jobs: int
) -> tuple[list[Plan], int]:
    """Choose each tensor's form from a sample of it.

    Returns:
        The plans in the order of ``pairs``, and about how many bytes all streams will have.
    """
    chosen = get_codec(codec)
    plans: list[Plan | None] = [None] * len(pairs)
    sizes = [0] * len(pairs)

    def work(number: int, pair: Pair) -> None:
        plans[number], sizes[number] = _plan(base, post, pair, chosen)

    Crew(jobs).run(pairs, work)
    return [plan for plan in plans if plan is not None], sum(sizes)


def encode(
    blobs: BlobStore,
    base: Checkpoint,
    post: Checkpoint,
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
            result = _encode_chunk(base, post, item, chunk, turn, number)
            in_order.put(sequence, result)
            progress.advance(_bytes_read(item.pair, chunk))

        for item in plans:
            item.chunks = sum(1 for _ in chunks_of(item.pair, CHUNK_ELEMENTS))
        crew.run(tasks(), work)
        entries = assembler.finish(plans)
        parts = writer.finish()
    return Encoded(entries, parts)


def _plan(base: Checkpoint, post: Checkpoint, pair: Pair, codec: Codec) -> tuple[Plan, int]:
    if pair.kind == "replaced" and _equal(base, post, pair):
        pair = replace(pair, kind="unchanged")
    common = pair.common_elements
    post_bytes = pair.post.nbytes if pair.post is not None else 0
    if not common:
        has_values = pair.kind in ("added", "replaced", "resized")
        return Plan(pair, None, None), post_bytes if has_values else 0
    assert pair.base is not None
    assert pair.post is not None
    runs = _sample_runs(common)
    wide = is_wide(pair.base.dtype, pair.post.dtype)
    sample = np.empty(sum(count for _, count in runs), np.uint64 if wide else np.uint32)
    filled = 0
    for start, count in runs:
        piece = sample[filled : filled + count]
        subtract(
            _read(base, pair.base, start, count, "base"),
            pair.base.dtype,
            _read(post, pair.post, start, count, "post"),
            pair.post.dtype,
            piece,
        )
        filled += count
    encoder = codec.encoder(sample, common)
    decoder = codec.decoder(encoder.params, encoder.arrays, where=pair.name)
    estimate = int(encoder.bytes_per_element * common)
    further = max(0, post_bytes - common * DTYPE_BYTES[pair.post.dtype])
    return Plan(pair, encoder, decoder), estimate + further


def _equal(base: Checkpoint, post: Checkpoint, pair: Pair) -> bool:
    """Whether two tensors without a meaningful difference are the same."""
    before, after = pair.base, pair.post
    assert before is not None
    assert after is not None
    if before.dtype != after.dtype or before.shape != after.shape:
        return False
    return all(
        np.array_equal(
            _read(base, before, chunk.start, chunk.count, "base"),
            _read(post, after, chunk.start, chunk.count, "post"),
        )
        for chunk in chunks_of(pair, CHUNK_ELEMENTS)
        if chunk.base
    )


def _sample_runs(elements: int) -> list[tuple[int, int]]:
    """(start, count) of runs spread evenly over a tensor; all of it if it is small."""
    if elements <= _SAMPLE_ELEMENTS:
        return [(0, elements)]
    count = _SAMPLE_ELEMENTS // _SAMPLE_RUNS
    step = (elements - count) // (_SAMPLE_RUNS - 1)
    return [(i * step, count) for i in range(_SAMPLE_RUNS)]


def _encode_chunk(
    base: Checkpoint, post: Checkpoint, item: Plan, chunk: Chunk, turn: Turns, number: int
) -> _Result:
    pair = item.pair
    before = after = None
    if chunk.base:
        assert pair.base is not None
        before = _read(base, pair.base, chunk.start, chunk.count, "base")
    if chunk.post:
        assert pair.post is not None
        after = _read(post, pair.post, chunk.start, chunk.count, "post")
    turn.wait(number)
    if before is not None:
        item.base_hash.update(before.data)
    if after is not None:
        item.post_hash.update(after.data)
    turn.done()
    if chunk.role == "values":
        assert after is not None
        assert pair.post is not None
        frame = encode_values(after, DTYPE_BYTES[pair.post.dtype])
        return _Result(item, chunk, frame, b"", None)
    if chunk.role == "skim":
        return _Result(item, chunk, b"", b"", None)
    assert before is not None
    assert after is not None
    return _encode_delta(item, chunk, before, after)


def _encode_delta(
    item: Plan, chunk: Chunk, before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]
) -> _Result:
    pair = item.pair
    assert pair.base is not None
    assert pair.post is not None
    assert item.encoder is not None
    assert item.decoder is not None
    if item.encoder.token_table is not None and pair.base.dtype == pair.post.dtype == "BF16":
        frame, difference, proven = _encode_as_tokens(item.encoder, item.decoder, before, after)
    else:
        frame, difference, proven = _encode_any(item, before, after, chunk.count)
    # The proof of restoration, second half: what an apply will read is what was subtracted.
    if not proven:
        raise RestoreFailedError(
            f"{pair.name}: elements from {chunk.start} on do not decode to what was encoded.",
            hint="This is a defect of deltastore; please report it with the tensor's dtype.",
        )
    patch = b""
    if difference.lost.size:
        size = DTYPE_BYTES[pair.post.dtype]
        values = after.view(f"u{size}")[difference.lost].view(np.uint8)
        patch = encode_patch(difference.lost, values)
    return _Result(item, chunk, frame, patch, difference)


def _encode_as_tokens(
    encoder: Encoder,
    decoder: Decoder,
    before: npt.NDArray[np.uint8],
    after: npt.NDArray[np.uint8],
) -> tuple[bytes, Difference, bool]:
    """Frame, difference and proof of a bfloat16 chunk that is encoded as palette tokens."""
    assert encoder.token_table is not None
    n = before.size // 2
    tokens = scratch("tokens", n, np.uint8)
    escapes = scratch("escapes4", n + 1, np.uint32)
    count, difference = subtract_to_tokens(before, after, encoder.token_table, tokens, escapes)
    if difference.changed == 0:
        return b"", difference, True
    frame = encoder.encode_tokens(tokens, escapes[:count])
    again = decoder.tokens(frame, n)
    return frame, difference, again is not None and are_differences(before, after, again)


def _encode_any(
    item: Plan, before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8], count: int
) -> tuple[bytes, Difference, bool]:
    """Frame, difference and proof of any chunk."""
    pair = item.pair
    assert pair.base is not None
    assert pair.post is not None
    assert item.encoder is not None
    assert item.decoder is not None
    wide = is_wide(pair.base.dtype, pair.post.dtype)
    kind = np.uint64 if wide else np.uint32
    delta = scratch(f"delta{kind().itemsize}", count, kind)
    difference = subtract(before, pair.base.dtype, after, pair.post.dtype, delta)
    if pair.base.dtype == pair.post.dtype and difference.changed == 0:
        return b"", difference, True
    frame = item.encoder.encode(delta)
    again = scratch(f"again{kind().itemsize}", count, kind)
    item.decoder.decode(frame, again)
    return frame, difference, same_bits(again, delta)


def _read(
    checkpoint: Checkpoint, info: TensorInfo, start: int, count: int, role: str
) -> npt.NDArray[np.uint8]:
    """A run of elements in a buffer of this thread, valid until the next read of this role."""
    begin, size = byte_range(info, start, count)
    buffer = scratch(role, size, np.uint8)
    checkpoint.read_into(info.name, begin, buffer)
    return buffer


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

    def take(self, result: _Result) -> None:
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

    def _take_delta(self, item: Plan, result: _Result) -> None:
        assert result.difference is not None
        name, index = item.pair.name, result.chunk.index
        item.changed += result.difference.changed
        item.squares += result.difference.squares
        item.base_squares += result.difference.base_squares
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
        )
        item.encoder = item.decoder = None


def _side(info: TensorInfo | None, hasher: Any) -> TensorSide | None:
    return None if info is None else TensorSide(info.dtype, info.shape, hasher.hexdigest())


class _PartWriter:
    """Stores parts beside the encoding, at most two at a time so that memory stays bounded."""

    def __init__(self, blobs: BlobStore, crew: Crew) -> None:
        self._blobs = blobs
        self._crew = crew
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="parts")
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
