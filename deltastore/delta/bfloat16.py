"""The kernels that most bytes pass through: bfloat16 on all sides.

Blocks stay in the nearest cache from the first step to the last; the loops within a block have no
branches, so that the compiler turns them into vector code. Every intermediate integer is cast back
to 32 bits: Numba computes in 64, which would halve the width of the vectors.

The general route in ``subtract`` and ``add`` gives the same bits and is what tests compare with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.delta.floats import QUIET_NAN, bfloat16_bits, fold, round_to_bfloat16
from deltastore.kernels.jit import bits_from_float32, float32_from_bits, kernel
from deltastore.kernels.palette import BLOCK, deltas_from_block, tokens_from_block, upper_halves
from deltastore.manifest import format as fmt

Halves = npt.NDArray[np.uint16]
Singles = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]

_U32 = np.uint32
_SIXTEEN = np.uint32(16)
_ABS = np.uint32(0x7FFFFFFF)
_INF = np.uint32(0x7F800000)
_ROUNDS_TO_INF = np.uint32(0x7F7F8000)
_KEEP = np.uint32(fmt.KEEP)
_NAN = np.uint32(fmt.CANONICAL_NAN)


@kernel
def _subtract_block(
    base: Halves,
    post: Halves,
    delta: Singles,
    squares: npt.NDArray[np.float32],
    base_squares: npt.NDArray[np.float32],
) -> tuple[Any, Any]:
    lost = _U32(0)
    changed = _U32(0)
    for i in range(base.size):
        base_bits = _U32(_U32(base[i]) << _SIXTEEN)
        post_bits = _U32(_U32(post[i]) << _SIXTEEN)
        b = float32_from_bits(base_bits)
        x = float32_from_bits(post_bits) - b
        bits = bits_from_float32(x)
        nan = _U32(bits & _ABS) > _INF
        bits = _NAN if nan else bits
        back = round_to_bfloat16(bits_from_float32(b + x))
        # NaN loses its sign and payload: applying gives the one quiet NaN, whatever post had.
        back = QUIET_NAN if nan else back
        keep = base_bits == post_bits
        lost = _U32(lost | (_U32(0) if keep else _U32(_U32(back << _SIXTEEN) ^ post_bits)))
        changed = _U32(changed + _U32(not keep))
        squares[i] = x * x
        base_squares[i] = b * b
        delta[i] = _KEEP if keep else bits
    return lost, changed


@kernel
def _sums_of_block(
    base: Halves,
    delta: Singles,
    squares: npt.NDArray[np.float32],
    base_squares: npt.NDArray[np.float32],
) -> tuple[float, float]:
    """Sums of the squares of the deltas and of the base; overwrites ``squares``, ``[BLOCK]``."""
    squares[base.size :] = np.float32(0)
    base_squares[base.size :] = np.float32(0)
    total = fold(squares, BLOCK)
    base_total = fold(base_squares, BLOCK)
    # Float32 squares overflow near 1e19 and vanish near 1e-19: such blocks are summed again.
    if not 1e-25 < total < 1e30 or not 1e-25 < base_total < 1e30:
        total = 0.0
        base_total = 0.0
        for i in range(base.size):
            b = np.float64(float32_from_bits(_U32(base[i]) << _SIXTEEN))
            x = np.float64(float32_from_bits(delta[i])) if delta[i] != _KEEP else 0.0
            total += x * x if abs(x) < np.inf else 0.0
            base_total += b * b if abs(b) < np.inf else 0.0
    return total, base_total


@kernel
def subtract_bfloat16(base: Halves, post: Halves, delta: Singles) -> tuple[bool, int, float, float]:
    """``delta = float32(post) - float32(base)``, and what restoring post from it would lose.

    Shapes:
        base, post: ``[n]``, bfloat16 bits; delta: ``[n]``, float32 bits, overwritten.

    Returns:
        Whether ``base + delta`` may not give post back (false only if it does, bit for bit),
        changed elements, sum of the squares of the finite deltas, and of the base's finite
        elements.
    """
    lost = False
    changed = 0
    l2 = 0.0
    base_l2 = 0.0
    squares = np.empty(BLOCK, np.float32)
    base_squares = np.empty(BLOCK, np.float32)
    for start in range(0, base.size, BLOCK):
        old = base[start : start + BLOCK]
        out = delta[start : start + BLOCK]
        found = _subtract_block(old, post[start : start + BLOCK], out, squares, base_squares)
        lost |= found[0] != 0
        changed += found[1]
        sums = _sums_of_block(old, out, squares, base_squares)
        l2 += sums[0]
        base_l2 += sums[1]
    return lost, changed, l2, base_l2


@kernel
def subtract_to_tokens(
    base: Halves, post: Halves, table: Bytes, tokens: Bytes, escapes: Singles
) -> tuple[int, bool, int, float, float]:
    """``subtract_bfloat16`` with the deltas as palette tokens.

    Shapes:
        base, post: ``[n]``, bfloat16 bits; table: ``[65536]``, the token of each upper half;
        tokens: ``[n]``, overwritten; escapes: ``[n + 1]``, float32 bits, overwritten as far as
        there are any.

    Returns:
        The number of escapes, and what ``subtract_bfloat16`` returns.
    """
    count = 0
    lost = False
    changed = 0
    l2 = 0.0
    base_l2 = 0.0
    squares = np.empty(BLOCK, np.float32)
    base_squares = np.empty(BLOCK, np.float32)
    delta = np.empty(BLOCK, np.uint32)
    high = np.empty(BLOCK, np.uint32)
    for start in range(0, base.size, BLOCK):
        old = base[start : start + BLOCK]
        found = _subtract_block(old, post[start : start + BLOCK], delta, squares, base_squares)
        lost |= found[0] != 0
        changed += found[1]
        sums = _sums_of_block(old, delta, squares, base_squares)
        l2 += sums[0]
        base_l2 += sums[1]
        upper_halves(delta, high)
        count = tokens_from_block(high, delta, table, tokens[start : start + BLOCK], escapes, count)
    return count, lost, changed, l2, base_l2


@kernel
def _differs_block(base: Halves, post: Halves, delta: Singles) -> Any:
    """Bits in which ``delta`` is not what subtracting would give; zero if it is."""
    wrong = _U32(0)
    for i in range(base.size):
        base_bits = _U32(_U32(base[i]) << _SIXTEEN)
        post_bits = _U32(_U32(post[i]) << _SIXTEEN)
        x = float32_from_bits(post_bits) - float32_from_bits(base_bits)
        bits = bits_from_float32(x)
        bits = _NAN if _U32(bits & _ABS) > _INF else bits
        bits = _KEEP if base_bits == post_bits else bits
        wrong = _U32(wrong | _U32(bits ^ delta[i]))
    return wrong


@kernel
def are_differences(
    base: Halves, post: Halves, tokens: Bytes, table: Singles, escapes: Bytes
) -> bool:
    """Whether tokens stand for just the deltas that subtracting gives, bit for bit.

    Shapes:
        base, post: ``[n]``, bfloat16 bits; tokens, table, escapes: see ``Tokens``.
    """
    delta = np.empty(BLOCK, np.uint32)
    wrong = False
    count = 0
    for start in range(0, base.size, BLOCK):
        piece = tokens[start : start + BLOCK]
        count = deltas_from_block(piece, table, escapes, count, delta)
        found = _differs_block(base[start : start + BLOCK], post[start : start + BLOCK], delta)
        wrong |= found != 0
    return not wrong


@kernel
def _add_block(base: Halves, delta: Singles, scale: np.float32, out: Halves) -> Any:
    """One block, but for NaN; returns whether a sum is NaN or rounds to an infinity."""
    large = _U32(0)
    for i in range(base.size):
        base_bits = _U32(base[i])
        keep = delta[i] == _KEEP
        b = float32_from_bits(_U32(base_bits << _SIXTEEN))
        bits = bits_from_float32(b + scale * float32_from_bits(delta[i]))
        outside = _U32(_U32(bits & _ABS) >= _ROUNDS_TO_INF)
        large = _U32(large | (_U32(0) if keep else outside))
        out[i] = np.uint16(base_bits if keep else round_to_bfloat16(bits))
    return large


@kernel
def _add_carefully(base: Halves, delta: Singles, scale: np.float32, out: Halves) -> int:
    """The same for a block in which something is NaN or infinite; how many sums overflowed."""
    overflowed = 0
    for i in range(base.size):
        if delta[i] == _KEEP:
            continue
        base_bits = _U32(base[i])
        b = float32_from_bits(_U32(base_bits << _SIXTEEN))
        rounded = bfloat16_bits(b + scale * float32_from_bits(delta[i]))
        out[i] = np.uint16(rounded)
        finite = (base_bits & 0x7F80) != 0x7F80 and (delta[i] & _ABS) < _INF
        overflowed += int(finite and (rounded & 0x7F80) == 0x7F80)
    return overflowed


@kernel
def add_bfloat16(base: Halves, delta: Singles, scale: np.float32, out: Halves) -> int:
    """``out = bfloat16(float32(base) + scale * delta)``; untouched where delta is ``KEEP``.

    Shapes:
        base, out: ``[n]``, bfloat16 bits; delta: ``[n]``, float32 bits.

    Returns:
        How many finite elements became infinite.
    """
    overflowed = 0
    for start in range(0, base.size, BLOCK):
        old = base[start : start + BLOCK]
        change = delta[start : start + BLOCK]
        new = out[start : start + BLOCK]
        if _add_block(old, change, scale, new) != 0:
            overflowed += _add_carefully(old, change, scale, new)
    return overflowed


@kernel
def add_tokens(
    base: Halves,
    tokens: Bytes,
    table: Singles,
    escapes: Bytes,
    scale: np.float32,
    out: Halves,
) -> int:
    """``add_bfloat16`` with the deltas as palette tokens.

    Shapes:
        base, out: ``[n]``, bfloat16 bits; tokens, table, escapes: see ``Tokens``.
    """
    delta = np.empty(BLOCK, np.uint32)
    overflowed = 0
    count = 0
    for start in range(0, base.size, BLOCK):
        old = base[start : start + BLOCK]
        new = out[start : start + BLOCK]
        piece = tokens[start : start + BLOCK]
        count = deltas_from_block(piece, table, escapes, count, delta)
        if _add_block(old, delta, scale, new) != 0:
            overflowed += _add_carefully(old, delta, scale, new)
    return overflowed
