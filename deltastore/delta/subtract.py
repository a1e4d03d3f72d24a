"""Δ = post - base, chunk by chunk, with the proof that base + Δ gives post back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltastore.delta import bfloat16
from deltastore.delta.add import BLOCK_ELEMENTS, Term, add
from deltastore.delta.float32 import subtract_float32
from deltastore.delta.floats import Bytes, sum_of_squares, to_floats
from deltastore.kernels.palette import Tokens
from deltastore.manifest.format import (
    CANONICAL_NAN,
    CANONICAL_NAN_WIDE,
    DTYPE_BYTES,
    KEEP,
    KEEP_WIDE,
    WIDE_DTYPES,
)


@dataclass(frozen=True, slots=True)
class Difference:
    """What subtracting one chunk found.

    Attributes:
        changed: Elements that carry a delta (all but those marked ``KEEP``).
        squares: Sum of the squares of the finite deltas.
        base_squares: Sum of the squares of the base's finite elements.
        lost: Positions (int64, ascending) where base + 1 * delta is not post bit for bit; these
            need a restore patch.
    """

    changed: int
    squares: float
    base_squares: float
    lost: npt.NDArray[np.int64]


_NONE = np.empty(0, np.int64)


def is_wide(base_dtype: str, post_dtype: str) -> bool:
    """Whether the delta between these dtypes is taken in float64."""
    return base_dtype in WIDE_DTYPES or post_dtype in WIDE_DTYPES


def subtract(
    base: Bytes, base_dtype: str, post: Bytes, post_dtype: str, delta: npt.NDArray[np.generic]
) -> Difference:
    """Write the delta of one chunk.

    Narrow: ``float32(post) - float32(base)`` rounded to float32. Wide: the same in float64.
    Elements of equal bits (and dtype) become ``KEEP``; a delta that is NaN becomes one canonical
    NaN, so that no value can be mistaken for a reserved mark.

    Shapes:
        base, post: ``[n * itemsize]``, uint8; delta: ``[n]``, uint32 if narrow, uint64 if wide,
        overwritten with float bits.

    Source:
        ParamΔ, arXiv 2504.21023, equation 1 (Δ = Θ_post - Θ_base).
    """
    if base_dtype == post_dtype == "BF16":
        suspect, changed, squares, base_squares = bfloat16.subtract_bfloat16(
            base.view(np.uint16), post.view(np.uint16), delta
        )
        if not suspect:
            return Difference(int(changed), squares, base_squares, _NONE)
    elif base_dtype == post_dtype == "F32":
        before = base.view(np.float32)
        changed = subtract_float32(before, post.view(np.float32), delta)
        squares, base_squares = sum_of_squares(delta.view(np.float64)), sum_of_squares(before)
    else:
        changed, squares, base_squares = 0, 0.0, 0.0
        for b, p, d in _blocks(base, base_dtype, post, post_dtype, delta):
            sums = _subtract_any(b, base_dtype, p, post_dtype, d)
            changed, squares, base_squares = (
                changed + sums[0],
                squares + sums[1],
                base_squares + sums[2],
            )
    lost = _lost(base, base_dtype, post, post_dtype, delta) if changed else _NONE
    return Difference(int(changed), float(squares), float(base_squares), lost)


def subtract_to_tokens(
    base: Bytes, post: Bytes, table: Bytes, tokens: Bytes, escapes: npt.NDArray[np.uint32]
) -> tuple[int, Difference]:
    """``subtract`` of two bfloat16 chunks into palette tokens, in one pass.

    Shapes:
        base, post: ``[2 * n]``, uint8; table: ``[65536]``, the token of each upper half; tokens:
        ``[n]``, overwritten; escapes: ``[n + 1]``, overwritten as far as there are any.

    Returns:
        The number of escapes, and what ``subtract`` returns.
    """
    before, after = base.view(np.uint16), post.view(np.uint16)
    count, suspect, changed, squares, base_squares = bfloat16.subtract_to_tokens(
        before, after, table, tokens, escapes
    )
    lost = _NONE
    if suspect:
        delta = np.empty(tokens.size, np.uint32)
        bfloat16.subtract_bfloat16(before, after, delta)
        lost = _lost(base, "BF16", post, "BF16", delta)
    return int(count), Difference(int(changed), squares, base_squares, lost)


def are_differences(base: Bytes, post: Bytes, tokens: Tokens) -> bool:
    """Whether tokens say bit for bit what ``subtract`` says of two bfloat16 chunks.

    Shapes:
        base, post: ``[2 * n]``, uint8; tokens: of ``n`` elements.
    """
    return bool(
        bfloat16.are_differences(
            base.view(np.uint16),
            post.view(np.uint16),
            tokens.tokens,
            tokens.table,
            tokens.escapes,
        )
    )


def _blocks(
    base: Bytes, base_dtype: str, post: Bytes, post_dtype: str, delta: npt.NDArray[np.generic]
) -> Iterator[tuple[Bytes, Bytes, npt.NDArray[np.generic]]]:
    """Pieces that stay in the cache together with their temporaries."""
    b, p = DTYPE_BYTES[base_dtype], DTYPE_BYTES[post_dtype]
    for i in range(0, delta.size, BLOCK_ELEMENTS):
        j = min(i + BLOCK_ELEMENTS, delta.size)
        yield base[i * b : j * b], post[i * p : j * p], delta[i:j]


def _subtract_any(
    base: Bytes, base_dtype: str, post: Bytes, post_dtype: str, delta: npt.NDArray[np.generic]
) -> tuple[int, float, float]:
    wide = is_wide(base_dtype, post_dtype)
    b = to_floats(base, base_dtype, wide=wide)
    p = to_floats(post, post_dtype, wide=wide)
    values = delta.view(np.float64 if wide else np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        np.subtract(p, b, out=values)
    squares = sum_of_squares(values)
    delta[np.isnan(values)] = CANONICAL_NAN_WIDE if wide else CANONICAL_NAN
    changed = values.size
    if base_dtype == post_dtype:
        size = DTYPE_BYTES[base_dtype]
        equal = base.view(f"u{size}") == post.view(f"u{size}")
        delta[equal] = KEEP_WIDE if wide else KEEP
        changed -= int(np.count_nonzero(equal))
    return changed, squares, sum_of_squares(b)


def _lost(
    base: Bytes, base_dtype: str, post: Bytes, post_dtype: str, delta: npt.NDArray[np.generic]
) -> npt.NDArray[np.int64]:
    """Positions that applying ``delta`` to its own base does not give back: the proof itself."""
    restored = np.empty_like(post)
    add(base, base_dtype, [Term(delta, 1.0)], post_dtype, restored)
    size = DTYPE_BYTES[post_dtype]
    return np.flatnonzero(restored.view(f"u{size}") != post.view(f"u{size}"))
