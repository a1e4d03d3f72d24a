"""The two kernels that most bytes pass through: bfloat16 on all sides.

One pass each, all steps in registers, so that the compiler turns the loop into vector code; the
general route in ``subtract`` and ``add`` gives the same bits and is what tests compare with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.delta.floats import bfloat16_bits
from deltastore.jit import bits_from_float32, float32_from_bits, kernel
from deltastore.manifest import format as fmt

_SIXTEEN = np.uint32(16)
_ABS = np.uint32(0x7FFFFFFF)
_INF = np.uint32(0x7F800000)
_ROUNDS_TO_INF = np.uint32(0x7F7F8000)
_KEEP = np.uint32(fmt.KEEP)
_NAN = np.uint32(fmt.CANONICAL_NAN)
_HALF = np.uint32(0x7FFF)
_ONE = np.uint32(1)
_QUIET_NAN = np.uint32(0x7FC0)
_BLOCK = 4096


@kernel
def _subtract_block(
    base: npt.NDArray[np.uint16],
    post: npt.NDArray[np.uint16],
    delta: npt.NDArray[np.uint32],
    squares: npt.NDArray[np.float32],
    base_squares: npt.NDArray[np.float32],
) -> tuple[Any, Any]:
    lost = np.uint32(0)
    changed = np.uint32(0)
    for i in range(base.size):
        base_bits = np.uint32(base[i]) << _SIXTEEN
        post_bits = np.uint32(post[i]) << _SIXTEEN
        b = float32_from_bits(base_bits)
        x = float32_from_bits(post_bits) - b
        bits = bits_from_float32(x)
        nan = (bits & _ABS) > _INF
        bits = _NAN if nan else bits
        back = bits_from_float32(b + x)
        back = (back + (_HALF + ((back >> _SIXTEEN) & _ONE))) >> _SIXTEEN
        # NaN loses its sign and payload: applying gives the one quiet NaN, whatever post had.
        back = _QUIET_NAN if nan else back
        lost += np.uint32((back << _SIXTEEN) != post_bits)
        changed += np.uint32(base_bits != post_bits)
        squares[i] = x * x
        base_squares[i] = b * b
        delta[i] = _KEEP if base_bits == post_bits else bits
    return lost, changed


@kernel
def _fold(values: npt.NDArray[np.float32], size: int) -> float:
    """Sum of ``values[:size]``, a power of two, by halving: vector code in a fixed order."""
    while size > 8:
        size //= 2
        for i in range(size):
            values[i] += values[i + size]
    total = 0.0
    for i in range(size):
        total += np.float64(values[i])
    return total


@kernel
def subtract_bfloat16(
    base: npt.NDArray[np.uint16], post: npt.NDArray[np.uint16], delta: npt.NDArray[np.uint32]
) -> tuple[int, int, float, float]:
    """``delta = float32(post) - float32(base)``, and what restoring post from it would lose.

    Shapes:
        base, post: ``[n]``, bfloat16 bits; delta: ``[n]``, float32 bits, overwritten.

    Returns:
        Elements that ``base + delta`` may not give back, changed elements, sum of the squares of
        the finite deltas, and of the base's finite elements. The first may count NaN elements
        too; it is zero only if nothing is lost.
    """
    lost = 0
    changed = 0
    l2 = 0.0
    base_l2 = 0.0
    squares = np.empty(_BLOCK, np.float32)
    base_squares = np.empty(_BLOCK, np.float32)
    for start in range(0, base.size, _BLOCK):
        stop = min(start + _BLOCK, base.size)
        counts = _subtract_block(
            base[start:stop], post[start:stop], delta[start:stop], squares, base_squares
        )
        lost += counts[0]
        changed += counts[1]
        squares[stop - start :] = np.float32(0)
        base_squares[stop - start :] = np.float32(0)
        part = _fold(squares, _BLOCK)
        base_part = _fold(base_squares, _BLOCK)
        # Float32 squares overflow near 1e19 and vanish near 1e-19: such blocks are summed again.
        if not 1e-25 < part < 1e30 or not 1e-25 < base_part < 1e30:
            part = 0.0
            base_part = 0.0
            for i in range(start, stop):
                b = np.float64(float32_from_bits(np.uint32(base[i]) << _SIXTEEN))
                x = np.float64(float32_from_bits(delta[i])) if delta[i] != _KEEP else 0.0
                part += x * x if abs(x) < np.inf else 0.0
                base_part += b * b if abs(b) < np.inf else 0.0
        l2 += part
        base_l2 += base_part
    return lost, changed, l2, base_l2


@kernel
def _add_block(
    base: npt.NDArray[np.uint16],
    delta: npt.NDArray[np.uint32],
    scale: np.float32,
    out: npt.NDArray[np.uint16],
) -> Any:
    """One block, but for NaN; returns whether a sum is NaN or rounds to an infinity."""
    large = np.uint32(0)
    for i in range(base.size):
        base_bits = np.uint32(base[i])
        x = float32_from_bits(base_bits << _SIXTEEN) + scale * float32_from_bits(delta[i])
        bits = bits_from_float32(x)
        keep = delta[i] == _KEEP
        large |= np.uint32((bits & _ABS) >= _ROUNDS_TO_INF) & np.uint32(not keep)
        rounded = (bits + (_HALF + ((bits >> _SIXTEEN) & _ONE))) >> _SIXTEEN
        out[i] = np.uint16(base_bits if keep else rounded)
    return large


@kernel
def add_bfloat16(
    base: npt.NDArray[np.uint16],
    delta: npt.NDArray[np.uint32],
    scale: np.float32,
    out: npt.NDArray[np.uint16],
) -> int:
    """``out = bfloat16(float32(base) + scale * delta)``; untouched where delta is ``KEEP``.

    Shapes:
        base, out: ``[n]``, bfloat16 bits; delta: ``[n]``, float32 bits.

    Returns:
        How many finite elements became infinite.
    """
    overflowed = 0
    for start in range(0, base.size, _BLOCK):
        stop = min(start + _BLOCK, base.size)
        if _add_block(base[start:stop], delta[start:stop], scale, out[start:stop]) == 0:
            continue
        for i in range(start, stop):  # rare: something is NaN or infinite
            if delta[i] == _KEEP:
                continue
            base_bits = np.uint32(base[i])
            b = float32_from_bits(base_bits << _SIXTEEN)
            rounded = bfloat16_bits(b + scale * float32_from_bits(delta[i]))
            out[i] = np.uint16(rounded)
            finite = (base_bits & 0x7F80) != 0x7F80 and (delta[i] & _ABS) < _INF
            overflowed += int(finite and (rounded & 0x7F80) == 0x7F80)
    return overflowed
