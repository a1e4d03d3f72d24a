"""Which row of a delta belongs to which row of an output tensor, where they are not the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NONE = -1
"""No row."""

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """For each row of an output tensor, the row of the delta, or of post's values, that it takes.

    A row takes one of them or neither; row *i* of the new base is row *i* of the output, and rows
    after the new base's last take a value.

    Shapes:
        delta, values: ``[rows of the output]``, int64, ``NONE`` where there is none. ``values``
            counts from the first row that post has and its base has not.
    """

    delta: Places
    values: Places

    @property
    def count(self) -> int:
        """Rows of the output."""
        return self.delta.size


def runs(places: Places, width: int, start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Pieces of a chunk that lie together in the source too.

    Args:
        places: ``Rows.delta`` or ``Rows.values``.
        width: Elements of a row.
        start: The chunk's first element.
        count: How many elements it has.

    Yields:
        First element within the chunk, first element of the source, number of elements.
    """
    first, stop = start // width, -(-(start + count) // width)
    rows = places[first:stop]
    # A run ends where the next row is not the source's next, and at every row without a source.
    breaks = np.flatnonzero((np.diff(rows) != 1) | (rows[1:] == NONE) | (rows[:-1] == NONE)) + 1
    for begin, end in zip(
        np.concatenate(([0], breaks)), np.concatenate((breaks, [rows.size])), strict=True
    ):
        source = int(rows[begin])
        if source == NONE:
            continue
        low = max(start, (first + int(begin)) * width)
        high = min(start + count, (first + int(end)) * width)
        yield low - start, (source - first - int(begin)) * width + low, high - low
