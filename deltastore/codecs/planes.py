"""Integers to byte planes and back: byte ``j`` of every element stands in plane ``j``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.kernels.jit import kernel

Bytes = npt.NDArray[np.uint8]


@kernel
def split(values: npt.NDArray[Any], planes: Bytes) -> None:
    """Least significant plane first.

    Shapes:
        values: ``[n]``, unsigned; planes: ``[n * itemsize]``, overwritten.
    """
    n = values.size
    for j in range(values.itemsize):
        for i in range(n):
            planes[j * n + i] = np.uint8((values[i] >> (8 * j)) & 0xFF)


@kernel
def join(planes: Bytes, values: npt.NDArray[Any]) -> None:
    """The inverse of ``split``; ``values`` is overwritten."""
    n = values.size
    for i in range(n):
        values[i] = planes[i]
    for j in range(1, values.itemsize):
        for i in range(n):
            values[i] |= values.dtype.type(planes[j * n + i]) << values.dtype.type(8 * j)
