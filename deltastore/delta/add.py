"""Θ_out = Θ'_base + Σ α·Δ, chunk by chunk, with one conversion at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.delta import bfloat16
from deltastore.delta.float32 import add_float32
from deltastore.delta.floats import E4M3_OVERFLOWS, Bytes, from_floats, to_floats
from deltastore.kernels.palette import Tokens
from deltastore.manifest.format import DTYPE_BYTES, KEEP, KEEP_WIDE, WIDE_DTYPES

BLOCK_ELEMENTS = 8192
"""The general route works on blocks that stay in the cache together with their temporaries."""


@dataclass(frozen=True, slots=True)
class Term:
    """One delta chunk and its scale α; uint32 bits are a narrow delta, uint64 a wide one."""

    delta: npt.NDArray[Any]
    scale: float

    @property
    def wide(self) -> bool:
        """Whether the delta is float64."""
        return self.delta.dtype == np.uint64

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Where the new base's element stays untouched."""
        return self.delta == (KEEP_WIDE if self.wide else KEEP)  # type: ignore[no-any-return]

    @property
    def values(self) -> npt.NDArray[Any]:
        """The delta as floats; ``KEEP`` reads as NaN."""
        return self.delta.view(np.float64 if self.wide else np.float32)


def add(base: Bytes, base_dtype: str, terms: Sequence[Term], out_dtype: str, out: Bytes) -> int:
    """Write base + Σ scale·delta for one chunk.

    Arithmetic is in float32, with scales rounded to float32, every product rounded and the sum
    taken from left to right; or in float64, likewise, if a delta is wide or the base is float32
    or float64. The result is rounded to nearest even once, into ``out_dtype``. An element that
    every term keeps is the base's own, bit for bit if the dtype stays the same.

    Shapes:
        base: ``[n * itemsize]``, uint8; deltas: ``[n]``; out: ``[n * out itemsize]``, uint8,
        overwritten.

    Returns:
        How many elements are finite in the base and in the deltas and too large for ``out``.

    Source:
        ParamΔ, arXiv 2504.21023, equation 2 (Θ_out = Θ'_base + α·Δ).
    """
    if len(terms) == 1 and base_dtype == out_dtype == "BF16" and not terms[0].wide:
        return int(
            bfloat16.add_bfloat16(
                base.view(np.uint16),
                terms[0].delta,
                np.float32(terms[0].scale),
                out.view(np.uint16),
            )
        )
    if len(terms) == 1 and base_dtype == out_dtype == "F32" and terms[0].wide:
        return int(
            add_float32(
                base.view(np.float32), terms[0].delta, float(terms[0].scale), out.view(np.float32)
            )
        )
    b, o = DTYPE_BYTES[base_dtype], DTYPE_BYTES[out_dtype]
    elements = base.size // b
    overflowed = 0
    for i in range(0, elements, BLOCK_ELEMENTS):
        j = min(i + BLOCK_ELEMENTS, elements)
        pieces = [Term(term.delta[i:j], term.scale) for term in terms]
        overflowed += _add_any(
            base[i * b : j * b], base_dtype, pieces, out_dtype, out[i * o : j * o]
        )
    return overflowed


def add_tokens(base: Bytes, tokens: Tokens, scale: float, out: Bytes) -> int:
    """``add`` of one delta in palette tokens to a bfloat16 chunk, in one pass.

    Shapes:
        base, out: ``[2 * n]``, uint8; tokens: of ``n`` elements.

    Returns:
        What ``add`` returns.
    """
    return int(
        bfloat16.add_tokens(
            base.view(np.uint16),
            tokens.tokens,
            tokens.table,
            tokens.escapes,
            np.float32(scale),
            out.view(np.uint16),
        )
    )


def _add_any(
    base: Bytes, base_dtype: str, terms: Sequence[Term], out_dtype: str, out: Bytes
) -> int:
    wide = base_dtype in WIDE_DTYPES or any(term.wide for term in terms)
    real: Any = np.float64 if wide else np.float32
    start = to_floats(base, base_dtype, wide=wide)
    total: npt.NDArray[Any] = start.copy()
    touched = np.zeros(total.size, np.bool_)
    finite = np.isfinite(start)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for term in terms:
            moved = ~term.kept
            product = real(term.scale) * term.values.astype(real, copy=False)
            np.add(total, product, out=total, where=moved)
            finite &= np.isfinite(term.values) | ~moved
            touched |= moved
    rounded = from_floats(total, out_dtype)
    if base_dtype == out_dtype:
        size = DTYPE_BYTES[out_dtype]
        np.copyto(rounded.view(f"u{size}"), base.view(f"u{size}"), where=~touched)
    out[:] = rounded
    if out_dtype == "F8_E4M3":
        lost = np.abs(total) > E4M3_OVERFLOWS
    else:
        lost = ~np.isfinite(to_floats(out, out_dtype, wide=wide))
    return int(np.count_nonzero(finite & lost))
