"""Small reads that lie close together, served from a few larger ones.

A checkpoint of a hundred thousand small tensors asks for hundreds of bytes at a time, and each
call to the system costs more than the bytes: threads that wait for the interpreter meet there.
"""

from __future__ import annotations

from collections.abc import Callable

SMALL_BYTES = 4 << 10
"""Reads of more go straight to the file."""

BLOCK_BYTES = 64 << 10

_BLOCKS = 8
"""Threads that each read at a few places of one file, as a stream's offsets and its frames."""


class Window:
    """The pieces of a file that were read last. Thread-safe.

    Args:
        fetch: Gives so many bytes from a position on, or raises.
        size: Of the file, in bytes.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._blocks: dict[int, bytes] = {}

    def read(self, position: int, count: int) -> bytes | None:
        """``count`` bytes from ``position`` on; None where that is too much for a window.

        What ``fetch`` raises passes through.
        """
        number, start = divmod(position, BLOCK_BYTES)
        if count > SMALL_BYTES or start + count > BLOCK_BYTES or position + count > self._size:
            return None
        block = self._blocks.get(number)
        if block is None:
            block = self._block(number)
        return block[start : start + count]

    def _block(self, number: int) -> bytes:
        begin = number * BLOCK_BYTES
        blocks = self._blocks
        found = blocks[number] = self._fetch(begin, min(BLOCK_BYTES, self._size - begin))
        # The oldest goes; another thread may have taken it away first.
        while len(blocks) > _BLOCKS:
            blocks.pop(next(iter(list(blocks))), None)
        return found
