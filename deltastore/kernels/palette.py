"""Palette tokens: narrow deltas as one byte each, with the rare others beside them.

Token ``t < 255`` stands for entry ``t`` of a table; 255 is an *escape*, whose delta stands among
the escapes, in order. A frame of eight elements, two of them escapes, before zstd::

    palette  0: 3C00   1: 7FFF (keep)   2: 8000                  upper halves of float32 bits

    element      0         1         2         3         4         5         6         7
    delta    3C000000  7FFF0000  38D1B717  7FFF0000  7FFF0000  80000000  BF7FF970  7FFF0000
    token       00        01        ff        01        01        02        ff        01

             +-------------------------+-------+-------+-------+-------+
    frame    | 00 01 ff 01 01 02 ff 01 | 17 70 | B7 F9 | D1 7F | 38 BF |
             +-------------------------+-------+-------+-------+-------+
               tokens                    escapes in byte planes: the lowest byte of each first

Here are the steps for one block, which the codec and the arithmetic both build their passes from:
what stays in the processor's nearest cache between two steps costs next to nothing, a chunk written
out and read back costs as much as the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.kernels.jit import kernel
from deltastore.manifest import format as fmt

Bytes = npt.NDArray[np.uint8]

TOKEN_ESCAPE = 255
BLOCK = 2048
"""Elements in a block: its steps' intermediate results fit the first level of the cache."""

_LOW_HALF = np.uint32(0xFFFF)
_SIXTEEN = np.uint32(16)
_ESCAPE_HIGH = np.uint32(fmt.ESCAPE_HIGH)
_BYTE = np.uint64(0xFF)
_EIGHT = np.uint64(8)

_ONES = np.uint64(0x0101010101010101)
_SEVEN = np.uint64(7)
_LOWER = np.uint64(0x7F7F7F7F7F7F7F7F)
_TOPS = np.uint64(0x8080808080808080)
_PLACES = np.uint64(0x0001020304050607)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A narrow delta chunk of ``n`` elements.

    Shapes:
        tokens: ``[n]``; just ``k`` of them are escapes. table: ``[256]``, uint32, float32 bits of
        each token. escapes: ``[4 * k]``, float32 bits in byte planes, least significant first.
    """

    tokens: Bytes
    table: npt.NDArray[np.uint32]
    escapes: Bytes


@kernel
def _escape_marks(word: np.uint64) -> Any:
    """The top bit of each of eight bytes that is 255: Warren, "Hacker's Delight", 6-1."""
    return ((word & _LOWER) + _ONES) & word & _TOPS


@kernel
def _first_place(marks: np.uint64) -> Any:
    """Which byte the lowest mark is in: a multiplication shifts that place to the top."""
    lowest = (marks & (~marks + np.uint64(1))) >> _SEVEN
    return np.int64((lowest * _PLACES) >> np.uint64(56))


@kernel
def upper_halves(singles: npt.NDArray[np.uint32], high: npt.NDArray[np.uint32]) -> None:
    """The upper half of each delta, or that of an escape where the lower half is not zero.

    Shapes:
        singles: ``[m]``, float32 bits; high: at least ``[m]``, overwritten.
    """
    for i in range(singles.size):
        bits = singles[i]
        exact = np.uint32(bits & _LOW_HALF) == np.uint32(0)
        high[i] = np.uint32(bits >> _SIXTEEN) if exact else _ESCAPE_HIGH


@kernel
def tokens_from_block(
    high: npt.NDArray[np.uint32],
    full: npt.NDArray[Any],
    table: Bytes,
    tokens: Bytes,
    escapes: npt.NDArray[Any],
    count: int,
) -> int:
    """The tokens of one block; what the palette lacks is appended to ``escapes``.

    Shapes:
        high: ``[m]``, the deltas' upper halves; full: ``[m]``, what an escape says; table:
        ``[65536]``, the token of each upper half; tokens: ``[m]``, overwritten; escapes: room for
        ``count + m + 1``.

    Returns:
        How many escapes there are now.
    """
    for i in range(tokens.size):
        tokens[i] = table[high[i]]
    whole = tokens.size // 8 * 8
    words = tokens[:whole].view(np.uint64)
    for w in range(words.size):
        marks = _escape_marks(words[w])
        while marks != np.uint64(0):
            escapes[count] = full[8 * w + _first_place(marks)]
            count += 1
            marks &= marks - np.uint64(1)
    for i in range(whole, tokens.size):
        if tokens[i] == TOKEN_ESCAPE:
            escapes[count] = full[i]
            count += 1
    return count


@kernel
def deltas_from_block(
    tokens: Bytes,
    table: npt.NDArray[np.uint32],
    escapes: Bytes,
    count: int,
    out: npt.NDArray[np.uint32],
) -> int:
    """The deltas of one block, of which ``count`` escapes stand before it.

    Shapes:
        tokens: ``[m]``; table, escapes: see ``Tokens``; out: at least ``[m]``, overwritten.

    Returns:
        How many escapes were met up to its end. Those that ``escapes`` lacks are not written.
    """
    k = escapes.size // 4
    whole = tokens.size // 8 * 8
    words = tokens[:whole].view(np.uint64)
    for w in range(words.size):
        word = words[w]
        first = 8 * w
        out[first] = table[word & _BYTE]
        out[first + 1] = table[(word >> _EIGHT) & _BYTE]
        out[first + 2] = table[(word >> np.uint64(16)) & _BYTE]
        out[first + 3] = table[(word >> np.uint64(24)) & _BYTE]
        out[first + 4] = table[(word >> np.uint64(32)) & _BYTE]
        out[first + 5] = table[(word >> np.uint64(40)) & _BYTE]
        out[first + 6] = table[(word >> np.uint64(48)) & _BYTE]
        out[first + 7] = table[word >> np.uint64(56)]
        marks = _escape_marks(word)
        while marks != np.uint64(0):
            if count < k:
                out[first + _first_place(marks)] = _joined(escapes, count, k)
            count += 1
            marks &= marks - np.uint64(1)
    for i in range(whole, tokens.size):
        out[i] = table[tokens[i]]
        if tokens[i] == TOKEN_ESCAPE:
            if count < k:
                out[i] = _joined(escapes, count, k)
            count += 1
    return count


@kernel
def escapes_in(tokens: Bytes, palette: int) -> int:
    """How many escapes there are; -1 if a token lies between the palette's size and the escape."""
    count = 0
    strange = False
    for start in range(0, tokens.size, 128):
        piece = tokens[start : start + 128]
        met = np.uint8(0)
        for i in range(piece.size):
            met = np.uint8(met + np.uint8(piece[i] == TOKEN_ESCAPE))
        count += int(met)
    if palette < TOKEN_ESCAPE:
        for i in range(tokens.size):
            strange |= palette <= tokens[i] < TOKEN_ESCAPE
    return -1 if strange else count


@kernel
def _joined(planes: Bytes, i: int, k: int) -> Any:
    low = np.uint32(planes[i]) | np.uint32(planes[k + i]) << np.uint32(8)
    high = np.uint32(planes[2 * k + i]) | np.uint32(planes[3 * k + i]) << np.uint32(8)
    return np.uint32(low | high << np.uint32(16))
