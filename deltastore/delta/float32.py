"""Kernels for float32 checkpoints, whose arithmetic is in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deltastore.kernels.jit import bits_from_float64, float64_from_bits, kernel
from deltastore.manifest import format as fmt

_KEEP = np.uint64(fmt.KEEP_WIDE)
_NAN = np.uint64(fmt.CANONICAL_NAN_WIDE)


@kernel
def subtract_float32(
    base: npt.NDArray[np.float32], post: npt.NDArray[np.float32], delta: npt.NDArray[np.uint64]
) -> int:
    """``delta = float64(post) - float64(base)``; returns how many elements changed.

    Shapes:
        base, post: ``[n]``; delta: ``[n]``, float64 bits, overwritten.
    """
    base_bits = base.view(np.uint32)
    post_bits = post.view(np.uint32)
    changed = 0
    for i in range(base.size):
        x = np.float64(post[i]) - np.float64(base[i])
        bits = bits_from_float64(x) if x == x else _NAN
        same = base_bits[i] == post_bits[i]
        changed += int(not same)
        delta[i] = _KEEP if same else bits
    return changed


@kernel
def add_float32(
    base: npt.NDArray[np.float32],
    delta: npt.NDArray[np.uint64],
    scale: float,
    out: npt.NDArray[np.float32],
) -> int:
    """``out = float32(float64(base) + scale * delta)``; returns how many elements overflowed.

    Shapes:
        base, out: ``[n]``; delta: ``[n]``, float64 bits.
    """
    base_bits = base.view(np.uint32)
    out_bits = out.view(np.uint32)
    overflowed = 0
    for i in range(base.size):
        x = float64_from_bits(delta[i])
        total = np.float32(np.float64(base[i]) + scale * x)
        overflowed += int(abs(total) == np.inf and abs(base[i]) < np.inf and abs(x) < np.inf)
        out[i] = total
        if delta[i] == _KEEP:
            out_bits[i] = base_bits[i]
    return overflowed
