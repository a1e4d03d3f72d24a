"""Elements that do not lie in a row, read from a file in the order that their shape has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

Read = Callable[[int, memoryview], None]
"""Fills a view with the file's bytes from a position."""

_SPAN_BYTES = 1 << 23
"""How much is read at once."""

_CALL_BYTES = 1 << 13
"""How many bytes can be read in the time of one more call."""


def is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements lie in a row, in the order that the shape has."""
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def span_elements(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """From the first element to the end of the last; 0 where there is none."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def read_elements(
    read: Read,
    begin: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    start: int,
    target: Bytes,
) -> None:
    """Fill ``target``, a row of elements as arrays of their bytes.

    Memory is that of ``target`` and 8 MiB. What lies between elements is read with them where that
    is faster than one more call.

    Args:
        read: Reads from the file.
        begin: Position of the first element.
        shape: The tensor's shape.
        stride: Its strides in elements.
        start: The first element that is wanted, in the order of the shape.
        target: Of the shape (elements, bytes of one).
    """
    item = target.shape[1]
    done = 0
    for offset, block, steps in _blocks(shape, stride, start, start + len(target)):
        count = math.prod(block)
        piece = target[done : done + count].reshape(*block, item)
        done += count
        _fill(read, begin + offset * item, steps, piece)


def take_elements(
    data: Bytes, shape: tuple[int, ...], stride: tuple[int, ...], start: int, target: Bytes
) -> None:
    """Ditto, out of the bytes from the first element to the last."""
    item = target.shape[1]
    done = 0
    for offset, block, steps in _blocks(shape, stride, start, start + len(target)):
        count = math.prod(block)
        piece = target[done : done + count].reshape(*block, item)
        done += count
        piece[:] = _view(data[offset * item :], piece.shape, steps)


def _view(data: Bytes, shape: tuple[int, ...], stride: tuple[int, ...]) -> Bytes:
    steps = (*(step * shape[-1] for step in stride), 1)
    return np.lib.stride_tricks.as_strided(data, shape, steps, writeable=False)


def _blocks(
    shape: tuple[int, ...], stride: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Offset, shape and strides of the boxes that elements ``start`` to ``stop`` consist of."""
    if not shape:
        yield 0, (), ()
        return
    row = math.prod(shape[1:])
    (first, skipped), (last, more) = divmod(start, row), divmod(stop, row)
    for index, begin, end in (
        ((first, skipped, more),)
        if first == last
        else ((first, skipped, row if skipped else 0), (None, 0, 0), (last, 0, more))
    ):
        if index is None:
            whole = first + bool(skipped)
            if last > whole:
                yield whole * stride[0], (last - whole, *shape[1:]), stride
        elif end > begin:
            for offset, block, steps in _blocks(shape[1:], stride[1:], begin, end):
                yield index * stride[0] + offset, block, steps


def _fill(read: Read, begin: int, stride: tuple[int, ...], target: Bytes) -> None:
    """Read a box of elements; the last dimension of ``target`` is the bytes of one."""
    *sizes, item = target.shape
    # What repeats is read once.
    once = target[tuple(slice(1) if step == 0 else slice(None) for step in stride)]
    if once.shape != target.shape:
        _fill(read, begin, tuple(step or 1 for step in stride), once)
        target[:] = once
        return
    span = span_elements(tuple(sizes), stride) * item
    run = 1
    for step, size in sorted(zip(stride, sizes, strict=True)):
        if size != 1 and step != run:
            break
        run *= size
    runs = target.size // item // run
    dense = span <= target.size + runs * _CALL_BYTES
    if dense and span <= _SPAN_BYTES:
        data = np.empty(span, np.uint8)
        read(begin, data.data)
        target[:] = _view(data, target.shape, stride)
        return
    axis = max((i for i, size in enumerate(sizes) if size > 1), key=lambda i: stride[i])
    step = stride[axis]
    rows = max(1, sizes[axis] * _SPAN_BYTES // span) if dense else 1
    for first in range(0, sizes[axis], rows):
        part = (*(slice(None) for _ in range(axis)), slice(first, first + rows))
        _fill(read, begin + first * step * item, stride, target[part])
