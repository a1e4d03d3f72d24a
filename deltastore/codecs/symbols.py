"""Deltas as small symbols plus escapes: the steps between float bits and byte planes.

*Singles* are uint32 float32 bits in which ``ESCAPE`` says that the exact delta stands among the
*escapes*, in order: uint32 for narrow chunks, uint64 for wide ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.jit import (
    bits_from_float32,
    bits_from_float64,
    float32_from_bits,
    float64_from_bits,
    kernel,
)
from deltastore.manifest import format as fmt

Bytes = npt.NDArray[np.uint8]
Singles = npt.NDArray[np.uint32]

TOKEN_ESCAPE = 255

_KEEP = np.uint32(fmt.KEEP)
_KEEP_WIDE = np.uint64(fmt.KEEP_WIDE)
_ESCAPE = np.uint32(fmt.ESCAPE)
_ESCAPE_HIGH = np.uint16(fmt.ESCAPE_HIGH)
_LOW_HALF = np.uint32(0xFFFF)
_SIXTEEN = np.uint32(16)
_BLOCK = 2048

# Whether one of eight bytes is 255, by one subtraction: Warren, "Hacker's Delight", 6-1.
_ONES = np.uint64(0x0101010101010101)
_TOPS = np.uint64(0x8080808080808080)


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
    n = singles.size
    count = 0
    high = np.empty(_BLOCK, np.uint32)
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        piece = singles[start : start + size]
        out = tokens[start : start + size]
        for i in range(size):
            bits = piece[i]
            high[i] = (
                bits >> _SIXTEEN if (bits & _LOW_HALF) == np.uint32(0) else np.uint32(_ESCAPE_HIGH)
            )
        for i in range(size):
            out[i] = table[high[i]]
        whole = size // 8 * 8
        words = out[:whole].view(np.uint64)
        for w in range(words.size):
            inverted = ~words[w]
            if ((inverted - _ONES) & ~inverted & _TOPS) != np.uint64(0):
                for i in range(8 * w, 8 * w + 8):
                    escapes[count] = full[start + i]
                    count += out[i] == TOKEN_ESCAPE
        for i in range(whole, size):
            escapes[count] = full[start + i]
            count += out[i] == TOKEN_ESCAPE
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
def has_token_between(tokens: Bytes, low: int, high: int) -> bool:
    """Whether a token ``t`` with ``low <= t < high`` occurs."""
    found = False
    if low < high:
        for i in range(tokens.size):
            found |= low <= tokens[i] < high
    return found


@kernel
def deltas_from_tokens(
    tokens: Bytes, table: npt.NDArray[np.uint32], escapes: Bytes, out: npt.NDArray[np.uint32]
) -> int:
    """Narrow deltas from palette tokens: the decoding that most bytes pass through.

    Shapes:
        tokens, out: ``[n]``; table: ``[256]``, float32 bits; escapes: ``[4 * k]``, byte planes.

    Returns:
        The number of escape tokens met; valid only if it is ``k``.
    """
    k = escapes.size // 4
    count = 0
    for start in range(0, tokens.size, _BLOCK):
        # Slices, so that indices are known not to be negative and the loops stay tight.
        piece = tokens[start : start + _BLOCK]
        target = out[start : start + _BLOCK]
        for i in range(piece.size):
            target[i] = table[piece[i]]
        whole = piece.size // 8 * 8
        words = piece[:whole].view(np.uint64)
        for w in range(words.size):
            inverted = ~words[w]
            if ((inverted - _ONES) & ~inverted & _TOPS) != np.uint64(0):
                for i in range(8 * w, 8 * w + 8):
                    if piece[i] == TOKEN_ESCAPE:
                        if count < k:
                            target[i] = _joined32(escapes, count, k)
                        count += 1
        for i in range(whole, piece.size):
            if piece[i] == TOKEN_ESCAPE:
                if count < k:
                    target[i] = _joined32(escapes, count, k)
                count += 1
    return count


@kernel
def _joined32(planes: Bytes, i: int, k: int) -> Any:
    low = np.uint32(planes[i]) | np.uint32(planes[k + i]) << np.uint32(8)
    high = np.uint32(planes[2 * k + i]) | np.uint32(planes[3 * k + i]) << np.uint32(8)
    return low | high << _SIXTEEN


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
