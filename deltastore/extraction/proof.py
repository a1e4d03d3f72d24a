"""What extraction proves of a chunk before it is stored: that it decodes as its codec declares."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from deltastore.codecs import BoundedEncoder, Encoder, Exactness
from deltastore.codecs.contract import DeltaChunk
from deltastore.codecs.symbols import same_bits
from deltastore.delta.floats import sum_of_squares


@dataclass(frozen=True, slots=True)
class ChunkError:
    """How far a chunk's decoded deltas are from its deltas, over the finite ones.

    ``max``: the largest difference, absolute; ``squares``: the sum of their squares.
    """

    max: float = 0.0
    squares: float = 0.0

    def __add__(self, other: ChunkError) -> ChunkError:
        """That of both chunks together."""
        return ChunkError(max(self.max, other.max), self.squares + other.squares)


NO_ERROR = ChunkError()


def proven(
    exactness: Exactness, encoder: Encoder, delta: DeltaChunk, again: DeltaChunk
) -> ChunkError | None:
    """How far ``again`` is from ``delta``; None where that is not what the codec declares.

    ``exact``: the same bits. ``lossy``: what is no number is the same bits, numbers are numbers.
    ``bounded``: that, and no error is over the encoder's bound.

    Shapes:
        delta, again: ``[n]``, what was encoded and what was decoded.
    """
    if same_bits(again, delta):
        return NO_ERROR
    if exactness == "exact":
        return None
    real = np.float64 if delta.dtype == np.uint64 else np.float32
    finite = np.isfinite(delta.view(real))
    off = again.view(real)[finite].astype(np.float64)
    if not np.isfinite(off).all() or (again[~finite] != delta[~finite]).any():
        return None
    with np.errstate(over="ignore"):
        off -= delta.view(real)[finite]
    error = ChunkError(
        min(float(np.abs(off).max(initial=0)), sys.float_info.max), float(sum_of_squares(off))
    )
    bounded = isinstance(encoder, BoundedEncoder) and error.max <= encoder.bound
    return error if bounded or exactness == "lossy" else None
