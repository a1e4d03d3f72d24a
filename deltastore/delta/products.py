"""Inner products of two deltas, chunk by chunk: what the angle between them is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.delta.floats import fold
from deltastore.kernels.jit import kernel
from deltastore.kernels.palette import BLOCK
from deltastore.manifest.format import KEEP, KEEP_WIDE

DeltaChunk = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

LARGEST = 1e140
"""Larger deltas count as not finite: sums of 2^48 of their squares have room in float64."""

_LIMIT = np.float64(LARGEST)
_KEEPS = {4: np.uint32(KEEP), 8: np.uint64(KEEP_WIDE)}
_FLOATS: dict[int, Any] = {4: np.float32, 8: np.float64}


@dataclass(slots=True)
class Products:
    """Sums over the elements of two deltas a and b, in float64.

    An element that is NaN, infinite or beyond ``LARGEST`` in one of them is in none of the sums,
    so that the two vectors are always of the same elements. Elements marked ``KEEP`` are zero.

    Attributes:
        dot: Σ a·b.
        squares_a: Σ a².
        squares_b: Σ b².
        left_out: Elements that are not finite in one of them.
        both: Elements that are neither zero in a nor in b.
        agree: Those of them with the same sign.
    """

    dot: float = 0.0
    squares_a: float = 0.0
    squares_b: float = 0.0
    left_out: int = 0
    both: int = 0
    agree: int = 0

    def add(self, other: Products) -> None:
        """Add the sums over other elements."""
        self.dot += other.dot
        self.squares_a += other.squares_a
        self.squares_b += other.squares_b
        self.left_out += other.left_out
        self.both += other.both
        self.agree += other.agree


def products(a: DeltaChunk, b: DeltaChunk) -> Products:
    """The sums over one chunk, always added in the same order.

    Shapes:
        a, b: ``[n]``, each uint32 if narrow, uint64 if wide.
    """
    x, y = a.view(_FLOATS[a.itemsize]), b.view(_FLOATS[b.itemsize])
    sums = _products(a, x, _KEEPS[a.itemsize], b, y, _KEEPS[b.itemsize])
    dot, squares_a, squares_b, left_out, both, agree = sums
    return Products(dot, squares_a, squares_b, int(left_out), int(both), int(agree))


@kernel
def _widen(bits: DeltaChunk, values: npt.NDArray[Any], keep: Any, out: Doubles) -> None:
    for i in range(bits.size):
        out[i] = 0.0 if bits[i] == keep else np.float64(values[i])


@kernel
def _count(x: Doubles, y: Doubles) -> tuple[int, int, int]:
    """Set the elements to zero that are not finite in one of them; count these, and the signs."""
    left_out = 0
    both = 0
    agree = 0
    for i in range(x.size):
        u = x[i]
        v = y[i]
        inside = (abs(u) <= _LIMIT) & (abs(v) <= _LIMIT)  # false for NaN
        u = u if inside else 0.0
        v = v if inside else 0.0
        x[i] = u
        y[i] = v
        left_out += int(not inside)
        both += int((u != 0.0) & (v != 0.0))
        agree += int(((u > 0.0) & (v > 0.0)) | ((u < 0.0) & (v < 0.0)))
    return left_out, both, agree


@kernel
def _dot(x: Doubles, y: Doubles, terms: Doubles) -> float:
    for i in range(x.size):
        terms[i] = x[i] * y[i]
    return fold(terms, x.size)  # type: ignore[no-any-return]


@kernel
def _products(
    a: DeltaChunk,
    a_values: npt.NDArray[Any],
    a_keep: Any,
    b: DeltaChunk,
    b_values: npt.NDArray[Any],
    b_keep: Any,
) -> tuple[float, float, float, int, int, int]:
    x = np.empty(BLOCK, np.float64)
    y = np.empty(BLOCK, np.float64)
    terms = np.empty(BLOCK, np.float64)
    dot = 0.0
    squares_a = 0.0
    squares_b = 0.0
    left_out = 0
    both = 0
    agree = 0
    for start in range(0, a.size, BLOCK):
        stop = min(start + BLOCK, a.size)
        _widen(a[start:stop], a_values[start:stop], a_keep, x)
        _widen(b[start:stop], b_values[start:stop], b_keep, y)
        x[stop - start :] = 0.0  # the last block is filled up with what adds nothing
        y[stop - start :] = 0.0
        found = _count(x, y)
        left_out += found[0]
        both += found[1]
        agree += found[2]
        dot += _dot(x, y, terms)
        squares_a += _dot(x, x, terms)
        squares_b += _dot(y, y, terms)
    return dot, squares_a, squares_b, left_out, both, agree
