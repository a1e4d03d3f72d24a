"""A blob's digest, taken of the bytes that are read of it anyway.

sha256 wants the bytes in order; threads that read a blob together read it nearly so. What comes a
little early is held for a moment. What nobody has read in the end, or read far too early, is read
once more, for the digest alone.
"""

from __future__ import annotations

import hashlib
import heapq
import threading
from collections.abc import Mapping

from deltastore.blobs.checking import BLOCK_BYTES, require_bytes
from deltastore.blobs.protocol import BlobReader

_HELD_BYTES = 4 << 20
"""How much is held at most, of all blobs that share a ``Room``."""

_HELD_BY_MISSING = 4
"""With so many times as much held behind a gap, most likely nobody else will read the gap."""

_GAP_BYTES = 16 << 20
"""A gap that is larger is left for the end, as it may yet be read in order."""


class Room:
    """Where bytes that came early are held: so many at most. Thread-safe."""

    def __init__(self, size: int = _HELD_BYTES) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Whether there was room for so many, which is then taken."""
        with self._lock:
            fits = size <= self._left
            self._left -= size if fits else 0
            return fits

    def give_back(self, size: int) -> None:
        """They are no longer held."""
        with self._lock:
            self._left += size


class PassingDigest:
    """The sha256 of a blob, of which each byte is hashed once, when it passes. Thread-safe.

    No reader waits for another one that hashes: it leaves its bytes to that one.

    Args:
        digest: The digest that the blob should have.
        size: The blob's, in bytes.
        room: For what comes early.
    """

    def __init__(self, digest: str, size: int, room: Room) -> None:
        self._digest = digest
        self._size = size
        self._room = room
        self._hasher = hashlib.sha256()
        self._at = 0  # so many bytes are hashed; changes under ``_hashing``
        self._hashing = threading.Lock()
        self._held: list[tuple[int, int, bytes]] = []  # a heap: offset, number, bytes
        self._held_bytes = 0
        self._number = 0
        self._holding = threading.Lock()

    def passed(self, reader: BlobReader, offset: int, data: bytes) -> None:
        """Bytes have been read; from ``reader`` comes what is missing before them.

        Raises:
            BlobCorruptError: These were the last ones, and the digest is another.
        """
        if offset + len(data) <= self._at or offset > self._at + _GAP_BYTES:
            return
        if not self._hashing.acquire(blocking=False):
            self._hold(offset, data)
            return
        try:
            self._drain()
            if offset <= self._at or not self._hold(offset, data):
                while self._at < offset:
                    self._read_on(reader, offset)
                self._hash(offset, data)
                self._drain()
            while self._held and self._held_bytes >= _HELD_BY_MISSING * self._gap():
                self._read_on(reader, self._size)
            if self._at == self._size:
                self._compare()
        finally:
            self._hashing.release()

    def finish(self, reader: BlobReader) -> None:
        """Read what has not passed, and compare the digest.

        Raises:
            BlobCorruptError: It is another one, or the blob cannot be read.
        """
        with self._hashing:
            self._drain()
            while self._at < self._size:
                self._read_on(reader, self._size)
            self._compare()

    def _hash(self, offset: int, data: bytes) -> None:
        """Hash what is new of bytes that begin where all before is hashed, or earlier."""
        new = memoryview(data)[self._at - offset :]
        self._hasher.update(new)
        self._at += len(new)

    def _hold(self, offset: int, data: bytes) -> bool:
        """Keep bytes until their turn; whether there was room."""
        if not self._room.take(len(data)):
            return False
        with self._holding:
            self._number += 1
            heapq.heappush(self._held, (offset, self._number, data))
            self._held_bytes += len(data)
        return True

    def _drain(self) -> None:
        """Hash what is held as far as it goes on."""
        while self._gap() <= 0 < len(self._held):
            with self._holding:
                offset, _, data = heapq.heappop(self._held)
                self._held_bytes -= len(data)
            self._room.give_back(len(data))
            self._hash(offset, data)

    def _gap(self) -> int:
        """The bytes that are missing before the first that is held, or to the end."""
        with self._holding:
            return (self._held[0][0] if self._held else self._size) - self._at

    def _read_on(self, reader: BlobReader, end: int) -> None:
        """Read of the gap before ``end`` what goes at once; hash it and what is held behind it."""
        count = min(BLOCK_BYTES, self._gap(), end - self._at)
        if count > 0:
            self._hash(self._at, reader.read(self._at, count))
        self._drain()

    def _compare(self) -> None:
        require_bytes(self._digest, f"sha256:{self._hasher.hexdigest()}")


class PassingReader:
    """An open blob, whose bytes pass by its digest as soon as there is one that is taken."""

    def __init__(
        self, reader: BlobReader, digest: str, passing: Mapping[str, PassingDigest]
    ) -> None:
        self._reader = reader
        self._digest = digest
        self._passing = passing

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset`` on; see ``BlobReader.read``."""
        data = self._reader.read(offset, count)
        passing = self._passing.get(self._digest)
        if passing is not None:
            passing.passed(self._reader, offset, data)
        return data

    def close(self) -> None:
        """Release it."""
        self._reader.close()
