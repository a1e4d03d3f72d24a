"""Buffers that a thread uses again and again.

Fresh buffers of megabytes cost more in page faults than the arithmetic on them does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

Buffers = dict[str, npt.NDArray[Any]]
"""What a thread has, by role."""

_thread = threading.local()


def scratch(role: str, size: int, dtype: Any) -> npt.NDArray[Any]:
    """A writable array ``[size]`` of this thread, valid until the same role is asked for again."""
    buffers: Buffers | None = getattr(_thread, "buffers", None)
    if buffers is None:
        buffers = _thread.buffers = {}
    buffer = buffers.get(role)
    if buffer is None or buffer.size < size or buffer.dtype != dtype:
        buffer = buffers[role] = np.empty(max(size, 1), dtype)
    return buffer[:size]


@contextmanager
def apart(buffers: Buffers) -> Iterator[None]:
    """Have this thread use ``buffers`` meanwhile, so that what it holds of others stays valid."""
    own = getattr(_thread, "buffers", None)
    _thread.buffers = buffers
    try:
        yield
    finally:
        _thread.buffers = own
