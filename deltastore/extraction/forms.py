"""What is known of a tensor pair before it is encoded: its kind and form, from a sample of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.checkpoint import TensorInfo, Weights
from deltastore.codecs import Codec, Decoder, Encoder, get_codec
from deltastore.delta import is_wide, subtract
from deltastore.digest import TensorHasher
from deltastore.execution.crew import Crew
from deltastore.extraction.proof import NO_ERROR, ChunkError
from deltastore.kernels.buffers import scratch
from deltastore.lineage.pairing import Pair, byte_range, chunks_of
from deltastore.manifest.format import CHUNK_ELEMENTS, DTYPE_BYTES

_SAMPLE_RUNS = 8
_SAMPLE_ELEMENTS = 1 << 15


@dataclass(slots=True)
class Plan:
    """One tensor pair on its way through: how it is encoded, and what was found so far."""

    pair: Pair
    codec: Codec
    encoder: Encoder | None
    decoder: Decoder | None
    chunks: int = 0
    base_hash: Any = field(default_factory=TensorHasher)
    post_hash: Any = field(default_factory=TensorHasher)
    differs: bool = False
    changed: int = 0
    squares: float = 0.0
    base_squares: float = 0.0
    error: ChunkError = NO_ERROR


def plan(
    base: Weights, post: Weights, pairs: Sequence[Pair], codec: str, jobs: int
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


def _plan(base: Weights, post: Weights, pair: Pair, codec: Codec) -> tuple[Plan, int]:
    if pair.kind == "replaced" and _equal(base, post, pair):
        pair = replace(pair, kind="unchanged")
    common = pair.common_elements
    post_bytes = pair.post.nbytes if pair.post is not None else 0
    if not common:
        has_values = pair.kind in ("added", "replaced", "resized")
        return Plan(pair, codec, None, None), post_bytes if has_values else 0
    assert pair.base is not None
    assert pair.post is not None
    runs = _sample_runs(common)
    wide = is_wide(pair.base.dtype, pair.post.dtype)
    sample = np.empty(sum(count for _, count in runs), np.uint64 if wide else np.uint32)
    filled = 0
    for start, count in runs:
        piece = sample[filled : filled + count]
        subtract(
            read_run(base, pair.base, start, count, "base"),
            pair.base.dtype,
            read_run(post, pair.post, start, count, "post"),
            pair.post.dtype,
            piece,
        )
        filled += count
    encoder = codec.encoder(sample, common)
    decoder = codec.decoder(encoder.params, encoder.arrays, where=pair.name)
    estimate = int(encoder.bytes_per_element * common)
    further = max(0, post_bytes - common * DTYPE_BYTES[pair.post.dtype])
    return Plan(pair, codec, encoder, decoder), estimate + further


def _equal(base: Weights, post: Weights, pair: Pair) -> bool:
    """Whether two tensors without a meaningful difference are the same."""
    before, after = pair.base, pair.post
    assert before is not None
    assert after is not None
    if before.dtype != after.dtype or before.shape != after.shape:
        return False
    return all(
        np.array_equal(
            read_run(base, before, chunk.start, chunk.count, "base"),
            read_run(post, after, chunk.start, chunk.count, "post"),
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


def read_run(
    checkpoint: Weights, info: TensorInfo, start: int, count: int, role: str
) -> npt.NDArray[np.uint8]:
    """A run of elements in a buffer of this thread, valid until the next read of this role."""
    begin, size = byte_range(info, start, count)
    buffer = scratch(role, size, np.uint8)
    checkpoint.read_into(info.name, begin, buffer)
    return buffer
