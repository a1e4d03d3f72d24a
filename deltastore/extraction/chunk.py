"""One chunk of a tensor pair on its way into the artifact: read, hash, subtract, prove, encode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.checkpoint import Weights
from deltastore.codecs import PaletteDecoder, PaletteEncoder
from deltastore.codecs.values import encode_patch, encode_values
from deltastore.delta import Difference, are_differences, is_wide, subtract, subtract_to_tokens
from deltastore.digest import TensorHasher
from deltastore.errors import RestoreFailedError
from deltastore.execution.thread_pool import Turns
from deltastore.extraction.forms import Form, read_run
from deltastore.extraction.proof import NO_ERROR, ChunkError, proven
from deltastore.kernels.buffers import scratch
from deltastore.lineage.pairing import Chunk, Pair
from deltastore.manifest.format import DTYPE_BYTES

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """One chunk, done. It can be pickled: the pieces of a plan may be run in several processes.

    Attributes:
        row: The number of its row in the plan.
        chunk: Which elements, and what they became.
        frame: Their delta or values; empty if all were kept, or nothing was to be encoded.
        patch: What restores the elements that the delta does not, or nothing.
        difference: What subtracting found; None without a delta.
        error: How far the frame is from the delta.
        params: The form of the tensor's delta; empty without a delta.
        arrays: Likewise.
        digests: With a tensor's last chunk, BLAKE3 hex of either side's bytes; None where there is
            no such side.
    """

    row: int
    chunk: Chunk
    frame: bytes = b""
    patch: bytes = b""
    difference: Difference | None = None
    error: ChunkError = NO_ERROR
    params: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    digests: tuple[str | None, str | None] | None = None


@dataclass(slots=True)
class Row:
    """One tensor pair on its way through. ``hashed``: its last chunk is among those on the way."""

    number: int
    pair: Pair
    form: Form | None
    turns: Turns
    hashed: bool
    base_hash: Any = field(default_factory=TensorHasher)
    post_hash: Any = field(default_factory=TensorHasher)

    def hash(
        self, turn: int, before: Bytes | None, after: Bytes | None, *, last: bool
    ) -> tuple[str | None, str | None] | None:
        """Let both sides' BLAKE3 pass, in the order of turns; the digests after the last."""
        if not self.hashed:
            return None
        self.turns.wait(turn)
        if before is not None:
            self.base_hash.update(before.data)
        if after is not None:
            self.post_hash.update(after.data)
        digests = None
        if last:
            base = None if self.pair.base is None else self.base_hash.hexdigest()
            digests = base, None if self.pair.post is None else self.post_hash.hexdigest()
        self.turns.done()
        return digests


def encode_chunk(
    base: Weights, post: Weights, row: Row, chunk: Chunk, turn: int, *, last: bool
) -> EncodedChunk:
    """Do all that one chunk needs; the tensor's chunks take turns only in being hashed.

    Args:
        base: The base.
        post: Post.
        row: The pair, whose hashes go on.
        chunk: Which elements, and what they are to become.
        turn: The chunk's number among the pair's that are on the way.
        last: Whether it is the pair's last.

    Raises:
        RestoreFailedError: What was encoded does not decode to the same delta.
        CheckpointError: A checkpoint cannot be read.
    """
    pair = row.pair
    before = after = None
    if chunk.base:
        assert pair.base is not None
        before = read_run(base, pair.base, chunk.start, chunk.count, "base")
    if chunk.post:
        assert pair.post is not None
        after = read_run(post, pair.post, chunk.start, chunk.count, "post")
    digests = row.hash(turn, before, after, last=last)
    if chunk.role == "values":
        assert after is not None
        assert pair.post is not None
        frame = encode_values(after, DTYPE_BYTES[pair.post.dtype])
        return EncodedChunk(row.number, chunk, frame, digests=digests)
    if chunk.role == "skim":
        return EncodedChunk(row.number, chunk, digests=digests)
    assert before is not None
    assert after is not None
    frame, patch, difference, error = _encode_delta(row, chunk, before, after)
    assert row.form is not None
    return EncodedChunk(
        row.number,
        chunk,
        frame,
        patch,
        difference,
        error,
        params=row.form.encoder.params,
        arrays=row.form.encoder.arrays,
        digests=digests,
    )


def _encode_delta(
    row: Row, chunk: Chunk, before: Bytes, after: Bytes
) -> tuple[bytes, bytes, Difference, ChunkError]:
    """Frame, patch, difference and error of a chunk that has a delta."""
    pair, form = row.pair, row.form
    assert pair.base is not None
    assert pair.post is not None
    assert form is not None
    codec, encoder, decoder = form.codec, form.encoder, form.decoder
    if (
        codec.exactness == "exact"
        and pair.base.dtype == pair.post.dtype == "BF16"
        and isinstance(encoder, PaletteEncoder)
        and isinstance(decoder, PaletteDecoder)
    ):
        frame, difference, error = _encode_as_tokens(encoder, decoder, before, after)
    else:
        frame, difference, error = _encode_any(pair, form, before, after, chunk.count)
    # The proof of restoration, second half: what an apply will read is what was subtracted.
    if error is None:
        raise RestoreFailedError(
            f"{pair.name}: elements from {chunk.start} on do not decode to what was encoded, as "
            f"codec {codec.name}, which is {codec.exactness}, has to.",
            hint="This is a defect of the codec; please report it with the tensor's dtype.",
        )
    patch = b""
    if codec.exactness == "exact" and difference.lost.size:
        size = DTYPE_BYTES[pair.post.dtype]
        values = after.view(f"u{size}")[difference.lost].view(np.uint8)
        patch = encode_patch(difference.lost, values)
    return frame, patch, difference, error


def _encode_as_tokens(
    encoder: PaletteEncoder, decoder: PaletteDecoder, before: Bytes, after: Bytes
) -> tuple[bytes, Difference, ChunkError | None]:
    """Frame, difference and error of a bfloat16 chunk that is encoded as palette tokens."""
    n = before.size // 2
    tokens = scratch("tokens", n, np.uint8)
    escapes = scratch("escapes4", n + 1, np.uint32)
    count, difference = subtract_to_tokens(before, after, encoder.token_table, tokens, escapes)
    if difference.changed == 0:
        return b"", difference, NO_ERROR
    frame = encoder.encode_tokens(tokens, escapes[:count])
    same = are_differences(before, after, decoder.tokens(frame, n))
    return frame, difference, NO_ERROR if same else None


def _encode_any(
    pair: Pair, form: Form, before: Bytes, after: Bytes, count: int
) -> tuple[bytes, Difference, ChunkError | None]:
    """Frame, difference and error of any chunk."""
    assert pair.base is not None
    assert pair.post is not None
    wide = is_wide(pair.base.dtype, pair.post.dtype)
    kind = np.uint64 if wide else np.uint32
    delta = scratch(f"delta{kind().itemsize}", count, kind)
    difference = subtract(before, pair.base.dtype, after, pair.post.dtype, delta)
    if pair.base.dtype == pair.post.dtype and difference.changed == 0:
        return b"", difference, NO_ERROR
    frame = form.encoder.encode(delta)
    again = scratch(f"again{kind().itemsize}", count, kind)
    form.decoder.decode(frame, again)
    return frame, difference, proven(form.codec.exactness, form.encoder, delta, again)
