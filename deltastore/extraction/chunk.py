"""One chunk of a tensor pair on its way into the artifact: read, hash, subtract, prove, encode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltastore.checkpoint import Weights
from deltastore.codecs import PaletteDecoder, PaletteEncoder
from deltastore.codecs.values import encode_patch, encode_values
from deltastore.delta import Difference, are_differences, is_wide, subtract, subtract_to_tokens
from deltastore.errors import RestoreFailedError
from deltastore.execution.crew import Turns
from deltastore.extraction.forms import Plan, read_run
from deltastore.extraction.proof import NO_ERROR, ChunkError, proven
from deltastore.kernels.buffers import scratch
from deltastore.lineage.pairing import Chunk
from deltastore.manifest.format import DTYPE_BYTES


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """One chunk, done."""

    plan: Plan
    chunk: Chunk
    frame: bytes
    patch: bytes
    difference: Difference | None
    error: ChunkError = NO_ERROR


def encode_chunk(
    base: Weights, post: Weights, item: Plan, chunk: Chunk, turn: Turns, number: int
) -> EncodedChunk:
    """Do all that one chunk needs; the tensor's chunks take turns only in being hashed.

    Args:
        base: The base.
        post: Post.
        item: The pair's plan, whose hashes go on.
        chunk: Which elements, and what they are to become.
        turn: The pair's turns.
        number: The chunk's number among the pair's.

    Raises:
        RestoreFailedError: What was encoded does not decode to the same delta.
        CheckpointError: A checkpoint cannot be read.
    """
    pair = item.pair
    before = after = None
    if chunk.base:
        assert pair.base is not None
        before = read_run(base, pair.base, chunk.start, chunk.count, "base")
    if chunk.post:
        assert pair.post is not None
        after = read_run(post, pair.post, chunk.start, chunk.count, "post")
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
        return EncodedChunk(item, chunk, frame, b"", None)
    if chunk.role == "skim":
        return EncodedChunk(item, chunk, b"", b"", None)
    assert before is not None
    assert after is not None
    return _encode_delta(item, chunk, before, after)


def _encode_delta(
    item: Plan, chunk: Chunk, before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]
) -> EncodedChunk:
    pair = item.pair
    assert pair.base is not None
    assert pair.post is not None
    assert item.encoder is not None
    assert item.decoder is not None
    codec, encoder, decoder = item.codec, item.encoder, item.decoder
    if (
        codec.exactness == "exact"
        and isinstance(encoder, PaletteEncoder)
        and isinstance(decoder, PaletteDecoder)
        and pair.base.dtype == pair.post.dtype == "BF16"
    ):
        frame, difference, error = _encode_as_tokens(encoder, decoder, before, after)
    else:
        frame, difference, error = _encode_any(item, before, after, chunk.count)
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
    return EncodedChunk(item, chunk, frame, patch, difference, error)


def _encode_as_tokens(
    encoder: PaletteEncoder,
    decoder: PaletteDecoder,
    before: npt.NDArray[np.uint8],
    after: npt.NDArray[np.uint8],
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
    item: Plan, before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8], count: int
) -> tuple[bytes, Difference, ChunkError | None]:
    """Frame, difference and error of any chunk."""
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
        return b"", difference, NO_ERROR
    frame = item.encoder.encode(delta)
    again = scratch(f"again{kind().itemsize}", count, kind)
    item.decoder.decode(frame, again)
    return frame, difference, proven(item.codec.exactness, item.encoder, delta, again)
