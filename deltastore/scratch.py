"""Buffers that a thread uses again and again.

Fresh buffers of megabytes cost more in page faults than the arithmetic on them does.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

_thread = threading.local()


def scratch(role: str, size: int, dtype: Any) -> npt.NDArray[Any]:
    """A writable array ``[size]`` of this thread, valid until the same role is asked for again."""
    buffers: dict[str, npt.NDArray[Any]] | None = getattr(_thread, "buffers", None)
    if buffers is None:
        buffers = _thread.buffers = {}
    buffer = buffers.get(role)
    if buffer is None or buffer.size < size or buffer.dtype != dtype:
        buffer = buffers[role] = np.empty(max(size, 1), dtype)
    return buffer[:size]
