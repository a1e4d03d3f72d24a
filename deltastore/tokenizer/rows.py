"""Which row of a delta belongs to which row of an output tensor, where they are not the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    def in_order(self, order: Places) -> Rows:
        """The same for the output's rows in another order; rows beyond these have no source."""
        padding = np.full(order.size - self.count, NONE, np.int64)
        places = (np.concatenate((side, padding)) for side in (self.delta, self.values))
        return Rows(*(side[order] for side in places))


def first_rows(count: int) -> Rows:
    """Rows that stay where they are, without any of post's own."""
    return Rows(np.arange(count, dtype=np.int64), np.full(count, NONE, np.int64))


def source_order(rows: Rows, count: int) -> Places:
    """The output's rows in the order of the delta's; those that have none follow in their own.

    Frames of a delta are decoded once if they are wanted in their order; rows of the new base and
    the output can be read and written in any.

    Args:
        rows: Where each row comes from.
        count: Rows of the output, which may be more.
    """
    places = rows.in_order(np.arange(count, dtype=np.int64)).delta
    key = np.where(places == NONE, np.iinfo(np.int64).max, places)
    return np.argsort(key, kind="stable")


def to_runs(places: Places) -> list[list[int]]:
    """Rows as runs: the source of the first, and how many follow it, or are ``NONE`` as it is."""
    none = places == NONE
    follows = np.where(none[1:], none[:-1], ~none[:-1] & (np.diff(places) == 1))
    starts = np.flatnonzero(np.concatenate((np.ones(min(places.size, 1), np.bool_), ~follows)))
    counts = np.diff(np.append(starts, places.size))
    return [[int(places[start]), int(count)] for start, count in zip(starts, counts, strict=True)]


def from_runs(pieces: Sequence[Sequence[int]]) -> Places:
    """What ``to_runs`` was given."""
    rows = [
        np.full(count, NONE, np.int64) if source == NONE else np.arange(source, source + count)
        for source, count in pieces
    ]
    return np.concatenate(rows, dtype=np.int64) if rows else np.empty(0, np.int64)


def runs(places: Places, width: int, start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Pieces of a chunk that lie together in the source too.

    Args:
        places: The source's row for each row: ``Rows.delta``, ``Rows.values``, or an order.
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
