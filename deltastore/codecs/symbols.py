"""Deltas as small symbols plus escapes: the steps between float bits and byte planes.

*Singles* are uint32 float32 bits in which ``ESCAPE`` says that the exact delta stands among the
*escapes*, in order: uint32 for narrow chunks, uint64 for wide ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.kernels.jit import (
    bits_from_float32,
    bits_from_float64,
    float32_from_bits,
    float64_from_bits,
    kernel,
)
from deltastore.kernels.palette import BLOCK, deltas_from_block, tokens_from_block, upper_halves
from deltastore.manifest import format as fmt

Bytes = npt.NDArray[np.uint8]
Singles = npt.NDArray[np.uint32]

_KEEP = np.uint32(fmt.KEEP)
_KEEP_WIDE = np.uint64(fmt.KEEP_WIDE)
_ESCAPE = np.uint32(fmt.ESCAPE)
_ESCAPE_HIGH = np.uint16(fmt.ESCAPE_HIGH)
_LOW_HALF = np.uint32(0xFFFF)
_SIXTEEN = np.uint32(16)


@kernel
def same_bits(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Whether two chunks are equal bit for bit; takes no memory.

    Shapes:
        a, b: ``[n]``, both uint32 or both uint64.
    """
    difference = a.dtype.type(0)
    for i in range(a.size):
        difference |= a[i] ^ b[i]
    return bool(difference == 0)


@kernel
def narrowed(wide: npt.NDArray[np.uint64], singles: Singles) -> None:
    """Float64 bits to singles: the float32 where it is the same number, else ``ESCAPE``."""
    for i in range(wide.size):
        value = float64_from_bits(wide[i])
        single = np.float32(value)
        same = bits_from_float64(np.float64(single)) == wide[i]
        bits = bits_from_float32(single) if same else _ESCAPE
        singles[i] = _KEEP if wide[i] == _KEEP_WIDE else bits


@kernel
def tokens_from_singles(
    singles: Singles,
    full: npt.NDArray[Any],
    table: Bytes,
    tokens: Bytes,
    escapes: npt.NDArray[Any],
) -> int:
    """Palette tokens; what the palette lacks goes to ``escapes``.

    Shapes:
        singles, full, tokens: ``[n]``; table: ``[65536]``, token of each upper half;
        escapes: ``[n + 1]``.

    Returns:
        The number of escapes.
    """
    count = 0
    high = np.empty(BLOCK, np.uint32)
    for start in range(0, singles.size, BLOCK):
        piece = singles[start : start + BLOCK]
        upper_halves(piece, high)
        count = tokens_from_block(
            high, full[start : start + BLOCK], table, tokens[start : start + BLOCK], escapes, count
        )
    return count


@kernel
def halves_from_singles(
    singles: Singles,
    full: npt.NDArray[Any],
    halves: npt.NDArray[np.uint16],
    escapes: npt.NDArray[Any],
) -> int:
    """Upper halves; elements with a lower half go to ``escapes``. Shapes as for tokens."""
    count = 0
    for i in range(singles.size):
        bits = singles[i]
        halves[i] = bits >> _SIXTEEN if (bits & _LOW_HALF) == np.uint32(0) else _ESCAPE_HIGH
        escapes[count] = full[i]
        count += halves[i] == _ESCAPE_HIGH
    return count


@kernel
def escapes_of_singles(singles: Singles, full: npt.NDArray[Any], escapes: npt.NDArray[Any]) -> int:
    """Collect ``full`` wherever ``singles`` is ``ESCAPE``. Shapes as for tokens."""
    count = 0
    for i in range(singles.size):
        escapes[count] = full[i]
        count += singles[i] == _ESCAPE
    return count


@kernel
def deltas_from_tokens(
    tokens: Bytes, table: npt.NDArray[np.uint32], escapes: Bytes, out: npt.NDArray[np.uint32]
) -> None:
    """Narrow deltas from palette tokens.

    Shapes:
        tokens, table, escapes: see ``Tokens``; out: ``[n]``, overwritten.
    """
    count = 0
    for start in range(0, tokens.size, BLOCK):
        piece = tokens[start : start + BLOCK]
        count = deltas_from_block(piece, table, escapes, count, out[start : start + BLOCK])


@kernel
def fill_escapes(singles: Singles, escapes: npt.NDArray[np.uint32]) -> int:
    """Put escapes back in place; returns how many ``singles`` asked for."""
    count = 0
    for i in range(singles.size):
        if singles[i] == _ESCAPE:
            if count < escapes.size:
                singles[i] = escapes[count]
            count += 1
    return count


@kernel
def widen_with_escapes(
    singles: Singles, escapes: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64]
) -> int:
    """Wide deltas from singles and escapes; returns how many escapes ``singles`` asked for.

    NaN payloads, ``KEEP`` among them, keep their upper bits when a float32 is widened.
    """
    count = 0
    for i in range(singles.size):
        if singles[i] == _ESCAPE:
            out[i] = escapes[count] if count < escapes.size else np.uint64(0)
            count += 1
        else:
            out[i] = bits_from_float64(np.float64(float32_from_bits(singles[i])))
    return count
