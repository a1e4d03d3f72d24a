"""Contiguous memory seen as its bytes, never copied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Bytes: TypeAlias = bytes | bytearray | memoryview | np.ndarray[Any, Any]


def byte_view(buffer: Bytes) -> memoryview:
    """The bytes of ``buffer``.

    Raises:
        ValueError: The memory is not C-contiguous, so that a view of it would be a copy.
    """
    array: Any = buffer
    if hasattr(array, "flags"):
        # By way of numpy, because the buffer protocol does not know dtypes such as bfloat16.
        if not array.flags.c_contiguous:
            raise ValueError("the array is not C-contiguous")
        return memoryview(array.reshape(-1).view("u1"))
    view = memoryview(array)
    if not view.c_contiguous:
        raise ValueError("the memory is not C-contiguous")
    # cast() refuses shapes with a zero in them.
    return view.cast("B") if view.nbytes else memoryview(b"")


def check_range(name: str, start_byte: int, length: int, nbytes: int) -> None:
    """Refuse a range that leaves its tensor.

    Raises:
        ValueError: It does; a mistake of the calling code, not of the user.
    """
    if start_byte < 0 or start_byte + length > nbytes:
        raise ValueError(
            f"bytes {start_byte} to {start_byte + length} of {name!r}, which has {nbytes}"
        )
